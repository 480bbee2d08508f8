"""What gunicorn loads: `gunicorn kytecron.wsgi:app`, or `wsgi:app` in a checkout."""

from kytecron.app import create_app
from kytecron.cli.console import WrongInput
from kytecron.config import Settings
from kytecron.core.errors import Invalid
from kytecron.logs import configure_logging

try:
    settings = Settings.load()
    configure_logging(settings)
    app = create_app(settings)
except Invalid as error:  # `flask` says it and ends with status 2, gunicorn says it and gives up
    raise WrongInput("\nError: ".join(error.fields.values())) from None

"""What gunicorn loads: `gunicorn kytecron.wsgi:app`, or `wsgi:app` in a checkout."""

from kytecron.app import create_app
from kytecron.cli.console import WrongInput
from kytecron.core.errors import Invalid

try:
    app = create_app()
except Invalid as error:  # `flask` says it and ends with status 2, gunicorn says it and gives up
    raise WrongInput("\nError: ".join(error.fields.values())) from None

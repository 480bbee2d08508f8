"""What gunicorn and `flask --app wsgi` load in a checkout; once installed it is kytecron.wsgi."""

from kytecron.wsgi import app

__all__ = ["app"]

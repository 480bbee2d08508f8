"""What gunicorn and `flask --app wsgi` load."""

from kytecron.app import create_app

app = create_app()

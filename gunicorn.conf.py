"""What gunicorn reads by itself when it is started here."""

from kytecron.gunicorn_conf import *  # noqa: F403

"""The database as pages and API see it: Flask-SQLAlchemy ties a session to each request.

Not in the store: the worker shares the tables and must not carry Flask.
"""

from __future__ import annotations

from flask_sqlalchemy import SQLAlchemy

from .store.models import Base

db = SQLAlchemy(model_class=Base, disable_autonaming=True, session_options={"expire_on_commit": False})

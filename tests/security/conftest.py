"""The real app on a real SQLite file, visitors and callers of every role."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from kytecron.app import create_app
from kytecron.config import Settings
from kytecron.requestdb import db
from kytecron.services import accounts
from kytecron.services.audit import Actor
from tests.pages import Visitor, database, make_visitor

PUBLIC_URL = "https://cron.example"


@pytest.fixture(scope="session")
def one_app(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Flask:
    """Made once: compiling its templates takes longer than most tests."""
    instance = tmp_path_factory.mktemp("security")
    shutil.copy(sqlite_template, instance / "kytecron.db")
    return create_app(Settings(instance_path=instance, public_url=PUBLIC_URL))


@pytest.fixture
def app(one_app: Flask, sqlite_template: Path) -> Flask:
    """The app on an empty database."""
    use_database(one_app, sqlite_template)
    return one_app


def use_database(app: Flask, file: Path) -> None:
    """Give the app a copy of this SQLite file instead of its own."""
    with app.app_context():
        db.engine.dispose()
    for left in Path(app.instance_path).glob("kytecron.db*"):
        left.unlink()
    shutil.copy(file, Path(app.instance_path) / "kytecron.db")


@pytest.fixture
def settings(app: Flask) -> Settings:
    """The settings of `app`."""
    value: Settings = app.extensions["kytecron.settings"]
    return value


@pytest.fixture
def admin(app: Flask) -> Visitor:
    return make_visitor(app, "admin")


@pytest.fixture
def editor(app: Flask) -> Visitor:
    return make_visitor(app, "editor")


@pytest.fixture
def visitors(app: Flask) -> dict[str, Visitor]:
    """One of each role, and `anonymous`, who is not signed in."""
    return {"anonymous": Visitor(app)} | {role: make_visitor(app, role) for role in accounts.ROLES}


@pytest.fixture
def caller(app: Flask) -> Callable[..., FlaskClient]:
    """Makes clients of the API with a token of the given role."""

    def make(role: str = "admin", name: str = "") -> FlaskClient:
        with database(app) as session:
            _, token = accounts.create_token(session, name or f"a {role}", role, 1, Actor("test"))
        client = app.test_client()
        client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {token}"
        return client

    return make


@pytest.fixture
def api(caller: Callable[..., FlaskClient]) -> FlaskClient:
    """A client of the API who may do everything."""
    return caller()

"""The real commands on a real database, as people type them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy.orm import Session

from kytecron.app import create_app
from kytecron.config import Settings
from kytecron.requestdb import db
from kytecron.services.jobs import CronJobManager
from kytecron.store import db as database
from kytecron.store.models import CronJob
from tests.command_line import CODE, CommandLine


@pytest.fixture
def app(sqlite_settings: Settings) -> Iterator[Flask]:
    yield from _app(sqlite_settings)


@pytest.fixture
def cli(app: Flask) -> CommandLine:
    return CommandLine(app)


@pytest.fixture
def rows(sqlite_settings: Settings) -> Iterator[Session]:
    """The same database, for what tests put in and look at."""
    engine = database.make_engine(sqlite_settings)
    with database.make_sessions(engine)() as session:
        yield session
    engine.dispose()


@pytest.fixture
def everywhere(settings: Settings) -> Iterator[CommandLine]:
    """The commands on each database."""
    for app in _app(settings):
        yield CommandLine(app)


def _app(settings: Settings) -> Iterator[Flask]:
    app = create_app(settings)
    yield app
    with app.app_context():
        db.engine.dispose()


@pytest.fixture
def code_file(tmp_path: Path) -> Path:
    path = tmp_path / "greeter.py"
    path.write_text(CODE)
    return path


@pytest.fixture
def job(rows: Session) -> CronJob:
    """A job that runs when it is triggered."""
    return CronJobManager(rows).create_job(name="greeter", code=CODE)

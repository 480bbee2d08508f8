"""The migrations, run and checked from the programme: one door for `make run`, the command line and the tests."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection, Engine

from ..config import ROOT
from .db import MYSQL_DIALECTS

LOCK_SECONDS = 60


def upgrade(engine: Engine) -> None:
    """Bring the database to the newest schema. Of several processes that call it at once one works, the rest wait."""
    with engine.connect() as connection, one_at_a_time(connection):
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()


def behind(engine: Engine) -> str | None:
    """Why the schema is not the one this programme needs, or None when it is."""
    with engine.connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    wanted = ScriptDirectory.from_config(_config()).get_current_head()
    if found == wanted:
        return None
    state = "has no tables yet" if found is None else f"is at migration {found}"
    return f"The database {state}; this version needs {wanted}. Run: flask --app wsgi db upgrade"


def _config() -> Config:
    return Config(ROOT / "migrations" / "alembic.ini")


@contextmanager
def one_at_a_time(connection: Connection) -> Iterator[None]:
    """Hold the lock of those that migrate this database; another one's end is waited for."""
    if connection.dialect.name in MYSQL_DIALECTS:
        connection.execute(
            sa.text("SELECT GET_LOCK('kytecron.migrate', :seconds)"), {"seconds": LOCK_SECONDS}
        )
        try:
            yield
        finally:
            connection.execute(sa.text("SELECT RELEASE_LOCK('kytecron.migrate')"))
    elif connection.dialect.name == "sqlite" and connection.engine.url.database:
        # Tables are made in several transactions, so the database's own lock is not enough.
        with Path(connection.engine.url.database + ".migrate").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    else:
        yield

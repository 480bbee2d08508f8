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

from ..config import PARTS
from ..core.errors import Conflict
from .db import MYSQL_DIALECTS

LOCK_SECONDS = 60


def upgrade(engine: Engine) -> None:
    """Bring the database to the newest schema. Of several processes that call it at once one works, the rest wait.

    Raises Conflict for a database that a newer version has migrated.
    """
    with engine.connect() as connection, one_at_a_time(connection):
        config = _config()
        if (found := _revision(connection)) and not _is_known(found):
            raise Conflict(_too_new(found))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()


def behind(engine: Engine) -> str | None:
    """Why the schema is not the one this programme needs, or None when it is."""
    with engine.connect() as connection:
        found = _revision(connection)
    wanted = ScriptDirectory.from_config(_config()).get_current_head()
    if found == wanted:
        return None
    if found and not _is_known(found):
        return _too_new(found)
    state = "has no tables yet" if found is None else f"is at migration {found}"
    return f"The database {state}; this version needs {wanted}. Run: flask --app wsgi db upgrade"


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _is_known(revision: str) -> bool:
    known = ScriptDirectory.from_config(_config()).walk_revisions()
    return any(script.revision == revision for script in known)


def _too_new(revision: str) -> str:
    return (
        f"The database is at migration {revision}, which this version does not know: "
        "a newer version of kytecron made it. Run that version, or restore a backup"
    )


def _config() -> Config:
    return Config(PARTS / "migrations" / "alembic.ini")


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

"""The migrations, run and checked from the programme: one door for `make run`, the command line and the tests.

Alembic is imported where it works: every process asks which migrations there are, few make them.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from ..config import PARTS
from ..core.errors import Conflict
from . import db, dialects

if TYPE_CHECKING:
    from alembic.config import Config

LOCK_SECONDS = 60.0
"""How long a migration waits for writers, and for another migration."""
STATEMENT_SECONDS = 6 * 3600.0
"""One statement of a migration may take as long: an index on a big table."""
LOOK_SECONDS = 1.0
"""How long a look at the schema is believed: see `Watch`."""
NAMED = 3
_STANDS = re.compile(r"^(revision|down_revision) = (?:[\"'](\w+)[\"']|None)$", re.MULTILINE)
UPGRADE = "Run: kytecron db upgrade"


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Bring the database to a newer schema. Of several processes that call it at once one works, the rest wait.

    Raises Conflict for a database that a newer version has migrated or that is another program's, and where another
    migration or a writer does not end.
    """
    from alembic import command

    with migrating(engine) as connection:
        if problem := _not_ours(connection):
            raise Conflict(problem)
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def downgrade(engine: Engine, revision: str) -> None:
    """Bring the database back to an older schema. Raises Conflict as `upgrade` does, and for no such revision."""
    if revision != "base" and not _is_known(revision):
        raise Conflict(f"There is no migration {revision}")
    from alembic import command

    with migrating(engine) as connection:
        config = _config()
        config.attributes["connection"] = connection
        command.downgrade(config, revision)


def behind(engine: Engine) -> str | None:
    """Why the schema is not the one this programme needs, or None when it is. Raises what the database raises."""
    with engine.connect() as connection:
        if revision(connection) == newest():
            return None
        if problem := _not_ours(connection):
            return problem
        found = revision(connection)
    state = "has no tables yet" if found is None else f"is at migration {found}"
    return f"The database {state}; this version needs {newest()}. {UPGRADE}"


def require_ours(engine: Engine) -> None:
    """Raise Conflict for a database that this version must not migrate; a migration that is on is waited for."""
    with engine.connect() as connection, _alone(connection):
        if problem := _not_ours(connection):
            raise Conflict(problem)


def has_moved_on(at: Connection) -> str | None:
    """Why a process that began with this schema has to end: it is another one now. A single short statement."""
    try:
        found = _revision(at)
    except DBAPIError as error:
        if not db.is_missing_table(error):
            raise
        found = None
    if found == newest():
        return None
    state = f"was brought to migration {found}" if found else "has lost its migrations"
    return f"The database {state} while this version, which needs {newest()}, was running"


def newest() -> str:
    """The migration that this version needs."""
    (head,) = _known().keys() - _known().values()
    return head


def revision(connection: Connection) -> str | None:
    """The migration that the database is at; None where none was made."""
    # Asked first: on PostgreSQL an error would end the transaction, which may be that of a migration.
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return _revision(connection)


def _revision(connection: Connection) -> str | None:
    rows, _ = db.execute(connection, "SELECT version_num FROM alembic_version", ())
    return str(rows[0][0]) if rows else None


def is_at(connection: Connection, wanted: str) -> bool:
    """Whether the database is at a migration, or at the newest one: `head`."""
    return revision(connection) == (newest() if wanted in ("head", "heads") else wanted)


class Watch:
    """Tells a process that goes on for long whether the schema is its own, without asking each time."""

    def __init__(self, engine: Engine) -> None:
        newest()
        self._engine = engine
        self._lock = threading.Lock()
        self._problem: str | None = None
        self._believed_until = 0.0

    def problem(self) -> str | None:
        """Why the schema is not this programme's, as of a moment ago; what the database raises is not told here."""
        if time.monotonic() < self._believed_until or not self._lock.acquire(blocking=False):
            return self._problem  # somebody else is looking
        try:
            self._problem = behind(self._engine)
        except Exception as error:
            if not db.is_outage(error):
                raise
            self._problem = None  # whoever goes on meets the same error, and tells it
        finally:
            self._believed_until = time.monotonic() + LOOK_SECONDS
            self._lock.release()
        return self._problem


def _not_ours(connection: Connection) -> str | None:
    """Why this version can do nothing with the database, not even migrate it."""
    found = revision(connection)
    if found is not None and _is_known(found):
        return None
    tables = sorted(set(sa.inspect(connection).get_table_names()) - {"alembic_version"})
    if "CronJob" not in {*tables} and tables:
        named = ", ".join(tables[:NAMED]) + (" ..." if len(tables) > NAMED else "")
        return f"The database is another program's: it has the tables {named}. Check KYTECRON_DATABASE_URL"
    if found is not None:
        return (
            f"The database is at migration {found}, which this version does not know: "
            "a newer version of kytecron made it. Run that version, or restore a backup"
        )
    if tables:
        return (
            "The database has tables of kytecron and no record of its migration: it is being migrated, "
            "or a migration was cut short. Try again in a moment; if it stays so, restore a backup, "
            "or empty the database if it is new"
        )
    return None


def _is_known(found: str) -> bool:
    return found in _known()


@lru_cache(maxsize=1)
def _known() -> dict[str, str | None]:
    """Every migration of this version, and the one before it.

    Kept: the files may be replaced while the process runs.
    """
    stands = [
        dict(_STANDS.findall(path.read_text())) for path in (PARTS / "migrations" / "versions").glob("*.py")
    ]
    return {one["revision"]: one["down_revision"] or None for one in stands}


def migrations() -> list[tuple[str, str]]:
    """Return the migrations of this version and what each brings, newest first."""
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(_config())
    return [(script.revision, script.doc) for script in scripts.walk_revisions()]


def _config() -> Config:
    from alembic.config import Config

    return Config(PARTS / "migrations" / "alembic.ini")


@contextmanager
def migrating(engine: Engine) -> Iterator[Connection]:
    """A connection for a migration: patient, alone, and where tables can be changed in a transaction, in one.

    Raises Conflict where another migration or a writer does not end.
    """
    patient = db.patient(engine, STATEMENT_SECONDS, LOCK_SECONDS)
    try:
        with patient.connect() as connection, _alone(connection):
            try:
                dialects.of(connection).begin_migration(connection)
            except DBAPIError as error:
                if not db.is_busy(error):
                    raise
                raise Conflict(
                    f"Somebody has been writing to the database for {LOCK_SECONDS:g} s. "
                    "Stop what writes there for so long, and try again"
                ) from None
            yield connection
            connection.commit()
    finally:
        if patient is not engine:
            patient.dispose()


def _alone(connection: Connection) -> AbstractContextManager[None]:
    """Hold the lock of those that migrate this database; another one's end is waited for."""
    return dialects.of(connection).alone(connection, LOCK_SECONDS)

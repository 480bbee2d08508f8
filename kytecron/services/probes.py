"""Can it be written to: real writes, to the database and to the directories, that leave nothing behind."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from ..config import Settings
from ..store import db, dialects
from ..store.models import CronThrottle

WRITTEN_BYTES = 256 * 1024
"""Less room than this is as good as none: one run may print more."""
LOCK_WAIT_SECONDS = 0.5
"""A database that somebody else writes to is well, so nobody waits for it here."""
PREFIX = ".kytecron-probe-"

THROTTLE: Any = CronThrottle.__table__
_MARK = {"key": "probe", "window": datetime(2000, 1, 1, tzinfo=UTC)}


def unwritable(engine: Engine | None, settings: Settings) -> Iterator[str]:
    """A sentence for each place that takes no writes; without an `engine` for the directories alone."""
    if engine is not None and (problem := database_problem(engine)):
        yield problem
    for what, path in _directories(settings).items():
        if problem := directory_problem(path):
            yield f"{what} {path} cannot be written to: {problem}"


def _directories(settings: Settings) -> dict[str, Path]:
    """Where this installation writes on this machine, each place once, with what it is."""
    found = {"The instance directory": settings.instance_path}
    url = make_url(settings.url)
    if file := dialects.of_address(url).file(url):
        directory = file.resolve().parent
        if directory != settings.instance_path.resolve():
            found["The directory of the database"] = directory
    if jobs := settings.job_directory_here():
        found["The directory of the jobs"] = jobs
    return found


def directory_problem(path: Path) -> str:
    """Why nothing can be written there; empty where it can."""
    probe = path / f"{PREFIX}{secrets.token_hex(8)}"
    try:
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        return _reason(error, path)
    try:
        data = memoryview(bytes(WRITTEN_BYTES))
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError as error:
        return _reason(error, path)
    finally:
        os.close(descriptor)
        probe.unlink(missing_ok=True)
    return ""


def _reason(error: OSError, path: Path) -> str:
    if error.errno == errno.ENOSPC and not _has_inodes(path):
        return "no inodes are left on the device: it holds too many files"
    return (error.strerror or str(error)).lower()


def _has_inodes(path: Path) -> bool:
    found = os.statvfs(path)
    return not found.f_files or found.f_favail > 0


def database_problem(engine: Engine) -> str:
    """Why the database takes no writes, as a sentence; empty where it does, or where somebody else is writing."""
    connected = False
    try:
        with engine.connect() as connection:
            connected = True
            # Servers are asked to pass over a locked row.
            hurry = dialects.of(connection).hurry
            hurry(connection, LOCK_WAIT_SECONDS)
            try:
                _write(connection)
            finally:
                hurry(connection, db.STATEMENT_SECONDS * 2 / 3)
    except IntegrityError:
        return ""  # somebody else has just written the same row
    except Exception as error:
        if not isinstance(error, SQLAlchemyError) and not db.is_outage(error):
            raise
        if db.is_row_conflict(error) or db.is_busy(error):
            return ""
        if not connected or (isinstance(error, DBAPIError) and error.connection_invalidated):
            return db.trouble(error)
        return f"The database takes no writes: {db.cause(error)}"
    return ""


def _write(connection: sa.Connection) -> None:
    """Change a row of no importance, and commit."""
    writing = connection.execution_options(**{dialects.WRITING: True})
    mine = sa.and_(*(THROTTLE.c[name] == value for name, value in _MARK.items()))
    with writing.begin():
        found = writing.execute(sa.update(THROTTLE).where(mine).values(count=(THROTTLE.c.count + 1) % 1000))
        if not found.rowcount:
            writing.execute(sa.insert(THROTTLE).values(**_MARK, count=0))

"""Engines, transactions, the database's clock. What differs between databases is explained where it stands."""

from __future__ import annotations

import functools
import json
import logging
import math
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from ..config import Settings
from ..core.errors import Invalid

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

STATEMENT_SECONDS = 15.0
"""No statement that we send takes as long: by then the connection is dead or the database frozen."""
RETRIES = 8
RETRY_SECONDS = 8.0
"""Whoever has waited this long for locks gets the error: a worker has other duties, such as renewing leases."""
RECONNECT_SECONDS = 1.0
"""A connection that was closed is replaced at once; one that timed out says that the database is away."""
WRITING = "kytecron.writing"
MYSQL_DIALECTS = ("mysql", "mariadb")
# Deadlock, lock wait timeout, record changed since read (innodb_snapshot_isolation).
MYSQL_RETRYABLE = {1213, 1205, 1020}
POSTGRES_RETRYABLE = {"40001", "40P01"}


class CommitUnknown(Exception):
    """The connection was lost while COMMIT was under way: it happened or it did not. Read again to know."""


def engine_options(
    url: str | URL, statement_seconds: float = STATEMENT_SECONDS, idle_seconds: float | None = None
) -> dict[str, Any]:
    """Arguments for create_engine that suit the database behind `url`.

    A statement fails that gets no answer within `statement_seconds`; waiting for a lock ends earlier. After
    `idle_seconds` of silence inside a transaction a MySQL or MariaDB server gives the client up. Raises Invalid
    for a URL that is none or has no driver here.
    """
    parsed = _parsed(url)
    if parsed.get_backend_name() == "sqlite":
        return {
            "connect_args": {"timeout": statement_seconds * 2 / 3, "check_same_thread": False},
            "json_deserializer": _read_json,
        }
    options: dict[str, Any] = {
        "json_deserializer": _read_json,
        "isolation_level": "READ COMMITTED",
        "pool_pre_ping": True,
        "pool_recycle": 1800,
        "pool_size": 10,
        "max_overflow": 20,
    }
    if parsed.get_backend_name() in MYSQL_DIALECTS:
        options["connect_args"] = {
            "charset": "utf8mb4",
            "connect_timeout": statement_seconds / 3,
            "read_timeout": statement_seconds,
            "write_timeout": statement_seconds,
            "init_command": "SET time_zone = '+00:00', "
            f"innodb_lock_wait_timeout = {max(1, int(statement_seconds / 3))}" + _idle_limit(idle_seconds),
            **_tls(parsed),
        }
    return options


def _parsed(url: str | URL) -> URL:
    try:
        parsed = make_url(url)
        parsed.get_dialect().import_dbapi()
    except (ArgumentError, ImportError) as error:
        raise Invalid(
            {
                "KYTECRON_DATABASE_URL": f"KYTECRON_DATABASE_URL cannot be used: {error}. Write an SQLAlchemy URL "
                "whose driver is installed, such as mysql+pymysql://user:password@host/database"
            }
        ) from None
    return parsed


def _read_json(text: str) -> Any:
    """What a JSON column holds; text that is no JSON, written by hand into SQLite, is itself.

    Whoever needs an object looks whether it is one. One bad row must not keep a whole batch from being read.
    """
    try:
        return json.loads(text)
    except ValueError:
        return text


def _idle_limit(seconds: float | None) -> str:
    """A process stopped or cut off inside a transaction would keep its locks until TCP gives up, hours later.

    In comments that MariaDB alone and MySQL alone execute; MySQL knows a limit for any silence only.
    """
    if seconds is None:
        return ""
    limit = math.ceil(seconds)
    return f" /*M!100300 , idle_transaction_timeout = {limit} */ /*!50700 , wait_timeout = {limit} */"


def _tls(url: URL) -> dict[str, Any]:
    """PyMySQL builds a TLS context for every connection (50-130 ms): done without on this machine only.

    Giving it one shared context would make TLS compulsory; elsewhere the pool keeps new connections rare.
    """
    if not any(key.startswith("ssl") for key in url.query) and (
        url.host in (None, "localhost", "127.0.0.1", "::1") or "unix_socket" in url.query
    ):
        return {"ssl_disabled": True}
    return {}


def configure(engine: Engine) -> Engine:
    """Attach what an engine needs beyond its options. Call once for each engine."""
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _sqlite_connect)
        sa.event.listen(engine, "begin", _sqlite_begin)
    return engine


def _sqlite_connect(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin transactions of its own
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _sqlite_begin(connection: sa.Connection) -> None:
    # A transaction that reads first and writes later fails when another wrote in between (418 of 600 in a
    # measurement); one that takes the write lock at once waits its turn instead (0 of 600).
    writing = connection.get_execution_options().get(WRITING)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def make_engine(
    settings: Settings,
    *,
    statement_seconds: float = STATEMENT_SECONDS,
    idle_seconds: float | None = None,
    **options: Any,
) -> Engine:
    """An engine for `settings.url` (see `engine_options`); makes the directory of an SQLite file.

    Raises Invalid for a URL that is none, and for a directory that cannot be used.
    """
    url = _parsed(settings.url)
    if url.get_backend_name() == "sqlite" and url.database:
        settings.make_instance_directory()
    chosen = engine_options(url, statement_seconds, idle_seconds) | options
    return configure(sa.create_engine(url, **chosen))


def cause(error: Exception) -> str:
    """What the driver said, in one line: without the statement, its values and where to read more."""
    text = str(getattr(error, "orig", None) or error)
    return text.splitlines()[0][:300] if text else type(error).__name__


def make_sessions(engine: Engine) -> sessionmaker[Session]:
    """Sessions whose objects stay readable after a commit."""
    return sessionmaker(engine, expire_on_commit=False)


def transactional(
    function: Callable[Concatenate[Session, P], T],
) -> Callable[Concatenate[Session, P], T]:
    """Run `function(session, ...)` as one write transaction and retry it whole on deadlocks and locks.

    Called from inside another such function it joins that one's transaction. The function must therefore
    depend on its arguments and the database only.

    Raises CommitUnknown when the connection broke during COMMIT; any other error rolls back.
    """

    @functools.wraps(function)
    def wrapper(session: Session, *args: P.args, **kwargs: P.kwargs) -> T:
        if session.info.get(WRITING):
            return function(session, *args, **kwargs)
        begun = time.monotonic()
        for attempt in range(RETRIES):
            try:
                return _once(session, lambda: function(session, *args, **kwargs))
            except DBAPIError as error:
                if attempt == RETRIES - 1 or not _retryable(error, time.monotonic() - begun):
                    raise
                log.info("transaction repeated after: %s", error.orig)
                # Full jitter: those that collided must not meet again.
                time.sleep(random.uniform(0, 0.005 * 2**attempt))
        raise AssertionError("unreachable")

    return wrapper


def _once(session: Session, work: Callable[[], T]) -> T:
    if session.in_transaction():
        session.rollback()  # ends a reading transaction: turning it into a writing one is what fails
    session.info[WRITING] = True
    try:
        session.connection(execution_options={WRITING: True})
        result = work()
        session.flush()
        _commit(session)
        return result
    except BaseException:
        session.rollback()
        raise
    finally:
        session.info.pop(WRITING, None)


def _commit(session: Session) -> None:
    try:
        session.commit()
    except DBAPIError as error:
        if error.connection_invalidated:
            raise CommitUnknown(str(error.orig)) from error
        raise


def _retryable(error: DBAPIError, waited: float) -> bool:
    """Whether the whole transaction surely did not happen and may well succeed the next time."""
    if error.connection_invalidated:
        return waited < RECONNECT_SECONDS  # before COMMIT: see _commit
    return waited < RETRY_SECONDS and (is_row_conflict(error) or "database is locked" in str(error.orig))


def is_row_conflict(error: BaseException) -> bool:
    """Whether a deadlock or somebody's lock on a row stopped this transaction. The database itself is well."""
    if not isinstance(error, DBAPIError) or error.orig is None:
        return False
    code = error.orig.args[0] if error.orig.args else None
    return code in MYSQL_RETRYABLE or getattr(error.orig, "sqlstate", None) in POSTGRES_RETRYABLE


def now(session: Session) -> datetime:
    """The database's clock, aware UTC: the one clock that all workers share.

    SQLite has no server; its clock is this machine's, which all its users share.
    """
    dialect = session.get_bind().dialect.name
    if dialect in MYSQL_DIALECTS:
        text = "SELECT UTC_TIMESTAMP(6)"
    elif dialect == "postgresql":
        text = "SELECT clock_timestamp() AT TIME ZONE 'UTC'"
    else:
        return datetime.now(UTC)
    moment: datetime = session.execute(sa.text(text)).scalar_one()
    return moment.replace(tzinfo=UTC)


def hits(session: Session, statement: sa.Update | sa.Delete) -> int:
    """Run a guarded UPDATE or DELETE and return how many rows its WHERE found."""
    return int(session.execute(statement).rowcount)  # type: ignore[attr-defined]


def supports_skip_locked(session: Session) -> bool:
    """MySQL from 8.0.1, MariaDB from 10.6, PostgreSQL. The portable path serves the others."""
    dialect: Any = session.get_bind().dialect
    if dialect.name == "postgresql":
        return True
    if dialect.name not in MYSQL_DIALECTS:
        return False
    return bool(dialect.server_version_info >= ((10, 6) if dialect.is_mariadb else (8, 0, 1)))

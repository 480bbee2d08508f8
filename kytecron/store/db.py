"""Engines, transactions, the database's clock. What differs between databases is explained where it stands."""

from __future__ import annotations

import functools
import json
import logging
import math
import random
import sqlite3
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.mysql import insert as mysql_insert
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from ..config import Settings
from ..core.errors import Invalid

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
At = Session | sa.Connection
"""Where a question may be asked: within a session's transaction, or on a connection itself (see `Onlooker`)."""

STATEMENT_SECONDS = 15.0
"""No statement that we send takes as long: by then the connection is dead or the database frozen."""
RETRIES = 8
RETRY_SECONDS = 8.0
"""Whoever has waited this long for locks gets the error: a worker has other duties, such as renewing leases."""
RECONNECT_SECONDS = 1.0
"""A connection that was closed is replaced at once; one that timed out says that the database is away."""
WRITE_AHEAD_SECONDS = 10.0
"""How long a connection to a new SQLite file waits for the others that are new there, too."""
WRITING = "kytecron.writing"
CONNECTION = "kytecron.connection"
USED_AT = "kytecron.used_at"
SILENCE_SECONDS = 1.0
"""A connection that nobody used for so long is asked whether it is alive before it is used again."""
MYSQL_DIALECTS = ("mysql", "mariadb")
CLOCKS = {
    "mysql": "UTC_TIMESTAMP(6)",
    "mariadb": "UTC_TIMESTAMP(6)",
    "postgresql": "clock_timestamp() AT TIME ZONE 'UTC'",
}
"""How databases that have a clock of their own tell it: see `now`."""
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
    except (ArgumentError, ImportError, ValueError) as error:  # the last for a port that is no number
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
    else:
        sa.event.listen(engine, "checkin", _note_use)
        sa.event.listen(engine, "checkout", functools.partial(_ping_after_silence, engine.dialect))
    return engine


def _note_use(_connection: Any, record: Any) -> None:
    record.info[USED_AT] = time.monotonic()


def _ping_after_silence(dialect: Any, connection: Any, record: Any, _proxy: Any) -> None:
    """The pool's own `pre_ping` asks before every transaction, and a busy worker has hundreds a second."""
    if time.monotonic() - record.info.get(USED_AT, math.inf) < SILENCE_SECONDS:
        return
    try:
        alive = dialect.do_ping(connection)
    except dialect.dbapi.Error:
        alive = False
    if not alive:
        raise sa.exc.DisconnectionError  # the pool makes a new one


def _sqlite_connect(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin transactions of its own
    _write_ahead(connection)
    for pragma in ("synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _write_ahead(connection: Any) -> None:
    """Choose the write-ahead log; only the first connection to a new file has to change anything.

    SQLite refuses that at once, whatever the timeout, while another process writes, such as one that is the first, too.
    """
    deadline = time.monotonic() + WRITE_AHEAD_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(random.uniform(0.005, 0.02))


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
        session.info[CONNECTION] = session.connection(execution_options={WRITING: True})
        result = work()
        session.flush()
        _commit(session)
        return result
    except BaseException:
        session.rollback()
        raise
    finally:
        session.info.pop(WRITING, None)
        session.info.pop(CONNECTION, None)


def connection(at: At) -> sa.Connection:
    """The connection of the transaction that is on, or that begins with this; a connection itself.

    Asking the session takes its time, so `transactional` notes down what it answered.
    """
    if isinstance(at, sa.Connection):
        return at
    return at.info.get(CONNECTION) or at.connection()


def execute(
    connection: sa.Connection, text: str, arguments: Any, many: bool = False
) -> tuple[Sequence[Any], int]:
    """Have the driver execute `text`, past SQLAlchemy; returns what was found and how many rows matched.

    Raises what SQLAlchemy would: a DBAPIError that knows whether the connection is lost.
    """
    dialect: Any = connection.dialect
    raw = connection.connection
    try:
        cursor = raw.cursor()
        (cursor.executemany if many else cursor.execute)(text, arguments)
        found = cursor.fetchall() if cursor.description else ()
        matched = int(cursor.rowcount)
        cursor.close()
    except dialect.dbapi.Error as error:
        lost = dialect.is_disconnect(error, raw.dbapi_connection, None)
        if lost:
            connection.invalidate(error)
        raise DBAPIError.instance(
            text, arguments, error, dialect.dbapi.Error, connection_invalidated=lost, dialect=dialect
        ) from error
    return found, matched


class Onlooker:
    """Reads outside of transactions, each time what is there now.

    To begin a transaction and to end it is most of the work of a short question. Its connection is its own.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: sa.Connection | None = None

    def ask(
        self, question: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What `question(connection, ...)` answers. A connection that was lost in silence is replaced once."""
        fresh = self._connection is None
        try:
            return question(self._open(), *args, **kwargs)
        except Exception as error:
            self.close()
            if fresh or not (isinstance(error, DBAPIError) and error.connection_invalidated):
                raise
        return question(self._open(), *args, **kwargs)

    def close(self) -> None:
        """End the connection; the next question opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()  # not for the pool: its next user would expect transactions
            connection.close()

    def _open(self) -> sa.Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
            # SQLite's driver was told not to begin transactions of its own: see `_sqlite_connect`.
            if self._engine.dialect.name != "sqlite":
                self._connection.execution_options(isolation_level="AUTOCOMMIT")
        return self._connection


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


def now(at: At) -> datetime:
    """The database's clock, aware UTC: the one clock that all workers share.

    SQLite has no server; its clock is this machine's, which all its users share.
    """
    on = connection(at)
    clock = CLOCKS.get(on.dialect.name)
    if clock is None:
        return datetime.now(UTC)
    (record,), _ = execute(on, f"SELECT {clock}", ())
    moment: datetime = record[0].replace(tzinfo=UTC)
    return moment


def insertion(table: Any, dialect: str) -> Any:
    """An INSERT that can be told what to do about a row that is there already; each database says it differently."""
    if dialect in MYSQL_DIALECTS:
        return mysql_insert(table)
    return sqlite_insert(table) if dialect == "sqlite" else postgres_insert(table)


def hits(session: Session, statement: sa.Update | sa.Delete) -> int:
    """Run a guarded UPDATE or DELETE and return how many rows its WHERE found."""
    return int(session.execute(statement).rowcount)  # type: ignore[attr-defined]


def supports_skip_locked(session: Session) -> bool:
    """MySQL from 8.0.1, MariaDB from 10.6, PostgreSQL. The portable path serves the others."""
    dialect: Any = connection(session).dialect
    if dialect.name == "postgresql":
        return True
    if dialect.name not in MYSQL_DIALECTS:
        return False
    return bool(dialect.server_version_info >= ((10, 6) if dialect.is_mariadb else (8, 0, 1)))

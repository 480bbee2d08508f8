"""Engines, transactions, the database's clock. What differs between databases is explained where it stands."""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.mysql import insert as mysql_insert
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
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
MYSQL_RETRYABLE: set[int | str | None] = {1213, 1205, 1020}
POSTGRES_RETRYABLE: set[int | str | None] = {"40001", "40P01"}
REFUSED: set[int | str | None] = {1044, 1045, 1698, "28000", "28P01"}
"""What databases call a user or a password that they do not let in; the next, a database that is not there."""
NO_DATABASE: set[int | str | None] = {1049, "3D000"}
NO_ROOM: set[int | str | None] = {3, 1021, 1026, 1030, 1114, "53100"}
NO_SUCH_TABLE: set[int | str | None] = {1146, "42P01"}
NO_SUCH_COLUMN: set[int | str | None] = {1054, "42703"}
DRIVERS = {"sqlite3", "pymysql", "psycopg"}


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
    except (dialect.dbapi.Error, OSError):
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


def shown(url: str | URL) -> str:
    """A database's address as it may be shown: without its password, wherever that stands."""
    parsed = make_url(url)
    hidden = {key: "***" for key in parsed.query if "pass" in key or "secret" in key}
    return parsed.update_query_dict(hidden).render_as_string(hide_password=True).replace("%2A%2A%2A", "***")


def patient(engine: Engine, statement_seconds: float, lock_seconds: float) -> Engine:
    """Another engine on the same database whose statements may take long, and which waits so long for locks.

    The same engine for a database in memory, which nobody else sees.
    """
    if engine.dialect.name == "sqlite" and not engine.url.database:
        return engine
    options = engine_options(engine.url, statement_seconds)
    if engine.dialect.name == "sqlite":
        options["connect_args"]["timeout"] = lock_seconds
    elif engine.dialect.name in MYSQL_DIALECTS:
        # Else a table that somebody reads for long would be waited for, and everybody else would wait behind that.
        options["connect_args"]["init_command"] += f", lock_wait_timeout = {int(lock_seconds)}"
    return configure(sa.create_engine(engine.url, **options))


def cause(error: BaseException) -> str:
    """What the driver said, in one line: without the statement, its values and where to read more."""
    text = str(getattr(error, "orig", None) or error)
    return text.splitlines()[0][:300] if text else type(error).__name__


def trouble(error: BaseException) -> str:
    """A sentence for somebody who wanted the database and got `error`."""
    said = cause(error)
    if code_of(error) in REFUSED:
        return f"The database refuses this user or password: {said}"
    if code_of(error) in NO_DATABASE:
        return f"The database does not exist: {said}. Create it, or check KYTECRON_DATABASE_URL"
    if "file is not a database" in said:
        return "The file is not an SQLite database. Check KYTECRON_DATABASE_URL"
    return f"The database does not answer: {said}"


def says_no(error: BaseException) -> bool:
    """Whether the database is there and does not let this process in: waiting will not help."""
    return code_of(error) in REFUSED | NO_DATABASE or "file is not a database" in cause(error)


def code_of(error: BaseException) -> int | str | None:
    """What the database calls an error: MySQL's and MariaDB's number, PostgreSQL's SQLSTATE."""
    original = getattr(error, "orig", None) or error
    if not _is_drivers(original):
        return None
    if original.args and isinstance(original.args[0], int):
        return original.args[0]  # more exact than the SQLSTATE that PyMySQL has, too
    state: str | None = getattr(original, "sqlstate", None)
    return state


def _is_drivers(error: BaseException) -> bool:
    return any(kind.__module__.partition(".")[0] in DRIVERS for kind in type(error).__mro__)


def is_outage(error: BaseException) -> bool:
    """Whether the database is away, or takes no writes, rather than one statement wrong.

    The driver's own errors count as SQLAlchemy's do: what happens while a connection is opened, configured or ended
    comes past it.
    """
    if isinstance(error, (CommitUnknown, OSError, PoolTimeout)):
        return True
    original = getattr(error, "orig", None) or error
    if not _is_drivers(original) or is_row_conflict(error) or is_missing(error):
        return False
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    named = type(original).__name__
    return (
        named in ("OperationalError", "InterfaceError")
        or code_of(error) in NO_ROOM
        or (
            named == "InternalError" and "sequence" in cause(error)
        )  # PyMySQL's word for a garbled connection
    )


def is_missing(error: BaseException) -> bool:
    """Whether a table or a column is not there: the schema is another one than was expected."""
    return code_of(error) in NO_SUCH_TABLE | NO_SUCH_COLUMN or "no such " in cause(error)


def is_missing_table(error: BaseException) -> bool:
    """Whether a table is not there."""
    return code_of(error) in NO_SUCH_TABLE or "no such table" in cause(error)


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
        with driver_errors_named(session.get_bind()):
            session.info[CONNECTION] = session.connection(execution_options={WRITING: True})
        result = work()
        session.flush()
        _commit(session)
        return result
    except BaseException:
        give_up(session)
        raise
    finally:
        session.info.pop(WRITING, None)
        session.info.pop(CONNECTION, None)


def give_up(session: Session) -> None:
    """End a session's transaction, whatever state its connection is in."""
    try:
        session.rollback()
    except Exception as error:  # the connection is gone, and what made us roll back is told by the caller
        log.debug("the rollback failed: %s", cause(error))
        session.invalidate()


@contextmanager
def driver_errors_named(bind: Engine | sa.Connection) -> Iterator[None]:
    """Raise as SQLAlchemy's what the driver raises past it, as it does while a connection is opened or configured."""
    dialect: Any = bind.dialect
    try:
        yield
    except dialect.dbapi.Error as error:
        raise DBAPIError.instance(
            None, None, error, dialect.dbapi.Error, connection_invalidated=True, dialect=dialect
        ) from error


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
        if connection is None:
            return
        try:
            connection.invalidate()  # not for the pool: its next user would expect transactions
            connection.close()
        except Exception as error:  # it is gone, which is all that was wanted
            log.debug("a connection could not be closed: %s", cause(error))

    def _open(self) -> sa.Connection:
        if self._connection is None:
            with driver_errors_named(self._engine):
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
    return code_of(error) in MYSQL_RETRYABLE | POSTGRES_RETRYABLE


def files_of(engine: Engine) -> tuple[int | None, ...]:
    """What the files of an SQLite database are now: they differ once somebody has put others in their place.

    An open connection goes on with the files that it opened, whatever stands under their names.
    """
    path = engine.url.database
    if engine.dialect.name != "sqlite" or not path or path == ":memory:":
        return ()
    return tuple(_inode(f"{path}{suffix}") for suffix in ("", "-wal"))


def _inode(path: str) -> int | None:
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return None


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

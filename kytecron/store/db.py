"""Engines, transactions, the database's clock. What differs between databases stands in `dialects`."""

from __future__ import annotations

import functools
import json
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, sessionmaker

from ..config import Settings
from ..core.errors import Invalid
from ..core.untrusted import MAX_DEPTH, storable_json, too_deep
from . import dialects
from .dialects import WRITING, Fault

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
CONNECTION = "kytecron.connection"


class CommitUnknown(Exception):
    """The connection was lost while COMMIT was under way: it happened or it did not. Read again to know."""


def engine_options(
    url: str | URL, statement_seconds: float = STATEMENT_SECONDS, idle_seconds: float | None = None
) -> dict[str, Any]:
    """Arguments for create_engine that suit the database behind `url`.

    A statement fails that gets no answer within `statement_seconds`; waiting for a lock ends earlier. After
    `idle_seconds` of silence inside a transaction a server gives the client up. Raises Invalid
    for a URL that is none or has no driver here.
    """
    parsed = address(url)
    chosen = dialects.of_address(parsed).options(parsed, statement_seconds, idle_seconds)
    return {"json_serializer": _write_json, "json_deserializer": _read_json, **chosen}


def address(url: str | URL) -> URL:
    """A database's address with the driver that is used. Raises Invalid for one that cannot be used."""
    try:
        parsed = dialects.with_driver(make_url(url))
        dialects.of_address(parsed).options(parsed, STATEMENT_SECONDS, None)  # looks at an address's own
        parsed.get_dialect().import_dbapi()
        if set(parsed.host or "") & set("[] "):  # those of an IPv6 address are taken off
            raise ValueError(f"{parsed.host!r} is no host")
    # ValueError: a port that is no number
    except (ArgumentError, ImportError, LookupError, ValueError) as error:
        raise Invalid(
            {
                "KYTECRON_DATABASE_URL": f"KYTECRON_DATABASE_URL cannot be used: {error}. Write an SQLAlchemy URL "
                "whose driver is installed, such as postgresql://user:password@host/database"
            }
        ) from None
    return parsed


_ESCAPED = re.compile(r"\\u(?:0000|d[89a-f])")
"""How NUL and halves of characters are written; characters beyond U+FFFF are written as two halves."""


def _write_json(value: Any) -> str:
    """What a JSON column is given: see `storable_json`. One value must not keep a whole batch from being written."""
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        text = None
    if text is None or _ESCAPED.search(text) or (_may_be_deep(text) and too_deep(value)):
        text = json.dumps(storable_json(value), allow_nan=False)
    return text


def _may_be_deep(text: str) -> bool:
    """Whether there are brackets enough: to walk through every value would take longer than to write it."""
    return text.count("[") + text.count("{") > MAX_DEPTH


def _read_json(text: str) -> Any:
    """What a JSON column holds; text that is no JSON, written by hand into SQLite, is itself.

    Whoever needs an object looks whether it is one. One bad row must not keep a whole batch from being read.
    """
    try:
        return json.loads(text)
    except ValueError:
        return text


def configure(engine: Engine) -> Engine:
    """Attach what an engine needs beyond its options. Call once for each engine."""
    dialects.of_address(engine.url).prepare(engine)
    return engine


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
    url = address(settings.url)
    if dialects.of_address(url).file(url):
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
    about = dialects.of_address(engine.url)
    if not about.is_shared(engine.url):
        return engine
    options = engine_options(engine.url, statement_seconds)
    about.be_patient(options, lock_seconds)
    return configure(sa.create_engine(engine.url, **options))


def cause(error: BaseException) -> str:
    """What the driver said, in one line: without the statement, its values and where to read more."""
    text = str(getattr(error, "orig", None) or error)
    return text.splitlines()[0][:300] if text else type(error).__name__


def trouble(error: BaseException) -> str:
    """A sentence for somebody who wanted the database and got `error`."""
    said = cause(error)
    match fault_of(error):
        case Fault.REFUSED:
            return f"The database refuses this user or password: {said}"
        case Fault.READ_ONLY:
            return f"The database takes no writes: {said}"
        case Fault.NO_DATABASE:
            return f"The database does not exist: {said}. Create it, or check KYTECRON_DATABASE_URL"
        case Fault.NOT_A_DATABASE:
            return "The file is not an SQLite database. Check KYTECRON_DATABASE_URL"
        case _:
            return f"The database does not answer: {said}"


def says_no(error: BaseException) -> bool:
    """Whether the database is there and does not let this process in: waiting will not help."""
    return fault_of(error) in (Fault.REFUSED, Fault.NO_DATABASE, Fault.NOT_A_DATABASE)


def fault_of(error: BaseException) -> Fault | None:
    """What is wrong, by what the driver raised; None for what need not be told apart."""
    return dialects.fault_of(_original(error))


def _original(error: BaseException) -> BaseException:
    """What the driver raised, where SQLAlchemy passes it on."""
    return getattr(error, "orig", None) or error


def is_outage(error: BaseException) -> bool:
    """Whether the database is away, or takes no writes, rather than one statement wrong.

    The driver's own errors count as SQLAlchemy's do: what happens while a connection is opened, configured or ended
    comes past it.
    """
    if isinstance(error, (CommitUnknown, OSError, PoolTimeout)):
        return True
    if not dialects.is_drivers(_original(error)) or is_row_conflict(error) or is_missing(error):
        return False
    if fault_of(error) in (Fault.TOO_LONG, Fault.VALUE):
        return False
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    named = {kind.__name__ for kind in type(_original(error)).__mro__}
    return not named.isdisjoint({"OperationalError", "InterfaceError"}) or fault_of(error) in (
        Fault.READ_ONLY,
        Fault.GOING,
        Fault.NO_ROOM,
        Fault.GARBLED,
    )


def is_missing(error: BaseException) -> bool:
    """Whether a table or a column is not there: the schema is another one than was expected."""
    return fault_of(error) in (Fault.NO_TABLE, Fault.NO_COLUMN)


def is_missing_table(error: BaseException) -> bool:
    """Whether a table is not there."""
    return fault_of(error) is Fault.NO_TABLE


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
    def wrapper(session: Session, /, *args: P.args, **kwargs: P.kwargs) -> T:
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
    dialect = dialects.driver(bind)
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
    dialect = dialects.driver(connection)
    raw = connection.connection
    try:
        cursor = raw.cursor()
        if many and len(arguments) > 1:
            cursor.executemany(text, arguments)
        else:
            cursor.execute(text, arguments[0] if many else arguments)
        found = cursor.fetchall() if cursor.description else ()
        matched = int(cursor.rowcount)
        cursor.close()
    except dialect.dbapi.Error as error:
        useless = dialects.ends_connections(error)
        lost = useless or dialect.is_disconnect(error, raw.dbapi_connection, None)
        if lost:
            connection.invalidate(error)
        if useless:
            connection.engine.dispose()  # as SQLAlchemy does for what it executes
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
                if dialects.of(self._connection).autocommit:
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
    return waited < RETRY_SECONDS and fault_of(error) in (Fault.CONFLICT, Fault.BUSY)


def is_row_conflict(error: BaseException) -> bool:
    """Whether a deadlock or somebody's lock on a row stopped this transaction. The database itself is well."""
    return fault_of(error) is Fault.CONFLICT


def is_busy(error: BaseException) -> bool:
    """Whether somebody else has the whole database for the moment."""
    return fault_of(error) is Fault.BUSY


def files_of(engine: Engine) -> tuple[int | None, ...]:
    """What the files of a database that is one are now: they differ once somebody has put others in their place.

    An open connection goes on with the files that it opened, whatever stands under their names.
    """
    file = dialects.of_address(engine.url).file(engine.url)
    if file is None:
        return ()
    return tuple(_inode(f"{file}{suffix}") for suffix in ("", "-wal"))


def _inode(path: str) -> int | None:
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return None


def now(at: At) -> datetime:
    """The database's clock, aware UTC: the one clock that all workers share."""
    on = connection(at)
    clock = dialects.of(on).clock
    if clock is None:
        return datetime.now(UTC)
    (record,), _ = execute(on, f"SELECT {clock}", ())
    moment: datetime = record[0].replace(tzinfo=UTC)
    return moment


def kind(at: At) -> str:
    """Which kind of database this is, as figures have it: sqlite, mysql, mariadb, postgresql."""
    return dialects.of(at).name


def hits(session: Session, statement: sa.Update | sa.Delete) -> int:
    """Run a guarded UPDATE or DELETE and return how many rows its WHERE found."""
    return int(session.execute(statement).rowcount)  # type: ignore[attr-defined]

"""What differs between databases: one value for each, which `of` chooses once for each engine.

Nobody else asks which database it is. CONTRIBUTING.md, "Another database", says how one is added.
SQLAlchemy's dialects are imported when one is used, so that nobody pays for the others.
"""

from __future__ import annotations

import fcntl
import functools
import importlib
import math
import random
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.engine import URL, Engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.expression import UnaryExpression
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.operators import custom_op

from ..core.errors import Conflict
from ..core.words import duration

Version = tuple[int, ...]
Options = dict[str, Any]
"""Arguments for create_engine."""
Changes = Callable[[Any], Mapping[str, Any]]
"""Which columns a row that is there gets, given the columns of the one that was to be inserted."""

WRITING = "kytecron.writing"
"""The execution option of a transaction that writes."""
WRITE_AHEAD_SECONDS = 10.0
"""How long a connection to a new SQLite file waits for the others that are new there, too."""
SILENCE_SECONDS = 1.0
"""A connection that nobody used for so long is asked whether it is alive before it is used again."""
USED_AT = "kytecron.used_at"
MIGRATION_LOCK = "kytecron.migrate"
ANOTHER_MIGRATES = "Another process migrates this database, and does not end. Look for it, or try again"


class Fault(Enum):
    """What is wrong when a database refuses: the first whose signs an error bears."""

    CONFLICT = "conflict"
    """A deadlock or somebody's lock on a row: the transaction did not happen, and the database is well."""
    BUSY = "busy"
    """Somebody else has the whole database for the moment."""
    READ_ONLY = "read only"
    """The server takes no writes: it is the copy of another one, or became it."""
    GOING = "going"
    """The server ends, begins, or has given up this connection."""
    REFUSED = "refused"
    """A user or a password that is not let in."""
    NO_DATABASE = "no database"
    NOT_A_DATABASE = "not a database"
    """The file is something else."""
    NO_ROOM = "no room"
    NO_TABLE = "no table"
    NO_COLUMN = "no column"
    TOO_LONG = "too long"
    """A statement of more bytes than the database takes: it will never take it, and is well."""
    VALUE = "value"
    """A value that cannot be kept: one statement is wrong, and the database is well."""
    GARBLED = "garbled"
    """The connection cannot be understood any more."""


class Signs(NamedTuple):
    """What errors of one kind are known by: the database's codes, or words in what its driver says."""

    codes: frozenset[int | str] = frozenset()
    words: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Errors:
    """How the errors of a driver, which is a package, are told apart."""

    driver: str
    signs: Mapping[Fault, Signs]

    def fault(self, error: BaseException) -> Fault | None:
        """What is wrong; None for what need not be told apart."""
        code, text = _code(error), str(error)
        for fault in Fault:
            signs = self.signs.get(fault, Signs())
            if code in signs.codes or any(words in text for words in signs.words):
                return fault
        return None


def _code(error: BaseException) -> int | str | None:
    """What the database calls an error: MySQL's and MariaDB's number, or an SQLSTATE."""
    if error.args and isinstance(error.args[0], int):
        return error.args[0]  # more exact than the SQLSTATE that PyMySQL has, too
    state: str | None = getattr(error, "sqlstate", None)
    return state


class ListedUpdate(NamedTuple):
    """One UPDATE of many rows: it begins, goes on for each further row, and ends."""

    begin: str
    more: str
    end: str


ListsUpdates = Callable[[str, list[str], list[str]], ListedUpdate]


class Health(NamedTuple):
    """What a look at the database itself found."""

    place: str
    """Its kind, its version and where it is."""
    problem: str = ""
    advice: str = ""
    usable: bool = True
    """It may go on like that."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Dialect:
    """Everything that kytecron has to know about one kind of database."""

    name: str
    """As figures and documents have it."""
    spoken_by: str
    """What SQLAlchemy calls it together with its driver: the meaning of an address that names no driver."""
    title: str
    """As people read it."""
    oldest: Version = ()
    """The oldest version that kytecron works with."""
    errors: Errors

    clock: str | None
    """The database's clock in SQL, naive UTC with microseconds; None where this machine's is the only one."""
    skip_locked_since: Version | None = None
    """The first version that passes over locked rows."""
    skip_locked: bool
    """Whether it does so here: where it does not, whoever comes second waits."""
    most_parameters: int
    """How many parameters one statement may have."""
    most_bytes: int | None
    """How long a statement may be that writes many rows, where databases bound that."""

    options: Callable[[URL, float, float | None], Options]
    """Arguments for create_engine: see `db.engine_options`."""
    prepare: Callable[[Engine], None]
    """Attach what an engine needs beyond its options."""
    be_patient: Callable[[Options, float], None]
    """Change such arguments so that locks are waited for as many seconds."""
    hurry: Callable[[sa.Connection, float], None]
    """Have a connection wait for writers for so many seconds only, where it would wait for all of them."""
    autocommit: bool
    """Whether a connection that only looks is told that each statement stands alone; else it does so by itself."""

    file: Callable[[URL], Path | None]
    """The file that is the database; None for a server, and for a database in memory."""
    is_shared: Callable[[URL], bool]
    """Whether another connection sees the same rows."""
    alone: Callable[[sa.Connection, float], AbstractContextManager[None]]
    """Hold the lock of those that migrate, for which they wait so many seconds. Raises Conflict."""
    begin_migration: Callable[[sa.Connection], None]
    """Begin the transaction of a migration, where tables can be changed in one."""

    insert_or_keep: Callable[[Any, Mapping[str, Any]], Any]
    """INSERT into a table, values by column; a row that is there under any unique key stays as it is."""
    insert_or_change: Callable[[Any, Mapping[str, Any], Changes], Any]
    """INSERT into a table, values by column; a row that is there under the primary key is changed instead."""
    listed_update: ListsUpdates | None
    """UPDATE of a (quoted) table by a list of values, named v0, v1 ..., given conditions and assignments in these
    names; None where the driver is as quick with one statement for each row."""
    with_index: Callable[[Any, Any, str], Any]
    """A SELECT that reads a table by that index, where the planner has to be told."""
    without_index: Callable[[Any], Any]
    """A column by which no index is to be chosen, where the planner has to be told."""

    moment: Callable[[], Any]
    """The types of columns: naive UTC with microseconds."""
    long_text: Callable[[], Any]
    long_bytes: Callable[[], Any]

    look: Callable[[sa.Connection, str], Health]
    """Look whether the database itself is sound; the second is its title and version."""
    lock_holders: sa.TextClause | None
    """Other connections that hold locks on rows and wait for none, up to :most: id, user, host, and since when they are
    silent.
    """


# -- choosing ------------------------------------------------------------------------------------------------


_CHOSEN: WeakKeyDictionary[sa.Dialect, Dialect] = WeakKeyDictionary()


def of(at: Session | sa.Connection | Engine) -> Dialect:
    """What there is to know about the database of a session, a connection or an engine."""
    bind = at.get_bind() if isinstance(at, Session) else at
    chosen = _CHOSEN.get(bind.dialect)
    if chosen is None:
        chosen = _CHOSEN[bind.dialect] = _choose(bind)
    return chosen


def _choose(bind: sa.Connection | Engine) -> Dialect:
    known = of_address(bind.engine.url)
    if known.skip_locked_since is None:
        return known
    if getattr(bind.dialect, "server_version_info", None) is None:
        with bind.engine.connect():
            pass  # it learns what it talks to
    spoken: Any = bind.dialect
    if getattr(spoken, "is_mariadb", False):
        known = MARIADB
    assert known.skip_locked_since is not None
    return known if version_of(bind) >= known.skip_locked_since else _waiting(known)


@functools.cache
def _waiting(known: Dialect) -> Dialect:
    """An older version, in which whoever comes second waits."""
    return replace(known, skip_locked=False)


def of_address(url: URL) -> Dialect:
    """What is known before the first connection: a server at mysql:// may turn out to be a MariaDB.

    Raises LookupError, with a sentence, for a kind of database that kytecron does not work with.
    """
    kind = url.drivername.partition("+")[0]
    kind = ALSO_CALLED.get(kind, kind)
    if kind not in BY_ADDRESS:
        titles = ", ".join(dialect.title for dialect in DIALECTS)
        raise LookupError(f"kytecron works with {titles}, not with {kind}")
    return BY_ADDRESS[kind]


def with_driver(url: URL) -> URL:
    """An address as SQLAlchemy needs it; many are written without the driver. Raises LookupError as `of_address`."""
    known = of_address(url)
    return url if "+" in url.drivername else url.set(drivername=known.spoken_by)


def of_type(dialect: sa.Dialect) -> Dialect:
    """Whose columns SQLAlchemy is just describing."""
    return BY_ADDRESS[dialect.name]


def driver(at: sa.Connection | Engine) -> Any:
    """SQLAlchemy's half: it compiles statements, and knows its driver's errors."""
    return at.dialect


def version_of(at: sa.Connection | Engine) -> Version:
    """The version of the server or the library, once there was a connection."""
    found: Any = at.dialect
    return tuple(part for part in found.server_version_info if isinstance(part, int))


def is_drivers(error: BaseException) -> bool:
    """Whether a driver raised this."""
    return _errors_of(error) is not None


def fault_of(error: BaseException) -> Fault | None:
    """What is wrong, by what a driver raised; None for what need not be told apart."""
    errors = _errors_of(error)
    return None if errors is None else errors.fault(error)


def ends_connections(error: BaseException) -> bool:
    """Whether a driver raised what makes every connection to that server useless, although this one may be open."""
    return fault_of(error) in (Fault.READ_ONLY, Fault.GOING)


def _errors_of(error: BaseException) -> Errors | None:
    packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return next((one.errors for one in DIALECTS if one.errors.driver in packages), None)


# -- what several share --------------------------------------------------------------------------------------


def _nothing(*_: Any) -> None:
    """Nothing is to be done."""


def _ask_after_silence(engine: Engine) -> None:
    """The pool's own `pre_ping` asks before every transaction, and a busy worker has hundreds a second."""
    sa.event.listen(engine, "checkin", _note_use)
    sa.event.listen(engine, "checkout", functools.partial(_ping_after_silence, engine.dialect))


def _note_use(_connection: Any, record: Any) -> None:
    record.info[USED_AT] = time.monotonic()


def _ping_after_silence(dialect: Any, connection: Any, record: Any, _proxy: Any) -> None:
    if time.monotonic() - record.info.get(USED_AT, math.inf) < SILENCE_SECONDS:
        return
    try:
        alive = dialect.do_ping(connection)
    except (dialect.dbapi.Error, OSError):
        alive = False
    if not alive:
        raise sa.exc.DisconnectionError  # the pool makes a new one


def _note_lost_servers(engine: Engine) -> None:
    """Have SQLAlchemy take every connection to such a server for lost: the next ones may reach another server."""
    sa.event.listen(engine, "handle_error", _judge)


def _judge(context: Any) -> None:
    if ends_connections(context.original_exception):
        context.is_disconnect = True


def _prepare_server(engine: Engine) -> None:
    _ask_after_silence(engine)
    _note_lost_servers(engine)


def _insert_or_keep(database: str, table: Any, values: Mapping[str, Any]) -> Any:
    return _insert_of(database)(table).values(values).on_conflict_do_nothing()


def _insert_or_change(database: str, table: Any, values: Mapping[str, Any], changes: Changes) -> Any:
    insertion = _insert_of(database)(table).values(values)
    return insertion.on_conflict_do_update(
        index_elements=list(table.primary_key), set_=changes(insertion.excluded)
    )


def _insert_of(database: str) -> Any:
    """SQLAlchemy's INSERT of a database that knows ON CONFLICT."""
    return importlib.import_module(f"sqlalchemy.dialects.{database}").insert


# -- SQLite --------------------------------------------------------------------------------------------------


def _sqlite_options(_url: URL, statement_seconds: float, _idle_seconds: float | None) -> Options:
    return {"connect_args": {"timeout": statement_seconds * 2 / 3, "check_same_thread": False}}


def _sqlite_prepare(engine: Engine) -> None:
    sa.event.listen(engine, "connect", _sqlite_connect)
    sa.event.listen(engine, "begin", _sqlite_begin)


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


def _sqlite_be_patient(options: Options, lock_seconds: float) -> None:
    options["connect_args"]["timeout"] = lock_seconds


def _sqlite_hurry(connection: sa.Connection, seconds: float) -> None:
    if not connection.invalidated:
        raw: Any = connection.connection
        raw.execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}")


def _sqlite_file(url: URL) -> Path | None:
    return Path(url.database) if url.database and url.database != ":memory:" else None


@contextmanager
def _sqlite_alone(connection: sa.Connection, _seconds: float) -> Iterator[None]:
    file = _sqlite_file(connection.engine.url)
    if file is None:
        yield
        return
    # Whether a new file has its tables yet is asked before the database's own lock is taken.
    with _open(file.with_name(f"{file.name}.migrate")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _open(path: Path) -> TextIOWrapper:
    try:
        return path.open("w")
    except OSError as error:
        raise Conflict(f"The database cannot be migrated: {path}: {error.strerror}") from None


def _sqlite_begin_migration(connection: sa.Connection) -> None:
    """As every write does, see `_sqlite_begin`."""
    connection.execution_options(**{WRITING: True})
    connection.begin()


def _sqlite_without_index(column: Any) -> Any:
    return UnaryExpression(column, operator=custom_op("+"), type_=column.type)


def _sqlite_look(connection: sa.Connection, kind: str) -> Health:
    place = f"{kind} in {connection.engine.url.database}"
    damage = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
    if damage != "ok":
        return Health(f"{place} is damaged", damage, "Restore it from a backup", usable=False)
    mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()
    if mode != "wal":
        waits = f"{place} has no write-ahead log (journal mode {mode})"
        return Health(waits, "readers and writers wait for each other", "Keep it on a local disk")
    return Health(f"{place}, for the processes of one machine")


SQLITE = Dialect(
    name="sqlite",
    spoken_by="sqlite",
    title="SQLite",
    errors=Errors(
        "sqlite3",
        {
            Fault.BUSY: Signs(words=("database is locked",)),
            Fault.NOT_A_DATABASE: Signs(words=("file is not a database",)),
            Fault.NO_TABLE: Signs(words=("no such table",)),
            Fault.NO_COLUMN: Signs(words=("no such ",)),
        },
    ),
    clock=None,  # there is no server: all its users share this machine's
    skip_locked=False,
    most_parameters=999,  # before 3.32; 32,766 since
    most_bytes=None,
    options=_sqlite_options,
    prepare=_sqlite_prepare,
    be_patient=_sqlite_be_patient,
    hurry=_sqlite_hurry,
    autocommit=False,  # see `_sqlite_connect`
    file=_sqlite_file,
    is_shared=lambda url: _sqlite_file(url) is not None,
    alone=_sqlite_alone,
    begin_migration=_sqlite_begin_migration,
    insert_or_keep=functools.partial(_insert_or_keep, "sqlite"),
    insert_or_change=functools.partial(_insert_or_change, "sqlite"),
    listed_update=None,
    with_index=lambda query, _table, _index: query,
    without_index=_sqlite_without_index,
    moment=sa.DateTime,
    long_text=sa.Text,
    long_bytes=sa.LargeBinary,
    look=_sqlite_look,
    lock_holders=None,
)


# -- MySQL and MariaDB ---------------------------------------------------------------------------------------


def _mysql_options(url: URL, statement_seconds: float, idle_seconds: float | None) -> Options:
    return {
        "isolation_level": "READ COMMITTED",
        "pool_recycle": 1800,
        "pool_size": 10,
        "max_overflow": 20,
        "use_insertmanyvalues": False,  # it would write 1,000 rows of any length in one statement
        "connect_args": {
            "charset": "utf8mb4",
            "connect_timeout": statement_seconds / 3,
            "read_timeout": statement_seconds,
            "write_timeout": statement_seconds,
            "init_command": "SET time_zone = '+00:00', "
            f"innodb_lock_wait_timeout = {max(1, int(statement_seconds / 3))}" + _idle_limit(idle_seconds),
            "cursorclass": _measuring_cursor(),
            **_tls(url),
        },
    }


LEAST_PACKET = 1 << 20
"""The `max_allowed_packet` that every row of kytecron's fits in, however its text has to be written."""
TOO_LONG = 1153
"""The code of a statement that is longer than `max_allowed_packet`."""


@functools.cache
def _measuring_cursor() -> Any:
    """A cursor that refuses what the server would refuse.

    The server hangs up in the middle of such a statement, which looks as if it was away: one would come again for ever.
    """
    from pymysql.cursors import Cursor
    from pymysql.err import DataError

    class Measuring(Cursor):
        def execute(self, query: Any, args: Any = None) -> int:
            text = query if args is None else self.mogrify(query, args)
            most = self.connection.max_allowed_packet
            if len(text) > most // 4 and (size := _size(text)) >= most:
                problem = (
                    f"a statement of {size:,} bytes, of which the server takes {most:,} (max_allowed_packet)"
                )
                raise DataError(TOO_LONG, problem)
            return int(super().execute(text))

    return Measuring


def _size(text: str | bytes | bytearray) -> int:
    return len(text.encode("utf-8", "surrogateescape")) if isinstance(text, str) else len(text)


def _mysql_prepare(engine: Engine) -> None:
    sa.event.listen(engine, "connect", _mysql_connect)
    _prepare_server(engine)


def _mysql_connect(connection: Any, _record: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT @@max_allowed_packet")
        (connection.max_allowed_packet,) = cursor.fetchone()


def _idle_limit(seconds: float | None) -> str:
    """A process stopped or cut off inside a transaction would keep its locks until TCP gives up, hours later.

    In comments that MariaDB alone and MySQL alone execute; MySQL knows a limit for any silence only.
    """
    if seconds is None:
        return ""
    limit = math.ceil(seconds)
    return f" /*M!100300 , idle_transaction_timeout = {limit} */ /*!50700 , wait_timeout = {limit} */"


def _tls(url: URL) -> Options:
    """PyMySQL builds a TLS context for every connection (50-130 ms): done without on this machine only.

    Giving it one shared context would make TLS compulsory; elsewhere the pool keeps new connections rare.
    """
    if not any(key.startswith("ssl") for key in url.query) and (
        url.host in (None, "localhost", "127.0.0.1", "::1") or "unix_socket" in url.query
    ):
        return {"ssl_disabled": True}
    return {}


def _mysql_be_patient(options: Options, lock_seconds: float) -> None:
    # Else a table that somebody reads for long would be waited for, and everybody else would wait behind that.
    options["connect_args"]["init_command"] += f", lock_wait_timeout = {int(lock_seconds)}"


@contextmanager
def _mysql_alone(connection: sa.Connection, seconds: float) -> Iterator[None]:
    got = connection.execute(
        sa.text(f"SELECT GET_LOCK('{MIGRATION_LOCK}', :seconds)"), {"seconds": seconds}
    ).scalar()
    connection.commit()
    if not got:
        raise Conflict(ANOTHER_MIGRATES)
    try:
        yield
    finally:
        if not connection.invalidated:
            connection.exec_driver_sql(f"SELECT RELEASE_LOCK('{MIGRATION_LOCK}')")


def _mysql_insert_or_keep(table: Any, values: Mapping[str, Any]) -> Any:
    # INSERT IGNORE would also swallow values that do not fit: what is there is set to what it is.
    key = next(iter(table.primary_key))
    return _mysql_insert_or_change(table, values, lambda _new: {key.name: key})


def _mysql_insert_or_change(table: Any, values: Mapping[str, Any], changes: Changes) -> Any:
    from sqlalchemy.dialects.mysql import insert

    insertion = insert(table).values(values)
    return insertion.on_duplicate_key_update(dict(changes(insertion.inserted)))


def _mysql_listed_update(table: str, conditions: list[str], assignments: list[str]) -> ListedUpdate:
    """The driver would send one statement for each row."""
    places = range(len(conditions) + len(assignments))
    # The values first, and each row by its key: of a small table the optimizer would read, and lock, all of it.
    return ListedUpdate(
        begin="UPDATE (SELECT " + ", ".join(f"%s AS v{number}" for number in places),
        more=" UNION ALL SELECT " + ", ".join("%s" for _ in places),
        end=f") AS given STRAIGHT_JOIN {table} FORCE INDEX (PRIMARY) ON {' AND '.join(conditions)} "
        f"SET {', '.join(assignments)}",
    )


def _mysql_with_index(query: Any, table: Any, index: str) -> Any:
    for name in ("mysql", "mariadb"):
        query = query.with_hint(table, f"FORCE INDEX ({index})", name)
    return query


def _mysql_moment() -> Any:
    from sqlalchemy.dialects.mysql import DATETIME

    return DATETIME(fsp=6)


def _mysql_long_text() -> Any:
    from sqlalchemy.dialects.mysql import LONGTEXT

    return LONGTEXT()


def _mysql_long_bytes() -> Any:
    from sqlalchemy.dialects.mysql import LONGBLOB

    return LONGBLOB()


def _mysql_look(connection: sa.Connection, kind: str) -> Health:
    place = f"{kind} at {connection.engine.url.host or 'a socket'}"
    packet = connection.exec_driver_sql("SELECT @@max_allowed_packet").scalar_one()
    if packet < LEAST_PACKET:
        problem = (
            f"it takes statements of {packet:,} bytes at most, so long results and code cannot be stored"
        )
        advice = f"Set max_allowed_packet to {LEAST_PACKET:,} or more"
        return Health(place, problem, advice)
    count = connection.exec_driver_sql(
        "SELECT count(*) FROM information_schema.tables WHERE table_schema = database() AND engine <> 'InnoDB'"
    ).scalar_one()
    if not count:
        return Health(place)
    tables = "1 table" if count == 1 else f"{count} tables"
    advice = "Convert them: ALTER TABLE ... ENGINE = InnoDB"
    return Health(place, f"{tables} without transactions", advice, usable=False)


MYSQL = Dialect(
    name="mysql",
    spoken_by="mysql+pymysql",
    title="MySQL",
    oldest=(5, 7),
    errors=Errors(
        "pymysql",
        {
            # Deadlock, lock wait timeout, record changed since read (innodb_snapshot_isolation).
            Fault.CONFLICT: Signs(frozenset({1213, 1205, 1020})),
            Fault.READ_ONLY: Signs(frozenset({1290, 1792, 1836})),
            Fault.REFUSED: Signs(frozenset({1044, 1045, 1698})),
            Fault.NO_DATABASE: Signs(frozenset({1049})),
            Fault.NO_ROOM: Signs(frozenset({3, 1021, 1026, 1030, 1114})),
            Fault.NO_TABLE: Signs(frozenset({1146})),
            Fault.NO_COLUMN: Signs(frozenset({1054})),
            Fault.TOO_LONG: Signs(frozenset({TOO_LONG})),
            # Constraints (MariaDB's JSON is one), JSON. PyMySQL takes what it does not know for an outage.
            Fault.VALUE: Signs(frozenset({4025, 3819, 3140, 3141, 3157})),
            Fault.GARBLED: Signs(words=("Packet sequence",)),
        },
    ),
    clock="UTC_TIMESTAMP(6)",
    skip_locked_since=(8, 0, 1),
    skip_locked=True,
    most_parameters=65_535,
    most_bytes=LEAST_PACKET * 15 // 16,
    options=_mysql_options,
    prepare=_mysql_prepare,
    be_patient=_mysql_be_patient,
    hurry=_nothing,
    autocommit=True,
    file=lambda _url: None,
    is_shared=lambda _url: True,
    alone=_mysql_alone,
    begin_migration=_nothing,  # each change of a table commits by itself
    insert_or_keep=_mysql_insert_or_keep,
    insert_or_change=_mysql_insert_or_change,
    listed_update=_mysql_listed_update,
    with_index=_mysql_with_index,
    without_index=lambda column: column,
    moment=_mysql_moment,
    long_text=_mysql_long_text,
    long_bytes=_mysql_long_bytes,
    look=_mysql_look,
    # The server tells of other people's transactions to those only who may see them (the privilege PROCESS).
    lock_holders=sa.text(
        "SELECT p.id, p.user, p.host, p.time FROM information_schema.innodb_trx t "
        "JOIN information_schema.processlist p ON p.id = t.trx_mysql_thread_id "
        "WHERE t.trx_rows_locked > 0 AND t.trx_state <> 'LOCK WAIT' AND coalesce(p.state, '') NOT LIKE 'Waiting for%' "
        "AND p.id <> connection_id() ORDER BY t.trx_started LIMIT :most"
    ),
)
MARIADB = replace(
    MYSQL,
    name="mariadb",
    spoken_by="mariadb+pymysql",
    title="MariaDB",
    oldest=(10, 2),
    skip_locked_since=(10, 6),
)


# -- PostgreSQL ----------------------------------------------------------------------------------------------


POOLER = "pooler"
"""The option of an address that leads to a pooler, such as PgBouncer: it says who shares a server's connection."""
TRANSACTION = "transaction"
LIMIT = "answers_within"
"""The option of a connection, for us alone: within how many seconds the server has to answer."""


def _postgresql_options(url: URL, statement_seconds: float, idle_seconds: float | None) -> Options:
    pooler = url.query.get(POOLER, TRANSACTION)
    if pooler != TRANSACTION:
        raise LookupError(
            f"{POOLER}={pooler} says nothing to kytecron; write {POOLER}={TRANSACTION} or leave it out"
        )
    arguments = {
        "client_encoding": "utf8",
        "connect_timeout": max(2, int(statement_seconds / 3)),
        "application_name": "kytecron",
        # A copy that nobody may write to would be read by some, while others write elsewhere.
        "target_session_attrs": "read-write",
        # A network that is cut, or a machine that is off, says nothing at all.
        "keepalives": 1,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": int(min(statement_seconds, KEEP_TRYING_SECONDS) * 1000),
    }
    arguments = {name: value for name, value in arguments.items() if name not in url.query}
    return {
        "pool_recycle": 1800,
        "pool_size": 10,
        "max_overflow": 20,
        "connect_args": {
            **arguments,
            LIMIT: statement_seconds,
            SESSION: _postgresql_session(statement_seconds, idle_seconds),
        },
    }


KEEP_TRYING_SECONDS = 15.0
"""For so long TCP goes on sending what nobody acknowledges, also where a statement may take hours."""
SESSION = "session_settings"
"""The option of a connection, for us alone: what is set for its transactions."""


def _postgresql_session(statement_seconds: float, idle_seconds: float | None) -> dict[str, str]:
    """The limits that the server itself keeps, in milliseconds; 0 is none.

    It gives up a little before the client does, who would have to end the connection.
    """
    return {
        "statement_timeout": str(int(statement_seconds * 0.9 * 1000)),
        "lock_timeout": str(int(statement_seconds / 3 * 1000)),
        "idle_in_transaction_session_timeout": str(math.ceil((idle_seconds or 0) * 1000)),
        "default_transaction_isolation": "read committed",
        "timezone": "UTC",
    }


def _postgresql_prepare(engine: Engine) -> None:
    _prepare_server(engine)
    sa.event.listen(engine, "do_connect", _postgresql_connect)
    if _is_pooled(engine.url):
        sa.event.listen(engine, "begin", _postgresql_begin)


def _is_pooled(url: URL) -> bool:
    """Whether each transaction may get another connection of the server: what is set for a session is lost then."""
    return url.query.get(POOLER) == TRANSACTION


def _postgresql_connect(_dialect: Any, record: Any, given: Any, named: Options) -> Any:
    limit, session, pooler = named.pop(LIMIT), named.pop(SESSION), named.pop(POOLER, None)
    if pooler:
        record.info[SESSION] = session
        # What one transaction prepared, the next one's connection does not know.
        named["prepare_threshold"] = None
    else:
        settings = " ".join(f"-c {name}={_escaped(value)}" for name, value in session.items())
        named["options"] = f"{named.get('options', '')} {settings}".strip()
    connection = _impatient()(*given, **named)
    connection.answers_within = limit
    return connection


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace(" ", "\\ ")


def _postgresql_begin(connection: sa.Connection) -> None:
    session = connection.connection.info[SESSION]
    parts = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in session.items())
    connection.exec_driver_sql(f"SELECT {parts}")


@functools.cache
def _impatient() -> Any:
    """What makes connections that a server which has stopped, or a network that was cut, cannot keep waiting.

    The server's own limits need a server that is awake.
    """
    import psycopg

    class Impatient(psycopg.Connection[Any]):
        answers_within: float | None = None

        def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
            limit = self.answers_within if timeout is None else timeout
            try:
                return super().wait(gen, interval, limit)
            except psycopg.OperationalError as error:
                if error.sqlstate is None:
                    self.close()  # the server did not say that: nobody knows where the conversation stands
                raise

    class Counted(psycopg.Cursor[Any]):
        def executemany(self, query: Any, params_seq: Any, *, returning: bool = False) -> None:
            super().executemany(query, params_seq, returning=returning)
            # Behind the end of a pipeline psycopg asks the server to flush, and a server that has read that counts no
            # silence inside the transaction any more: a client that died there would keep its locks. A statement, be
            # it empty, makes it count again.
            self.connection.execute("")

    return functools.partial(Impatient.connect, cursor_factory=Counted)


def _postgresql_be_patient(options: Options, lock_seconds: float) -> None:
    options["connect_args"][SESSION]["lock_timeout"] = str(int(lock_seconds * 1000))


@contextmanager
def _postgresql_alone(connection: sa.Connection, seconds: float) -> Iterator[None]:
    # The lock is the transaction's, which is that of the migration: a session's would get lost behind a pooler.
    deadline = time.monotonic() + seconds
    lock = sa.select(sa.func.pg_try_advisory_xact_lock(zlib.crc32(MIGRATION_LOCK.encode())))
    while not connection.scalar(lock):
        if time.monotonic() >= deadline:
            connection.rollback()
            raise Conflict(ANOTHER_MIGRATES)
        time.sleep(random.uniform(0.02, 0.1))
    try:
        yield
    finally:
        if connection.in_transaction() and not connection.invalidated:
            connection.rollback()


def _since(seconds: Any) -> str:
    return duration(float(seconds) * 1000)


OLD_TRANSACTION_SECONDS = 3600
"""A transaction that is open for longer keeps every row that was changed or removed since."""


def _postgresql_look(connection: sa.Connection, kind: str) -> Health:
    host = connection.engine.url.host or "a socket"
    pooled = (
        ", behind a pooler of transactions (nothing is prepared)" if _is_pooled(connection.engine.url) else ""
    )
    dead, live = connection.exec_driver_sql(
        "SELECT coalesce(sum(n_dead_tup), 0), coalesce(sum(n_live_tup), 0) FROM pg_stat_user_tables"
    ).one()
    # Of other people's sessions the server tells those only who may see them (the role pg_read_all_stats).
    age, pid = connection.exec_driver_sql(
        "SELECT coalesce(extract(epoch FROM clock_timestamp() - xact_start), 0), pid FROM pg_stat_activity "
        "WHERE datname = current_database() AND xact_start IS NOT NULL ORDER BY xact_start LIMIT 1"
    ).one()
    place = f"{kind} at {host}{pooled}, {dead:,} dead rows beside {live:,}, oldest transaction {_since(age)}"
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
    if encoding != "UTF8":
        problem = f"it keeps texts as {encoding}, which lacks characters"
        return Health(place, problem, "Create the database with ENCODING 'UTF8'", usable=False)
    if age > OLD_TRANSACTION_SECONDS:
        problem = f"connection {pid} has kept a transaction open for {_since(age)}: no dead row can go"
        return Health(place, problem, f"End it: SELECT pg_terminate_backend({pid})")
    return Health(place)


POSTGRESQL = Dialect(
    name="postgresql",
    spoken_by="postgresql+psycopg",
    title="PostgreSQL",
    oldest=(13,),
    errors=Errors(
        "psycopg",
        {
            # Serialization failure, deadlock, lock not available (lock_timeout).
            Fault.CONFLICT: Signs(frozenset({"40001", "40P01", "55P03"})),
            # Said while connecting, which tells no code.
            Fault.READ_ONLY: Signs(frozenset({"25006"}), ("session is read-only",)),
            Fault.GOING: Signs(
                frozenset(
                    {"57P01", "57P02", "57P03", "57P05", "25P03", "25P04"}
                    | {"08000", "08001", "08003", "08004", "08006", "08007", "08P01"}
                )
            ),
            Fault.REFUSED: Signs(
                frozenset({"28000", "28P01"}),
                (
                    "password authentication failed",
                    "no password supplied",
                    "no pg_hba.conf entry",
                    'FATAL:  role "',
                ),
            ),
            Fault.NO_DATABASE: Signs(frozenset({"3D000"}), ('FATAL:  database "',)),
            Fault.NO_ROOM: Signs(frozenset({"53100", "53200", "53300", "58030"})),
            Fault.NO_TABLE: Signs(frozenset({"42P01"})),
            Fault.NO_COLUMN: Signs(frozenset({"42703"})),
        },
    ),
    # Of the statement, not of the transaction; one that changed within a statement no index could be asked for.
    clock="(statement_timestamp() AT TIME ZONE 'UTC')",
    skip_locked=True,
    most_parameters=65_535,
    most_bytes=None,
    options=_postgresql_options,
    prepare=_postgresql_prepare,
    be_patient=_postgresql_be_patient,
    hurry=_nothing,
    autocommit=True,
    file=lambda _url: None,
    is_shared=lambda _url: True,
    alone=_postgresql_alone,
    begin_migration=_nothing,  # the lock began it
    insert_or_keep=functools.partial(_insert_or_keep, "postgresql"),
    insert_or_change=functools.partial(_insert_or_change, "postgresql"),
    listed_update=None,  # the driver sends all rows before it waits for the first answer
    with_index=lambda query, _table, _index: query,
    without_index=lambda column: column,
    moment=sa.DateTime,
    long_text=sa.Text,
    long_bytes=sa.LargeBinary,
    look=_postgresql_look,
    lock_holders=sa.text(
        "SELECT pid AS id, usename AS user, coalesce(host(client_addr), 'a socket') AS host, "
        "floor(extract(epoch FROM clock_timestamp() - state_change))::bigint AS time FROM pg_stat_activity "
        "WHERE datname = current_database() AND backend_xid IS NOT NULL AND pid <> pg_backend_pid() "
        "AND wait_event_type IS DISTINCT FROM 'Lock' "
        "ORDER BY xact_start LIMIT :most"
    ),
)

DIALECTS = (SQLITE, MYSQL, MARIADB, POSTGRESQL)
ALSO_CALLED = {"postgres": POSTGRESQL.name}
"""Addresses that others write."""
BY_ADDRESS = {dialect.name: dialect for dialect in DIALECTS}
"""By the beginning of a database's address, and by what SQLAlchemy calls it: both say mysql of many a MariaDB."""


AT_ONCE = min(dialect.most_parameters for dialect in DIALECTS) // 2
"""Values of a list that every database takes in one statement, with room for other parameters."""


# -- what tables are made of ---------------------------------------------------------------------------------


TABLE = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}
"""What the migration that makes a table tells the databases that ask: names compare byte by byte on all of them.

Not in the models, where SQLAlchemy would import MySQL's dialect for it, whatever the database.
"""

Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")


class Rare(FunctionElement[Any]):
    """A condition that few rows meet, whatever the database has counted.

    Once SQLite has statistics, and all runs it counted had ended, it takes every status for one that all rows have: it
    would walk the whole ledger for the runs that go on, for a list's order above all.
    """

    type = sa.types.NullType()  # of a Boolean SQLite would be asked whether it is 1, and use no index
    name = "rare"
    inherit_cache = True


@compiles(Rare)
def _plain(element: Rare, compiler: Any, **options: Any) -> str:
    return str(compiler.process(element.clauses, **options))


@compiles(Rare, "sqlite")
def _likelihood(element: Rare, compiler: Any, **options: Any) -> str:
    return f"likelihood({compiler.process(element.clauses, **options)}, 0.000001)"


class Searched(FunctionElement[str]):
    """A text in which somebody searches without regard to case."""

    type = sa.String()
    name = "searched"
    inherit_cache = True


@compiles(Searched)
def _as_it_is(element: Searched, compiler: Any, **options: Any) -> str:
    return str(compiler.process(element.clauses, **options))


@compiles(Searched, "postgresql")
def _in_its_language(element: Searched, compiler: Any, **options: Any) -> str:
    # Byte by byte, only the letters from A to Z would have a case.
    return f'({compiler.process(element.clauses, **options)} COLLATE "default")'


class Total(FunctionElement[int]):
    """The sum of a column of whole numbers, over many rows."""

    type = sa.Integer()
    name = "total"
    inherit_cache = True


@compiles(Total)
def _sum(element: Total, compiler: Any, **options: Any) -> str:
    return f"sum({compiler.process(element.clauses, **options)})"


@compiles(Total, "postgresql")
def _whole_sum(element: Total, compiler: Any, **options: Any) -> str:
    # Of big integers it makes decimals.
    return f"CAST(sum({compiler.process(element.clauses, **options)}) AS bigint)"


@compiles(Total, "mysql")
@compiles(Total, "mariadb")
def _sum_of_doubles(element: Total, compiler: Any, **options: Any) -> str:
    # Integers are added as decimals there, which takes a fifth longer; doubles are exact up to 2**53.
    return f"sum({compiler.process(element.clauses, **options)} + 0e0)"

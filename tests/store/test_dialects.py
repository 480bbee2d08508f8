"""What differs between databases stands in one file, and each of them keeps what it says."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

import kytecron
from kytecron.config import Settings
from kytecron.core.errors import Conflict, Invalid
from kytecron.store import db, dialects
from kytecron.store.dialects import MARIADB, MYSQL, POSTGRESQL, SQLITE, Dialect, Fault
from kytecron.store.models import Base, CronThrottle
from tests.postgres import PostgreSQL
from tests.workers import wait_for

PACKAGE = Path(kytecron.__file__).parent
NAMES = {"sqlite", "mysql", "mariadb", "postgresql"}
ASK = {"dialect", "get_backend_name", "get_dialect_name", "is_mariadb"}
THROTTLE: Any = CronThrottle.__table__
ROW = {"key": "a", "window": datetime(2026, 1, 1, 12, 0, 0, 1, tzinfo=UTC), "count": 1}


def questions(tree: ast.AST) -> Iterator[str]:
    """Where a module asks which database it is, or names one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ASK:
            yield f"line {node.lineno}: .{node.attr}"
        elif isinstance(node, ast.Constant) and node.value in NAMES:
            yield f"line {node.lineno}: {node.value!r}"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sqlalchemy.dialects"):
            yield f"line {node.lineno}: {node.module}"


def test_nobody_else_asks_which_database_it_is() -> None:
    asking = {
        f"{path.relative_to(PACKAGE)}, {question}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "dialects.py"
        for question in questions(ast.parse(path.read_text()))
    }
    assert asking == set()


@pytest.mark.parametrize(
    "source",
    [
        'if engine.dialect.name != "x": ...',
        'a = b == "sqlite"',
        "from sqlalchemy.dialects.mysql import insert",
    ],
)
def test_the_question_is_seen(source: str) -> None:
    assert list(questions(ast.parse(source)))


def test_an_engine_s_database_is_known(engine: Engine, session: Session) -> None:
    known = {"sqlite": SQLITE, "mysql": MARIADB, "postgresql": POSTGRESQL}[engine.url.get_backend_name()]
    assert dialects.of(engine) is known  # before anybody has connected
    assert dialects.of(session) is known
    with engine.connect() as connection:
        assert dialects.of(connection) is known
    assert db.kind(session) == known.name


@pytest.mark.parametrize(
    ("is_mariadb", "version", "found"),
    [
        (False, (5, 7, 44), replace(MYSQL, skip_locked=False)),
        (False, (8, 0, 0), replace(MYSQL, skip_locked=False)),
        (False, (8, 0, 1), MYSQL),
        (False, (9, 4, 0), MYSQL),
        (True, (10, 5, 29), replace(MARIADB, skip_locked=False)),
        (True, (10, 6, 0), MARIADB),
        (True, (11, 4, 2), MARIADB),
    ],
)
def test_a_server_is_known_by_what_it_says_of_itself(
    is_mariadb: bool, version: tuple[int, ...], found: Dialect
) -> None:
    engine = sa.create_engine("mysql+pymysql://nobody@localhost/x")
    spoken: Any = engine.dialect
    spoken.server_version_info, spoken.is_mariadb = version, is_mariadb
    chosen = dialects.of(engine)
    assert (chosen.name, chosen.skip_locked) == (found.name, found.skip_locked)
    assert dialects.of(engine) is chosen


def test_two_old_servers_share_their_statements() -> None:
    found = []
    for _ in range(2):
        engine = sa.create_engine("mysql+pymysql://nobody@localhost/x")
        spoken: Any = engine.dialect
        spoken.server_version_info = (5, 7)
        found.append(dialects.of(engine))
    assert found[0] is found[1]  # caches of statements are kept by these values


@pytest.mark.parametrize("url", ["oracle://a:b@host/x", "mssql+pyodbc://host/x", "cockroachdb://host/x"])
def test_the_address_of_a_database_that_kytecron_does_not_know_is_refused(url: str) -> None:
    with pytest.raises(Invalid, match="SQLite, MySQL, MariaDB, PostgreSQL"):
        db.engine_options(url)


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("postgresql://a:b@host/x", "postgresql+psycopg"),
        ("postgres://a:b@host/x", "postgresql+psycopg"),
        ("postgresql+psycopg://a:b@host/x", "postgresql+psycopg"),
        ("mysql://a:b@host/x", "mysql+pymysql"),
        ("mariadb://a:b@host/x", "mariadb+pymysql"),
        ("mysql+pymysql://a:b@host/x", "mysql+pymysql"),
        ("sqlite:///x.db", "sqlite"),
    ],
)
def test_an_address_needs_no_driver(url: str, driver: str) -> None:
    assert db.address(url).drivername == driver
    engine = db.make_engine(Settings(database_url=url))
    assert engine.url.drivername == driver
    assert dialects.of_address(make_url(url)) is dialects.of_address(engine.url)


@pytest.mark.parametrize("url", ["postgresql+psycopg2://host/x", "postgresql://host/x?pooler=session"])
def test_an_address_that_says_something_unknown_is_refused(url: str) -> None:
    with pytest.raises(Invalid, match=r"cannot be used: .*(psycopg2|pooler=transaction)"):
        db.address(url)


def test_each_name_and_address_is_one_database_s() -> None:
    assert len({one.name for one in dialects.DIALECTS}) == len(dialects.DIALECTS)
    assert {make_url(f"{one.name}://").get_backend_name() for one in dialects.DIALECTS} == {
        *dialects.BY_ADDRESS
    }


# -- what every database has to do: another one is added when these pass ------------------------------------


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("SELECT 1 FROM there_is_none", Fault.NO_TABLE),
        ("SELECT there_is_none FROM {}", Fault.NO_COLUMN),
        ("SELECT FROM WHERE", None),
    ],
)
def test_what_is_missing_is_told(session: Session, statement: str, fault: Fault | None) -> None:
    with pytest.raises(DBAPIError) as raised:
        session.execute(sa.text(statement.format(quoted(session, THROTTLE))))
    assert db.fault_of(raised.value) is fault
    assert db.is_missing(raised.value) is (fault is not None)


def quoted(session: Session, table: Any) -> str:
    return str(session.get_bind().dialect.identifier_preparer.format_table(table))


def test_a_row_that_is_there_is_kept(session: Session) -> None:
    about = dialects.of(session)
    for count in (1, 2):
        session.execute(about.insert_or_keep(THROTTLE, {**ROW, "count": count}))
    assert session.execute(sa.select(THROTTLE)).mappings().all() == [ROW]


def test_a_row_that_is_there_is_changed_by_what_stands_there_and_by_what_was_brought(
    session: Session,
) -> None:
    about = dialects.of(session)

    def sum_of(new: Any) -> dict[str, Any]:
        return {"count": THROTTLE.c.count + new["count"]}

    for count in (1, 41):
        session.execute(about.insert_or_change(THROTTLE, {**ROW, "count": count}, sum_of))
    assert session.execute(sa.select(THROTTLE)).mappings().all() == [{**ROW, "count": 42}]


@pytest.mark.parametrize(
    "database",
    [
        pytest.param("mariadb", marks=pytest.mark.mariadb),
        pytest.param("postgresql", marks=pytest.mark.postgresql),
    ],
)
def test_values_that_do_not_fit_are_not_swallowed_with_what_is_there(
    database: str, request: pytest.FixtureRequest
) -> None:
    engine = db.make_engine(request.getfixturevalue(f"{database}_settings"))
    with engine.connect() as connection, pytest.raises(DBAPIError):
        connection.execute(dialects.of(connection).insert_or_keep(THROTTLE, {**ROW, "key": "x" * 5000}))
    engine.dispose()


def test_a_list_of_values_fits_into_one_statement(session: Session) -> None:
    listed = [f"key {number}" for number in range(dialects.AT_ONCE)]
    query = sa.select(THROTTLE).where(THROTTLE.c.key.in_(listed))
    assert session.execute(query).all() == []
    assert all(one.most_parameters > dialects.AT_ONCE for one in dialects.DIALECTS)


def test_the_clock_is_utc(session: Session) -> None:
    before = datetime.now(UTC)
    told = db.now(session)
    # Of one machine, so no two clocks are compared: the zone is what could be wrong.
    assert abs((told - before).total_seconds()) < 600


def test_a_migration_is_alone(engine: Engine) -> None:
    about = dialects.of(engine)
    with engine.connect() as one, engine.connect() as other, about.alone(one, 0):
        if about.file(engine.url) is None:  # a file's lock is waited for without an end
            with pytest.raises(Conflict), about.alone(other, 0):
                pass
    with engine.connect() as third, about.alone(third, 0):
        pass


def test_every_table_has_transactions_and_compares_names_byte_by_byte(mariadb_settings: Settings) -> None:
    engine = db.make_engine(mariadb_settings)
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT table_name, engine, table_collation FROM information_schema.tables "
            "WHERE table_schema = database()"
        ).all()
    engine.dispose()
    ours = {name: facts for name, *facts in rows if name != "alembic_version"}
    assert ours.keys() == Base.metadata.tables.keys()
    assert [name for name, facts in ours.items() if facts != ["InnoDB", "utf8mb4_bin"]] == []


@pytest.mark.postgresql
def test_every_text_of_a_postgresql_compares_byte_by_byte(postgresql_settings: Settings) -> None:
    """Whatever language the database was created for."""
    engine = db.make_engine(postgresql_settings)
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT table_name, column_name, collation_name FROM information_schema.columns "
            "WHERE table_schema = current_schema() AND data_type IN ('text', 'character varying') "
            "AND table_name <> 'alembic_version'"
        ).all()
    engine.dispose()
    assert {row.table_name for row in rows} <= Base.metadata.tables.keys()
    assert len(rows) > 50
    assert [row for row in rows if row.collation_name != "C"] == []


@pytest.mark.postgresql
@pytest.mark.parametrize("rows", [1, 3])
def test_a_client_that_falls_silent_after_many_rows_loses_its_locks(
    postgresql_settings: Settings, postgresql: PostgreSQL, rows: int
) -> None:
    engine = db.make_engine(postgresql_settings, idle_seconds=0.2)
    change = 'UPDATE "CronJob" SET priority = %s WHERE id = %s'
    with engine.connect() as connection:
        ((pid,),), _ = db.execute(connection, "SELECT pg_backend_pid()", ())
        db.execute(connection, change, [(1, number) for number in range(rows)], many=True)
        alive = f"SELECT 1 FROM pg_stat_activity WHERE pid = {pid}"
        wait_for(lambda: not postgresql.execute(alive), "the server to end the session")
        connection.invalidate()
    engine.dispose()

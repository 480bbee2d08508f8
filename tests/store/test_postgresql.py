"""What PostgreSQL does that no other database does: failover, poolers, rows that are changed in place."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from kytecron.config import Settings
from kytecron.services import doctor, lifecycle, registry
from kytecron.services.audit import Actor
from kytecron.store import claims, db, schema
from kytecron.store.dialects import Fault
from kytecron.store.models import CronJob
from tests import postgres
from tests.factories import LEASE, WORKER, add_job, claim_one, fresh
from tests.mariadb import free_port
from tests.postgres import DATABASE, USER, PostgreSQL
from tests.workers import wait_for

pytestmark = pytest.mark.postgresql
ANNA = Actor("anna")


@contextmanager
def engine_at(url: str, **options: Any) -> Iterator[Engine]:
    engine = db.make_engine(Settings(database_url=url), **options)
    yield engine
    engine.dispose()


@db.transactional
def rename(session: Session, job_id: int, name: str) -> int:
    """One transaction that writes, past SQLAlchemy's execution; returns the server's process."""
    claims.update_jobs(session, [{"job_id": job_id, "description": name}])
    return pid(session)


def pid(session: Session) -> int:
    return int(session.scalar(sa.text("SELECT pg_backend_pid()")) or 0)


# -- limits --------------------------------------------------------------------------------------------------


def test_a_server_that_is_frozen_is_given_up(postgresql: PostgreSQL, postgresql_settings: Settings) -> None:
    with engine_at(postgresql_settings.url, statement_seconds=2) as engine, engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
        postgresql.freeze()
        try:
            with pytest.raises(DBAPIError) as raised:
                connection.exec_driver_sql("SELECT 2")
            with pytest.raises(DBAPIError) as unreached:
                engine.connect()
        finally:
            postgresql.thaw()
        assert (db.is_outage(raised.value), raised.value.connection_invalidated) == (True, True)
        assert db.is_outage(unreached.value)


def test_the_server_ends_what_takes_too_long_itself(postgresql_settings: Settings) -> None:
    with engine_at(postgresql_settings.url, statement_seconds=1) as engine, engine.connect() as connection:
        with pytest.raises(DBAPIError) as raised:
            connection.exec_driver_sql("SELECT pg_sleep(60)")
        assert "statement timeout" in db.cause(raised.value)
        assert not raised.value.connection_invalidated
        connection.rollback()
        assert connection.exec_driver_sql("SELECT 1").scalar_one() == 1


def test_who_is_silent_inside_a_transaction_is_given_up(postgresql_settings: Settings) -> None:
    with (
        engine_at(postgresql_settings.url, idle_seconds=0.2) as engine,
        db.make_sessions(engine)() as session,
    ):
        job = add_job(session)
        session.execute(sa.text("SELECT 1"))
        mine = pid(session)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as other:
            there = sa.text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid")
            wait_for(lambda: not other.scalar(there, {"pid": mine}))
        with pytest.raises(DBAPIError) as raised:
            session.execute(sa.text("SELECT 1"))
        assert db.is_outage(raised.value)
        assert rename(session, job.id, "again") != mine


def test_a_lock_that_somebody_keeps_is_a_conflict_and_no_outage(postgresql_settings: Settings) -> None:
    with (
        engine_at(postgresql_settings.url, statement_seconds=1) as engine,
        db.make_sessions(engine)() as one,
        db.make_sessions(engine)() as other,
    ):
        job = add_job(one)
        claims.lock_jobs(one, [job.id])
        with pytest.raises(DBAPIError) as raised:
            claims.lock_jobs(other, [job.id])
        assert (db.is_row_conflict(raised.value), db.is_outage(raised.value)) == (True, False)


# -- servers that go, and servers that take no writes --------------------------------------------------------


def test_a_connection_that_the_server_ends_is_replaced_and_the_transaction_repeated(
    postgresql: PostgreSQL, postgresql_settings: Settings
) -> None:
    with engine_at(postgresql_settings.url) as engine, db.make_sessions(engine)() as session:
        job = add_job(session)
        before = rename(session, job.id, "before")
        postgresql.execute(f"SELECT pg_terminate_backend({before})")
        assert rename(session, job.id, "after") != before
        assert fresh(session, job).description == "after"


WRITES: dict[str, Callable[[Session, int], Any]] = {
    "through SQLAlchemy": lambda session, _: session.execute(sa.update(CronJob).values(description="no")),
    "past SQLAlchemy": lambda session, job_id: claims.update_jobs(
        session, [{"job_id": job_id, "description": "no"}]
    ),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_server_that_takes_no_writes_any_more_empties_the_pool(
    postgresql_settings: Settings, write: Callable[[Session, int], Any]
) -> None:
    with engine_at(postgresql_settings.url) as engine, db.make_sessions(engine)() as session:
        job = add_job(session)
        others = [engine.connect() for _ in range(3)]
        for connection in others:
            connection.exec_driver_sql("SET default_transaction_read_only = on")
            connection.commit()
        for connection in others:
            connection.close()
        session.rollback()
        with db.make_sessions(engine)() as another, pytest.raises(DBAPIError) as raised:
            write(another, job.id)
        assert db.fault_of(raised.value) is Fault.READ_ONLY
        assert db.is_outage(raised.value)
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SHOW default_transaction_read_only").scalar_one() == "off"
        assert rename(session, job.id, "yes")


@pytest.mark.slow
def test_a_failover_to_a_copy_is_survived(postgresql_settings: Settings) -> None:
    """The first server dies; its copy takes no writes until it is promoted, then all goes on there."""
    del postgresql_settings  # skips where there is no server
    with postgres.serving("wal_level=replica", "max_wal_senders=4") as first, postgres.directory() as place:
        copy = PostgreSQL(place)
        copy_of(first, copy)
        hosts = f"host=127.0.0.1:{first.port}&host=127.0.0.1:{copy.port}"
        with (
            engine_at(f"postgresql://{USER}@/{DATABASE}?{hosts}") as engine,
            db.make_sessions(engine)() as session,
        ):
            try:
                job = add_job(session)
                rename(session, job.id, "before")
                wait_for(lambda: bool(copy.execute("SELECT 1 FROM \"CronJob\" WHERE description = 'before'")))
                first.kill()
                with pytest.raises(Exception) as raised:
                    rename(session, job.id, "meanwhile")
                assert db.is_outage(raised.value)
                assert "takes no writes" in db.trouble(raised.value)
                assert not db.says_no(raised.value)
                copy.execute("SELECT pg_promote()")
                assert rename(session, job.id, "after")
                assert [row[0] for row in copy.execute('SELECT description FROM "CronJob"')] == ["after"]
            finally:
                copy.kill()


def copy_of(server: PostgreSQL, copy: PostgreSQL) -> None:
    """Make and start a copy of a server that follows it."""
    server.run(
        *("pg_basebackup", "--write-recovery-conf", "--checkpoint=fast", "--no-sync"),
        *("-D", str(copy.data), "-h", "127.0.0.1", "-p", str(server.port), "-U", USER),
    )
    copy.start()


# -- poolers -------------------------------------------------------------------------------------------------


@pytest.fixture
def pooled(postgresql: PostgreSQL, postgresql_settings: Settings) -> Iterator[Settings]:
    """The same database behind a PgBouncer that gives every transaction another connection."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        postgres.refuse("no pgbouncer on this machine (package pgbouncer)")
    port = free_port()
    with postgres.directory() as place:
        written = place / "pgbouncer.ini"
        written.write_text(
            f"[databases]\n{DATABASE} = host=127.0.0.1 port={postgresql.port} user={USER}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\nunix_socket_dir =\n"
            "pool_mode = transaction\nserver_round_robin = 1\n"
        )
        with (place / "pgbouncer.log").open("wb") as log:
            process = subprocess.Popen(
                [program, str(written)], stdout=log, stderr=log, **postgres.as_nobody()
            )
        url = f"postgresql://{USER}@127.0.0.1:{port}/{DATABASE}"
        try:
            wait_for(lambda: process.poll() is not None or answers(url))
            assert process.poll() is None, (place / "pgbouncer.log").read_text()
            yield replace(postgresql_settings, database_url=f"{url}?pooler=transaction")
        finally:
            process.kill()
            process.wait()


def answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def test_all_is_well_behind_a_pooler_of_transactions(pooled: Settings) -> None:
    engine = db.make_engine(pooled)
    schema.upgrade(engine)
    with db.make_sessions(engine)() as one, db.make_sessions(engine)() as other:
        job = add_job(one)
        for number in range(20):  # more often than the driver waits before it prepares a statement
            for session in (one, other):
                rename(session, job.id, f"{number}")
                lifecycle.enqueue_due(session)
                session.commit()
        assert one.scalar(sa.text("SHOW statement_timeout")) == "13500ms"
        assert one.scalar(sa.text("SHOW lock_timeout")) == "5s"
    onlooker = db.Onlooker(engine)
    assert onlooker.ask(claims.next_instants).now
    onlooker.close()
    found = doctor.examine(engine, pooled, ANNA)
    assert "behind a pooler of transactions (nothing is prepared)" in found[0].detail
    engine.dispose()


# -- rows that change often ----------------------------------------------------------------------------------


def test_a_renewal_changes_rows_in_place(postgresql_settings: Settings) -> None:
    """Without new entries in any index: neither a run's lease nor a worker's report is in one."""
    with engine_at(postgresql_settings.url) as engine, db.make_sessions(engine)() as session:
        add_job(session)
        lifecycle.enqueue_due(session)
        claim = claim_one(session)

        def renew() -> None:
            assert lifecycle.renew(session, {claim}, (), LEASE).leased

        def report() -> None:
            registry.report(
                session,
                WORKER,
                postgresql_settings,
                running=1,
                draining=False,
                clock_skew_ms=0.0,
                statistics={},
            )

        report()
        assert changed_in_place(session, "CronJobExecution", renew, 5) == (5, 5)
        assert changed_in_place(session, "CronWorker", report, 5) == (5, 5)


@db.transactional
def changed_in_place(session: Session, table: str, change: Any, times: int) -> tuple[int, int]:
    """How many rows were changed in a table, and how many of them in place."""
    counted = sa.text("SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables WHERE relname = :table")
    before = session.execute(counted, {"table": table}).one()
    for _ in range(times):
        change()
        session.flush()
    after = session.execute(counted, {"table": table}).one()
    return after[0] - before[0], after[1] - before[1]


def test_the_hot_tables_have_room(postgresql_settings: Settings) -> None:
    with engine_at(postgresql_settings.url) as engine, engine.connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT relname, reloptions FROM pg_class WHERE reloptions IS NOT NULL"
        )
        options = {name: " ".join(given) for name, given in rows}
    for table in ("CronJob", "CronJobExecution", "CronWorker"):
        assert "fillfactor=" in options[table]
        assert "autovacuum_vacuum_scale_factor=0.02" in options[table]


def test_the_oldest_transaction_is_shown(postgresql_settings: Settings) -> None:
    with engine_at(postgresql_settings.url) as engine:
        found = doctor.examine(engine, postgresql_settings, ANNA)[0]
    assert found.verdict == "ok"
    assert "dead rows" in found.detail
    assert "oldest transaction" in found.detail

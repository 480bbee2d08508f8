"""The database itself suffers: restarted, killed, frozen, read-only, its sessions killed, its rows locked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pymysql
import pytest
from sqlalchemy.orm import Session, sessionmaker

from kytecron.config import Settings
from kytecron.services import lifecycle
from kytecron.store import db
from kytecron.store.models import CronJob
from tests.faults.checker import beating
from tests.faults.conftest import root
from tests.faults.scene import ANNA, NEVER_GIVE_UP, clockwork, crew, in_the_end, keeps_going
from tests.mariadb import MariaDB
from tests.workers import Journal, executions, make_job, wait_for, wait_for_statuses

pytestmark = pytest.mark.mariadb


@pytest.fixture
def session(server_settings: Settings) -> Iterator[Session]:
    engine = db.make_engine(server_settings)
    with sessionmaker(engine, expire_on_commit=False)() as session:
        yield session
    engine.dispose()


def _restart(server: MariaDB) -> None:
    server.stop()
    server.start()


def _kill(server: MariaDB) -> None:
    server.kill()
    server.start()


def _freeze(seconds: float) -> Callable[[MariaDB], None]:
    def freeze(server: MariaDB) -> None:
        server.freeze()
        time.sleep(seconds)  # the length of the fault
        server.thaw()

    return freeze


def _stay_away(server: MariaDB) -> None:
    """Nobody listens for a while: connections are refused."""
    server.stop()
    time.sleep(2)  # the length of the fault
    server.start()


def _read_only(server: MariaDB) -> None:
    with root(server) as connection, connection.cursor() as cursor:
        cursor.execute("SET GLOBAL read_only = 1")
        time.sleep(2)  # the length of the fault
        cursor.execute("SET GLOBAL read_only = 0")


def _kill_sessions(server: MariaDB) -> None:
    with root(server) as connection, connection.cursor() as cursor:
        for _ in range(10):
            cursor.execute("SELECT id FROM information_schema.processlist WHERE user = 'worker'")
            for (number,) in cursor.fetchall():
                with suppress(pymysql.Error):  # it has just ended
                    cursor.execute(f"KILL {number}")
            time.sleep(0.2)  # so that they get a little further each time


def _deadlocks(server: MariaDB) -> None:
    """Others lock jobs and executions in the wrong order, all the time."""
    end = time.monotonic() + 3

    def collide(direction: str) -> None:
        with root(server) as connection, connection.cursor() as cursor:
            while time.monotonic() < end:
                with suppress(pymysql.Error):
                    cursor.execute("BEGIN")
                    cursor.execute(
                        f"SELECT id FROM CronJobExecution ORDER BY id {direction} LIMIT 5 FOR UPDATE"
                    )
                    cursor.execute(f"SELECT id FROM CronJob ORDER BY id {direction} FOR UPDATE")
                    cursor.execute(
                        f"SELECT id FROM CronJobExecution ORDER BY id {direction} LIMIT 20 FOR UPDATE"
                    )
                with suppress(pymysql.Error):
                    cursor.execute("ROLLBACK")

    threads = [threading.Thread(target=collide, args=(order,)) for order in ("ASC", "DESC") * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(_restart, id="restarted"),
        pytest.param(_kill, id="killed"),
        pytest.param(_freeze(1.5), id="frozen for less than the lease"),
        pytest.param(_freeze(6), id="frozen for longer than the lease"),
        pytest.param(_stay_away, id="refusing connections"),
        pytest.param(_read_only, id="read-only"),
        pytest.param(_kill_sessions, id="killing sessions"),
        pytest.param(_deadlocks, id="deadlock storm"),
    ],
)
def test_a_database_that_suffers_costs_no_slot_and_doubles_none(
    server_settings: Settings,
    server: MariaDB,
    session: Session,
    journal: Journal,
    fault: Callable[[MariaDB], None],
) -> None:
    jobs = clockwork(session, journal, count=3, seconds=0.3)
    session.rollback()
    with crew(server_settings, 2) as workers:
        wait_for(lambda: len(journal.entries("end")) >= 3, "a good start")
        fault(server)
        keeps_going(session, jobs)
        in_the_end(session, journal, workers)


@contextmanager
def _locked(server: MariaDB, job: CronJob) -> Iterator[None]:
    with root(server) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT id FROM CronJob WHERE id = %s FOR UPDATE", (job.id,))
        yield
        cursor.execute("ROLLBACK")


def test_a_long_lock_on_one_job_holds_up_that_job_alone(
    server_settings: Settings, server: MariaDB, session: Session, journal: Journal
) -> None:
    others = clockwork(session, journal, count=2)
    locked = make_job(session, journal.code(beating(0.5)), name="locked", **NEVER_GIVE_UP)
    session.rollback()
    with crew(server_settings, 1) as workers:
        lifecycle.trigger(session, locked.id, actor=ANNA)
        wait_for(lambda: any(start["job"] == locked.id for start in journal.entries("start")))
        with _locked(server, locked):
            wait_for(lambda: any(end["job"] == locked.id for end in journal.entries("end")))
            keeps_going(session, others, runs=4)
            assert [run.status for run in executions(session, locked)] == ["running"]
            assert "has to wait" not in workers[0].log()
        wait_for_statuses(session, locked, "completed")
        in_the_end(session, journal, workers)


def test_a_locked_job_that_is_due_does_not_keep_its_worker_spinning(
    server_settings: Settings, server: MariaDB, session: Session, journal: Journal
) -> None:
    (locked,) = clockwork(session, journal)
    with crew(server_settings, 1) as workers:
        wait_for(lambda: journal.entries("end"), "a good start")
        with _locked(server, locked):
            time.sleep(3)  # the length of the fault, in which 15 looks are due
        keeps_going(session, [locked])
        statistics = workers[0].stop()
    assert statistics["cycles"] < 1000

"""The database itself suffers: restarted, killed, frozen, read-only, its sessions killed, its rows locked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from sqlalchemy.orm import Session, sessionmaker

from kytecron.config import Settings
from kytecron.services import lifecycle
from kytecron.store import db
from tests.faults.checker import beating
from tests.faults.harm import Error, Harm, Server
from tests.faults.scene import (
    ANNA,
    LEASE,
    NEVER_GIVE_UP,
    clockwork,
    crew,
    in_the_end,
    keeps_going,
    long_first_attempt,
)
from tests.workers import Journal, WorkerProcess, executions, make_job, wait_for, wait_for_statuses


@pytest.fixture
def session(server_settings: Settings) -> Iterator[Session]:
    engine = db.make_engine(server_settings)
    with sessionmaker(engine, expire_on_commit=False)() as session:
        yield session
    engine.dispose()


Crew = list[WorkerProcess]
Harming = Callable[[Harm, Crew], None]


def noticed(workers: Crew, words: str) -> None:
    """Wait until each of them has told of it."""
    for worker in workers:
        wait_for(lambda worker=worker: words in worker.log(), f"a worker to log {words!r}")


def _restart(harmed: Harm, workers: Crew) -> None:
    harmed.server.stop()
    harmed.server.start()


def _kill(harmed: Harm, workers: Crew) -> None:
    harmed.server.kill()
    harmed.server.start()


def _freeze(seconds: float) -> Harming:
    def freeze(harmed: Harm, workers: Crew) -> None:
        harmed.server.freeze()
        time.sleep(seconds)  # the length of the fault
        harmed.server.thaw()

    return freeze


def _stay_away(harmed: Harm, workers: Crew) -> None:
    """Nobody listens for a while: connections are refused."""
    harmed.server.stop()
    try:
        # By a connection that was cut or by one that was refused: the second is not told again.
        noticed(workers, "the database is not available")
        time.sleep(2)  # the length of the fault
    finally:
        harmed.server.start()


def _read_only(harmed: Harm, workers: Crew) -> None:
    harmed.execute(*harmed.read_only)
    try:
        noticed(workers, harmed.says_read_only)
        time.sleep(2)  # the length of the fault
    finally:
        harmed.execute(*harmed.writable)


def _kill_sessions(harmed: Harm, workers: Crew) -> None:
    with harmed.connect() as connection, connection.cursor() as cursor:
        for _ in range(10):
            cursor.execute(harmed.sessions)
            for session in cursor.fetchall():
                with suppress(*Error):  # it has just ended
                    cursor.execute(harmed.end_session, session)
            time.sleep(0.2)  # so that they get a little further each time


def _deadlocks(harmed: Harm, workers: Crew) -> None:
    """Others lock jobs and executions in the wrong order, until both workers have been victims, if they can be."""
    over = threading.Event()
    runs, jobs = harmed.name("CronJobExecution"), harmed.name("CronJob")

    def collide(direction: str) -> None:
        with harmed.connect() as connection, connection.cursor() as cursor:
            cursor.execute(harmed.prefer_others)
            while not over.is_set():
                with suppress(*Error):
                    cursor.execute("BEGIN")
                    cursor.execute(harmed.grow)
                    cursor.execute(f"SELECT id FROM {runs} ORDER BY id {direction} LIMIT 5 FOR UPDATE")
                    cursor.execute(f"SELECT id FROM {jobs} ORDER BY id {direction} FOR UPDATE")
                    cursor.execute(f"SELECT id FROM {runs} ORDER BY id {direction} LIMIT 20 FOR UPDATE")
                with suppress(*Error):
                    cursor.execute("ROLLBACK")

    threads = [threading.Thread(target=collide, args=(order,)) for order in ("ASC", "DESC")]
    for thread in threads:
        thread.start()
    try:
        if harmed.says_deadlock is None:
            time.sleep(5)  # the length of the fault
        else:
            noticed(workers, f"transaction repeated after: {harmed.says_deadlock}")
    finally:
        over.set()
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
    harmed: Harm,
    session: Session,
    journal: Journal,
    fault: Harming,
) -> None:
    jobs = clockwork(session, journal, count=3, seconds=0.3)
    session.rollback()
    with crew(server_settings, 2) as workers:
        wait_for(lambda: len(journal.entries("end")) >= 3, "a good start")
        fault(harmed, workers)
        keeps_going(session, jobs)
        in_the_end(session, journal, workers)


def test_who_comes_back_first_after_an_outage_does_not_judge_those_who_come_back_later(
    server_settings: Settings, server: Server, session: Session, journal: Journal
) -> None:
    """The database is away for longer than the lease, and the job may go on without it."""
    job = make_job(session, journal.code(beating(3 * LEASE)), on_lost_contact="continue", **NEVER_GIVE_UP)
    # A renewal interval is longer than the longest pause between two attempts to reach the database.
    with crew(server_settings, 3, lease_seconds=8, renew_seconds=4) as workers:
        lifecycle.trigger(session, job.id, actor=ANNA)
        session.rollback()
        wait_for(lambda: journal.entries("start"))
        server.stop()
        time.sleep(9)  # the length of the fault
        server.start()
        wait_for_statuses(session, job, "completed")
        in_the_end(session, journal, workers)


def test_a_long_lock_on_one_job_holds_up_that_job_alone(
    server_settings: Settings, harmed: Harm, session: Session, journal: Journal
) -> None:
    others = clockwork(session, journal, count=2)
    locked = make_job(session, journal.code(beating(0.5)), name="locked", **NEVER_GIVE_UP)
    session.rollback()
    with crew(server_settings, 1) as workers:
        lifecycle.trigger(session, locked.id, actor=ANNA)
        wait_for(lambda: any(start["job"] == locked.id for start in journal.entries("start")))
        with harmed.locked("CronJob", locked.id):
            wait_for(lambda: any(end["job"] == locked.id for end in journal.entries("end")))
            keeps_going(session, others, runs=4)
            assert [run.status for run in executions(session, locked)] == ["running"]
            assert "has to wait" not in workers[0].log()
        wait_for_statuses(session, locked, "completed")
        ledger = in_the_end(session, journal, workers)
    assert [run.id for run in ledger if run.status == "lost"] == [], "nobody's lease ended meanwhile"


def test_a_long_lock_on_one_run_costs_no_other_run_its_lease(
    server_settings: Settings, harmed: Harm, session: Session, journal: Journal
) -> None:
    """Its own lease cannot be renewed: it is stopped in time, and starts again when the lock is gone."""
    locked = long_first_attempt(session, journal)
    other = make_job(session, journal.code(beating(2 * LEASE)), **NEVER_GIVE_UP)
    with crew(server_settings, 1) as workers:
        run = lifecycle.trigger(session, locked.id, actor=ANNA)
        lifecycle.trigger(session, other.id, actor=ANNA)
        session.rollback()
        wait_for(lambda: len(journal.entries("start")) == 2)
        with harmed.locked("CronJobExecution", run.id):
            wait_for_statuses(session, other, "completed")
        wait_for_statuses(session, locked, "lost", "completed")
        in_the_end(session, journal, workers)


def test_a_locked_job_that_is_due_does_not_keep_its_worker_spinning(
    server_settings: Settings, harmed: Harm, session: Session, journal: Journal
) -> None:
    (locked,) = clockwork(session, journal)
    with crew(server_settings, 1) as workers:
        wait_for(lambda: journal.entries("end"), "a good start")
        with harmed.locked("CronJob", locked.id):
            time.sleep(3)  # the length of the fault, in which 15 looks are due
        keeps_going(session, [locked])
        statistics = workers[0].stop()
    assert statistics["cycles"] < 1000

"""SQLite: one file, locked by somebody for long, or on a disk without room."""

from __future__ import annotations

import resource
import sqlite3
import time

import pytest
from sqlalchemy.orm import Session

from kytecron.config import Settings
from kytecron.services import lifecycle
from tests.faults.checker import beating
from tests.faults.scene import ANNA, NEVER_GIVE_UP, clockwork, in_the_end, keeps_going
from tests.workers import PATIENCE, Journal, executions, make_job, wait_for, wait_for_statuses, working


@pytest.fixture
def settings(sqlite_settings: Settings) -> Settings:
    return sqlite_settings


@pytest.mark.slow
def test_a_locked_file_costs_neither_slots_nor_the_runs_that_are_on(
    settings: Settings, session: Session, journal: Journal
) -> None:
    """Locked for half a minute, with the lease that there is by default: three times as long as a statement waits."""
    long = make_job(session, journal.code(beating(35)), name="long", **NEVER_GIVE_UP)
    jobs = clockwork(session, journal, count=2)
    with working(settings) as worker:
        lifecycle.trigger(session, long.id, actor=ANNA)
        session.commit()
        wait_for(lambda: any(entry["job"] == long.id for entry in journal.entries()), "the long job to start")
        holder = sqlite3.connect(settings.instance_path / "kytecron.db", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        time.sleep(30)  # the length of the fault
        holder.execute("ROLLBACK")
        holder.close()
        keeps_going(session, jobs)
        wait_for_statuses(session, long, "completed")
        # What was due when the lock began may start a statement's wait after it has ended.
        in_the_end(session, journal, [worker], late_seconds=30 + PATIENCE)


def test_a_full_disk_costs_no_slot_and_no_result(
    settings: Settings, session: Session, journal: Journal
) -> None:
    """No file of the worker's may grow for a while, the database's log least of all."""
    result = make_job(session, journal.code(beating(1)), name="result", **NEVER_GIVE_UP)
    jobs = clockwork(session, journal, count=2)
    with working(settings, lease_seconds=30, renew_seconds=1) as worker:
        wait_for(lambda: len(journal.entries("end")) >= 2, "a good start")
        run = lifecycle.trigger(session, result.id, actor=ANNA)
        wait_for(lambda: any(entry["execution"] == run.id for entry in journal.entries()))
        before = resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        wait_for(
            lambda: any(entry["execution"] == run.id for entry in journal.entries("end")), "the job to end"
        )
        time.sleep(2)  # the length of the fault
        assert [row.status for row in executions(session, result)] == ["running"]
        resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, before)
        wait_for_statuses(session, result, "completed")
        keeps_going(session, jobs)
        in_the_end(session, journal, [worker])

"""A worker whose database changes under it: other tables, other time zones elsewhere, no database at all."""

from __future__ import annotations

import itertools
import json
import signal
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from kytecron.config import Settings
from kytecron.core.schedule import TZDATA_VERSION, tzdata_order
from kytecron.engine.telling import FIRST_PAUSE_SECONDS, Rarely
from kytecron.engine.worker import CronWorker
from kytecron.services import lifecycle, registry
from kytecron.services.audit import Actor
from kytecron.store import db
from kytecron.store.models import CronJob, CronWorkerRecord
from tests.factories import add_job, add_worker, fresh, runs_of
from tests.workers import (
    PATIENCE,
    Journal,
    WorkerProcess,
    executions,
    make_job,
    wait_for,
    wait_for_statuses,
    working,
)

ANNA = Actor("anna")
CODE = "class Job(CronJobBase):\n    def execute(self):\n        pass\n"


def set_revision(session: Session, revision: str) -> str:
    """Let the database be at another migration; returns the one that it was at."""
    before: str = session.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one()
    session.rollback()  # SQLite lets no transaction write that has read before a worker wrote
    session.execute(sa.text("UPDATE alembic_version SET version_num = :it"), {"it": revision})
    session.commit()
    return before


def test_a_worker_whose_tables_become_another_versions_lets_its_runs_end_and_stops_with_the_sentence(
    settings: Settings, session: Session, tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "journal")
    job = make_job(session, journal.code("time.sleep(2)"), overlap_policy="allow")
    with working(settings) as worker:
        lifecycle.trigger(session, job.id, actor=ANNA)
        wait_for(lambda: journal.entries("start"), "the run to start")
        before = set_revision(session, "9999")
        try:
            wait_for(lambda: "was brought to migration 9999" in worker.log(), "the worker to notice")
            lifecycle.trigger(session, job.id, actor=ANNA)
            worker.process.communicate(timeout=PATIENCE)
            assert worker.process.returncode == 3, worker.log()
            assert worker.log().splitlines()[-1].startswith("The database was brought to migration 9999")
            assert [run.status for run in executions(session, job)] == ["completed", "pending"]
        finally:
            session.rollback()
            set_revision(session, before)


def test_a_worker_does_not_start_on_another_versions_tables(settings: Settings, session: Session) -> None:
    before = set_revision(session, "9999")
    try:
        worker = WorkerProcess(settings)
        worker.process.communicate(timeout=PATIENCE)
        assert worker.process.returncode == 2
        assert (
            worker.log().splitlines()[-1].startswith("The database is at migration 9999, which this version")
        )
    finally:
        set_revision(session, before)


@pytest.mark.mariadb
@pytest.mark.parametrize(
    ("user", "database", "says"),
    [
        ("nobody:hidden", "kytecron", "The database refuses this user or password: "),
        ("root", "nowhere", "The database does not exist: "),
    ],
)
def test_a_worker_that_is_not_let_in_says_so_at_once(
    mariadb_settings: Settings, user: str, database: str, says: str
) -> None:
    address = mariadb_settings.database_url.rpartition("@")[2].partition("/")[0]
    url = f"mysql+pymysql://{user}@{address}/{database}"
    worker = WorkerProcess(mariadb_settings, database_url=url)
    worker.process.communicate(timeout=PATIENCE)
    assert worker.process.returncode == 1
    assert worker.log().startswith(says)
    assert worker.log().count("\n") == 1
    assert "hidden" not in worker.log()


def test_what_lasts_is_told_once_then_ever_more_rarely_then_how_long_it_was() -> None:
    told, at = Rarely(), []
    for second in range(10_000):
        if told.due("outage", float(second)) is not None:
            at.append(second)
    assert at[:2] == [0, FIRST_PAUSE_SECONDS]
    pauses = [later - earlier for earlier, later in itertools.pairwise(at[1:])]
    assert pauses == sorted(pauses)
    assert pauses[0] == 2 * FIRST_PAUSE_SECONDS
    assert told.over("outage", 9_999.0) == 9_999
    assert told.over("outage", 10_000.0) is None


@pytest.mark.parametrize(("one", "other"), [("2026f", "2026.6"), ("2025b", "2025.2"), ("2026a", " 2026A ")])
def test_the_two_ways_to_write_a_version_of_tzdata_are_one(one: str, other: str) -> None:
    assert tzdata_order(one) == tzdata_order(other)


def test_versions_of_tzdata_are_ordered_as_they_came_out() -> None:
    ordered = ["", "2025b", "2025.3", "2026a", "2026.10", "2027.1"]
    shuffled = [ordered[place] for place in (3, 0, 5, 1, 4, 2)]
    assert sorted(shuffled, key=tzdata_order) == ordered


def test_a_worker_beside_newer_time_zones_plans_nothing_says_so_and_runs_what_others_planned(
    settings: Settings, session: Session
) -> None:
    session.execute(sa.delete(CronWorkerRecord))
    other = add_worker(session, "newer:1:a", tzdata="2099a")
    job = make_job(session, CODE, schedule_type="interval", interval_seconds=3600)
    planned = make_job(session, CODE)
    with working(settings) as worker:
        wait_for(lambda: "it plans no slots" in worker.log(), "the worker to say so")
        lifecycle.trigger(session, planned.id, actor=ANNA)
        wait_for_statuses(session, planned, "completed")
        assert runs_of(session, job) == []
        fresh(session, other).stopped_at = db.now(session)
        session.commit()
        wait_for_statuses(session, job, "completed")
        assert "this one plans slots again" in worker.log()


def _job_planned_an_hour_late(session: Session) -> tuple[CronJob, datetime]:
    """A job as older time zones may have planned it, and the slot that it has by those of here."""
    now = db.now(session)
    right = (now + timedelta(days=1)).replace(hour=12, minute=0, second=0, microsecond=0)
    right -= timedelta(days=1) if right - now > timedelta(days=1) else timedelta(0)
    fields = {"schedule_type": "daily", "time_of_day": "12:00", "timezone": "UTC", "interval_seconds": None}
    job = add_job(session, **fields, schedule_anchor=None, next_run_time=right + timedelta(hours=1))
    return job, right


@pytest.mark.parametrize("restarted", [False, True])
def test_a_worker_with_newer_time_zones_gives_jobs_the_slots_that_they_have_by_these(
    settings: Settings, session: Session, restarted: bool
) -> None:
    session.execute(sa.delete(CronWorkerRecord))
    now = db.now(session)
    add_worker(session, "older:1:a", tzdata="2019a", stopped_at=now)
    if restarted:
        before = now - timedelta(seconds=20)
        add_worker(session, "same:1:a", tzdata=TZDATA_VERSION, stopped_at=before, last_seen_at=before)
    job, right = _job_planned_an_hour_late(session)
    with working(settings) as worker:
        wait_for(lambda: fresh(session, job).next_run_time == right, "the job to be planned anew")
        wait_for(lambda: f"planned anew by tzdata {TZDATA_VERSION}: 1 job" in worker.log())


def test_a_worker_with_newer_time_zones_that_had_looked_dead_plans_anew_what_others_planned(
    settings: Settings, session: Session
) -> None:
    session.execute(sa.delete(CronWorkerRecord))
    session.commit()

    def lives() -> bool:
        session.rollback()
        return bool(registry.living(session, db.now(session)))

    with working(settings, lease_seconds=4, renew_seconds=1) as worker:
        wait_for(lives, "the worker to report")
        worker.signal(signal.SIGSTOP)
        wait_for(lambda: not lives(), "the worker to look dead")
        add_worker(session, "older:1:a", tzdata="2019a")
        job, right = _job_planned_an_hour_late(session)
        worker.signal(signal.SIGCONT)
        wait_for(lambda: fresh(session, job).next_run_time == right, "the job to be planned anew")


@pytest.mark.mariadb
def test_a_driver_that_fails_while_a_connection_is_opened_is_an_outage_and_no_error(
    mariadb_settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As it does when the server goes away between the connection and its first settings."""
    worker = CronWorker(mariadb_settings)
    try:
        worker.step()
        dialect = worker.engine.dialect
        raw = dialect.dbapi.OperationalError(2013, "Lost connection to MySQL server during query")

        def lose(*_: object) -> None:
            raise raw

        with monkeypatch.context() as patch:
            worker._onlooker.close()
            patch.setattr(type(dialect), "set_isolation_level", lose)
            for _ in range(20):
                worker._lookout.look_now()
                worker._timers.patrol = 0
                worker.step()
        said = [record for record in caplog.records if record.name == "kytecron.engine.worker"]
        assert [record.levelname for record in said if record.levelname != "INFO"] == ["WARNING"]
        assert not any(record.exc_info for record in said)
    finally:
        worker.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_worker_lets_its_runs_end_whatever_asks_it_to_go(
    settings: Settings, session: Session, tmp_path: Path, number: int
) -> None:
    """Ctrl-C, a service manager, a terminal that is closed."""
    begun, end = tmp_path / "begun", tmp_path / "end"
    code = f"""
import os, time
class Waits(CronJobBase):
    def execute(self):
        open({str(begun)!r}, "w").close()
        while not os.path.exists({str(end)!r}):
            time.sleep(0.01)
"""
    with working(settings) as worker:
        job = make_job(session, code, max_retries=0)
        lifecycle.trigger(session, job.id, actor=ANNA)
        wait_for(begun.exists)
        worker.signal(number)
        wait_for(lambda: "stopping" in worker.log())
        end.touch()
        worker.ended()
        wait_for_statuses(session, job, "completed")


@pytest.mark.parametrize("ignored", [signal.SIGINT, signal.SIGHUP])
def test_a_worker_in_the_background_of_a_shell_ends_by_sigterm_and_not_by_what_its_shell_ignores(
    sqlite_settings: Settings, ignored: signal.Signals
) -> None:
    before = signal.signal(ignored, signal.SIG_IGN)
    try:
        worker = WorkerProcess(sqlite_settings)
    finally:
        signal.signal(ignored, before)
    worker.wait_until_ready()
    worker.signal(ignored)
    assert json.dumps(worker.stop())
    assert "stopping" in worker.log()

"""Workers that are stopped, continued, shut down, or have a clock that is wrong."""

from __future__ import annotations

import os
import re
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from kytecron.config import Settings
from kytecron.services import lifecycle
from kytecron.store.models import CronWorkerRecord
from tests.faults.checker import beating
from tests.faults.proxy import CLAIM, Fate, Proxy
from tests.faults.scene import (
    ANNA,
    LEASE,
    NEVER_GIVE_UP,
    SHORT,
    clockwork,
    crew,
    descendants,
    eventually,
    in_the_end,
    long_first_attempt,
)
from tests.workers import PATIENCE, Journal, alive, executions, make_job, wait_for, wait_for_statuses, working


@pytest.fixture
def settings(shared_settings: Settings) -> Settings:
    return shared_settings


def test_a_worker_stopped_for_longer_than_its_lease_finds_its_process_dead_and_writes_nothing(
    settings: Settings, session: Session, journal: Journal
) -> None:
    job = long_first_attempt(session, journal)
    with working(settings, **SHORT) as stopped, working(settings, **SHORT, concurrency=1) as other:
        lifecycle.trigger(session, job.id, actor=ANNA)
        (start,) = wait_for(lambda: journal.entries("start"))
        (run,) = executions(session, job)
        if f":{stopped.pid}:" not in (run.locked_by or ""):
            stopped, other = other, stopped
        stopped.signal(signal.SIGSTOP)
        lost, _ = wait_for_statuses(session, job, "lost", "completed")
        assert not alive(start["pid"]), "the fork server keeps the lease for the worker that is stopped"
        stopped.signal(signal.SIGCONT)
        wait_for(
            lambda: re.search(rf"(lease lost|no longer leased).* execution={lost.id}\b", stopped.log()),
            "the worker to notice",
        )
        in_the_end(session, journal, [stopped, other])
    assert executions(session, job)[0].error == lost.error


def test_a_worker_stopped_between_claim_and_start_starts_nothing_that_was_taken_over(
    settings: Settings, session: Session, proxied: Settings, proxy: Proxy, journal: Journal
) -> None:
    """`continue` lets a process go on without contact, not start without it."""
    job = make_job(session, journal.code(beating(0.5)), on_lost_contact="continue", **NEVER_GIVE_UP)
    claimed = proxy.trap("^COMMIT$", Fate.HOLD_REPLY, after=CLAIM)
    with working(proxied, **SHORT) as stopped:
        lifecycle.trigger(session, job.id, actor=ANNA)
        assert claimed.sprung.wait(PATIENCE)
        stopped.signal(signal.SIGSTOP)
        claimed.released.set()  # the answer is there when the worker continues
        with crew(settings, 1) as others:
            wait_for_statuses(session, job, "lost", "completed")
            stopped.signal(signal.SIGCONT)
            later = lifecycle.trigger(session, job.id, actor=ANNA)
            wait_for_statuses(session, job, "lost", "completed", "completed")
            in_the_end(session, journal, [stopped, *others])
    first = [entry["execution"] for entry in journal.entries("start")]
    assert first == [run.id for run in executions(session, job)[1:]]
    assert later.id in first


def test_a_machine_stopped_whole_runs_on_for_a_moment_when_it_continues_and_records_nothing(
    settings: Settings, session: Session, journal: Journal
) -> None:
    job = long_first_attempt(session, journal)
    with working(settings, **SHORT) as stopped:
        lifecycle.trigger(session, job.id, actor=ANNA)
        (start,) = wait_for(lambda: journal.entries("start"))
        machine = [stopped.pid, *(child.pid for child in descendants(stopped.pid))]
        for pid in machine:
            os.kill(pid, signal.SIGSTOP)
        with working(settings, **SHORT) as other:
            lost, _ = wait_for_statuses(session, job, "lost", "completed")
            assert alive(start["pid"]), "nobody can kill what does not run"
            for pid in machine:
                with suppress(ProcessLookupError):  # its fork server, already awake, has killed it
                    os.kill(pid, signal.SIGCONT)
            wait_for(lambda: not alive(start["pid"]), "the process to be killed", seconds=5)
            for worker in (stopped, other):
                worker.stop()
    assert [run.status for run in executions(session, job)] == ["lost", "completed"]
    assert executions(session, job)[0].error == lost.error
    assert len(journal.entries("end")) == 1


def test_a_worker_whose_clock_is_two_hours_off_runs_everything_on_time(
    settings: Settings, session: Session, journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What Python shows of the clock moves, in the worker, its fork server and its jobs.
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import datetime, time_machine\n"
        "time_machine.travel(datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=2)).start()\n"
    )
    jobs = clockwork(session, journal, count=4)
    with working(settings, **SHORT, concurrency=2) as right:
        monkeypatch.setenv("PYTHONPATH", str(site))
        with working(settings, **SHORT, concurrency=2) as wrong:

            def both_work() -> bool:
                done = [run.locked_by or "" for run in executions(session) if run.status == "completed"]
                return all(sum(f":{worker.pid}:" in name for name in done) >= 4 for worker in (right, wrong))

            wait_for(both_work, "both workers to complete runs", seconds=60)
            record = session.query(CronWorkerRecord).filter_by(pid=wrong.pid).one()
            eventually(
                session, lambda: abs(record.clock_skew_ms - 7_200_000) < 60_000, "the skew to be known"
            )
            ledger = in_the_end(session, journal, [right, wrong])
    assert {run.cron_job for run in ledger} == {job.id for job in jobs}
    assert all(run.due_time <= run.started_at for run in ledger if run.started_at and run.due_time)
    assert {run.status for run in ledger} <= {"completed", "skipped", "pending"}


def test_a_stopping_worker_renews_the_lease_of_the_job_it_waits_for(
    settings: Settings, session: Session, journal: Journal
) -> None:
    job = make_job(session, journal.code(beating(LEASE + 2)), **NEVER_GIVE_UP)
    with working(settings, **SHORT) as leaving:
        lifecycle.trigger(session, job.id, actor=ANNA)
        wait_for(lambda: journal.entries("start"))
        leaving.signal(signal.SIGTERM)
        wait_for(lambda: "stopping" in leaving.log())
        with crew(settings, 1) as others:
            statistics = leaving.ended()
            in_the_end(session, journal, others)
    assert statistics["completed"] == 1
    wait_for_statuses(session, job, "completed")


def test_a_job_that_outlasts_the_grace_of_a_stopping_worker_is_given_to_another_at_once(
    settings: Settings, session: Session, journal: Journal
) -> None:
    job = long_first_attempt(session, journal, max_retries=1)
    with working(settings, **(SHORT | {"lease_seconds": 3600}), grace_seconds=1) as leaving:
        lifecycle.trigger(session, job.id, actor=ANNA)
        wait_for(lambda: journal.entries("start"))
        with crew(settings, 1) as others:
            leaving.stop()
            wait_for_statuses(session, job, "lost", "completed")
            in_the_end(session, journal, others)

"""A worker lacks what it takes to start runs: descriptors, processes, the key to secrets. No job pays for it."""

from __future__ import annotations

import dataclasses
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography.fernet import Fernet
from sqlalchemy.orm import Session

from kytecron.config import Settings
from kytecron.engine.forkserver import SPARES
from kytecron.services import lifecycle, secrets, why
from kytecron.store.models import CronJob, CronJobExecution, CronWorkerRecord
from tests.faults.scene import ANNA, SHORT, forkserver_of, in_the_end
from tests.workers import Journal, WorkerProcess, executions, make_job, wait_for, wait_for_statuses, working

NO_RETRIES = {"max_retries": 0, "retry_strategy": "immediate"}


def worker_row(session: Session, worker: WorkerProcess) -> CronWorkerRecord | None:
    session.rollback()
    query = sa.select(CronWorkerRecord).where(CronWorkerRecord.pid == worker.pid)
    return session.scalar(query.execution_options(populate_existing=True))


def trouble_of(session: Session, worker: WorkerProcess) -> str:
    row = worker_row(session, worker)
    return (row.trouble or "") if row else ""


def take_descriptors_from(pid: int) -> tuple[int, int]:
    """Let a process open no more files than it has open; returns the limits that it had."""
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    lowest_free = next(number for number in count() if number not in used)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    return limits


@pytest.mark.parametrize("whose", ["worker", "fork server"])
def test_a_worker_without_descriptors_spends_no_attempt_and_goes_on_when_it_has_some_again(
    settings: Settings, session: Session, journal: Journal, whose: str
) -> None:
    go = journal.path.with_name("go")
    waits = f"while not os.path.exists({str(go)!r}):\n    time.sleep(0.02)"
    first = make_job(session, journal.code(), **NO_RETRIES)
    # More than there are processes that wait for a run and have all the descriptors they need.
    jobs = [make_job(session, journal.code(waits), **NO_RETRIES) for _ in range(3 * SPARES)]
    with working(settings, concurrency=4 * SPARES) as worker:
        lifecycle.trigger(session, first.id, actor=ANNA)
        wait_for_statuses(session, first, "completed")
        pid = worker.pid if whose == "worker" else forkserver_of(worker)
        limits = take_descriptors_from(pid)
        for job in jobs:
            lifecycle.trigger(session, job.id, actor=ANNA)
        wait_for(lambda: "Too many open files" in trouble_of(session, worker), "the worker to say so")

        def given_back() -> int:
            return max(run.given_back for run in executions(session))

        wait_for(lambda: given_back() >= 2, "a second try, after a pause")
        waiting = next(run for run in executions(session) if run.status != "completed")
        found = why.explain(session, waiting.cron_job)
        assert found.reasons[0].code in ("trouble", "running")
        session.rollback()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        go.touch()
        for job in jobs:
            wait_for_statuses(session, job, "completed")
        assert not any(run.retry_count for run in executions(session))
        assert given_back() < 20, "it does not spin"
        in_the_end(session, journal, [worker])


def test_a_worker_that_cannot_start_processes_leaves_everything_to_a_healthy_one(
    settings: Settings, session: Session, journal: Journal
) -> None:
    for _ in range(10):
        make_job(session, journal.code(), schedule_type="interval", interval_seconds=1, **NO_RETRIES)
    with working(settings, **SHORT) as sick, working(settings, **SHORT) as healthy:
        wait_for(lambda: len(journal.entries("end")) >= 20, "both to work")
        take_descriptors_from(sick.pid)
        wait_for(lambda: "Too many open files" in trouble_of(session, sick), "it to notice")
        since = len(journal.entries("end"))
        wait_for(lambda: len(journal.entries("end")) >= since + 100, "the other to go on")
        assert not any(job.in_dead_letter_queue for job in fresh_jobs(session))
        assert not {run.status for run in executions(session)} & {"failed", "lost", "timeout"}
        sick.kill()
        wait_for(lambda: not leased_to(session, sick), "the other to take over what the sick one had")
        in_the_end(session, journal, [healthy])


def leased_to(session: Session, worker: WorkerProcess) -> list[CronJobExecution]:
    return [
        run for run in executions(session) if run.status == "running" and f":{worker.pid}:" in run.locked_by
    ]


def fresh_jobs(session: Session) -> list[CronJob]:
    session.rollback()
    return list(session.scalars(sa.select(CronJob).execution_options(populate_existing=True)))


@contextmanager
def few_files(limit: int) -> Iterator[None]:
    """Commands that are started meanwhile may open no more files than this, as under `ulimit -n`."""
    popen = subprocess.Popen

    def limited(command: list[str], **options: Any) -> Any:
        return popen(["sh", "-c", f'ulimit -n {limit} && exec "$@"', "sh", *command], **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.workers.subprocess.Popen", limited)
        yield


def test_more_runs_than_the_limits_allow_are_not_promised(
    settings: Settings, session: Session, journal: Journal
) -> None:
    """Started as with `ulimit -n 60`: it runs fewer at once, and says so."""
    jobs = [make_job(session, journal.code("time.sleep(0.3)"), **NO_RETRIES) for _ in range(25)]
    with few_files(60), working(settings, concurrency=20) as worker:
        for job in jobs:
            lifecycle.trigger(session, job.id, actor=ANNA)
        for job in jobs:
            wait_for_statuses(session, job, "completed")
        row = worker_row(session, worker)
        assert row is not None
        assert row.slots == 14
        assert "14 jobs at once instead of 20" in (row.trouble or "")
        assert row.trouble_jobs == []
        assert sum(run.given_back for run in executions(session)) == 0
        in_the_end(session, journal, [worker])


@pytest.mark.parametrize("key", ["another", "none"])
def test_a_worker_without_the_key_leaves_jobs_with_secrets_to_one_that_has_it(
    settings: Settings, session: Session, journal: Journal, key: str
) -> None:
    right = Fernet.generate_key().decode()
    keeper = dataclasses.replace(settings, secrets_keys=right)
    secrets.set_secret(session, "API_KEY", "abc", ANNA, keeper)
    secret = make_job(session, journal.code("assert self.secrets['API_KEY'] == 'abc'"), **NO_RETRIES)
    plain = make_job(session, journal.code(), **NO_RETRIES)
    secrets.grant(session, secret.id, "API_KEY", ANNA)
    variables: dict[str, Any] = {"secrets_keys": Fernet.generate_key().decode()}
    if key == "none":
        variables = {
            "environment": "production",
            "secret_key": os.urandom(32).hex(),
            "database_url": settings.url,
        }
    with working(settings, **variables) as sick:
        lifecycle.trigger(session, secret.id, actor=ANNA)
        wait_for(lambda: "KYTECRON_SECRETS_KEYS" in trouble_of(session, sick), "the worker to say so")
        lifecycle.trigger(session, plain.id, actor=ANNA)
        wait_for_statuses(session, plain, "completed")
        wait_for_statuses(session, secret, "pending")
        assert why.explain(session, secret.id).reasons[0].code == "trouble"
        session.rollback()
        with working(settings, secrets_keys=right) as healthy:
            (run,) = wait_for_statuses(session, secret, "completed")
            assert run.given_back <= 2
            assert run.locked_by is not None
            assert f":{healthy.pid}:" in run.locked_by
            lifecycle.trigger(session, plain.id, actor=ANNA)
            wait_for_statuses(session, plain, "completed", "completed")
            in_the_end(session, journal, [sick, healthy])


def test_a_job_whose_secret_can_be_read_again_runs_on_the_worker_that_had_paused_it(
    settings: Settings, session: Session, journal: Journal
) -> None:
    """The secret was set anew with the key that the worker has."""
    key = Fernet.generate_key().decode()
    other = dataclasses.replace(settings, secrets_keys=Fernet.generate_key().decode())
    secrets.set_secret(session, "API_KEY", "old", ANNA, other)
    job = make_job(session, journal.code("assert self.secrets['API_KEY'] == 'new'"), **NO_RETRIES)
    secrets.grant(session, job.id, "API_KEY", ANNA)
    with working(settings, secrets_keys=key) as worker:
        lifecycle.trigger(session, job.id, actor=ANNA)
        wait_for(lambda: trouble_of(session, worker), "the worker to pause the job")
        secrets.set_secret(session, "API_KEY", "new", ANNA, dataclasses.replace(settings, secrets_keys=key))
        wait_for_statuses(session, job, "completed")
        wait_for(lambda: not trouble_of(session, worker), "the trouble to be over")
        in_the_end(session, journal, [worker])


def test_shutdowns_of_workers_use_up_no_retry(settings: Settings, session: Session, journal: Journal) -> None:
    """Restarted over and over while a job without retries is on, which then completes."""
    job = make_job(session, journal.code("time.sleep(60 if self.execution.attempt < 4 else 0)"), **NO_RETRIES)
    lifecycle.trigger(session, job.id, actor=ANNA)
    for attempt in range(1, 4):
        with working(settings, grace_seconds=0.1, kill_grace_seconds=0.1) as worker:
            wait_for(lambda n=attempt: len(journal.entries("start")) >= n, f"attempt {attempt}")
            worker.stop()
    with working(settings) as worker:
        runs = wait_for_statuses(session, job, "lost", "lost", "lost", "completed")
        assert [run.interruptions for run in runs] == [0, 1, 2, 3]
        in_the_end(session, journal, [worker])


def test_a_lock_released_by_hand_never_lets_two_attempts_run_at_once(
    settings: Settings, session: Session, journal: Journal
) -> None:
    """The journal tells: no line of the first attempt after the start of the second."""
    body = "for _ in range(600 if self.execution.attempt == 1 else 2):\n    note(self, 'beat')\n    time.sleep(0.02)"
    job = make_job(session, journal.code(body), retry_strategy="immediate")
    with working(settings) as worker, working(settings) as other:
        lifecycle.trigger(session, job.id, actor=ANNA)
        wait_for(lambda: journal.entries("beat"), "the first attempt")
        (run,) = executions(session, job)
        lifecycle.release_lock(session, run.id, ANNA)
        lost, _ = wait_for_statuses(session, job, "lost", "completed")
        assert lost.error == "lock released by anna"
        in_the_end(session, journal, [worker, other])

"""What many fault tests do: jobs that beat, workers with short leases, a quiet end at which all is compared."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from kytecron.config import Settings
from kytecron.services.audit import Actor
from kytecron.store.models import CronJob, CronJobExecution, CronWorkerRecord
from tests.faults.checker import beating, check
from tests.workers import Journal, WorkerProcess, executions, logs_told, make_job, wait_for

ANNA = Actor("anna")
LEASE = 4.0
SHORT = {"lease_seconds": LEASE, "renew_seconds": 0.5, "kill_grace_seconds": 1}
"""Settings of the workers: everything that takes a minute in production takes seconds here."""
NEVER_GIVE_UP = {"retry_strategy": "immediate", "max_retries": 100}


def clockwork(session: Session, journal: Journal, count: int = 1, seconds: float = 0.1) -> list[CronJob]:
    """Jobs with a slot each second that take `seconds`."""
    return [
        make_job(
            session,
            journal.code(beating(seconds)),
            name=f"clockwork {number}",
            schedule_type="interval",
            interval_seconds=1,
            **NEVER_GIVE_UP,
        )
        for number in range(count)
    ]


def long_first_attempt(session: Session, journal: Journal, seconds: float = 60, **fields: Any) -> CronJob:
    """A job started by hand whose first attempt takes `seconds` and whose later ones take none."""
    body = f"if self.execution.attempt == 1:\n    {beating(seconds)}".replace("\n    note", "\n        note")
    body = body.replace("\n    time", "\n        time")
    return make_job(session, journal.code(body), **(NEVER_GIVE_UP | fields))


@contextmanager
def crew(settings: Settings, count: int, **variables: object) -> Iterator[list[WorkerProcess]]:
    """Several workers with short leases, started at the same time."""
    workers = [WorkerProcess(settings, **(SHORT | variables)) for _ in range(count)]
    try:
        with logs_told(workers):
            yield [worker.wait_until_ready() for worker in workers]
    finally:
        for worker in workers:
            with suppress(ProcessLookupError):
                worker.signal(signal.SIGCONT)
            worker.process.kill()
            worker.process.communicate()


def keeps_going(session: Session, jobs: list[CronJob], runs: int = 2) -> None:
    """Wait until each of these jobs has completed `runs` runs whose slots are later than now."""
    newest = _newest(session)
    for job in jobs:
        wait_for(
            lambda job=job: (
                sum(run.status == "completed" and run.id > newest for run in executions(session, job)) >= runs
            ),
            f"job {job.id} to go on",
        )


def _newest(session: Session) -> int:
    query = sa.select(sa.func.max(CronJobExecution.id))
    session.rollback()
    try:
        return session.scalar(query) or 0
    except OperationalError:  # the connection is one from before the fault
        session.rollback()
        return session.scalar(query) or 0


def in_the_end(
    session: Session, journal: Journal, workers: list[WorkerProcess], **limits: Any
) -> list[CronJobExecution]:
    """Stop the workers and compare everything; returns the ledger."""
    for worker in workers:
        worker.signal(signal.SIGTERM)
    for worker in workers:
        worker.ended()
    report = check(session, journal, **limits)
    assert not report, f"{report}\n" + "\n".join(worker.log()[-3000:] for worker in workers)
    return executions(session)


def on_another_machine(session: Session, worker: WorkerProcess) -> None:
    """Let the registry say that this worker runs elsewhere: its end can then be seen by its leases alone."""

    def moved() -> bool:
        found = session.execute(
            sa.update(CronWorkerRecord).where(CronWorkerRecord.pid == worker.pid).values(host="elsewhere")
        )
        session.commit()
        return bool(found.rowcount)  # type: ignore[attr-defined]

    wait_for(moved, "the worker to be registered")


def descendants(pid: int) -> list[psutil.Process]:
    """All processes below `pid`."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def kill_everything(workers: list[WorkerProcess]) -> None:
    """SIGKILL for the workers, their fork servers and their jobs, as near to at once as can be."""
    pids = [
        pid for worker in workers for pid in (worker.pid, *(child.pid for child in descendants(worker.pid)))
    ]
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for worker in workers:
        worker.process.wait()


def forkserver_of(worker: WorkerProcess) -> int:
    """Process id of a worker's fork server."""
    return wait_for(
        lambda: next(
            (
                child.pid
                for child in psutil.Process(worker.pid).children()
                if child.name() == "kyte-forkserver"
            ),
            0,
        ),
        "the fork server",
    )


def eventually(session: Session, condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition on the ledger, each look in a new transaction."""

    def fresh() -> bool:
        session.rollback()
        return condition()

    wait_for(fresh, what)

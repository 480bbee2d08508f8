"""Real worker processes for tests, and jobs that write what they do into a journal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session

from kytecron.config import ROOT, Settings
from kytecron.services.jobs import CronJobManager
from kytecron.store.models import CronJob, CronJobExecution, CronJobOutput

T = TypeVar("T")
PATIENCE = 45.0
"""Seconds that tests wait for anything; less than the lease that workers have by default."""


def wait_for(condition: Callable[[], T], what: str = "", seconds: float = PATIENCE, pause: float = 0.02) -> T:
    """The first true value of `condition`; fails after `seconds` with what was waited for."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s for {what or condition}")
        time.sleep(pause)


class WorkerProcess:
    """`python worker.py` on the database of `settings`, with its log in a file."""

    def __init__(self, settings: Settings, *arguments: str, **variables: object) -> None:
        settings.instance_path.mkdir(parents=True, exist_ok=True)
        self.log_path = settings.instance_path / f"worker-{time.monotonic_ns()}.log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KYTECRON_")}
        environment |= {
            "KYTECRON_INSTANCE_PATH": str(settings.instance_path),
            "KYTECRON_DATABASE_URL": settings.database_url,
            "KYTECRON_CONCURRENCY": "4",
            **{f"KYTECRON_{name.upper()}": str(value) for name, value in variables.items()},
        }
        self._output = self.log_path.open("wb")
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "worker.py"), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=self._output,
            process_group=0,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait_until_ready(self) -> WorkerProcess:
        wait_for(lambda: " starts: " in self.log() or self.process.poll() is not None, "the worker to start")
        assert self.process.poll() is None, self.log()
        return self

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL for the worker alone."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def stop(self, seconds: float = PATIENCE) -> dict[str, Any]:
        """SIGTERM, and the statistics that it prints at its end."""
        self.process.terminate()
        return self.ended(seconds)

    def ended(self, seconds: float = PATIENCE) -> dict[str, Any]:
        """Wait for the end; returns the statistics. Fails, with the log, when the worker did not end well."""
        output, _ = self.process.communicate(timeout=seconds)
        assert self.process.returncode == 0, self.log()
        statistics: dict[str, Any] = json.loads(output.splitlines()[-1])
        return statistics


@contextmanager
def logs_told(workers: list[WorkerProcess]) -> Iterator[None]:
    """When a test fails meanwhile, pytest shows beside it what these workers logged."""
    try:
        yield
    except BaseException:
        for worker in workers:
            print(f"-- log of worker {worker.pid}", worker.log(), sep="\n")
        raise


@contextmanager
def working(settings: Settings, *arguments: str, **variables: object) -> Iterator[WorkerProcess]:
    """A worker that is ready, and gone in the end."""
    worker = WorkerProcess(settings, *arguments, **variables)
    try:
        with logs_told([worker]):
            yield worker.wait_until_ready()
    finally:
        if worker.process.poll() is None:
            worker.signal(signal.SIGCONT)
            worker.process.kill()
        worker.process.communicate()


class Journal:
    """A file to which jobs append what they do: one JSON object a line, written at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def code(self, body: str = "") -> str:
        """Source of a job that notes its start and its end around `body`."""
        lines = "\n".join(" " * 8 + line for line in body.splitlines())
        return f"""
import json, os, time

def note(job, what):
    line = json.dumps({{"what": what, "execution": job.execution.id, "job": job.job.id,
                       "slot": job.execution.scheduled_time.isoformat(), "attempt": job.execution.attempt,
                       "pid": os.getpid(), "at": time.clock_gettime(time.CLOCK_BOOTTIME),
                       "version": job.job.version}})
    with open({str(self.path)!r}, "a") as file:
        file.write(line + "\\n")

class Noted(CronJobBase):
    def execute(self):
        note(self, "start")
{lines}
        note(self, "end")
"""

    def entries(self, what: str | None = None) -> list[dict[str, Any]]:
        """What was written so far, oldest first. `at` is this machine's clock, whatever the job took for it."""
        lines = self.path.read_text().splitlines()
        entries = [json.loads(line) for line in lines if line.endswith("}")]
        since_boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        for entry in entries:
            entry["at"] += since_boot
        return [entry for entry in entries if what in (None, entry["what"])]


def make_job(session: Session, code: str, **fields: Any) -> CronJob:
    """A job through the manager, as users make one; by default it is triggered by hand."""
    values = {"name": f"job {time.monotonic_ns()}", "schedule_type": "manual", "code": code}
    return CronJobManager(session).create_job(**(values | fields))


def executions(session: Session, job: CronJob | None = None) -> list[CronJobExecution]:
    """The ledger as the database has it now, oldest first."""
    session.rollback()
    query = sa.select(CronJobExecution).order_by(CronJobExecution.id)
    if job is not None:
        query = query.where(CronJobExecution.cron_job == job.id)
    return list(session.scalars(query.execution_options(populate_existing=True)))


def wait_for_statuses(
    session: Session, job: CronJob, *wanted: str, seconds: float = PATIENCE
) -> list[CronJobExecution]:
    """Wait until the job's executions, oldest first, have these statuses."""
    seen: list[str] = []

    def reached() -> bool:
        seen[:] = [run.status for run in executions(session, job)]
        return seen == list(wanted)

    try:
        wait_for(reached, seconds=seconds)
    except AssertionError:
        raise AssertionError(f"wanted {list(wanted)}, have {seen}") from None
    return executions(session, job)


def printed(session: Session, run: CronJobExecution) -> str:
    """All that is kept of what a run printed: the pieces stored while it ran, then what was left at its end."""
    pieces = (
        sa.select(CronJobOutput.text).where(CronJobOutput.execution == run.id).order_by(CronJobOutput.seq)
    )
    return "".join(session.scalars(pieces)) + (run.output or "")


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")

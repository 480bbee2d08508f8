"""What the measurements share: a database filled in bulk, workers, a file in which jobs note the time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa
from sqlalchemy.orm import Session

from kytecron.config import Settings
from kytecron.core.states import Status
from kytecron.services.jobs import CronJobManager
from kytecron.store import claims, db
from kytecron.store.models import CronJob, CronJobExecution, KyteCronJobVersion
from tests.workers import WorkerProcess, wait_for, working

PATIENCE = 300.0


@dataclass(frozen=True)
class Figure:
    """One measured figure, what it should be, and what it is held against."""

    name: str
    database: str
    what: str
    value: float
    unit: str
    goal: str
    met: bool
    beside: str = ""

    def line(self) -> str:
        """For people."""
        mark = "ok  " if self.met else "MISS"
        beside = f"   [{self.beside}]" if self.beside else ""
        value = f"{self.value:10,.2f} {self.unit:6} (goal {self.goal})"
        return f"{mark} {self.name:4} {self.database:8} {self.what:44} {value}{beside}"

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)


class Bench:
    """One database of one kind, empty but for what a measurement puts there."""

    def __init__(
        self, database: str, settings: Settings, runs: int = 5_000_000, server: int | None = None
    ) -> None:
        self.database = database
        self.settings = settings
        self.runs = runs
        """How many there are where reading is measured."""
        self.server = server
        """The process id of the database's server, where there is one."""
        self.notes = settings.instance_path / "notes"
        settings.instance_path.mkdir(parents=True, exist_ok=True)
        self.engine = db.make_engine(settings)
        self.session: Session = db.make_sessions(self.engine)()

    def close(self) -> None:
        """Before the database goes away."""
        self.session.close()
        self.engine.dispose()

    def at_most(self, goal: float, name: str, what: str, value: float, unit: str, beside: str = "") -> Figure:
        """A figure that should be small."""
        return Figure(name, self.database, what, value, unit, f"<= {goal:g}", value <= goal, beside)

    def at_least(
        self, goal: float, name: str, what: str, value: float, unit: str, beside: str = ""
    ) -> Figure:
        """A figure that should be large."""
        return Figure(name, self.database, what, value, unit, f">= {goal:g}", value >= goal, beside)

    @contextmanager
    def worker(self, **variables: object) -> Iterator[WorkerProcess]:
        with working(self.settings, **{"concurrency": "8", **variables}) as worker:
            yield worker

    # -- jobs ------------------------------------------------------------------------------------------------

    def noting_code(self, salt: str = "") -> str:
        """A job that writes down the time at which its first line ran."""
        return f"""# {salt}
import os, time
class Noting(CronJobBase):
    def execute(self):
        now = time.time()
        line = f"{{self.execution.id}} {{self.job.id}} {{now}}\\n".encode()
        file = os.open({str(self.notes)!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, line)
        os.close(file)
"""

    def model_job(self, code: str, **fields: Any) -> CronJob:
        """A job made as users make one."""
        values = {"name": f"bench {time.monotonic_ns()}", "schedule_type": "manual", "code": code}
        return CronJobManager(self.session).create_job(**(values | fields))

    def copies(self, job: CronJob, slots: list[datetime], interval_seconds: int = 86_400) -> list[int]:
        """As many jobs like `job` as there are slots, inserted in bulk; returns their ids."""
        first = (self.session.scalar(sa.select(sa.func.max(CronJob.id))) or 0) + 1
        ids = list(range(first, first + len(slots)))
        rows = [
            {
                "id": job_id,
                "name": f"copy {job_id}",
                "schedule_type": "interval",
                "interval_seconds": interval_seconds,
                "schedule_anchor": slot,
                "next_run_time": slot,
                "current_version": 1,
                "misfire_grace_seconds": 3600,
            }
            for job_id, slot in zip(ids, slots, strict=True)
        ]
        content = self.session.scalar(
            sa.select(KyteCronJobVersion.content_hash).where(KyteCronJobVersion.cron_job == job.id)
        )
        versions = [
            {"cron_job": job_id, "version_number": 1, "content_hash": content, "is_current": True}
            for job_id in ids
        ]
        self.session.execute(sa.insert(CronJob), rows)
        self.session.execute(sa.insert(KyteCronJobVersion), versions)
        self.session.commit()
        return ids

    def backlog(self, job_ids: list[int]) -> None:
        """A run of each job that is due now."""
        now = self.now()
        rows = [
            claims.new_run(
                cron_job=job_id,
                scheduled_time=now,
                origin="manual",
                due_time=now,
                queue_time=now,
                priority=5,
                worker_tag="",
            )
            for job_id in job_ids
        ]
        claims.insert_slots(self.session, rows)
        self.session.commit()

    # -- what happened ---------------------------------------------------------------------------------------

    def now(self) -> datetime:
        moment = db.now(self.session)
        self.session.rollback()
        return moment

    def soon(self, seconds: float) -> datetime:
        return self.now() + timedelta(seconds=seconds)

    def wait_for_notes(self, count: int, pause: float = 0.02) -> list[tuple[int, int, float]]:
        """(execution, job, time) of each run, once there are `count`; looks every `pause` seconds."""

        def enough() -> bool:
            return self.notes.exists() and self.notes.read_bytes().count(b"\n") >= count

        wait_for(enough, f"{count} notes", PATIENCE, pause)
        lines = self.notes.read_text().splitlines()
        return [(int(a), int(b), float(c)) for a, b, c in (line.split() for line in lines)]

    def wait_until_settled(self, pause: float = 0.02) -> None:
        """Look every `pause` seconds: seldom where looking would take the time that is measured."""

        def settled() -> bool:
            self.session.rollback()
            active = sa.select(sa.func.count()).where(
                CronJobExecution.status.in_([Status.PENDING, Status.RUNNING]),
                CronJobExecution.due_time.is_not(None),
            )
            return not self.session.scalar(active)

        wait_for(settled, "all runs to end", PATIENCE, pause)

    def executions(self) -> list[Any]:
        self.session.rollback()
        columns = (
            CronJobExecution.id,
            CronJobExecution.cron_job,
            CronJobExecution.status,
            CronJobExecution.scheduled_time,
            CronJobExecution.started_at,
            CronJobExecution.completed_at,
        )
        return list(self.session.execute(sa.select(*columns).order_by(CronJobExecution.id)))


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of `values` do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def resident_mb(pid: int) -> float:
    """Memory of a process that is its own or shared, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def private_mb(process: psutil.Process) -> float:
    """Memory of a process that it shares with no other, in MiB."""
    return float(process.memory_full_info().uss) / 1024**2


def server_cpu_seconds(pid: int | None) -> float:
    """CPU time of a server with all its processes, those that have ended too. Sampled: for what is busy."""
    if pid is None:
        return 0.0
    server = psutil.Process(pid)
    return sum(server.cpu_times()[:4]) + sum(sum(child.cpu_times()[:2]) for child in server.children())


def cpu_seconds(pid: int) -> float:
    """CPU time that the threads of a process have used, to the nanosecond.

    The times in `stat` are sampled by the clock's tick, on which what sleeps for a time wakes up: they say two or
    three times as much of a process that does little.
    """
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

"""`stress`: real workers on the configured database run jobs of their own every second, and what ran is counted.

Three things are held against each other: the slots that there should have been, the ledger, and a journal to which
the job processes themselves append a line each time they run. The jobs ask for a worker tag that only these workers
have, so nobody else takes their runs; they are deleted afterwards, with their history.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ..config import ROOT, WORKER, Settings, environment
from ..core.errors import NotFound
from ..core.states import ACTIVE, Status
from ..store import db
from ..store.claims import JOB, RUN
from ..store.db import transactional
from ..store.models import CronJobDailyStat, CronJobExecution, CronJobOutput, CronWorkerRecord
from .audit import Actor
from .jobs import CronJobManager

JOBS_PER_WORKER = 4
CONCURRENCY = 4
READY_SECONDS = 60.0
"""So long the workers have to start; they import much, all at once."""
LEAD = timedelta(seconds=2)
"""Between the order and the first slot."""
TAIL_SECONDS = 60.0
"""So long after the last slot everything must have ended."""
STOP_SECONDS = 60.0
BATCH = 1000

CODE = """import os

class Stress(CronJobBase):
    def execute(self):
        line = f"{self.execution.id} {os.getpid()}\\n".encode()
        journal = os.open(self.job.parameters["journal"], os.O_WRONLY | os.O_APPEND)
        os.write(journal, line)
        os.close(journal)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What really ran. Lateness is in milliseconds, the contention rate in per cent."""

    workers: int
    seconds: int
    jobs: int
    slots: int
    """That should have run."""
    ran: int
    """Lines that the jobs wrote."""
    completed: int
    """Runs that the ledger has as completed."""
    doubled: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Workers that did not start or end well."""
    locks_acquired: int = 0
    locks_missed: int = 0
    contention_rate: float | None = None
    lateness_ms: dict[str, float] = field(default_factory=dict)
    by_worker: dict[str, int] = field(default_factory=dict)
    spread: float | None = None
    """The busiest worker's runs by the idlest one's; None where one ran nothing."""

    @property
    def passed(self) -> bool:
        """Something ran, each slot once, nothing else, and the workers were well."""
        return self.ran > 0 and not (self.doubled or self.lost or self.problems)

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {"passed": self.passed, **asdict(self)}


def run(
    settings: Settings,
    *,
    workers: int,
    seconds: int,
    jobs: int | None = None,
    actor: Actor,
    tell: Callable[[str], None] = lambda line: None,
) -> Report:
    """Start `workers` worker processes and let `jobs` jobs (default: 4 for each worker) run once a second.

    `tell` gets a line about each step. Whatever happens, the workers are ended and the jobs deleted.
    """
    number = jobs or workers * JOBS_PER_WORKER
    tag = f"stress-{secrets.token_hex(4)}"
    engine = db.make_engine(settings)
    try:
        with tempfile.TemporaryDirectory(prefix=tag) as place, db.make_sessions(engine)() as session:
            return _run(session, settings, Path(place), tag, workers, number, seconds, actor, tell)
    finally:
        engine.dispose()


def _run(
    session: Session,
    settings: Settings,
    place: Path,
    tag: str,
    workers: int,
    number: int,
    seconds: int,
    actor: Actor,
    tell: Callable[[str], None],
) -> Report:
    journal = place / "journal"
    journal.touch()
    with _jobs(session, actor, tag, number, journal) as ids, _crew(settings, place, tag, workers) as crew:
        tell(f"{workers} workers start")
        crew.wait_until_ready(session)
        start = _begin(session, ids, seconds)
        tell(f"{number} jobs run every second for {seconds} s")
        _wait_for_the_end(session, ids, crew, seconds)
        statistics = crew.stop()
        rows = _ledger(session, ids)
        return Report(
            workers=workers,
            seconds=seconds,
            jobs=number,
            problems=crew.problems,
            **compare(_expected(ids, start, seconds), rows, journal.read_text().splitlines()),
            **_contention(statistics),
            **_shares(rows, crew.names(session)),
        )


# -- the jobs ------------------------------------------------------------------------------------------------


@contextmanager
def _jobs(session: Session, actor: Actor, tag: str, number: int, journal: Path) -> Iterator[list[int]]:
    manager = CronJobManager(session, actor)
    ids: list[int] = []
    try:
        for one in range(1, number + 1):
            made = manager.create_job(
                name=f"{tag} {one}",
                description="Made by the stress command, which deletes it in the end",
                code=CODE,
                parameters={"journal": str(journal)},
                schedule_type="interval",
                interval_seconds=1,
                worker_tag=tag,
                # Each slot is to run once, however late, and nothing is to be skipped or tried again.
                misfire_policy="run_all",
                overlap_policy="allow",
                max_retries=0,
                notify_on_failure=False,
                notify_on_dead_letter=False,
                enabled=False,
            )
            ids.append(made.id)
        yield ids
    finally:
        for job_id in ids:
            with suppress(NotFound):  # somebody else has deleted it
                manager.delete(job_id)
        _forget(session, ids)


@transactional
def _begin(session: Session, ids: Sequence[int], seconds: int) -> datetime:
    """Enable the jobs so that all have the same slots, which is where workers meet; returns the first slot."""
    start = db.now(session) + LEAD
    session.execute(
        sa.update(JOB)
        .where(JOB.c.id.in_(list(ids)))
        .values(
            enabled=True,
            schedule_anchor=start,
            next_run_time=start,
            ends_at=start + timedelta(seconds=seconds - 1),
        )
    )
    return start


def _expected(ids: Sequence[int], start: datetime, seconds: int) -> set[tuple[int, datetime]]:
    return {(job_id, start + timedelta(seconds=second)) for job_id in ids for second in range(seconds)}


def _wait_for_the_end(session: Session, ids: Sequence[int], crew: _Crew, seconds: int) -> None:
    """Until every job has had its last slot and nothing is pending or running, or time is up."""
    deadline = time.monotonic() + LEAD.total_seconds() + seconds + TAIL_SECONDS
    unfinished = sa.or_(
        sa.exists().where(JOB.c.id.in_(list(ids)), JOB.c.next_run_time.is_not(None)),
        sa.exists().where(RUN.c.cron_job.in_(list(ids)), RUN.c.status.in_(sorted(ACTIVE))),
    )
    while time.monotonic() < deadline and crew.lives():
        busy = session.scalar(sa.select(unfinished))
        session.rollback()
        if not busy:
            return
        time.sleep(0.2)


def _ledger(session: Session, ids: Sequence[int]) -> Sequence[Any]:
    session.rollback()
    columns = ("id", "cron_job", "scheduled_time", "status", "due_time", "started_at", "locked_by", "error")
    return session.execute(
        sa.select(*(RUN.c[name] for name in columns)).where(RUN.c.cron_job.in_(list(ids))).order_by(RUN.c.id)
    ).all()


def _forget(session: Session, ids: Sequence[int]) -> None:
    """Remove the history of deleted jobs, in small transactions: other workers are at work."""
    while _forget_some(session, ids):
        pass


@transactional
def _forget_some(session: Session, ids: Sequence[int]) -> int:
    found = session.scalars(
        sa.select(CronJobExecution.id).where(CronJobExecution.cron_job.in_(list(ids))).limit(BATCH)
    ).all()
    session.execute(sa.delete(CronJobOutput).where(CronJobOutput.execution.in_(found)))
    session.execute(sa.delete(CronJobExecution).where(CronJobExecution.id.in_(found)))
    if not found:
        session.execute(sa.delete(CronJobDailyStat).where(CronJobDailyStat.cron_job.in_(list(ids))))
    return len(found)


# -- the workers ---------------------------------------------------------------------------------------------


@contextmanager
def _crew(settings: Settings, place: Path, tag: str, number: int) -> Iterator[_Crew]:
    crew = _Crew(settings, place, tag, number)
    try:
        yield crew
    finally:
        crew.end()


class _Crew:
    """Worker processes of our own."""

    def __init__(self, settings: Settings, place: Path, tag: str, number: int) -> None:
        self.problems: list[str] = []
        self._tag = tag
        self._logs = [place / f"worker-{one}.log" for one in range(number)]
        command = [*WORKER, "--concurrency", str(CONCURRENCY), "--tags", tag]
        self._processes = [
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(settings),
                stdout=subprocess.PIPE,
                stderr=log.open("wb"),
                text=True,
            )
            for log in self._logs
        ]

    def wait_until_ready(self, session: Session) -> None:
        """Until all are in the registry, or one has ended, or time is up."""
        deadline = time.monotonic() + READY_SECONDS
        while self.lives() and len(self.names(session)) < len(self._processes):
            if time.monotonic() > deadline:
                self.problems.append(f"some workers were not ready after {READY_SECONDS:g} s")
                return
            time.sleep(0.1)

    def lives(self) -> bool:
        """Whether none has ended."""
        return all(process.poll() is None for process in self._processes)

    def names(self, session: Session) -> list[str]:
        """The ids that they have in the registry."""
        session.rollback()
        query = sa.select(CronWorkerRecord.worker_id).where(CronWorkerRecord.tags == self._tag)
        return list(session.scalars(query.order_by(CronWorkerRecord.worker_id)))

    def stop(self) -> list[dict[str, Any]]:
        """Tell all to stop; returns the statistics of those that ended well."""
        for process in self._processes:
            process.terminate()
        return [
            statistics
            for process, log in zip(self._processes, self._logs, strict=True)
            if (statistics := self._ending(process, log)) is not None
        ]

    def _ending(self, process: subprocess.Popen[str], log: Path) -> dict[str, Any] | None:
        try:
            output, _ = process.communicate(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.problems.append(f"worker {process.pid} did not stop within {STOP_SECONDS:g} s")
            return None
        if process.returncode != 0:
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            self.problems.append(
                f"worker {process.pid} ended with status {process.returncode}: {''.join(last)}"
            )
            return None
        statistics: dict[str, Any] = json.loads(output.splitlines()[-1])
        return statistics

    def end(self) -> None:
        """Leave none behind."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.communicate()


# -- what it came to -----------------------------------------------------------------------------------------


def compare(
    expected: Collection[tuple[int, datetime]], rows: Sequence[Any], lines: Sequence[str]
) -> dict[str, Any]:
    """Hold the slots (job, instant) that there should have been, the ledger and the journal against each other.

    Returns `slots`, `ran`, `completed`, and in words what was `doubled` or `lost`.
    """
    ran = Counter(int(line.split()[0]) for line in lines)
    by_slot: Mapping[tuple[int, datetime], list[Any]] = defaultdict(list)
    for row in rows:
        by_slot[row.cron_job, row.scheduled_time].append(row)
    doubled = [f"execution {execution} ran {times} times" for execution, times in ran.items() if times > 1]
    lost = [
        f"job {job_id}, slot {slot.isoformat()}: not in the ledger"
        for job_id, slot in sorted(expected - by_slot.keys())
    ]
    for (job_id, slot), of_slot in by_slot.items():
        name = f"job {job_id}, slot {slot.isoformat()}"
        if (job_id, slot) not in expected:
            doubled.append(f"{name}: nobody asked for it")
        elif len(of_slot) > 1:
            doubled.append(f"{name}: executions {', '.join(str(row.id) for row in of_slot)}")
        lost += [f"{name}: {trouble}" for row in of_slot if (trouble := _trouble(row, ran))]
    known = {row.id for row in rows}
    doubled += [
        f"execution {execution} ran and is not in the ledger" for execution in sorted(ran.keys() - known)
    ]
    return {
        "slots": len(expected),
        "ran": ran.total(),
        "completed": sum(row.status == Status.COMPLETED for row in rows),
        "doubled": doubled,
        "lost": lost,
    }


def _trouble(row: Any, ran: Counter[int]) -> str | None:
    if row.status != Status.COMPLETED:
        return f"execution {row.id} is {row.status}" + (f": {row.error}" if row.error else "")
    return None if ran[row.id] else f"execution {row.id} is completed and never ran"


def _contention(statistics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    acquired = sum(one["locks_acquired"] for one in statistics)
    missed = sum(one["locks_missed"] for one in statistics)
    rate = round(100 * missed / (acquired + missed), 1) if acquired + missed else None
    return {"locks_acquired": acquired, "locks_missed": missed, "contention_rate": rate}


def _shares(rows: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    """Who ran how much, and how late."""
    runs = Counter(dict.fromkeys(names, 0))
    runs.update(row.locked_by for row in rows if row.locked_by)
    late = sorted(1000 * (row.started_at - row.due_time).total_seconds() for row in rows if row.started_at)
    least = min(runs.values(), default=0)
    return {
        "by_worker": dict(runs.most_common()),
        "spread": round(max(runs.values()) / least, 2) if least else None,
        "lateness_ms": {
            f"p{share}": round(late[min(len(late) - 1, len(late) * share // 100)], 1)
            for share in (50, 95, 99)
            if late
        },
    }

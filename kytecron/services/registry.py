"""Workers known: each reports itself, and says which others of its machine are gone."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from .. import VERSION as VERSION  # views and fronts read it here
from ..config import Settings
from ..core.schedule import TZDATA_VERSION, tzdata_order
from ..core.workers import LIVING, WorkerState, state_of
from ..store import db, queries
from ..store.db import transactional
from ..store.models import CronWorkerRecord

log = logging.getLogger(__name__)

WORKER: Any = CronWorkerRecord.__table__
OLDER_LEASE = 60.0
"""Seconds; what workers of versions that do not report their lease had by default."""
_IDENTITY = tuple(WORKER.c[name] for name in ("worker_id", "host", "boot_id", "pid", "process_started"))
"""What tells one process from another: columns that every version of the table has."""


@dataclass(frozen=True, slots=True)
class Process:
    """One life of one process: no two share all four."""

    host: str
    boot_id: str
    pid: int
    started: str


def this_process() -> Process:
    """The process that asks."""
    return Process(socket.gethostname()[:255], _boot_id(), os.getpid(), _start_time(os.getpid()) or "")


@lru_cache(maxsize=1)
def _boot_id() -> str:
    """The machine's boot and the PID namespace: two containers on one machine cannot judge each other's processes."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    if not boot.exists():
        return ""
    return f"{boot.read_text().strip()}:{namespace.stat().st_ino}"


def _start_time(pid: int) -> str | None:
    """The kernel's start time of a process in clock ticks since boot; None when it is gone.

    Raises OSError where that cannot be seen: whoever has no descriptor left must not take others for gone.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in ("Z", "X") else fields[19]  # a zombie runs no more


@dataclass(frozen=True, slots=True)
class Trouble:
    """What keeps a worker from starting runs, in words for people."""

    text: str
    jobs: list[int] | None
    """The jobs that it keeps from starting; None: all."""


def hinders(worker: CronWorkerRecord, job_id: int) -> bool:
    """Whether a worker's trouble keeps it from starting runs of a job."""
    return worker.trouble is not None and (worker.trouble_jobs is None or job_id in worker.trouble_jobs)


@transactional
def report(
    session: Session,
    worker_id: str,
    settings: Settings,
    *,
    running: int,
    draining: bool,
    clock_skew_ms: float,
    statistics: dict[str, Any],
    trouble: Trouble | None = None,
) -> None:
    """Say that a worker is alive, and how it is."""
    now = db.now(session)
    record = session.get(CronWorkerRecord, worker_id)
    if record is None:
        process = this_process()
        record = CronWorkerRecord(
            worker_id=worker_id,
            host=process.host,
            boot_id=process.boot_id,
            pid=process.pid,
            process_started=process.started,
            version=VERSION,
            tags=_joined(settings.tags),
            slots=settings.concurrency,
            tzdata=TZDATA_VERSION,
            lease_seconds=settings.lease_seconds,
            renew_seconds=settings.renew_seconds,
            started_at=now,
        )
        session.add(record)
    record.last_seen_at = now
    record.gone_at = None  # whoever took it for gone was wrong
    record.running = running
    record.draining = draining
    record.clock_skew_ms = clock_skew_ms
    record.statistics = statistics
    record.trouble = trouble.text[:500] if trouble else None
    record.trouble_jobs = trouble.jobs if trouble else None
    if not trouble:
        record.trouble_since = None
    elif record.trouble_since is None:
        record.trouble_since = now


@transactional
def sign_off(session: Session, worker_id: str, statistics: dict[str, Any]) -> None:
    """Say that a worker has ended."""
    now = db.now(session)
    session.execute(
        sa.update(CronWorkerRecord)
        .where(CronWorkerRecord.worker_id == worker_id)
        .values(last_seen_at=now, stopped_at=now, running=0, statistics=statistics)
    )


class Known(NamedTuple):
    """A worker as it last reported, and its state."""

    worker: CronWorkerRecord
    state: WorkerState

    @property
    def living(self) -> bool:
        """Whether it is alive, draining or not."""
        return self.state in LIVING


def known(session: Session, now: datetime, since: datetime | None = None) -> list[Known]:
    """Return workers that reported since then (all: None), those that run first, then the last seen."""
    return _with_states(queries.workers(session, since), now)


def living(session: Session, now: datetime) -> list[Known]:
    """Return the workers that are alive, those that drain too, the last seen first."""
    return [one for one in _with_states(queries.unended_workers(session), now) if one.living]


def working(session: Session, now: datetime) -> list[CronWorkerRecord]:
    """Return the workers that are alive and start runs, the last seen first."""
    return [one.worker for one in living(session, now) if one.state is WorkerState.ALIVE]


def _with_states(workers: Sequence[CronWorkerRecord], now: datetime) -> list[Known]:
    """Judge workers by what they reported and, those of this machine, by whether their processes are there."""
    found = [Known(worker, state_of(worker, now)) for worker in workers]
    gone = _gone([one.worker for one in found if one.living])
    return [one._replace(state=WorkerState.GONE) if one.worker.worker_id in gone else one for one in found]


def ended_unsaid(session: Session) -> set[str]:
    """Return the ids of the workers of this machine that have ended without saying so and nobody has noticed."""
    return _gone(queries.unended_workers(session))


def mark_gone(session: Session, heard_before: Mapping[str, datetime], now: datetime) -> None:
    """Within a transaction: workers are known to be gone, unless one has reported since the instant it maps to."""
    for worker_id, instant in sorted(heard_before.items()):
        session.execute(
            sa.update(CronWorkerRecord)
            .where(
                CronWorkerRecord.worker_id == worker_id,
                CronWorkerRecord.stopped_at.is_(None),
                CronWorkerRecord.gone_at.is_(None),
                CronWorkerRecord.last_seen_at <= instant,
            )
            .values(gone_at=now)
        )


def crew(session: Session, settings: Settings) -> list[str]:
    """Ids of the living workers that take the same work as one with `settings`, in the same order for all."""
    tags = _joined(settings.tags)
    return sorted(one.worker_id for one in working(session, db.now(session)) if one.tags == tags)


def newest_tzdata_alive(session: Session) -> str:
    """The newest tzdata of the living workers that plan slots; empty where there is none."""
    return newest_tzdata(working(session, db.now(session)))


def newest_tzdata(workers: Iterable[CronWorkerRecord]) -> str:
    """The newest tzdata that one of `workers` has; empty where there is none."""
    return max((worker.tzdata for worker in workers), key=tzdata_order, default="")


class Tzdata(NamedTuple):
    """What other workers, living and past, have."""

    newest: str
    """Of those alive."""
    older: bool
    """A living one has an older one than this process."""
    planned_by_older: bool
    """Older ones may have planned slots since a worker with this one's, or a newer one, was last seen."""


def tzdata_elsewhere(session: Session, worker_id: str) -> Tzdata:
    """What a worker has to know of the others before it plans slots."""
    others = [one for one in known(session, db.now(session)) if one.worker.worker_id != worker_id]
    alive = [one.worker for one in others if one.state is WorkerState.ALIVE]
    here = tzdata_order(TZDATA_VERSION)
    older = [one.worker for one in others if tzdata_order(one.worker.tzdata) < here]
    equal = [one.worker for one in others if tzdata_order(one.worker.tzdata) >= here]
    kept_from_planning = any(one in alive for one in equal)
    equal_seen = max((one.last_seen_at for one in equal), default=None)
    return Tzdata(
        newest=newest_tzdata(alive),
        older=any(one in alive for one in older),
        planned_by_older=not kept_from_planning
        and any(equal_seen is None or one.last_seen_at > equal_seen for one in older),
    )


def _joined(tags: Collection[str]) -> str:
    return ",".join(sorted(tags))


def gone(session: Session, worker_ids: Collection[str]) -> set[str]:
    """Those of `worker_ids` that ran on this machine and of which no process is left; none where that cannot be seen.

    The fork server and the job processes bear the worker's id in their command lines. Where the worker was killed
    and its fork server has not got round to killing the jobs yet, they still run.
    """
    if not worker_ids:
        return set()
    rows = session.execute(sa.select(*_IDENTITY).where(WORKER.c.worker_id.in_(list(worker_ids))))
    return _gone(rows.all())


def may_be_alive(session: Session, worker_id: str) -> bool:
    """Whether a worker may still run what it holds: it reported before it claimed, and nobody knows of its end."""
    record = session.get(CronWorkerRecord, worker_id, populate_existing=True)
    return record is not None and record.stopped_at is None and not gone(session, [worker_id])


def _gone(rows: Sequence[Any]) -> set[str]:
    try:
        return _ended(rows)
    except OSError as error:
        log.debug("whether other workers are gone cannot be seen: %s", error.strerror)
        return set()


def _ended(rows: Sequence[Any]) -> set[str]:
    here = this_process()
    if not here.boot_id or not _sees_every_process():
        return set()
    ended = {
        row.worker_id
        for row in rows
        if (row.host, row.boot_id) == (here.host, here.boot_id)
        and _start_time(row.pid) != row.process_started
    }
    return ended - _named_in_command_lines(ended) if ended else ended


def still_alive(connection: sa.Connection, settings: Settings) -> Sequence[Any]:
    """Workers that have reported lately and are not known to be gone, by name, on a schema of whatever version.

    Rows with worker_id, version, host, pid and last_seen_at. None where there is no such table yet.
    """
    if not sa.inspect(connection).has_table(WORKER.name):
        return []
    present = {column["name"] for column in sa.inspect(connection).get_columns(WORKER.name)}
    lease = sa.literal(max(settings.lease_seconds, OLDER_LEASE)).label("lease_seconds")
    query = sa.select(
        *_IDENTITY,
        *(WORKER.c[name] for name in ("version", "last_seen_at", "stopped_at", "draining")),
        WORKER.c.gone_at if "gone_at" in present else sa.null().label("gone_at"),
        WORKER.c.lease_seconds if "lease_seconds" in present else lease,
    ).where(WORKER.c.stopped_at.is_(None))
    now = db.now(connection)
    rows = connection.execute(query.order_by(WORKER.c.worker_id)).all()
    alive = [row for row in rows if state_of(row, now) in LIVING]
    gone = _gone(alive)
    return [row for row in alive if row.worker_id not in gone]


def _sees_every_process() -> bool:
    """Whether /proc hides nobody: under `hidepid`, or systemd's ProtectProc, other workers look as if they were gone.

    Process 1 is always there.
    """
    return os.access("/proc/1/stat", os.R_OK)


def _named_in_command_lines(names: Collection[str]) -> set[str]:
    found: set[str] = set()
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        found.update(name for name in names if name.encode() in arguments)
    return found

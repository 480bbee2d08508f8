"""Runs: what became of one, why, what it took, and who started it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..core import words
from ..core.states import FINAL, Origin
from ..store.models import CronJobExecution
from ..store.queries import ExecutionRow

ORIGINS: dict[str, str] = {
    Origin.SCHEDULE: "schedule",
    Origin.MANUAL: "a person",
    Origin.TRIGGER: "parents",
    Origin.BACKFILL: "backfill",
    Origin.RERUN: "a person, again",
}
BY_SOMEBODY = frozenset({Origin.MANUAL, Origin.RERUN})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """A run as it is told of in lists and on its page. Texts are None where there is nothing to tell."""

    id: int
    job_id: int
    job_name: str
    """Empty for a job that is not there any more."""
    status: str
    label: str
    attempt: int
    """Of its slot: the first is 1."""
    retry: str | None
    cause: str | None
    """Why it ended so, or what it waits for."""
    scheduled_time: datetime
    slots: str | None
    """`1,234 slots`, of a row that stands for many."""
    slots_until: datetime | None
    due_time: datetime | None
    started_at: datetime | None
    completed_at: datetime | None
    took: str | None
    version: int | None
    version_text: str
    started_by: str
    """In a word or a name."""
    origin: str
    """In full: who or what, and the note they left."""
    worker: str | None
    progress_percent: float | None
    progress_note: str
    progress: str | None
    memory: str | None
    cpu: str | None
    exit_code: int | None
    output: str | None


def views(rows: Iterable[ExecutionRow]) -> list[RunView]:
    """Return what is told of runs, in their order."""
    return [view(row.execution, row.job_name) for row in rows]


def view(run: CronJobExecution, job_name: str) -> RunView:
    """Return what is told of a run."""
    return RunView(
        id=run.id,
        job_id=run.cron_job,
        job_name=job_name,
        status=run.status,
        label=words.status(run.status),
        attempt=run.retry_count + 1,
        retry=f"retry {run.retry_count}" if run.is_retry else None,
        cause=cause(run),
        scheduled_time=run.scheduled_time,
        slots=words.count(run.slots_count, "slot") if run.slots_count > 1 else None,
        slots_until=run.slots_until,
        due_time=run.due_time,
        started_at=run.started_at,
        completed_at=run.completed_at,
        took=_duration(run.duration_ms),
        version=run.version,
        version_text=_version(run),
        started_by=_started_by(run),
        origin=_origin(run),
        worker=run.locked_by,
        progress_percent=run.progress_percent,
        progress_note=run.progress_note or "",
        progress=_progress(run),
        memory=None if run.memory_peak_mb is None else f"{run.memory_peak_mb:.1f} MiB at its peak",
        cpu=_duration(run.cpu_ms),
        exit_code=run.exit_code,
        output=words.size(run.output_bytes) if run.output_bytes else None,
    )


def cause(run: CronJobExecution) -> str | None:
    """Return why a run ended so, or what it waits for."""
    if run.error or run.skipped_reason:
        return run.error or run.skipped_reason
    return f"waits for {run.waiting_for}" if run.waiting_for else None


@dataclass(frozen=True, slots=True, kw_only=True)
class LockView:
    """A run under the lease of a worker."""

    execution_id: int
    job_id: int
    job_name: str
    locked_by: str | None
    locked_at: datetime | None
    locked_until: datetime | None
    stale: bool
    """The lease has ended: the worker vanished."""
    started_at: datetime | None
    asked_to_stop: bool

    def for_programs(self) -> dict[str, Any]:
        """Return what programs are told, by the names that the JSON API has for it."""
        return {name: getattr(self, name) for name in LOCK}


LOCK = ("execution_id", "job_id", "job_name", "locked_by", "locked_at", "locked_until", "stale")


def locks(rows: Iterable[ExecutionRow], now: datetime) -> list[LockView]:
    """Return what is told of runs that workers hold, in their order."""
    return [_lock(row.execution, row.job_name, now) for row in rows]


def _lock(run: CronJobExecution, job_name: str, now: datetime) -> LockView:
    return LockView(
        execution_id=run.id,
        job_id=run.cron_job,
        job_name=job_name,
        locked_by=run.locked_by,
        locked_at=run.locked_at,
        locked_until=run.locked_until,
        stale=run.locked_until is not None and run.locked_until < now,
        started_at=run.started_at,
        asked_to_stop=run.release_reason is not None,
    )


def _version(run: CronJobExecution) -> str:
    if run.version:
        return str(run.version)
    if run.status in FINAL:
        return "none: it did not start"
    return (
        f"{run.requested_version}, as asked for"
        if run.requested_version
        else "the current one when it starts"
    )


def _started_by(run: CronJobExecution) -> str:
    return run.triggered_by if run.triggered_by and run.origin in BY_SOMEBODY else _origin_word(run)


def _origin(run: CronJobExecution) -> str:
    by = f" ({run.triggered_by})" if run.triggered_by else ""
    return f"{_origin_word(run)}{by}{f': {run.note}' if run.note else ''}"


def _origin_word(run: CronJobExecution) -> str:
    return ORIGINS.get(run.origin, run.origin)


def _progress(run: CronJobExecution) -> str | None:
    if run.progress_percent is None:
        return None
    return f"{run.progress_percent:.0f}% {run.progress_note or ''}".rstrip()


def _duration(milliseconds: int | None) -> str | None:
    return None if milliseconds is None else words.duration(milliseconds)

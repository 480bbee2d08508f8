"""Runs: what became of one, why, what it took, who started it, and what may be done about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from ..core import words
from ..core.states import ACTIVE, FINAL, UNSUCCESSFUL, Origin, Status
from ..core.workers import lease_has_ended
from ..store.models import CronJobExecution
from ..store.queries import ExecutionDetail, ExecutionRow
from . import jobs
from .jobs import JobView
from .programs import names

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

    @property
    def running(self) -> bool:
        """Whether it runs now."""
        return self.status == Status.RUNNING

    @property
    def failed(self) -> bool:
        """Whether it ended badly; one that was cancelled or skipped did not."""
        return self.status in UNSUCCESSFUL


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


EXECUTION = (
    *("id", "status", "origin", "scheduled_time", "due_time", "retry_count", "is_retry", "parent_execution"),
    *("rerun", "priority", "worker_tag", "waiting_for", "waiting_until", "parents_used", "version"),
    *("parameters", "note", "triggered_by", "cancel_reason", "release_reason", "given_back", "interruptions"),
    *("locked_by", "locked_at", "locked_until", "started_at", "completed_at", "duration_ms", "cpu_ms"),
    *("memory_peak_mb", "exit_code", "progress_percent", "progress_note", "output_bytes", "error"),
    *("skipped_reason", "slots_until", "slots_count"),
)
"""What programs are told of a run's row as it is."""
ATTEMPT = ("id", "retry_count", "status", "due_time", "started_at", "completed_at", "error")


def for_programs(run: CronJobExecution, job_name: str) -> dict[str, Any]:
    """Return a run without what it printed, by the names that the JSON API has for it."""
    return {"job_id": run.cron_job, "job_name": job_name, **{name: getattr(run, name) for name in EXECUTION}}


def detail_for_programs(found: ExecutionDetail) -> dict[str, Any]:
    """Return a run with all it left but its output, and every attempt of its chain."""
    return for_programs(found.execution, found.job.name if found.job else "") | {
        "stack_trace": found.execution.stack_trace,
        "result": found.execution.result,
        "attempts": [{name: getattr(row, name) for name in ATTEMPT} for row in found.attempts],
    }


class Phase(StrEnum):
    """Where a run stands."""

    PLANNED = "planned"
    """Its time has not come."""
    DUE = "due"
    """It waits for a worker."""
    WAITING = "waiting"
    """It waits for something other than time."""
    RUNNING = "running"
    STOPPING = "stopping"
    """It runs, and was asked to stop."""
    ENDED = "ended"


class Moment(NamedTuple):
    """Something that happened to a run, or is to happen."""

    label: str
    at: datetime
    tone: str
    """A status, or `` for what has no colour: slots."""
    worker: str | None = None


class Attempt(NamedTuple):
    """One attempt of a chain."""

    id: int
    number: int
    """Of its slot: the first is 1."""
    status: str
    label: str
    due_time: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    error: str | None

    @property
    def waits(self) -> bool:
        """Whether it has not started."""
        return self.status == Status.PENDING


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDetail(RunView):
    """A run with all that is told of it on its page."""

    job: JobView | None
    """None where the job's row is gone; a deleted job has one."""
    phase: Phase
    since: datetime | None
    """When it starts (planned), has been due, or started."""
    timeline: tuple[Moment, ...]
    attempts: tuple[Attempt, ...]
    refreshes: bool
    """It goes on, or another attempt of its slot is to come."""
    lease_until: datetime | None
    """Of one that runs."""
    may_cancel: bool
    cancel_means: str
    """What cancelling it does, as a sentence."""
    may_retry_now: bool
    """It is a retry that waits for its time, or such a one follows it."""
    may_run_again: bool
    other_version: int | None
    """The version that ran, where the job has another one now."""
    stack_trace: str | None
    parameters: dict[str, Any] | None
    result: Any
    parents_used: tuple[int, ...]

    @property
    def active(self) -> bool:
        """Whether it goes on."""
        return self.phase is not Phase.ENDED


def detail(found: ExecutionDetail, now: datetime) -> RunDetail:
    """Return all that is told of a run."""
    run, job = found.execution, None if found.job is None else jobs.view(found.job)
    base = view(run, job.name if job else "")
    phase = phase_of(run, now)
    return RunDetail(
        **{one.name: getattr(base, one.name) for one in fields(RunView)},
        job=job,
        phase=phase,
        since=run.due_time if phase in (Phase.PLANNED, Phase.DUE) else run.started_at,
        timeline=tuple(_timeline(run, base)),
        attempts=tuple(map(_attempt, found.attempts)),
        refreshes=run.status in ACTIVE or any(one.status in ACTIVE for one in found.attempts),
        lease_until=run.locked_until if run.status == Status.RUNNING else None,
        may_cancel=run.status in ACTIVE,
        cancel_means=_cancel_means(run),
        may_retry_now=any(_retry_waits(one, run.id) for one in found.attempts),
        may_run_again=_may_run_again(run, job),
        other_version=run.version if job and run.version != job.current_version else None,
        stack_trace=run.stack_trace,
        parameters=run.parameters,
        result=run.result,
        parents_used=tuple(run.parents_used or ()),
    )


def phase_of(run: CronJobExecution, now: datetime) -> Phase:
    """Return where a run stands at `now`."""
    if run.status == Status.RUNNING:
        return Phase.STOPPING if is_asked_to_stop(run) else Phase.RUNNING
    if run.status != Status.PENDING:
        return Phase.ENDED
    if run.due_time is None:
        return Phase.WAITING
    return Phase.PLANNED if run.due_time > now else Phase.DUE


def is_asked_to_stop(run: CronJobExecution) -> bool:
    """Return whether the worker of a running one was asked to stop it, to be cancelled or to be given up as lost."""
    return run.cancel_reason is not None or run.release_reason is not None


def _timeline(run: CronJobExecution, said: RunView) -> Iterator[Moment]:
    yield Moment("Slot", run.scheduled_time, "")
    if said.slots and run.slots_until:
        yield Moment(f"Last of {said.slots}", run.slots_until, "")
    if run.due_time and run.due_time != run.scheduled_time:
        yield Moment("Retry due" if run.is_retry else "Due", run.due_time, Status.PENDING)
    if run.started_at:
        yield Moment("Started", run.started_at, Status.RUNNING, run.locked_by)
    if run.completed_at:
        yield Moment(said.label, run.completed_at, run.status)


def _attempt(run: CronJobExecution) -> Attempt:
    return Attempt(
        run.id,
        run.retry_count + 1,
        run.status,
        words.status(run.status),
        run.due_time,
        run.started_at,
        run.completed_at,
        run.error,
    )


def _retry_waits(attempt: CronJobExecution, run_id: int) -> bool:
    """Whether `attempt` is what `lifecycle.retry_now` of this run starts."""
    waits = attempt.status == Status.PENDING and attempt.is_retry and attempt.due_time is not None
    return waits and run_id in (attempt.id, attempt.parent_execution)


def _may_run_again(run: CronJobExecution, job: JobView | None) -> bool:
    runs = job is not None and job.standing.word == "enabled" and not job.deleted
    return runs and run.status in FINAL and run.slots_count == 1


def _cancel_means(run: CronJobExecution) -> str:
    if run.status == Status.RUNNING:
        return "The job gets SIGTERM, and SIGKILL if it is still running after 10 s."
    return "It will not start."


def after_cancel(run: CronJobExecution) -> str:
    """Return what has become of a run that somebody cancelled."""
    if run.status == Status.RUNNING:
        return f"Execution {run.id} is being stopped."
    return f"Execution {run.id} is {run.status}."


def after_release(run: CronJobExecution) -> str:
    """Return what has become of a run that somebody took from its worker."""
    if run.status == Status.RUNNING:
        return f"Worker {run.locked_by} was asked to stop execution {run.id}, which then ends as lost."
    return f"Execution {run.id} was taken from its worker and is {run.status}."


def ending(run: CronJobExecution) -> str:
    """Return how a run ended, in one line."""
    took = f" after {words.duration(run.duration_ms)}" if run.duration_ms is not None else ""
    why = cause(run)
    return f"Execution {run.id} {run.status}{took}" + (f": {why}" if why else "")


class FailedChains(NamedTuple):
    """The chains of one job that failed lately."""

    newest: RunView
    times: int


def by_job(rows: Sequence[ExecutionRow]) -> list[FailedChains]:
    """Return the newest of each job's rows, the newest first, and how many it has."""
    newest: dict[int, ExecutionRow] = {}
    for row in rows:
        newest.setdefault(row.execution.cron_job, row)
    times = Counter(row.execution.cron_job for row in rows)
    return [FailedChains(view(row.execution, row.job_name), times[job_id]) for job_id, row in newest.items()]


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


LOCK = names(LockView, "started_at", "asked_to_stop")


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
        stale=lease_has_ended(run.locked_until, now),
        started_at=run.started_at,
        asked_to_stop=is_asked_to_stop(run),
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

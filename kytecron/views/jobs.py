"""Jobs: where one stands, how its slots have come out, when it runs next."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Literal, NamedTuple, assert_never

from sqlalchemy.orm import Session

from ..core import words
from ..core.choices import DependencyMode, ScheduleType
from ..core.states import Status
from ..services import upcoming
from ..services.jobs import configuration_of
from ..store import figures, queries
from ..store.figures import Figures
from ..store.models import CronJob
from .facts import Facts, facts

STANDING = (
    *("id", "disabled_reason", "next_run_time", "in_dead_letter_queue", "dead_letter_reason"),
    *("dead_letter_since", "consecutive_failures", "skipped_in_a_row", "failing_since"),
    "attempts_until",
    *("current_version", "revision", "created_at", "created_by", "updated_at", "updated_by"),
)
"""What programs are told of a job's row as it is, beside its configuration."""


class Standing(NamedTuple):
    """Whether a job runs by itself, and why not."""

    word: Literal["enabled", "disabled", "dead letter"]
    reason: str | None = None
    since: datetime | None = None
    """Of a dead letter."""

    @property
    def label(self) -> str:
        """As a label."""
        return self.word.capitalize()


class LastResult(NamedTuple):
    """What the last slots came to."""

    status: str | None
    """How the last run ended; `skipped` where slots were skipped and nothing has run; None where neither."""
    text: str
    """In words: `completed; 3 slots skipped since`."""
    note: str
    """What `text` says beside the status."""
    execution: int | None
    at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A job as it is told of in lists and at the head of its page."""

    id: int
    name: str
    tags: tuple[str, ...]
    schedule: str
    """In words."""
    schedule_briefly: str
    standing: Standing
    last: LastResult
    rate: float | None
    """Of its chains those that completed, in per cent; None before the first."""
    rate_of: str
    """What the rate is of, and what stands beside it."""
    slots_text: str
    """The same for a column: `17 (51 attempts, 17 recovered)`."""
    recent_results: str
    """A letter each for the last 30 chains that ran."""
    next_run_time: datetime | None
    not_planned: str
    """What it takes for a next run where none is planned: `when enabled`."""
    failing: str
    """How many chains in a row have failed, up to the last one: `2 failures in a row`; empty for none."""
    current_version: int | None
    deleted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class JobDetail(JobView):
    """A job with all that is told of it on its page."""

    description: str
    parameters: dict[str, Any] | None
    facts: tuple[Facts, ...]
    """What it is set to."""
    parents: tuple[JobView, ...]
    parents_mean: str
    """What it does about its parents, as a sentence that a list of them follows."""
    children: tuple[JobView, ...]
    counted: str
    """How its slots were counted before an upgrade; empty where they always were."""
    created_at: datetime | None
    created_by: str | None
    updated_at: datetime | None
    updated_by: str | None


def next_run(job: CronJob, now: datetime) -> str:
    """A sentence on when a job runs next, for whoever has just changed it."""
    if job.in_dead_letter_queue:
        return "It is in the dead letter queue and runs again once it is recovered."
    if not job.enabled:
        return "It is disabled and will not run by itself."
    if job.next_run_time is None:
        return "It runs when somebody or another job starts it."
    wait = (job.next_run_time - now).total_seconds()
    when = f"in {words.in_words(wait)}" if wait >= 1 else "now"
    return f"It runs next {when}: {words.in_zone(job.next_run_time, job.timezone)}."


def view(job: CronJob) -> JobView:
    """Return what is told of a job."""
    schedule, summary = upcoming.schedule_in_words(job), figures.execution_summary(job)
    said = beside(summary)
    return JobView(
        id=job.id,
        name=job.name,
        tags=tuple(tags(job)),
        schedule=schedule,
        schedule_briefly="Only when triggered" if job.schedule_type == ScheduleType.MANUAL else schedule,
        standing=standing(job),
        last=last_result(job),
        rate=summary["success_rate"],
        rate_of=rate_of(summary),
        slots_text=f"{summary['total']} ({said})" if said else str(summary["total"]),
        recent_results=job.recent_results,
        next_run_time=job.next_run_time if job.enabled else None,
        not_planned=_not_planned(job),
        failing=_failing(job),
        current_version=job.current_version,
        deleted=bool(job.deleted_id),
    )


def views(rows: Iterable[CronJob]) -> list[JobView]:
    """Return what is told of jobs, in their order."""
    return [view(row) for row in rows]


def detail(session: Session, job: CronJob) -> JobDetail:
    """Return all that is told of a job."""
    base = view(job)
    parents = [session.get(CronJob, one) for one in queries.parents(session, [job.id])[job.id]]
    return JobDetail(
        **{one.name: getattr(base, one.name) for one in fields(JobView)},
        description=job.description,
        parameters=job.parameters,
        facts=facts(job),
        parents=tuple(views(parent for parent in parents if parent is not None)),
        parents_mean=_parents_mean(job),
        children=tuple(views(queries.children(session, job.id))),
        counted=_counted(job),
        created_at=job.created_at,
        created_by=job.created_by,
        updated_at=job.updated_at,
        updated_by=job.updated_by,
    )


def _failing(job: CronJob) -> str:
    number = job.consecutive_failures
    return f"{words.count(number, 'failure')} in a row" if number else ""


def _parents_mean(job: CronJob) -> str:
    match DependencyMode.of(job.dependency_mode):
        case DependencyMode.TRIGGER:
            return "Runs as soon as all of these have completed:"
        case DependencyMode.GATE:
            return "At its slots it waits for these, and is skipped if one has not completed:"
        case never:
            assert_never(never)


def _counted(job: CronJob) -> str:
    return f"in attempts up to {job.attempts_until}, in slots since" if job.attempts_until else ""


def tags(job: CronJob) -> list[str]:
    """Return a job's tags."""
    return [tag for tag in job.tags.split(",") if tag]


def standing(job: CronJob) -> Standing:
    """Return whether a job runs by itself."""
    if job.in_dead_letter_queue:
        return Standing("dead letter", job.dead_letter_reason, job.dead_letter_since)
    return Standing("enabled") if job.enabled else Standing("disabled", job.disabled_reason)


def last_result(job: CronJob) -> LastResult:
    """Return what a job's last slots came to, those that were skipped included."""
    skipped = job.skipped_in_a_row
    if job.last_execution is None or job.last_status is None:
        skipped = skipped or job.runs_skipped
        if not skipped:
            return LastResult(None, "never ran", "", None, None)
        note = f"{words.count(skipped, 'slot')}{' in a row' if skipped > 1 else ''}"
        return LastResult(Status.SKIPPED, f"skipped, {note}", note, None, None)
    again = job.last_status == Status.SKIPPED  # the run itself asked to be skipped, and is counted among them
    since = skipped - 1 if again and skipped else skipped
    note = f"{words.count(since, 'slot')} skipped since" if since else ""
    text = f"{job.last_status}; {note}" if note else job.last_status
    return LastResult(job.last_status, text, note, job.last_execution, job.last_run_at)


def rate_of(summary: Mapping[str, Any]) -> str:
    """Return what a job's success rate is of, and what stands beside it."""
    if summary["total"]:
        of = f"{words.count(summary['total'], 'slot')}, all time"
    else:
        of = "none has completed or failed yet" if summary["attempts"] else "never ran"
    return "; ".join(part for part in (of, beside(summary)) if part)


def beside(found: Figures | Mapping[str, Any]) -> str:
    """Return attempts, recovered chains and skipped slots, where a success rate is shown."""
    names = ("total", "attempts", "recovered", "skipped")
    if isinstance(found, Figures):
        return words.beside(*(getattr(found, name) for name in names))
    return words.beside(*(found[name] for name in names))


def counted_as(found: Figures) -> str:
    """Return what is to be said of figures that an earlier release counted."""
    return "each attempt is counted" if found.counted_as == "attempts" else ""


def _not_planned(job: CronJob) -> str:
    if job.in_dead_letter_queue:
        return "when recovered"
    if not job.enabled:
        return "when enabled"
    return "when triggered" if job.schedule_type == ScheduleType.MANUAL else "not planned yet"


class Slot(NamedTuple):
    """An instant that a schedule names."""

    at: datetime
    text: str
    """As a clock in the job's zone shows it, with the zone's short name."""
    offset: int
    """Minutes by which that clock is ahead of UTC."""
    utc: str
    """The time of day in UTC, with that name; empty where the other clock shows the same."""


def slots(found: Iterable[datetime], timezone: str) -> list[Slot]:
    """Return slots as they are told in a time zone; in UTC where there is no zone of that name."""
    return [_slot(at, timezone) for at in found]


def _slot(at: datetime, timezone: str) -> Slot:
    ahead = words.minutes_ahead(at, timezone)
    return Slot(at, words.in_zone(at, timezone), ahead, f"{words.clock(at)} UTC" if ahead else "")


class NextSlots(NamedTuple):
    """The next slots of a job, or why there are none, and what about its schedule may surprise."""

    slots: list[Slot]
    none: str
    """A sentence where there is no slot."""
    warnings: list[str]


def next_slots(session: Session, job: CronJob, number: int, now: datetime) -> NextSlots:
    """Return the next slots of a job: the list of `services.upcoming`, in words where it is empty."""
    found = upcoming.upcoming(session, job, number, now)
    return NextSlots(slots(found.slots, job.timezone), "" if found.slots else no_slots(job), found.warnings)


def no_slots(job: CronJob) -> str:
    """Return why a job has no next slot, as a sentence."""
    if job.in_dead_letter_queue:
        return "None until it is recovered."
    if not job.enabled:
        return "None while it is disabled."
    if job.schedule_type == ScheduleType.MANUAL:
        return "None. It runs when a person, a program or its parents start it."
    if upcoming.counts_from_completion(job):
        return "Known when the run that goes on has ended."
    return "None is planned yet."


def for_programs(job: CronJob, parents: Collection[int]) -> dict[str, Any]:
    """Return a job's configuration and where it stands, by the names that the JSON API has for it."""
    return {
        **configuration_of(job, list(parents)),
        "schedule": upcoming.schedule_in_words(job),
        "execution_summary": figures.execution_summary(job),
        **{name: getattr(job, name) for name in STANDING},
    }

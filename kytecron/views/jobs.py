"""Jobs: where one stands, how its slots have come out, when it runs next."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

from sqlalchemy.orm import Session

from ..core import words
from ..core.choices import ScheduleType
from ..core.schedule import in_words
from ..core.states import Status
from ..services import upcoming
from ..services.jobs import configuration_of
from ..store import figures
from ..store.figures import Figures
from ..store.models import CronJob

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


def next_run(job: CronJob, now: datetime) -> str:
    """A sentence on when a job runs next, for whoever has just changed it."""
    if job.in_dead_letter_queue:
        return "It is in the dead letter queue and runs again once it is recovered."
    if not job.enabled:
        return "It is disabled and will not run by itself."
    if job.next_run_time is None:
        return "It runs when somebody or another job starts it."
    wait = (job.next_run_time - now).total_seconds()
    when = f"in {in_words(wait)}" if wait >= 1 else "now"
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
    )


def tags(job: CronJob) -> list[str]:
    """Return a job's tags."""
    return [tag for tag in job.tags.split(",") if tag]


def standing(job: CronJob) -> Standing:
    """Return whether a job runs by itself."""
    if job.in_dead_letter_queue:
        return Standing("dead letter", job.dead_letter_reason)
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


class NextSlots(NamedTuple):
    """The next slots of a job, or why there are none, and what about its schedule may surprise."""

    slots: list[datetime]
    none: str
    """A sentence where there is no slot."""
    warnings: list[str]


def next_slots(session: Session, job: CronJob, number: int, now: datetime) -> NextSlots:
    """Return the next slots of a job: the list of `services.upcoming`, in words where it is empty."""
    found = upcoming.upcoming(session, job, number, now)
    return NextSlots(found.slots, "" if found.slots else _no_slots(job), found.warnings)


def _no_slots(job: CronJob) -> str:
    if job.in_dead_letter_queue:
        return "None until it is recovered."
    if not job.enabled:
        return "None while it is disabled."
    if job.schedule_type == ScheduleType.MANUAL:
        return "None: it runs when a person, a program or its parents start it."
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

"""When a job runs next, and what about its schedule may surprise: the same list wherever it is told."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ..core import preview
from ..core.errors import Invalid
from ..store import figures
from ..store.models import CronJob
from . import slots

USUAL_DAYS = 30
"""Runs of so many days say how long a job usually takes."""


@dataclass(frozen=True, slots=True)
class Upcoming:
    """The next slots of a job (UTC), the one it waits for first; none for a job that is disabled."""

    schedule: str
    timezone: str
    slots: list[datetime]
    warnings: list[str]


def upcoming(session: Session, job: Any, count: int, now: datetime) -> Upcoming:
    """What is to come of a job. Of a row, written by hand, that makes no schedule: what is wrong with it."""
    try:
        schedule = slots.schedule_of(job)
    except Invalid as invalid:
        return Upcoming(invalid.message, job.timezone, [], [invalid.message])
    return Upcoming(
        preview.describe(schedule), job.timezone, planned(job, count), warnings(session, job, now)
    )


def schedule_in_words(job: Any) -> str:
    """A job's schedule as a sentence; of a row that makes none, what is wrong with it."""
    try:
        return preview.describe(slots.schedule_of(job))
    except Invalid as invalid:
        return invalid.message


def counts_from_completion(job: Any) -> bool:
    """Whether a job's next slot is known only once its last run has ended."""
    return slots.counts_from_completion(job)


def planned(job: Any, count: int) -> list[datetime]:
    """The next `count` slots of a job, fewer where `max_runs` or the schedule end it before. Raises Invalid."""
    if not job.enabled or job.next_run_time is None:
        return []
    left = count if job.max_runs is None else min(count, job.max_runs - job.runs_scheduled)
    if slots.counts_from_completion(job):
        left = 1  # those after it depend on when it ends
    schedule = slots.schedule_of(job)
    following = preview.preview(schedule, job.next_run_time, left - 1, job.starts_at, job.ends_at)
    return [job.next_run_time, *following]


def warnings(session: Session, job: Any, now: datetime) -> list[str]:
    """What about the schedule of an enabled job may surprise its owner, each a sentence."""
    if not job.enabled:
        return []
    try:
        schedule = slots.schedule_of(job)
    except Invalid as invalid:
        return [invalid.message]
    usual = usual_seconds(session, job.id, now)
    return preview.warnings(schedule, now, usual, job.starts_at, job.ends_at)


def runs_scheduled(session: Session, job_id: int) -> int:
    """How many runs of a job `max_runs` counts; 0 of a job that does not exist."""
    return session.scalar(sa.select(CronJob.runs_scheduled).where(CronJob.id == job_id)) or 0


def usual_seconds(session: Session, job_id: int, now: datetime) -> float | None:
    """How long a run of a job usually takes: 95 of 100 took no longer. None where none has ended lately."""
    usual = figures.job_statistics(session, job_id, USUAL_DAYS, now.date()).total.p95_duration_ms
    return usual / 1000 if usual else None

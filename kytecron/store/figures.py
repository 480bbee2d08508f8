"""What is counted and added up: summaries, daily statistics, the numbers of the dashboard.

Everything here reads what was rolled up as runs settled, or the few rows that are active now; nothing counts
over history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ..core.choices import MessageStatus
from ..core.states import FINAL, UNSUCCESSFUL, Status
from ..core.statistics import merge, percentile, success_rate
from .dialects import Total
from .models import (
    ENABLED,
    FAILING,
    NOT_ENABLED,
    PENDING,
    RUNNING,
    SKIPPING,
    UNSENT,
    CronJob,
    CronJobDailyStat,
    CronJobExecution,
    CronOutbox,
    lease_ended,
)

JOB: Any = CronJob.__table__
RUN: Any = CronJobExecution.__table__
STAT: Any = CronJobDailyStat.__table__
MESSAGE: Any = CronOutbox.__table__

ENDINGS = tuple(str(status) for status in Status if status in FINAL)
FAILURES = tuple(str(status) for status in Status if status in UNSUCCESSFUL)
CountedAs = Literal["chains", "attempts"]
RETRIED = tuple(f"retried_{name}" for name in FAILURES)
"""Failures that another attempt followed: attempts without these are chains."""


def execution_summary(job: CronJob) -> dict[str, Any]:
    """A job's chains since it exists, by how they ended; attempts, recovered chains and skipped slots beside.

    Durations are in milliseconds, the rate in per cent; None where nothing ran. What was cancelled is no failure.
    """
    failed = job.runs_failed - job.retried_failed
    timeouts = job.runs_timeout - job.retried_timeout
    total = job.runs_completed + failed + timeouts
    return {
        "total": total,
        "successful": job.runs_completed,
        "failed": failed,
        "timeouts": timeouts,
        "success_rate": success_rate(job.runs_completed, total),
        "attempts": job.runs_completed + job.runs_failed + job.runs_timeout,
        "recovered": job.runs_recovered,
        "skipped": job.runs_skipped,
        "avg_duration_ms": round(job.duration_total_ms / job.runs_total) if job.runs_total else None,
        "last_execution": _last_execution(job),
    }


def _last_execution(job: CronJob) -> dict[str, Any] | None:
    if job.last_execution is None:
        return None
    return {"id": job.last_execution, "status": job.last_status, "started_at": job.last_run_at}


# -- days ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """How the chains of some time ended; durations of attempts in milliseconds, the rate in per cent."""

    completed: int = 0
    failed: int = 0
    timeout: int = 0
    lost: int = 0
    cancelled: int = 0
    skipped: int = 0
    attempts: int = 0
    """Runs that ended in any of the first four ways, those that another attempt followed included."""
    recovered: int = 0
    """Of the completed chains, those with a failed attempt before."""
    avg_duration_ms: int | None = None
    p50_duration_ms: int | None = None
    p95_duration_ms: int | None = None
    counted_as: CountedAs = "chains"
    """`attempts` where some of it was counted by an earlier release, from runs that are gone."""

    @property
    def total(self) -> int:
        """Chains that ran to an ending of their own: neither skipped nor cancelled."""
        return self.completed + self.failed + self.timeout + self.lost

    @property
    def success_rate(self) -> float | None:
        """Completed among `total`."""
        return success_rate(self.completed, self.total)


@dataclass(frozen=True, slots=True)
class Statistics:
    """Some days, oldest first, days without runs included, and what they add up to."""

    total: Figures
    days: list[tuple[date, Figures]]


def job_statistics(session: Session, job_id: int, days: int, today: date) -> Statistics:
    """The last `days` UTC days of one job, today included, with the 50th and 95th percentile of its durations."""
    rows = session.execute(
        sa.select(STAT).where(STAT.c.cron_job == job_id, STAT.c.day > today - timedelta(days=days))
    ).all()
    attempts_until = session.scalar(sa.select(JOB.c.attempts_until).where(JOB.c.id == job_id))
    return _statistics(rows, days, today, attempts_until)


def global_statistics(session: Session, days: int, today: date) -> Statistics:
    """The last `days` UTC days of all jobs together, today included; without percentiles."""
    attempts_until = session.scalar(sa.select(sa.func.max(JOB.c.attempts_until)))
    return _together(session, days, today, attempts_until)


def _together(session: Session, days: int, today: date, attempts_until: date | None) -> Statistics:
    sums = [Total(STAT.c[name]).label(name) for name in (*ENDINGS, *RETRIED, "recovered", "duration_ms")]
    unknown = [sa.null().label(name) for name in ("durations", "duration_min_ms", "duration_max_ms")]
    rows = session.execute(
        sa.select(STAT.c.day, *sums, *unknown)
        .where(STAT.c.day > today - timedelta(days=days))
        .group_by(STAT.c.day)
    ).all()
    return _statistics(rows, days, today, attempts_until)


def _statistics(rows: Iterable[Any], days: int, today: date, attempts_until: date | None) -> Statistics:
    """`attempts_until`: the last day that counts attempts, if any does."""
    by_day = {row.day: row for row in rows}
    wanted = [today - timedelta(days=back) for back in range(days - 1, -1, -1)]
    present = [by_day[day] for day in wanted if day in by_day]
    until = attempts_until or date.min
    return Statistics(
        _figures(present, until),
        [(day, _figures([by_day[day]] if day in by_day else [], until)) for day in wanted],
    )


def _figures(rows: list[Any], attempts_until: date) -> Figures:
    # MariaDB's sums are no integers.
    sums = {name: sum(int(getattr(row, name)) for row in rows) for name in (*ENDINGS, *RETRIED, "recovered")}
    attempts = sum(sums[name] for name in ("completed", *FAILURES))
    counts = {name: sums[name] - sums.get(f"retried_{name}", 0) for name in (*ENDINGS, "recovered")}
    histogram = merge(row.durations for row in rows)
    timed = [row for row in rows if row.durations]
    shortest = _if_all_known(min, [row.duration_min_ms for row in timed])
    longest = _if_all_known(max, [row.duration_max_ms for row in timed])
    ran = sum(histogram.values()) or attempts
    return Figures(
        **counts,
        attempts=attempts,
        avg_duration_ms=round(sum(int(row.duration_ms) for row in rows) / ran) if ran else None,
        p50_duration_ms=percentile(histogram, 0.5, shortest, longest),
        p95_duration_ms=percentile(histogram, 0.95, shortest, longest),
        counted_as="attempts" if any(row.day <= attempts_until for row in rows) else "chains",
    )


def _if_all_known(choose: Callable[[list[int]], int], values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return choose(known) if known and len(known) == len(values) else None


def endings_of_day(session: Session, day: date) -> dict[str, int]:
    """How many runs ended on one UTC day in each way, every attempt of its own."""
    sums = [sa.func.coalesce(sa.func.sum(STAT.c[name]), 0).label(name) for name in ENDINGS]
    return _whole_numbers(session.execute(sa.select(*sums).where(STAT.c.day == day)).one())


# -- now -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """How things stand at one moment."""

    jobs: int
    enabled: int
    disabled: int
    dead: int
    running: int
    pending: int
    overdue: int
    """Pending runs that were due more than a minute ago: nobody takes them."""
    stale_locks: int
    """Running ones whose lease has ended."""
    failing: int
    """Enabled jobs whose last chains failed."""
    skipping: int
    """Enabled jobs that have skipped several slots since their last run."""
    today: Figures


def counters(session: Session, now: datetime) -> Counters:
    """The numbers of the dashboard."""
    minute_ago = now - timedelta(minutes=1)
    jobs = session.execute(
        sa.select(
            sa.func.count().label("jobs"),
            _number_of(ENABLED).label("enabled"),
            _number_of(JOB.c.in_dead_letter_queue.is_(True)).label("dead"),
            _number_of(FAILING).label("failing"),
            _number_of(SKIPPING).label("skipping"),
            sa.func.max(JOB.c.attempts_until).label("attempts_until"),
        ).where(JOB.c.deleted_id == 0)
    ).one()
    pending = _pending(session, pending=sa.true(), overdue=RUN.c.due_time < minute_ago)
    return Counters(
        jobs=jobs.jobs,
        enabled=int(jobs.enabled),
        disabled=jobs.jobs - int(jobs.enabled) - int(jobs.dead),
        dead=int(jobs.dead),
        failing=int(jobs.failing),
        skipping=int(jobs.skipping),
        **pending,
        **_running(session, now),
        today=_together(session, 1, now.date(), jobs.attempts_until).total,
    )


def passed_over(session: Session, since: datetime) -> Sequence[Any]:
    """Enabled jobs (id, name, next_run_time) whose slot has been due since then, the oldest first, up to 1,000."""
    query = sa.select(JOB.c.id, JOB.c.name, JOB.c.next_run_time).where(ENABLED, JOB.c.next_run_time < since)
    return session.execute(query.order_by(JOB.c.next_run_time).limit(1000)).all()


def dead_letters(session: Session) -> int:
    """How many jobs wait in the dead letter queue; every page says so."""
    waiting = sa.select(sa.func.count()).where(
        NOT_ENABLED,  # as they all are: the index on it leaves few rows to look at
        JOB.c.in_dead_letter_queue.is_(True),
        JOB.c.deleted_id == 0,
    )
    return session.scalar(waiting) or 0


# -- for monitoring ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """What somebody is woken up for, at one moment. Ages are in seconds, 0 where nothing is late."""

    enabled: int
    disabled: int
    dead: int
    failing: int
    """Enabled jobs whose last runs ended without success."""
    completed: int
    """Attempts since the beginning, as are the next two. Jobs that are deleted keep theirs, so these only grow."""
    failed: int
    """Lost ones included."""
    timeout: int
    chains_failed: int
    """Chains since the beginning that ended so, as is the next; every completed attempt ends its chain."""
    chains_timeout: int
    recovered: int
    skipped: int
    duration_ms: int
    """What all these took together."""
    running: int
    stale_locks: int
    due: int
    """Pending runs that may start now."""
    later: int
    """Pending runs whose time has not come: retries, mostly."""
    waiting: int
    """Pending runs that wait for other runs."""
    oldest_due: float
    """Age of the run that has waited longest since it might start."""
    oldest_slot: float
    """Age of the oldest slot that no worker has made a run of yet."""
    messages_waiting: int
    messages_dead: int
    """Messages that were not sent after all tries, as long as the outbox keeps them."""
    oldest_message: float
    """Age of the message that has waited longest since it was due."""


def vitals(session: Session, now: datetime) -> Vitals:
    """How things stand, from indexes, the jobs' rows and the rows of what runs."""
    return Vitals(**_job_vitals(session, now), **_run_vitals(session, now), **_message_vitals(session, now))


def _job_vitals(session: Session, now: datetime) -> dict[str, Any]:
    alive, dead = JOB.c.deleted_id == 0, JOB.c.in_dead_letter_queue.is_(True)
    jobs = session.execute(
        sa.select(
            _number_of(sa.and_(alive, ENABLED)).label("enabled"),
            _number_of(sa.and_(alive, NOT_ENABLED, sa.not_(dead))).label("disabled"),
            _number_of(sa.and_(alive, dead)).label("dead"),
            _number_of(sa.and_(alive, FAILING)).label("failing"),
            *(
                sa.func.coalesce(sa.func.sum(column), 0).label(name)
                for name, column in (
                    ("completed", JOB.c.runs_completed),
                    ("failed", JOB.c.runs_failed),
                    ("timeout", JOB.c.runs_timeout),
                    ("chains_failed", JOB.c.runs_failed - JOB.c.retried_failed),
                    ("chains_timeout", JOB.c.runs_timeout - JOB.c.retried_timeout),
                    ("recovered", JOB.c.runs_recovered),
                    ("skipped", JOB.c.runs_skipped),
                    ("duration_ms", JOB.c.duration_total_ms),
                )
            ),
        )
    ).one()
    # On the index over due slots; deleted jobs are disabled ones.
    slot = session.scalar(sa.select(sa.func.min(JOB.c.next_run_time)).where(ENABLED))
    return {**_whole_numbers(jobs), "oldest_slot": _age(slot, now)}


def _run_vitals(session: Session, now: datetime) -> dict[str, Any]:
    waiting = _pending(
        session,
        due=RUN.c.due_time <= now,
        later=RUN.c.due_time > now,
        waiting=RUN.c.due_time.is_(None),
    )
    oldest = session.scalar(sa.select(sa.func.min(RUN.c.due_time)).where(PENDING))
    return {**waiting, **_running(session, now), "oldest_due": _age(oldest, now)}


def _message_vitals(session: Session, now: datetime) -> dict[str, Any]:
    rows = session.execute(
        sa.select(
            MESSAGE.c.status, sa.func.count().label("number"), sa.func.min(MESSAGE.c.due_time).label("due")
        )
        .where(MESSAGE.c.status.in_((*UNSENT, MessageStatus.DEAD)))
        .group_by(MESSAGE.c.status)
    ).all()
    found = {row.status: row for row in rows}
    waiting = [found[status] for status in UNSENT if status in found]
    return {
        "messages_waiting": sum(row.number for row in waiting),
        "messages_dead": found[MessageStatus.DEAD].number if MessageStatus.DEAD in found else 0,
        "oldest_message": max((_age(row.due, now) for row in waiting), default=0.0),
    }


def _pending(session: Session, **conditions: Any) -> dict[str, int]:
    """How many pending runs meet each condition on `due_time`: an index alone tells."""
    numbers = [_number_of(condition).label(name) for name, condition in conditions.items()]
    return _whole_numbers(session.execute(sa.select(*numbers).where(PENDING)).one())


def _running(session: Session, now: datetime) -> dict[str, int]:
    """How many runs there are now, and how many of them under a lease that has ended."""
    stale = _number_of(lease_ended(now)).label("stale_locks")
    return _whole_numbers(
        session.execute(sa.select(sa.func.count().label("running"), stale).where(RUNNING)).one()
    )


def _age(instant: datetime | None, now: datetime) -> float:
    return max(0.0, (now - instant).total_seconds()) if instant else 0.0


def _whole_numbers(row: Any) -> dict[str, int]:
    # MariaDB sums integers to decimals.
    return {name: int(value) for name, value in row._mapping.items()}


def _number_of(condition: Any) -> Any:
    return sa.func.coalesce(sa.func.sum(sa.case((condition, 1), else_=0)), 0)

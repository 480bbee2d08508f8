"""A job's figures, counted again from the runs that are kept: after an upgrade, and where `doctor` finds others.

What is found is assigned under the job's lock, never added to: a recount that is cut short, or done twice, or beside
workers that settle, comes to the same. What was rolled up for runs that are gone stays as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import takewhile
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ..core.states import UNSUCCESSFUL, Status
from ..core.statistics import bucket
from ..store import claims
from ..store.claims import JOB, RUN
from ..store.db import transactional
from ..store.models import CronAudit, CronJobDailyStat
from ..store.queries import FOLLOWED
from .endings import COUNTED, LETTERS, RETRIED

STAT: Any = CronJobDailyStat.__table__
FAILURES = sorted(UNSUCCESSFUL)
ENDED = sorted({*UNSUCCESSFUL, Status.COMPLETED, Status.CANCELLED, Status.SKIPPED})
LATEST = 200
"""So many of the newest chains by id hold the 30 that ended last."""
BARS = 30
NEAR = timedelta(seconds=5)
"""A transaction reads the clock before it has its locks: which of two came first is not certain that close together."""

Day = dict[str, int | None]
"""What is compared of a day's row, by column; `timed` is how many durations its histogram holds."""
EMPTY: Day = {
    **dict.fromkeys((*COUNTED, "duration_ms", "timed"), 0),
    "duration_min_ms": None,
    "duration_max_ms": None,
}


@dataclass(frozen=True, slots=True)
class Difference:
    """A figure of a job that is not what its kept runs come to."""

    what: str
    stored: object
    counted: object

    def __str__(self) -> str:
        return f"{self.what} is {self.stored}, its runs say {self.counted}"


@dataclass(frozen=True, slots=True)
class Recount:
    """What a job's figures ought to be, where they are something else: columns of its row, and days."""

    values: dict[str, Any]
    days: dict[date, Day]
    differences: list[Difference]


def recount(sessions: Callable[[], Session]) -> int:
    """Count the kept runs of every job that has not been recounted; returns how many jobs that were."""
    with sessions() as session:
        waiting = session.scalars(sa.select(JOB.c.id).where(JOB.c.chains_counted == sa.false())).all()
        for job_id in waiting:
            recount_job(session, job_id)
        return len(waiting)


@transactional
def recount_job(session: Session, job_id: int) -> list[Difference]:
    """Give one job the figures that its kept runs come to; returns those that were others."""
    job = claims.lock_jobs(session, [job_id]).get(job_id)
    if job is None:
        return []
    found = _counted(session, job)
    for day, counts in sorted(found.days.items()):
        _assign_day(session, job_id, day, counts)
    if found.values:
        claims.update_job(session, job_id, found.values)
    return found.differences


@transactional
def _compare_locked(session: Session, job_id: int) -> list[Difference]:
    job = claims.lock_jobs(session, [job_id]).get(job_id)
    return _counted(session, job).differences if job is not None and job.chains_counted else []


def compare(session: Session, job_id: int) -> list[Difference]:
    """Compare one job's figures with its kept runs; none for a job whose recount after an upgrade is still to come.

    Without a lock, for runs may end in between, and under the job's lock where something seems to differ.
    """
    job = claims.read_jobs(session, [job_id]).get(job_id)
    differs = job is not None and job.chains_counted and _counted(session, job).differences
    session.rollback()
    return _compare_locked(session, job_id) if differs else []


def _counted(session: Session, job: Any) -> Recount:
    stored = {
        row.day: _stored(row) for row in session.execute(sa.select(STAT).where(STAT.c.cron_job == job.id))
    }
    ledger = _ledger(session, job.id)
    values: dict[str, Any] = {}
    if not job.chains_counted:
        gone = [day for day, counts in stored.items() if _lacks_runs(counts, ledger.get(day, EMPTY))]
        values |= {"chains_counted": True, "attempts_until": max(gone, default=None)}
        values["pruned_until"] = max([*gone, *([job.pruned_until] if job.pruned_until else [])], default=None)
    pruned_until = values.get("pruned_until", job.pruned_until) or date.min
    complete = {day: ledger.get(day, EMPTY) for day in stored.keys() | ledger.keys() if day > pruned_until}
    days = {day: counts for day, counts in complete.items() if _differs(stored.get(day, EMPTY), counts)}
    wanted = _totals(job, [*{**stored, **complete}.values()])
    if pruned_until == date.min:
        begun = sum(_number(counts, "started") for counts in ledger.values())
        wanted["runs_total"] = begun if job.chains_counted else max(begun, job.runs_total)
    wanted |= _standing(session, job, pruned_until)
    differences = [
        Difference(f"{name} of {day}", stored.get(day, EMPTY)[name], counts[name])
        for day, counts in sorted(days.items())
        for name in EMPTY
        if stored.get(day, EMPTY)[name] != counts[name]
    ]
    for name, value in wanted.items():
        if value != (had := getattr(job, name)):
            values[name] = value
            differences.append(Difference(name, had, value))
    return Recount(values, days, differences)


# -- days ----------------------------------------------------------------------------------------------------


def _stored(row: Any) -> Day:
    counts: Day = {name: getattr(row, name) for name in EMPTY if name != "timed"}
    return counts | {"timed": sum((row.durations or {}).values())}


def _ledger(session: Session, job_id: int) -> dict[date, Day]:
    """The kept runs of a job by the day on which they ended; `started` of them had begun."""
    day = sa.func.date(RUN.c.completed_at).label("day")
    retried = sa.case((sa.and_(RUN.c.status.in_(FAILURES), FOLLOWED), 1), else_=0).label("retried")
    done = sa.and_(RUN.c.status == Status.COMPLETED, RUN.c.retry_count > RUN.c.interruptions)
    kinds = (
        sa.select(
            day,
            RUN.c.status,
            RUN.c.duration_ms,
            RUN.c.started_at,
            RUN.c.slots_count,
            retried,
            sa.case((done, 1), else_=0).label("recovered"),
        )
        .where(RUN.c.cron_job == job_id, RUN.c.status.in_(ENDED), RUN.c.completed_at.is_not(None))
        .subquery()
    )
    took = kinds.c.duration_ms
    keys = (kinds.c.day, kinds.c.status, kinds.c.retried, kinds.c.recovered)
    query = sa.select(
        *keys,
        sa.func.sum(kinds.c.slots_count).label("number"),
        sa.func.count(kinds.c.started_at).label("started"),
        sa.func.count(took).label("timed"),
        sa.func.coalesce(sa.func.sum(took), 0).label("duration_ms"),
        sa.func.min(took).label("shortest"),
        sa.func.max(took).label("longest"),
    ).group_by(*keys)
    days: dict[date, Day] = {}
    for row in session.execute(query):
        # SQLite's dates are text.
        on = row.day if isinstance(row.day, date) else date.fromisoformat(row.day)
        counts = days.setdefault(on, EMPTY | {"started": 0})
        added = {
            row.status: int(row.number),
            "started": row.started,
            "timed": row.timed,
            "duration_ms": row.duration_ms,
        }
        if row.retried:
            added[RETRIED[Status(row.status)]] = row.number
        if row.recovered:
            added["recovered"] = row.number
        for name, number in added.items():
            counts[name] = _number(counts, name) + int(number)
        if row.shortest is not None:
            counts["duration_min_ms"] = min(row.shortest, _or(counts["duration_min_ms"], row.shortest))
            counts["duration_max_ms"] = max(row.longest, _or(counts["duration_max_ms"], row.longest))
    return days


def _number(counts: Mapping[str, int | None], name: str) -> int:
    return counts[name] or 0


def _or(known: int | None, otherwise: int) -> int:
    return otherwise if known is None else known


def _lacks_runs(stored: Day, ledger: Day) -> bool:
    """Whether runs of a day that an earlier release counted are gone."""
    return stored["duration_min_ms"] is None and any(
        _number(stored, status) > _number(ledger, status) for status in ENDED
    )


def _differs(stored: Day, ledger: Day) -> bool:
    return any(stored[name] != ledger[name] for name in EMPTY)


def _assign_day(session: Session, job_id: int, day: date, counts: Day) -> None:
    values: dict[str, Any] = {name: value for name, value in counts.items() if name in STAT.c}
    values["durations"] = _histogram(session, job_id, day)
    where = (STAT.c.cron_job == job_id, STAT.c.day == day)
    if session.scalar(sa.select(STAT.c.day).where(*where)) is None:
        session.execute(sa.insert(STAT).values(cron_job=job_id, day=day, **values))
    else:
        session.execute(sa.update(STAT).where(*where).values(**values))


def _histogram(session: Session, job_id: int, day: date) -> dict[str, int]:
    begin = datetime.combine(day, datetime.min.time(), UTC)
    took = RUN.c.duration_ms
    rows = session.execute(
        sa.select(took, sa.func.count().label("number"))
        .where(
            RUN.c.cron_job == job_id,
            RUN.c.status.in_(ENDED),
            RUN.c.completed_at >= begin,
            RUN.c.completed_at < begin + timedelta(days=1),
            took.is_not(None),
        )
        .group_by(took)
    )
    found: Counter[str] = Counter()
    for row in rows:
        found[bucket(row.duration_ms)] += row.number
    return dict(found)


# -- the job's row -------------------------------------------------------------------------------------------


def _totals(job: Any, days: Sequence[Day]) -> dict[str, int]:
    """The counters of a job since it exists, of which its days are the parts."""

    def together(*names: str) -> int:
        return sum(_number(counts, name) for counts in days for name in names)

    totals = {
        "runs_completed": together("completed"),
        "runs_failed": together("failed", "lost"),
        "runs_timeout": together("timeout"),
        "retried_failed": together("retried_failed", "retried_lost"),
        "retried_timeout": together("retried_timeout"),
        "runs_recovered": together("recovered"),
        "runs_skipped": together("skipped"),
        "duration_total_ms": together("duration_ms"),
    }
    # Of what was skipped or cancelled, days do not say whether it had begun.
    if not job.chains_counted:  # counted on, should its days ever have been fewer
        for name in ("runs_completed", "runs_failed", "runs_timeout", "duration_total_ms"):
            totals[name] = max(totals[name], getattr(job, name))
    least = totals["runs_completed"] + totals["runs_failed"] + totals["runs_timeout"]
    most = least + together("skipped", "cancelled")
    return totals | {"runs_total": min(max(job.runs_total, least), most)}


def _standing(session: Session, job: Any, pruned_until: date) -> dict[str, Any]:
    """How the last chains of a job ended, how many slots were skipped or failed in a row, and since when."""
    chains = _latest_chains(session, job.id)
    return {
        "recent_results": _letters(job, chains, pruned_until),
        "skipped_in_a_row": _skipped_in_a_row(session, job, pruned_until),
        **_failing(session, job, chains, pruned_until),
    }


def _latest_chains(session: Session, job_id: int) -> list[Any]:
    """The last chains that ran, in the order they ended, as their last attempts."""
    ended = sa.select(RUN.c.id, RUN.c.status, RUN.c.completed_at).where(
        RUN.c.cron_job == job_id,
        RUN.c.status.in_(ENDED),
        RUN.c.started_at.is_not(None),
        RUN.c.completed_at.is_not(None),
        sa.not_(FOLLOWED),
    )
    rows = session.execute(ended.order_by(RUN.c.id.desc()).limit(LATEST)).all()
    return sorted(rows, key=lambda row: (row.completed_at, row.id))


def _letters(job: Any, chains: Sequence[Any], pruned_until: date) -> str:
    had: str = job.recent_results
    if not job.chains_counted:  # it has a letter for each attempt
        return "".join(LETTERS[Status(row.status)] for row in chains)[-BARS:]
    letters = "".join(LETTERS[Status(row.status)] for row in chains if row.completed_at.date() > pruned_until)
    older = had[: max(0, len(had) - len(letters))] if pruned_until > date.min else ""
    found = (older + letters)[-BARS:]
    # Those that ended at the same moment may stand in either order.
    return had if sorted(had) == sorted(found) else found


def _skipped_in_a_row(session: Session, job: Any, pruned_until: date) -> int:
    """How many slots were skipped since a run of a job last ended as something else."""
    mine = (RUN.c.cron_job == job.id, RUN.c.completed_at.is_not(None))
    last = session.scalar(
        sa.select(sa.func.max(RUN.c.completed_at)).where(
            *mine,
            RUN.c.status.in_([*FAILURES, Status.COMPLETED, Status.CANCELLED]),
            RUN.c.started_at.is_not(None),
        )
    )
    skipped = sa.select(sa.func.coalesce(sa.func.sum(RUN.c.slots_count), 0)).where(
        *mine, RUN.c.status == Status.SKIPPED
    )
    had: int = job.skipped_in_a_row
    if last is None:
        counted = int(session.scalar(skipped) or 0)
        # Slots before those that are kept may have been skipped, too.
        return max(had, counted) if pruned_until > date.min else counted

    def since(when: datetime) -> int:
        return int(session.scalar(skipped.where(RUN.c.completed_at > when)) or 0)

    if job.chains_counted and since(last + NEAR) <= had <= since(last - NEAR):
        return had
    return since(last)


def _failing(session: Session, job: Any, chains: Sequence[Any], pruned_until: date) -> dict[str, Any]:
    counted = [row for row in chains if row.status == Status.COMPLETED or row.status in UNSUCCESSFUL]
    row_of_failures = [*takewhile(lambda row: row.status != Status.COMPLETED, reversed(counted))][::-1]
    failures, since = job.consecutive_failures, job.failing_since
    if failures != len(row_of_failures):
        recovered = _last_move(session, job.id, ("recover",))
        row_of_failures = [
            row for row in row_of_failures if recovered is None or row.completed_at > recovered.at
        ]
    most = len(row_of_failures)
    # One that was lost to a shutdown while its job was disabled says nothing about the job.
    certain = [row for row in row_of_failures if row.status != Status.LOST]
    # Chains before those that are kept may have failed too, and earlier releases counted attempts.
    is_all = pruned_until == date.min and len(chains) < LATEST
    may_be_more = job.chains_counted and counted and most == len(counted) and not is_all
    if (failures > most and not may_be_more) or (failures < len(certain) and job.chains_counted):
        failures = most
    if failures and since is None and row_of_failures:
        since = row_of_failures[0].completed_at
    elif since is not None and certain and since > certain[0].completed_at:
        since = certain[0].completed_at
    elif since is not None and not row_of_failures and since.date() > pruned_until:
        since = None if _is_over(session, job, counted) else since
    return {"consecutive_failures": failures, "failing_since": since}


def _is_over(session: Session, job: Any, counted: Sequence[Any]) -> bool:
    """Whether nothing failed when the job is said to have begun to fail, or it has succeeded since.

    A success does not count that ended while the job was in the dead letter queue.
    """
    ended = (RUN.c.cron_job == job.id, RUN.c.status.in_(FAILURES), RUN.c.completed_at == job.failing_since)
    if session.scalar(sa.select(RUN.c.id).where(*ended).limit(1)) is None:
        return True
    if job.in_dead_letter_queue or not counted or counted[-1].status != Status.COMPLETED:
        return False
    success = counted[-1].completed_at
    move = _last_move(session, job.id, ("dead_letter", "recover"), until=success)
    return success > job.failing_since and (move is None or move.action == "recover")


def _last_move(session: Session, job_id: int, actions: Sequence[str], until: datetime | None = None) -> Any:
    """When a job last went into the dead letter queue or out of it, by the audit log; None where it never did."""
    query = sa.select(CronAudit.action, CronAudit.at).where(
        CronAudit.subject_type == "job", CronAudit.subject_id == str(job_id), CronAudit.action.in_(actions)
    )
    if until is not None:
        query = query.where(CronAudit.at <= until)
    return session.execute(query.order_by(CronAudit.id.desc()).limit(1)).one_or_none()

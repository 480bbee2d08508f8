"""After an upgrade: the runs that are kept from before are counted into chains, one job to a transaction.

A job's numbers are assigned from the ledger under its lock, never added to: a recount that is cut short, or done twice,
or beside workers that settle, comes to the same. What was rolled up for runs that are gone stays, as attempts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from datetime import date
from itertools import takewhile
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from ..core.states import UNSUCCESSFUL, Status
from ..store import claims
from ..store.claims import JOB, RUN
from ..store.db import transactional
from ..store.models import CronJobDailyStat, CronJobExecution
from .endings import LETTERS, RETRIED

STAT: Any = CronJobDailyStat.__table__
NEXT: Any = aliased(CronJobExecution.__table__)
ENDED = sorted({*UNSUCCESSFUL, Status.COMPLETED, Status.CANCELLED, Status.SKIPPED})
LATEST = 200
"""So many of the newest runs by id hold the 30 that ended last."""

_FOLLOWED = sa.exists().where(
    NEXT.c.cron_job == RUN.c.cron_job,
    NEXT.c.scheduled_time == RUN.c.scheduled_time,
    NEXT.c.rerun == RUN.c.rerun,
    NEXT.c.retry_count == RUN.c.retry_count + 1,
)


def recount(sessions: Callable[[], Session]) -> int:
    """Count the kept runs of every job that has not been recounted; returns how many jobs that were."""
    with sessions() as session:
        waiting = session.scalars(sa.select(JOB.c.id).where(JOB.c.chains_counted == sa.false())).all()
        for job_id in waiting:
            recount_job(session, job_id)
        return len(waiting)


@transactional
def recount_job(session: Session, job_id: int) -> None:
    """Assign one job's chain counts from its kept runs."""
    job = claims.lock_jobs(session, [job_id]).get(job_id)
    if job is None:
        return
    retried, days = _retried(session, job_id)
    recovered = 0
    for day, count in _recovered(session, job_id).items():
        recovered += count
        days[day]["recovered"] = count
    for day, counts in sorted(days.items()):
        session.execute(sa.update(STAT).where(STAT.c.cron_job == job_id, STAT.c.day == day).values(**counts))
    letters = _letters(session, job_id)
    counted = [letter for letter in letters if letter not in "xs"]
    failing = sum(1 for _ in takewhile(lambda letter: letter != "c", reversed(counted)))
    skipped = session.scalar(sa.select(sa.func.sum(STAT.c.skipped)).where(STAT.c.cron_job == job_id))
    claims.update_job(
        session,
        job_id,
        {
            "retried_failed": retried[Status.FAILED] + retried[Status.LOST],
            "retried_timeout": retried[Status.TIMEOUT],
            "runs_recovered": recovered,
            "runs_skipped": int(skipped or 0),
            "recent_results": letters[-30:],
            # Attempts were counted before, of which there are at least as many.
            "consecutive_failures": min(job.consecutive_failures, failing),
            "chains_counted": True,
        },
    )


def _retried(session: Session, job_id: int) -> tuple[Counter[str], dict[date, dict[str, int]]]:
    """Failures that another attempt followed: together by status, and by day."""
    total: Counter[str] = Counter()
    days: dict[date, dict[str, int]] = defaultdict(dict)
    for day, status in _ended(session, job_id, RUN.c.status.in_(sorted(UNSUCCESSFUL)), _FOLLOWED):
        total[status] += 1
        column = RETRIED[Status(status)]
        days[day][column] = days[day].get(column, 0) + 1
    return total, days


def _recovered(session: Session, job_id: int) -> Counter[date]:
    done = (RUN.c.status == Status.COMPLETED, RUN.c.retry_count > RUN.c.interruptions)
    return Counter(day for day, _ in _ended(session, job_id, *done))


def _ended(session: Session, job_id: int, *conditions: Any) -> Iterable[tuple[date, str]]:
    query = sa.select(RUN.c.completed_at, RUN.c.status).where(
        RUN.c.cron_job == job_id, RUN.c.completed_at.is_not(None), *conditions
    )
    return ((row.completed_at.date(), row.status) for row in session.execute(query))


def _letters(session: Session, job_id: int) -> str:
    """How the chains that ran ended, in the order they ended."""
    ended = sa.select(RUN.c.id, RUN.c.status, RUN.c.completed_at).where(
        RUN.c.cron_job == job_id,
        RUN.c.status.in_(ENDED),
        RUN.c.started_at.is_not(None),
        RUN.c.completed_at.is_not(None),
        sa.not_(_FOLLOWED),
    )
    rows = session.execute(ended.order_by(RUN.c.id.desc()).limit(LATEST)).all()
    return "".join(
        LETTERS[Status(row.status)] for row in sorted(rows, key=lambda row: (row.completed_at, row.id))
    )

"""Forgetting: what is old goes in small transactions, so that nobody waits behind a large one.

What stays, however old: runs that have not ended, the chains of each job's last success, last failure and last run,
and what tells whether a job that is failing now has been told about. Chains go as a whole, or not yet.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from ..config import Settings
from ..core.errors import NotFound
from ..core.states import FINAL, UNSUCCESSFUL, Status
from ..store import claims, db
from ..store.db import hits, transactional
from ..store.models import (
    CronAudit,
    CronIdempotencyKey,
    CronJob,
    CronJobExecution,
    CronJobOutput,
    CronOutbox,
    CronSession,
    CronThrottle,
    CronToken,
    KyteCronJobVersion,
)
from . import audit, idempotency, throttle
from .audit import Actor
from .versions import CronVersionControl

OUTBOX_DAYS = 30
AUDIT_DAYS = 400
LINK_DAYS = 1
HISTORY = ("executions", "versions", "messages", "audit")
"""What the audit log tells of; sessions, links, throttles and keys only end."""
BATCH = 500
"""Rows to a transaction."""
MAX_BATCHES = 200
"""So many batches' worth of rows of one kind in one call: one on a large old database must come to an end, too.

Rows count and not batches, which are as many as there are jobs, however little each of these has to remove.
"""

Sessions = Callable[[], Session]


def prune(
    sessions: Sessions,
    settings: Settings,
    now: datetime | None = None,
    batch: int = BATCH,
    actor: Actor = audit.WORKER,
) -> dict[str, int]:
    """Remove what is older than the settings say, `batch` rows to a transaction; returns how many of each kind.

    Safe to run in several processes at once. Raises what the database raises; what was removed until then stays so.
    """
    with sessions() as session:
        now = now or db.now(session)
        removed = {
            "executions": _prune_executions(session, settings, now, batch),
            "versions": _prune_versions(session, settings.retention_versions, actor),
            "messages": _prune_messages(session, now, batch),
            "audit": _prune_rows(
                session, CronAudit.at < now - timedelta(days=AUDIT_DAYS), batch, CronAudit.id
            ),
            "sessions": _prune_rows(session, CronSession.expires_at < now, batch, CronSession.token_hash),
            "links": _prune_rows(
                session,
                sa.and_(CronToken.kind == "sign-in", CronToken.expires_at < now - timedelta(days=LINK_DAYS)),
                batch,
                CronToken.id,
            ),
            "throttles": _prune_rows(
                session,
                CronThrottle.window < now - throttle.LONGEST_WINDOW,
                batch,
                CronThrottle.key,
                CronThrottle.window,
            ),
            "keys": _prune_rows(
                session,
                CronIdempotencyKey.started_at < now - idempotency.KEPT,
                batch,
                CronIdempotencyKey.key_hash,
            ),
        }
        if any(removed[kind] for kind in HISTORY):
            _note_removal(session, actor, removed)
        return removed


def is_cut_short(removed: Mapping[str, int], batch: int = BATCH) -> bool:
    """Whether a call that removed so many of each kind left some for the next one."""
    return max(removed.values(), default=0) >= MAX_BATCHES * batch


@transactional
def _note_removal(session: Session, actor: Actor, removed: dict[str, int]) -> None:
    audit.record(session, actor, "prune", ("history", ""), after={kind: removed[kind] for kind in HISTORY})


# -- executions ----------------------------------------------------------------------------------------------


def _prune_executions(session: Session, settings: Settings, now: datetime, batch: int) -> int:
    cutoff = now - timedelta(days=settings.retention_days)
    removed = 0
    for job_id in _job_ids(session):
        surplus = _newest_surplus(session, job_id, settings.retention_per_job)
        for ids in _removable(session, job_id, cutoff, surplus, batch):
            removed += _delete_executions(session, job_id, ids)
            if removed >= MAX_BATCHES * batch:
                return removed
    return removed


def _job_ids(session: Session) -> Sequence[int]:
    return session.scalars(sa.select(CronJob.id).order_by(CronJob.id)).all()


# Asked for each job, few of which have anything to remove.
_SURPLUS = (
    sa.select(CronJobExecution.id)
    .where(CronJobExecution.cron_job == sa.bindparam("job"))
    .order_by(CronJobExecution.id.desc())
    .offset(sa.bindparam("keep"))
    .limit(1)
)
_ENDED = (
    sa.select(
        CronJobExecution.id,
        sa.func.coalesce(CronJobExecution.completed_at, CronJobExecution.scheduled_time).label("ended_at"),
    )
    .where(
        CronJobExecution.cron_job == sa.bindparam("job"),
        CronJobExecution.id > sa.bindparam("after"),
        CronJobExecution.status.in_(FINAL),
    )
    .order_by(CronJobExecution.id)
    .limit(sa.bindparam("most"))
)


def _newest_surplus(session: Session, job_id: int, keep: int) -> int:
    """The id of the job's newest execution beyond the `keep` newest; 0 if it has no more than these."""
    return session.scalar(_SURPLUS, {"job": job_id, "keep": keep}) or 0


def _removable(
    session: Session, job_id: int, cutoff: datetime, surplus: int, batch: int
) -> Iterator[dict[int, date]]:
    """A job's ended executions that have had their time, the oldest first: by id, the day on which they ended.

    By id, which is by age for nearly all of them: the first batch without an old one ends the search, and a job
    with nothing to remove costs one look.
    """
    kept: set[int] | None = None
    after = 0
    while True:
        rows = session.execute(_ENDED, {"job": job_id, "after": after, "most": batch}).all()
        past = {row.id: row.ended_at.date() for row in rows if row.ended_at < cutoff or row.id <= surplus}
        if not past:
            return
        if kept is None:
            kept = _kept(session, job_id)
        stay = kept | _followed_by_a_younger(session, past, cutoff, surplus)
        yield {execution_id: day for execution_id, day in past.items() if execution_id not in stay}
        after = rows[-1].id


def _of_one_chain(one: Any, other: Any) -> sa.ColumnElement[bool]:
    return sa.and_(
        one.cron_job == other.cron_job,
        one.scheduled_time == other.scheduled_time,
        one.rerun == other.rerun,
    )


def _followed_by_a_younger(
    session: Session, past: Collection[int], cutoff: datetime, surplus: int
) -> set[int]:
    """Those of `past` with a later attempt in their chain that has not had its time, or has not ended."""
    later = aliased(CronJobExecution)
    ended_at = sa.func.coalesce(later.completed_at, later.scheduled_time)
    young = sa.or_(later.status.not_in(FINAL), sa.and_(ended_at >= cutoff, later.id > surplus))
    query = (
        sa.select(CronJobExecution.id)
        .join(later, _of_one_chain(later, CronJobExecution))
        .where(CronJobExecution.id.in_(past), later.retry_count > CronJobExecution.retry_count, young)
    )
    return set(session.scalars(query))


def _kept(session: Session, job_id: int) -> set[int]:
    """All attempts of the chains that stay: of the last success, of the last failure, and of the last run."""
    run, following = CronJobExecution, aliased(CronJobExecution)
    followed = sa.exists().where(_of_one_chain(following, run), following.retry_count == run.retry_count + 1)

    def newest(*conditions: sa.ColumnElement[bool]) -> sa.ScalarSelect[Any]:
        return sa.select(sa.func.max(run.id)).where(run.cron_job == job_id, *conditions).scalar_subquery()

    found = session.execute(
        sa.select(
            newest(run.status == Status.COMPLETED),
            newest(run.status.in_(sorted(UNSUCCESSFUL)), sa.not_(followed)),
            CronJob.last_execution,
        ).where(CronJob.id == job_id)
    ).one_or_none()
    ids = {execution_id for execution_id in found or () if execution_id is not None}
    member = aliased(CronJobExecution)
    chains = sa.select(member.id).join(run, _of_one_chain(member, run)).where(run.id.in_(ids))
    return ids | set(session.scalars(chains))


@transactional
def _delete_executions(session: Session, job_id: int, ended: Mapping[int, date]) -> int:
    """Delete a job's executions, given as the days on which they ended; none while somebody has locked the job."""
    if not ended:
        return 0
    if claims.lock_free_jobs(session, [job_id]).taken:
        return 0  # the next call is in time
    until = max(ended.values())
    session.execute(
        sa.update(CronJob)
        .where(CronJob.id == job_id, sa.or_(CronJob.pruned_until.is_(None), CronJob.pruned_until < until))
        .values(pruned_until=until)
        .execution_options(synchronize_session=False)
    )
    session.execute(sa.delete(CronJobOutput).where(CronJobOutput.execution.in_(ended)))
    return hits(session, sa.delete(CronJobExecution).where(CronJobExecution.id.in_(ended)))


# -- the rest ------------------------------------------------------------------------------------------------


def _prune_versions(session: Session, keep: int, actor: Actor) -> int:
    crowded = (
        sa.select(KyteCronJobVersion.cron_job)
        .join(CronJob, CronJob.id == KyteCronJobVersion.cron_job)
        .where(CronJob.deleted_at.is_(None))
        .group_by(KyteCronJobVersion.cron_job)
        .having(sa.func.count() > keep)
    )
    versions = CronVersionControl(session, actor)
    removed = 0
    for job_id in session.scalars(crowded).all():
        with suppress(NotFound):  # deleted meanwhile
            removed += versions.prune(job_id, keep)
    return removed


def _prune_messages(session: Session, now: datetime, batch: int) -> int:
    """Messages that were sent, or whose tries were used up, long ago; `due_time` is when, and has the index."""
    failing = sa.select(CronJob.id).where(CronJob.failing_since.is_not(None))
    past = sa.and_(
        CronOutbox.status.in_(("sent", "dead")),
        CronOutbox.due_time < now - timedelta(days=OUTBOX_DAYS),
        # A job that is failing now has its recovery told only if its failure was.
        sa.or_(CronOutbox.cron_job.is_(None), CronOutbox.cron_job.not_in(failing)),
    )
    return _prune_rows(session, past, batch, CronOutbox.id)


def _prune_rows(session: Session, past: sa.ColumnElement[bool], batch: int, *key: Any) -> int:
    """Delete the rows of one table that are `past`, by their primary key, `batch` at a time."""
    removed = 0
    for _ in range(MAX_BATCHES):
        found = session.execute(sa.select(*key).where(past).limit(batch)).all()
        if not found:
            break
        removed += _delete_by_key(session, key, [tuple(row) for row in found])
        if len(found) < batch:
            break
    return removed


@transactional
def _delete_by_key(session: Session, key: Sequence[Any], found: Sequence[tuple[Any, ...]]) -> int:
    return hits(session, sa.delete(key[0].class_).where(sa.tuple_(*key).in_(found)))

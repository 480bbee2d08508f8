"""The dead letter queue: jobs whose retries are exhausted, until somebody recovers them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ..core.errors import Conflict, KytecronError
from ..store import db
from ..store.db import transactional
from ..store.models import CronJob
from .audit import Actor
from .jobs import note_change, switch_on
from .versions import lock_job


def dead_letters(session: Session) -> Sequence[CronJob]:
    """The jobs in the queue, the newest first."""
    return session.scalars(
        sa.select(CronJob)
        .where(CronJob.in_dead_letter_queue.is_(True), CronJob.deleted_id == 0)
        .order_by(CronJob.dead_letter_since.desc(), CronJob.id.desc())
        .execution_options(populate_existing=True)
    ).all()


@transactional
def recover(session: Session, job_id: int, actor: Actor) -> CronJob:
    """Take a job out of the queue and enable it: failures count from zero, its next slot from now.

    Raises NotFound, Conflict for a job that is not in the queue, Invalid for one whose schedule has no slot left.
    """
    job = lock_job(session, job_id)
    if not job.in_dead_letter_queue:
        raise Conflict("Job is not in dead letter queue")
    before = _standing(job)
    job.in_dead_letter_queue = False
    job.dead_letter_reason = None
    job.dead_letter_since = None
    # `failing_since` stays: the first success tells those who were told how long it was down.
    job.consecutive_failures = 0
    switch_on(session, job, db.now(session))
    note_change(session, actor, job, "recover", before, _standing(job))
    return job


@dataclass(slots=True)
class Recovery:
    """What became of several jobs: those that run again, and by id why the others do not."""

    recovered: list[CronJob] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)


def recover_many(session: Session, job_ids: Collection[int] | None, actor: Actor) -> Recovery:
    """Recover these jobs, or all in the queue where `job_ids` is None.

    Each in a transaction of its own: one that cannot run again does not keep the others down.
    """
    if job_ids is None:
        job_ids = [job.id for job in dead_letters(session)]
    done = Recovery()
    for job_id in sorted(set(job_ids)):
        try:
            done.recovered.append(recover(session, job_id, actor))
        except KytecronError as error:
            done.refused[job_id] = str(error)
    return done


def _standing(job: CronJob) -> dict[str, object]:
    return {
        "enabled": job.enabled,
        "in_dead_letter_queue": job.in_dead_letter_queue,
        "dead_letter_reason": job.dead_letter_reason,
        "dead_letter_since": job.dead_letter_since,
        "consecutive_failures": job.consecutive_failures,
    }

"""Out of the dead letter queue: one, many, all."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from kytecron.core.errors import Conflict, Invalid, NotFound
from kytecron.core.states import Outcome, Status
from kytecron.services import lifecycle
from kytecron.services.audit import Actor
from kytecron.services.deadletters import dead_letters, recover, recover_many
from kytecron.services.jobs import CronJobManager
from kytecron.store import db
from kytecron.store.models import CronAudit, CronJob
from tests.factories import add_job, claim_one, fresh, runs_of

ANNA = Actor("anna", "api")


def give_up_on(session: Session, **fields: Any) -> CronJob:
    """A job that has failed its way into the queue."""
    job = add_job(session, **{"max_retries": 0} | fields)
    lifecycle.enqueue_due(session)
    claim = claim_one(session)
    assert lifecycle.settle(session, [(claim, Outcome(Status.FAILED, error="ValueError: no"))]).ended
    job = fresh(session, job)
    assert job.in_dead_letter_queue
    assert not job.enabled
    return job


def test_a_recovered_job_starts_from_zero_with_a_slot_from_now_on(session: Session) -> None:
    job = give_up_on(session)
    before = db.now(session)
    job = fresh(session, recover(session, job.id, ANNA))
    assert (job.enabled, job.disabled_reason, job.in_dead_letter_queue) == (True, None, False)
    assert (job.dead_letter_reason, job.dead_letter_since) == (None, None)
    assert job.consecutive_failures == 0
    assert job.next_run_time == job.schedule_anchor
    assert job.next_run_time >= before
    assert job.revision == 2
    entry = session.scalars(sa.select(CronAudit).order_by(CronAudit.id.desc())).first()
    assert entry is not None
    assert (entry.action, entry.actor, entry.subject_id) == ("recover", "anna", str(job.id))
    assert entry.before is not None
    assert "ValueError: no" in entry.before["dead_letter_reason"]
    assert entry.after is not None
    assert (entry.after["enabled"], entry.after["consecutive_failures"]) == (True, 0)


def test_a_recovered_job_runs_again(session: Session) -> None:
    job = give_up_on(session)
    recover(session, job.id, ANNA)
    assert lifecycle.enqueue_due(session) == 1
    claim_one(session)
    assert [run.status for run in runs_of(session, job)] == [Status.FAILED, Status.RUNNING]


def test_a_job_that_is_not_in_the_queue_is_not_recovered(session: Session) -> None:
    job = add_job(session)
    with pytest.raises(Conflict, match="Job is not in dead letter queue"):
        recover(session, job.id, ANNA)
    with pytest.raises(NotFound):
        recover(session, 999_999, ANNA)


def test_a_deleted_job_has_left_the_queue(session: Session) -> None:
    job = give_up_on(session)
    CronJobManager(session).delete(job.id)
    assert dead_letters(session) == []
    with pytest.raises(NotFound):
        recover(session, job.id, ANNA)


def test_the_queue_lists_the_newest_first(session: Session) -> None:
    first, second = give_up_on(session), give_up_on(session)
    add_job(session)
    assert [job.id for job in dead_letters(session)] == [second.id, first.id]


def test_all_are_recovered_but_those_that_cannot_run_again(session: Session) -> None:
    good, bad, over = give_up_on(session), give_up_on(session), give_up_on(session)
    bad.schedule_type = "sometimes"
    over.ends_at = db.now(session) - timedelta(days=1)
    session.commit()
    done = recover_many(session, None, ANNA)
    assert [job.id for job in done.recovered] == [good.id]
    assert done.refused.keys() == {bad.id, over.id}
    assert "Invalid schedule_type" in done.refused[bad.id]
    assert {job.id for job in dead_letters(session)} == {bad.id, over.id}
    with pytest.raises(Invalid):
        recover(session, over.id, ANNA)
    assert fresh(session, over).in_dead_letter_queue


def test_many_are_recovered_by_their_ids(session: Session) -> None:
    first, second, third = (give_up_on(session) for _ in range(3))
    healthy = add_job(session)
    done = recover_many(session, [second.id, first.id, first.id, healthy.id, 999_999], ANNA)
    assert [job.id for job in done.recovered] == [first.id, second.id]
    assert done.refused.keys() == {healthy.id, 999_999}
    assert [job.id for job in dead_letters(session)] == [third.id]

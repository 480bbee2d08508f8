"""Why a job has not run, or waits: each answer, with the names, ids and times that it owes."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from kytecron.core.errors import NotFound
from kytecron.core.states import Claim, Outcome, Status
from kytecron.services import deadletters, lifecycle
from kytecron.services.audit import Actor
from kytecron.services.jobs import CronJobManager
from kytecron.services.why import Reason, Why, explain
from kytecron.store import db
from kytecron.store.models import CronJob, CronJobDependency, CronJobExecution, CronWorkerRecord
from tests.factories import WORKER, add_job, add_worker, ago, claim_one, fresh, runs_of

ANNA = Actor("anna", "web")
DONE = Outcome(Status.COMPLETED, duration_ms=120)
FAILED = Outcome(Status.FAILED, error="ValueError: no", duration_ms=10)


@pytest.fixture
def worker(session: Session) -> CronWorkerRecord:
    return add_worker(session)


def job_of(session: Session, **fields: object) -> CronJob:
    """A job with code whose slot is due."""
    return add_job(session, **({"current_version": 1} | fields))


def later(session: Session) -> datetime:
    return ago(session, hours=-1)


def codes(found: Why) -> list[str]:
    return [reason.code for reason in found.reasons]


def because(session: Session, job: CronJob, code: str, *words: str) -> Reason:
    """The weightiest reason, which must be `code`, make the verdict and say all of `words`."""
    found = explain(session, job.id)
    first = found.reasons[0]
    assert first.code == code, found
    assert found.verdict.startswith(f'Job {job.id} "{job.name}" ')
    assert found.verdict.endswith(".")
    for word in words:
        assert word in first.text, first.text
    return first


def shown(instant: datetime | None) -> str:
    assert instant is not None
    return f"{instant:%Y-%m-%d %H:%M:%S} UTC"


def running(session: Session, **fields: object) -> tuple[CronJob, Claim]:
    job = job_of(session, **fields)
    lifecycle.enqueue_due(session)
    return job, claim_one(session)


# -- it stands still -------------------------------------------------------------------------------------------


def test_an_unknown_job_is_not_found(session: Session) -> None:
    with pytest.raises(NotFound, match="Job 4711 does not exist"):
        explain(session, 4711)


def test_deleted_by_whom_and_when(session: Session) -> None:
    job = job_of(session)
    CronJobManager(session, ANNA).delete(job.id)
    because(session, job, "deleted", "by anna (web)", shown(fresh(session, job).deleted_at))


def test_disabled_by_whom_when_and_with_which_reason(session: Session) -> None:
    job = job_of(session)
    CronJobManager(session, ANNA).disable(job.id, "the source is down")
    reason = because(session, job, "disabled", "by anna (web)", "the source is down")
    assert reason.since is not None
    assert shown(reason.since) in reason.text


def test_disabled_by_an_edit_of_several_fields(session: Session) -> None:
    job = job_of(session)
    CronJobManager(session, ANNA).update_job(job.id, enabled=False, description="off")
    because(session, job, "disabled", "Disabled by anna (web)")


def test_disabled_in_sql_leaves_no_trace_and_the_answer_says_so(session: Session) -> None:
    job = job_of(session)
    CronJobManager(session, ANNA).disable(job.id)
    CronJobManager(session, ANNA).enable(job.id)
    session.execute(sa.update(CronJob).values(enabled=False))
    session.commit()
    because(session, job, "disabled", "without a trace")


def test_disabled_by_the_end_of_its_own_schedule(session: Session) -> None:
    job = job_of(session, max_runs=1)
    lifecycle.enqueue_due(session)
    claim = claim_one(session)
    assert codes(explain(session, job.id)) == ["ended", "running"]
    lifecycle.settle(session, [(claim, DONE)])
    because(session, job, "ended", "max_runs reached (1)")


def test_a_job_that_cannot_be_scheduled_says_what_is_wrong(session: Session) -> None:
    job = job_of(session, schedule_type="daily", time_of_day="25:00", interval_seconds=None)
    because(session, job, "cannot_be_scheduled", "time_of_day")
    lifecycle.enqueue_due(session)
    reason = because(session, job, "cannot_be_scheduled", "A worker disabled it", "time_of_day")
    assert reason.since is not None


def test_in_the_dead_letter_queue_why_and_since_when(session: Session) -> None:
    job, claim = running(session, max_retries=0)
    lifecycle.settle(session, [(claim, FAILED)])
    since = fresh(session, job).dead_letter_since
    because(session, job, "dead_letter", "ValueError: no", shown(since), "Recover it")
    deadletters.recover(session, job.id, ANNA)
    assert "dead_letter" not in codes(explain(session, job.id))


def test_what_goes_on_in_a_disabled_job_is_told_too(session: Session) -> None:
    job, _ = running(session)
    CronJobManager(session, ANNA).disable(job.id)
    assert codes(explain(session, job.id)) == ["disabled", "running"]


# -- it is under way -------------------------------------------------------------------------------------------


def test_running_since_when_and_on_which_worker(session: Session, worker: CronWorkerRecord) -> None:
    job, claim = running(session)
    (run,) = runs_of(session, job)
    because(session, job, "running", f"Execution {claim.execution_id} ", WORKER, shown(run.started_at))
    assert codes(explain(session, job.id)) == ["running", "overlap_policy", "next_slot"]


def test_running_and_asked_to_stop(session: Session, worker: CronWorkerRecord) -> None:
    job, claim = running(session)
    lifecycle.cancel(session, claim.execution_id, ANNA, "wrong day")
    because(session, job, "cancelling", "cancelled by anna: wrong day")


def test_held_by_a_worker_whose_lease_has_ended(session: Session) -> None:
    job, claim = running(session)
    session.execute(sa.update(CronJobExecution).values(locked_until=ago(session, seconds=1)))
    session.commit()
    because(session, job, "lease_ended", f"Execution {claim.execution_id} ", WORKER, "any living worker")
    assert "no_worker" in codes(explain(session, job.id))


def test_a_retry_waits_until_when_and_after_what(session: Session, worker: CronWorkerRecord) -> None:
    job, claim = running(session, max_retries=2)
    lifecycle.settle(session, [(claim, FAILED)])
    _, retry = runs_of(session, job)
    because(
        session,
        job,
        "retry",
        f"Execution {retry.id} ",
        "retry 1 of 2",
        shown(retry.due_time),
        f"Execution {claim.execution_id} failed: ValueError: no",
    )


def test_jitter_is_no_riddle(session: Session, worker: CronWorkerRecord) -> None:
    job = job_of(session, jitter_seconds=86_400)
    lifecycle.enqueue_due(session)
    because(session, job, "jitter", shown(runs_of(session, job)[0].due_time))


def test_overlap_names_the_run_that_is_waited_for_and_since_when(
    session: Session, worker: CronWorkerRecord
) -> None:
    job, claim = running(session, overlap_policy="queue")
    fresh(session, job).next_run_time = db.now(session)
    session.commit()
    lifecycle.enqueue_due(session)
    found = explain(session, job.id)
    assert codes(found)[:2] == ["running", "overlap"]
    assert f"waits for execution {claim.execution_id}" in found.reasons[1].text
    assert found.reasons[1].since == runs_of(session, job)[1].scheduled_time


def test_a_slot_that_overlap_skipped_is_told_once_nothing_runs(
    session: Session, worker: CronWorkerRecord
) -> None:
    job, claim = running(session)
    fresh(session, job).next_run_time = db.now(session)
    session.commit()
    lifecycle.enqueue_due(session)
    lifecycle.settle(session, [(claim, DONE)])
    because(
        session, job, "skipped", f"execution {claim.execution_id} was still running (overlap_policy skip)"
    )
    assert codes(explain(session, job.id)) == ["skipped", "next_slot"]


def test_a_cancelled_run_is_told_with_who_did_it(session: Session, worker: CronWorkerRecord) -> None:
    job = job_of(session)
    lifecycle.enqueue_due(session)
    lifecycle.cancel(session, runs_of(session, job)[0].id, ANNA)
    because(session, job, "cancelled", "cancelled by anna")


def test_a_backfill_waits_for_its_turn_and_a_long_one_is_counted(
    session: Session, worker: CronWorkerRecord
) -> None:
    anchor = ago(session, hours=9)
    job = job_of(session, schedule_anchor=anchor, next_run_time=anchor + timedelta(hours=10))
    lifecycle.backfill(session, job.id, anchor, anchor + timedelta(hours=8), ANNA)
    claim_one(session)
    found = explain(session, job.id)
    assert codes(found)[:6] == ["running", "backfill", "backfill", "backfill", "backfill", "more"]
    assert "its turn in the backfill" in found.reasons[1].text
    assert found.reasons[5].text == "3 more of its runs wait"


# -- it waits for others ---------------------------------------------------------------------------------------


def test_a_gated_slot_names_the_parents_it_waits_for_and_their_states(
    session: Session, worker: CronWorkerRecord
) -> None:
    slot = ago(session, seconds=1)
    busy = job_of(session, schedule_anchor=slot, next_run_time=slot)
    done = job_of(session, next_run_time=later(session))
    child = job_of(session, schedule_anchor=slot, next_run_time=slot)
    session.add_all(CronJobDependency(cron_job=child.id, parent=one.id) for one in (busy, done))
    session.commit()
    lifecycle.trigger(session, done.id, actor=ANNA)
    lifecycle.settle(session, [(claim_one(session), DONE)])
    lifecycle.enqueue_due(session)
    (waits,) = runs_of(session, child)
    because(session, child, "dependency", f'waits for "{busy.name}" to end', shown(waits.waiting_until))
    parents = {reason.text for reason in explain(session, child.id).reasons if reason.code == "parent"}
    assert parents == {
        f'Its parent "{busy.name}" (job {busy.id}) is running or waits to start',
        f'Its parent "{done.name}" (job {done.id}) completed last (execution {runs_of(session, done)[0].id})',
    }


def test_a_triggered_job_names_the_parents_that_are_missing(
    session: Session, worker: CronWorkerRecord
) -> None:
    parent = job_of(session, next_run_time=later(session))
    child = job_of(session, schedule_type="manual", next_run_time=None, dependency_mode="trigger")
    session.add(CronJobDependency(cron_job=child.id, parent=parent.id))
    session.commit()
    because(session, child, "dependency", f'"{parent.name}" to complete')
    assert codes(explain(session, child.id)) == ["dependency", "parent", "manual"]
    assert "has never run" in explain(session, child.id).reasons[1].text


def test_no_worker_was_ever_started(session: Session) -> None:
    job = job_of(session)
    because(session, job, "no_worker", "python worker.py")
    lifecycle.enqueue_due(session)
    because(session, job, "no_worker", "python worker.py")


def test_no_worker_is_alive_and_when_the_last_was_heard_of(session: Session) -> None:
    add_worker(session, "older:1:x", stopped_at=ago(session, hours=1), last_seen_at=ago(session, hours=1))
    last = add_worker(session, last_seen_at=ago(session, minutes=10))
    job = job_of(session)
    lifecycle.enqueue_due(session)
    because(session, job, "no_worker", WORKER, shown(last.last_seen_at))


def test_no_worker_is_a_warning_while_the_slot_is_still_to_come(session: Session) -> None:
    job = job_of(session, next_run_time=later(session))
    assert codes(explain(session, job.id)) == ["next_slot", "no_worker"]


def test_no_living_worker_has_the_tag(session: Session, worker: CronWorkerRecord) -> None:
    add_worker(session, "gone:1:x", tags="gpu", last_seen_at=ago(session, minutes=10))
    add_worker(session, "cpu:1:x", tags="cpu,arm")
    job = job_of(session, worker_tag="gpu")
    lifecycle.enqueue_due(session)
    because(session, job, "worker_tag", '"gpu"', "none of 2 living workers")
    add_worker(session, "gpu:1:x", tags="arm,gpu")
    because(session, job, "about_to_start")


def test_all_slots_are_busy_and_how_many_runs_are_before_it(
    session: Session, worker: CronWorkerRecord
) -> None:
    for _ in range(2):
        running(session)
    before = [job_of(session, priority=9) for _ in range(3)]
    job = job_of(session)
    lifecycle.enqueue_due(session)
    because(session, job, "busy", "all 2 slots of 1 living worker are busy", "3 runs are due before it")
    because(session, before[0], "busy", "0 runs are due before it")


def test_workers_that_shut_down_take_nothing(session: Session) -> None:
    add_worker(session, draining=True)
    job = job_of(session)
    lifecycle.enqueue_due(session)
    because(session, job, "draining", "shut down")


def test_a_due_run_with_a_free_worker_is_about_to_start_but_not_for_ever(
    session: Session, worker: CronWorkerRecord
) -> None:
    job = job_of(session)
    because(session, job, "about_to_start", "as soon as a worker looks")
    lifecycle.enqueue_due(session)
    because(session, job, "about_to_start", "has been due since")
    found = explain(session, job.id, db.now(session) + timedelta(seconds=20))
    assert found.reasons[0].code == "overdue"
    assert WORKER in found.reasons[0].text


# -- it is not due ---------------------------------------------------------------------------------------------


def test_the_next_slot_lies_ahead(session: Session, worker: CronWorkerRecord) -> None:
    job = job_of(session, next_run_time=later(session))
    because(session, job, "next_slot", shown(job.next_run_time), "59 minutes")


def test_its_schedule_has_not_started(session: Session, worker: CronWorkerRecord) -> None:
    begins = ago(session, days=-2)
    job = job_of(session, starts_at=begins, next_run_time=begins)
    because(session, job, "starts_at", shown(begins))


def test_a_manual_job_runs_when_asked(session: Session, worker: CronWorkerRecord) -> None:
    job = job_of(session, schedule_type="manual", next_run_time=None)
    because(session, job, "manual", "a person, a program or a parent")


def test_a_row_inserted_by_hand_gets_its_slot_from_a_worker(session: Session) -> None:
    job = job_of(session, next_run_time=later(session))
    session.execute(sa.update(CronJob).values(next_run_time=None))
    session.commit()
    because(session, job, "no_worker")
    add_worker(session)
    because(session, job, "unplanned", "within seconds")


def test_an_interval_from_completion_is_planned_when_the_run_ends(
    session: Session, worker: CronWorkerRecord
) -> None:
    job, _ = running(session, interval_anchor="completion")
    assert codes(explain(session, job.id)) == ["running", "overlap_policy"]


def test_a_job_without_code_is_told_beside_the_rest(session: Session, worker: CronWorkerRecord) -> None:
    job = job_of(session, current_version=None, next_run_time=later(session))
    assert "no_code" in codes(explain(session, job.id))

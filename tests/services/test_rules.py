"""Each rule of when and whether a slot runs, by its name: what test_lifecycle does not already hold."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from kytecron.core.errors import Conflict, Invalid
from kytecron.core.schedule import jitter_offset
from kytecron.core.states import Claim, Outcome, Status
from kytecron.services import lifecycle
from kytecron.services.audit import Actor
from kytecron.services.jobs import CronJobManager
from kytecron.store import db
from kytecron.store.models import CronJob, CronJobDependency, CronJobExecution
from tests.factories import LEASE, WORKER, add_job, ago, claim_one, fresh, runs_of

ANNA = Actor("anna")
DONE = Outcome(Status.COMPLETED, duration_ms=120)
FAILED = Outcome(Status.FAILED, error="ValueError: no", duration_ms=10)


def statuses(session: Session, job: CronJob) -> list[str]:
    return [run.status for run in runs_of(session, job)]


def comes_due(session: Session, job: CronJob) -> None:
    """Let another slot of the job come due."""
    fresh(session, job).next_run_time = db.now(session)
    session.commit()
    lifecycle.enqueue_due(session)


def start(session: Session, job: CronJob) -> Claim:
    """Let a slot of the job come due and claim it; nothing else may be due."""
    comes_due(session, job)
    claim = claim_one(session)
    assert claim.job_id == job.id
    return claim


def settle(session: Session, claim: Claim, outcome: Outcome = DONE) -> None:
    assert lifecycle.settle(session, [(claim, outcome)]).ended == {claim.execution_id}


def claims_now(session: Session) -> dict[int, Claim]:
    """Everything that is due, claimed, by job."""
    return {run.claim.job_id: run.claim for run in lifecycle.claim(session, WORKER, (), 50, LEASE)}


def waiting_job(session: Session, *parents: CronJob, **fields: object) -> CronJob:
    """A job with these parents; its first slot is an hour away."""
    job = add_job(session, **({"next_run_time": ago(session, hours=-1)} | fields))
    session.add_all(CronJobDependency(cron_job=job.id, parent=parent.id) for parent in parents)
    session.commit()
    return job


def resting_job(session: Session, **fields: object) -> CronJob:
    """A job that is started by hand."""
    return add_job(session, **({"schedule_type": "manual", "next_run_time": None} | fields))


def run_by_hand(session: Session, job: CronJob, outcome: Outcome = DONE) -> int:
    lifecycle.trigger(session, job.id, actor=ANNA)
    claim = claim_one(session)
    assert claim.job_id == job.id
    settle(session, claim, outcome)
    return claim.execution_id


# -- missed slots ----------------------------------------------------------------------------------------------


def missed(session: Session, **fields: object) -> CronJob:
    """A job of every hour that three slots of have come, the newest ten minutes ago."""
    first = ago(session, hours=2, minutes=10)
    return add_job(session, schedule_anchor=first, next_run_time=first, **fields)


@pytest.mark.parametrize(
    ("policy", "grace", "wanted"),
    [
        ("run_once", 60, ["skipped", "skipped", "pending"]),
        ("skip", 60, ["skipped", "skipped", "skipped"]),
        ("skip", 3600, ["skipped", "skipped", "pending"]),
        ("run_all", 60, ["pending", "pending", "pending"]),
    ],
)
def test_missed_slots_follow_the_misfire_policy_and_each_is_in_the_ledger(
    session: Session, policy: str, grace: int, wanted: list[str]
) -> None:
    job = missed(session, misfire_policy=policy, misfire_grace_seconds=grace)
    lifecycle.enqueue_due(session)
    assert statuses(session, job) == wanted
    reasons = [run.skipped_reason for run in runs_of(session, job) if run.status == "skipped"]
    assert all(reasons)
    assert fresh(session, job).next_run_time == job.schedule_anchor + timedelta(hours=3)


def test_run_all_runs_missed_slots_one_after_another_the_oldest_first(session: Session) -> None:
    job = missed(session, misfire_policy="run_all")
    lifecycle.enqueue_due(session)
    order = []
    while runs := lifecycle.claim(session, WORKER, (), 5, LEASE):
        (run,) = runs
        order.append(run.scheduled_time)
        settle(session, run.claim)
    assert order == [job.schedule_anchor + timedelta(hours=k) for k in range(3)]


def test_run_all_runs_missed_slots_together_where_runs_may_overlap(session: Session) -> None:
    missed(session, misfire_policy="run_all", overlap_policy="allow")
    lifecycle.enqueue_due(session)
    assert len(lifecycle.claim(session, WORKER, (), 5, LEASE)) == 3


def test_time_disabled_owes_nothing(session: Session) -> None:
    job = missed(session, misfire_policy="run_all", enabled=False)
    assert lifecycle.enqueue_due(session) == 0
    CronJobManager(session, ANNA).enable(job.id)
    lifecycle.enqueue_due(session)
    (run,) = runs_of(session, job)
    assert run.scheduled_time > ago(session, minutes=1)


# -- intervals that count from the end of the last run ----------------------------------------------------------


def after_its_runs(session: Session, **fields: object) -> CronJob:
    """A job of every hour after the last run's end, made long ago at another minute; its slot is an hour away."""
    made = ago(session, days=3, minutes=29)
    values = {
        "interval_anchor": "completion",
        "schedule_anchor": made,
        "next_run_time": ago(session, hours=-1),
    }
    return add_job(session, **(values | fields))


@pytest.mark.parametrize("policy", ["run_once", "run_all"])
def test_an_interval_counted_from_completion_owes_one_slot_however_late_it_is(
    session: Session, policy: str
) -> None:
    slot = ago(session, hours=5)
    job = after_its_runs(session, next_run_time=slot, misfire_policy=policy)
    lifecycle.enqueue_due(session)
    assert [(run.status, run.scheduled_time) for run in runs_of(session, job)] == [("pending", slot)]


def test_an_interval_counted_from_completion_waits_again_after_a_slot_that_was_skipped(
    session: Session,
) -> None:
    job = after_its_runs(session, next_run_time=ago(session, hours=5), misfire_policy="skip")
    lifecycle.enqueue_due(session)
    assert statuses(session, job) == ["skipped"]
    before = db.now(session)
    assert lifecycle.adopt(session) == 1
    assert before <= fresh(session, job).next_run_time - timedelta(hours=1) <= db.now(session)


def test_an_interval_counted_from_completion_counts_from_the_last_of_runs_that_overlap(
    session: Session,
) -> None:
    job = after_its_runs(session, overlap_policy="allow")
    first = start(session, job)
    second = lifecycle.trigger(session, job.id, actor=ANNA)
    settle(session, first)
    assert fresh(session, job).next_run_time is None
    settle(session, claim_one(session))
    ended = fresh(session, second).completed_at
    assert fresh(session, job).next_run_time == ended + timedelta(hours=1)


def test_an_interval_counted_from_completion_has_no_slot_before_its_schedule_starts(session: Session) -> None:
    opens = ago(session, days=-2)
    job = after_its_runs(session, starts_at=opens, next_run_time=opens)
    run_by_hand(session, job)
    assert fresh(session, job).next_run_time == opens


def test_an_edit_during_a_run_leaves_the_next_slot_to_the_end_of_the_run(session: Session) -> None:
    job = after_its_runs(session)
    claim = start(session, job)
    CronJobManager(session, ANNA).update_job(job.id, interval_seconds=60)
    assert fresh(session, job).next_run_time is None
    settle(session, claim)
    (run,) = runs_of(session, job)
    assert run.completed_at is not None
    assert fresh(session, job).next_run_time == run.completed_at + timedelta(seconds=60)


@pytest.mark.parametrize("interval", [None, 0, -5])
def test_a_run_ends_well_although_its_row_makes_no_schedule_any_more(
    session: Session, interval: int | None
) -> None:
    job = after_its_runs(session)
    claim = start(session, job)
    session.execute(sa.update(CronJob).where(CronJob.id == job.id).values(interval_seconds=interval))
    session.commit()
    settle(session, claim)
    assert statuses(session, job) == ["completed"]
    lifecycle.adopt(session)
    assert "interval_seconds" in fresh(session, job).disabled_reason


# -- overlap ---------------------------------------------------------------------------------------------------


def test_a_slot_that_overlap_skips_uses_up_none_of_max_runs(session: Session) -> None:
    job = add_job(session, max_runs=1, next_run_time=ago(session, hours=-1))
    lifecycle.trigger(session, job.id, actor=ANNA)
    claim = claim_one(session)
    comes_due(session, job)
    assert statuses(session, job) == ["running", "skipped"]
    assert fresh(session, job).enabled
    settle(session, claim)
    comes_due(session, job)
    assert statuses(session, job) == ["completed", "skipped", "pending"]
    assert fresh(session, job).disabled_reason == "max_runs reached"


def test_overlap_replace_calls_off_a_run_that_has_not_started_and_starts_the_new_one_at_once(
    session: Session,
) -> None:
    job = resting_job(session, overlap_policy="replace")
    lifecycle.trigger(session, job.id, actor=ANNA)
    second = lifecycle.trigger(session, job.id, actor=ANNA)
    assert statuses(session, job) == ["cancelled", "pending"]
    assert claim_one(session).execution_id == second.id


def test_overlap_replace_stops_the_old_run_when_parents_start_the_new_one(session: Session) -> None:
    parent = resting_job(session)
    child = waiting_job(
        session,
        parent,
        schedule_type="manual",
        next_run_time=None,
        dependency_mode="trigger",
        overlap_policy="replace",
    )
    run_by_hand(session, parent)
    old = claim_one(session)
    lifecycle.trigger(session, parent.id, actor=ANNA)
    settle(session, claim_one(session))
    assert statuses(session, child) == ["running", "pending"]
    stop = lifecycle.look(session, WORKER, leased=[old]).stops[old.execution_id]
    assert "replaced" in stop.reason
    settle(session, old, Outcome(Status.CANCELLED, error="replaced"))
    assert claim_one(session).execution_id == runs_of(session, child)[1].id


def test_a_queued_trigger_waits_for_the_run_and_a_second_one_is_refused(session: Session) -> None:
    job = resting_job(session, overlap_policy="queue")
    first = lifecycle.trigger(session, job.id, actor=ANNA)
    claim = claim_one(session)
    waits = lifecycle.trigger(session, job.id, actor=ANNA)
    assert runs_of(session, job)[1].waiting_for == f"execution {first.id}"
    with pytest.raises(Conflict, match=f"execution {waits.id} waits already"):
        lifecycle.trigger(session, job.id, actor=ANNA)
    settle(session, claim)
    assert claim_one(session).execution_id == waits.id


def test_a_queue_holds_as_many_as_its_length_and_keeps_their_order(session: Session) -> None:
    job = resting_job(session, overlap_policy="queue", queue_length=3)
    started = [lifecycle.trigger(session, job.id, actor=ANNA).id for _ in range(4)]
    with pytest.raises(Conflict, match=r"3 runs wait already \(overlap_policy queue, queue_length 3\)"):
        lifecycle.trigger(session, job.id, actor=ANNA)
    order = []
    for _ in started:
        claim = claim_one(session)
        order.append(claim.execution_id)
        assert claims_now(session) == {}
        settle(session, claim)
    assert order == started


def test_due_slots_fill_the_queue_and_the_rest_is_skipped_with_its_length(session: Session) -> None:
    job = add_job(session, overlap_policy="queue", queue_length=2, misfire_policy="run_all")
    lifecycle.enqueue_due(session)
    claim = claim_one(session)
    fresh(session, job).next_run_time = ago(session, hours=4, seconds=1)
    job.schedule_anchor = job.next_run_time
    session.commit()
    lifecycle.enqueue_due(session)
    assert statuses(session, job) == ["running", "pending", "pending", "skipped", "skipped", "skipped"]
    waiting, left_out = runs_of(session, job)[1:3], runs_of(session, job)[3:]
    assert {run.skipped_reason for run in left_out} == {
        "2 runs wait already (overlap_policy queue, queue_length 2)"
    }
    assert [run.scheduled_time for run in waiting] == sorted(run.scheduled_time for run in waiting)
    settle(session, claim)
    assert claim_one(session).execution_id == waiting[0].id


def test_runs_that_parents_start_queue_up_to_the_length_too(session: Session) -> None:
    parent = resting_job(session, overlap_policy="allow")
    child = waiting_job(
        session,
        parent,
        schedule_type="manual",
        next_run_time=None,
        dependency_mode="trigger",
        overlap_policy="queue",
        queue_length=2,
    )
    for _ in range(4):
        lifecycle.trigger(session, parent.id, actor=ANNA)
        settle(session, claims_now(session)[parent.id])
        claims_now(session)  # the child runs from the first time on
    assert statuses(session, child) == ["running", "pending", "pending", "skipped"]


@pytest.mark.parametrize("length", [1, 3])
def test_triggers_at_once_never_exceed_the_queue(engine: Engine, session: Session, length: int) -> None:
    job = resting_job(session, overlap_policy="queue", queue_length=length)
    lifecycle.trigger(session, job.id, actor=ANNA)
    together = threading.Barrier(6)

    def ask(_: int) -> bool:
        with db.make_sessions(engine)() as own:
            together.wait()
            try:
                lifecycle.trigger(own, job.id, actor=ANNA)
            except Conflict:
                return False
            return True

    with ThreadPoolExecutor(6) as pool:
        taken = sum(pool.map(ask, range(6)))
    assert taken == length
    assert statuses(session, job) == ["pending"] * (length + 1)
    assert sum(run.due_time is None for run in runs_of(session, job)) == length


# -- dependencies: gate ----------------------------------------------------------------------------------------


def test_a_gate_opens_only_when_every_parent_has_completed(session: Session) -> None:
    slot = ago(session, seconds=1)
    first = add_job(session, schedule_anchor=slot, next_run_time=slot)
    second = add_job(session, schedule_anchor=slot, next_run_time=slot)
    child = waiting_job(session, first, second, schedule_anchor=slot, next_run_time=slot)
    lifecycle.enqueue_due(session)
    claims = claims_now(session)
    assert claims.keys() == {first.id, second.id}
    settle(session, claims[first.id])
    (waits,) = runs_of(session, child)
    assert waits.waiting_for == f'"{second.name}" to end'
    settle(session, claims[second.id])
    assert claim_one(session).job_id == child.id
    assert sorted(runs_of(session, child)[0].parents_used or []) == sorted(
        claim.execution_id for claim in claims.values()
    )


def test_a_gate_waits_for_a_parents_retries_before_it_judges(session: Session) -> None:
    slot = ago(session, seconds=1)
    parent = add_job(session, schedule_anchor=slot, next_run_time=slot, retry_strategy="immediate")
    child = waiting_job(session, parent, schedule_anchor=slot, next_run_time=slot)
    lifecycle.enqueue_due(session)
    settle(session, claim_one(session), FAILED)
    assert statuses(session, child) == ["pending"]
    settle(session, claim_one(session))
    assert claim_one(session).job_id == child.id


def test_a_gate_skips_with_the_reason_when_a_parent_never_ran_or_is_disabled_or_deleted(
    session: Session,
) -> None:
    parent = resting_job(session)
    child = waiting_job(session, parent)
    comes_due(session, child)
    CronJobManager(session, ANNA).disable(parent.id)
    comes_due(session, child)
    CronJobManager(session, ANNA).delete(parent.id)
    comes_due(session, child)
    name = f'"{parent.name}"'
    assert [run.skipped_reason for run in runs_of(session, child)] == [
        f"{name} has never run",
        f"{name} is disabled",
        f"{name} was deleted",
    ]


def test_a_gate_waits_its_whole_time_also_for_a_slot_that_comes_late(session: Session) -> None:
    """After an outage longer than the timeout the parents come as late as the child."""
    slot = ago(session, hours=2)
    parent = add_job(session, schedule_anchor=slot, next_run_time=slot, interval_seconds=86_400)
    child = waiting_job(
        session,
        parent,
        schedule_anchor=slot,
        next_run_time=slot,
        interval_seconds=86_400,
        dependency_timeout_seconds=3600,
    )
    lifecycle.enqueue_due(session)
    lifecycle.release_waiting(session)
    assert statuses(session, child) == ["pending"]
    settle(session, claim_one(session))
    assert claim_one(session).job_id == child.id


def test_require_fresh_wants_a_parents_success_since_this_jobs_own_last_one(session: Session) -> None:
    parent = resting_job(session)
    child = waiting_job(session, parent, require_fresh=True)
    run_by_hand(session, parent)
    settle(session, start(session, child))
    comes_due(session, child)
    assert "has not completed again since" in (runs_of(session, child)[-1].skipped_reason or "")
    run_by_hand(session, parent)
    settle(session, start(session, child))
    assert statuses(session, child) == ["completed", "skipped", "completed"]


def test_without_require_fresh_an_old_success_of_the_parent_serves_again(session: Session) -> None:
    parent = resting_job(session)
    child = waiting_job(session, parent)
    used = run_by_hand(session, parent)
    settle(session, start(session, child))
    settle(session, start(session, child))
    assert [run.parents_used for run in runs_of(session, child)] == [[used], [used]]


def test_a_long_run_of_the_parent_counts_however_many_slots_were_skipped_behind_it(session: Session) -> None:
    parent = add_job(session, next_run_time=ago(session, hours=-1))
    claim = start(session, parent)
    for _ in range(25):
        comes_due(session, parent)
    child = waiting_job(session, parent)
    comes_due(session, child)
    settle(session, claim)
    (run,) = runs_of(session, child)
    assert (run.status, run.parents_used) == ("pending", [claim.execution_id])
    assert run.due_time is not None


def test_a_gate_does_not_judge_a_newer_chain_of_the_parent_that_is_still_retrying(session: Session) -> None:
    parent = add_job(session, next_run_time=ago(session, hours=-1))
    completed = start(session, parent)
    settle(session, completed)
    slot = db.now(session)
    settle(session, start(session, parent), FAILED)
    child = waiting_job(session, parent, next_run_time=slot)
    lifecycle.enqueue_due(session)
    (run,) = runs_of(session, child)
    assert (run.status, run.parents_used) == ("pending", [completed.execution_id])


def test_a_slot_that_a_gate_skips_uses_up_none_of_max_runs(session: Session) -> None:
    parent = resting_job(session, max_retries=0)
    child = waiting_job(session, parent, max_runs=1)
    comes_due(session, child)
    assert statuses(session, child) == ["skipped"]  # the parent has never run
    assert fresh(session, child).enabled
    assert child.next_run_time > db.now(session)
    run_by_hand(session, parent)
    comes_due(session, child)
    assert statuses(session, child) == ["skipped", "pending"]
    assert fresh(session, child).disabled_reason == "max_runs reached"


def test_a_slot_that_was_held_keeps_its_jitter(session: Session) -> None:
    parent = resting_job(session)
    run_by_hand(session, parent)
    child = waiting_job(session, parent, jitter_seconds=3600)
    comes_due(session, child)
    (run,) = runs_of(session, child)
    assert run.due_time == run.scheduled_time + jitter_offset(child.id, 3600)


def test_a_person_may_run_a_gated_job_without_asking_its_parents(session: Session) -> None:
    child = waiting_job(session, resting_job(session))
    run_by_hand(session, child)
    assert statuses(session, child) == ["completed"]


def test_a_held_slot_is_called_off_when_its_job_is_disabled(session: Session) -> None:
    slot = ago(session, seconds=1)
    parent = add_job(session, schedule_anchor=slot, next_run_time=slot)
    child = waiting_job(session, parent, schedule_anchor=slot, next_run_time=slot)
    lifecycle.enqueue_due(session)
    CronJobManager(session, ANNA).disable(child.id)
    assert statuses(session, child) == ["cancelled"]
    settle(session, claim_one(session))
    assert statuses(session, child) == ["cancelled"]


# -- dependencies: trigger -------------------------------------------------------------------------------------


def triggered(session: Session, *parents: CronJob, **fields: object) -> CronJob:
    values = {"schedule_type": "manual", "next_run_time": None, "dependency_mode": "trigger"}
    return waiting_job(session, *parents, **(values | fields))


def test_a_triggered_job_runs_once_for_each_round_of_its_parents(session: Session) -> None:
    first, second = resting_job(session), resting_job(session)
    child = triggered(session, first, second)
    for round_number in (1, 2):
        run_by_hand(session, first)
        run_by_hand(session, first)  # again: the second parent is still missing
        assert len(runs_of(session, child)) == round_number - 1
        run_by_hand(session, second)
        settle(session, claim_one(session))
    assert statuses(session, child) == ["completed", "completed"]
    assert {run.origin for run in runs_of(session, child)} == {"trigger"}


def test_a_failure_of_a_parent_triggers_nothing_and_its_later_success_does(session: Session) -> None:
    parent = resting_job(session, retry_strategy="immediate")
    child = triggered(session, parent)
    lifecycle.trigger(session, parent.id, actor=ANNA)
    settle(session, claim_one(session), FAILED)
    assert runs_of(session, child) == []
    settle(session, claim_one(session))
    assert statuses(session, child) == ["pending"]


def triggered_job(session: Session, parent: CronJob, **fields: object) -> CronJob:
    resting = {"schedule_type": "manual", "next_run_time": None, "dependency_mode": "trigger"}
    return waiting_job(session, parent, **(resting | fields))


def test_max_runs_counts_what_parents_start(session: Session) -> None:
    parent = resting_job(session)
    child = triggered_job(session, parent, max_runs=2)
    for _ in range(2):
        run_by_hand(session, parent)
        settle(session, claim_one(session))
    assert fresh(session, child).disabled_reason == "max_runs reached"
    run_by_hand(session, parent)
    assert statuses(session, child) == ["completed", "completed"]


def test_parents_start_nothing_before_the_childs_schedule_starts(session: Session) -> None:
    parent = resting_job(session)
    child = triggered_job(session, parent, starts_at=ago(session, hours=-1))
    run_by_hand(session, parent)
    assert statuses(session, child) == []
    assert fresh(session, child).enabled


def test_parents_start_nothing_after_the_childs_schedule_has_ended(session: Session) -> None:
    parent = resting_job(session)
    child = triggered_job(session, parent, ends_at=ago(session, hours=1))
    run_by_hand(session, parent)
    assert statuses(session, child) == []
    assert fresh(session, child).disabled_reason == "its schedule has ended"


def test_a_disabled_job_is_not_triggered(session: Session) -> None:
    parent = resting_job(session)
    child = triggered(session, parent, enabled=False)
    run_by_hand(session, parent)
    assert runs_of(session, child) == []


def test_a_row_of_jobs_hands_on_from_parent_to_child(session: Session) -> None:
    first = resting_job(session)
    second = triggered(session, first)
    third = triggered(session, second)
    run_by_hand(session, first)
    settle(session, claim_one(session))
    assert claim_one(session).job_id == third.id


# -- where and in which order ----------------------------------------------------------------------------------


def test_another_worker_tag_moves_what_waits_already(session: Session) -> None:
    job = add_job(session, worker_tag="gpu")
    lifecycle.enqueue_due(session)
    assert lifecycle.claim(session, WORKER, (), 5, LEASE) == []
    CronJobManager(session, ANNA).update_job(job.id, worker_tag="")
    assert claim_one(session).job_id == job.id


def test_another_priority_moves_what_waits_already(session: Session) -> None:
    for priority in (5, 4):
        add_job(session, priority=priority)
    lifecycle.enqueue_due(session)
    first, second = session.scalars(sa.select(CronJob).order_by(CronJob.id))
    CronJobManager(session, ANNA).update_job(second.id, priority=9)
    assert [run.claim.job_id for run in lifecycle.claim(session, WORKER, (), 5, LEASE)] == [
        second.id,
        first.id,
    ]


def test_a_low_priority_gets_its_turn_before_a_high_one_that_came_five_minutes_later(
    session: Session,
) -> None:
    """Priority is a handicap of 30 s a step: nothing starves."""
    old = add_job(session, priority=0, next_run_time=ago(session, seconds=280), misfire_grace_seconds=3600)
    new = add_job(session, priority=9)
    older = add_job(session, priority=0, next_run_time=ago(session, seconds=260), misfire_grace_seconds=3600)
    lifecycle.enqueue_due(session)
    order = [run.claim.job_id for run in lifecycle.claim(session, WORKER, (), 5, LEASE)]
    assert order == [old.id, new.id, older.id]


def test_a_worker_without_the_tag_is_not_kept_from_other_runs(session: Session) -> None:
    for _ in range(5):
        add_job(session, worker_tag="gpu")
    plain = add_job(session)
    lifecycle.enqueue_due(session)
    assert list(claims_now(session)) == [plain.id]


def test_jitter_is_the_same_offset_for_every_slot_and_none_for_a_run_by_hand(session: Session) -> None:
    job = add_job(session, jitter_seconds=600, overlap_policy="allow")
    lifecycle.enqueue_due(session)
    comes_due(session, job)
    lifecycle.trigger(session, job.id, actor=ANNA)
    offsets = [_offset(run) for run in runs_of(session, job)]
    assert offsets[0] == offsets[1] > timedelta(0)
    assert offsets[2] == timedelta(0)


def _offset(run: CronJobExecution) -> timedelta:
    assert run.due_time is not None
    return run.due_time - run.scheduled_time


# -- retries ---------------------------------------------------------------------------------------------------


def test_retry_now_skips_the_delay(session: Session) -> None:
    job = add_job(session, retry_delay_seconds=3600)
    lifecycle.enqueue_due(session)
    first = claim_one(session)
    settle(session, first, FAILED)
    assert claims_now(session) == {}
    retry = lifecycle.retry_now(session, first.execution_id, ANNA)
    assert claim_one(session).execution_id == retry.id == runs_of(session, job)[1].id


def test_retry_now_is_refused_where_no_retry_waits(session: Session) -> None:
    job = resting_job(session)
    done = run_by_hand(session, job)
    with pytest.raises(Conflict, match="has no retry waiting; run it again instead"):
        lifecycle.retry_now(session, done, ANNA)


def test_cancelling_a_retry_ends_the_chain_and_is_no_failure(session: Session) -> None:
    job = add_job(session)
    lifecycle.enqueue_due(session)
    settle(session, claim_one(session), FAILED)
    lifecycle.cancel(session, runs_of(session, job)[1].id, ANNA)
    assert statuses(session, job) == ["failed", "cancelled"]
    assert (fresh(session, job).enabled, job.consecutive_failures) == (True, 0)


@pytest.mark.parametrize("ending", [FAILED, Outcome(Status.LOST, error="its worker vanished")])
def test_a_run_that_was_asked_to_stop_is_not_retried_however_it_ends(
    session: Session, ending: Outcome
) -> None:
    job = resting_job(session)
    lifecycle.trigger(session, job.id, actor=ANNA)
    claim = claim_one(session)
    lifecycle.cancel(session, claim.execution_id, ANNA)
    settle(session, claim, ending)
    assert statuses(session, job) == [str(ending.status)]
    assert not fresh(session, job).in_dead_letter_queue


def test_a_retry_keeps_what_its_run_was_asked_with(session: Session) -> None:
    job = resting_job(session, retry_strategy="immediate", parameters={"size": 1})
    lifecycle.trigger(session, job.id, parameters={"size": 2}, note="by hand", actor=ANNA)
    settle(session, claim_one(session), FAILED)
    (run,) = lifecycle.claim(session, WORKER, (), 1, LEASE)
    assert run.parameters == {"size": 2}
    assert runs_of(session, job)[1].note == "by hand"


# -- backfill --------------------------------------------------------------------------------------------------


def past(session: Session, **fields: object) -> tuple[CronJob, datetime]:
    """A job of every hour whose first slot, returned too, was five hours ago, and none of it ran."""
    anchor = ago(session, hours=5)
    return add_job(
        session, schedule_anchor=anchor, next_run_time=anchor + timedelta(hours=6), **fields
    ), anchor


def test_a_dry_run_of_a_backfill_says_what_would_run_and_changes_nothing(session: Session) -> None:
    job, anchor = past(session)
    lifecycle.backfill(session, job.id, anchor, anchor + timedelta(hours=1), ANNA)
    settle(session, claim_one(session))
    plan = lifecycle.backfill(session, job.id, anchor, anchor + timedelta(hours=3), ANNA, dry_run=True)
    assert [(item.status, item.will_run) for item in plan] == [
        ("completed", False),
        (None, True),
        (None, True),
    ]
    assert statuses(session, job) == ["completed"]


def test_a_backfill_has_its_start_and_not_its_end(session: Session) -> None:
    job, anchor = past(session)
    plan = lifecycle.backfill(session, job.id, anchor, anchor + timedelta(hours=2), ANNA, dry_run=True)
    assert [item.slot for item in plan] == [anchor, anchor + timedelta(hours=1)]


def test_a_backfill_of_a_job_whose_runs_may_overlap_runs_together(session: Session) -> None:
    job, anchor = past(session, overlap_policy="allow")
    lifecycle.backfill(session, job.id, anchor, anchor + timedelta(hours=3), ANNA)
    assert len(lifecycle.claim(session, WORKER, (), 10, LEASE)) == 3


def test_a_backfill_of_the_future_or_of_too_much_is_refused(session: Session) -> None:
    job, anchor = past(session, interval_seconds=1)
    with pytest.raises(Invalid, match="must not lie in the future"):
        lifecycle.backfill(session, job.id, anchor, ago(session, hours=-1), ANNA)
    with pytest.raises(Invalid, match="more than 1000 slots"):
        lifecycle.backfill(session, job.id, anchor, anchor + timedelta(hours=1), ANNA, dry_run=True)


# -- by hand ---------------------------------------------------------------------------------------------------


def test_a_job_in_the_dead_letter_queue_refuses_a_trigger_in_the_words_of_the_original(
    session: Session,
) -> None:
    job = resting_job(session, max_retries=0)
    run_by_hand(session, job, FAILED)
    with pytest.raises(Conflict, match=r"^Job is in dead letter queue. Recover it first.$"):
        lifecycle.trigger(session, job.id, actor=ANNA)


def test_a_run_by_hand_takes_no_slot_and_moves_none(session: Session) -> None:
    job = add_job(session, next_run_time=ago(session, hours=-1))
    before = job.next_run_time
    run_by_hand(session, job)
    assert fresh(session, job).next_run_time == before


def test_run_again_on_the_same_version_asks_for_that_version(session: Session) -> None:
    job = resting_job(session, current_version=4)
    first = run_by_hand(session, job)
    again = lifecycle.rerun(session, first, ANNA, same_version=True)
    assert again.requested_version == 4


def test_a_run_that_goes_on_cannot_be_run_again(session: Session) -> None:
    job = resting_job(session)
    run = lifecycle.trigger(session, job.id, actor=ANNA)
    with pytest.raises(Conflict, match="only an ended one can run again"):
        lifecycle.rerun(session, run.id, ANNA)

"""From slot to result: each rule of the ledger, on every database."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from kytecron.config import Settings
from kytecron.core.errors import Conflict, Invalid
from kytecron.core.fields import Reader, read_by
from kytecron.core.states import Claim, Origin, Outcome, Status
from kytecron.services import lifecycle
from kytecron.services.audit import Actor
from kytecron.store import db
from kytecron.store.models import (
    CronAudit,
    CronJob,
    CronJobDailyStat,
    CronJobDependency,
    CronJobExecution,
    CronJobOutput,
)
from tests.factories import LEASE, WORKER, add_job, add_worker, ago, claim_one, fresh, runs_of
from tests.rawsql import typed

ANNA = Actor("anna")
DONE = Outcome(Status.COMPLETED, duration_ms=120)


def failed(error: str = "ValueError: no") -> Outcome:
    return Outcome(Status.FAILED, error=error, duration_ms=10)


def statuses(session: Session, job: CronJob) -> list[str]:
    return [run.status for run in runs_of(session, job)]


# -- due slots -------------------------------------------------------------------------------------------------


def test_a_due_slot_becomes_one_pending_run_and_the_job_moves_on(session: Session) -> None:
    job = add_job(session)
    slot = job.next_run_time
    assert lifecycle.enqueue_due(session) == 1
    assert lifecycle.enqueue_due(session) == 0
    (run,) = runs_of(session, job)
    assert (run.status, run.scheduled_time, run.origin) == (Status.PENDING, slot, Origin.SCHEDULE)
    assert fresh(session, job).next_run_time == slot + timedelta(hours=1)


def test_the_unique_key_makes_a_second_run_of_a_slot_impossible(session: Session) -> None:
    job = add_job(session)
    slot = job.next_run_time
    lifecycle.enqueue_due(session)
    job.next_run_time = slot
    session.commit()
    lifecycle.enqueue_due(session)
    assert len(runs_of(session, job)) == 1


def test_workers_that_enqueue_at_once_make_each_slot_once(sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        jobs = [add_job(session) for _ in range(30)]
    start = threading.Barrier(4)

    def enqueue() -> None:
        with sessions() as own:
            start.wait()
            while lifecycle.enqueue_due(own, limit=7):
                pass

    in_parallel(enqueue, 4)
    with sessions() as session:
        assert [len(runs_of(session, job)) for job in jobs] == [1] * 30


def test_missed_slots_run_once_and_the_older_ones_are_recorded_as_skipped(session: Session) -> None:
    first = ago(session, hours=3, seconds=5)
    job = add_job(session, schedule_anchor=first, next_run_time=first)
    lifecycle.enqueue_due(session)
    assert statuses(session, job) == ["skipped", "skipped", "skipped", "pending"]
    assert "misfire_policy run_once" in (runs_of(session, job)[0].skipped_reason or "")


def test_a_job_without_sense_is_disabled_with_the_reason_and_the_others_go_on(session: Session) -> None:
    bad = add_job(session, schedule_type="cron", cron_expression="every noon")
    good = add_job(session)
    lifecycle.enqueue_due(session)
    bad = fresh(session, bad)
    assert not bad.enabled
    assert "cannot be scheduled" in (bad.disabled_reason or "")
    assert statuses(session, good) == ["pending"]


def test_max_runs_disables_the_job_with_the_reason_but_its_last_slot_keeps_its_retries(
    session: Session,
) -> None:
    job = add_job(session, max_runs=1)
    lifecycle.enqueue_due(session)
    job = fresh(session, job)
    assert (job.enabled, job.disabled_reason) == (False, "max_runs reached")
    lifecycle.settle(session, [(claim_one(session), failed())])
    assert statuses(session, job) == ["failed", "pending"]


def test_a_row_inserted_by_hand_gets_its_next_slot(session: Session) -> None:
    session.execute(
        typed(
            session,
            "INSERT INTO CronJob (name, schedule_type, time_of_day, timezone) "
            "VALUES ('by hand', 'daily', '02:00:00', 'America/New_York')",
        )
    )
    session.commit()
    assert lifecycle.adopt(session) == 1
    assert session.scalars(sa.select(CronJob)).one().next_run_time is not None


def test_jitter_moves_the_start_by_the_same_amount_each_time(session: Session) -> None:
    job = add_job(session, jitter_seconds=600)
    lifecycle.enqueue_due(session)
    (run,) = runs_of(session, job)
    assert run.due_time is not None
    assert timedelta(0) < run.due_time - run.scheduled_time < timedelta(minutes=10)


# -- overlap ---------------------------------------------------------------------------------------------------


def second_slot(session: Session, job: CronJob) -> None:
    """Let another slot of the job come due."""
    fresh(session, job).next_run_time = db.now(session)
    session.commit()
    lifecycle.enqueue_due(session)


def running_job(session: Session, **fields: object) -> tuple[CronJob, Claim]:
    job = add_job(session, **fields)
    lifecycle.enqueue_due(session)
    return job, claim_one(session)


def test_overlap_skip_records_the_slot_with_the_run_that_was_in_its_way(session: Session) -> None:
    job, claim = running_job(session)
    second_slot(session, job)
    assert statuses(session, job) == ["running", "skipped"]
    assert f"execution {claim.execution_id} was still running" in (
        runs_of(session, job)[1].skipped_reason or ""
    )


def test_a_chain_that_waits_for_its_retry_counts_as_running(session: Session) -> None:
    job, claim = running_job(session)
    lifecycle.settle(session, [(claim, failed())])
    second_slot(session, job)
    assert statuses(session, job) == ["failed", "pending", "skipped"]


def test_overlap_queue_lets_one_wait_and_starts_it_when_the_chain_ends(session: Session) -> None:
    job, claim = running_job(session, overlap_policy="queue")
    second_slot(session, job)
    second_slot(session, job)
    assert statuses(session, job) == ["running", "pending", "skipped"]
    assert lifecycle.claim(session, WORKER, (), 5, LEASE) == []
    lifecycle.settle(session, [(claim, DONE)])
    assert claim_one(session).execution_id == runs_of(session, job)[1].id


def test_overlap_allow_runs_both(session: Session) -> None:
    job, _ = running_job(session, overlap_policy="allow")
    second_slot(session, job)
    claim_one(session)
    assert statuses(session, job) == ["running", "running"]


def test_overlap_replace_stops_the_old_run_and_starts_the_new_one_after_it(session: Session) -> None:
    job, claim = running_job(session, overlap_policy="replace")
    second_slot(session, job)
    stop = lifecycle.look(session, WORKER, leased=[claim]).stops[claim.execution_id]
    assert "replaced by a newer run" in stop.reason
    lifecycle.settle(session, [(claim, Outcome(Status.CANCELLED, error="replaced"))])
    assert claim_one(session).execution_id == runs_of(session, job)[1].id


def test_a_claimed_run_takes_along_the_settings_that_its_process_is_told(session: Session) -> None:
    job = add_job(session, timeout_seconds=77, memory_limit_mb=512, on_lost_contact="continue")
    lifecycle.enqueue_due(session)
    (run,) = lifecycle.claim(session, WORKER, (), 1, LEASE)
    assert run.settings == {name: getattr(job, name) for name in read_by(Reader.CLAIMS)}
    assert run.continues_without_contact
    assert run.settings["memory_limit_mb"] == 512


# -- claims and leases -----------------------------------------------------------------------------------------


def in_parallel(work: Callable[[], None], times: int) -> None:
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


def test_each_run_is_claimed_by_exactly_one_worker(sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        for _ in range(60):
            add_job(session)
        lifecycle.enqueue_due(session)
    start, got, names = threading.Barrier(4), list[int](), iter("abcd")

    def take() -> None:
        name = next(names)
        with sessions() as own:
            start.wait()
            while runs := lifecycle.claim(own, name, (), 7, LEASE):
                got.extend(run.claim.execution_id for run in runs)

    in_parallel(take, 4)
    assert len(got) == len(set(got)) == 60


def test_a_higher_priority_starts_first_and_age_wins_in_the_end(session: Session) -> None:
    low = add_job(session, priority=0)
    lifecycle.enqueue_due(session)
    high = add_job(session, priority=9)
    old = add_job(session, priority=0, next_run_time=ago(session, minutes=10), misfire_grace_seconds=3600)
    lifecycle.enqueue_due(session)
    order = [run.claim.job_id for run in lifecycle.claim(session, WORKER, (), 3, LEASE)]
    assert order == [old.id, high.id, low.id]


def test_a_job_with_a_tag_runs_only_where_the_tag_is(session: Session) -> None:
    add_job(session, worker_tag="gpu")
    lifecycle.enqueue_due(session)
    assert lifecycle.claim(session, WORKER, ("cpu",), 5, LEASE) == []
    assert len(lifecycle.claim(session, WORKER, ("cpu", "gpu"), 5, LEASE)) == 1


def test_a_lease_is_renewed_for_its_holder_only(session: Session) -> None:
    job, claim = running_job(session)
    before = runs_of(session, job)[0].locked_until
    assert lifecycle.renew(session, [replace(claim, locked_by="somebody else")], [], 90) == ({}, set())
    assert lifecycle.renew(session, [claim], [], 90) == (
        {claim.execution_id: None},
        set(),
    )
    after = runs_of(session, job)[0].locked_until
    assert before is not None
    assert after is not None
    assert after > before


def test_a_lease_that_ended_is_never_renewed_unless_the_job_goes_on_without_contact(session: Session) -> None:
    _, claim = running_job(session)
    end_lease(session, claim)
    assert lifecycle.renew(session, [claim], [], 60) == ({}, set())
    assert lifecycle.renew(session, [claim], [claim.execution_id], 60) != ({}, set())


def end_lease(session: Session, claim: Claim) -> None:
    session.execute(
        sa.update(CronJobExecution)
        .where(CronJobExecution.id == claim.execution_id)
        .values(locked_until=ago(session, seconds=1))
    )
    session.commit()


def test_a_vanished_workers_run_is_lost_and_retried(session: Session) -> None:
    job, claim = running_job(session)
    assert lifecycle.reap(session) == []
    end_lease(session, claim)
    assert lifecycle.reap(session) == [claim.execution_id]
    first, second = runs_of(session, job)
    assert (first.status, second.retry_count, second.parent_execution) == (Status.LOST, 1, first.id)
    assert WORKER in (first.error or "")


def test_a_run_that_was_called_off_is_cancelled_though_its_worker_vanishes_before_it_has_stopped(
    session: Session,
) -> None:
    job, claim = running_job(session)
    lifecycle.cancel(session, claim.execution_id, Actor("anna"), "enough")
    assert lifecycle.reap(session, {WORKER}) == [claim.execution_id]
    (run,) = runs_of(session, job)
    assert (run.status, fresh(session, job).consecutive_failures) == (Status.CANCELLED, 0)
    assert (run.error or "").startswith("cancelled by anna: enough; its worker ")


def test_a_worker_known_to_be_gone_is_reaped_before_its_lease_ends(session: Session) -> None:
    _, claim = running_job(session)
    assert lifecycle.reap(session, {WORKER}) == [claim.execution_id]


def test_a_result_that_comes_after_the_lease_was_judged_is_dropped(session: Session) -> None:
    job, claim = running_job(session)
    end_lease(session, claim)
    lifecycle.reap(session)
    assert lifecycle.settle(session, [(claim, DONE)]).ended == set()
    assert statuses(session, job)[0] == "lost"


def test_a_result_whose_job_is_locked_keeps_no_other_waiting(mariadb_settings: Settings) -> None:
    engine = db.make_engine(mariadb_settings)
    with db.make_sessions(engine)() as session, db.make_sessions(engine)() as somebody:
        locked, claim = running_job(session)
        free, other = running_job(session)
        somebody.execute(sa.select(CronJob.id).where(CronJob.id == locked.id).with_for_update())
        settled = lifecycle.settle(session, [(claim, DONE), (other, DONE)])
        assert settled == ({other.execution_id}, {claim.execution_id})
        assert (statuses(session, locked), statuses(session, free)) == (["running"], ["completed"])
        somebody.rollback()
        assert lifecycle.settle(session, [(claim, DONE)]) == ({claim.execution_id}, set())
        assert statuses(session, locked) == ["completed"]
    engine.dispose()


def test_output_of_a_run_that_is_no_longer_held_is_refused(session: Session) -> None:
    job, claim = running_job(session)
    kept = lifecycle.Progress(claim, [(0, "one\n", False)], percent=40, note="half way")
    assert lifecycle.append_output(session, [kept]) == (set(), set())
    assert runs_of(session, job)[0].progress_percent == 40
    stranger = replace(claim, locked_by="somebody else")
    late = lifecycle.Progress(stranger, [(1, "two\n", False)])
    assert lifecycle.append_output(session, [late]) == ({claim.execution_id}, set())
    assert list(session.scalars(sa.select(CronJobOutput.text))) == ["one\n"]


# -- settle ----------------------------------------------------------------------------------------------------


def test_a_completed_run_is_counted_and_its_state_is_kept(session: Session) -> None:
    job, claim = running_job(session)
    outcome = Outcome(
        Status.COMPLETED,
        duration_ms=120,
        memory_peak_mb=12.5,
        output="hello\n",
        result={"rows": 3},
        state={"at": 7},
    )
    assert lifecycle.settle(session, [(claim, outcome)]).ended == {claim.execution_id}
    (run,) = runs_of(session, job)
    assert (run.status, run.duration_ms, run.output, run.result) == ("completed", 120, "hello\n", {"rows": 3})
    job = fresh(session, job)
    assert (job.runs_total, job.runs_completed, job.last_status, job.recent_results) == (
        1,
        1,
        "completed",
        "c",
    )
    assert job.state == {"at": 7}
    (day,) = session.scalars(sa.select(CronJobDailyStat))
    assert (day.completed, day.duration_ms, sum((day.durations or {}).values())) == (1, 120, 1)


def test_a_failed_run_is_retried_with_growing_delays_and_then_sets_the_job_aside(session: Session) -> None:
    job, claim = running_job(session)
    for attempt, delay in enumerate((60, 120, 240)):
        lifecycle.settle(session, [(claim, failed())])
        ended, retry = runs_of(session, job)[-2:]
        assert ended.completed_at is not None
        assert retry.due_time == ended.completed_at + timedelta(seconds=delay)
        assert (retry.is_retry, retry.retry_count) == (True, attempt + 1)
        lifecycle.retry_now(session, retry.id, ANNA)
        claim = claim_one(session)
    lifecycle.settle(session, [(claim, failed("ValueError: the last"))])
    job = fresh(session, job)
    assert job.in_dead_letter_queue
    assert (job.enabled, job.next_run_time, job.consecutive_failures) == (False, None, 1)
    assert "failed 4 times" in (job.dead_letter_reason or "")
    with pytest.raises(Conflict, match=r"Job is in dead letter queue\. Recover it first\."):
        lifecycle.trigger(session, job.id, actor=ANNA)
    assert session.scalar(sa.select(CronAudit.action)) is not None


def test_a_permanent_failure_is_not_retried(session: Session) -> None:
    job, claim = running_job(session)
    outcome = failed("PermanentFailure: the account is closed")
    outcome.permanent = True
    lifecycle.settle(session, [(claim, outcome)])
    assert statuses(session, job) == ["failed"]
    assert fresh(session, job).in_dead_letter_queue


def test_a_run_cut_short_by_its_workers_shutdown_starts_again_at_once_and_is_no_failure(
    session: Session,
) -> None:
    job, claim = running_job(session)
    lifecycle.settle(session, [(claim, Outcome(Status.LOST, error="shut down", interrupted=True))])
    assert claim_one(session, "another worker").attempt == 1
    assert fresh(session, job).consecutive_failures == 0


def test_a_job_disabled_while_it_runs_owes_no_retry(session: Session) -> None:
    job, claim = running_job(session)
    job.enabled = False
    session.commit()
    lifecycle.settle(session, [(claim, failed())])
    assert statuses(session, job) == ["failed"]


def test_a_success_ends_the_row_of_failures(session: Session) -> None:
    job, claim = running_job(session)
    lifecycle.settle(session, [(claim, failed())])
    assert fresh(session, job).failing_since is None, "a retry may still repair it"
    lifecycle.retry_now(session, claim.execution_id, ANNA)
    lifecycle.settle(session, [(claim_one(session), DONE)])
    job = fresh(session, job)
    assert (job.consecutive_failures, job.failing_since, job.recent_results) == (0, None, "c")


def test_several_endings_of_one_job_are_all_counted(session: Session) -> None:
    job = add_job(session, overlap_policy="allow")
    for _ in range(3):
        lifecycle.trigger(session, job.id, actor=ANNA)
    claims = [run.claim for run in lifecycle.claim(session, WORKER, (), 3, LEASE)]
    lifecycle.settle(session, [(claim, DONE) for claim in claims])
    assert fresh(session, job).runs_completed == 3


def test_an_interval_counted_from_completion_gets_its_next_slot_when_the_run_ends(session: Session) -> None:
    job, claim = running_job(session, interval_anchor="completion")
    assert fresh(session, job).next_run_time is None
    assert lifecycle.adopt(session) == 0
    lifecycle.settle(session, [(claim, DONE)])
    ended = runs_of(session, job)[0].completed_at
    assert ended is not None
    assert fresh(session, job).next_run_time == ended + timedelta(hours=1)


def test_long_output_is_stored_in_pieces_behind_the_head(session: Session) -> None:
    _, claim = running_job(session)
    live = lifecycle.Progress(claim, [(0, "head", False), (1, "live", True)])
    lifecycle.append_output(session, [live])
    outcome = Outcome(
        Status.COMPLETED, output="x" * 600_000, output_bytes=9_000_000, output_replaces_tail=True
    )
    lifecycle.settle(session, [(claim, outcome)])
    pieces = session.execute(
        sa.select(CronJobOutput.seq, CronJobOutput.text).order_by(CronJobOutput.seq)
    ).all()
    assert [len(piece.text) for piece in pieces] == [4, *9 * [65_536], 10_176]


# -- asked for -------------------------------------------------------------------------------------------------


def test_a_trigger_runs_at_once_with_its_parameters(session: Session) -> None:
    job = add_job(session, schedule_type="manual", next_run_time=None, parameters={"region": "eu", "size": 1})
    run = lifecycle.trigger(session, job.id, parameters={"size": 2}, note="by hand", actor=ANNA)
    (claimed,) = lifecycle.claim(session, WORKER, (), 1, LEASE)
    assert claimed.parameters == {"region": "eu", "size": 2}
    assert (run.origin, run.triggered_by, run.note) == ("manual", "anna", "by hand")


def test_a_disabled_job_refuses_a_trigger(session: Session) -> None:
    job = add_job(session, enabled=False)
    with pytest.raises(Conflict, match="Job is disabled"):
        lifecycle.trigger(session, job.id, actor=ANNA)


def test_a_trigger_during_a_run_is_refused_where_overlap_is(session: Session) -> None:
    job, claim = running_job(session)
    with pytest.raises(Conflict, match=f"execution {claim.execution_id} was still running"):
        lifecycle.trigger(session, job.id, actor=ANNA)


def test_a_pending_run_is_cancelled_at_once_and_a_running_one_is_asked_to_stop(session: Session) -> None:
    job = add_job(session)
    lifecycle.enqueue_due(session)
    (run,) = runs_of(session, job)
    assert lifecycle.cancel(session, run.id, ANNA).status == "cancelled"
    lifecycle.trigger(session, job.id, actor=ANNA)
    claim = claim_one(session)
    lifecycle.cancel(session, claim.execution_id, ANNA, "wrong day")
    held, _ = lifecycle.renew(session, [claim], [], 60)
    assert held == {claim.execution_id: ("cancelled by anna: wrong day", False)}
    with pytest.raises(Conflict, match="has ended already"):
        lifecycle.cancel(session, run.id, ANNA)


def test_an_ended_run_runs_again_for_its_slot(session: Session) -> None:
    job, claim = running_job(session)
    lifecycle.settle(session, [(claim, DONE)])
    first = runs_of(session, job)[0]
    again = lifecycle.rerun(session, first.id, ANNA)
    assert (again.scheduled_time, again.rerun, again.origin) == (first.scheduled_time, 1, "rerun")


def test_a_backfill_lists_its_slots_and_runs_the_missing_ones_one_after_another(session: Session) -> None:
    anchor = ago(session, hours=5)
    job = add_job(session, schedule_anchor=anchor, next_run_time=anchor + timedelta(hours=6))
    end = anchor + timedelta(hours=3)
    plan = lifecycle.backfill(session, job.id, anchor, end, ANNA, dry_run=True)
    assert [slot.slot for slot in plan] == [anchor + timedelta(hours=k) for k in range(3)]
    assert runs_of(session, job) == []
    lifecycle.backfill(session, job.id, anchor, end, ANNA)
    order = []
    while runs := lifecycle.claim(session, WORKER, (), 5, LEASE):
        (run,) = runs
        order.append(run.scheduled_time)
        lifecycle.settle(session, [(run.claim, DONE)])
    assert order == [slot.slot for slot in plan]
    assert not any(slot.will_run for slot in lifecycle.backfill(session, job.id, anchor, end, ANNA))
    with pytest.raises(Invalid, match="to must be later than from"):
        lifecycle.backfill(session, job.id, end, anchor, ANNA)


def test_what_a_backfill_queued_does_not_make_the_job_miss_its_own_slots(session: Session) -> None:
    anchor = ago(session, hours=5)
    job = add_job(session, schedule_anchor=anchor, next_run_time=anchor + timedelta(hours=6))
    lifecycle.backfill(session, job.id, anchor, anchor + timedelta(hours=3), ANNA)
    lifecycle.settle(session, [(claim_one(session), DONE)])
    running = claim_one(session)
    lifecycle.cancel(session, runs_of(session, job)[-1].id, ANNA)
    lifecycle.settle(session, [(running, DONE)])
    second_slot(session, job)
    assert statuses(session, job)[-1] == "pending"


# -- dependencies ----------------------------------------------------------------------------------------------


def family(session: Session, **child: object) -> tuple[CronJob, CronJob]:
    """A parent and a child with the same slot."""
    slot = ago(session, seconds=1)
    parent = add_job(session, schedule_anchor=slot, next_run_time=slot)
    kid = add_job(session, **({"schedule_anchor": slot, "next_run_time": slot} | child))
    session.add(CronJobDependency(cron_job=kid.id, parent=parent.id))
    session.commit()
    return parent, kid


def test_a_gated_slot_waits_for_its_parent_and_runs_after_its_success(session: Session) -> None:
    parent, kid = family(session)
    lifecycle.enqueue_due(session)
    (waiting,) = runs_of(session, kid)
    assert (waiting.status, waiting.due_time) == ("pending", None)
    assert parent.name in (waiting.waiting_for or "")
    claim = claim_one(session)
    assert claim.job_id == parent.id
    lifecycle.settle(session, [(claim, DONE)])
    assert claim_one(session).job_id == kid.id
    assert runs_of(session, kid)[0].parents_used == [claim.execution_id]


def test_a_gated_slot_is_skipped_with_the_reason_when_its_parent_fails(session: Session) -> None:
    parent, kid = family(session)
    parent.max_retries = 0
    session.commit()
    lifecycle.enqueue_due(session)
    lifecycle.settle(session, [(claim_one(session), failed())])
    (skipped,) = runs_of(session, kid)
    assert skipped.status == "skipped"
    assert "dead letter queue" in (skipped.skipped_reason or "")


def test_a_gate_gives_up_after_its_timeout(session: Session) -> None:
    _, kid = family(session, dependency_timeout_seconds=60)
    lifecycle.enqueue_due(session)
    session.execute(sa.update(CronJobExecution).values(waiting_until=ago(session, seconds=1)))
    session.commit()
    assert lifecycle.release_waiting(session) == 1
    assert "waited too long" in (runs_of(session, kid)[0].skipped_reason or "")


def test_a_triggered_child_runs_as_soon_as_all_its_parents_have_completed(session: Session) -> None:
    first, kid = family(session, schedule_type="manual", next_run_time=None, dependency_mode="trigger")
    second = add_job(session)
    session.add(CronJobDependency(cron_job=kid.id, parent=second.id))
    session.commit()
    lifecycle.enqueue_due(session)
    claims = {run.claim.job_id: run.claim for run in lifecycle.claim(session, WORKER, (), 5, LEASE)}
    lifecycle.settle(session, [(claims[first.id], DONE)])
    assert runs_of(session, kid) == []
    lifecycle.settle(session, [(claims[second.id], DONE)])
    (run,) = runs_of(session, kid)
    assert (run.origin, sorted(run.parents_used or [])) == (
        "trigger",
        sorted(c.execution_id for c in claims.values()),
    )


# -- the fence, and runs that are given back --------------------------------------------------------------------

GIVEN_BACK = Outcome(Status.PENDING)


def test_a_claim_of_another_time_writes_nothing_about_the_row_that_has_its_id_now(session: Session) -> None:
    """As after a restored backup: same id, same worker, same attempt, another run."""
    job, claim = running_job(session)
    before = replace(claim, token=lifecycle.draw_token())
    late = lifecycle.Progress(before, [(0, "not mine\n", False)], percent=10, note="not mine")
    assert lifecycle.append_output(session, [late]) == ({claim.execution_id}, set())
    assert lifecycle.settle(session, [(before, DONE)]) == (set(), set())
    assert lifecycle.settle(session, [(before, GIVEN_BACK)]) == (set(), set())
    assert lifecycle.renew(session, [before], [claim.execution_id], 90) == ({}, set())
    lifecycle.cancel(session, claim.execution_id, ANNA)
    assert lifecycle.look(session, WORKER, leased=[before]).stops == {}
    assert lifecycle.leased(session, WORKER, before.token) == []
    assert lifecycle.disown(session, [before]) == []
    (run,) = runs_of(session, job)
    assert (run.status, run.progress_percent, run.token) == ("running", None, claim.token)
    assert session.scalar(sa.select(CronJobOutput.text)) is None


def test_renewing_compares_each_row_with_its_own_token(session: Session) -> None:
    """Both tokens are this worker's, and stand on the wrong rows."""
    (_, first), (_, second) = running_job(session), running_job(session)
    crossed = [replace(first, token=second.token), replace(second, token=first.token)]
    assert lifecycle.renew(session, crossed, [], 90) == ({}, set())
    held, _ = lifecycle.renew(session, [first, crossed[1]], [], 90)
    assert held == {first.execution_id: None}


def test_a_run_that_is_given_back_is_the_same_attempt_and_due_at_once(session: Session) -> None:
    job, claim = running_job(session, max_retries=0)
    assert lifecycle.settle(session, [(claim, GIVEN_BACK)]).ended == {claim.execution_id}
    (run,) = runs_of(session, job)
    assert (run.status, run.retry_count, run.given_back, run.version) == ("pending", 0, 1, None)
    assert (run.token, run.locked_by, run.locked_at, run.locked_until, run.started_at) == (None,) * 5
    again = claim_one(session)
    assert (again.execution_id, again.attempt) == (claim.execution_id, 0)
    assert again.token != claim.token
    assert lifecycle.settle(session, [(claim, DONE)]).ended == set(), "the former claim is over"
    assert lifecycle.settle(session, [(again, DONE)]).ended == {claim.execution_id}
    job = fresh(session, job)
    assert (job.runs_total, job.runs_completed, job.consecutive_failures) == (1, 1, 0)


def test_a_run_that_is_given_back_waits_for_the_tag_that_its_job_has_now(session: Session) -> None:
    job, claim = running_job(session)
    job.worker_tag, job.priority = "elsewhere", 9
    session.commit()
    lifecycle.settle(session, [(claim, GIVEN_BACK)])
    (run,) = runs_of(session, job)
    assert (run.worker_tag, run.priority, run.queue_time) == ("elsewhere", 9, run.due_time)


@pytest.mark.parametrize("why", ["cancelled", "disabled", "deleted"])
def test_a_run_that_nobody_wants_any_more_is_not_given_back(session: Session, why: str) -> None:
    job, claim = running_job(session)
    if why == "cancelled":
        lifecycle.cancel(session, claim.execution_id, ANNA)
    else:
        job.enabled = False
        job.deleted_at = ago(session, seconds=1) if why == "deleted" else None
        session.commit()
    assert lifecycle.settle(session, [(claim, GIVEN_BACK)]).ended == {claim.execution_id}
    (run,) = runs_of(session, job)
    assert run.status == "cancelled"
    assert why in (run.error or "")


def test_ten_shutdowns_use_up_no_retry(session: Session) -> None:
    job, claim = running_job(session, max_retries=1, retry_strategy="immediate")
    for _ in range(10):
        lifecycle.settle(session, [(claim, Outcome(Status.LOST, error="shut down", interrupted=True))])
        claim = claim_one(session)
    lifecycle.settle(session, [(claim, failed())])
    assert not fresh(session, job).in_dead_letter_queue, "one retry is left"
    last = claim_one(session)
    assert last.attempt == 11
    lifecycle.settle(session, [(last, failed())])
    assert fresh(session, job).in_dead_letter_queue
    assert "failed 2 times" in (fresh(session, job).dead_letter_reason or "")


def test_a_run_cut_short_by_a_shutdown_starts_again_although_the_job_has_no_retries(session: Session) -> None:
    job, claim = running_job(session, max_retries=0)
    lifecycle.settle(session, [(claim, Outcome(Status.LOST, error="shut down", interrupted=True))])
    assert statuses(session, job) == ["lost", "pending"]
    assert not fresh(session, job).in_dead_letter_queue


def test_what_names_a_worker_that_does_not_run_it_is_lost_and_tried_again_without_a_retry(
    session: Session,
) -> None:
    job, claim = running_job(session, max_retries=0)
    assert lifecycle.claims_of(session, WORKER) == {claim}
    session.rollback()
    assert lifecycle.disown(session, [claim]) == [claim.execution_id]
    assert statuses(session, job) == ["lost", "pending"]


def test_a_retry_goes_where_its_job_goes_now(session: Session) -> None:
    job, claim = running_job(session, retry_strategy="immediate", worker_tag="", priority=5)
    job.worker_tag, job.priority = "new-host", 8
    session.commit()
    lifecycle.settle(session, [(claim, failed())])
    retried = runs_of(session, job)[1]
    assert (retried.worker_tag, retried.priority) == ("new-host", 8)
    assert retried.queue_time == retried.due_time + timedelta(seconds=30)


def test_only_runs_that_a_worker_may_take_are_due_for_it(session: Session) -> None:
    mine, others = add_job(session), add_job(session, worker_tag="nowhere")
    lifecycle.enqueue_due(session)

    def due(*tags: str, without: tuple[int, ...] = ()) -> tuple[bool, int]:
        look = lifecycle.look(session, WORKER, leased=[], tags=tags, without=without, count=10)
        session.rollback()
        return look.run_due is not None and look.run_due <= look.now, look.due

    assert due() == (True, 1)
    assert due("nowhere") == (True, 2)
    assert due(without=(mine.id,)) == (False, 0)
    assert due("nowhere", "x", without=(mine.id, 999, 998)) == (True, 1)
    assert lifecycle.claim(session, WORKER, (), 5, LEASE, without=[mine.id]) == []
    (run,) = lifecycle.claim(session, WORKER, ("nowhere",), 5, LEASE, without=[mine.id])
    assert run.claim.job_id == others.id
    claim_one(session)
    assert due() == (False, 0)


# -- releasing a lock by hand -----------------------------------------------------------------------------------


def test_a_worker_that_lives_is_asked_to_stop_before_its_run_is_lost(session: Session) -> None:
    add_worker(session)
    job, claim = running_job(session, retry_strategy="immediate")
    run = lifecycle.release_lock(session, claim.execution_id, ANNA)
    assert run.status == "running"
    asked = ("lock released by anna", True)
    assert lifecycle.look(session, WORKER, leased=[claim]).stops == {claim.execution_id: asked}
    assert lifecycle.renew(session, [claim], [], 60).leased == {claim.execution_id: asked}
    assert statuses(session, job) == ["running"], "no second attempt while the first may run"
    lifecycle.settle(session, [(claim, Outcome(Status.LOST, error=asked[0]))])
    assert statuses(session, job) == ["lost", "pending"]


@pytest.mark.parametrize("holder", ["unknown", "signed off", "lease ended"])
def test_what_nobody_can_be_running_is_released_at_once(session: Session, holder: str) -> None:
    if holder != "unknown":
        add_worker(session, stopped_at=db.now(session) if holder == "signed off" else None)
    job, claim = running_job(session)
    if holder == "lease ended":
        end_lease(session, claim)
    assert lifecycle.release_lock(session, claim.execution_id, ANNA).status == "lost"
    assert statuses(session, job)[0] == "lost"

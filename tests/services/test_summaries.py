"""After an outage every slot is in the ledger: the newest in rows of their own, the older ones in one together."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from kytecron.core.errors import Conflict
from kytecron.core.states import Status
from kytecron.services import lifecycle, recount, slots, why
from kytecron.services.audit import Actor
from kytecron.store import db, figures, queries
from kytecron.store.models import CronJob, CronJobExecution
from kytecron.store.queries import ExecutionFilter
from tests.factories import add_job, fresh, runs_of

ANNA = Actor("anna")
MINUTE = timedelta(minutes=1)


def outage(session: Session, days: float, **fields: object) -> CronJob:
    """A job for every minute that nobody has looked at for so many days."""
    now = db.now(session)
    first = now.replace(microsecond=0) - timedelta(days=days)
    job = add_job(session, interval_seconds=60, schedule_anchor=first, next_run_time=first, **fields)
    lifecycle.enqueue_due(session)
    session.rollback()
    return job


def summary_of(session: Session, job: CronJob) -> CronJobExecution:
    (row,) = (run for run in runs_of(session, job) if run.slots_count > 1)
    return row


def every_slot_once(session: Session, job: CronJob) -> bool:
    """Whether the rows of a job stand for every minute from its anchor to its next slot, each for its own."""
    upto = fresh(session, job).schedule_anchor
    assert upto is not None
    for row in sorted(
        (run for run in runs_of(session, job) if not run.rerun), key=lambda run: run.scheduled_time
    ):
        assert row.scheduled_time == upto, row
        last = row.slots_until or row.scheduled_time
        assert row.slots_count == (last - row.scheduled_time) // MINUTE + 1
        upto = last + MINUTE
    return upto == fresh(session, job).next_run_time


# -- the ledger ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["run_once", "skip", "run_all"])
@pytest.mark.parametrize("days", [0.1, 3, 400])
def test_every_missed_slot_is_in_the_ledger_once_whatever_the_outage(
    session: Session, policy: str, days: float
) -> None:
    job = outage(session, days, misfire_policy=policy)
    rows = runs_of(session, job)
    assert len(rows) == 102
    assert every_slot_once(session, job)
    summary = summary_of(session, job)
    assert (summary.status, summary.completed_at is not None) == (Status.SKIPPED, True)
    assert "misfire_policy" in (summary.skipped_reason or "")
    assert summary.id < min(run.id for run in rows if run is not summary), "what ended last is a newer slot"
    run = [row for row in rows if row.status == Status.PENDING]
    assert len(run) == {"run_once": 1, "skip": 1, "run_all": 100}[policy]


def test_a_month_of_seconds_takes_few_rows(session: Session) -> None:
    first = db.now(session).replace(microsecond=0) - timedelta(days=30)
    job = add_job(session, interval_seconds=1, schedule_anchor=first, next_run_time=first)
    lifecycle.enqueue_due(session)
    rows = runs_of(session, job)
    assert len(rows) == 102
    following = fresh(session, job).next_run_time
    assert following is not None
    assert sum(row.slots_count for row in rows) == (following - first).total_seconds()


def test_daylight_saving_within_an_outage_is_counted_as_it_was(session: Session) -> None:
    """03:00 on the day of the change stands for 02:00 and 02:30 too, which the clock left out."""
    first = datetime(2025, 11, 1, tzinfo=UTC)
    job = add_job(
        session,
        schedule_type="cron",
        cron_expression="0,30 2,3 * * *",
        timezone="Europe/Berlin",
        next_run_time=slots.first_slot(fresh_cron(session), first),
    )
    lifecycle.enqueue_due(session)
    summary = summary_of(session, job)
    assert summary.slots_until is not None
    number, slot = 1, summary.scheduled_time
    while slot < summary.slots_until:
        following = slots.plan(job, slot)
        assert following is not None
        number, slot = number + 1, following
    assert summary.slots_count == number


def fresh_cron(session: Session) -> CronJob:
    return add_job(
        session,
        schedule_type="cron",
        cron_expression="0,30 2,3 * * *",
        timezone="Europe/Berlin",
        enabled=False,
    )


def test_a_next_run_time_that_was_set_back_by_hand_counts_no_slot_twice(session: Session) -> None:
    job = outage(session, 3)
    first = fresh(session, job).schedule_anchor
    assert first is not None
    for back in (first, first + 700 * MINUTE):
        fresh(session, job).next_run_time = back
        session.commit()
        lifecycle.enqueue_due(session)
        session.rollback()
        assert every_slot_once(session, job)


def test_slots_before_those_that_are_in_the_ledger_are_not_owed_again(session: Session) -> None:
    """Set back to a time before the first slot: it is not known what was owed then, the ledger begins later."""
    job = outage(session, 3)
    fresh(session, job).next_run_time = db.now(session) - timedelta(days=30)
    session.commit()
    lifecycle.enqueue_due(session)
    session.rollback()
    assert every_slot_once(session, job)


def test_slots_that_max_runs_leaves_no_run_are_skipped_with_the_reason(session: Session) -> None:
    first = db.now(session).replace(microsecond=0) - 5 * MINUTE
    job = add_job(
        session,
        interval_seconds=60,
        schedule_anchor=first,
        next_run_time=first,
        misfire_policy="run_all",
        max_runs=2,
        overlap_policy="allow",
    )
    lifecycle.enqueue_due(session)
    rows = sorted(runs_of(session, job), key=lambda run: run.scheduled_time)
    assert [row.status for row in rows] == ["pending"] * 2 + ["skipped"] * 4
    assert {row.skipped_reason for row in rows[2:]} == {slots.MAX_RUNS_REACHED}
    assert fresh(session, job).disabled_reason == slots.MAX_RUNS_REACHED


# -- how they are counted and found ----------------------------------------------------------------------------


def test_a_summary_counts_as_many_slots_as_it_stands_for(session: Session) -> None:
    job = outage(session, 3)
    skipped = sum(row.slots_count for row in runs_of(session, job) if row.status == Status.SKIPPED)
    assert skipped == 3 * 24 * 60
    assert fresh(session, job).runs_skipped == skipped
    assert recount.compare(session, job.id) == []
    assert figures.job_statistics(session, job.id, 30, db.now(session).date()).total.skipped == skipped


def test_a_list_of_slots_has_the_summary_that_reaches_into_it(session: Session) -> None:
    job, other = outage(session, 3), outage(session, 2)
    summary = summary_of(session, job)
    middle = summary.scheduled_time + 100 * MINUTE
    assert summary.slots_until is not None

    def found(**wanted: object) -> list[int]:
        ids, cursor = [], None
        while True:
            page = queries.executions(session, ExecutionFilter(**wanted), cursor=cursor, limit=50)  # type: ignore[arg-type]
            ids += [row.execution.id for row in page.items]
            if (cursor := page.next) is None:
                assert len(ids) == len(set(ids))
                return ids

    assert found(job=job.id, slot_from=middle, slot_to=middle + MINUTE) == [summary.id]
    assert found(slot_from=middle, slot_to=middle + MINUTE) == [summary.id]
    assert found(slot_from=middle, slot_to=middle + MINUTE, statuses=["skipped"]) == [summary.id]
    assert found(slot_from=middle, slot_to=middle + MINUTE, statuses=["failed"]) == []
    assert len(found(job=job.id, slot_from=middle)) == 102
    assert len(found(slot_from=middle)) == 204
    assert len(found(job=job.id, slot_from=summary.slots_until + MINUTE)) == 101
    assert found(job=other.id, slot_to=summary_of(session, other).scheduled_time) == []


def test_why_tells_of_all_the_slots_that_were_skipped_last(session: Session) -> None:
    job = outage(session, 3, misfire_policy="skip", misfire_grace_seconds=0)
    session.execute(sa.delete(CronJobExecution).where(CronJobExecution.slots_count == 1))
    session.commit()
    summary = summary_of(session, job)
    texts = [reason.text for reason in why.explain(session, job.id).reasons]
    assert any(f"{summary.slots_count:,} slots from" in text for text in texts), texts


# -- what people do with them ----------------------------------------------------------------------------------


def test_a_summary_does_not_run_again_and_its_slots_are_backfilled_each_once(session: Session) -> None:
    job = outage(session, 3, overlap_policy="allow")
    summary = summary_of(session, job)
    with pytest.raises(Conflict, match=r"stands for 4,\d{3} missed slots; backfill"):
        lifecycle.rerun(session, summary.id, ANNA)
    session.rollback()
    begin = summary.scheduled_time + 10 * MINUTE
    told = lifecycle.backfill(session, job.id, begin, begin + 3 * MINUTE, ANNA, dry_run=True)
    assert [(slot.status, slot.will_run) for slot in told] == [("skipped", True)] * 3
    for _ in range(2):
        lifecycle.backfill(session, job.id, begin, begin + 3 * MINUTE, ANNA)
        again = [run for run in runs_of(session, job) if run.origin == "backfill"]
        assert [(run.scheduled_time, run.rerun) for run in again] == [
            (begin + n * MINUTE, 1) for n in range(3)
        ]
    assert every_slot_once(session, job)


def test_a_backfill_of_slots_that_are_due_serves_none_twice(session: Session) -> None:
    """Nobody has looked for due slots yet when somebody backfills the outage."""
    first = db.now(session).replace(microsecond=0) - 10 * MINUTE
    job = add_job(
        session, interval_seconds=60, schedule_anchor=first, next_run_time=first, overlap_policy="allow"
    )
    lifecycle.backfill(session, job.id, first, first + 20 * MINUTE - 10 * MINUTE, ANNA)
    lifecycle.enqueue_due(session)
    session.rollback()
    assert every_slot_once(session, job)
    owed = {run.scheduled_time for run in runs_of(session, job) if run.status == Status.PENDING}
    active = [run for run in runs_of(session, job) if run.status == Status.PENDING]
    assert len(active) == len(owed)

"""Figures count chains by how they end; attempts stand beside."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session, sessionmaker

from kytecron.config import Settings
from kytecron.core.states import Claim, Outcome, Status
from kytecron.services import deadletters, doctor, lifecycle, retention
from kytecron.services.audit import Actor
from kytecron.services.endings import LETTERS
from kytecron.services.jobs import CronJobManager
from kytecron.services.recount import compare, recount, recount_job
from kytecron.store import db
from kytecron.store.figures import Figures, execution_summary, job_statistics
from kytecron.store.models import CronJob, CronJobDailyStat, CronJobExecution
from tests.factories import LEASE, WORKER, add_job, ago, claim_one, fresh, runs_of

DONE = Outcome(Status.COMPLETED, duration_ms=8100)
FAILED = Outcome(Status.FAILED, error="ValueError: no", duration_ms=8000)
SKIPPED = Outcome(Status.SKIPPED, skipped_reason="nothing to do", duration_ms=5)
CANCELLED = Outcome(Status.CANCELLED, error="no need", duration_ms=700)
PERMANENT = Outcome(Status.FAILED, error="PermanentFailure: no", permanent=True, duration_ms=30)
ANNA = Actor("anna")
COUNTS = (
    *("retried_failed", "retried_timeout", "runs_recovered", "runs_skipped"),
    *("recent_results", "consecutive_failures"),
)


COUNTERS = (
    *("runs_total", "runs_completed", "runs_failed", "runs_timeout", "retried_failed", "retried_timeout"),
    *("runs_recovered", "runs_skipped", "duration_total_ms"),
)


def figures_of(session: Session, job: CronJob) -> dict[str, Any]:
    """All that is counted of a job: in its row, and by day."""
    job = fresh(session, job)
    days = session.execute(sa.select(CronJobDailyStat.__table__).where(CronJobDailyStat.cron_job == job.id))
    standing = ("recent_results", "consecutive_failures", "failing_since")
    found = {name: getattr(job, name) for name in (*COUNTERS, *standing)}
    found["days"] = [dict(row._mapping) for row in days]
    session.rollback()
    return found


def told(engine: Engine, settings: Settings, *, fix: bool = False) -> tuple[str, str]:
    """What `doctor` says of the figures."""
    found = doctor.examine(engine, settings, ANNA, fix=fix)
    return next((one.verdict, one.detail) for one in found if one.check == "figures")


def again(session: Session, job: CronJob, *outcomes: Outcome) -> None:
    """Another chain of a job."""
    lifecycle.trigger(session, job.id, actor=ANNA)
    for outcome in outcomes:
        lifecycle.settle(session, [(claim_one(session), outcome)])


def chain(session: Session, *outcomes: Outcome) -> CronJob:
    job = add_job(session, retry_strategy="immediate", max_retries=9)
    lifecycle.enqueue_due(session)
    for outcome in outcomes:
        lifecycle.settle(session, [(claim_one(session), outcome)])
    return fresh(session, job)


def test_a_slot_that_a_retry_served_is_a_success(session: Session) -> None:
    job = chain(session, FAILED, FAILED, DONE)
    summary = execution_summary(job)
    assert (summary["total"], summary["successful"], summary["failed"]) == (1, 1, 0)
    assert (summary["success_rate"], summary["attempts"], summary["recovered"]) == (100.0, 3, 1)
    assert (job.recent_results, job.consecutive_failures) == ("c", 0)
    today = job_statistics(session, job.id, 1, db.now(session).date()).total
    assert (today.total, today.completed, today.failed, today.attempts, today.recovered) == (1, 1, 0, 3, 1)
    assert today.p50_duration_ms is not None
    assert 8000 <= today.p50_duration_ms <= 8100


def test_a_shutdown_is_no_failed_attempt(session: Session) -> None:
    interrupted = Outcome(Status.LOST, error="shutdown", interrupted=True)
    summary = execution_summary(chain(session, interrupted, DONE))
    assert (summary["total"], summary["attempts"], summary["recovered"]) == (1, 2, 0)


def test_a_chain_whose_retry_is_cancelled_stands_outside(session: Session) -> None:
    job = chain(session, FAILED)
    lifecycle.cancel(session, runs_of(session, job)[-1].id, Actor("anna"))
    job = fresh(session, job)
    summary = execution_summary(job)
    assert (summary["total"], summary["success_rate"], summary["attempts"]) == (0, None, 1)
    assert job.consecutive_failures == 0


def test_attempts_of_a_job_are_those_of_its_days(session: Session) -> None:
    """What was cancelled or skipped while it ran stands outside of both."""
    job = chain(session, FAILED, DONE)
    again(session, job, replace(FAILED, status=Status.TIMEOUT), CANCELLED)
    again(session, job, SKIPPED)
    again(session, job, CANCELLED)
    summary = execution_summary(fresh(session, job))
    today = job_statistics(session, job.id, 1, db.now(session).date()).total
    assert summary["attempts"] == today.attempts == 3
    assert (today.cancelled, today.skipped, summary["skipped"]) == (2, 1, 1)
    assert summary["avg_duration_ms"] == today.avg_duration_ms


def test_kept_runs_of_an_earlier_release_are_counted_into_chains_once(
    session: Session, sessions: sessionmaker[Session]
) -> None:
    jobs = [chain(session, FAILED, FAILED, DONE), chain(session, FAILED, FAILED)]
    right = [{name: getattr(job, name) for name in COUNTS} for job in jobs]
    zero = dict.fromkeys(("retried_failed", "runs_recovered"), 0)
    session.execute(sa.update(CronJob).values(**zero, chains_counted=False, recent_results="ffc"))
    session.execute(sa.update(CronJobDailyStat).values(retried_failed=0, recovered=0))
    session.commit()
    assert recount(sessions) == len(jobs)
    assert recount(sessions) == 0
    jobs = [fresh(session, job) for job in jobs]
    assert [{name: getattr(job, name) for name in COUNTS} for job in jobs] == right
    days = session.execute(sa.select(CronJobDailyStat.retried_failed, CronJobDailyStat.recovered)).all()
    assert sorted(map(tuple, days)) == [(2, 0), (2, 1)]


def test_slots_skipped_since_the_last_run_are_known_after_an_upgrade(
    session: Session, sessions: sessionmaker[Session], settings: Settings, engine: Engine
) -> None:
    """The column is younger than the runs: it begins with 0."""
    job, never = chain(session, DONE), add_job(session)
    lifecycle.enqueue_due(session)  # the run of `never` waits, and so nothing else of it runs
    for count in (1, 2):
        lifecycle.trigger(session, job.id, actor=ANNA)
        lifecycle.settle(session, [(claim_of(session, job), SKIPPED)])
        skip_due_slots(session, never, count + 1)
    right = [fresh(session, one).skipped_in_a_row for one in (job, never)]
    assert right == [2, 5]
    for forgotten in ({"chains_counted": False, "skipped_in_a_row": 0}, {"skipped_in_a_row": 1}):
        moved = sa.update(CronJobExecution).where(CronJobExecution.status == "completed")
        hour_ago = ago(session, hours=1)
        session.rollback()
        session.execute(moved.values(completed_at=hour_ago))
        session.execute(sa.update(CronJob).values(**forgotten))
        session.commit()
        assert ("chains_counted" in forgotten) == (told(engine, settings)[0] == "ok")
        assert told(engine, settings, fix=True)[0] == "fixed"
        assert [fresh(session, one).skipped_in_a_row for one in (job, never)] == right
        assert told(engine, settings)[0] == "ok"


def claim_of(session: Session, job: CronJob) -> Claim:
    """Claim what is due, and return the claim of this job."""
    return next(
        run.claim for run in lifecycle.claim(session, WORKER, (), 9, LEASE) if run.claim.job_id == job.id
    )


def skip_due_slots(session: Session, job: CronJob, count: int) -> None:
    """Let slots come while a run of the job goes on: they are skipped."""
    for _ in range(count):
        fresh(session, job).next_run_time = db.now(session) - timedelta(milliseconds=5)
        session.commit()
        lifecycle.enqueue_due(session)


def test_slots_that_are_in_the_ledger_already_are_not_counted_again(session: Session) -> None:
    """Somebody sets next_run_time back in SQL: what was skipped then is skipped once."""
    first = ago(session, minutes=30)
    job = add_job(
        session, interval_seconds=60, schedule_anchor=first, next_run_time=first, misfire_policy="skip",
        misfire_grace_seconds=1,
    )  # fmt: skip
    lifecycle.enqueue_due(session)
    right = figures_of(session, job)
    assert right["runs_skipped"] >= 30
    for minutes in (0, 7):
        fresh(session, job).next_run_time = first + timedelta(minutes=minutes)
        session.commit()
        lifecycle.enqueue_due(session)
        assert figures_of(session, job) == right
    assert fresh(session, job).skipped_in_a_row == right["runs_skipped"]
    assert compare(session, job.id) == []


def test_doctor_finds_figures_that_the_runs_do_not_come_to_and_counts_again(
    session: Session, settings: Settings, engine: Engine
) -> None:
    jobs = [chain(session, FAILED, FAILED, DONE), chain(session, FAILED, DONE), chain(session, PERMANENT)]
    right = [figures_of(session, job) for job in jobs]
    assert told(engine, settings) == ("ok", "The figures of 3 jobs are what the kept runs come to")
    today = db.now(session)
    session.rollback()
    for change in (
        *({name: getattr(jobs[0], name) + 3} for name in COUNTERS),
        {"consecutive_failures": 9},
        {"recent_results": "cccf"},
        {"failing_since": today},
        {"skipped_in_a_row": 4},
    ):
        session.execute(sa.update(CronJob).where(CronJob.id == jobs[0].id).values(**change))
        session.commit()
        verdict, detail = told(engine, settings)
        assert (verdict, *change) == ("problem", detail.split(f"job {jobs[0].id}: ")[1].split(" is ")[0])
        assert told(engine, settings, fix=True) == ("fixed", "The runs of 1 job were counted again")
        assert [figures_of(session, job) for job in jobs] == right
    for column in CronJobDailyStat.__table__.c:
        if column.name in ("cron_job", "day", "durations"):
            continue
        row = sa.update(CronJobDailyStat).where(CronJobDailyStat.cron_job == jobs[1].id)
        session.execute(row.values({column.name: 70_000}))
        session.commit()
        verdict, detail = told(engine, settings)
        assert (verdict, f"{column.name} of " in detail) == ("problem", True), detail
        assert told(engine, settings, fix=True)[0] == "fixed"
        assert [figures_of(session, job) for job in jobs] == right
    session.execute(sa.delete(CronJobDailyStat))
    failed = sa.update(CronJob).where(CronJob.id == jobs[2].id)
    session.execute(failed.values(consecutive_failures=0, failing_since=None))
    session.commit()
    assert told(engine, settings)[0] == "problem"
    assert told(engine, settings, fix=True)[0] == "fixed"
    assert [figures_of(session, job) for job in jobs] == right
    assert told(engine, settings)[0] == "ok"


def test_doctor_says_how_many_jobs_are_still_to_be_recounted(
    session: Session, settings: Settings, engine: Engine
) -> None:
    chain(session, FAILED, DONE)
    add_job(session)
    session.execute(sa.update(CronJob).values(chains_counted=False, retried_failed=0))
    session.commit()
    assert told(engine, settings) == ("warning", "The runs of 1 job are not counted into chains yet")
    assert told(engine, settings, fix=True) == ("fixed", "The runs of 1 job were counted again")
    assert told(engine, settings)[0] == "ok"


def test_a_job_that_was_recovered_or_disabled_in_a_chain_has_the_figures_that_its_runs_come_to(
    session: Session, settings: Settings, engine: Engine
) -> None:
    job = chain(session, PERMANENT)
    deadletters.recover(session, job.id, ANNA)
    assert told(engine, settings)[0] == "ok"
    again(session, job, FAILED, PERMANENT)
    assert figures_of(session, job)["consecutive_failures"] == 1
    assert told(engine, settings)[0] == "ok"
    deadletters.recover(session, job.id, ANNA)
    again(session, job, DONE)
    assert figures_of(session, job)["failing_since"] is None
    assert told(engine, settings)[0] == "ok"
    lifecycle.trigger(session, job.id, actor=ANNA)
    claim = claim_one(session)
    CronJobManager(session, ANNA).disable(job.id)
    lifecycle.settle(session, [(claim, Outcome(Status.LOST, error="shutdown", interrupted=True))])
    assert figures_of(session, job)["consecutive_failures"] == 0
    assert told(engine, settings)[0] == "ok"


def test_runs_that_retention_removed_stay_counted(
    session: Session, sessions: sessionmaker[Session], settings: Settings, engine: Engine
) -> None:
    job = chain(session, FAILED, DONE)
    for _ in range(5):
        again(session, job, FAILED, FAILED, DONE)
    right = figures_of(session, job)
    few = replace(settings, retention_per_job=4)
    assert retention.prune(sessions, few)["executions"] > 0
    assert fresh(session, job).pruned_until == db.now(session).date()
    session.rollback()
    assert told(engine, settings)[0] == "ok"
    recount_job(session, job.id)
    assert figures_of(session, job) == right
    session.execute(sa.update(CronJob).values(runs_completed=40))
    session.commit()
    assert told(engine, settings)[0] == "problem"
    assert told(engine, settings, fix=True)[0] == "fixed"
    assert figures_of(session, job) == right


def test_every_ending_is_counted_each_day_and_told_in_figures() -> None:
    counted = {str(status) for status in LETTERS}
    assert counted <= {column.name for column in CronJobDailyStat.__table__.columns}
    assert counted <= {one.name for one in fields(Figures)}

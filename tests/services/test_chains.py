"""Figures count chains by how they end; attempts stand beside."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from kytecron.core.states import Outcome, Status
from kytecron.services import lifecycle
from kytecron.services.audit import Actor
from kytecron.services.recount import recount
from kytecron.store import db
from kytecron.store.figures import execution_summary, job_statistics
from kytecron.store.models import CronJob, CronJobDailyStat
from tests.factories import add_job, claim_one, fresh, runs_of

DONE = Outcome(Status.COMPLETED, duration_ms=8100)
FAILED = Outcome(Status.FAILED, error="ValueError: no", duration_ms=8000)
COUNTS = (
    *("retried_failed", "retried_timeout", "runs_recovered", "runs_skipped"),
    *("recent_results", "consecutive_failures"),
)


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

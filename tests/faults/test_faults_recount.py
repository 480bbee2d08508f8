"""Figures are counted again while workers go on ending runs."""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import date
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session, sessionmaker

from kytecron.config import Settings
from kytecron.core.states import FINAL, UNSUCCESSFUL, Status
from kytecron.services import doctor, lifecycle
from kytecron.services.recount import recount
from kytecron.store.models import CronJob, CronJobDailyStat, CronJobExecution
from tests.faults.scene import ANNA, crew, in_the_end
from tests.workers import Journal, executions, make_job, wait_for

RECOUNTS = 25
FLAKY = """
failures = self.execution.scheduled_time.second % 3
if self.execution.attempt <= failures:
    raise ValueError("not yet")
if self.execution.attempt == failures + 1 and self.execution.scheduled_time.second % 5 == 4:
    time.sleep(3)
"""
DAY = ("completed", "failed", "timeout", "lost", "cancelled", "skipped", "recovered")


def forget(session: Session) -> None:
    """As after an upgrade: nothing of chains is counted yet."""
    session.rollback()
    none = dict.fromkeys(("retried_failed", "retried_timeout", "runs_recovered", "runs_skipped"), 0)
    session.execute(sa.update(CronJob).values(**none, chains_counted=False))
    session.execute(
        sa.update(CronJobDailyStat).values(
            retried_failed=0, retried_timeout=0, retried_lost=0, recovered=0,
            duration_min_ms=None, duration_max_ms=None,
        )
    )  # fmt: skip
    session.commit()


def by_hand(rows: list[CronJobExecution]) -> tuple[dict[date, Counter[str]], Counter[str]]:
    """A job's days and counters, added up from its ledger row by row."""
    following = {(row.scheduled_time, row.rerun, row.retry_count) for row in rows}
    days: dict[date, Counter[str]] = defaultdict(Counter)
    for row in rows:
        if row.status not in FINAL:
            continue
        assert row.completed_at is not None
        day = days[row.completed_at.date()]
        day[row.status] += 1
        day["began"] += row.started_at is not None
        day["duration_ms"] += row.duration_ms or 0
        if row.status in UNSUCCESSFUL and (row.scheduled_time, row.rerun, row.retry_count + 1) in following:
            day[f"retried_{row.status}"] += 1
        day["recovered"] += row.status == Status.COMPLETED and row.retry_count > row.interruptions
    return days, sum(days.values(), Counter())


def test_a_recount_beside_workers_that_end_runs_leaves_the_figures_that_the_runs_come_to(
    settings: Settings, engine: Engine, session: Session, sessions: sessionmaker[Session], journal: Journal
) -> None:
    fields: dict[str, Any] = {"retry_strategy": "immediate", "max_retries": 5, "timeout_seconds": 1}
    clocks = [
        make_job(
            session, journal.code(FLAKY), name=f"flaky {number}", schedule_type="interval", interval_seconds=1,
            overlap_policy=policy, **fields,
        )
        for number, policy in enumerate(("skip", "allow", "replace"))
    ]  # fmt: skip
    by_request = make_job(session, journal.code(FLAKY), overlap_policy="allow", **fields)
    with crew(settings, 2) as workers:
        for number in range(RECOUNTS):
            lifecycle.trigger(session, by_request.id, actor=ANNA)
            forget(session)
            seen = len(executions(session))
            # Runs end between forgetting and recounting, and while it is recounted.
            wait_for(lambda seen=seen: len(executions(session)) > seen + 1, f"runs beside recount {number}")
            recount(sessions)
        in_the_end(session, journal, workers, may_overlap=[job.id for job in (*clocks, by_request)])
    for job in session.scalars(sa.select(CronJob).execution_options(populate_existing=True)):
        days, total = by_hand(executions(session, job))
        stored = {
            row.day: row
            for row in session.scalars(sa.select(CronJobDailyStat).where(CronJobDailyStat.cron_job == job.id))
        }
        assert stored.keys() == days.keys()
        for day, counts in days.items():
            names = (*DAY, "retried_failed", "retried_timeout", "retried_lost", "duration_ms")
            assert {name: getattr(stored[day], name) for name in names} == {
                name: counts[name] for name in names
            }
        assert (job.runs_total, job.runs_completed) == (total["began"], total["completed"])
        assert job.runs_failed == total["failed"] + total["lost"]
        assert job.retried_failed == total["retried_failed"] + total["retried_lost"]
        assert (job.runs_timeout, job.retried_timeout) == (total["timeout"], total["retried_timeout"])
        assert (job.runs_recovered, job.runs_skipped) == (total["recovered"], total["skipped"])
        assert job.attempts_until is None
    session.rollback()
    found = next(one for one in doctor.examine(engine, settings, ANNA) if one.check == "figures")
    assert found.verdict == "ok", found.detail

"""Rows that tests start from."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from kytecron.core.states import Claim
from kytecron.services import lifecycle
from kytecron.store import db
from kytecron.store.models import CronJob, CronJobExecution, CronWorkerRecord

_numbers = count(1)
WORKER = "tester:1:a"
LEASE = 60.0


def add_job(session: Session, **fields: Any) -> CronJob:
    """A job as a row, by default an interval of an hour whose slot has been due since a moment."""
    slot = fields.get("next_run_time") or db.now(session) - timedelta(milliseconds=5)
    values: dict[str, Any] = {
        "name": f"job {next(_numbers)}",
        "schedule_type": "interval",
        "interval_seconds": 3600,
        "schedule_anchor": slot,
        "next_run_time": slot,
    }
    job = CronJob(**(values | fields))
    session.add(job)
    session.commit()
    return job


def add_worker(session: Session, name: str = WORKER, **fields: Any) -> CronWorkerRecord:
    """A worker that has just reported."""
    now = db.now(session)
    values: dict[str, Any] = {
        "worker_id": name,
        "host": "a",
        "boot_id": "b",
        "pid": 1,
        "process_started": "1",
        "version": "0.1.0",
        "slots": 2,
        "started_at": now - timedelta(hours=1),
        "last_seen_at": now,
    }
    worker = CronWorkerRecord(**(values | fields))
    session.add(worker)
    session.commit()
    return worker


def runs_of(session: Session, job: CronJob) -> list[CronJobExecution]:
    """A job's ledger, oldest first, as the database has it now."""
    session.rollback()
    query = (
        sa.select(CronJobExecution).where(CronJobExecution.cron_job == job.id).order_by(CronJobExecution.id)
    )
    return list(session.scalars(query.execution_options(populate_existing=True)))


def fresh(session: Session, row: Any) -> Any:
    """The same row as the database has it now."""
    session.rollback()
    session.refresh(row)
    return row


def claim_one(session: Session, worker: str = WORKER, lease: float = LEASE) -> Claim:
    """Claim the one run that is due."""
    (run,) = lifecycle.claim(session, worker, (), 1, lease)
    return run.claim


def ago(session: Session, **time: float) -> datetime:
    """An instant in the database's past."""
    return db.now(session).astimezone(UTC) - timedelta(**time)

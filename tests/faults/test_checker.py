"""The checker itself: it finds each kind of wrong, and nothing where all is well."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.orm import Session

from kytecron.config import Settings
from kytecron.core.states import Outcome, Status
from kytecron.services import lifecycle
from kytecron.store.models import CronJob, CronJobExecution
from tests.factories import LEASE, WORKER, add_job, ago
from tests.faults.checker import Report, check
from tests.workers import Journal, executions

GONE = 2**22 + 1
"""No process has this id."""


@pytest.fixture
def settings(sqlite_settings: Settings) -> Settings:
    return sqlite_settings


@pytest.fixture
def job(session: Session) -> CronJob:
    """A job with three slots that completed."""
    job = add_job(
        session,
        interval_seconds=60,
        misfire_policy="run_all",
        next_run_time=ago(session, minutes=2, seconds=1),
    )
    lifecycle.enqueue_due(session)
    return job


@pytest.fixture
def good(session: Session, journal: Journal, job: CronJob) -> list[CronJobExecution]:
    for _ in range(3):
        (run,) = lifecycle.claim(session, WORKER, (), 5, LEASE)
        note(journal, run.claim.execution_id, job, "start")
        note(journal, run.claim.execution_id, job, "end")
        lifecycle.settle(session, [(run.claim, Outcome(Status.COMPLETED, duration_ms=1))])
    return executions(session)


def note(journal: Journal, execution: int, job: CronJob, what: str, **fields: Any) -> None:
    at = time.clock_gettime(time.CLOCK_BOOTTIME)
    entry = {"what": what, "execution": execution, "job": job.id, "attempt": 1, "pid": GONE, "at": at}
    with journal.path.open("a") as file:
        file.write(json.dumps(entry | fields) + "\n")


def found(session: Session, journal: Journal, **limits: Any) -> Report:
    session.commit()
    return check(session, journal, **({"late_seconds": 300} | limits))


def test_nothing_is_wrong_where_all_is_well(
    session: Session, journal: Journal, good: list[CronJobExecution]
) -> None:
    assert len(good) == 3
    assert str(found(session, journal)) == ""


Harm = Callable[[Session, Journal, CronJob, list[CronJobExecution]], object]


def _later(runs: list[CronJobExecution]) -> None:
    for run in runs:
        assert run.due_time is not None
        run.started_at = run.due_time + timedelta(seconds=400)


@pytest.mark.parametrize(
    ("kind", "words", "harm"),
    [
        ("lost", "is not in the ledger", lambda s, j, job, runs: s.delete(runs[0])),
        ("lost", "is not in the ledger", lambda s, j, job, runs: s.delete(runs[1])),
        ("lost", "is not in the ledger", lambda s, j, job, runs: s.delete(runs[2])),
        ("lost", "no slot in the ledger", lambda s, j, job, runs: [s.delete(run) for run in runs]),
        ("lost", "attempts [1]", lambda s, j, job, runs: setattr(runs[0], "retry_count", 1)),
        ("late", "after it was due", lambda s, j, job, runs: _later(runs)),
        ("doubled", "start written by", lambda s, j, job, runs: note(j, runs[2].id, job, "start")),
        ("doubled", "end written by", lambda s, j, job, runs: note(j, runs[2].id, job, "end")),
        ("overlapping", "wrote beat after", lambda s, j, job, runs: note(j, runs[0].id, job, "beat")),
        ("zombie", "after it was completed", lambda s, j, job, runs: note(j, runs[2].id, job, "beat")),
        ("zombie", "live", lambda s, j, job, runs: note(j, runs[2].id, job, "beat", pid=os.getpid())),
        ("zombie", "nobody is there", lambda s, j, job, runs: setattr(runs[2], "status", "running")),
        ("unfenced", "nobody ever held it", lambda s, j, job, runs: setattr(runs[0], "locked_by", None)),
        ("unfenced", "and has run", lambda s, j, job, runs: setattr(runs[0], "status", "skipped")),
        ("unfenced", "not in the ledger", lambda s, j, job, runs: note(j, 99, job, "start")),
        ("unfenced", "another attempt", lambda s, j, job, runs: note(j, runs[2].id, job, "x", attempt=2)),
        (
            "unfenced",
            "counts 4 runs",
            lambda s, j, job, runs: setattr(s.get(CronJob, job.id), "runs_total", 4),
        ),
        ("unfenced", "its process wrote", lambda s, j, job, runs: j.path.write_text("")),
    ],
)
def test_each_kind_of_wrong_is_found(
    session: Session,
    journal: Journal,
    job: CronJob,
    good: list[CronJobExecution],
    kind: str,
    words: str,
    harm: Harm,
) -> None:
    harm(session, journal, job, good)
    report = found(session, journal)
    assert any(words in text for text in getattr(report, kind)), str(report)


def test_two_completed_runs_of_one_slot_are_found(
    session: Session, journal: Journal, good: list[CronJobExecution]
) -> None:
    good[1].scheduled_time, good[1].retry_count = good[0].scheduled_time, 1
    assert any("completed as" in text for text in found(session, journal).doubled)

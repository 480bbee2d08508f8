"""`python -m benchmarks.fill` writes a life that could have been lived: the figures agree with the rows."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from benchmarks import reading
from benchmarks.fill import fill
from kytecron.app import create_app
from kytecron.config import Settings
from kytecron.core.states import Status
from kytecron.services import doctor, lifecycle, recount
from kytecron.services.audit import Actor
from kytecron.services.versions import CronVersionControl
from kytecron.store import figures, queries
from kytecron.store.models import CronJob, CronJobExecution, CronOutbox

ME = Actor("test")


@pytest.mark.slow
def test_a_filled_database_has_nothing_wrong_and_something_of_everything(
    engine: Engine, session: Session, settings: Settings
) -> None:
    settings.make_instance_directory()
    written = fill(engine, jobs=1_000, runs=25_000)

    findings = doctor.examine(engine, settings, ME)
    assert [one for one in findings if one.verdict != "ok"] == [
        doctor.Finding("workers", "warning", "No worker is alive", "Start one: python worker.py")
    ]
    # `doctor` compares some jobs.
    wrong = {job: found for job in queries.job_ids(session) if (found := recount.compare(session, job))}
    assert wrong == {}

    assert session.scalar(sa.select(sa.func.count()).select_from(CronJobExecution)) == written
    assert abs(written - 25_000) < 5_000
    assert {*session.scalars(sa.select(CronJobExecution.status).distinct())} == {*Status}
    assert session.scalar(sa.select(CronJobExecution.id).where(CronJobExecution.slots_count > 1).limit(1))
    assert session.scalar(sa.select(CronJobExecution.id).where(CronJobExecution.retry_count > 0).limit(1))
    assert session.scalar(sa.select(CronOutbox.id).limit(1))
    assert figures.dead_letters(session) > 0
    several = session.scalars(sa.select(CronJob).where(CronJob.current_version > 1)).first()
    assert several is not None
    assert "def execute" in CronVersionControl(session, ME).code(several.id, 2)


def test_a_filled_database_goes_on(engine: Engine, session: Session) -> None:
    """New rows get ids of their own, on every database."""
    written = fill(engine, jobs=20, runs=200)
    job = session.scalars(sa.select(CronJob).where(CronJob.enabled.is_(True))).first()
    assert job is not None
    assert lifecycle.trigger(session, job.id, actor=ME).id > written


def test_a_database_with_jobs_is_left_alone(engine: Engine, session: Session) -> None:
    fill(engine, jobs=3, runs=10)
    with pytest.raises(SystemExit, match="give an empty one"):
        fill(engine, jobs=3, runs=10)


def test_every_page_and_list_is_measured(engine: Engine, session: Session, settings: Settings) -> None:
    settings.make_instance_directory()
    fill(engine, jobs=40, runs=400)
    taken = reading.measure(create_app(settings), session, times=1)
    assert {"/", "/executions", "/jobs", "/api/v1/executions", "/executions?status=lost"} <= taken.keys()

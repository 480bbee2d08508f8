"""What `doctor`, `why` and `/readyz` say of slots that do not come and of places that take no writes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from kytecron.app import create_app
from kytecron.config import Settings
from kytecron.core.schedule import TZDATA_VERSION
from kytecron.requestdb import db as flask_db
from kytecron.services import doctor, probes, why
from kytecron.services.audit import Actor
from kytecron.services.doctor import Finding
from kytecron.services.jobs import CronJobManager
from kytecron.store import db
from tests.factories import add_job, add_worker, fresh

ANNA = Actor("anna")
CODE = "class Job(CronJobBase):\n    def execute(self):\n        pass\n"
FIXED = {"interval_seconds": None, "schedule_anchor": None, "timezone": "Europe/Berlin"}
KINDS = {
    "interval": {},
    "completion": {"interval_anchor": "completion"},
    "cron": {"schedule_type": "cron", "cron_expression": "0 6 * * *", **FIXED},
    "daily": {"schedule_type": "daily", "time_of_day": "06:00", **FIXED},
    "weekly": {"schedule_type": "weekly", "day_of_week": "1", "time_of_day": "06:00", **FIXED},
    "monthly": {"schedule_type": "monthly", "day_of_month": 1, "time_of_day": "06:00", **FIXED},
}


def found(engine: Engine, settings: Settings, check: str, *, fix: bool = False) -> Finding:
    return next(one for one in doctor.examine(engine, settings, ANNA, fix=fix) if one.check == check)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_next_slot_further_away_than_the_schedule_allows_is_noticed_and_planned_anew(
    settings: Settings, engine: Engine, session: Session, kind: str
) -> None:
    """As after a clock that was set back."""
    now = db.now(session)
    job = add_job(session, **KINDS[kind], next_run_time=now + timedelta(days=400))
    problem = found(engine, settings, "next slots")
    assert (problem.verdict, f"job {job.id} " in problem.detail) == ("problem", True)
    assert "its schedule does not name" in why.explain(session, job.id).verdict.replace(
        "has a next slot that ", ""
    )
    assert found(engine, settings, "next slots", fix=True).verdict == "fixed"
    assert fresh(session, job).next_run_time < now + timedelta(days=32)
    assert found(engine, settings, "next slots").verdict == "ok"


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_slot_that_the_schedule_names_is_left_alone(
    settings: Settings, engine: Engine, session: Session, kind: str
) -> None:
    job = CronJobManager(session).create_job(
        **{"name": "x", "code": CODE, "schedule_type": "interval", "interval_seconds": 3600}
        | {name: value for name, value in KINDS[kind].items() if name != "schedule_anchor"}
    )
    before = job.next_run_time
    assert found(engine, settings, "next slots", fix=True).verdict == "ok"
    assert fresh(session, job).next_run_time == before


@contextmanager
def locked(engine: Engine, statement: str) -> Iterator[None]:
    """Keep what a statement locks until the end of the block, as a client does that was left open."""
    with engine.connect() as connection:
        connection.execute(sa.text(statement))
        yield
        connection.rollback()


@pytest.mark.mariadb
def test_a_job_whose_row_a_client_keeps_locked_is_told_with_the_client(
    mariadb_settings: Settings,
) -> None:
    engine = db.make_engine(mariadb_settings)
    with db.make_sessions(engine)() as session:
        add_worker(session, tzdata=TZDATA_VERSION)
        job = add_job(session, next_run_time=db.now(session) - timedelta(seconds=40))
        job_id = job.id
        session.rollback()
        with locked(engine, f"SELECT * FROM CronJob WHERE id = {job_id} FOR UPDATE"):
            reason = why.explain(session, job_id).reasons[0]
            assert reason.code == "passed_over"
            assert "has been due for 40 seconds" in reason.text
            assert "keeps the job's row locked (connection " in reason.text
            problem = found(engine, mariadb_settings, "slots")
            assert problem.verdict == "problem"
            assert "Its row is locked: connection " in problem.detail
        assert "locked" not in why.explain(session, job_id).reasons[0].text
    engine.dispose()


def test_a_slot_that_living_workers_pass_over_is_a_problem(
    settings: Settings, engine: Engine, session: Session
) -> None:
    add_worker(session, tzdata=TZDATA_VERSION)
    job = add_job(session, next_run_time=db.now(session) - timedelta(seconds=40))
    assert found(engine, settings, "slots").verdict == "problem"
    assert why.explain(session, job.id).reasons[0].code == "passed_over"


def test_a_process_with_older_time_zones_than_a_living_worker_plans_no_slots(session: Session) -> None:
    worker = add_worker(session, tzdata="2099a")
    manager = CronJobManager(session)
    fields = {"code": CODE, "schedule_type": "daily", "time_of_day": "06:00", "timezone": "Africa/Cairo"}
    job = manager.create_job(name="daily", **fields)
    assert job.next_run_time is None
    assert manager.create_job(
        name="i", code=CODE, schedule_type="interval", interval_seconds=60
    ).next_run_time
    worker.stopped_at = db.now(session)
    session.commit()
    assert manager.enable(manager.disable(job.id).id).next_run_time is not None


def full(path: Path) -> str:
    return "no space left on device"


def test_a_directory_without_room_is_told_by_doctor_and_readyz(
    sqlite_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/dev/full answers as a full disk does."""
    opened = probes.os.open

    def open_full(path: object, flags: int, mode: int = 0o777) -> int:
        return (
            opened("/dev/full", probes.os.O_WRONLY)
            if probes.PREFIX in str(path)
            else opened(path, flags, mode)
        )

    app = create_app(sqlite_settings)
    assert app.test_client().get("/readyz").status_code == 200
    assert not [path for path in sqlite_settings.instance_path.iterdir() if probes.PREFIX in path.name]
    monkeypatch.setattr("kytecron.services.probes.os.open", open_full)
    app.extensions["kytecron.writes"].until = 0.0
    answer = app.test_client().get("/readyz")
    assert (answer.status_code, "no space left on device" in answer.json["reason"]) == (503, True)
    with app.app_context():
        assert found(flask_db.engine, sqlite_settings, "writes").verdict == "problem"
        flask_db.engine.dispose()


def test_the_directory_that_jobs_use_is_tried_wherever_it_is(
    sqlite_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Path] = []
    monkeypatch.setattr("kytecron.services.probes.directory_problem", lambda path: tried.append(path) or "")
    chosen = replace(sqlite_settings, job_directory=str(tmp_path / "elsewhere"))
    assert list(probes.unwritable(None, chosen)) == []
    assert tried == [chosen.instance_path]  # no worker has been here
    chosen.make_job_directory()
    assert list(probes.unwritable(None, chosen)) == []
    assert tried[-1] == tmp_path / "elsewhere"


def test_a_database_that_takes_no_writes_is_told(sqlite_settings: Settings) -> None:
    engine = db.make_engine(sqlite_settings)
    assert probes.database_problem(engine) == ""
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only = 1")
    assert "readonly" in probes.database_problem(engine).replace("read-only", "readonly")
    engine.dispose()


def test_a_database_that_somebody_writes_to_is_no_problem(sqlite_settings: Settings) -> None:
    engine = db.make_engine(sqlite_settings)
    with closing(
        sqlite3.connect(sqlite_settings.instance_path / "kytecron.db", isolation_level=None)
    ) as other:
        other.execute("BEGIN IMMEDIATE")
        assert probes.database_problem(engine) == ""
    engine.dispose()


@pytest.mark.mariadb
def test_a_server_that_is_read_only_is_told(mariadb_settings: Settings) -> None:
    engine = db.make_engine(mariadb_settings)
    with engine.connect() as connection:
        connection.exec_driver_sql("SET SESSION TRANSACTION READ ONLY")
        connection.commit()
        # The pool gives the same connection again.
    assert probes.database_problem(engine).startswith("The database takes no writes: ")
    engine.dispose()

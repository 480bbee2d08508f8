"""`doctor`: each thing that can be wrong is found, told with what to do, and repaired where it can be."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.orm import Session

from kytecron.app import create_app
from kytecron.config import Settings
from kytecron.requestdb import db
from kytecron.services import doctor, lifecycle, registry
from kytecron.services.audit import Actor
from kytecron.services.doctor import Finding
from kytecron.services.jobs import CronJobManager
from kytecron.store import db as database
from kytecron.store.models import (
    CronJob,
    CronJobExecution,
    CronWorkerRecord,
    KyteCronJobVersionContent,
)
from tests.command_line import CODE, CommandLine

TESTER = Actor("tester")


def find(cli: CommandLine, check: str, *options: str, status: int = 0) -> list[tuple[str, str]]:
    """The verdicts and details of one check."""
    found = cli.json("doctor", *options, status=status)
    assert found["healthy"] is (status == 0)
    return [(one["verdict"], one["detail"]) for one in found["items"] if one["check"] == check]


@pytest.fixture
def worker(rows: Session, sqlite_settings: Settings) -> str:
    """A worker that is alive."""
    registry.report(
        rows, "host:1:a", sqlite_settings, running=0, draining=False, clock_skew_ms=0.0, statistics={}
    )
    return "host:1:a"


def change_worker(rows: Session, **values: object) -> None:
    rows.execute(sa.update(CronWorkerRecord).values(**values))
    rows.commit()


@pytest.mark.usefixtures("worker")
def test_all_is_well(cli: CommandLine):
    found = cli.json("doctor")
    assert found["healthy"] is True
    assert [one["check"] for one in found["items"]] == [
        *("database", "migrations", "writes", "clock", "clock", "tzdata", "workers"),
        *("slots", "next slots", "secrets", "leases", "references", "figures"),
    ]
    assert {one["verdict"] for one in found["items"]} == {"ok"}
    assert "1 worker alive" in cli.output("doctor")


def test_no_worker_is_a_warning_until_something_is_overdue(cli: CommandLine, job: CronJob, rows: Session):
    assert find(cli, "workers") == [("warning", "No worker is alive")]
    run = lifecycle.trigger(rows, job.id, actor=TESTER)
    past = database.now(rows) - timedelta(minutes=2)
    rows.execute(sa.update(CronJobExecution).where(CronJobExecution.id == run.id).values(due_time=past))
    rows.commit()
    assert find(cli, "workers", status=1) == [("problem", "No worker is alive and 1 run overdue")]


@pytest.mark.usefixtures("worker")
def test_workers_with_other_time_zones_or_versions_are_found(cli: CommandLine, rows: Session):
    change_worker(rows, tzdata="1999a")
    ((verdict, detail),) = find(cli, "tzdata", status=1)
    assert verdict == "problem"
    assert "workers have 1999a" in detail
    change_worker(rows, tzdata="", version="0.0.9")
    assert find(cli, "workers") == [
        ("warning", f"Some workers run version 0.0.9; this is {registry.VERSION}")
    ]


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("skew", "verdict", "said"),
    [
        (900, "ok", "goes with the database's"),
        (1500, "warning", "is 1.5 s ahead of the database's"),
        (-1500, "warning", "is 1.5 s behind the database's"),
        (-7_200_000, "problem", "is 7200.0 s behind the database's"),
    ],
)
def test_clocks_that_go_apart_are_found(
    cli: CommandLine, rows: Session, skew: float, verdict: str, said: str
):
    change_worker(rows, clock_skew_ms=skew)
    found = find(cli, "clock", status=int(verdict == "problem"))
    assert found[1][0] == verdict
    assert said in found[1][1]


def test_this_machines_clock_is_measured_against_the_databases(session: Session):
    skew, uncertainty = doctor.measure_skew(session)
    assert abs(skew) - uncertainty < timedelta(seconds=1)


def test_a_dead_worker_is_no_reason_to_worry_about_its_clock(cli: CommandLine, rows: Session, worker: str):
    change_worker(rows, clock_skew_ms=1e7, tzdata="1999a")
    registry.sign_off(rows, worker, {})
    assert len(find(cli, "clock")) == 1


@pytest.mark.usefixtures("worker")
def test_ended_leases_are_found_and_ended(cli: CommandLine, job: CronJob, rows: Session):
    run = lifecycle.trigger(rows, job.id, actor=TESTER)
    lifecycle.claim(rows, "host:2:b", (), 1, -5.0)
    assert find(cli, "leases", status=1) == [
        ("problem", "1 run with a lease that has ended: the workers vanished")
    ]
    assert find(cli, "leases", "--fix") == [("fixed", "1 run ended as lost; the retry rule applies")]
    assert cli.json("executions show", run.id)["status"] == "lost"
    assert find(cli, "leases") == [("ok", "No run has a lease that has ended")]


@pytest.mark.usefixtures("worker", "job")
def test_wrong_reference_counts_are_found_and_repaired(cli: CommandLine, rows: Session):
    rows.execute(sa.update(KyteCronJobVersionContent).values(reference_count=7))
    rows.commit()
    ((verdict, detail),) = find(cli, "references", status=1)
    assert verdict == "problem"
    assert detail.endswith("7 recorded, 1 counted")
    assert find(cli, "references", "--fix") == [("fixed", "1 reference count set right")]
    assert find(cli, "references")[0][0] == "ok"
    assert rows.scalar(sa.select(KyteCronJobVersionContent.reference_count)) == 1


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Flask]:
    """A database without tables."""
    app = create_app(Settings(instance_path=tmp_path / "new"))
    yield app
    with app.app_context():
        db.engine.dispose()


def test_missing_migrations_are_found_and_made(empty: Flask):
    cli = CommandLine(empty)
    found = cli.json("doctor", status=1)["items"]
    assert [one["check"] for one in found] == ["database", "migrations"]
    assert found[1]["advice"] == "Run: kytecron db upgrade"
    assert find(cli, "migrations", "--fix") == [("fixed", "The database was brought to the newest migration")]
    assert find(cli, "migrations")[0][0] == "ok"


def test_a_database_that_does_not_answer_is_told_without_its_password(tmp_path: Path):
    url = "mysql+pymysql://nobody:secret@127.0.0.1:1/none"
    cli = CommandLine(create_app(Settings(instance_path=tmp_path, database_url=url)))
    (found,) = cli.json("doctor", status=1)["items"]
    assert found["verdict"] == "problem"
    assert "does not answer: (2003" in found["detail"]
    assert "secret" not in str(found)


def test_a_damaged_file_is_found(sqlite_settings: Settings):
    path = sqlite_settings.instance_path / "kytecron.db"
    data = bytearray(path.read_bytes())
    data[4096 * 3 : 4096 * 9] = b"\x55" * (4096 * 6)
    path.write_bytes(data)
    engine = database.make_engine(sqlite_settings)
    found = doctor.examine(engine, sqlite_settings, TESTER)
    assert found[0].verdict == "problem"
    assert not doctor.healthy(found)
    engine.dispose()


def test_what_the_database_is_is_told(engine: sa.Engine, settings: Settings):
    found: Finding = doctor.examine(engine, settings, TESTER)[0]
    assert found.verdict == "ok"
    assert found.detail.startswith(("SQLite 3.", "MariaDB 1", "PostgreSQL "))


@pytest.mark.mariadb
def test_tables_without_transactions_are_found(mariadb_settings: Settings):
    engine = database.make_engine(mariadb_settings)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE stray (id INT) ENGINE = MyISAM")
    try:
        found = doctor.examine(engine, mariadb_settings, TESTER)
        assert found[0].verdict == "problem"
        assert "1 table without transactions" in found[0].detail
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE stray")
        engine.dispose()


def test_examining_changes_nothing(cli: CommandLine, rows: Session, sqlite_settings: Settings):
    CronJobManager(rows).create_job(name="x", code=CODE)
    rows.execute(sa.update(KyteCronJobVersionContent).values(reference_count=7))
    rows.commit()
    cli("doctor", status=1)
    rows.rollback()
    assert rows.scalar(sa.select(KyteCronJobVersionContent.reference_count)) == 7

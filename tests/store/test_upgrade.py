"""A database of the first release, filled, brought to the newest tables; and what stands in the way of that."""

from __future__ import annotations

import bz2
import dataclasses
import hashlib
import os
import sqlite3
import subprocess
import sys
import time
from collections import Counter, defaultdict
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from kytecron.app import create_app
from kytecron.config import ROOT, Settings
from kytecron.core.errors import Conflict
from kytecron.core.states import UNSUCCESSFUL, Outcome, Status
from kytecron.core.statistics import bucket
from kytecron.requestdb import db as flask_db
from kytecron.services import accounts, doctor, lifecycle, upgrading
from kytecron.services.audit import Actor
from kytecron.services.recount import recount
from kytecron.store import db, figures, queries, schema
from kytecron.store.models import CronJob, CronJobExecution
from tests.command_line import CODE, CommandLine, without_database
from tests.conftest import DATABASES
from tests.factories import add_worker
from tests.mariadb import MariaDB
from tests.postgres import PostgreSQL
from tests.rawsql import numbers_go_on
from tests.workers import make_job, wait_for_statuses, working

ANNA = Actor("anna")
FIRST = "0001"
RUNS = 100_000
JOBS = 20
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(params=DATABASES)
def first_tables(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """A database with the tables of the first release, empty."""
    settings = Settings(instance_path=tmp_path / "instance")
    if request.param != "sqlite":
        server: MariaDB | PostgreSQL = request.getfixturevalue(request.param)
        server.make_database("first_release")
        url = server.url.rpartition("/")[0] + "/first_release"
        settings = dataclasses.replace(settings, database_url=url)
    engine = db.make_engine(settings)
    schema.upgrade(engine, FIRST)
    engine.dispose()
    return settings


@pytest.fixture
def first_release(first_tables: Settings) -> Settings:
    """A database as the first release left it, with jobs and a hundred thousand runs."""
    engine = db.make_engine(first_tables)
    fill(engine)
    engine.dispose()
    return first_tables


def fill(engine: Engine) -> None:
    """Put rows in as SQL has them, for the models may have other columns by now."""
    known = sa.MetaData()
    known.reflect(engine)
    tables = known.tables
    digest, at = hashlib.sha256(CODE.encode()).hexdigest(), NOW.replace(tzinfo=None)
    with engine.begin() as connection:
        content = {"content_hash": digest, "code": bz2.compress(CODE.encode()), "size_bytes": len(CODE)}
        content |= {"compressed_bytes": 1, "reference_count": JOBS, "created_at": at}
        connection.execute(tables["KyteCronJobVersionContent"].insert(), content)
        jobs = [
            {"id": number, "name": f"job {number}", "current_version": 1} for number in range(1, JOBS + 1)
        ]
        connection.execute(tables["CronJob"].insert(), jobs)
        versions = [
            {"cron_job": job["id"], "version_number": 1, "content_hash": digest, "is_current": True}
            for job in jobs
        ]
        connection.execute(tables["KyteCronJobVersion"].insert(), versions)
        for begin in range(0, RUNS, 5_000):
            connection.execute(
                tables["CronJobExecution"].insert(),
                [
                    {
                        "cron_job": number % JOBS + 1,
                        "scheduled_time": at - timedelta(seconds=number),
                        "status": "completed",
                        "due_time": at - timedelta(seconds=number),
                        "completed_at": at,
                        "version": 1,
                        "duration_ms": 5,
                    }
                    for number in range(begin, begin + 5_000)
                ],
            )
        numbers_go_on(connection)


def places(engine: Engine) -> dict[str, Any]:
    """Where SQLite keeps each table: a table that was copied lies elsewhere."""
    if engine.dialect.name != "sqlite":
        return {}
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT name, rootpage FROM sqlite_master WHERE type = 'table' AND name LIKE 'CronJob%'"
        )
        return dict(rows.all())


@pytest.mark.slow
def test_a_filled_database_of_the_first_release_works_on_after_the_upgrade(first_release: Settings) -> None:
    engine = db.make_engine(first_release)
    before = places(engine)
    upgrading.upgrade(engine, first_release)
    assert schema.behind(engine) is None
    after = places(engine)
    assert {name: after[name] for name in before} == before, "tables were copied"
    with db.make_sessions(engine)() as session:
        assert len(queries.executions(session, limit=200).items) == 200
        job = session.get_one(CronJob, 1)
        lifecycle.trigger(session, job.id, actor=ANNA)
        new = make_job(session, CODE, name="new")
        lifecycle.trigger(session, new.id, actor=ANNA)
        with working(first_release):
            wait_for_statuses(session, new, "completed")
            found = queries.executions(session, queries.ExecutionFilter(job=1), limit=1).items[0].execution
        assert found.status == "completed"
    engine.dispose()
    app = create_app(first_release)
    with app.app_context():
        _, token = accounts.create_token(flask_db.session(), "test", "admin", 1, ANNA)
        link = accounts.first_start_link(flask_db.session())
    client = app.test_client()
    headers = {"Authorization": f"Bearer {token}"}
    for address in ("/jobs", "/jobs/1", "/executions", "/executions/1", "/workers", "/stats"):
        assert client.get(f"/api/v1{address}", headers=headers).status_code == 200, address
    assert link is not None
    assert client.post(f"/sign-in/{link}", follow_redirects=False).status_code < 500
    assert client.get("/readyz").status_code == 200
    with app.app_context():
        flask_db.engine.dispose()


# -- figures -------------------------------------------------------------------------------------------------


LETTERS = {"completed": "c", "failed": "f", "timeout": "t", "lost": "l", "cancelled": "x", "skipped": "s"}
GONE = {"completed": 1, "failed": 3}
"""What ended on days whose runs retention has removed, one slot with its retries."""


class FirstRelease:
    """Writes runs of one job as the first release did, with what it counted of them: attempts."""

    def __init__(self, engine: Engine, today: datetime) -> None:
        self.engine, self.today = (
            engine,
            today.replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None),
        )
        known = sa.MetaData()
        known.reflect(engine)
        self.tables = known.tables
        self.days: dict[int, Counter[str]] = defaultdict(Counter)
        self.letters, self.failures, self.slots = "", 0, 0

    def gone(self, days_ago: int) -> None:
        """A day that was counted and whose runs are gone."""
        self.days[days_ago].update(GONE)
        self.letters += "fffc"
        self.failures = 0

    def chain(
        self, days_ago: int, *statuses: str, rerun_of: datetime | None = None, begun: bool = True
    ) -> datetime:
        """One slot: its attempts, in order; `not begun` means that the last one never started."""
        self.slots += 1
        slot = rerun_of or self.today - timedelta(days=days_ago) + timedelta(minutes=self.slots)
        at = self.today - timedelta(days=days_ago) + timedelta(minutes=self.slots)
        rows = []
        for attempt, status in enumerate(statuses):
            at += timedelta(seconds=5)
            ended = status not in ("pending", "running")
            ran = status != "pending" and (begun or attempt < len(statuses) - 1)
            rows.append(
                {
                    "cron_job": 1,
                    "scheduled_time": slot,
                    "rerun": int(rerun_of is not None),
                    "retry_count": attempt,
                    "status": status,
                    "due_time": at,
                    "started_at": at if ran else None,
                    "locked_by": "old:1:a" if status == "running" else None,
                    "locked_until": at if status == "running" else None,
                    "completed_at": at if ended else None,
                    "duration_ms": 8000 if ran and ended else None,
                }
            )
            if ended:
                self.days[days_ago][status] += 1
                self.days[days_ago]["ran"] += ran
                if ran:
                    self.letters += LETTERS[status]
                if status in UNSUCCESSFUL:
                    self.failures += 1
                elif status == "completed":
                    self.failures = 0
        with self.engine.begin() as connection:
            connection.execute(self.tables["CronJobExecution"].insert(), rows)
        return slot

    def count(self) -> None:
        """Write the job's row and its days."""
        total: Counter[str] = sum(self.days.values(), Counter())
        ran = sum(counts["ran"] or sum(GONE.values()) for counts in self.days.values())
        job = {
            "id": 1,
            "name": "first",
            "runs_total": ran,
            "runs_completed": total["completed"],
            "runs_failed": total["failed"] + total["lost"],
            "runs_timeout": total["timeout"],
            "duration_total_ms": 8000 * ran,
            "recent_results": self.letters[-30:],
            "consecutive_failures": self.failures,
            "failing_since": self.today if self.failures else None,
        }
        days = [
            {
                "cron_job": 1,
                "day": (self.today - timedelta(days=ago)).date(),
                **{name: counts[name] for name in LETTERS},
                "duration_ms": 8000 * (counts["ran"] or sum(GONE.values())),
                "durations": {bucket(8000): counts["ran"] or sum(GONE.values())},
            }
            for ago, counts in self.days.items()
        ]
        with self.engine.begin() as connection:
            connection.execute(self.tables["CronJob"].insert(), [job])
            for day in days:
                objects = {name: sa.bindparam(name, type_=sa.JSON) for name in ("durations",)}
                connection.execute(self.tables["CronJobDailyStat"].insert().values({**day, **objects}), [day])


def test_a_filled_database_of_the_first_release_has_its_runs_counted_into_chains(
    first_tables: Settings,
) -> None:
    engine = db.make_engine(first_tables)
    with db.make_sessions(engine)() as session:
        today = db.now(session)
    old = FirstRelease(engine, today)
    old.gone(40)
    old.gone(39)
    old.gone(20)  # of this day one run is left, the job's last failure at that time
    old.chain(20, "failed")
    old.chain(5, "failed", "failed", "completed")
    failed = old.chain(5, "lost", "timeout", "failed")
    old.chain(4, "skipped", begun=False)
    old.chain(4, "cancelled", begun=False)
    old.chain(4, "failed", "cancelled", begun=False)
    old.chain(4, "cancelled")
    old.chain(3, "completed", rerun_of=failed)
    old.chain(2, "lost", "completed")
    old.chain(1, "failed", "failed")
    old.chain(0, "timeout", "pending")
    old.chain(0, "running")
    old.count()
    upgrading.upgrade(engine, first_tables)
    sessions = db.make_sessions(engine)
    assert recount(sessions) == 1
    day = {ago: (today - timedelta(days=ago)).date() for ago in range(41)}
    with sessions() as session:
        job = session.get_one(CronJob, 1)
        assert (job.attempts_until, job.pruned_until) == (day[20], day[20])
        assert (job.recent_results, job.consecutive_failures) == ("fcfxccf", 1)
        summary = figures.execution_summary(job)
        # 3 completed and 2 failed chains; of the days that are gone 3 completed and 10 failed attempts.
        assert (summary["successful"], summary["failed"], summary["timeouts"]) == (6, 12, 0)
        assert (summary["recovered"], summary["skipped"]) == (2, 1)
        found = figures.job_statistics(session, 1, 41, today.date())
        told = dict(found.days)
        assert {one_day for one_day, one in told.items() if one.counted_as == "attempts"} == {
            *(day[40], day[39], day[20])
        }
        assert (told[day[40]].completed, told[day[40]].failed, told[day[40]].attempts) == (1, 3, 4)
        assert (told[day[20]].completed, told[day[20]].failed) == (1, 4)
        assert (told[day[5]].completed, told[day[5]].failed, told[day[5]].attempts) == (1, 1, 6)
        assert (told[day[5]].lost, told[day[5]].timeout, told[day[5]].recovered) == (0, 0, 1)
        assert (told[day[4]].total, told[day[4]].attempts, told[day[4]].skipped) == (0, 1, 1)
        assert told[day[5]].p50_duration_ms == 8000
        assert told[day[0]].total == 0
        session.rollback()
        assert verdict_on_figures(engine, first_tables) == "ok"
        # What was under way at the upgrade ends as this release counts.
        lifecycle.reap(session)
        while claimed := lifecycle.claim(session, "new:1:a", (), 5, 60.0):
            done = Outcome(Status.COMPLETED, duration_ms=8000)
            lifecycle.settle(session, [(run.claim, done) for run in claimed])
            session.execute(sa.update(CronJobExecution).values(due_time=today - timedelta(days=1)))
            session.commit()
        session.refresh(job)
        assert job.consecutive_failures == 0
        assert figures.execution_summary(job)["successful"] >= 7
        session.rollback()
        assert verdict_on_figures(engine, first_tables) == "ok"
    engine.dispose()


def verdict_on_figures(engine: Engine, settings: Settings) -> str:
    found = next(one for one in doctor.examine(engine, settings, ANNA) if one.check == "figures")
    assert found.verdict == "ok", found.detail
    return found.verdict


# -- what stands in the way ----------------------------------------------------------------------------------


def test_a_living_worker_of_another_version_is_named_and_stands_in_the_way(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with db.make_sessions(engine)() as session:
        add_worker(session, "old:17:a", host="box", pid=17, version="0.0.9")
        stopped = add_worker(session, "stopped:1:a")
        stopped.stopped_at = db.now(session)
        session.commit()
        now = db.now(session)
        add_worker(session, "silent:1:a", last_seen_at=now - timedelta(minutes=5))
    upgrading.require_no_workers(engine, settings)  # it is at the newest already: nothing is to be done
    monkeypatch.setattr(schema, "newest", lambda: "9999")
    with pytest.raises(Conflict) as caught:
        upgrading.require_no_workers(engine, settings)
    assert "1 worker is alive" in caught.value.message
    assert "old:17:a (version 0.0.9, host box, pid 17, seen " in caught.value.message
    assert "--force" in caught.value.message


def test_a_downgrade_beside_a_living_worker_is_refused_unless_forced(sqlite_settings: Settings) -> None:
    app = create_app(sqlite_settings)
    with app.app_context():
        add_worker(flask_db.session())
        flask_db.session.remove()
    cli = CommandLine(app)
    assert "1 worker is alive" in cli.error("db downgrade base", status=1)
    with app.app_context():
        assert schema.behind(flask_db.engine) is None
    cli("db downgrade base --force")
    with app.app_context():
        assert "has no tables yet" in str(schema.behind(flask_db.engine))
        flask_db.engine.dispose()


def flask(settings: Settings, *words: str, **variables: str) -> subprocess.Popen[str]:
    """`flask --app wsgi ...` as people type it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KYTECRON_")}
    environment |= {"KYTECRON_INSTANCE_PATH": str(settings.instance_path), **variables}
    return subprocess.Popen(
        [sys.executable, "-m", "flask", "--app", "wsgi", *words],
        cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_an_upgrade_beside_a_writer_waits_for_it(sqlite_settings: Settings) -> None:
    path = sqlite_settings.instance_path / "kytecron.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        upgrade = flask(sqlite_settings, "db", "upgrade")
        lock = path.with_name("kytecron.db.migrate")
        deadline = time.monotonic() + 60
        while not lock.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(subprocess.TimeoutExpired):
            upgrade.wait(1)
        writer.execute("ROLLBACK")
        _, said = upgrade.communicate(timeout=60)
    assert (upgrade.returncode, without_database(said)) == (0, "")


@pytest.mark.parametrize(
    "words",
    [
        *(("db", "upgrade"), ("db", "current"), ("jobs", "list"), ("doctor",)),
        ("users", "list"),
    ],
    ids=" ".join,
)
def test_a_database_that_is_away_is_told_in_a_sentence(
    sqlite_settings: Settings, words: tuple[str, ...]
) -> None:
    url = "mysql+pymysql://anna:hidden@127.0.0.1:1/kytecron"
    process = flask(sqlite_settings, *words, KYTECRON_DATABASE_URL=url)
    out, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in said
    assert "does not answer" in said + out
    assert len(said.splitlines()) <= 2
    assert "hidden" not in said + out


def test_a_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    settings = Settings(instance_path=tmp_path)
    with closing(sqlite3.connect(tmp_path / "kytecron.db")) as other:
        other.execute("CREATE TABLE invoices (id INTEGER)")
        other.commit()
    engine = db.make_engine(settings)
    for act in (schema.upgrade, lambda engine: pytest.fail(schema.behind(engine) or "")):
        with pytest.raises(
            (Conflict, pytest.fail.Exception), match="another program's: it has the tables invoices"
        ):
            act(engine)
    engine.dispose()
    cli = CommandLine(create_app(settings))
    for words in ("db upgrade", "db upgrade --force", "jobs list"):
        assert "another program's: it has the tables invoices" in cli.error(words, status=1)

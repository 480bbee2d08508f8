"""A backup is restored while workers are alive: ids are given anew, and stand for other runs."""

from __future__ import annotations

import re
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session, sessionmaker

from kytecron.config import ROOT, Settings
from kytecron.services import lifecycle
from kytecron.services.jobs import CronJobManager
from kytecron.store import db
from kytecron.store.models import Base, CronJobExecution, CronOutbox
from tests.faults.conftest import SERVERS
from tests.faults.harm import Harm, harm
from tests.faults.scene import ANNA
from tests.rawsql import typed
from tests.workers import Journal, alive, executions, make_job, wait_for, wait_for_statuses, working

RUNS = CronJobExecution.__tablename__
GUARANTEES = ROOT / "docs" / "guarantees.md"
ATTACHED = {"concurrency": 12, "renew_seconds": 10, "lease_seconds": 60}
"""The lease of production: nothing is put right by waiting for its end."""


class Backup:
    """A way to save a database and to put it back while it is in use."""

    def __init__(self, settings: Settings, kind: str, served: Harm | None) -> None:
        self.settings, self.kind, self.served = settings, kind, served
        self.path = settings.instance_path / "kytecron.db"
        self.saved = settings.instance_path / "saved.db"
        self.rows: dict[str, list[tuple[object, ...]]] = {}

    def save(self) -> None:
        if self.served is None:
            with closing(sqlite3.connect(self.path)) as here, closing(sqlite3.connect(self.saved)) as there:
                here.backup(there)
            return
        for table in Base.metadata.sorted_tables:
            self.rows[table.name] = self.served.execute(
                f"SELECT {self._columns(table)} FROM {self.served.name(table.name)}"
            )

    def restore(self) -> None:
        if self.served is not None:
            self._insert_again(self.served)
        elif self.kind == "online":
            with closing(sqlite3.connect(self.saved)) as here, closing(sqlite3.connect(self.path)) as there:
                here.backup(there)
        else:
            for suffix in ("-wal", "-shm"):
                Path(f"{self.path}{suffix}").unlink(missing_ok=True)
            # Written over in place, the file would be undone by what its users still have in mind.
            copy = self.saved.with_suffix(".copy")
            shutil.copy(self.saved, copy)
            copy.rename(self.path)

    def _columns(self, table: sa.Table) -> str:
        assert self.served
        return ", ".join(self.served.name(column.name) for column in table.c)

    def _insert_again(self, served: Harm) -> None:
        with served.connect() as connection, connection.cursor() as cursor:
            cursor.execute("BEGIN")
            for table in reversed(Base.metadata.sorted_tables):
                cursor.execute(f"DELETE FROM {served.name(table.name)}")
            for table in Base.metadata.sorted_tables:
                places = ", ".join(["%s"] * len(table.c))
                is_json = [isinstance(column.type, sa.JSON) for column in table.c]
                for row in self.rows[table.name]:
                    values = [
                        served.as_json(value) if json else value
                        for value, json in zip(row, is_json, strict=True)
                    ]
                    cursor.execute(
                        f"INSERT INTO {served.name(table.name)} ({self._columns(table)}) VALUES ({places})",
                        values,
                    )
            cursor.execute("COMMIT")
        # As a dump says it: the ids that were given after the backup are given again.
        ((following,),) = served.execute(f"SELECT coalesce(max(id), 0) + 1 FROM {served.name(RUNS)}")
        served.execute(served.next_id.format(table=served.name(RUNS), following=following))


@pytest.fixture(params=["online", "file replaced", *SERVERS])
def backup(request: pytest.FixtureRequest) -> Backup:
    if request.param in ("online", "file replaced"):
        return Backup(request.getfixturevalue("sqlite_settings"), request.param, None)
    settings = request.getfixturevalue(f"{request.param}_settings")
    return Backup(settings, request.param, harm(request.getfixturevalue(request.param)))


@pytest.fixture
def sessions(backup: Backup) -> Iterator[Callable[[], Session]]:
    """Sessions on the database as it is now, each on a connection of its own: the file may be another one."""
    made: list[tuple[Engine, Session]] = []

    def make() -> Session:
        engine = db.make_engine(backup.settings)
        made.append((engine, sessionmaker(engine, expire_on_commit=False)()))
        return made[-1][1]

    yield make
    for engine, session in made:
        session.close()
        engine.dispose()


def job_in(session: Session, code: str, **fields: object) -> int:
    return make_job(session, code, **fields).id


def rows_of(session: Session) -> list[CronJobExecution]:
    session.rollback()
    query = sa.select(CronJobExecution).order_by(CronJobExecution.id)
    return list(session.scalars(query.execution_options(populate_existing=True)))


def start_of_each(journal: Journal, job: int, count: int) -> list[int]:
    """Process ids of a job's runs, once there are so many."""
    found = wait_for(
        lambda: (
            (pids := [e["pid"] for e in journal.entries("start") if e["job"] == job])[count - 1 :] and pids
        ),
        f"{count} runs of job {job}",
    )
    return list(found)


def test_ids_that_are_given_anew_give_no_run_the_results_of_another(
    backup: Backup, sessions: Callable[[], Session], journal: Journal
) -> None:
    before = sessions()
    former = job_in(
        before, journal.code("time.sleep(15)\nreturn 'former'"), name="former", overlap_policy="allow"
    )
    other = job_in(
        before, journal.code("time.sleep(1)\nreturn 'other'"), name="other", overlap_policy="allow"
    )
    with working(backup.settings, **ATTACHED) as worker:
        for _ in range(2):
            lifecycle.trigger(before, other, actor=ANNA)
        wait_for(lambda: [run.status for run in rows_of(before)] == ["completed"] * 2)
        before.close()
        backup.save()
        before = sessions()
        for _ in range(3):
            lifecycle.trigger(before, former, actor=ANNA)
        orphans = start_of_each(journal, former, 3)
        before.close()
        backup.restore()
        after = sessions()
        for _ in range(6):
            lifecycle.trigger(after, other, actor=ANNA)
        wait_for(
            lambda: all(run.status not in ("pending", "running") for run in rows_of(after)), "all to end"
        )
        runs = rows_of(after)
        assert [(run.cron_job, run.result) for run in runs] == [(other, "other")] * 8, worker.log()
        assert {run.status for run in runs} == {"completed"}
        wait_for(
            lambda: not any(alive(pid) for pid in orphans), "what the ledger knows nothing of to be killed"
        )
        assert worker.stop()["executed"] == 11


def test_what_ran_when_the_backup_was_made_is_lost_once_and_runs_again(
    backup: Backup, sessions: Callable[[], Session], journal: Journal
) -> None:
    """The backup says that this worker runs what it ended long ago; and of what it still runs, that it does."""
    before = sessions()
    short = job_in(before, journal.code("time.sleep(1.5)"), name="short", max_retries=0)
    long = job_in(before, journal.code("time.sleep(6)"), name="long", max_retries=0)
    with working(backup.settings, **ATTACHED) as worker:
        for job in (short, long):
            lifecycle.trigger(before, job, actor=ANNA)
            start_of_each(journal, job, 1)
        before.close()
        backup.save()
        before = sessions()
        wait_for(lambda: "completed" in [run.status for run in rows_of(before)], "the short one to end")
        before.close()
        backup.restore()
        after = sessions()
        wait_for(
            lambda: all(run.status not in ("pending", "running") for run in rows_of(after)), "all to end"
        )
        ended = [(run.cron_job, run.status) for run in rows_of(after)]
        assert ended == [(short, "lost"), (long, "completed"), (short, "completed")], worker.log()
        assert not CronJobManager(after).get(short).in_dead_letter_queue
        worker.stop()


def test_a_worker_whose_runs_are_gone_from_the_ledger_still_ends(
    backup: Backup, sessions: Callable[[], Session], journal: Journal
) -> None:
    before = sessions()
    job = job_in(before, journal.code("time.sleep(600)"), overlap_policy="allow")
    before.close()
    backup.save()
    before = sessions()
    with working(backup.settings, grace_seconds=600, **ATTACHED) as worker:
        for _ in range(3):
            lifecycle.trigger(before, job, actor=ANNA)
        pids = start_of_each(journal, job, 3)
        before.close()
        worker.signal(signal.SIGTERM)
        wait_for(lambda: "stopping" in worker.log())
        backup.restore()
        worker.ended()
        assert not any(alive(pid) for pid in pids)


def test_a_copy_that_is_made_quiet_runs_nothing_and_tells_nobody(
    backup: Backup, sessions: Callable[[], Session], journal: Journal
) -> None:
    session = sessions()
    told = {"notification_email": "ops@example.org", "max_retries": 0}
    make_job(session, journal.code(), schedule_type="interval", interval_seconds=1, **told)
    running, pending = (make_job(session, journal.code(), **told) for _ in range(2))
    lifecycle.trigger(session, running.id, actor=ANNA)
    (claimed,) = lifecycle.claim(session, "production:1:a", (), 10, lease_seconds=0.01)
    assert claimed.claim.job_id == running.id
    lifecycle.trigger(session, pending.id, actor=ANNA)
    for statement in re.findall(r"^    ((?:UPDATE|DELETE) .*);$", GUARANTEES.read_text(), re.MULTILINE):
        session.execute(typed(session, statement))
    session.commit()
    with working(backup.settings, smtp_host="127.0.0.1"):
        ours = make_job(session, journal.code(), name="ours")
        for count in (1, 2):
            lifecycle.trigger(session, ours.id, actor=ANNA)
            wait_for_statuses(session, ours, *["completed"] * count)
    assert {entry["job"] for entry in journal.entries()} == {ours.id}
    assert session.scalars(sa.select(CronOutbox)).all() == []
    assert {run.status for run in executions(session) if run.cron_job != ours.id} == {"cancelled"}

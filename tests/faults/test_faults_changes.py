"""People change jobs while their slots are due; processes start all at once."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from kytecron.config import ROOT, Settings
from kytecron.services.jobs import CronJobManager
from kytecron.store import db, schema
from kytecron.store.models import CronJobExecution, CronWorkerRecord
from tests.faults.conftest import SERVERS
from tests.faults.harm import Server
from tests.faults.scene import clockwork, crew, in_the_end, keeps_going
from tests.mariadb import DATABASE
from tests.workers import Journal, executions, wait_for


@pytest.mark.slow
def test_edits_disabling_and_deletion_while_slots_are_due_leave_a_true_ledger(
    settings: Settings, session: Session, journal: Journal
) -> None:
    untouched, edited, toggled, deleted = clockwork(session, journal, count=4)
    manager = CronJobManager(session)
    with crew(settings, 2) as workers:
        wait_for(lambda: len(journal.entries("end")) >= 4, "a good start")
        for number in range(12):
            manager.update_code(edited.id, journal.code(f"number = {number}"))
            manager.update_job(edited.id, interval_seconds=1 + number % 2, priority=number % 10)
            manager.disable(toggled.id)
            manager.enable(toggled.id)
            time.sleep(0.25)  # so that a slot is due in between, now and then
        manager.delete(deleted.id)
        at_deletion = executions(session, deleted)
        keeps_going(session, [untouched, edited, toggled])
        manager.disable(toggled.id)
        manager.disable(edited.id)  # its slots moved with its interval: no one schedule tells them afterwards
        in_the_end(session, journal, workers)
        assert not any(" failed: " in worker.log() for worker in workers)
    after = executions(session, deleted)
    assert [run.id for run in after] == [run.id for run in at_deletion], "nothing new after the deletion"
    for job in (deleted, toggled, edited):
        assert {run.status for run in executions(session, job)} <= {"completed", "skipped", "cancelled"}


SIX = """
import sys
from kytecron.config import Settings
from kytecron.store import db, schema
from kytecron.engine.main import main
engine = db.make_engine(Settings.load())
schema.upgrade(engine)
engine.dispose()
sys.exit(main([]))
"""


def _six_at_once(settings: Settings, directory: Path) -> list[subprocess.Popen[bytes]]:
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "KYTECRON_INSTANCE_PATH": str(settings.instance_path),
        "KYTECRON_DATABASE_URL": settings.database_url,
        "KYTECRON_CONCURRENCY": "2",
    }
    return [
        subprocess.Popen(
            [sys.executable, "-c", SIX],
            env=environment,
            cwd=directory,
            stdout=subprocess.DEVNULL,
            stderr=(directory / f"log{number}").open("wb"),
            process_group=0,
        )
        for number in range(6)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", *SERVERS])
def test_six_processes_that_start_at_once_on_an_empty_database_all_work(
    kind: str, tmp_path: Path, journal: Journal, request: pytest.FixtureRequest
) -> None:
    settings = Settings(instance_path=tmp_path / "instance")
    if kind != "sqlite":
        server: Server = request.getfixturevalue(kind)
        server.make_database("new")
        address = server.url.removesuffix(DATABASE) + "new"
        settings = Settings(instance_path=tmp_path / "instance", database_url=address)
    processes = _six_at_once(settings, tmp_path)
    logs = lambda: "\n".join(path.read_text() for path in sorted(tmp_path.glob("log*")))  # noqa: E731
    engine = db.make_engine(settings)
    try:
        wait_for(lambda: _is_ready(engine), "the schema", seconds=60)
        with sessionmaker(engine, expire_on_commit=False)() as session:
            jobs = clockwork(session, journal, count=6)

            def registered() -> int:
                session.rollback()
                return session.scalar(sa.select(sa.func.count()).select_from(CronWorkerRecord)) or 0

            wait_for(lambda: registered() == 6, "six workers", seconds=60)
            keeps_going(session, jobs)
            for process in processes:
                process.terminate()
            for process in processes:
                assert process.wait(30) == 0, logs()
            in_the_end(session, journal, [])
            holders = set(session.scalars(sa.select(CronJobExecution.locked_by).distinct())) - {None}
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()
        engine.dispose()
    assert len(holders) > 1
    assert "Traceback" not in logs()


def _is_ready(engine: sa.Engine) -> bool:
    with suppress(sa.exc.SQLAlchemyError):
        return schema.behind(engine) is None
    return False

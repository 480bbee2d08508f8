"""`stress` must be able to fail: what it finds when slots are lost or doubled, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from kytecron.config import Settings
from kytecron.services import stress
from kytecron.services.audit import Actor
from kytecron.services.jobs import CronJobManager
from kytecron.store import db
from kytecron.store.models import CronJob, CronJobDailyStat, CronJobExecution, CronJobOutput, CronWorkerRecord
from tests.workers import alive

ANNA = Actor("anna")
SLOT = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = SLOT + timedelta(seconds=1)
EXPECTED = {(1, SLOT), (1, LATER)}


def row(number: int, slot: datetime = SLOT, status: str = "completed", job: int = 1) -> SimpleNamespace:
    return SimpleNamespace(id=number, cron_job=job, scheduled_time=slot, status=status, error=None)


GOOD = [row(1), row(2, LATER)]


def test_what_ran_once_is_neither_lost_nor_doubled() -> None:
    found = stress.compare(EXPECTED, GOOD, ["1 100", "2 101"])
    assert found == {"slots": 2, "ran": 2, "completed": 2, "doubled": [], "lost": []}


@pytest.mark.parametrize(
    ("rows", "lines", "kind", "words"),
    [
        (GOOD[:1], ["1 100"], "lost", "not in the ledger"),
        ([GOOD[0], row(2, LATER, "failed")], ["1 100", "2 101"], "lost", "execution 2 is failed"),
        (GOOD, ["1 100"], "lost", "execution 2 is completed and never ran"),
        (GOOD, ["1 100", "2 101", "2 102"], "doubled", "execution 2 ran 2 times"),
        ([*GOOD, row(3, LATER)], ["1 1", "2 2", "3 3"], "doubled", "executions 2, 3"),
        (GOOD, ["1 100", "2 101", "9 102"], "doubled", "execution 9 ran and is not in the ledger"),
        ([*GOOD, row(3, job=2)], ["1 1", "2 2", "3 3"], "doubled", "nobody asked for it"),
    ],
)
def test_what_is_lost_or_doubled_is_named(
    rows: list[SimpleNamespace], lines: list[str], kind: str, words: str
) -> None:
    found = stress.compare(EXPECTED, rows, lines)
    assert [line for line in found[kind] if words in line], found


@pytest.mark.parametrize(
    ("fields", "passed"),
    [
        ({"ran": 2}, True),
        ({"ran": 0}, False),
        ({"ran": 2, "lost": ["x"]}, False),
        ({"ran": 2, "doubled": ["x"]}, False),
        ({"ran": 2, "problems": ["x"]}, False),
    ],
)
def test_it_passes_only_if_something_ran_and_all_was_well(fields: dict[str, object], passed: bool) -> None:
    report = stress.Report(workers=1, seconds=2, jobs=1, slots=2, completed=2, **fields)  # type: ignore[arg-type]
    assert report.passed is passed


def run(settings: Settings, tell: Callable[[str], None] = lambda line: None) -> stress.Report:
    return stress.run(settings, workers=2, seconds=3, jobs=3, actor=ANNA, tell=tell)


def nothing_is_left(session: Session) -> None:
    for table in (CronJobExecution, CronJobOutput, CronJobDailyStat):
        assert session.scalar(sa.select(sa.func.count()).select_from(table)) == 0
    assert session.scalar(sa.select(sa.func.count()).where(CronJob.deleted_id == 0)) == 0
    assert not [worker for worker in session.scalars(sa.select(CronWorkerRecord)) if alive(worker.pid)]


@pytest.mark.slow
def test_real_workers_run_every_slot_once_and_leave_nothing_behind(
    settings: Settings, session: Session
) -> None:
    report = run(settings)
    assert report.passed, report
    assert (report.slots, report.ran, report.completed) == (9, 9, 9)
    assert (len(report.by_worker), sum(report.by_worker.values())) == (2, 9)
    assert report.contention_rate is not None
    assert report.lateness_ms.keys() == {"p50", "p95", "p99"}
    nothing_is_left(session)


@pytest.fixture
def sqlite_sessions(sqlite_settings: Settings) -> Iterator[sessionmaker[Session]]:
    engine = db.make_engine(sqlite_settings)
    yield db.make_sessions(engine)
    engine.dispose()


@pytest.mark.slow
def test_a_job_that_is_disabled_meanwhile_has_lost_its_slots(
    sqlite_settings: Settings, sqlite_sessions: sessionmaker[Session]
) -> None:
    def disable_one(line: str) -> None:
        if "run every second" in line:
            with sqlite_sessions() as session:
                job_id = session.scalar(sa.select(CronJob.id).where(CronJob.enabled.is_(True)).limit(1))
                CronJobManager(session).disable(job_id)

    report = run(sqlite_settings, disable_one)
    assert not report.passed
    assert report.lost


@pytest.mark.slow
def test_a_worker_that_cannot_start_is_told_and_an_interrupted_run_leaves_nothing_behind(
    sqlite_settings: Settings, sqlite_sessions: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(line: str) -> None:
        if "run every second" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(sqlite_settings, interrupt)
    with sqlite_sessions() as session:
        nothing_is_left(session)
    monkeypatch.setattr(stress, "CONCURRENCY", 0)
    report = run(sqlite_settings)
    assert not report.passed
    assert any(
        "ended with status 2: KYTECRON_CONCURRENCY must be more than 0" in line for line in report.problems
    )

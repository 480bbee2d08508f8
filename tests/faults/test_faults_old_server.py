"""A server without SKIP LOCKED: workers wait for each other's short transactions, and nothing else is different."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.orm import Session, sessionmaker

from kytecron.config import Settings
from kytecron.services import lifecycle
from kytecron.store import dialects
from tests.conftest import empty
from tests.factories import LEASE, WORKER, add_job, ago
from tests.faults.scene import clockwork, crew, in_the_end, keeps_going
from tests.mariadb import MariaDB, serving
from tests.workers import Journal, executions, wait_for

pytestmark = pytest.mark.mariadb


@pytest.fixture(scope="module")
def old_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDB]:
    """A MariaDB that says it is older than it is, so that it is never asked for SKIP LOCKED."""
    with serving(tmp_path_factory.mktemp("old"), "--version=10.5.9-MariaDB") as server:
        yield server


@pytest.fixture
def settings(tmp_path: Path, old_server: MariaDB) -> Settings:
    settings = Settings(instance_path=tmp_path / "instance", database_url=old_server.url)
    empty(settings)
    return settings


def test_each_run_is_claimed_once_by_connections_that_wait_for_each_other(
    sessions: sessionmaker[Session],
) -> None:
    with sessions() as session:
        for _ in range(120):
            add_job(session)
        assert not dialects.of(session).skip_locked
        assert lifecycle.enqueue_due(session, limit=200) == 120
    start, got = threading.Barrier(4), list[int]()
    errors: list[BaseException] = []

    def take(name: str) -> None:
        try:
            with sessions() as own:
                start.wait()
                while runs := lifecycle.claim(own, name, (), 7, LEASE):
                    got.extend(run.claim.execution_id for run in runs)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=take, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    with sessions() as session:
        holders = {run.id: run.locked_by for run in executions(session)}
    assert sorted(got) == sorted(holders)
    assert None not in holders.values()


def test_a_higher_priority_starts_first_there_too(session: Session) -> None:
    low = add_job(session, priority=0)
    lifecycle.enqueue_due(session)
    high = add_job(session, priority=9)
    old = add_job(session, priority=0, next_run_time=ago(session, minutes=10), misfire_grace_seconds=3600)
    tagged = add_job(session, priority=7, worker_tag="gpu")
    lifecycle.enqueue_due(session)
    order = [lifecycle.claim(session, WORKER, ("gpu",), 1, LEASE)[0].claim.job_id for _ in range(4)]
    assert order == [old.id, high.id, tagged.id, low.id]


@pytest.mark.slow
def test_several_workers_lose_and_double_nothing_there(
    settings: Settings, session: Session, journal: Journal
) -> None:
    jobs = clockwork(session, journal, count=8)
    with crew(settings, 3, concurrency=2) as workers:
        wait_for(lambda: len(journal.entries("end")) >= 16, "a good start")
        keeps_going(session, jobs)
        ledger = in_the_end(session, journal, workers)
        logs = [worker.log() for worker in workers]
    assert len({run.locked_by for run in ledger} - {None}) > 1
    assert not any("Traceback" in log for log in logs)

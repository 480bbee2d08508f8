"""Others are in the way of a transaction: it is repeated as a whole, and happens once."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from kytecron.config import Settings
from kytecron.store import db
from kytecron.store.models import CronJob
from tests.factories import add_job, fresh
from tests.faults.harm import Harm


@pytest.fixture
def session(shared_settings: Settings) -> Iterator[Session]:
    engine = db.make_engine(shared_settings, statement_seconds=6)  # a lock is waited for for two of them
    with db.make_sessions(engine)() as session:
        yield session
    engine.dispose()


def _count(session: Session, job: int) -> None:
    change = sa.update(CronJob).where(CronJob.id == job).values(revision=CronJob.revision + 1)
    session.execute(change)


def test_the_victim_of_a_deadlock_is_repeated(shared: Harm, session: Session) -> None:
    first, second = add_job(session), add_job(session)
    ours, theirs = threading.Event(), threading.Event()
    attempts = []

    def other() -> None:
        with shared.connect() as connection, connection.cursor() as cursor:
            lock = f"SELECT id FROM {shared.name('CronJob')} WHERE id = %s FOR UPDATE"
            cursor.execute(shared.prefer_others)
            cursor.execute("BEGIN")
            cursor.execute(shared.grow)
            cursor.execute(lock, (second.id,))
            theirs.set()
            ours.wait()
            cursor.execute(lock, (first.id,))
            cursor.execute("ROLLBACK")

    @db.transactional
    def change(session: Session) -> None:
        attempts.append(1)
        _count(session, first.id)
        ours.set()
        _count(session, second.id)

    thread = threading.Thread(target=other)
    thread.start()
    assert theirs.wait(30)
    change(session)
    thread.join()
    assert len(attempts) == 2
    assert [fresh(session, job).revision for job in (first, second)] == [2, 2]


def test_who_waited_for_a_lock_in_vain_is_repeated(shared: Harm, session: Session) -> None:
    job = add_job(session)
    attempts = []

    @db.transactional
    def change(session: Session) -> None:
        attempts.append(1)
        if len(attempts) == 2:
            over.set()
            released.wait()
        _count(session, job.id)

    over, released, taken = threading.Event(), threading.Event(), threading.Event()

    def other() -> None:
        with shared.locked("CronJob", job.id):
            taken.set()
            over.wait()
        released.set()

    thread = threading.Thread(target=other)
    thread.start()
    assert taken.wait(30)
    change(session)
    thread.join()
    assert len(attempts) == 2
    assert fresh(session, job).revision == 2


@pytest.mark.postgresql
@pytest.mark.thorough
@pytest.mark.parametrize("shared", ["postgresql"], indirect=True)
def test_who_saw_what_is_no_longer_there_is_repeated(shared: Harm, session: Session) -> None:
    """Where somebody has chosen a stricter isolation than kytecron does."""
    job = add_job(session)
    attempts = []

    @db.transactional
    def change(session: Session) -> None:
        attempts.append(1)
        session.execute(sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        assert session.scalar(sa.select(CronJob.priority).where(CronJob.id == job.id)) is not None
        if len(attempts) == 1:
            shared.execute(f'UPDATE "CronJob" SET revision = 10 WHERE id = {job.id}')
        _count(session, job.id)

    change(session)
    assert len(attempts) == 2
    assert fresh(session, job).revision == 11

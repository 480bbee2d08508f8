"""Who keeps a row is told by the connection that does, and not by those that wait behind it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from kytecron.store import locks
from kytecron.store.models import CronJob
from tests.workers import wait_for

JOB = CronJob.__table__


@contextmanager
def waits(connection: sa.Connection, statement: sa.Executable) -> Iterator[None]:
    """Have a connection execute this, which waits for a lock until the end of the block."""
    thread = threading.Thread(target=connection.execute, args=(statement,))
    thread.start()
    yield
    thread.join()


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param("mariadb", marks=pytest.mark.mariadb),
        pytest.param("postgresql", marks=pytest.mark.postgresql),
    ],
    indirect=True,
)
def test_whoever_waits_for_a_lock_is_not_named_as_the_one_that_keeps_others_waiting(session: Session) -> None:
    session.add_all([CronJob(name="first"), CronJob(name="second")])
    session.commit()
    first, second = (
        sa.update(JOB).where(JOB.c.name == name).values(priority=3) for name in ("first", "second")
    )
    engine = session.get_bind().engine
    with engine.connect() as keeps, engine.connect() as behind:
        keeps.execute(first)
        behind.execute(second)
        assert len(locks.holders(session)) == 2
        with waits(behind, first):
            # InnoDB tells the same again to whoever asks within 0.1 s.
            wait_for(lambda: len(locks.holders(session)) == 1, "the one behind to wait", pause=0.2)
            (told,) = locks.holders(session)
            keeps.rollback()
        assert f"connection {_number(keeps)} of " in told
        behind.rollback()


def _number(connection: sa.Connection) -> int:
    """What the server calls a connection."""
    mysql = connection.engine.url.get_backend_name() != "postgresql"
    return int(connection.scalar(sa.text("SELECT connection_id()" if mysql else "SELECT pg_backend_pid()")))

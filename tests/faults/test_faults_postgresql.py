"""What happens to a PostgreSQL alone: it fails over, recovers, refuses connections, ends sessions by itself."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import psycopg
import pytest
from sqlalchemy.orm import Session

from kytecron.config import Settings
from tests import postgres
from tests.faults.harm import WORKER, Harm, harm
from tests.faults.scene import clockwork, crew, in_the_end, keeps_going
from tests.faults.test_faults_server import Crew, noticed
from tests.faults.test_faults_server import session as session
from tests.postgres import PostgreSQL
from tests.workers import Journal, wait_for

pytestmark = [pytest.mark.postgresql, pytest.mark.thorough, pytest.mark.slow]

Harming = Callable[[Harm, PostgreSQL, Crew], None]


@pytest.fixture(scope="module")
def harmed() -> Iterator[Harm]:
    with postgres.serving() as server:
        harmed = harm(server)
        harmed.execute(*harmed.make_worker)
        yield harmed


@contextmanager
def _standby(server: PostgreSQL, *options: str) -> Iterator[None]:
    """The server's data are those of a standby, which becomes the primary in the end."""
    server.stop()
    mark = server.data / "standby.signal"
    mark.touch()
    usual, server.options = server.options, options
    starting = threading.Thread(target=server.start)
    try:
        starting.start()
        yield
    finally:
        wait_for(lambda: (server.data / "postmaster.pid").exists(), "the standby to start")
        wait_for(lambda: _promoted(server), "the standby to be promoted")
        starting.join()
        server.options = usual


def _promoted(server: PostgreSQL) -> bool:
    try:
        server.run("pg_ctl", "promote", "-w", "-D", str(server.data))
    except AssertionError:  # it has not begun to recover
        return not (server.data / "standby.signal").exists()
    return True


def _failover(harmed: Harm, server: PostgreSQL, workers: Crew) -> None:
    with _standby(server):
        noticed(workers, "is not available")
        noticed(workers, "read-only")
        time.sleep(2)  # the length of the fault


def _starting_up(harmed: Harm, server: PostgreSQL, workers: Crew) -> None:
    """57P03."""
    with _standby(server, "hot_standby=off"):
        noticed(workers, "is not available")
        time.sleep(3)  # the length of the fault


def _immediate(harmed: Harm, server: PostgreSQL, workers: Crew) -> None:
    """As pg_ctl stop -m immediate does it."""
    for _ in range(3):
        assert server.process
        server.process.send_signal(signal.SIGQUIT)
        server.process.wait()
        server.start()
        time.sleep(1)  # so that the workers get a little further each time


def _session_crashes(harmed: Harm, server: PostgreSQL, workers: Crew) -> None:
    """A process of the server is killed: it ends all the others, and recovers by itself."""
    for _ in range(3):
        found = wait_for(lambda: _told(harmed, harmed.sessions), "the workers' sessions")
        psutil.Process(found[0][0]).kill()
        time.sleep(1)  # so that the workers get a little further each time


def _told(harmed: Harm, query: str) -> list[tuple[int]]:
    try:
        return harmed.execute(query)
    except psycopg.OperationalError:  # it recovers
        return []


def _no_more_connections(harmed: Harm, server: PostgreSQL, workers: Crew) -> None:
    """53300."""
    harmed.execute(f"ALTER ROLE {WORKER} CONNECTION LIMIT 0")
    try:
        for number in harmed.execute(harmed.sessions):
            harmed.execute(harmed.end_session % number)
        noticed(workers, "is not available")
        time.sleep(2)  # the length of the fault
    finally:
        harmed.execute(f"ALTER ROLE {WORKER} CONNECTION LIMIT -1")


def _open_transactions_ended(harmed: Harm, server: PostgreSQL, workers: Crew) -> None:
    """Whoever is just within a transaction, until some have been."""
    ended = 0
    deadline = time.monotonic() + 30
    while ended < 20 and time.monotonic() < deadline:
        found = harmed.execute(
            f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = '{WORKER}' "
            "AND state LIKE 'idle in transaction%'"
        )
        ended += found[0][0]
    assert ended >= 20


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(_failover, id="failover to a standby"),
        pytest.param(_starting_up, id="starting up"),
        pytest.param(_immediate, id="stopped immediately"),
        pytest.param(_session_crashes, id="a session crashes"),
        pytest.param(_no_more_connections, id="no more connections"),
        pytest.param(_open_transactions_ended, id="open transactions ended"),
    ],
)
def test_what_happens_to_a_postgresql_costs_no_slot_and_doubles_none(
    server_settings: Settings, harmed: Harm, session: Session, journal: Journal, fault: Harming
) -> None:
    jobs = clockwork(session, journal, count=3, seconds=0.3)
    session.rollback()
    with crew(server_settings, 2) as workers:
        wait_for(lambda: len(journal.entries("end")) >= 3, "a good start")
        assert isinstance(harmed.server, PostgreSQL)
        fault(harmed, harmed.server, workers)
        keeps_going(session, jobs)
        in_the_end(session, journal, workers)

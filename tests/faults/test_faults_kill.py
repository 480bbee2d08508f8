"""Workers and jobs that are killed: no run is lost, none is recorded twice, nobody survives."""

from __future__ import annotations

import os
import signal

import pytest
from sqlalchemy.orm import Session, sessionmaker

from kytecron.config import Settings
from kytecron.services import lifecycle
from kytecron.store import db
from tests.faults.harm import Server
from tests.faults.proxy import CLAIM, SETTLE, Fate, Proxy
from tests.faults.scene import (
    ANNA,
    LEASE,
    NEVER_GIVE_UP,
    SHORT,
    clockwork,
    crew,
    descendants,
    in_the_end,
    keeps_going,
    kill_everything,
    long_first_attempt,
    on_another_machine,
)
from tests.workers import (
    PATIENCE,
    Journal,
    WorkerProcess,
    alive,
    executions,
    make_job,
    wait_for,
    wait_for_statuses,
    working,
)


@pytest.fixture
def settings(shared_settings: Settings) -> Settings:
    """Many workers meet at a server. SQLite's worker is the same code, see tests/engine."""
    return shared_settings


def test_a_worker_killed_between_claim_and_start_loses_no_run(
    settings: Settings, session: Session, proxied: Settings, proxy: Proxy, journal: Journal
) -> None:
    job = make_job(session, journal.code(), **NEVER_GIVE_UP)
    claimed = proxy.trap("^COMMIT$", Fate.HOLD_REPLY, after=CLAIM)
    with working(proxied, **SHORT) as doomed:
        lifecycle.trigger(session, job.id, actor=ANNA)
        assert claimed.sprung.wait(PATIENCE)
        doomed.kill()
    assert [(run.status, journal.entries()) for run in executions(session, job)] == [("running", [])]
    with crew(settings, 1) as workers:
        wait_for_statuses(session, job, "lost", "completed")
        in_the_end(session, journal, workers)


@pytest.mark.parametrize("place", ["this machine", "another machine"])
def test_a_worker_killed_in_mid_run_has_its_run_taken_over(
    settings: Settings, session: Session, journal: Journal, place: str
) -> None:
    job = long_first_attempt(session, journal)
    # On the same machine nobody waits for the lease: with one of an hour the test would never end.
    lease = 3600 if place == "this machine" else LEASE
    with working(settings, **(SHORT | {"lease_seconds": lease})) as doomed:
        lifecycle.trigger(session, job.id, actor=ANNA)
        (start,) = wait_for(lambda: journal.entries("start"))
        if place == "another machine":
            on_another_machine(session, doomed)
        doomed.kill()
        with crew(settings, 1) as workers:
            lost, _ = wait_for_statuses(session, job, "lost", "completed")
            in_the_end(session, journal, workers)
    assert not alive(start["pid"])
    assert lost.error is not None
    assert ("process is gone" if place == "this machine" else "lease ended") in lost.error


def test_a_worker_killed_before_it_recorded_a_result_repeats_the_run_and_counts_it_once(
    settings: Settings, session: Session, proxied: Settings, proxy: Proxy, journal: Journal
) -> None:
    job = make_job(session, journal.code(), **NEVER_GIVE_UP)
    settling = proxy.trap(SETTLE, Fate.HOLD)
    with working(proxied, **SHORT) as doomed:
        lifecycle.trigger(session, job.id, actor=ANNA)
        assert settling.sprung.wait(PATIENCE)
        doomed.kill()
    settling.released.set()
    with crew(settings, 1) as workers:
        wait_for_statuses(session, job, "lost", "completed")
        in_the_end(session, journal, workers)
    session.refresh(job)
    assert len(journal.entries("end")) == 2, "at least once: the work was done twice"
    assert (job.runs_total, job.runs_completed) == (2, 1)


def test_a_job_that_is_killed_fails_with_its_cause_and_is_retried(
    settings: Settings, session: Session, journal: Journal
) -> None:
    job = long_first_attempt(session, journal)
    with crew(settings, 1) as workers:
        lifecycle.trigger(session, job.id, actor=ANNA)
        (start,) = wait_for(lambda: journal.entries("start"))
        os.kill(start["pid"], signal.SIGKILL)
        failed, _ = wait_for_statuses(session, job, "failed", "completed")
        in_the_end(session, journal, workers)
    assert failed.error == "killed by signal 9 (SIGKILL)"


def test_a_job_that_kills_the_fork_server_ends_in_the_dead_letter_queue_and_the_worker_goes_on(
    settings: Settings, session: Session, journal: Journal
) -> None:
    job = make_job(
        session,
        journal.code("os.kill(os.getppid(), 9)\ntime.sleep(60)"),
        **(NEVER_GIVE_UP | {"max_retries": 2}),
    )
    other = make_job(session, journal.code())
    with crew(settings, 1) as workers:
        lifecycle.trigger(session, job.id, actor=ANNA)
        wait_for_statuses(session, job, "failed", "failed", "failed")
        lifecycle.trigger(session, other.id, actor=ANNA)
        wait_for_statuses(session, other, "completed")
        in_the_end(session, journal, workers)
    session.refresh(job)
    assert job.in_dead_letter_queue


STOPS_ITS_PARENT = "while True: os.kill(os.getppid(), 19)"  # SIGSTOP
CHILD_STOPS_ITS_PARENT = """
leader = os.getpid()
if os.fork() == 0:
    os.setsid()
    while True:
        if os.getppid() != leader:
            os.kill(os.getppid(), 19)
os.kill(os.getppid(), 19)
time.sleep(600)
"""


@pytest.mark.parametrize("body", [STOPS_ITS_PARENT, CHILD_STOPS_ITS_PARENT], ids=["itself", "its child"])
def test_a_job_that_stops_the_fork_server_ends_in_the_dead_letter_queue_and_the_worker_goes_on(
    settings: Settings, session: Session, journal: Journal, body: str
) -> None:
    job = make_job(session, journal.code(body), **(NEVER_GIVE_UP | {"max_retries": 1}))
    other = make_job(session, journal.code())
    with crew(settings, 1, lease_seconds=60) as workers:
        lifecycle.trigger(session, job.id, actor=ANNA)
        runs = wait_for_statuses(
            session, job, "failed", "failed", seconds=4 * PATIENCE
        )  # twice 10 s of silence
        lifecycle.trigger(session, other.id, actor=ANNA)
        wait_for_statuses(session, other, "completed")
        in_the_end(session, journal, workers)
    assert {run.error for run in runs} == {
        "the process that starts the jobs did not answer for 10 s, and this run was killed with it"
    }
    session.refresh(job)
    assert job.in_dead_letter_queue


def test_a_worker_killed_while_a_job_keeps_its_fork_server_stopped_leaves_no_process(
    settings: Settings, session: Session, journal: Journal
) -> None:
    job = make_job(session, journal.code("os.kill(os.getppid(), 19)\ntime.sleep(600)"))
    with working(settings, **(SHORT | {"lease_seconds": 60})) as doomed:
        lifecycle.trigger(session, job.id, actor=ANNA)
        (start,) = wait_for(lambda: journal.entries("start"))
        pids = [start["pid"], *(child.pid for child in descendants(doomed.pid))]
        doomed.kill()
        wait_for(lambda: not any(alive(pid) for pid in pids), "its processes to be gone")


def test_a_job_that_kills_its_worker_over_and_over_ends_in_the_dead_letter_queue(
    settings: Settings, session: Session, journal: Journal
) -> None:
    kills = (
        "parent = int(open(f'/proc/{os.getppid()}/stat').read().rpartition(')')[2].split()[1])\n"
        "os.kill(parent, 9)\ntime.sleep(60)"
    )
    job = make_job(session, journal.code(kills), **(NEVER_GIVE_UP | {"max_retries": 2}))
    lifecycle.trigger(session, job.id, actor=ANNA)
    for _ in range(3):  # as a service manager restarts it
        worker = WorkerProcess(settings, **SHORT)
        assert worker.process.wait(PATIENCE) == -signal.SIGKILL, worker.log()
        worker.process.communicate()
    with crew(settings, 1) as workers:
        wait_for_statuses(session, job, "lost", "lost", "lost")
        in_the_end(session, journal, workers)
    session.refresh(job)
    assert job.in_dead_letter_queue
    assert not job.enabled


GRANDCHILD = """
if os.fork() == 0:
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.setsid()
    if os.fork() == 0:
        note(self, "grandchild")
        while True:
            time.sleep(1)
    os._exit(0)
while not any('"grandchild"' in line for line in open({path!r})):
    time.sleep(0.01)
"""


@pytest.mark.parametrize("ending", ["the job returns", "time limit", "worker killed"])
def test_a_grandchild_in_a_session_of_its_own_that_ignores_sigterm_dies_with_its_run(
    settings: Settings, session: Session, journal: Journal, ending: str
) -> None:
    body = GRANDCHILD.format(path=str(journal.path))
    if ending != "the job returns":
        body += "time.sleep(60)"
    limit = 2 if ending == "time limit" else 300
    job = make_job(session, journal.code(body), max_retries=0, timeout_seconds=limit)
    with working(settings, **SHORT) as worker:
        lifecycle.trigger(session, job.id, actor=ANNA)
        (grandchild,) = wait_for(lambda: journal.entries("grandchild"))
        if ending == "worker killed":
            worker.kill()
        else:
            wait_for_statuses(session, job, "completed" if ending == "the job returns" else "timeout")
        wait_for(lambda: not alive(grandchild["pid"]), "the grandchild to die")


@pytest.mark.slow
def test_everything_killed_at_once_ten_times_loses_and_doubles_nothing(
    server_settings: Settings, server: Server, journal: Journal
) -> None:
    engine = db.make_engine(server_settings)
    with sessionmaker(engine, expire_on_commit=False)() as session:
        jobs = clockwork(session, journal, count=3, seconds=0.3)
        session.rollback()
        for _ in range(10):
            seen = len(journal.entries("start"))
            with crew(server_settings, 2) as workers:
                wait_for(lambda seen=seen: len(journal.entries("start")) >= seen + 3, "runs in this round")
                server.kill()
                kill_everything(workers)
            server.start()
        with crew(server_settings, 2) as workers:
            keeps_going(session, jobs)
            ledger = in_the_end(session, journal, workers)
    engine.dispose()
    assert any(run.status == "lost" for run in ledger), "some were caught in mid-run"


def test_a_worker_that_is_killed_while_it_is_busy_leaves_all_its_runs_to_the_others(
    settings: Settings, session: Session, journal: Journal
) -> None:
    jobs = [long_first_attempt(session, journal, name=f"long {number}") for number in range(4)]
    with working(settings, **SHORT) as doomed:
        for job in jobs:
            lifecycle.trigger(session, job.id, actor=ANNA)
        wait_for(lambda: len(journal.entries("start")) == len(jobs))
        with crew(settings, 2) as workers:
            doomed.kill()
            for job in jobs:
                wait_for_statuses(session, job, "lost", "completed")
            in_the_end(session, journal, workers)

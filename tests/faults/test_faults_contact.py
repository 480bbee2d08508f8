"""A worker cut off from its database while it claims, runs, renews and records."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest
from sqlalchemy.orm import Session

from kytecron.config import Settings
from kytecron.services import lifecycle
from tests.faults.checker import beating
from tests.faults.proxy import CLAIM, ENQUEUE, OUTPUT, RENEW, SETTLE, TRIGGER, Fate, Proxy
from tests.faults.scene import (
    ANNA,
    LEASE,
    NEVER_GIVE_UP,
    SHORT,
    clockwork,
    crew,
    in_the_end,
    keeps_going,
    long_first_attempt,
)
from tests.workers import (
    PATIENCE,
    Journal,
    alive,
    executions,
    make_job,
    printed,
    wait_for,
    wait_for_statuses,
    working,
)

LONG_LEASE = {"lease_seconds": 20, "renew_seconds": 0.5}


@pytest.fixture
def settings(shared_settings: Settings) -> Settings:
    return shared_settings


def _slow(proxy: Proxy) -> None:
    proxy.delay = 0.1


def _normal(proxy: Proxy) -> None:
    proxy.delay = 0.0


@pytest.mark.parametrize(
    ("cut", "mend"),
    [
        pytest.param(Proxy.freeze, Proxy.thaw, id="frozen"),
        pytest.param(Proxy.drop, lambda proxy: None, id="dropped"),
        pytest.param(Proxy.refuse, Proxy.accept, id="refused"),
        pytest.param(Proxy.forget, lambda proxy: None, id="connections forgotten"),
        pytest.param(_slow, _normal, id="delayed"),
    ],
)
def test_a_cut_shorter_than_the_lease_costs_no_run(
    settings: Settings,
    session: Session,
    proxied: Settings,
    proxy: Proxy,
    journal: Journal,
    cut: Callable[[Proxy], None],
    mend: Callable[[Proxy], None],
) -> None:
    job = make_job(session, journal.code(beating(4)), **NEVER_GIVE_UP)
    with working(proxied, **LONG_LEASE) as cut_off:
        lifecycle.trigger(session, job.id, actor=ANNA)
        wait_for(lambda: journal.entries("start"))
        cut(proxy)
        time.sleep(2)  # the length of the cut: the lease has ten times as much
        mend(proxy)
        wait_for_statuses(session, job, "completed")
        in_the_end(session, journal, [cut_off])


@pytest.mark.parametrize("cut", [Proxy.freeze, Proxy.refuse], ids=["frozen", "refused"])
def test_a_cut_longer_than_the_lease_stops_the_process_before_another_worker_takes_over(
    settings: Settings,
    session: Session,
    proxied: Settings,
    proxy: Proxy,
    journal: Journal,
    cut: Callable[[Proxy], None],
) -> None:
    job = long_first_attempt(session, journal)
    with working(proxied, **SHORT) as cut_off:
        lifecycle.trigger(session, job.id, actor=ANNA)
        wait_for(lambda: journal.entries("start"))
        with crew(settings, 1) as others:
            cut(proxy)
            wait_for_statuses(session, job, "lost", "completed")
            # A lease that was short already when the cut began may end before the first statement times out.
            wait_for(lambda: "is not available" in cut_off.log(), "the worker to notice")
            proxy.thaw() if cut is Proxy.freeze else proxy.accept()
            wait_for(lambda: "answers again" in cut_off.log(), "the worker to be back")
            lifecycle.trigger(session, job.id, actor=ANNA)
            wait_for(lambda: len(journal.entries("start")) == 3)
            assert alive(journal.entries("start")[-1]["pid"])
            lifecycle.cancel(session, executions(session, job)[-1].id, ANNA)
            wait_for_statuses(session, job, "lost", "completed", "cancelled")
            in_the_end(session, journal, [cut_off, *others])


def test_a_job_that_continues_without_contact_keeps_its_result_if_nobody_took_it_over(
    session: Session, proxied: Settings, proxy: Proxy, journal: Journal
) -> None:
    job = make_job(session, journal.code(beating(LEASE + 3)), on_lost_contact="continue", **NEVER_GIVE_UP)
    with working(proxied, **SHORT) as alone:
        lifecycle.trigger(session, job.id, actor=ANNA)
        wait_for(lambda: journal.entries("start"))
        proxy.refuse()
        wait_for(lambda: journal.entries("end"), "the job to end without contact")
        proxy.accept()
        wait_for_statuses(session, job, "completed")
        in_the_end(session, journal, [alone])


def test_a_job_that_continues_without_contact_is_killed_on_return_if_it_was_taken_over(
    settings: Settings, session: Session, proxied: Settings, proxy: Proxy, journal: Journal
) -> None:
    job = long_first_attempt(session, journal, on_lost_contact="continue")
    with working(proxied, **SHORT) as cut_off:
        lifecycle.trigger(session, job.id, actor=ANNA)
        (start,) = wait_for(lambda: journal.entries("start"))
        with crew(settings, 1) as others:
            proxy.refuse()
            lost, _ = wait_for_statuses(session, job, "lost", "completed")
            assert alive(start["pid"]), "that is what `continue` asks for"
            proxy.accept()
            wait_for(lambda: not alive(start["pid"]), "the process to be killed")
            for worker in (cut_off, *others):
                worker.stop()
    runs = executions(session, job)
    assert [run.status for run in runs] == ["lost", "completed"]
    assert runs[0].error == lost.error, "nothing was written about it"


def test_a_result_that_had_to_wait_for_the_database_counts_although_the_lease_has_ended(
    session: Session, proxied: Settings, proxy: Proxy, journal: Journal
) -> None:
    job = make_job(session, journal.code(beating(0.5)), **NEVER_GIVE_UP)
    with working(proxied, **SHORT) as alone:
        lifecycle.trigger(session, job.id, actor=ANNA)
        wait_for(lambda: journal.entries("start"))
        proxy.refuse()
        (end,) = wait_for(lambda: journal.entries("end"))
        wait_for(lambda: time.time() > end["at"] + LEASE, "the lease to end")
        proxy.accept()
        wait_for_statuses(session, job, "completed")
        in_the_end(session, journal, [alone])


@pytest.mark.parametrize(
    ("what", "after"), [("claim", CLAIM), ("result", SETTLE), ("renewal", RENEW), ("slot", ENQUEUE)]
)
def test_a_lost_reply_to_commit_repeats_nothing_and_loses_nothing(
    settings: Settings,
    session: Session,
    proxied: Settings,
    proxy: Proxy,
    journal: Journal,
    what: str,
    after: str,
) -> None:
    """A lease of an hour: nothing is put right by waiting for its end."""
    lost = proxy.trap("^COMMIT$", Fate.LOSE_REPLY, after=after)
    variables = SHORT | {"lease_seconds": 3600}
    if what == "slot":
        jobs = clockwork(session, journal, count=1)
        with working(proxied, **variables) as worker:
            assert lost.sprung.wait(PATIENCE)
            keeps_going(session, jobs)
            in_the_end(session, journal, [worker])
        return
    job = make_job(session, journal.code(beating(1.5)), **NEVER_GIVE_UP)
    with working(proxied, **variables) as worker:
        lifecycle.trigger(session, job.id, actor=ANNA)
        assert lost.sprung.wait(PATIENCE)
        wait_for_statuses(session, job, "completed")
        in_the_end(session, journal, [worker])
    assert len(journal.entries("start")) == 1


def test_a_worker_told_to_stop_while_it_does_not_know_what_it_claimed_gives_it_back(
    settings: Settings, session: Session, proxied: Settings, proxy: Proxy, journal: Journal
) -> None:
    job = make_job(session, journal.code(), **NEVER_GIVE_UP)
    claimed = proxy.trap("^COMMIT$", Fate.HOLD_REPLY, after=CLAIM)
    with working(proxied, **(SHORT | {"lease_seconds": 3600})) as worker:
        lifecycle.trigger(session, job.id, actor=ANNA)
        assert claimed.sprung.wait(PATIENCE)
        proxy.refuse()
        worker.signal(signal.SIGTERM)
        claimed.released.set()
        wait_for(lambda: "stopping" in worker.log())
        proxy.accept()
        worker.ended()
    assert journal.entries() == []
    (run,) = wait_for_statuses(session, job, "pending")
    assert run.given_back == 1


def test_a_connection_that_dies_inside_a_transaction_does_not_keep_its_locks(
    session: Session, proxied: Settings, proxy: Proxy, journal: Journal
) -> None:
    job = make_job(session, journal.code(beating(7)), **NEVER_GIVE_UP)
    renewing = proxy.trap("^COMMIT$", Fate.HOLD, after=RENEW)  # the server hears nothing more of this client
    with working(proxied, **LONG_LEASE) as worker:
        lifecycle.trigger(session, job.id, actor=ANNA)
        assert renewing.sprung.wait(PATIENCE)
        wait_for_statuses(session, job, "completed")
        in_the_end(session, journal, [worker])


def test_a_job_whose_own_call_lost_its_reply_to_commit_is_told_and_its_worker_lives_on(
    settings: Settings, session: Session, proxied: Settings, proxy: Proxy, journal: Journal
) -> None:
    child = make_job(session, journal.code(), name="child", **NEVER_GIVE_UP)
    asks = """
try:
    self.api.trigger("child")
except Exception as error:
    note(self, str(error))
"""
    job = make_job(session, journal.code(asks), **NEVER_GIVE_UP)
    proxy.trap("^COMMIT$", Fate.LOSE_REPLY, after=TRIGGER)
    with working(proxied, **SHORT) as worker:
        lifecycle.trigger(session, job.id, actor=ANNA)
        wait_for_statuses(session, job, "completed")
        wait_for_statuses(session, child, "completed")
        assert any("not known whether" in entry["what"] for entry in journal.entries())
        in_the_end(session, journal, [worker])


@pytest.mark.parametrize(
    ("statement", "after"), [(OUTPUT, None), ("^COMMIT$", OUTPUT)], ids=["piece", "commit"]
)
def test_output_that_could_not_be_stored_is_stored_later_and_once(
    session: Session, proxied: Settings, proxy: Proxy, journal: Journal, statement: str, after: str | None
) -> None:
    """The job ends while the worker has no database."""
    body = "for number in range(60):\n    print(number, flush=True)\n    time.sleep(0.02)"
    job = make_job(session, journal.code(body), **NEVER_GIVE_UP)
    stored = proxy.trap(statement, Fate.HOLD_REPLY, after=after)
    with working(proxied, **LONG_LEASE) as worker:
        lifecycle.trigger(session, job.id, actor=ANNA)
        assert stored.sprung.wait(PATIENCE)
        proxy.refuse()
        wait_for(lambda: "not available" in worker.log(), "the worker to notice")
        wait_for(lambda: journal.entries("end"))
        proxy.accept()
        (run,) = wait_for_statuses(session, job, "completed")
        in_the_end(session, journal, [worker])
    assert printed(session, run).split() == [str(number) for number in range(60)]

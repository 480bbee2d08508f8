"""Limits hold: time, memory, CPU and the lease; and a run that is stopped is stopped."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kytecron.core.states import Status
from kytecron.engine.child import boot_time
from kytecron.engine.runner import Ended, Refused, Started
from tests.runs import Runs, is_alive, wait_until

IGNORES_SIGTERM = (
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready', flush=True)\nwhile True: time.sleep(1)"
)


def test_a_sleeping_job_is_stopped_at_its_time_limit(runs: Runs) -> None:
    outcome = runs.run("try:\n    time.sleep(60)\nfinally:\n    print('cleaned up')", timeout_seconds=0.3)
    assert outcome.status is Status.TIMEOUT
    assert outcome.error == "ran longer than 0.3 s"
    assert outcome.output == "cleaned up\n"
    assert "time.sleep(60)" in (outcome.stack_trace or "")
    assert outcome.duration_ms is not None
    assert 300 <= outcome.duration_ms < 5000


def test_a_job_that_is_stopped_is_torn_down(runs: Runs) -> None:
    code = """
    import time
    class Job(CronJobBase):
        def execute(self):
            try:
                time.sleep(60)
            except Exception:
                print("an exception handler must not see this")
        def tear_down(self):
            print("torn down", self.heartbeat())
    """
    assert runs.run(code, timeout_seconds=0.3).output == "torn down False\n"


@pytest.mark.parametrize(
    "wait",
    [
        "__import__('asyncio').run(__import__('asyncio').sleep(60))",
        "__import__('subprocess').run(['sleep', '60'])",
        "t = __import__('threading').Thread(target=time.sleep, args=[60]); t.start(); t.join()",
        "__import__('select').select([0], [0], [], 60); __import__('queue').Queue().get()",
    ],
    ids=["asyncio", "subprocess", "thread", "queue"],
)
def test_a_job_that_waits_for_whatever_is_stopped_and_cleans_up(runs: Runs, wait: str) -> None:
    outcome = runs.run(f"try:\n    {wait}\nfinally:\n    print('cleaned up')", timeout_seconds=0.5)
    assert (outcome.status, outcome.output) == (Status.TIMEOUT, "cleaned up\n")


def test_a_stop_does_not_interrupt_tear_down(runs: Runs) -> None:
    code = """
    import time
    class Job(CronJobBase):
        def execute(self):
            pass
        def tear_down(self):
            time.sleep(0.4)
            print("torn down")
    """
    outcome = runs.run(code, timeout_seconds=0.2)
    assert (outcome.status, outcome.output) == (Status.TIMEOUT, "torn down\n")


def test_a_job_that_ignores_sigterm_is_killed_after_the_grace(runs: Runs) -> None:
    outcome = runs.run(IGNORES_SIGTERM, timeout_seconds=0.2)
    assert outcome.status is Status.TIMEOUT
    assert outcome.exit_code == 128 + signal.SIGKILL
    assert outcome.duration_ms is not None
    assert outcome.duration_ms >= 700


def test_a_job_that_swallows_the_stop_and_returns_is_still_late(runs: Runs) -> None:
    outcome = runs.run(
        "try:\n    time.sleep(60)\nexcept BaseException:\n    return 'made it'", timeout_seconds=0.2
    )
    assert (outcome.status, outcome.result) == (Status.TIMEOUT, None)


def test_a_stop_that_meets_a_young_process_is_not_lost(runs: Runs) -> None:
    ids = [runs.start("time.sleep(60)") for _ in range(20)]
    for execution_id in ids:
        runs.runner.stop(execution_id, Status.CANCELLED, "cancelled by anna")
    for execution_id in ids:
        outcome = runs.outcome(execution_id)
        assert (outcome.status, outcome.error) == (Status.CANCELLED, "cancelled by anna")
        assert outcome.exit_code == 128 + signal.SIGTERM


def test_a_heartbeat_moves_the_time_limit(runs: Runs) -> None:
    body = """
    for _ in range(5):
        time.sleep(0.15)
        assert self.heartbeat(seconds=0.4)
    return "done"
    """
    assert runs.run(body, timeout_seconds=0.4).result == "done"


def test_a_heartbeat_that_was_the_last_one_is_named(runs: Runs) -> None:
    outcome = runs.run("self.heartbeat(0.2); time.sleep(60)", timeout_seconds=30)
    assert outcome.status is Status.TIMEOUT
    assert outcome.error == "no heartbeat within the 0.2 s that the last one asked for"


def test_a_heartbeat_without_a_time_limit_sets_none(runs: Runs) -> None:
    assert runs.run("self.heartbeat(0.1); time.sleep(0.4); return 'done'").result == "done"


def test_memory_beyond_the_limit_is_named(runs: Runs) -> None:
    body = "print('start')\nblocks = []\nwhile True: blocks.append(bytearray(1_000_000))"
    outcome = runs.run(body, memory_limit_mb=50)
    assert outcome.status is Status.FAILED
    assert outcome.error == "ran out of memory (limit 50 MB)"
    assert "blocks.append" in (outcome.stack_trace or "")
    assert outcome.output == "start\n"
    assert outcome.memory_peak_mb is not None
    assert 40 < outcome.memory_peak_mb < 90


def test_memory_below_the_limit_is_there_to_be_used(runs: Runs) -> None:
    assert runs.run("return len(bytearray(20_000_000))", memory_limit_mb=32).result == 20_000_000


def test_cpu_time_beyond_the_limit_is_named_and_the_job_torn_down(runs: Runs) -> None:
    code = """
    class Job(CronJobBase):
        def execute(self):
            while True: pass
        def tear_down(self):
            print("torn down")
    """
    outcome = runs.run(code, cpu_limit_seconds=1)
    assert outcome.status is Status.FAILED
    assert outcome.error == "used more than 1 s of CPU time"
    assert outcome.output == "torn down\n"


def test_cpu_time_of_a_program_that_the_job_became_is_limited(runs: Runs) -> None:
    loop = "while True: pass"
    outcome = runs.run(f"os.execv(sys.executable, ['python', '-c', {loop!r}])", cpu_limit_seconds=1)
    assert outcome.error == "used more than 1 s of CPU time"


def test_a_run_whose_lease_ends_is_killed_at_once_and_lost(make_runs: Callable[..., Runs]) -> None:
    runs = make_runs(lease_margin_seconds=0.2)
    runs.run("pass")  # the fork server is up: the lease below is for the run alone
    execution_id = runs.start(IGNORES_SIGTERM, lease_until=boot_time() + 0.5)
    outcome = runs.outcome(execution_id)
    assert outcome.status is Status.LOST
    assert (outcome.error or "").startswith("lease lost")
    assert outcome.duration_ms is not None
    assert outcome.duration_ms < 500


def test_a_renewed_lease_keeps_the_run(make_runs: Callable[..., Runs]) -> None:
    runs = make_runs(lease_margin_seconds=0.1)
    runs.run("pass")
    execution_id = runs.start("time.sleep(1)\nreturn self.heartbeat()", lease_until=boot_time() + 0.5)
    while not runs.of(Ended, execution_id):
        runs.runner.set_lease(execution_id, boot_time() + 0.5)
        runs.collect()
    assert runs.outcome(execution_id).result is True


def test_a_run_that_may_go_on_without_its_lease_does_and_is_told(make_runs: Callable[..., Runs]) -> None:
    runs = make_runs(lease_margin_seconds=0)
    runs.run("pass")
    body = "time.sleep(0.6)\nreturn self.heartbeat()"
    outcome = runs.run(body, lease_until=boot_time() + 0.5, stop_before_lease_end=False)
    assert (outcome.status, outcome.result) == (Status.COMPLETED, False)


@pytest.mark.parametrize("stops", [True, False], ids=["stop", "continue"])
def test_a_run_whose_lease_has_ended_before_it_starts_never_starts(
    make_runs: Callable[..., Runs], stops: bool
) -> None:
    """Its worker was stopped between claim and start: another may have taken it over."""
    runs = make_runs(lease_margin_seconds=0)
    execution_id = runs.start("print('here')", lease_until=boot_time() - 1, stop_before_lease_end=stops)
    outcome = runs.outcome(execution_id)
    assert (outcome.status, outcome.interrupted, outcome.output) == (Status.LOST, False, "")
    assert runs.of(Started, execution_id) == []
    assert runs.run("return 'goes on'").result == "goes on"


def test_a_lost_lease_cuts_the_grace_of_a_run_being_stopped(make_runs: Callable[..., Runs]) -> None:
    runs = make_runs(kill_grace_seconds=60)
    execution_id = runs.start(IGNORES_SIGTERM)
    wait_until(lambda: runs.runner.take_output(execution_id))
    runs.runner.stop(execution_id, Status.CANCELLED, "cancelled")
    runs.runner.set_lease(execution_id, boot_time())
    assert runs.outcome(execution_id).status is Status.LOST


@pytest.mark.parametrize(("interrupted", "status"), [(False, Status.CANCELLED), (True, Status.COMPLETED)])
def test_a_job_that_ends_well_within_the_grace(runs: Runs, interrupted: bool, status: Status) -> None:
    body = "try:\n    print('ready'); time.sleep(60)\nexcept BaseException:\n    return 'finished'"
    execution_id = runs.start(body)
    wait_until(lambda: runs.runner.take_output(execution_id))
    runs.runner.stop(execution_id, Status.CANCELLED, "shutting down", interrupted=interrupted)
    outcome = runs.outcome(execution_id)
    assert outcome.status is status
    assert outcome.interrupted is (status is Status.CANCELLED and interrupted)


def test_runs_that_are_stopped_without_a_grace_end_at_once(make_runs: Callable[..., Runs]) -> None:
    runs = make_runs(kill_grace_seconds=60)
    ids = [runs.start(IGNORES_SIGTERM) for _ in range(3)]
    for execution_id in ids:
        wait_until(lambda ended=execution_id: runs.runner.take_output(ended))
    reason = "stopped with its worker"
    for execution_id in ids:
        runs.runner.stop(execution_id, Status.FAILED, reason, interrupted=True, grace_seconds=0)
    for execution_id in ids:
        outcome = runs.outcome(execution_id, 5)
        assert (outcome.status, outcome.error) == (Status.FAILED, reason)
        assert outcome.interrupted


def test_a_dropped_run_dies_and_is_not_heard_of_again(runs: Runs) -> None:
    execution_id = runs.start("print('x', flush=True)\ntime.sleep(60)")
    pid = runs.pid(execution_id)
    runs.runner.drop(execution_id)
    assert runs.runner.running == set()
    assert runs.runner.take_output(execution_id) is None
    wait_until(lambda: not is_alive(pid))
    assert runs.run("return 1").result == 1
    assert not runs.of(Ended, execution_id)


def test_a_dropped_run_that_had_ended_is_not_heard_of_either(runs: Runs) -> None:
    execution_id = runs.start("return 1")
    wait_until(lambda: runs.runner.running == {execution_id} and not runs.runner._runs)
    runs.runner.drop(execution_id)
    assert runs.runner.running == set()
    assert runs.runner.collect() == []


def test_an_end_before_the_time_limit_counts_when_it_is_noticed_after_it(runs: Runs) -> None:
    body = "os.kill(os.getppid(), signal.SIGSTOP)\nreturn os.getppid()"
    execution_id = runs.start(body, timeout_seconds=0.3)
    begun = time.monotonic()
    server = runs.runner.server_pid
    assert server is not None
    wait_until(lambda: " T " in Path(f"/proc/{server}/stat").read_text())
    wait_until(lambda: time.monotonic() > begun + 0.4)
    os.kill(server, signal.SIGCONT)
    assert runs.outcome(execution_id).status is Status.COMPLETED


def test_a_start_is_reported_with_its_process_and_time(runs: Runs) -> None:
    before = datetime.now(UTC)
    execution_id = runs.start("return os.getpid()")
    started = runs.wait_for(Started, execution_id)
    assert before <= started.started_at <= datetime.now(UTC)
    assert runs.outcome(execution_id).result == started.pid
    assert started.pid != os.getpid()


def test_a_start_that_is_refused_keeps_no_other_of_its_batch_from_it(runs: Runs) -> None:
    """A number whose former process is being killed, and what JSON cannot hold."""
    code = "class Job(CronJobBase):\n    def execute(self): return self.execution.id"
    stubborn = runs.start("signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)")
    again = replace(runs.request(code), execution_id=stubborn)
    unspeakable = replace(runs.request(code), parameters={"a": object()})
    others = [runs.request(code) for _ in range(2)]
    runs.runner.start_many([others[0], again, unspeakable, others[1]])
    assert "number" in runs.wait_for(Refused, stubborn).reason
    assert runs.outcome(unspeakable.execution_id).status is Status.FAILED
    for request in others:
        assert runs.outcome(request.execution_id).result == request.execution_id
    assert runs.of(Ended, stubborn) == [], "the one that was there goes on"


def test_nothing_can_be_started_after_close(runs: Runs) -> None:
    execution_id = runs.start("time.sleep(60)")
    pid = runs.pid(execution_id)
    began = time.monotonic()
    runs.runner.close()
    assert not is_alive(pid)
    assert time.monotonic() - began < 30
    with pytest.raises(RuntimeError, match="closed"):
        runs.start("return 1")

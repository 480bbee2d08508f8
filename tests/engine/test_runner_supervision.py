"""What a job does to the talk with its worker, or to the fork server, costs no other run anything."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from kytecron.core.states import Status
from kytecron.engine.child import LONGEST_CALL, boot_time
from kytecron.engine.runner import Call, Ended, Progressed, Refused
from kytecron.engine.server import LOOK_SECONDS, Server
from tests.runs import Runs, children_of, is_alive, wait_until

FOREVER = "while not os.path.exists('../../stop'): {}"


def stop(runs: Runs) -> None:
    (runs.directory / "stop").touch()


# -- calls without pause -------------------------------------------------------------------------------------


def test_heartbeats_without_pause_hold_up_no_other_run(runs: Runs) -> None:
    server = runs.runner._server
    assert server is not None
    assert not server.socket.getblocking(), "reading the news, or giving an order, never waits"
    body = FOREVER.format("self.heartbeat(); time.sleep(0.002)")
    eager = [runs.start(body, timeout_seconds=300) for _ in range(3)]
    for execution_id in eager:
        runs.pid(execution_id)
    assert [runs.run("return 'beside'").result for _ in range(20)] == ["beside"] * 20
    assert not [execution_id for execution_id in eager if runs.of(Ended, execution_id)]
    stop(runs)
    assert {runs.outcome(execution_id).status for execution_id in eager} == {Status.COMPLETED}


def test_there_is_nothing_to_hear_and_nobody_waits(runs: Runs) -> None:
    runs.run("return 1")
    server = runs.runner._server
    assert server is not None
    with runs.runner._lock:
        while server.receive():
            pass
        assert server.receive() == []


def test_a_run_that_ends_while_a_thread_of_it_asks_keeps_its_result(runs: Runs) -> None:
    body = """
    import threading
    def ask():
        while True:
            self.heartbeat()
    for _ in range(3):
        threading.Thread(target=ask, daemon=True).start()
    time.sleep(0.02)
    return "its result"
    """
    for _ in range(10):
        assert runs.run(body, timeout_seconds=60).result == "its result"


# -- a hostile job on the channel ----------------------------------------------------------------------------

FLOODS = {
    "calls": rb'{"call": 7, "method": "find_job", "arguments": {"job": 1}}\n',
    "heartbeats, no answer read": rb'{"call": 7, "method": "heartbeat", "arguments": {"seconds": 9}}\n',
    "progress": rb'{"progress": 5, "note": "xxxxxxxxxxxxxxxxxxxx"}\n',
    "progress in another spelling": rb'{"note": "xxxxxxxxxxxxxxxxxxxx", "progress": 5}\n',
    "empty documents": rb"{}\n",
    "no documents": rb"x\n",
    "one endless line": rb"x",
    "ends of a run": rb'{"end": "x", "at": 0}\n',
}


@pytest.mark.parametrize("line", FLOODS.values(), ids=list(FLOODS))
def test_a_flood_of_messages_costs_neither_memory_nor_other_runs(runs: Runs, line: bytes) -> None:
    runs.run("return 1")
    before = resident_mb()
    flood = f"data = b'{line.decode()}' * 20_000\n" + FOREVER.format("os.write(4095, data)")
    hostile = [runs.start(flood, timeout_seconds=300) for _ in range(3)]
    for execution_id in hostile:
        runs.pid(execution_id)
    for _ in range(20):
        assert runs.run("return 'beside'").result == "beside"
        calls = sum(len(runs.of(Call, execution_id)) for execution_id in hostile)
        assert calls <= len(hostile), "one at a time, and none of these was answered"
    assert resident_mb() - before < 30
    for execution_id in hostile:
        run = runs.runner._runs[execution_id]
        assert len(run.unsent) < 100_000
    for execution_id in hostile:
        runs.runner.stop(execution_id, Status.CANCELLED, "enough", grace_seconds=0)
    for execution_id in hostile:
        runs.outcome(execution_id)


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1024 / 1024


def test_of_calls_that_come_at_once_the_newest_is_next(runs: Runs) -> None:
    body = """
    for number in range(100, 200):
        os.write(4095, b'{"call": %d, "method": "find_job", "arguments": {"job": 1}}\\n' % number)
    while not os.path.exists("../../stop"): time.sleep(0.005)
    """
    execution_id = runs.start(body)
    first = runs.wait_for(Call, execution_id)
    runs.events.clear()
    wait_until(lambda: (held := runs.runner._runs[execution_id].next_call) and held.call_id == 199)
    assert first.call_id == 100
    runs.runner.reply(execution_id, first.call_id, result=None)
    assert runs.wait_for(Call, execution_id).call_id == 199
    stop(runs)
    assert runs.outcome(execution_id).status is Status.COMPLETED


def test_a_call_that_is_too_long_is_refused_and_named(runs: Runs) -> None:
    body = "self.api.trigger('x', parameters={'k': 'x' * 300_000})"
    error = runs.run(body).error or ""
    assert error.startswith("ApiError: the call takes 300,")
    assert error.endswith(f"bytes of at most {LONGEST_CALL:,}")


def test_much_progress_is_told_by_its_latest(runs: Runs) -> None:
    execution_id = runs.start("for row in range(50_000): self.progress(row / 500, f'row {row}')")
    assert runs.outcome(execution_id, 60).status is Status.COMPLETED
    assert runs.of(Progressed, execution_id)[-1].note == "row 49999"


# -- a fork server that does not answer ----------------------------------------------------------------------


@pytest.fixture
def impatient(make_runs: Callable[..., Runs], monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.setattr("kytecron.engine.server.SILENCE_SECONDS", 1.5)
    return make_runs(kill_grace_seconds=0.5, lease_margin_seconds=0)


ERROR = "the process that starts the jobs did not answer for 1.5 s, and this run was killed with it"


@pytest.mark.parametrize(
    "harm",
    [
        "os.kill(os.getppid(), signal.SIGSTOP); time.sleep(600)",
        "while True: os.kill(os.getppid(), signal.SIGSTOP)",
        "parent = os.getppid()\nif os.fork() == 0:\n    os.setsid()\n    while True: os.kill(parent, signal.SIGSTOP)\n"
        "time.sleep(600)",
    ],
)
def test_a_fork_server_that_a_job_stops_is_replaced_and_its_runs_end(impatient: Runs, harm: str) -> None:
    runs = impatient
    bystander = runs.start("time.sleep(600)", timeout_seconds=1)
    pids = [runs.pid(bystander), runs.runner.server_pid]
    guilty = runs.start(harm)
    for execution_id in (guilty, bystander):
        outcome = runs.outcome(execution_id, 60)
        assert outcome.status in (Status.FAILED, Status.TIMEOUT)
        assert outcome.status is Status.TIMEOUT or outcome.error == ERROR
    assert not [pid for pid in pids if is_alive(pid or 0)]
    assert runs.outcome(guilty).error == ERROR
    assert runs.run("return 'goes on'").result == "goes on"


@pytest.mark.parametrize("size", [10, 3_000_000])
@pytest.mark.parametrize("then", [signal.SIGSTOP, signal.SIGKILL])
def test_a_start_that_a_stopped_fork_server_does_not_serve_is_refused_and_what_runs_has_failed(
    impatient: Runs, then: int, size: int
) -> None:
    """Nothing of the job has run: the run is given back and spends no attempt. The request may fill its channel."""
    runs = impatient
    began = runs.start("time.sleep(600)")
    runs.pid(began)
    os.kill(runs.runner.server_pid or 0, signal.SIGSTOP)
    waiting = [runs.start(f"return 1 #{'x' * size}") for _ in range(3)]
    os.kill(runs.runner.server_pid or 0, then)
    for execution_id in waiting:
        assert "the process that starts the jobs" in runs.wait_for(Refused, execution_id, 60).reason
    assert runs.outcome(began).status is Status.FAILED
    assert not any(runs.of(Ended, execution_id) for execution_id in waiting)


def test_a_lease_that_ends_while_the_fork_server_is_stopped_is_kept(
    make_runs: Callable[..., Runs], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kytecron.engine.server.SILENCE_SECONDS", 3600)
    runs = make_runs(lease_margin_seconds=0)
    runs.run("return 1")
    lost = runs.start("time.sleep(600)", lease_until=boot_time() + 2)
    pid = runs.pid(lost)
    os.kill(runs.runner.server_pid or 0, signal.SIGSTOP)
    assert runs.outcome(lost, 60).status is Status.LOST
    assert not is_alive(pid)


def test_a_machine_that_slept_makes_no_fork_server_stuck(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only time in which the worker itself looked on counts."""
    clock = [1000.0]
    monkeypatch.setattr("kytecron.engine.server.boot_time", lambda: clock[0])
    server = Server(runs.directory, "idle")
    server._looked = clock[0]
    os.kill(server.pid, signal.SIGSTOP)
    server.look()
    for _ in range(3):
        clock[0] += 3600
        server.look()
    assert server.silence == 3 * LOOK_SECONDS
    assert not server.is_stuck
    os.kill(server.pid, signal.SIGCONT)
    wait_until(lambda: server.receive())
    assert server.silence == 0
    monkeypatch.undo()
    server.close()


def test_a_fork_server_that_is_slow_for_a_moment_is_kept(runs: Runs) -> None:
    execution_id = runs.start("while not os.path.exists('../../stop'): time.sleep(0.005)")
    runs.pid(execution_id)
    server = runs.runner.server_pid
    held = runs.runner._server
    assert server is not None
    assert held is not None
    os.kill(server, signal.SIGSTOP)
    wait_until(lambda: held.silence > 0)
    os.kill(server, signal.SIGCONT)
    wait_until(lambda: held.silence == 0)
    stop(runs)
    assert runs.outcome(execution_id).status is Status.COMPLETED
    assert runs.runner.server_pid == server


def test_orders_that_wait_for_a_stopped_fork_server_are_obeyed_when_it_goes_on(runs: Runs) -> None:
    server = runs.runner.server_pid or 0
    os.kill(server, signal.SIGSTOP)
    code = "class Job(CronJobBase):\n    def execute(self): return self.execution.id"
    requests = [runs.request(code) for _ in range(300)]  # more than its socket takes
    runs.runner.start_many(requests)
    assert runs.runner._server is not None
    assert runs.runner._server.has_orders_waiting
    os.kill(server, signal.SIGCONT)
    assert [runs.outcome(item.execution_id, 120).result for item in requests] == [
        item.execution_id for item in requests
    ]
    assert not runs.runner._server.has_orders_waiting


# -- other processes that are stopped ------------------------------------------------------------------------


def test_a_job_that_stops_itself_ends_at_its_time_limit_and_cleans_up(runs: Runs) -> None:
    code = """
    import os, signal
    class Job(CronJobBase):
        def execute(self): os.kill(os.getpid(), signal.SIGSTOP)
        def tear_down(self): print("cleaned up")
    """
    outcome = runs.run(code, timeout_seconds=1)
    assert (outcome.status, outcome.output) == (Status.TIMEOUT, "cleaned up\n")


def test_stopped_processes_that_wait_for_a_run_cost_no_run(runs: Runs) -> None:
    waiting = wait_until(lambda: children_of(runs.runner.server_pid, spare=True))
    for pid in waiting:
        os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: all(" T " in Path(f"/proc/{pid}/stat").read_text() for pid in waiting))
    assert [runs.run("return 1").result for _ in range(6)] == [1] * 6
    assert not [pid for pid in waiting if is_alive(pid)]

"""The fork server stays small, and sees and keeps nothing that a job must not have."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kytecron.engine.forkserver import FEW_SPARES, SPARES
from kytecron.engine.runner import Ended, Refused
from tests.runs import Runs, children_of, is_alive, wait_until

ROOT = Path(__file__).parents[2]
NOOP = "class Job(CronJobBase):\n    def execute(self): pass"


def status_of(pid: int | None) -> dict[str, str]:
    return dict(re.findall(r"(\w+):\s+(\S+)", Path(f"/proc/{pid}/status").read_text()))


def test_it_is_small_and_has_one_thread_and_no_sockets_but_to_its_worker_and_its_spares(runs: Runs) -> None:
    assert runs.run("return 1").result == 1
    waiting = spares_of(runs)
    status = status_of(runs.runner.server_pid)
    assert int(status["VmRSS"]) <= 20 * 1024
    assert status["Threads"] == "1"
    links = [os.readlink(fd) for fd in Path(f"/proc/{runs.runner.server_pid}/fd").iterdir()]
    assert sum(link.startswith("socket:") for link in links) == 1 + len(waiting)


def spares_of(runs: Runs) -> list[int]:
    """The processes that wait for a run, once there are enough."""
    return wait_until(
        lambda: len(pids := children_of(runs.runner.server_pid, spare=True)) > FEW_SPARES and sorted(pids)
    )


def test_runs_are_given_processes_that_waited_for_them_and_others_take_their_places(runs: Runs) -> None:
    waiting = spares_of(runs)
    given = [runs.pid(runs.start("time.sleep(60)")) for _ in waiting]
    assert given[0] in waiting
    assert len(set(given)) == len(given)
    assert set(given).isdisjoint(spares_of(runs))


def test_processes_killed_while_they_wait_cost_no_run(runs: Runs) -> None:
    waiting = spares_of(runs)
    for pid in waiting:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not [pid for pid in waiting if is_alive(pid)])
    several = [runs.start("return 1") for _ in range(6)]
    assert [runs.outcome(execution_id).result for execution_id in several] == [1] * 6
    spares_of(runs)


def test_processes_that_wait_end_with_the_fork_server(runs: Runs) -> None:
    waiting = spares_of(runs)
    os.kill(runs.runner.server_pid or 0, signal.SIGKILL)
    wait_until(lambda: not [pid for pid in waiting if is_alive(pid)])


def test_a_burst_of_runs_beyond_the_waiting_processes_is_served(runs: Runs) -> None:
    spares_of(runs)
    several = [runs.start(f"return {number}") for number in range(5 * SPARES)]
    assert [runs.outcome(execution_id).result for execution_id in several] == list(range(5 * SPARES))
    assert len({runs.pid(execution_id) for execution_id in several}) == 5 * SPARES


def test_nothing_is_left_of_the_job_that_the_fork_server_ran_beforehand(runs: Runs) -> None:
    body = """
    import gc, linecache
    modules = [name for name in sys.modules if "job" in name.lower()]
    return [sys.argv, sorted(linecache.cache), modules, gc.isenabled(), self.execution.id > 0]
    """
    name = "<job 12 v3>"
    assert runs.run(body).result == [[name], [name], ["kytecron.job", "kytecron_job"], True, True]


def test_a_running_job_costs_little_memory_of_its_own(runs: Runs) -> None:
    execution_id = runs.start("print('up', flush=True); time.sleep(60)")
    wait_until(lambda: runs.runner.take_output(execution_id))
    rollup = Path(f"/proc/{runs.pid(execution_id)}/smaps_rollup").read_text()
    private = sum(int(size) for size in re.findall(r"Private_\w+:\s+(\d+)", rollup))
    assert private <= 5 * 1024


def test_it_does_not_grow_with_the_runs_and_leaves_no_descriptors(runs: Runs) -> None:
    def run_many(count: int) -> None:
        requests = [runs.request(NOOP) for _ in range(count)]
        runs.runner.start_many(requests)
        for request in requests:
            runs.outcome(request.execution_id, 60)

    def used() -> tuple[int, int, int]:
        waiting = 2 * len(spares_of(runs))  # each has two descriptors
        server = runs.runner.server_pid
        memory = int(status_of(server)["VmRSS"])
        return memory, len(os.listdir(f"/proc/{server}/fd")) - waiting, len(os.listdir("/proc/self/fd"))

    run_many(20)
    before = used()
    run_many(100)
    # More may be made for processes that are to wait just when they are counted.
    wait_until(lambda: all(now <= then for now, then in zip(used()[1:], before[1:], strict=True)))
    assert used()[0] <= before[0] + 512


def test_it_loads_no_third_party_modules_and_nothing_that_runs_at_a_fork(runs: Runs) -> None:
    loaded = runs.run("return sorted(sys.modules)").result
    unwanted = {
        "sqlalchemy",
        "flask",
        "pydantic",
        "threading",
        "logging",
        "random",
        "subprocess",
        "asyncio",
        "typing",
    }
    assert not unwanted & set(loaded)


def test_importing_kytecron_loads_next_to_nothing() -> None:
    code = "import sys, kytecron; before = set(sys.modules); kytecron.CronJobBase; print(*sys.modules)"
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.append({str(ROOT)!r}); {code}"]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert "kytecron.job" in loaded
    assert [name for name in loaded if name.startswith("kytecron.")] == ["kytecron.job"]
    assert not {"sqlalchemy", "flask", "typing", "logging", "json"} & set(loaded)


@pytest.mark.parametrize("number", [1, 2, 15], ids=["SIGHUP", "SIGINT", "SIGTERM"])
def test_a_signal_to_the_whole_service_does_not_end_it_early(runs: Runs, number: int) -> None:
    """A service manager or a terminal signals every process; the runs are the worker's to stop."""
    server = runs.runner.server_pid
    assert server is not None
    os.kill(server, number)
    assert runs.run("return 1").result == 1
    assert runs.runner.server_pid == server


def test_a_fork_server_that_hangs_is_replaced(
    make_runs: Callable[..., Runs], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kytecron.engine.server.SILENCE_SECONDS", 1)
    runs = make_runs()
    stuck = runs.runner.server_pid
    assert stuck is not None
    runs.run("return 'it has begun'")
    os.kill(stuck, signal.SIGSTOP)
    requests = [runs.request(NOOP) for _ in range(400)]  # more than its socket takes
    runs.runner.start_many(requests)
    events = [runs.wait_for(Ended | Refused, request.execution_id) for request in requests]
    assert not is_alive(stuck)
    refused = {event.reason if isinstance(event, Refused) else event.outcome.error for event in events}
    assert refused == {"the process that starts the jobs did not answer for 1 s"}, "none of them has begun"
    assert runs.run("return 'goes on'").result == "goes on"

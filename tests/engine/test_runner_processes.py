"""A run is over when its processes are; nobody outlives the worker; no run can harm another."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path

import pytest

from kytecron.core.states import Status
from kytecron.engine.forkserver import ITSELF, SPARES, STARTED
from kytecron.engine.runner import Call, Ended, Progressed, Refused, Runner, Started
from kytecron.engine.server import BOOT, News
from tests.runs import Runs, children_of, is_alive, wait_until

ESCAPE = """
    def stay():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        while True: time.sleep(1)

    def escape():
        # A grandchild in a session of its own whose parent is gone: neither group nor parent leads to it.
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                with open("escaped.tmp", "w") as file: file.write(str(os.getpid()))
                os.rename("escaped.tmp", "../../escaped")  # the job directory: ours is gone with the run
                stay()
            os._exit(0)
        while not os.path.exists("../../escaped"): time.sleep(0.005)
"""


def job(execute: str, definitions: str = ESCAPE) -> str:
    return (
        "import os, signal, sys, time\n"
        f"{textwrap.dedent(definitions)}\n"
        f"class Job(CronJobBase):\n    def execute(self):\n{textwrap.indent(textwrap.dedent(execute), ' ' * 8)}\n"
    )


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("return 1", Status.COMPLETED),
        ("raise ValueError", Status.FAILED),
        ("os._exit(0)", Status.FAILED),
        ("os.kill(os.getpid(), signal.SIGKILL)", Status.FAILED),
        ("time.sleep(60)", Status.TIMEOUT),
    ],
)
def test_what_a_job_leaves_behind_dies_with_its_run(runs: Runs, ending: str, status: Status) -> None:
    outcome = runs.run(job(f"escape()\n{ending}"), timeout_seconds=1)
    assert outcome.status is status
    # Not a moment later: when the end is reported it is gone.
    assert not is_alive(int(runs.file("escaped")))


def test_what_is_left_behind_does_not_delay_other_runs_for_long(runs: Runs) -> None:
    escaping = [runs.start(job("if os.fork() == 0: stay()\nreturn 1")) for _ in range(5)]
    plain = [runs.start("return 2") for _ in range(5)]
    assert [runs.outcome(execution_id).result for execution_id in escaping + plain] == [1] * 5 + [2] * 5


def test_a_tree_that_keeps_forking_is_brought_down(runs: Runs) -> None:
    execute = """
    if os.fork() == 0:
        for _ in range(200):
            if os.fork():
                os._exit(0)
            os.setsid()
            time.sleep(0.001)
        stay()
    time.sleep(0.05)
    """
    assert runs.run(job(execute)).status is Status.COMPLETED
    wait_until(lambda: not children_of(runs.runner.server_pid, spare=False))


def test_a_forked_copy_cannot_report_the_end(runs: Runs) -> None:
    execute = """
    pid = os.fork()
    if pid == 0:
        return "the copy's"
    assert os.waitpid(pid, 0)[1] == 0
    return "the job's"
    """
    outcome = runs.run(job(execute))
    assert (outcome.status, outcome.result) == (Status.COMPLETED, "the job's")
    assert len([event for event in runs.events if isinstance(event, Ended)]) == 1


def test_a_forked_copy_that_raises_shows_its_trace_and_is_not_torn_down(runs: Runs) -> None:
    code = """
    import os
    class Job(CronJobBase):
        def execute(self):
            pid = os.fork()
            if pid == 0:
                raise ValueError("in the copy")
            return os.waitpid(pid, 0)[1] >> 8
        def tear_down(self):
            print("torn down")
    """
    outcome = runs.run(code)
    assert outcome.result == 1
    assert outcome.output.count("torn down") == 1
    assert "ValueError: in the copy" in outcome.output


def test_a_forked_copy_cannot_use_the_channel(runs: Runs) -> None:
    execute = """
    pid = os.fork()
    if pid == 0:
        try:
            self.heartbeat()
        except RuntimeError as error:
            print(error)
        os._exit(0)
    os.waitpid(pid, 0)
    return self.heartbeat()
    """
    outcome = runs.run(job(execute))
    assert outcome.output == "only the job's own process can talk to the worker, not one that it forked\n"
    assert outcome.result is True


def test_multiprocessing_works(runs: Runs) -> None:
    """A pool ends its workers with SIGTERM, some of them in the moment of their fork, and waits for them."""
    code = """
    import multiprocessing
    def double(n):
        return 2 * n
    class Job(CronJobBase):
        def execute(self):
            for _ in range(25):
                with multiprocessing.Pool(4) as pool:
                    doubled = pool.map(double, range(4))
            return doubled
    """
    outcome = runs.run(code, timeout_seconds=12)
    assert outcome.result == [0, 2, 4, 6]
    assert outcome.output == ""


def test_a_forked_copy_takes_sigterm_as_any_process(runs: Runs) -> None:
    execute = """
    pid = os.fork()
    if pid == 0:
        try:
            time.sleep(60)
        finally:
            print("not an exception in the copy")
    os.kill(pid, signal.SIGTERM)
    return os.waitpid(pid, 0)[1]
    """
    outcome = runs.run(job(execute))
    assert (outcome.result, outcome.output) == (signal.SIGTERM, "")


def test_a_job_that_closes_its_descriptors_still_reports_its_end(runs: Runs) -> None:
    execute = """
    import resource
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    for fd in range(3, 1024):
        try: os.close(fd)
        except OSError: pass
    files = [open("/dev/null") for _ in range(50)]
    assert self.heartbeat()
    return "reported"
    """
    assert runs.run(job(execute)).result == "reported"


@pytest.mark.parametrize(
    "closing",
    [
        *(f"os.closerange(3, {end})" for end in (256, 1024, 4096, 5000, 65536, 1_048_576)),
        "os.closerange(3, os.sysconf('SC_OPEN_MAX'))",
        "os.closerange(0, 5000)",
        "for fd in os.listdir('/proc/self/fd'):\n    try: os.close(int(fd))\n    except OSError: pass",
        "import subprocess; os.closerange(3, 5000); subprocess.run(['true'], close_fds=True, check=True)",
    ],
)
def test_a_job_that_closes_all_descriptors_talks_to_its_worker_as_before(runs: Runs, closing: str) -> None:
    body = textwrap.dedent("""
    import resource
    self.progress(10, "before")
    {}
    self.progress(50, "after")
    answers = [self.heartbeat()]
    os.closerange(3, 5000)
    answers.append(self.api.find_job(1))
    # A file that has the number of the channel is the job's own.
    resource.setrlimit(resource.RLIMIT_NOFILE, (4097, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    os.closerange(3, 5000)
    others = [os.dup2(os.open(f"{{self.execution.id}}.txt", os.O_CREAT | os.O_RDWR), number) for number in (3, 4095)]
    answers.append(self.heartbeat())
    return [answers, os.fstat(4095).st_size]
    """).format(closing)
    execution_id = runs.start(body)
    call = runs.wait_for(Call, execution_id)
    runs.runner.reply(execution_id, call.call_id, result="answered")
    outcome = runs.outcome(execution_id)
    assert (outcome.status, outcome.result) == (Status.COMPLETED, [[True, "answered", True], 0]), outcome
    assert runs.of(Progressed, execution_id)[-1].note == "after"


@pytest.mark.parametrize("first", [0, 3])
def test_a_job_that_comes_back_only_to_say_how_it_ended_is_heard(runs: Runs, first: int) -> None:
    for number in range(5):
        outcome = runs.run(f"os.closerange({first}, 5000)\nreturn {number}")
        assert (outcome.status, outcome.result) == (Status.COMPLETED, number), outcome.error


def test_a_job_that_comes_back_before_its_start_was_told_is_let_in_when_it_is(runs: Runs) -> None:
    body = """
    while not os.path.exists("../../go"): time.sleep(0.005)
    os.closerange(3, 5000)
    return self.heartbeat()
    """
    execution_id = runs.start(body)
    pid = runs.pid(execution_id)
    run = runs.runner._runs[execution_id]
    with runs.runner._telling():
        run.pid = None  # as if the news were still on its way
    (runs.directory / "go").touch()
    wait_until(lambda: runs.runner._early)
    with runs.runner._telling():
        runs.runner._on_news(run, News(STARTED, ITSELF, execution_id, pid, 0, time.time(), 0.0, 0.0))
    outcome = runs.outcome(execution_id)
    assert (outcome.status, outcome.result) == (Status.COMPLETED, True), outcome.error


def test_a_job_that_cannot_reach_its_worker_any_more_fails_and_says_why(
    make_runs: Callable[..., Runs], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kytecron.engine.runner._open_door", lambda: (None, ""))
    runs = make_runs()
    outcome = runs.run("print('worked'); os.closerange(3, 100_000); return 1")
    error = "the job closed its connection to the worker, so how it ended is not known"
    assert (outcome.status, outcome.error, outcome.output) == (Status.FAILED, error, "worked\n")
    told = runs.run("os.closerange(3, 100_000); self.heartbeat()")
    assert (told.status, told.error, told.output) == (Status.FAILED, error, "")


def test_nobody_but_a_run_comes_in_by_the_door(runs: Runs) -> None:
    def come_in() -> socket.socket:
        caller = socket.socket(socket.AF_UNIX)
        caller.connect(f"\0{runs.runner._address}")
        return caller

    execution_id = runs.start("while not os.path.exists('../../go'): time.sleep(0.005)\nreturn 'its own'")
    runs.pid(execution_id)
    strangers = [come_in() for _ in range(20)]
    for stranger in strangers:
        assert stranger.recv(1) == b""
        stranger.close()
    (runs.directory / "go").touch()
    assert runs.outcome(execution_id).result == "its own"


def test_a_job_finds_no_descriptors_but_its_own(runs: Runs) -> None:
    listing = "[fd for fd in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/' + fd)]"
    idle = runs.start("time.sleep(60)")
    runs.pid(idle)
    found = runs.run(f"return {listing}").result
    assert [int(fd) for fd in found if int(fd) > 3 and int(fd) != 4095] == []


def test_a_job_sees_nothing_of_the_workers_environment(
    make_runs: Callable[..., Runs], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KYTECRON_DATABASE_URL", "mysql://root:hunter22@db/kytecron")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter22")
    monkeypatch.setenv("LC_TIME", "C")
    monkeypatch.setenv("PYTHONPATH", "relative")
    runs = make_runs()
    body = "return [dict(os.environ), open('/proc/self/environ').read(), open(f'/proc/{os.getppid()}/environ').read()]"
    seen, own, parents = runs.run(body).result
    assert "hunter22" not in json.dumps([seen, own, parents])
    assert not [name for name in seen if name.startswith("KYTECRON_")]
    assert seen["PATH"] == os.environ["PATH"]
    assert seen["LC_TIME"] == "C"
    assert seen["PYTHONPATH"] == os.path.abspath("relative")


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
def test_a_run_with_secrets_hides_its_memory_from_other_jobs(runs: Runs) -> None:
    """Root sees everything, so the test asks for the attribute that hides it (PR_GET_DUMPABLE)."""
    body = """
    import ctypes
    visible = lambda: ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)
    if (copy := os.fork()) == 0:
        os._exit(visible())
    return [visible(), os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])]
    """
    assert runs.run(body, secrets={"token": "hunter22"}).result == [0, 0]
    assert runs.run(body).result == [1, 1]


def test_a_job_runs_in_a_directory_of_its_own_in_a_session_of_its_own(runs: Runs) -> None:
    body = "return [os.getcwd(), os.getsid(0) == os.getpid() == os.getpgid(0), os.umask(0), sys.stdin.read(), sys.argv]"
    directory, *rest = runs.run(body).result
    assert Path(directory).parent.parent == runs.directory
    assert rest == [True, 0o022, "", ["<job 12 v3>"]]


@pytest.mark.parametrize("what", [".", "..", "../.."])
def test_a_job_that_removes_its_directory_or_all_of_them_takes_it_from_no_later_run(
    runs: Runs, what: str
) -> None:
    # A directory that is made for another run meanwhile may keep it from removing them all.
    remove = f"import shutil; shutil.rmtree(os.path.abspath({what!r}), ignore_errors=True)"
    body = "open('mine', 'w').close(); return os.listdir()"
    assert runs.run(remove).status is Status.COMPLETED
    assert [runs.run(body).result for _ in range(2 * SPARES)] == [["mine"]] * 2 * SPARES
    runs.run(f"{remove}; os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)")
    assert [runs.run(body).result for _ in range(2 * SPARES)] == [["mine"]] * 2 * SPARES


def test_each_run_has_its_own_random_numbers(runs: Runs) -> None:
    body = "import random, uuid\nreturn [random.random(), str(uuid.uuid4())]"
    first, second = runs.run(body).result, runs.run(body).result
    assert first[0] != second[0]
    assert first[1] != second[1]


def test_a_job_that_kills_the_fork_server_ends_its_runs_but_not_the_runner(runs: Runs) -> None:
    bystander = runs.start(job("escape()\ntime.sleep(60)"))
    escaped = int(runs.file("escaped"))
    pids = [runs.pid(bystander), escaped]
    killer = runs.start("os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)")
    for execution_id in (killer, bystander):
        outcome = runs.outcome(execution_id)
        assert outcome.status is Status.FAILED
        assert outcome.error == (
            "the process that starts the jobs was killed by signal 9 (SIGKILL), and this run was killed with it"
        )
    assert [pid for pid in pids if is_alive(pid)] == []
    assert runs.run("return 'goes on'").result == "goes on"


def test_a_run_that_had_reported_its_end_survives_the_death_of_the_fork_server(runs: Runs) -> None:
    server = runs.runner.server_pid
    execution_id = runs.start("os.kill(os.getppid(), signal.SIGSTOP)\nreturn 'done'")
    (pid,) = wait_until(lambda: children_of(server, spare=False))
    wait_until(lambda: not is_alive(pid))
    assert server is not None
    os.kill(server, signal.SIGKILL)
    outcome = runs.outcome(execution_id)
    assert (outcome.status, outcome.result) == (Status.COMPLETED, "done")


def test_a_fork_server_that_cannot_start_refuses_the_run_with_the_cause(
    make_runs: Callable[..., Runs], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kytecron.engine.server.BOOT", "import sys; sys.exit(7)")
    runs = make_runs()
    assert "exited with status 7" in runs.wait_for(Refused, runs.start("return 1")).reason


def test_no_room_for_another_process_refuses_the_run_with_the_cause(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more() -> tuple[int, int]:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pipe", no_more)
    refused = runs.wait_for(Refused, runs.start("return 1"))
    assert refused.reason == "cannot start a process: Too many open files"


@pytest.mark.parametrize("whose", ["worker", "fork server"])
def test_runs_for_which_there_are_no_descriptors_are_refused_and_the_others_go_on(
    runs: Runs, whose: str
) -> None:
    """The limit on open files is set for real, on one of the two processes, while runs are on."""
    first = runs.start("time.sleep(60)")
    runs.pid(first)
    pid = os.getpid() if whose == "worker" else runs.runner.server_pid
    assert pid is not None
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    free = (number for number in count() if number not in used)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (list(islice(free, 3))[-1], limits[1]))
    try:
        crowd = [runs.start("time.sleep(60)") for _ in range(20)]
        told = [runs.wait_for(Started | Refused, one) for one in crowd]
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    refused = [event for event in told if isinstance(event, Refused)]
    assert refused
    assert {event.reason for event in refused} == {"cannot start a process: Too many open files"}
    assert all(is_alive(event.pid) for event in told if isinstance(event, Started))
    assert runs.of(Ended, first) == []
    assert runs.run("return 'goes on'").result == "goes on"
    left = [run for run in (first, *crowd) if run in runs.runner.running]
    assert len(left) == 1 + len(crowd) - len(refused)
    for run in left:
        runs.runner.stop(run, Status.CANCELLED, "enough", grace_seconds=0)
        assert runs.outcome(run).status is Status.CANCELLED


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become a user whose processes are limited")
def test_no_process_left_for_the_user_refuses_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = SPARES + 3  # two more: the fork server and its sweeper
    become = (
        "import os; from kytecron.engine import forkserver as f; f.prepare(); f.prepare = lambda: None; "
        f"f.resource.setrlimit(f.resource.RLIMIT_NPROC, ({processes},) * 2); os.setuid(31987); "
    )
    monkeypatch.setattr("kytecron.engine.server.BOOT", BOOT.replace("serve(int", f"{become}serve(int"))
    with tempfile.TemporaryDirectory() as place:  # which the other user reaches
        os.chmod(place, 0o777)
        runs = Runs(Path(place))
        with runs.runner:
            told = [runs.wait_for(Started | Refused, runs.start("time.sleep(60)")) for _ in range(SPARES + 3)]
    assert [type(event) for event in told] == [Started] * (SPARES + 1) + [Refused] * 2
    assert told[-1].reason == "cannot start a process: Resource temporarily unavailable"


@pytest.mark.parametrize("how", ["raise OSError", "os.kill(os.getpid(), 9)", "os._exit(1)"])
def test_a_process_that_ends_before_the_job_began_costs_the_job_nothing(
    make_runs: Callable[..., Runs], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    spoiled = (
        "import os\nfrom kytecron.engine import forkserver\nname_process = forkserver.name_process\n"
        f"def spoiled(name):\n    name_process(name)\n    if name.startswith('kyte-run'):\n        {how}\n"
        "forkserver.name_process = spoiled\n"
    )
    boot = BOOT.replace("; ", "\n").replace("serve(int", f"{spoiled}serve(int")
    monkeypatch.setattr("kytecron.engine.server.BOOT", boot)
    runs = make_runs()
    event = runs.wait_for(Ended | Refused, runs.start("return 1"))
    assert isinstance(event, Refused)
    assert event.reason.startswith("the process made for it ")
    assert event.reason.endswith(" before the job began")


def test_a_hard_limit_that_was_lowered_meanwhile_costs_no_job_an_attempt(runs: Runs) -> None:
    assert runs.run("return 1").result == 1
    server = runs.runner.server_pid or 0
    soft, hard = resource.prlimit(server, resource.RLIMIT_NOFILE)
    resource.prlimit(server, resource.RLIMIT_NOFILE, (soft, max(soft, hard - 1)))
    assert [runs.run("return 1").result for _ in range(2 * SPARES)] == [1] * 2 * SPARES
    resource.prlimit(server, resource.RLIMIT_NOFILE, (512, 512))
    events = [runs.wait_for(Ended | Refused, runs.start("return 1")) for _ in range(2 * SPARES)]
    assert all(isinstance(event, Refused) or event.outcome.result == 1 for event in events), events


RUNNER = """
import sys, time
from tests.runs import Runs
from pathlib import Path
runs = Runs(Path(sys.argv[1]), lease_margin_seconds=0)
from kytecron.engine.child import boot_time
runs.start(sys.argv[2], lease_until=boot_time() + float(sys.argv[3]))
print(runs.pid(1), flush=True)
time.sleep(600)
"""


@pytest.fixture
def runner_process(
    tmp_path: Path,
) -> Iterator[Callable[[str, float], tuple[subprocess.Popen[str], int, int]]]:
    started: list[subprocess.Popen[str]] = []

    def start(code: str, lease: float) -> tuple[subprocess.Popen[str], int, int]:
        process = subprocess.Popen(
            [sys.executable, "-c", RUNNER, str(tmp_path), code, str(lease)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        started.append(process)
        assert process.stdout is not None
        leader = int(process.stdout.readline())
        escaped = int(
            wait_until(lambda: (tmp_path / "escaped").exists() and (tmp_path / "escaped").read_text())
        )
        return process, leader, escaped

    yield start
    for process in started:
        process.kill()
        process.wait()


RunnerProcess = Callable[[str, float], tuple[subprocess.Popen[str], int, int]]


def test_sigkill_of_the_supervising_process_takes_everything_with_it(runner_process: RunnerProcess) -> None:
    process, leader, escaped = runner_process(job("escape()\nstay()"), 600)
    server = int(Path(f"/proc/{leader}/stat").read_text().rpartition(")")[2].split()[1])
    assert is_alive(leader)
    assert is_alive(escaped)
    process.kill()
    wait_until(lambda: not any(map(is_alive, (leader, escaped, server))), 3)


def test_a_stopped_fork_server_and_its_runs_do_not_outlive_the_supervising_process(
    runner_process: RunnerProcess,
) -> None:
    process, leader, escaped = runner_process(job("escape()\nstay()"), 600)
    server = int(Path(f"/proc/{leader}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(server, signal.SIGSTOP)
    wait_until(lambda: " T " in Path(f"/proc/{server}/stat").read_text())
    process.kill()
    wait_until(lambda: not any(map(is_alive, (leader, escaped, server))))


def test_a_lease_ends_on_time_while_the_supervising_process_is_stopped(runner_process: RunnerProcess) -> None:
    process, leader, escaped = runner_process(job("escape()\nstay()"), 2)
    process.send_signal(signal.SIGSTOP)
    try:
        wait_until(lambda: not is_alive(leader) and not is_alive(escaped), 4)
    finally:
        process.send_signal(signal.SIGCONT)


def test_close_leaves_nothing_behind(runs: Runs) -> None:
    execution_id = runs.start(job("escape()\nstay()"))
    pids = [runs.pid(execution_id), int(runs.file("escaped")), runs.runner.server_pid]
    runner: Runner = runs.runner
    runner.close()
    assert [pid for pid in pids if is_alive(pid)] == []
    runner.close()

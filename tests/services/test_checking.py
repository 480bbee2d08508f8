"""Code that somebody sent is parsed in processes of their own, and whatever it is made of costs little."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from kytecron.core.errors import Busy, Invalid
from kytecron.core.source import MAX_BYTES
from kytecron.services import checker, checking
from kytecron.services.audit import Actor
from tests.runs import is_alive
from tests.workers import wait_for

ROOT = Path(__file__).parents[2]
JOB = "class MyJob(CronJobBase):\n    def execute(self):\n        pass\n"
VIEWER = Actor("token:viewer", "api")
OTHER = Actor("token:other", "api")


def crowded(count: int) -> str:
    """A call that CPython needs quadratic time for."""
    return f"{JOB}f({','.join(f'a{n}=1' for n in range(count))})\n"


SLOW = crowded(90_000)


@pytest.fixture
def own_checkers(monkeypatch: pytest.MonkeyPatch) -> Iterator[checking._Checkers]:
    """Checkers that no other test has started, and none of theirs beside them."""
    checking._checkers.end()
    checkers = checking._Checkers()
    monkeypatch.setattr(checking, "_checkers", checkers)
    yield checkers
    checkers.end()


def processes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if _checks(child)]


def _checks(process: psutil.Process) -> bool:
    try:
        return "kytecron.services.checker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # it has ended, or only waits to be waited for
        return False


def in_background(code: str, actor: Actor) -> threading.Thread:
    def ask() -> None:
        with pytest.raises(Invalid, match=checking.TOO_LONG):
            checking.check(code, actor)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


# --- what it answers


def test_code_is_accepted_or_refused_as_by_the_parser_itself():
    assert checking.check(JOB, VIEWER).class_name == "MyJob"
    with pytest.raises(Invalid, match=r"line 3, column 9: '.' was never closed"):
        checking.check(JOB.replace("pass", "("), VIEWER)
    (problem,) = checking.problems("é = '\ud800'", VIEWER)
    assert "half a character" in problem.message


@pytest.mark.parametrize("count", [50_000, 90_000])
def test_code_that_takes_the_compiler_minutes_is_refused_after_two_seconds_of_cpu(count):
    before = os.times()
    with pytest.raises(Invalid, match=f"^{checking.TOO_LONG}$"):
        checking.check(crowded(count), VIEWER)
    after = os.times()
    spent = after.children_user - before.children_user + after.children_system - before.children_system
    # Less on a busy machine, where the time by the clock is over first.
    assert spent < checker.CPU_SECONDS + 0.5
    # This process did nothing but wait.
    assert after.user - before.user < 0.5


HOSTILE = {
    "parentheses": "(" * 900_000,
    "brackets": "[" * 900_000,
    "minus signs": "-" * 900_000 + "1",
    "attributes": "a" + ".b" * 400_000,
    "calls": "f" + "()" * 400_000,
    "digits": "9" * 900_000,
    "constants to fold": "x = (" + '"a" * 4096,' * 60_000 + ")",
    "a huge constant": 'x = "a" * 10 ** 9',
    "a list": "x = [" + "1," * 400_000 + "]",
    "a dict": "x = {" + "1: 2," * 150_000 + "}",
    "decorators": "@a\n" * 100_000 + "def f(): pass\n",
    "lambdas": "x = " + "lambda: " * 4_900 + "1",
    "f-strings": 'f"' + "{x!r}" * 9_000 + '"',
    "statements": "x = 1\n" * 160_000,
    "names": "\n".join(f"a{n} = 1" for n in range(75_000)),
    "keywords of a class": "class A(" + ",".join(f"a{n}=1" for n in range(60_000)) + "): pass",
    "conditions": "if 1: pass\n" + "elif 1: pass\n" * 60_000,
    "one name": "é" * 400_000,
}


@pytest.mark.parametrize("code", HOSTILE.values(), ids=list(HOSTILE))
def test_whatever_code_is_made_of_it_is_accepted_or_refused_with_a_sentence(code):
    try:
        problems = [problem.message for problem in checking.problems(JOB + code, VIEWER)]
    except Invalid as invalid:
        problems = [invalid.fields["code"]]
    assert all(0 < len(problem) < 300 for problem in problems)
    assert checking.problems(JOB, VIEWER) == []


def test_a_crash_of_the_parser_is_an_answer_and_the_next_code_is_checked(own_checkers):
    checking.check(JOB, VIEWER)
    (process,) = processes()
    process.send_signal(signal.SIGSTOP)
    crash = threading.Timer(0.2, process.send_signal, [signal.SIGSEGV])
    crash.start()
    # What arrives meanwhile is what it crashes on.
    continue_it = threading.Timer(0.3, process.send_signal, [signal.SIGCONT])
    continue_it.start()
    with pytest.raises(Invalid, match="too deeply or too large"):
        checking.check(JOB, VIEWER)
    assert checking.check(JOB, VIEWER).class_name == "MyJob"


def test_a_process_that_hangs_is_killed_in_time(own_checkers, monkeypatch):
    monkeypatch.setattr(checking, "WALL_SECONDS", 0.5)
    checking.check(JOB, VIEWER)
    (process,) = processes()
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(Invalid, match=checking.TOO_LONG):
        checking.check(JOB, VIEWER)
    wait_for(lambda: not process.is_running(), what="the end of the process that hung")


def test_code_that_is_too_long_to_be_kept_never_reaches_a_process(own_checkers):
    with pytest.raises(Invalid, match="at most 1,000,000"):
        checking.check("#" * (MAX_BYTES + 1), VIEWER)
    with pytest.raises(Invalid, match="there is no code"):
        checking.check("\r\n" * 10_000_000, VIEWER)
    assert processes() == []


# --- how many at once


def test_a_caller_has_one_process_and_all_together_two(own_checkers, monkeypatch):
    monkeypatch.setattr(checking, "PATIENCE_SECONDS", 0.05)
    first = in_background(SLOW, VIEWER)
    wait_for(lambda: len(own_checkers._busy) == 1, what="the first check")
    with pytest.raises(Busy) as refused:
        checking.check(JOB, VIEWER)
    assert refused.value.retry_after > 0
    second = in_background(SLOW, OTHER)
    wait_for(lambda: len(own_checkers._busy) == 2, what="the second check")
    with pytest.raises(Busy):
        checking.check(JOB, Actor("token:third", "api"))
    assert len(processes()) <= checking.MOST
    first.join()
    second.join()
    assert checking.check(JOB, VIEWER).class_name == "MyJob"


def test_of_many_requests_at_once_few_hold_a_thread(own_checkers):
    first = in_background(SLOW, VIEWER)
    wait_for(lambda: len(own_checkers._busy) == 1, what="the first check")
    refused = 0
    deadline = threading.Event()

    def ask() -> None:
        nonlocal refused
        try:
            checking.check(JOB, VIEWER)
        except Busy:
            refused += 1
            deadline.set()

    waiting = [threading.Thread(target=ask) for _ in range(6)]
    for thread in waiting:
        thread.start()
    assert deadline.wait(10)
    # One of them may wait for its turn; the others were turned away at once.
    assert len(own_checkers._waiting) <= 1
    for thread in waiting:
        thread.join()
    first.join()
    assert refused >= 5


def test_a_program_of_ones_own_waits_for_its_turn(own_checkers):
    waiting = [in_background(crowded(40_000), Actor("python")) for _ in range(3)]
    assert checking.check(JOB, Actor("python")).class_name == "MyJob"
    for thread in waiting:
        thread.join()


# --- the processes


def test_a_process_stays_warm_and_has_nothing_of_its_parent(own_checkers, monkeypatch):
    monkeypatch.setenv("KYTECRON_SECRET_KEY", "hidden from those who compile")
    checking.check(JOB, VIEWER)
    checking.check(JOB, VIEWER)
    (process,) = processes()
    assert process.environ() == {}
    assert process.nice() >= checker.NICENESS
    assert process.rlimit(psutil.RLIMIT_AS) == (checker.MEMORY_BYTES, checker.MEMORY_BYTES)
    loaded = Path(f"/proc/{process.pid}/maps").read_text()
    assert not any(name in loaded for name in ("sqlite", "_ssl", "pydantic", "sqlalchemy"))


def test_a_process_that_has_needed_much_memory_gives_it_back(own_checkers):
    checking.problems(JOB + "x = [" + "1," * 400_000 + "]", VIEWER)
    assert all(process.memory_info().vms <= checker.GROWN_BYTES for process in processes())
    assert checking.check(JOB, VIEWER).class_name == "MyJob"


def test_one_that_was_killed_while_idle_is_replaced_unnoticed(own_checkers):
    checking.check(JOB, VIEWER)
    (process,) = processes()
    process.kill()
    wait_for(lambda: process.status() == psutil.STATUS_ZOMBIE, what="its end")
    assert checking.check(JOB, VIEWER).class_name == "MyJob"


ASKS = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from kytecron.services import checking
from kytecron.services.audit import Actor
import psutil
checking.check({JOB!r}, Actor("x"))
print(*(child.pid for child in psutil.Process().children()), flush=True)
"""


@pytest.mark.parametrize("ending", ["sys.exit()", "os.kill(os.getpid(), 9)"])
def test_no_process_outlives_the_one_that_started_it(ending):
    done = subprocess.run([sys.executable, "-c", ASKS + ending], capture_output=True, text=True, timeout=60)
    (pid,) = map(int, done.stdout.split())
    wait_for(lambda: not is_alive(pid), what="the end of the process that checks")


def test_a_forked_process_starts_its_own(own_checkers):
    """gunicorn forks, and programs that use multiprocessing do: two may not talk to one process."""
    checking.check(JOB, VIEWER)
    (mine,) = processes()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            fine = checking.check(JOB, VIEWER).class_name == "MyJob" and mine not in processes()
            os.write(write, b"y" if fine else b"n")
        finally:
            os._exit(0)
    os.close(write)
    assert os.read(read, 1) == b"y"
    os.close(read)
    os.waitpid(child, 0)
    assert mine.is_running()
    assert checking.check(JOB, VIEWER).class_name == "MyJob"

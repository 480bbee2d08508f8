"""What the machine itself can do, measured in the same run as the figures that it is held against."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
ROOT = str(Path(__file__).resolve().parents[1])

_FORKS = """
import os, sys, time
count, at_once = int(sys.argv[2]), int(sys.argv[3])
begun = ended = 0
start = time.perf_counter()
while ended < count:
    while begun < count and begun - ended < at_once:
        if os.fork() == 0:
            os._exit(0)
        begun += 1
    os.wait()
    ended += 1
print(count / (time.perf_counter() - start))
"""

# A warm process with what job processes usually need of the standard library.
_WARM = "import datetime, json, logging, random, signal, socket, subprocess, threading, traceback\n"

# What the fork server of kytecron is before its first order.
_KYTECRON = """
import sys
sys.path.append(sys.argv[1])
from kytecron.engine import forkserver
forkserver.prepare()
"""


def bare_fork_rate(n: int, at_once: int = 8) -> float:
    """Forks, exits and waits per second of a plain warm process: `n` children, `at_once` of them at a time."""
    return _measure(_WARM + _FORKS, n, at_once)


def beside_bare_forks(n: int, measure: Callable[[], T]) -> tuple[T, float]:
    """What `measure` returns, and the mean of `bare_fork_rate` before and after it: machines change their speed."""
    before = bare_fork_rate(n)
    found = measure()
    return found, (before + bare_fork_rate(n)) / 2


def own_fork_rate(n: int, at_once: int = 8) -> float:
    """The same for kytecron's fork server with children that do nothing: the most that its runs could reach."""
    return _measure(_KYTECRON + _FORKS, n, at_once)


def _measure(code: str, n: int, at_once: int) -> float:
    command = [sys.executable, "-P", "-c", code, ROOT, str(n), str(at_once)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    print(f"bare fork server: {bare_fork_rate(2000):,.0f} runs/s")
    print(f"kytecron's, with children that do nothing: {own_fork_rate(2000):,.0f} runs/s")

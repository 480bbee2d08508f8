"""Real job processes for tests: a Runner, what it said, and waiting for conditions."""

from __future__ import annotations

import itertools
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Any

from kytecron.core.states import Outcome
from kytecron.engine.runner import Ended, Event, Runner, RunRequest, Started


def wait_until(condition: Callable[[], Any], seconds: float = 60, what: str = "the condition") -> Any:
    """The first true value of `condition`; fails after `seconds`."""
    give_up = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < give_up, f"{what} did not come true within {seconds} s"
        time.sleep(0.005)
    return value


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def children_of(server: int | None, *, spare: bool) -> list[int]:
    """The processes of a fork server that wait for a run, or those that belong to one. Newborn ones are neither."""
    pids = map(int, Path(f"/proc/{server}/task/{server}/children").read_text().split())
    prefix = "kyte-spare" if spare else "kyte-run"
    return [pid for pid in pids if _name_of(pid).startswith(prefix)]


def _name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


class Runs:
    """A Runner and what it said."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self._woken = threading.Event()
        self._ids = itertools.count(1)
        self.runner = Runner(job_directory=directory, on_wake=self._woken.set, **settings)
        self.directory = directory
        self.events: list[Event] = []

    def request(self, code: str, **fields: Any) -> RunRequest:
        execution_id = next(self._ids)
        return RunRequest(
            execution_id=execution_id,
            **{"job_id": 12, "job_name": "a job", "version": 3, "code": textwrap.dedent(code)} | fields,
        )

    def start(self, body: str, **fields: Any) -> int:
        """Start a job whose `execute` is `body`, or that is `body` where that holds a class."""
        code = textwrap.dedent(body)
        if "class " not in code:
            lines = textwrap.indent(code, "        ")
            code = f"import os, signal, sys, time\nclass Job(CronJobBase):\n    def execute(self):\n{lines}\n"
        request = self.request(code, **fields)
        self.runner.start(request)
        return request.execution_id

    def collect(self) -> None:
        self._woken.wait(0.05)
        self._woken.clear()
        self.events += self.runner.collect()

    def of(self, kind: type[Event] | UnionType, execution_id: int) -> list[Any]:
        return [item for item in self.events if isinstance(item, kind) and item.execution_id == execution_id]

    def wait_for(self, kind: type[Event] | UnionType, execution_id: int, seconds: float = 60) -> Any:
        def first() -> Any:
            found = self.of(kind, execution_id)
            if not found:
                self.collect()
                found = self.of(kind, execution_id)
            return next(iter(found), None)

        return wait_until(first, seconds, f"{kind} of run {execution_id}")

    def pid(self, execution_id: int) -> int:
        return self.wait_for(Started, execution_id).pid

    def outcome(self, execution_id: int, seconds: float = 60) -> Outcome:
        return self.wait_for(Ended, execution_id, seconds).outcome

    def run(self, body: str, **fields: Any) -> Outcome:
        return self.outcome(self.start(body, **fields))

    def file(self, name: str) -> str:
        """The text of a file that a job writes whole into the job directory (`../..`), once it is there."""
        path = self.directory / name
        return wait_until(lambda: path.exists() and path.read_text(), what=f"file {name}")

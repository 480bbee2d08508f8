"""Code that somebody sent, checked in processes of their own with limits on CPU, memory and time.

CPython takes minutes for some sources of less than a megabyte, holds the interpreter's lock meanwhile, and crashes on
others. So `core.source`, which parses and compiles, runs in small processes that are kept warm: at most MOST of a web
process and one for each caller. They start when code first comes, have none of this process's environment, and end
with it.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..core import source
from ..core.errors import Busy, Invalid
from ..core.source import CheckedSource, Problem
from .audit import Actor
from .checker import LENGTH, TOO_LARGE

MOST = 2
"""Processes that check at once."""
WALL_SECONDS = 5.0
"""For one source."""
PATIENCE_SECONDS = 1.0
"""How long a caller waits for a turn: somebody who saves while the editor still checks is not turned away."""
RETRY_SECONDS = 2
LARGEST_ANSWER = 100_000
FRONTS = ("web", "api")
"""Where callers share a process with others; commands and programs have theirs to themselves, and wait."""

TOO_LONG = "The code takes too long to compile"
BUSY = "Other code is being checked. Try again in a moment."

_ROOT = str(Path(__file__).resolve().parents[2])
_BOOT = (
    "import sys; sys.path.append(sys.argv[1]); "
    "from kytecron.services.checker import serve; serve(int(sys.argv[2]))"
)


def check(code: str, actor: Actor) -> CheckedSource:
    """Return the job class that `code` defines.

    Raises Invalid, for the field `code`, if it is no job or costs too much; and Busy.
    """
    found = _examine(code, actor)
    if isinstance(found, Problem):
        raise Invalid({"code": str(found)})
    return found


def problems(code: str, actor: Actor) -> list[Problem]:
    """Return what `check` would refuse, for an editor's margin. Raises Invalid for what costs too much, and Busy."""
    found = _examine(code, actor)
    return [found] if isinstance(found, Problem) else []


def _examine(code: str, actor: Actor) -> CheckedSource | Problem:
    text = source.normalise(code)
    if problem := source.text_problem(text):
        return problem
    caller = f"{actor.source}:{actor.name}" if actor.source in FRONTS else None
    answer = _checkers.ask(text.encode(), caller)
    if "limit" in answer:
        raise Invalid({"code": answer["limit"]})
    return Problem(*answer["problem"]) if "problem" in answer else CheckedSource(*answer["job"])


class _Checker:
    """A process that checks, and the socket to it."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _BOOT, _ROOT, str(theirs.fileno())],
                cwd="/",
                env={},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                process_group=0,
            )

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, data: bytes) -> dict[str, Any]:
        """The answer of checker.serve, or `limit` with the reason why there is none: then the process is gone."""
        deadline = time.monotonic() + WALL_SECONDS
        try:
            self._socket.settimeout(WALL_SECONDS)
            self._socket.sendall(LENGTH.pack(len(data)) + data)
            (size,) = LENGTH.unpack(self._receive(LENGTH.size, deadline))
            answer: dict[str, Any] = json.loads(self._receive(min(size, LARGEST_ANSWER), deadline))
        except TimeoutError:
            self.end()
            return {"limit": TOO_LONG, "last": True}
        except OSError:
            return {"limit": TOO_LONG if self.end() == -signal.SIGPROF else TOO_LARGE, "last": True}
        return answer

    def _receive(self, size: int, deadline: float) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            part = self._socket.recv(size - len(parts))
            if not part:
                raise ConnectionError("it is gone")
            parts += part
        return bytes(parts)

    def end(self) -> int:
        """Kill it if it is still there; returns how it ended."""
        self._socket.close()
        if self._process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                # It may be ending by a signal of its own, which says why.
                return self._process.wait(0.05)
            self._process.kill()
        return self._process.wait()

    def let_go(self) -> None:
        """Forget it in a process that was forked from its owner."""
        self._socket.close()
        self._process.returncode = 0


class _Checkers:
    """The processes of this process, and whose turn it is."""

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._busy: set[object] = set()
        self._waiting: set[object] = set()
        self._idle: list[_Checker] = []
        self._all: set[_Checker] = set()

    def ask(self, data: bytes, caller: str | None) -> dict[str, Any]:
        """See _Checker.ask. Nobody in particular, None, waits as long as it takes. Raises Busy."""
        with self._taking_turns(caller if caller is not None else object(), patient=caller is None):
            checker = self._take()
            is_last = True
            try:
                answer = checker.ask(data)
                is_last = bool(answer.get("last"))
            finally:
                self._give_back(checker, is_last)
            return answer

    @contextlib.contextmanager
    def _taking_turns(self, caller: object, patient: bool) -> Iterator[None]:
        def is_free() -> bool:
            return len(self._busy) < MOST and caller not in self._busy

        with self._turn:
            if not is_free():
                self._wait(caller, is_free, patient)
            self._busy.add(caller)
        try:
            yield
        finally:
            with self._turn:
                self._busy.discard(caller)
                self._turn.notify_all()

    def _wait(self, caller: object, is_free: Callable[[], bool], patient: bool) -> None:
        # Who waits holds a thread of the pages: few may.
        if not patient and (caller in self._waiting or len(self._waiting) >= MOST):
            raise Busy(BUSY, RETRY_SECONDS)
        self._waiting.add(caller)
        try:
            if not self._turn.wait_for(is_free, None if patient else PATIENCE_SECONDS):
                raise Busy(BUSY, RETRY_SECONDS)
        finally:
            self._waiting.discard(caller)

    def _take(self) -> _Checker:
        with self._turn:
            while self._idle:
                if (checker := self._idle.pop()).is_alive:
                    return checker
                checker.end()
                self._all.discard(checker)
        try:
            checker = _Checker()
        except OSError as error:
            raise Busy(
                f"Code cannot be checked at the moment: {error.strerror}. Try again.", RETRY_SECONDS
            ) from None
        self._all.add(checker)
        return checker

    def _give_back(self, checker: _Checker, is_last: bool) -> None:
        if is_last:
            checker.end()
            self._all.discard(checker)
        else:
            with self._turn:
                self._idle.append(checker)

    def end(self) -> None:
        """End all of them."""
        for checker in list(self._all):
            checker.end()

    def let_go(self) -> None:
        """Forget them in a forked process: they are the other one's, and end when that closes their sockets."""
        for checker in list(self._all):
            checker.let_go()


_checkers = _Checkers()


def _after_fork() -> None:
    global _checkers
    _checkers.let_go()
    _checkers = _Checkers()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(lambda: _checkers.end())

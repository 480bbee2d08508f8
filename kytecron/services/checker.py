"""The process in which people's code is parsed and compiled (checking.py is its other end).

It answers one source after another and keeps nothing of them. Standard library and core only: it starts in a moment
and has nothing in its memory that code could be after.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import struct
from typing import Any

from ..core import source

CPU_SECONDS = 2.0
"""For one source."""
MEMORY_BYTES = 256 * 1024 * 1024
NICENESS = 10
"""Pages and runs come first."""
GROWN_BYTES = 96 * 1024 * 1024
"""A process that still holds so much after an answer gives it back by ending: another one starts in a moment."""
LENGTH = struct.Struct("=I")
"""Before each source and each answer: its size in bytes."""

TOO_LARGE = f"The code is {source.TOO_LARGE}"


def serve(descriptor: int) -> None:
    """Answer sources until the other end is gone."""
    _limit()
    with socket.socket(fileno=descriptor) as asked:
        while data := _receive(asked):
            answer = _answer(data)
            answer["last"] = _memory() > GROWN_BYTES
            text = json.dumps(answer).encode()
            asked.sendall(LENGTH.pack(len(text)) + text)
            if answer["last"]:
                return


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    # The terminal's Ctrl-C is for whoever asked; the end of the socket ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)


def _receive(asked: socket.socket) -> bytes:
    """The next source; nothing at the end."""
    with contextlib.suppress(ConnectionError):
        head = asked.recv(LENGTH.size, socket.MSG_WAITALL)
        if len(head) == LENGTH.size:
            (size,) = LENGTH.unpack(head)
            return asked.recv(size, socket.MSG_WAITALL)
    return b""


def _memory() -> int:
    """What this process holds, in bytes, as its limit counts it."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


def _answer(data: bytes) -> dict[str, Any]:
    # By the kernel, with a signal that ends the process: the compiler runs no Python that could look at a clock.
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        found = source.examine(data.decode("utf-8", "surrogatepass"))
    except (MemoryError, RecursionError):
        return {"limit": TOO_LARGE}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if isinstance(found, source.Problem):
        return {"problem": [found.line, found.column, found.message]}
    return {"job": [found.class_name, found.line]}

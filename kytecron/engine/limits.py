"""How many runs at once the limits of this process allow."""

from __future__ import annotations

import os
import resource
from contextlib import suppress

from .forkserver import SPARES

FILES_OF_A_RUN = 2
"""Descriptors that a worker holds for each run: its two channels."""
OTHER_FILES = 32
"""What else it has open: connections, logs, the fork server, and a run's other ends while it is handed over."""
OTHER_TASKS = SPARES + 8
"""Processes and threads beside the runs: the worker, its fork server, processes forked in advance."""


def affordable(concurrency: int) -> tuple[int, str | None]:
    """How many of `concurrency` runs fit into this process's limits, and a sentence where those are fewer.

    Soft limits are raised first, as far as they may be.
    """
    most, problem = concurrency, ""
    files = _raised(resource.RLIMIT_NOFILE, FILES_OF_A_RUN * concurrency + OTHER_FILES)
    if (room := (files - OTHER_FILES) // FILES_OF_A_RUN) < most:
        most, problem = room, f"open files are limited to {files} (ulimit -n)"
    if os.geteuid() != 0:  # the kernel holds root to no number of processes
        used = _tasks_of(os.geteuid())
        tasks = _raised(resource.RLIMIT_NPROC, used + concurrency + OTHER_TASKS)
        if (room := tasks - used - OTHER_TASKS) < most:
            most, problem = room, f"processes are limited to {tasks}, of which {used} are there (ulimit -u)"
    most = max(1, most)
    if most == concurrency:
        return concurrency, None
    return most, f"it runs {most} jobs at once instead of {concurrency}: {problem}"


def _raised(kind: int, wanted: int) -> int:
    """The limit on `kind`, raised towards `wanted` as far as the hard limit lets it be."""
    soft, hard = (_number(limit) for limit in resource.getrlimit(kind))
    if soft >= wanted or soft >= hard:
        return soft
    with suppress(OSError, ValueError):
        resource.setrlimit(kind, (min(wanted, hard), resource.getrlimit(kind)[1]))
    return _number(resource.getrlimit(kind)[0])


def _number(limit: int) -> int:
    return 1 << 62 if limit == resource.RLIM_INFINITY else limit


def _tasks_of(user: int) -> int:
    """How many processes and threads a user has, as far as /proc shows them."""
    count = 0
    for pid in filter(str.isdecimal, os.listdir("/proc")) if os.path.isdir("/proc") else ():
        with suppress(OSError):
            if os.stat(f"/proc/{pid}").st_uid == user:
                count += len(os.listdir(f"/proc/{pid}/task"))
    return count

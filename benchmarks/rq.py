"""RQ's fork per job as a yardstick: the same empty job, forked once for each run, its end recorded in Redis."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
QUEUE = "bench"


def nothing() -> None:
    """What the jobs do."""


def missing() -> str | None:
    """What this machine lacks to measure RQ, or None."""
    if shutil.which("redis-server") is None:
        return "RQ left out: no redis-server on this machine (package redis-server)"
    if find_spec("rq") is None or find_spec("redis") is None:
        return "RQ left out: pip install -r benchmarks/requirements.txt"
    return None


def rate(n: int, workers: int) -> float:
    """Runs per second of `workers` RQ workers with a backlog of `n`: from the first start to the last end."""
    from rq import Queue

    with _redis() as (connection, url):
        queue = Queue(QUEUE, connection=connection)
        jobs = [queue.enqueue("benchmarks.rq.nothing", result_ttl=3600) for _ in range(n)]
        command = [sys.executable, "-m", "rq.cli", "worker", "--burst", "--quiet", "--path", str(ROOT)]
        processes = [
            subprocess.Popen([*command, "--url", url, QUEUE], cwd=ROOT, stdout=subprocess.DEVNULL)
            for _ in range(workers)
        ]
        for process in processes:
            assert process.wait(timeout=600) == 0, "an RQ worker failed"
        for job in jobs:
            job.refresh()
        begun = [job.started_at for job in jobs if job.started_at]
        ended = [job.ended_at for job in jobs if job.ended_at]
        assert len(begun) == len(ended) == n, "a run was left out"
        return n / float((max(ended) - min(begun)).total_seconds())


@contextmanager
def _redis() -> Iterator[tuple[Any, str]]:
    """A Redis server of our own, without persistence, and a connection to it."""
    from redis import Redis
    from redis.exceptions import ConnectionError as NotYet

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", directory]
        server = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
        try:
            connection = Redis(port=port)
            deadline = time.monotonic() + 30
            while True:
                try:
                    connection.ping()
                    break
                except NotYet:
                    assert server.poll() is None, "redis-server ended"
                    assert time.monotonic() < deadline, "redis-server does not answer"
                    time.sleep(0.02)
            yield connection, f"redis://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(timeout=30)


if __name__ == "__main__":
    print(missing() or f"RQ: {rate(300, 1):,.0f} runs/s with one worker, {rate(300, 2):,.0f} with two")

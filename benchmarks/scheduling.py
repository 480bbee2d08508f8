"""P13: what the database carries: slots become runs, runs are claimed and settled, and no job's process is started.

`python -m benchmarks.scheduling` is one of the workers: it calls what the engine's worker calls, in the same order.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from kytecron.config import ROOT, Settings
from kytecron.core.states import Outcome, Status
from kytecron.engine.worker import ENQUEUE_BATCH
from kytecron.services import lifecycle
from kytecron.store import db
from kytecron.store.models import CronJob, CronJobExecution

from .bench import Bench, Figure, server_cpu_seconds

RUNS = 4000
AT_ONCE = (8, 32)
CREWS = (1, 2, 4)
GOAL = 1500
BARE_SECONDS = 2.0
DONE = Outcome(Status.COMPLETED, duration_ms=3, output="done\n", output_bytes=5)


def scheduling(bench: Bench) -> list[Figure]:
    """P13: runs per second with 1, 2 and 4 worker processes, beside bare transactions of as many."""
    job = bench.model_job("class N(CronJobBase):\n    def execute(self):\n        pass\n")
    found: list[Figure] = []
    for at_once in AT_ONCE:
        for workers in CREWS:
            measured = _measured(bench, job, workers, at_once)
            what = f"no process: {workers} x {at_once} at once, runs per second"
            # One writer at a time is all that SQLite has: its goal is what one worker reaches.
            goal = GOAL if workers == 4 and bench.database != "sqlite" else 0
            found.append(bench.at_least(goal, "P13", what, measured.rate, "/s", measured.described()))
    return found


@dataclass(frozen=True)
class Measured:
    """What some workers did together."""

    rate: float
    seconds: Mapping[str, float]
    """How long they were in each step, together."""
    worker_ms: float
    """CPU time of the workers for each run."""
    server_ms: float
    """CPU time of the database's server for each run."""
    bare: float
    """Transactions of one UPDATE a second, by as many processes."""

    def described(self) -> str:
        """Where the time goes."""
        total = sum(self.seconds.values())
        steps = ", ".join(f"{step} {100 * spent / total:.0f} %" for step, spent in self.seconds.items())
        return (
            f"CPU for each run {self.worker_ms:.2f} ms + server {self.server_ms:.2f} ms; "
            f"bare transactions {self.bare:,.0f}/s; {steps}"
        )


def _measured(bench: Bench, job: CronJob, workers: int, at_once: int) -> Measured:
    ids = bench.copies(job, [bench.now() - timedelta(seconds=1)] * RUNS)
    bare = sum(answer["rate"] for answer in _together(bench.settings, workers, "bare", BARE_SECONDS))
    before = server_cpu_seconds(bench.server)
    answers = _together(bench.settings, workers, "work", at_once)
    server = server_cpu_seconds(bench.server) - before
    _check(bench, ids)
    taken = max(answer["ended"] for answer in answers) - min(answer["begun"] for answer in answers)
    steps = [*answers[0]["seconds"]]
    seconds = {step: sum(answer["seconds"][step] for answer in answers) for step in steps}
    cpu = sum(answer["cpu"] for answer in answers)
    return Measured(RUNS / taken, seconds, 1000 * cpu / RUNS, 1000 * server / RUNS, bare)


def _check(bench: Bench, ids: list[int]) -> None:
    bench.session.rollback()
    completed = sa.select(sa.func.count()).where(
        CronJobExecution.cron_job.in_(ids), CronJobExecution.status == Status.COMPLETED
    )
    assert bench.session.scalar(completed) == RUNS, "not every slot completed once"


def _together(settings: Settings, workers: int, *arguments: object) -> list[dict[str, Any]]:
    """What as many processes answer that begin at the same moment."""
    environment = os.environ | {
        "KYTECRON_INSTANCE_PATH": str(settings.instance_path),
        "KYTECRON_DATABASE_URL": settings.database_url,
    }
    command = [sys.executable, "-m", __name__, *map(str, arguments)]
    crew = [
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(workers)
    ]
    for worker in crew:
        assert worker.stdout
        assert worker.stdout.readline() == "ready\n", "a worker did not start"
    for worker in crew:
        assert worker.stdin
        worker.stdin.write("go\n")
        worker.stdin.flush()
    answers = [json.loads(worker.communicate()[0]) for worker in crew]
    assert not any(worker.returncode for worker in crew)
    return answers


# -- one worker ----------------------------------------------------------------------------------------------


class Stopwatch:
    """How long each step took, together."""

    def __init__(self) -> None:
        self.seconds = {"enqueue": 0.0, "claim": 0.0, "settle": 0.0}

    @contextmanager
    def on(self, step: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.seconds[step] += time.perf_counter() - begun


def work(session: Session, worker_id: str, at_once: int, watch: Stopwatch) -> None:
    """Enqueue, claim and settle until nothing is left."""
    slots_left, unsettled = True, []
    while True:
        if slots_left:
            with watch.on("enqueue"):
                slots_left = lifecycle.enqueue_due(session, ENQUEUE_BATCH) > 0
        with watch.on("claim"):
            runs = lifecycle.claim(session, worker_id, (), at_once, 60.0)
        unsettled += [(run.claim, DONE) for run in runs]
        if not unsettled:
            slots_left = True  # others may have locked them all for a moment
            if not _is_due(session, worker_id):
                return
            continue
        with watch.on("settle"):
            busy = lifecycle.settle(session, unsettled).busy
        unsettled = [(claim, outcome) for claim, outcome in unsettled if claim.execution_id in busy]


def _is_due(session: Session, worker_id: str) -> bool:
    look = lifecycle.look(session, worker_id, leased=())
    session.rollback()
    return any(due is not None and due <= look.now for due in (look.slot_due, look.run_due))


def bare(session: Session, seconds: float) -> float:
    """Transactions of one UPDATE by primary key that this process makes in a second."""
    last = session.scalar(sa.select(sa.func.max(CronJob.id))) or 0
    touch = sa.update(CronJob).where(CronJob.id == last - os.getpid() % 97).values(priority=5)
    step = db.transactional(lambda session: session.execute(touch))
    made, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        step(session)
        made += 1
    return made / (time.perf_counter() - begun)


def main(what: str, number: str) -> None:
    """Say that this process is ready, wait for the word, and tell how it went."""
    engine = db.make_engine(Settings.load())
    session = db.make_sessions(engine)()
    db.now(session)
    session.rollback()
    answers: dict[str, Callable[[], dict[str, Any]]] = {
        "work": lambda: _worked(session, int(number)),
        "bare": lambda: {"rate": bare(session, float(number))},
    }
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(answers[what]()))


def _worked(session: Session, at_once: int) -> dict[str, Any]:
    watch, begun, cpu = Stopwatch(), time.monotonic(), time.process_time()
    work(session, f"bench:{os.getpid()}", at_once, watch)
    ended, used = time.monotonic(), time.process_time() - cpu
    return {"begun": begun, "ended": ended, "cpu": used, "seconds": dict(watch.seconds)}


if __name__ == "__main__":
    main(*sys.argv[1:])

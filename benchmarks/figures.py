"""The measurements, one function for each row of the table in docs/performance.md."""

from __future__ import annotations

import signal
import time
from datetime import timedelta
from functools import partial

import psutil

from kytecron.app import create_app
from kytecron.services import accounts, lifecycle, stress
from kytecron.services.audit import Actor
from kytecron.store.models import CronJob
from tests.workers import WorkerProcess, executions, wait_for, working

from . import rq
from .bench import Bench, Figure, cpu_seconds, percentile, private_mb, resident_mb
from .yardsticks import beside_bare_forks

BENCH = Actor("bench")


def lateness(bench: Bench) -> list[Figure]:
    """P1: from the slot to the first line of `execute`."""
    job = bench.model_job(bench.noting_code())
    one = _lateness_of(bench, job, [2 + 0.2 * number for number in range(100)])
    hundred = _lateness_of(bench, job, [2.0] * 100)
    thousand, rate = beside_bare_forks(1000, lambda: _lateness_of(bench, job, [4.0] * 1000))
    bare = 1000 / rate
    beside = f"bare fork server {bare:.2f} s, ratio {max(thousand) / bare:.2f}"
    return [
        bench.at_most(15, "P1", "one job due, p50", 1000 * percentile(one, 0.5), "ms"),
        bench.at_most(60, "P1", "one job due, p99", 1000 * percentile(one, 0.99), "ms"),
        bench.at_most(0.5, "P1", "100 at one instant, last start", max(hundred), "s"),
        bench.at_most(1.7, "P1", "1,000 at one instant, last / bare fork", max(thousand) / bare, "", beside),
    ]


def _lateness_of(bench: Bench, job: object, delays: list[float]) -> list[float]:
    bench.notes.unlink(missing_ok=True)
    with bench.worker() as worker:
        _settle_down(worker)
        start = bench.now()
        slots = [start + timedelta(seconds=delay) for delay in delays]
        due = dict(zip(bench.copies(job, slots), slots, strict=True))  # type: ignore[arg-type]
        notes = bench.wait_for_notes(len(slots), pause=0.5)
        bench.wait_until_settled(pause=0.5)
    return [at - due[job_id].timestamp() for _, job_id, at in notes if job_id in due]


def _settle_down(worker: WorkerProcess) -> None:
    """Let a worker that has just begun finish its first looks, and its fork server start."""
    quiet, before = 0, -1.0
    while quiet < 3:
        now = cpu_seconds(worker.pid) + sum(cpu_seconds(pid) for pid in _children_of(worker))
        quiet = quiet + 1 if now - before < 0.02 else 0
        before = now
        time.sleep(0.5)


def _children_of(worker: WorkerProcess) -> list[int]:
    return [child.pid for child in psutil.Process(worker.pid).children()]


def throughput(bench: Bench) -> list[Figure]:
    """P2: a backlog of 2,000 runs that do nothing, one worker, everything recorded."""
    goal = 300 if bench.database == "sqlite" else 250
    job = bench.model_job("class N(CronJobBase):\n    def execute(self):\n        pass\n")
    found: list[Figure] = []
    rates = []
    for at_once in (8, 32):
        measure = partial(_rate_of, bench, job, at_once)
        rate, bare = beside_bare_forks(2000, measure)
        rates.append(rate)
        what, beside = f"2,000 waiting, {at_once} at once", f"bare fork server {bare:,.0f}/s"
        found += [
            bench.at_least(goal, "P2", f"{what}, runs per second", rates[-1], "/s", beside),
            bench.at_least(0.5, "P2", f"{what}, share of the bare fork", rates[-1] / bare, ""),
        ]
    if rq.missing() is None:
        forked, twice = rq.rate(300, 1), rq.rate(300, 2)
        beside = f"RQ {forked:,.0f}/s, two RQ workers {twice:,.0f}/s"
        found.append(
            bench.at_least(5, "P2", "8 at once, times RQ's fork per job", rates[0] / forked, "", beside)
        )
    return found


def _rate_of(bench: Bench, job: CronJob, at_once: int) -> float:
    ids = bench.copies(job, [bench.soon(86_400)] * 2000)
    bench.backlog(ids)
    waiting = set(ids)
    with bench.worker(concurrency=at_once):
        bench.wait_until_settled(pause=0.5)
    runs = [run for run in bench.executions() if run.cron_job in waiting]
    assert all(run.status == "completed" for run in runs), "a run did not complete"
    taken = max(run.completed_at for run in runs) - min(run.started_at for run in runs)
    seconds: float = taken.total_seconds()
    return len(runs) / seconds


def contention(bench: Bench) -> list[Figure]:
    """P4: ten workers, jobs that all come due at the same instant of every second."""
    if (
        bench.database == "sqlite"
    ):  # for the processes of one machine; its one writer at a time leaves no contest
        return []
    report = stress.run(bench.settings, workers=10, seconds=20, actor=BENCH)
    assert report.passed, (report.doubled[:3], report.lost[:3], report.problems)
    beside = f"{report.ran:,} runs, none doubled, none lost; p99 {report.lateness_ms['p99']:,.0f} ms late"
    rate, spread = report.contention_rate or 0.0, report.spread or float("inf")
    return [
        bench.at_most(5, "P4", "10 workers, missed locks", rate, "%", beside),
        bench.at_most(2, "P4", "10 workers, busiest / idlest", spread, ""),
    ]


def startup(bench: Bench) -> list[Figure]:
    """P3: from the claim to the first line of `execute`, in a worker that has seen the code, and one that has not."""
    job = bench.model_job(bench.noting_code())
    fresh = [bench.model_job(bench.noting_code(f"number {number}")) for number in range(40)]
    with bench.worker(concurrency=1):
        for _ in range(40):
            lifecycle.trigger(bench.session, job.id, actor=BENCH)
            bench.wait_until_settled()
        for other in fresh:
            lifecycle.trigger(bench.session, other.id, actor=BENCH)
            bench.wait_until_settled()
        notes = bench.wait_for_notes(80)
    claimed = {run.id: run.started_at.timestamp() for run in bench.executions()}
    seen = [at - claimed[execution] for execution, job_id, at in notes if job_id == job.id][1:]
    new = [at - claimed[execution] for execution, job_id, at in notes if job_id != job.id]
    return [
        bench.at_most(5, "P3", "claim to execute, code seen, p50", 1000 * percentile(seen, 0.5), "ms"),
        bench.at_most(8, "P3", "claim to execute, code new, p50", 1000 * percentile(new, 0.5), "ms"),
    ]


SLEEPS = "import time\nclass S(CronJobBase):\n    def execute(self):\n        time.sleep(20)\n"


def idle(bench: Bench, seconds: float = 60) -> list[Figure]:
    """P5: a worker with 1,000 jobs scheduled and none due."""
    job = bench.model_job(SLEEPS)
    bench.copies(job, [bench.soon(86_400)] * 1000)
    with bench.worker() as worker:
        _settle_down(worker)
        server = psutil.Process(worker.pid).children()[0]
        before = cpu_seconds(worker.pid) + cpu_seconds(server.pid)
        time.sleep(seconds)
        share = 100 * (cpu_seconds(worker.pid) + cpu_seconds(server.pid) - before) / seconds
        memory = resident_mb(worker.pid)
        small = resident_mb(server.pid) + sum(map(private_mb, server.children()))
        for _ in range(4):
            lifecycle.trigger(bench.session, bench.model_job(SLEEPS).id, actor=BENCH)
        runs = wait_for(lambda: kids if len(kids := _runs_of(server)) == 4 else [])
        time.sleep(1)
        private = max(map(private_mb, runs))
    return [
        bench.at_most(1, "P5", "idle, share of one core", share, "%"),
        bench.at_most(120, "P5", "worker, resident", memory, "MiB"),
        bench.at_most(20, "P5", "fork server with its spare processes", small, "MiB"),
        bench.at_most(5, "P5", "private memory of a running job", private, "MiB"),
    ]


def _runs_of(server: psutil.Process) -> list[psutil.Process]:
    return [child for child in server.children() if child.name().startswith("kyte-run")]


def recovery(bench: Bench) -> list[Figure]:
    """P6: kill -9 of a worker in mid-run, another one on the same machine."""
    code = bench.noting_code() + "        if self.execution.attempt == 1: time.sleep(60)\n"
    job = bench.model_job(code, retry_strategy="immediate")
    taken = []
    for number in range(3):
        bench.notes.unlink(missing_ok=True)
        with bench.worker() as first:
            lifecycle.trigger(bench.session, job.id, actor=BENCH)
            bench.wait_for_notes(1)
            with working(bench.settings, concurrency=8 + number):
                first.signal(signal.SIGKILL)
                killed = time.time()
                *_, (_, _, again) = bench.wait_for_notes(2)
                taken.append(again - killed)
                bench.wait_until_settled()
    return [
        bench.at_most(3, "P6", "run starts again after kill -9, slowest of 3", max(taken), "s"),
    ]


def output(bench: Bench) -> list[Figure]:
    """P9: a job that prints 200 MB beside jobs that must stay on time."""
    loud = bench.model_job(
        "class L(CronJobBase):\n    def execute(self):\n        line = 'x' * 99\n"
        "        for _ in range(2_000_000):\n            print(line)\n",
        timeout_seconds=600,
    )
    quiet = bench.model_job(bench.noting_code())
    with bench.worker() as worker:
        _settle_down(worker)
        before = resident_mb(worker.pid)
        lifecycle.trigger(bench.session, loud.id, actor=BENCH)
        start = bench.now()
        slots = [start + timedelta(seconds=0.5 + 0.2 * number) for number in range(20)]
        due = dict(zip(bench.copies(quiet, slots), slots, strict=True))
        peak = before
        while not all(run.completed_at for run in bench.executions()) or len(bench.executions()) < 21:
            peak = max(peak, resident_mb(worker.pid))
            time.sleep(0.1)
        late = [at - due[job_id].timestamp() for _, job_id, at in bench.wait_for_notes(20)]
    (printed,) = executions(bench.session, loud)
    assert printed.output_bytes == 200_000_000, printed.output_bytes
    return [
        bench.at_most(30, "P9", "worker grows while a job prints 200 MB", peak - before, "MiB"),
        bench.at_most(30, "P9", "lateness of others meanwhile, p50", 1000 * percentile(late, 0.5), "ms"),
    ]


def trigger(bench: Bench) -> list[Figure]:
    """P10: from the trigger in another process to the first line of `execute`."""
    job = bench.model_job(bench.noting_code(), overlap_policy="allow")
    taken = []
    with bench.worker() as worker:
        _settle_down(worker)
        for number in range(40):
            time.sleep(0.237)  # out of step with the worker's looks
            asked = time.time()
            lifecycle.trigger(bench.session, job.id, actor=BENCH)
            *_, (_, _, at) = bench.wait_for_notes(number + 1)
            taken.append(at - asked)
    return [
        bench.at_most(250, "P10", "trigger to start elsewhere, p95", 1000 * percentile(taken, 0.95), "ms")
    ]


def growth(bench: Bench) -> list[Figure]:
    """P12: lateness with 10,000 jobs of which 100 are due in each second."""
    job = bench.model_job(bench.noting_code())
    alone = _lateness_of(bench, job, [2 + 0.2 * number for number in range(50)])
    bench.copies(job, [bench.soon(86_400)] * 9000)
    many = _lateness_of(bench, job, [3 + 0.01 * number for number in range(1000)])
    many_p99, alone_p99 = 1000 * percentile(many, 0.99), 1000 * percentile(alone, 0.99)
    beside = f"p99 {many_p99:.0f} ms, one job due {alone_p99:.0f} ms"
    return [
        bench.at_most(3, "P12", "10,000 jobs, 100 due a second, p99 / P1", many_p99 / alone_p99, "", beside)
    ]


def typing(bench: Bench) -> list[Figure]:
    """P17: the check of 200 lines of code that changes with each stroke, as a request of the API."""
    app = create_app(bench.settings)
    with app.app_context():
        _, token = accounts.create_token(bench.session, "bench", "viewer", 1, BENCH)
    client, headers = app.test_client(), {"Authorization": f"Bearer {token}"}
    lines = '        for row in self.rows(limit=100):\n            self.log(f"{row.id}: {row.total:.2f}")\n'
    code = "class MyJob(CronJobBase):\n    def execute(self):\n" + lines * 99
    client.post("/api/v1/jobs/validate-code", json={"code": code}, headers=headers)
    taken = []
    for stroke in range(200):
        began = time.perf_counter()
        answer = client.post(
            "/api/v1/jobs/validate-code", json={"code": f"{code}# {stroke}"}, headers=headers
        )
        taken.append(time.perf_counter() - began)
        assert answer.get_json()["valid"], answer.text
    return [
        bench.at_most(50, "P17", "checking 200 lines while typing, p95", 1000 * percentile(taken, 0.95), "ms")
    ]

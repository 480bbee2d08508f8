"""The start page: how things stand, what runs, what failed, what comes next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from flask import Response

from ..services import deadletters
from ..store import db, figures, queries
from ..views.standing import standing
from ..views.workers import Workforce
from . import access
from .access import needs
from .render import page

area = access.area("home", __name__)

FAILED_WITHIN = timedelta(hours=24)
FAILED_READ = 50
"""Failures that are grouped by job: one that fails each minute must not hide the others."""
SHOWN = 8
"""Lines of a list."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line that says whether anything needs a person."""

    tone: str
    text: str
    see: tuple[str, dict[str, str]] | None = None
    """Endpoint and arguments of the page that shows what is meant."""


WORKERS: tuple[str, dict[str, str]] = ("system.workers", {})
DEAD: tuple[str, dict[str, str]] = ("system.dead_letters", {})
PENDING = ("executions.index", {"status": "pending"})
UNSUCCESSFUL = ("executions.index", {"status": "unsuccessful"})


@area.get("/")
@needs("viewer")
def index() -> Response:
    """The dashboard."""
    session = access.database()
    now = db.now(session)
    stands = standing(session, now)
    numbers = stands.numbers
    enabled = queries.JobFilter(status="enabled")
    return page(
        "home/page.html",
        "home/_region.html",
        numbers=numbers,
        workforce=stands.workforce,
        verdict=verdict(numbers, stands.workforce),
        running=queries.running(session, limit=10),
        failed=_by_job(queries.failed(session, now - FAILED_WITHIN, limit=FAILED_READ).items)[:SHOWN],
        dead=deadletters.dead_letters(session)[:SHOWN] if numbers.dead else [],
        upcoming=[
            job
            for job in queries.jobs(session, enabled, sort="next_run_time", limit=SHOWN).items
            if job.next_run_time
        ],
    )


def verdict(numbers: figures.Counters, workforce: Workforce) -> Verdict:
    """The worst thing that is true now."""
    if numbers.jobs == 0:
        return Verdict("good", "No jobs yet.")
    if workforce.alive == 0:
        if workforce.draining:
            return Verdict("bad", "All workers are shutting down, so nothing starts.", WORKERS)
        return Verdict(
            "bad", "No worker is running, so nothing starts. Start one with: python worker.py", WORKERS
        )
    if numbers.stale_locks:
        return Verdict(
            "bad", f"{_runs(numbers.stale_locks)} lost their worker and wait to be taken over.", WORKERS
        )
    if numbers.overdue:
        return Verdict(
            "bad", f"{_runs(numbers.overdue)} should have started more than a minute ago.", PENDING
        )
    if numbers.dead:
        many = numbers.dead > 1
        given_up = "jobs have been given up and need" if many else "job has been given up and needs"
        return Verdict("warn", f"{numbers.dead} {given_up} a person.", DEAD)
    failed = numbers.today.failed + numbers.today.timeout + numbers.today.lost
    if failed:
        return Verdict("good", f"All jobs are on time. {_runs(failed)} failed today (UTC).", UNSUCCESSFUL)
    return Verdict("good", "All jobs are on time.")


def _by_job(rows: Sequence[queries.ExecutionRow]) -> list[tuple[queries.ExecutionRow, int]]:
    """The newest of each job's rows, and how many it has."""
    newest: dict[int, queries.ExecutionRow] = {}
    for row in rows:
        newest.setdefault(row.execution.cron_job, row)
    times = Counter(row.execution.cron_job for row in rows)
    return [(row, times[job_id]) for job_id, row in newest.items()]


def _runs(number: int) -> str:
    return f"{number} run" if number == 1 else f"{number} runs"

"""The start page: how things stand, what runs, what failed, what comes next."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from flask import Response

from ..services import deadletters
from ..store import db, figures, queries
from . import access
from .access import needs
from .render import page

area = access.area("home", __name__)

FAILED_WITHIN = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line that says whether anything needs a person."""

    tone: str
    text: str


@area.get("/")
@needs("viewer")
def index() -> Response:
    """The dashboard."""
    session = access.database()
    now = db.now(session)
    numbers = figures.counters(session, now)
    enabled = queries.JobFilter(status="enabled")
    return page(
        "home/page.html",
        "home/_region.html",
        numbers=numbers,
        verdict=verdict(numbers),
        running=queries.running(session, limit=10),
        failed=queries.failed(session, now - FAILED_WITHIN, limit=8),
        dead=deadletters.dead_letters(session)[:8] if numbers.dead else [],
        upcoming=[
            job
            for job in queries.jobs(session, enabled, sort="next_run_time", limit=8).items
            if job.next_run_time
        ],
    )


def verdict(numbers: figures.Counters) -> Verdict:
    """The worst thing that is true now."""
    if numbers.jobs == 0:
        return Verdict("good", "No jobs yet.")
    if numbers.workers == 0:
        return Verdict("bad", "No worker is running, so nothing starts. Start one with: python worker.py")
    if numbers.stale_locks:
        return Verdict("bad", f"{_runs(numbers.stale_locks)} lost their worker and wait to be taken over.")
    if numbers.overdue:
        return Verdict("bad", f"{_runs(numbers.overdue)} should have started more than a minute ago.")
    if numbers.dead:
        many = numbers.dead > 1
        given_up = (
            f"{numbers.dead} jobs have been given up and need"
            if many
            else "1 job has been given up and needs"
        )
        return Verdict("warn", f"{given_up} a person.")
    failed = numbers.today.failed + numbers.today.timeout + numbers.today.lost
    if failed:
        return Verdict("good", f"All jobs are on time. {_runs(failed)} failed today (UTC).")
    return Verdict("good", "All jobs are on time.")


def _runs(number: int) -> str:
    return f"{number} run" if number == 1 else f"{number} runs"

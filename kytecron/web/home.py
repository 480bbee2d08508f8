"""The start page: how things stand, what runs, what failed, what comes next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

from flask import Response

from ..services import deadletters
from ..store import db, queries
from ..views.standing import Place, standing
from . import access
from .access import needs
from .render import page

area = access.area("home", __name__)

FAILED_WITHIN = timedelta(hours=24)
FAILED_READ = 50
"""Failures that are grouped by job: one that fails each minute must not hide the others."""
SHOWN = 8
"""Lines of a list."""


PLACES: dict[Place, tuple[str, dict[str, str]]] = {
    "workers": ("system.workers", {}),
    "pending": ("executions.index", {"status": "pending"}),
    "dead_letters": ("system.dead_letters", {}),
    "failing": ("jobs.index", {"status": "failing"}),
    "skipping": ("jobs.index", {"status": "skipping"}),
    "unsuccessful": ("executions.index", {"status": "unsuccessful"}),
}
"""Endpoint and arguments of the page that shows what a verdict means."""


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
        verdict=stands.verdict,
        see=PLACES[stands.verdict.see] if stands.verdict.see else None,
        running=queries.running(session, limit=10),
        failed=_by_job(queries.failed_chains(session, now - FAILED_WITHIN, limit=FAILED_READ))[:SHOWN],
        dead=deadletters.dead_letters(session)[:SHOWN] if numbers.dead else [],
        upcoming=[
            job
            for job in queries.jobs(session, enabled, sort="next_run_time", limit=SHOWN).items
            if job.next_run_time
        ],
    )


def _by_job(rows: Sequence[queries.ExecutionRow]) -> list[tuple[queries.ExecutionRow, int]]:
    """The newest of each job's rows, and how many it has."""
    newest: dict[int, queries.ExecutionRow] = {}
    for row in rows:
        newest.setdefault(row.execution.cron_job, row)
    times = Counter(row.execution.cron_job for row in rows)
    return [(row, times[job_id]) for job_id, row in newest.items()]

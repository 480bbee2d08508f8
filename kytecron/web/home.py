"""The start page: how things stand, what runs, what failed, what comes next."""

from __future__ import annotations

from datetime import timedelta

from flask import Response

from ..core.choices import Role
from ..services import deadletters
from ..store import db, queries
from ..views import jobs, runs
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
@needs(Role.VIEWER)
def index() -> Response:
    """The dashboard."""
    session = access.database()
    now = db.now(session)
    stands = standing(session, now)
    numbers = stands.numbers
    enabled = queries.JobFilter(status="enabled")
    running = queries.running(session, limit=10)
    following = queries.jobs(session, enabled, sort="next_run_time", limit=SHOWN).items
    return page(
        "home/page.html",
        "home/_region.html",
        numbers=numbers,
        workforce=stands.workforce,
        verdict=stands.verdict,
        see=PLACES[stands.verdict.see] if stands.verdict.see else None,
        running=runs.views(running.items),
        more_run=running.next is not None,
        failed=runs.by_job(queries.failed_chains(session, now - FAILED_WITHIN, limit=FAILED_READ))[:SHOWN],
        dead=jobs.views(deadletters.dead_letters(session)[:SHOWN]) if numbers.dead else [],
        upcoming=jobs.views(job for job in following if job.next_run_time),
    )

"""Versions of a job's code: their history, one of them, two side by side."""

from __future__ import annotations

from flask import Response, make_response, render_template, request, url_for
from werkzeug.utils import redirect
from werkzeug.wrappers import Response as AnyResponse

from ..core import diff
from ..core.choices import Role
from ..core.errors import Invalid
from ..services import versions
from ..services.versions import read_job
from ..store import queries
from ..views import jobs
from ..views import versions as views
from . import access
from .access import needs
from .listing import diff_rows, listing

area = access.area("versions", __name__, "/jobs/<int:job_id>/versions")

PAGE = 30
CONTEXT = 3
MAX_ROWS = 4000
"""Rows of a comparison that a page shows."""


@area.get("")
@needs(Role.VIEWER)
def index(job_id: int) -> str:
    """The history, newest first."""
    session = access.database()
    job = jobs.view(read_job(session, job_id))
    before = request.args.get("before", type=int)
    rows = versions.history(session, job_id, PAGE + 1, before)
    return render_template(
        "versions/list.html",
        job=job,
        tab="versions",
        versions=views.views(rows[:PAGE], queries.sharing(session, [row.content_hash for row in rows])),
        next_before=rows[PAGE - 1].version_number if len(rows) > PAGE else None,
        before=before,
    )


@area.get("/<int:number>")
@needs(Role.VIEWER)
def show(job_id: int, number: int) -> str:
    """One version's source."""
    session = access.database()
    job = jobs.view(read_job(session, job_id))
    source = versions.source_of(session, job_id, number)
    return render_template(
        "versions/version.html",
        job=job,
        tab="versions",
        version=views.view(versions.get_version(session, job_id, number)),
        lines=listing(source),
        code=source,
    )


@area.get("/<int:number>/code")
@needs(Role.VIEWER)
def download(job_id: int, number: int) -> Response:
    """One version's source as a file."""
    response = make_response(versions.source_of(access.database(), job_id, number))
    response.mimetype = "text/x-python"
    response.headers["Content-Disposition"] = f'attachment; filename="job-{job_id}-v{number}.py"'
    return response


@area.get("/compare")
@needs(Role.VIEWER)
def compare(job_id: int) -> str | AnyResponse:
    """Two versions side by side."""
    session = access.database()
    job = jobs.view(read_job(session, job_id))
    old, new = request.args.get("from", type=int), request.args.get("to", type=int)
    if old is None or new is None:
        raise Invalid({"from": "Choose two versions to compare"})
    if old == new:
        return redirect(url_for("versions.show", job_id=job_id, number=old), 303)
    old_code, new_code = versions.source_of(session, job_id, old), versions.source_of(session, job_id, new)
    everything = request.args.get("context") == "all"
    changes = diff.side_by_side(old_code, new_code, None if everything else CONTEXT)
    rows = diff_rows(changes, old_code, new_code)
    return render_template(
        "versions/compare.html",
        job=job,
        tab="versions",
        old=views.view(versions.get_version(session, job_id, old)),
        new=views.view(versions.get_version(session, job_id, new)),
        choices=views.views(versions.history(session, job_id, versions.MAX_PAGE)),
        rows=rows[:MAX_ROWS],
        left_out=max(0, len(rows) - MAX_ROWS),
        counts=changes.counts,
        unchanged=views.is_unchanged(changes),
        everything=everything,
    )

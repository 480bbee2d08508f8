"""Jobs: the list, one job, and what one may do to it."""

from __future__ import annotations

from datetime import date
from functools import lru_cache
from typing import Any

from flask import Response, render_template, request, url_for
from markupsafe import Markup
from werkzeug.wrappers import Response as AnyResponse

from ..core import words as labels
from ..core.choices import Role
from ..core.errors import Invalid
from ..core.jobspec import read_parameters
from ..core.states import FINAL
from ..services import deadletters, versions, why
from ..services.jobs import CronJobManager
from ..services.versions import read_job
from ..store import db, figures, queries
from ..views import jobs as views
from ..views import runs
from ..views import versions as version_views
from . import access, words
from .access import needs
from .bounds import LONG, takes
from .listing import listing
from .once import once
from .render import back, done, page, wants_part

area = access.area("jobs", __name__, "/jobs")

PAGE = 25
DAYS = 30
UPCOMING = 5
SORTS = [
    ("name", "Name"),
    ("next_run_time", "Next run"),
    ("-last_run", "Last run"),
    ("-id", "Newest"),
]
STATUSES = [
    ("enabled", "Enabled"),
    ("disabled", "Disabled"),
    ("dead", "Dead letter"),
    ("failing", "Failing"),
    ("skipping", "Skipping"),
]
RESULTS = [
    *((status, label) for status, label in labels.STATUSES.items() if status in FINAL),
    ("never", "Never ran"),
]


# -- the list ------------------------------------------------------------------------------------------------


@area.get("")
@needs(Role.VIEWER)
def index() -> Response:
    """Jobs by what is asked for."""
    session = access.database()
    asked = {
        name: request.args.get(name, "").strip() for name in ("q", "status", "tag", "type", "result", "sort")
    }
    wanted = queries.JobFilter(
        q=asked["q"],
        status=asked["status"] if asked["status"] in queries.JOB_STATUSES else "",
        tag=asked["tag"],
        schedule_type=asked["type"],
        last_result=asked["result"],
    )
    sort = asked["sort"] if asked["sort"] in queries.JOB_SORTS else "name"
    found = queries.jobs(session, wanted, sort=sort, cursor=request.args.get("cursor"), limit=PAGE)
    filters = {name: value for name, value in asked.items() if value}
    return page(
        "jobs/list.html",
        "jobs/_list.html",
        rows=[_row(job) for job in views.views(found.items)],
        next_cursor=found.next,
        cursor=request.args.get("cursor"),
        filters=filters,
        filtered=bool(filters.keys() - {"sort"}),
        sort=sort,
        tags=[] if wants_part() else queries.tags(session),
        SORTS=SORTS,
        STATUSES=STATUSES,
        RESULTS=RESULTS,
    )


def _row(job: views.JobView) -> Markup:
    return _row_html(job, access.user().role, request.script_root)


@lru_cache(maxsize=4096)
def _row_html(job: views.JobView, role: str, script_root: str) -> Markup:
    """Most rows of a list that refreshes itself are the ones of the time before, and for everybody of a role."""
    return Markup(render_template("jobs/_row.html", job=job))


# -- one job -------------------------------------------------------------------------------------------------


@area.get("/<int:job_id>")
@needs(Role.VIEWER)
def show(job_id: int) -> Response:
    """How a job is doing and what it is set to do."""
    session = access.database()
    job = read_job(session, job_id)
    now = db.now(session)
    recent = queries.executions(session, queries.ExecutionFilter(job=job_id), limit=10)
    statistics = figures.job_statistics(session, job_id, DAYS, now.date())
    return page(
        "jobs/job.html",
        "jobs/_overview.html",
        job=views.detail(session, job),
        tab="overview",
        recent=runs.views(recent.items),
        more=recent.next is not None,
        statistics=statistics,
        columns=_columns(statistics.days),
        summary=figures.execution_summary(job),
        upcoming=views.next_slots(session, job, UPCOMING, now),
        why=why.explain(session, job_id, now),
    )


def _columns(days: list[tuple[date, figures.Figures]]) -> list[dict[str, Any]]:
    """Days as the chart takes them."""
    return [
        {
            "completed": one.completed,
            "failed": one.total - one.completed,
            "label": f"{day:%d %b}" if place % 7 == len(days) % 7 else "",
            "title": f"{day:%a %d %b}: {one.completed} completed, {one.total - one.completed} failed"
            + "".join(f"; {said}" for said in (words.beside(one), words.counted_as(one)) if said),
        }
        for place, (day, one) in enumerate(days)
    ]


@area.get("/<int:job_id>/code")
@needs(Role.VIEWER)
def code(job_id: int) -> str | AnyResponse:
    """The current version's source."""
    session = access.database()
    job = views.view(read_job(session, job_id))
    if job.current_version is None:
        return render_template("jobs/code.html", job=job, tab="code", version=None, lines=[], code="")
    source = versions.source_of(session, job_id, job.current_version)
    return render_template(
        "jobs/code.html",
        job=job,
        tab="code",
        version=version_views.view(versions.get_version(session, job_id, job.current_version)),
        lines=listing(source),
        code=source,
    )


# -- what one may do -----------------------------------------------------------------------------------------


def manager() -> CronJobManager:
    """Jobs in the name of whoever asks."""
    return CronJobManager(access.database(), access.actor())


@area.get("/<int:job_id>/trigger")
@needs(Role.OPERATOR)
def trigger_form(job_id: int) -> str:
    """Parameters and a note for a run by hand."""
    return _trigger_form(job_id, {}, {})


def _trigger_form(job_id: int, given: dict[str, str], errors: dict[str, str]) -> str:
    session = access.database()
    return render_template(
        "jobs/trigger.html",
        job=views.detail(session, read_job(session, job_id)),
        versions=version_views.views(versions.history(session, job_id, 50)),
        given=given,
        errors=errors,
    )


@area.post("/<int:job_id>/trigger")
@needs(Role.OPERATOR)
@takes(LONG)
def trigger(job_id: int) -> AnyResponse | tuple[str, int]:
    """Run a job now. From a list one stays there; from the job or the form one sees the run."""
    given = {name: request.form.get(name, "").strip() for name in ("parameters", "note", "version")}
    access.throttle_triggers()
    try:
        parameters, version = _parameters(given["parameters"]), _version(given["version"])
        run_id = once(lambda: manager().trigger(job_id, parameters, given["note"], version).id)
    except Invalid as invalid:
        return _trigger_form(job_id, given, invalid.fields), 422
    to = url_for("executions.show", execution_id=run_id)
    return done(f"Queued as run #{run_id}.", to, leave="follow" in request.form)


def _parameters(text: str) -> dict[str, Any] | None:
    if not text:
        return None
    try:
        return read_parameters(text)
    except ValueError as error:
        raise Invalid({"parameters": f"parameters {error}"}) from None


def _version(text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise Invalid({"version": "version must be the number of a version"})
    return int(text)


@area.post("/<int:job_id>/enable")
@needs(Role.OPERATOR)
def enable(job_id: int) -> AnyResponse:
    """Let it run again."""
    job = manager().enable(job_id)
    return done(f"{job.name} is enabled.", back(_url(job_id)))


@area.post("/<int:job_id>/disable")
@needs(Role.OPERATOR)
def disable(job_id: int) -> AnyResponse:
    """Stop scheduling it."""
    job = manager().disable(job_id, request.form.get("reason", ""))
    return done(f"{job.name} is disabled. What is running goes on.", back(_url(job_id)))


@area.post("/<int:job_id>/recover")
@needs(Role.OPERATOR)
def recover(job_id: int) -> AnyResponse:
    """Take it out of the dead letter queue."""
    job = deadletters.recover(access.database(), job_id, access.actor())
    return done(f"{job.name} is recovered and enabled.", back(_url(job_id)))


@area.post("/<int:job_id>/clone")
@needs(Role.EDITOR)
def clone(job_id: int) -> AnyResponse:
    """A disabled copy, opened for editing."""
    copy_id = once(lambda: manager().clone(job_id).id)
    return done(
        "This is the copy. It is disabled until you enable it.",
        url_for("jobform.edit", job_id=copy_id),
        tone="info",
        leave=True,
    )


@area.post("/<int:job_id>/delete")
@needs(Role.EDITOR)
def delete(job_id: int) -> AnyResponse:
    """Delete it; its history stays."""
    job = manager().delete(job_id)
    return done(f"{job.name} is deleted.", url_for("jobs.index"), leave=True)


@area.post("/<int:job_id>/rollback")
@needs(Role.EDITOR)
def rollback(job_id: int) -> AnyResponse:
    """Make an old version current again."""
    number = _version(request.form.get("version", ""))
    if number is None:
        raise Invalid({"version": "Choose the version to go back to"})
    manager().rollback(job_id, number)
    return done(
        f"Version {number} is current again. The next run uses it.",
        url_for("versions.index", job_id=job_id),
        leave=True,
    )


def _url(job_id: int) -> str:
    return url_for("jobs.show", job_id=job_id)

"""Making and editing a job: the form, what its schedule will do while one types, and what happens on saving."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from flask import Response, jsonify, make_response, render_template, request, url_for
from sqlalchemy.orm import Session
from werkzeug.datastructures import MultiDict
from werkzeug.wrappers import Response as AnyResponse

from ..core import diff
from ..core.choices import Role
from ..core.errors import Conflict, Invalid, Unreadable
from ..core.fields import DEFAULTS, FIELDS, LABELS, Group, Kind, by_label, in_group
from ..core.source import Problem
from ..core.zones import zone, zone_names
from ..services import checking, upcoming, versions
from ..services import jobs as job_service
from ..services.versions import read_job
from ..store import db, queries
from ..store.models import CronJob
from ..views import jobs as job_views
from ..views.audit import plain
from . import access
from .access import needs
from .bounds import CODE, takes
from .jobs import manager
from .listing import diff_rows
from .render import done

area = access.area("jobform", __name__, "/jobs")

STARTER = """class MyJob(CronJobBase):
    def execute(self):
        self.log("Hello World")
"""
MOMENTS = tuple(name for name, one in FIELDS.items() if one.kind is Kind.MOMENT)
SWITCHES = tuple(name for name, one in FIELDS.items() if one.kind is Kind.FLAG)
NOT_EDITED = ("enabled",)
"""Changed by actions of their own, which say what they will do."""
PREVIEWED = 5
PARENT_CHOICES = 8


# -- pages ---------------------------------------------------------------------------------------------------


@area.get("/new")
@needs(Role.EDITOR)
def new() -> str:
    """An empty form, with code that would work."""
    values = shown(DEFAULTS | {"name": "", "schedule_type": "interval", "interval_seconds": 60})
    return _form(None, values | {"code": STARTER})


@area.post("/new")
@needs(Role.EDITOR)
@takes(CODE)
def create() -> AnyResponse | tuple[str, int]:
    """Create job, or show the form again with what is wrong beside each field and nothing lost."""
    fields = given(request.form)
    fields["enabled"] = "enabled" in request.form
    try:
        job = manager().create_job(**fields, code=request.form.get("code", ""), message=_message())
    except Invalid as invalid:
        return _form(None, _typed(), invalid.fields), 422
    return _saved(job, "is created")


@area.get("/<int:job_id>/edit")
@needs(Role.EDITOR)
def edit(job_id: int) -> str:
    """The form with what the job is now, and the states it started from: saving over a newer one is refused."""
    session = access.database()
    job = read_job(session, job_id)
    values = shown(job_service.configuration(session, job))
    values |= {"revision": job.revision, "base_version": job.current_version or 0, "code": ""}
    if job.current_version is None:
        return _form(job, values)
    try:
        values["code"] = versions.source_of(session, job.id, job.current_version)
    except Unreadable as damaged:  # writing it anew is the way out
        return _form(job, values, {"code": damaged.message})
    return _form(job, values)


@area.post("/<int:job_id>/edit")
@needs(Role.EDITOR)
@takes(CODE)
def update(job_id: int) -> AnyResponse | tuple[str, int]:
    """Save settings and code together, or show the form again."""
    session = access.database()
    changes = given(request.form)
    try:
        job = manager().update_job(
            job_id,
            revision=_number("revision"),
            **changes,
            code=request.form.get("code", ""),
            message=_message(),
            base_version=_number("base_version"),
        )
    except Invalid as invalid:
        return _form(read_job(session, job_id), _typed(), invalid.fields), 422
    except Conflict as conflict:
        if not conflict.details:
            raise
        return _form(read_job(session, job_id), _typed(), conflict=both_sides(conflict)), 409
    return _saved(job, "is saved")


def _form(
    job: CronJob | None,
    values: Mapping[str, Any],
    errors: Mapping[str, str] | None = None,
    conflict: Mapping[str, Any] | None = None,
) -> str:
    session = access.database()
    return render_template(
        "jobs/form.html",
        job=job and job_views.view(job),
        v=values,
        errors=by_label(errors or {}),
        conflict=conflict,
        dirty=bool(errors or conflict),
        names=LABELS,
        zones=zone_names(),
        parents=parent_choices(session, job.id if job else None, _chosen(values), ""),
        FIELDS=FIELDS,
        Group=Group,
        in_group=in_group,
    )


def _saved(job: CronJob, what: str) -> AnyResponse:
    following = job_views.next_run(job, db.now(access.database()))
    return done(f"{job.name} {what}. {following}", url_for("jobs.show", job_id=job.id), leave=True)


# -- parts ---------------------------------------------------------------------------------------------------


@area.get("/preview")
@needs(Role.VIEWER)
def preview() -> Response:
    """What the schedule in the form will do: the sentence, the next slots, what may surprise."""
    fields = given(request.args)
    session = access.database()
    now = db.now(session)
    answer, wrong = None, {}
    try:
        answer = job_service.preview(fields, now, PREVIEWED, *_known_of_job(session, now))
    except Invalid as invalid:
        wrong = {LABELS.get(name, name): text for name, text in by_label(invalid.fields).items()}
    slots = job_views.slots(answer.slots, answer.timezone) if answer else []
    html = render_template("jobs/_preview.html", preview=answer, slots=slots, wrong=wrong)
    return make_response(html)


def _known_of_job(session: Session, now: datetime) -> tuple[float | None, int]:
    """How long the job that is being edited usually takes, and how many runs of it `max_runs` counts."""
    job_id = request.args.get("job", type=int)
    if not job_id:
        return None, 0
    return upcoming.usual_seconds(session, job_id, now), upcoming.runs_scheduled(session, job_id)


@area.post("/check-code")
@needs(Role.EDITOR)
@takes(CODE)
def check_code() -> Response:
    """The problems of some code, for the editor's margin."""
    try:
        body = request.get_json(silent=True)
    except RecursionError:
        body = None
    code = body.get("code") if isinstance(body, dict) else None
    if not isinstance(code, str):
        raise Invalid({"code": 'Send the code as JSON: {"code": "..."}'})
    try:
        found, status = checking.problems(code, access.actor()), 200
    except Invalid as invalid:  # it costs too much: true of the whole
        found, status = [Problem(1, 1, text) for text in invalid.fields.values()], 422
    return make_response(
        jsonify(problems=[{"line": one.line, "column": one.column, "message": one.message} for one in found]),
        status,
    )


@area.get("/parents")
@needs(Role.EDITOR)
def parents() -> str:
    """Jobs to choose parents from: the chosen ones, and those whose name matches."""
    return render_template(
        "jobs/_parents.html",
        parents=parent_choices(
            access.database(),
            request.args.get("job", type=int),
            _ids(request.args.getlist("depends_on")),
            request.args.get("parent_q", ""),
        ),
    )


def parent_choices(
    session: Session, job_id: int | None, chosen: list[int], text: str
) -> list[tuple[int, str, bool]]:
    """(id, name, whether it is chosen), the chosen ones first."""
    rows = [job for job in (session.get(CronJob, one) for one in chosen) if job is not None]
    found = [(job.id, job.name, True) for job in rows]
    wanted = queries.JobFilter(q=text.strip())
    for job in queries.jobs(session, wanted, limit=PARENT_CHOICES + len(chosen) + 1).items:
        if job.id != job_id and job.id not in chosen and len(found) < len(rows) + PARENT_CHOICES:
            found.append((job.id, job.name, False))
    return found


# -- between the form and the service ------------------------------------------------------------------------


def given(form: MultiDict[str, str]) -> dict[str, Any]:
    """The settings that a form sends, as the service takes them. What it does not send is left out."""
    fields: dict[str, Any] = {}
    for name in FIELDS:
        if name in NOT_EDITED:
            continue
        if name in SWITCHES:
            # An unchecked box is not sent: that it was there is said by a field of its own.
            if f"{name}_shown" in form:
                fields[name] = name in form
        elif name == "depends_on":
            if "depends_on_shown" in form:
                fields[name] = form.getlist(name)
        elif name == "day_of_week":
            if days := form.getlist(name):
                fields[name] = ",".join(days)
        elif name in form:
            text: str | None = form[name].replace("\r\n", "\n").strip()
            if name in MOMENTS and text:
                text = _in_zone(text, form.get("timezone", ""))
            fields[name] = text or (None if DEFAULTS.get(name, "") is None else "")
    return fields


def _in_zone(text: str, name: str) -> str:
    """A moment without a zone, as the browser sends it, is one of the job's zone."""
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=moment.tzinfo or zone(name.strip() or "UTC")).isoformat()
    except (ValueError, Invalid):
        return text  # wrong anyway, and said so with the field


def shown(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as the form's controls show it."""
    values = dict(configuration)
    days = values.get("day_of_week")
    values["day_of_week"] = [str(day) for day in days] if isinstance(days, list) else [str(days)]
    values["tags"] = ", ".join(values["tags"])
    values["parameters"] = _json(values["parameters"])
    for name in MOMENTS:
        if values.get(name):
            values[name] = _local(values[name], values["timezone"])
    return values


def _json(parameters: Any) -> str:
    return json.dumps(parameters, indent=2, ensure_ascii=False) if parameters else ""


def _local(moment: datetime, name: str) -> str:
    """As <input type="datetime-local"> takes it."""
    try:
        local = moment.astimezone(zone(name))
    except Invalid:
        local = moment.astimezone(UTC)
    return local.strftime("%Y-%m-%dT%H:%M:%S" if local.second else "%Y-%m-%dT%H:%M")


def _typed() -> dict[str, Any]:
    """What somebody has typed, to be shown again as it is."""
    form = request.form
    values: dict[str, Any] = {name: form.get(name, "") for name in (*FIELDS, "code", "message")}
    values |= {name: name in form for name in SWITCHES}
    values["day_of_week"] = form.getlist("day_of_week")
    values["depends_on"] = _ids(form.getlist("depends_on"))
    values["revision"] = form.get("revision", "")
    values["base_version"] = form.get("base_version", "")
    values["timezone"] = form.get("timezone", "UTC")
    return values


def _chosen(values: Mapping[str, Any]) -> list[int]:
    return list(values.get("depends_on") or [])


def _ids(texts: list[str]) -> list[int]:
    return [int(text) for text in texts if text.isascii() and text.isdigit() and len(text) < 19]


def _number(name: str) -> int | None:
    text = request.form.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def _message() -> str:
    return request.form.get("message", "").strip()


def both_sides(conflict: Conflict) -> dict[str, Any]:
    """A stale edit for the form: who was faster, and what differs between theirs and yours."""
    details = conflict.details
    found: dict[str, Any] = {
        "message": conflict.message,
        "by": details.get("changed_by"),
        "fields": [
            (LABELS.get(name, name), plain(sides["theirs"]), plain(sides["yours"]))
            for name, sides in details.get("fields", {}).items()
        ],
        "rows": [],
        "revision": details.get("revision"),
        "current_version": details.get("current_version"),
    }
    if "theirs" in details:
        theirs, yours = details["theirs"], details["yours"]
        found["rows"] = diff_rows(diff.side_by_side(theirs, yours, context=3), theirs, yours)
    return found

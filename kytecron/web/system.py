"""The machinery: dead letters, workers and locks, the audit log, stored content."""

from __future__ import annotations

from flask import Response, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from ..core.choices import Role
from ..services import deadletters, lifecycle, versions
from ..store import db, queries
from ..views import jobs, runs
from ..views import workers as views
from ..views.audit import entries
from . import access
from .access import needs
from .render import done, page

area = access.area("system", __name__)

PAGE = 50


@area.get("/dead-letters")
@needs(Role.VIEWER)
def dead_letters() -> Response:
    """Jobs whose retries are exhausted."""
    found = jobs.views(deadletters.dead_letters(access.database()))
    return page("system/dead_letters.html", "system/_dead_letters.html", jobs=found)


@area.post("/dead-letters/recover")
@needs(Role.OPERATOR)
def recover() -> AnyResponse:
    """Recover the chosen jobs, or all of them."""
    chosen = None if request.form.get("which") == "all" else request.form.getlist("ids", type=int)
    to = url_for("system.dead_letters")
    if chosen is not None and not chosen:
        return done("Choose the jobs to recover first.", to, tone="warning")
    result = deadletters.recover_many(access.database(), chosen, access.actor())
    number = len(result.recovered)
    said = f"{number} job{'' if number == 1 else 's'} recovered."
    if result.refused:
        said += " Not recovered: " + "; ".join(
            f"job {job_id}: {why}" for job_id, why in result.refused.items()
        )
    return done(said, to, tone="warning" if result.refused else "success")


@area.get("/workers")
@needs(Role.VIEWER)
def workers() -> Response:
    """Who works, and who holds what."""
    session = access.database()
    now = db.now(session)
    return page(
        "system/workers.html",
        "system/_workers.html",
        workers=views.workers(session, now),
        locks=runs.locks(queries.running(session, limit=100).items, now),
    )


@area.post("/locks/<int:execution_id>/release")
@needs(Role.OPERATOR)
def release(execution_id: int) -> AnyResponse:
    """Take a run from its worker: it counts as lost and is retried."""
    run = lifecycle.release_lock(access.database(), execution_id, access.actor())
    return done(runs.after_release(run), url_for("system.workers"))


@area.get("/audit")
@needs(Role.ADMIN)
def audit() -> Response:
    """Who changed what."""
    names = ("actor", "action", "subject_type", "subject_id")
    asked = {name: request.args.get(name, "").strip() or None for name in names}
    cursor = request.args.get("cursor")
    wanted = queries.AuditFilter(
        actor=asked["actor"],
        action=(asked["action"] or "").replace(" ", "_") or None,
        subject_type=asked["subject_type"],
        subject_id=asked["subject_id"],
    )
    found = queries.audit_log(access.database(), wanted, cursor=cursor, limit=PAGE)
    return page(
        "system/audit.html",
        "system/_audit.html",
        rows=entries(found.items),
        next_cursor=found.next,
        cursor=cursor,
        filters={name: value for name, value in asked.items() if value},
    )


@area.get("/storage")
@needs(Role.VIEWER)
def storage() -> str:
    """What the versions' code takes up, and what sharing saves."""
    return render_template("system/storage.html", stats=versions.content_stats(access.database()))

"""Workers, locks, what was changed by whom, how things stand, and the description of the API itself."""

from __future__ import annotations

from datetime import datetime, timedelta

from flask import Response, current_app, json, render_template, request

from ..core.choices import PUBLIC, Role
from ..services import lifecycle
from ..store import queries
from ..store.keyset import Page
from ..store.queries import AuditFilter, ExecutionRow
from ..views import audit, runs, standing, workers
from . import openapi, shapes
from .executions import execution_detail
from .inputs import AuditQuery, ListQuery, WorkersQuery
from .routing import Call, route


@route("GET /workers", role=Role.VIEWER)
def list_workers(call: Call, query: WorkersQuery) -> shapes.Workers:
    """List worker processes."""
    found = workers.workers(call.session, call.now, timedelta(hours=query.hours))
    return shapes.Workers(items=[shapes.Worker.of(one) for one in found])


@route("GET /locks", role=Role.VIEWER)
def list_locks(call: Call, query: ListQuery) -> shapes.Page[shapes.Lock]:
    """List the runs that workers hold."""
    return _locks(queries.running(call.session, cursor=query.cursor, limit=query.limit), call.now)


@route("GET /locks/stale", role=Role.VIEWER)
def list_stale_locks(call: Call, query: ListQuery) -> shapes.Page[shapes.Lock]:
    """List the runs whose lease has ended. Any worker ends them as lost within seconds."""
    found = queries.stale_locks(call.session, call.now, cursor=query.cursor, limit=query.limit)
    return _locks(found, call.now)


@route("POST /locks/{execution_id}/release", role=Role.OPERATOR, problems=(409,))
def release_lock(call: Call, execution_id: int) -> shapes.ExecutionDetail:
    """Take a run from its worker. It ends as lost and is retried; a worker that lives is asked to stop it first."""
    lifecycle.release_lock(call.session, execution_id, call.actor)
    return execution_detail(call, execution_id)


@route("GET /audit", role=Role.ADMIN)
def list_audit(call: Call, query: AuditQuery) -> shapes.Page[shapes.AuditEntry]:
    """List who changed what, the newest first."""
    wanted = AuditFilter(**query.model_dump(exclude={"limit", "cursor"}))
    found = queries.audit_log(call.session, wanted, cursor=query.cursor, limit=query.limit)
    return shapes.Page[shapes.AuditEntry](
        items=[shapes.AuditEntry.of(one) for one in audit.entries(found.items)], next_cursor=found.next
    )


@route("GET /stats", role=Role.VIEWER)
def read_stats(call: Call) -> shapes.Stats:
    """How things stand now."""
    return shapes.Stats.of(standing.standing(call.session, call.now))


@route("GET /openapi.json", role=PUBLIC)
def read_openapi(call: Call) -> Response:
    """This description."""
    # Under a path of a proxy's own, that is where the addresses begin.
    document = openapi.document() | {"servers": [{"url": request.script_root or "/"}]}
    return current_app.response_class(json.dumps(document), mimetype="application/json")


@route("GET /docs", role=PUBLIC)
def read_docs(call: Call) -> Response:
    """This description, for people."""
    html = render_template("api/docs.html", **openapi.page())
    return current_app.response_class(html)


def _locks(found: Page[ExecutionRow], now: datetime) -> shapes.Page[shapes.Lock]:
    items = [shapes.Lock(**one.for_programs()) for one in runs.locks(found.items, now)]
    return shapes.Page[shapes.Lock](items=items, next_cursor=found.next)

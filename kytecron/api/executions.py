"""Executions: what ran, runs and waits, and its output."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta

from flask import Response, request, stream_with_context
from sqlalchemy.orm import Session

from ..core.choices import Role
from ..services import lifecycle
from ..store import figures, queries
from ..store.keyset import Page
from ..store.queries import ExecutionFilter, ExecutionRow
from . import shapes
from .inputs import DaysQuery, ExecutionsQuery, FailedQuery, ListQuery, LogQuery, ReasonBody, RerunBody
from .routing import Answer, Call, address, route
from .waiting import Caller

FOLLOW_STEP = 0.3
FOLLOW_SECONDS = 3600
"""A stream holds a thread of the server: one that is still growing after so long ends, and can be asked for again."""


@route("GET /executions", role=Role.VIEWER)
def list_executions(call: Call, query: ExecutionsQuery) -> shapes.Page[shapes.Execution]:
    """List executions, the newest first; of certain statuses or times, those of the latest slots first."""
    wanted = ExecutionFilter(
        job=query.job,
        statuses=query.status,
        slot_from=query.slot_from,
        slot_to=query.slot_to,
        origin=query.origin,
        worker=query.worker,
        version=query.version,
        text=query.text,
    )
    return _page(queries.executions(call.session, wanted, cursor=query.cursor, limit=query.limit))


@route("GET /executions/running", role=Role.VIEWER)
def list_running(call: Call, query: ListQuery) -> shapes.Page[shapes.Execution]:
    """List what runs now."""
    return _page(queries.running(call.session, cursor=query.cursor, limit=query.limit))


@route("GET /executions/pending", role=Role.VIEWER)
def list_pending(call: Call, query: ListQuery) -> shapes.Page[shapes.Execution]:
    """List what waits, by the time it is due; last, what waits for something else."""
    return _page(queries.pending(call.session, cursor=query.cursor, limit=query.limit))


@route("GET /executions/failed", role=Role.VIEWER)
def list_failed(call: Call, query: FailedQuery) -> shapes.Page[shapes.Execution]:
    """List what failed, timed out or was lost in the last days, the latest first."""
    since = call.now - timedelta(days=query.days)
    return _page(queries.failed(call.session, since, cursor=query.cursor, limit=query.limit))


@route("GET /executions/statistics", role=Role.VIEWER)
def execution_statistics(call: Call, query: DaysQuery) -> shapes.Statistics:
    """Runs of all jobs by day. Percentiles are those of single jobs only."""
    return shapes.Statistics.of(figures.global_statistics(call.session, query.days, call.now.date()))


@route("GET /executions/{execution_id}", role=Role.VIEWER)
def read_execution(call: Call, execution_id: int) -> shapes.ExecutionDetail:
    """Read an execution, with every attempt of its chain."""
    return execution_detail(call, execution_id)


@route("GET /executions/{execution_id}/log", role=Role.VIEWER, problems=(503,), text_too="text/plain")
def read_execution_log(call: Call, execution_id: int, query: LogQuery) -> shapes.Log | Response:
    """Read what an execution printed.

    As JSON, piece by piece: ask again with `after` set to `cursor` until `finished`. With `Accept: text/plain` the
    whole log comes as text; with `follow=true` that text grows until the run ends. When too many follow already, the
    answer is 503.
    """
    part = queries.read_log(call.session, execution_id, query.after)
    if query.follow or _wants_text():
        return _as_text(call, execution_id, part, query.follow)
    return shapes.Log(text=part.text, cursor=part.cursor, finished=part.finished)


@route("POST /executions/{execution_id}/cancel", role=Role.OPERATOR, problems=(409,))
def cancel_execution(call: Call, execution_id: int, body: ReasonBody) -> shapes.ExecutionDetail:
    """Call off a pending run at once, or ask the worker of a running one to stop it."""
    lifecycle.cancel(call.session, execution_id, call.actor, body.reason)
    return execution_detail(call, execution_id)


@route("POST /executions/{execution_id}/retry", role=Role.OPERATOR, problems=(409,))
def retry_execution(call: Call, execution_id: int) -> shapes.ExecutionDetail:
    """Skip the delay of a waiting retry: of this execution, or of the one that follows it."""
    return execution_detail(call, lifecycle.retry_now(call.session, execution_id, call.actor).id)


@route("POST /executions/{execution_id}/rerun", role=Role.OPERATOR, status=201, problems=(409, 429))
def rerun_execution(call: Call, execution_id: int, body: RerunBody) -> Answer[shapes.ExecutionDetail]:
    """Run an ended execution's slot again, with its parameters."""
    call.throttle_triggers()
    made = lifecycle.rerun(call.session, execution_id, call.actor, same_version=body.same_version)
    headers = {"Location": address(f"/executions/{made.id}")}
    return Answer(execution_detail(call, made.id), 201, headers)


def execution_detail(call: Call, execution_id: int) -> shapes.ExecutionDetail:
    """The shape of one execution. Raises NotFound."""
    return shapes.ExecutionDetail.of_detail(queries.execution(call.session, execution_id))


def _page(found: Page[ExecutionRow]) -> shapes.Page[shapes.Execution]:
    items = [shapes.Execution.of(row.execution, row.job_name) for row in found.items]
    return shapes.Page[shapes.Execution].model_construct(items=items, next_cursor=found.next)


def _wants_text() -> bool:
    accepted = request.accept_mimetypes
    return accepted.best_match(["application/json", "text/plain"]) == "text/plain"


def _as_text(call: Call, execution_id: int, part: queries.LogPart, follow: bool) -> Response:
    # One piece is an answer like any other; a thread that sends more waits for the run, or for who reads.
    seat = None if part.finished or not (follow or part.text) else call.seat()
    text = _whole_log(call.session, execution_id, part, follow)
    # A proxy must not collect it before it passes it on.
    headers = {"X-Accel-Buffering": "no"} if follow else {}
    answer = Response(stream_with_context(text), mimetype="text/plain", headers=headers)
    if seat is not None:
        answer.call_on_close(seat.leave)
    return answer


def _whole_log(session: Session, execution_id: int, part: queries.LogPart, follow: bool) -> Iterator[str]:
    """The rest of a log; `part` is the first piece. Following, up to the end of the run."""
    caller, until = Caller(), time.monotonic() + FOLLOW_SECONDS
    try:
        while True:
            # The request cleaned up before its stream began. Neither sending nor waiting needs a connection.
            session.rollback()
            yield part.text
            if part.finished or time.monotonic() >= until:
                return
            if not part.text and not (follow and caller.stays(FOLLOW_STEP)):
                return
            part = queries.read_log(session, execution_id, part.cursor)
    finally:
        session.rollback()

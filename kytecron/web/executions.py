"""Runs: the list, one run with its live log, and what one may do to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from flask import Response, render_template, request, stream_with_context, url_for
from markupsafe import Markup
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response as AnyResponse

from ..core import diff
from ..core import words as labels
from ..core.ansi import advance
from ..core.choices import Role
from ..core.errors import NotFound, Unreadable
from ..core.states import UNSUCCESSFUL, Status
from ..services import lifecycle, versions, why
from ..services.jobs import find
from ..services.versions import read_job
from ..store import db, queries
from ..store.keyset import Page
from ..store.models import CronJob, CronJobExecution
from ..views import jobs, runs
from ..views.runs import Phase
from ..views.versions import is_unchanged
from . import access
from .access import needs
from .ansi import markup, overwrites
from .listing import DiffRow, diff_rows, trace
from .once import once
from .render import back, done, is_htmx, page, wants_part

area = access.area("executions", __name__)

PAGE = 50
SHOWN_LOG = 2_000_000
"""Characters of output that a page shows. When there is more, the beginning goes; all of it can be downloaded."""
KEPT_LOG = 500_000
"""Characters that stay when the beginning goes."""
STATUSES = [*labels.STATUSES.items(), ("unsuccessful", "Unsuccessful")]


# -- lists ---------------------------------------------------------------------------------------------------


@area.get("/executions")
@needs(Role.VIEWER)
def index() -> Response:
    """Runs of all jobs."""
    return _list("executions/list.html", None)


@area.get("/jobs/<int:job_id>/executions")
@needs(Role.VIEWER)
def of_job(job_id: int) -> Response:
    """Runs of one job."""
    return _list("executions/of_job.html", read_job(access.database(), job_id))


def _list(template: str, job: CronJob | None) -> Response:
    session = access.database()
    names = ("job", "status", "from", "to", "worker", "text")
    asked = {name: request.args.get(name, "").strip() for name in names}
    problems: dict[str, str] = {}
    wanted = _wanted(session, asked, job, problems)
    cursor = request.args.get("cursor")
    found = queries.executions(session, wanted, cursor=cursor, limit=PAGE) if not problems else Page([], None)
    return page(
        template,
        "executions/_list.html",
        job=job and jobs.view(job),
        tab="executions",
        rows=runs.views(found.items),
        next_cursor=found.next,
        cursor=cursor,
        filters={name: value for name, value in asked.items() if value},
        problems=problems,
        live=cursor is None and not problems,
        STATUSES=STATUSES,
    )


def _wanted(
    session: Session, asked: dict[str, str], job: CronJob | None, problems: dict[str, str]
) -> queries.ExecutionFilter:
    """The filter that was asked for; what cannot be understood goes to `problems`."""
    job_id = job.id if job else None
    if asked["job"] and job is None:
        try:
            job_id = find(session, asked["job"]).id
        except NotFound as error:
            problems["job"] = error.message
    slot_from = _day(asked["from"], "from", problems)
    slot_to = _day(asked["to"], "to", problems, timedelta(days=1))
    if slot_from is not None and slot_to is not None and slot_to < slot_from:
        problems["to"], slot_to = "to must not be earlier than from", None
    return queries.ExecutionFilter(
        job=job_id,
        statuses=_statuses(asked["status"]),
        slot_from=slot_from,
        slot_to=slot_to,
        worker=asked["worker"] or None,
        text=asked["text"] or None,
    )


def _statuses(asked: str) -> Sequence[str]:
    if asked == "unsuccessful":
        return sorted(UNSUCCESSFUL)
    return [asked] if asked in set(Status) else []


def _day(text: str, name: str, problems: dict[str, str], plus: timedelta = timedelta(0)) -> datetime | None:
    """The beginning of a UTC day, moved by `plus`."""
    if not text:
        return None
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC) + plus
    except (ValueError, OverflowError):
        problems[name] = f"{text[:40]!r} is not a date; write it like 2026-03-29"
        return None


# -- one run -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Comparison:
    """How the code of a failed run differs from the last run before it that completed."""

    good: runs.RunView
    rows: list[DiffRow]
    unchanged: bool


@area.get("/executions/<int:execution_id>")
@needs(Role.VIEWER)
def show(execution_id: int) -> Response:
    """One run and everything it left. Its state is a region; its log appends itself."""
    session = access.database()
    detail = queries.execution(session, execution_id)
    run = runs.detail(detail, db.now(session))
    context: dict[str, Any] = {"run": run, "job": run.job, "why": _why(session, run)}
    if not wants_part():
        code = _code(session, detail.execution)
        context |= {
            "log": _log(session, run.id),
            "trace": trace(run.stack_trace, code) if run.stack_trace else [],
            "comparison": _comparison(session, detail.execution, code),
        }
    return page("executions/execution.html", "executions/_state.html", **context)


def _why(session: Session, run: runs.RunDetail) -> why.Why | None:
    """What a run that has not started waits for."""
    if run.job is None or run.job.deleted or run.phase not in (Phase.PLANNED, Phase.DUE, Phase.WAITING):
        return None
    return why.explain(session, run.job_id)


def _code(session: Session, run: CronJobExecution) -> str | None:
    """The source that a run ran, None where there is none any more."""
    if run.version is None:
        return None
    try:
        return versions.source_of(session, run.cron_job, run.version)
    except (NotFound, Unreadable):
        return None


def _comparison(session: Session, run: CronJobExecution, code: str | None) -> Comparison | None:
    if run.status not in UNSUCCESSFUL or code is None:
        return None
    good = queries.last_success_before(session, run)
    if good is None:
        return None
    before = code if good.version == run.version else _code(session, good)
    if before is None:
        return None
    changes = diff.side_by_side(before, code, context=3)
    return Comparison(runs.view(good, ""), diff_rows(changes, before, code), is_unchanged(changes))


# -- its log -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """A piece of a run's output as HTML, and what the page sends along when it asks for the next."""

    html: Markup
    open: Markup = field(default_factory=Markup)
    """The line that is being written: the next piece shows it anew."""
    line: str | None = None
    """In which stored piece the open line begins; None when there is none."""
    skip: int = 0
    """Characters of that piece before it."""
    after: str | None = None
    """Where the next piece begins; None when nothing more will be shown."""
    shown: int = 0
    """Characters that the page shows with this piece, the open line aside."""
    colours: str = ""
    """The colours that are on where the open line begins."""
    overwrites: bool = False
    """A line was written over: once the run has ended, the whole output is shown anew."""
    cut: bool = False
    """The beginning is left out: this piece stands for all before it."""


@area.get("/executions/<int:execution_id>/log")
@needs(Role.VIEWER)
def log(execution_id: int) -> AnyResponse:
    """For htmx the next piece of the output; for anybody else all of it, as a file."""
    session = access.database()
    run = queries.execution(session, execution_id).execution
    if not is_htmx():
        return _download(session, run.id)
    before = Log(
        html=Markup(""),
        after=request.args.get("after"),
        line=request.args.get("line"),
        skip=max(0, request.args.get("skip", 0, int)),
        shown=request.args.get("shown", 0, int),
        colours=request.args.get("colours", ""),
        overwrites="overwrites" in request.args,
    )
    piece = _log(session, run.id, before)
    if piece.after and piece.after == before.after:
        return Response(status=204)  # nothing new: whoever asks stays and asks again
    if piece.after is None and piece.overwrites and before.shown:
        piece, anew = _log(session, run.id), True
    else:
        anew = piece.cut
    html = render_template("executions/_log.html", run=runs.view(run, ""), log=piece)
    return Response(html, headers={"HX-Retarget": "#log", "HX-Reswap": "innerHTML"} if anew else {})


def _log(session: Session, execution_id: int, before: Log | None = None) -> Log:
    """The output that follows `before`, as far as there is any; from its beginning where that is None."""
    before = before or Log(html=Markup(""))
    text, start, finished, cut = "", before.line or before.after, False, False
    places: list[tuple[int, str]] = []
    after, size = start, 0
    while not finished:
        part = queries.read_log_pieces(session, execution_id, after)
        for cursor, piece in part.pieces:
            places.append((size, cursor))
            text, size = text + piece, size + len(piece)
        after, finished = part.cursor, part.finished
        if len(text) + (0 if cut else before.shown) > SHOWN_LOG:
            text, cut = text[-KEPT_LOG:], True
        if not part.pieces:
            break
    if before.line and (not places or places[0][1] != before.line):
        # The open line was in the live end of a long output, which is kept in another form now.
        return replace(_log(session, execution_id), cut=True)
    if not cut:
        text = text[before.skip :]
    shown = advance(text, "" if cut else before.colours)
    html = markup(shown.done)
    if cut:
        note = f"Only the last {len(text):,} characters are shown here. Download the log to see all of it."
        html = Markup('<span class="log-cut">{}</span>').format(note) + html
    still = size - len(text) + shown.taken
    place = max((place for place in places if place[0] <= still), default=None) if still < size else None
    return Log(
        html=html + markup(shown.open) if finished else html,
        open=markup(shown.open),
        line=place[1] if place else None,
        skip=still - place[0] if place else 0,
        after=None if finished else after,
        shown=(len(text) if finished else shown.taken) + (0 if cut else before.shown),
        colours=shown.style,
        overwrites=before.overwrites or overwrites(text),
        cut=cut,
    )


def _download(session: Session, execution_id: int) -> Response:
    first = queries.read_log(session, execution_id)
    # One piece is an answer like any other; a thread that sends many is at the mercy of who reads them.
    seat = None if first.finished or not first.text else access.seat()

    def pieces() -> Iterator[str]:
        part = first
        try:
            while True:
                # The request cleaned up before its stream began. Sending a piece needs no connection.
                session.rollback()
                yield part.text
                # Of a run that still goes on, what there is: a download must end.
                if part.finished or not part.text:
                    return
                part = queries.read_log(session, execution_id, part.cursor)
        finally:
            session.rollback()

    response = Response(stream_with_context(pieces()), mimetype="text/plain")
    if seat is not None:
        response.call_on_close(seat.leave)
    response.headers["Content-Disposition"] = f'attachment; filename="execution-{execution_id}.log"'
    return response


# -- what one may do -----------------------------------------------------------------------------------------


@area.post("/executions/<int:execution_id>/cancel")
@needs(Role.OPERATOR)
def cancel(execution_id: int) -> AnyResponse:
    """Stop a run, or call it off before it starts."""
    run = lifecycle.cancel(access.database(), execution_id, access.actor())
    return done(runs.after_cancel(run), back(_url(execution_id)))


@area.post("/executions/<int:execution_id>/retry")
@needs(Role.OPERATOR)
def retry(execution_id: int) -> AnyResponse:
    """Start the waiting retry at once."""
    run = lifecycle.retry_now(access.database(), execution_id, access.actor())
    return done(f"Execution {run.id} starts now.", _url(run.id), leave=run.id != execution_id)


@area.post("/executions/<int:execution_id>/rerun")
@needs(Role.OPERATOR)
def rerun(execution_id: int) -> AnyResponse:
    """Run the same slot again, on the current version or on the one it had."""
    same = request.form.get("version") == "same"
    access.throttle_triggers()
    session, actor = access.database(), access.actor()
    run_id = once(lambda: lifecycle.rerun(session, execution_id, actor, same_version=same).id)
    return done(f"Execution {run_id} runs this slot again.", _url(run_id), leave=True)


def _url(execution_id: int) -> str:
    return url_for("executions.show", execution_id=execution_id)

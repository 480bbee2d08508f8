"""The read side: lists, histories, logs. What is counted and added up is in `figures`.

Lists go from page to page by keyset: a cursor holds the place where the last page ended, so that rows that come
in between are neither shown twice nor make others be left out, and page 1,000 costs what page 1 costs. Each list
is two statements: the ids of its page, found in an index, and their rows. Nothing counts or sorts a history.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import eq, ge, lt
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session, undefer

from ..core.errors import Invalid, NotFound
from ..core.states import FINAL, UNSUCCESSFUL, Status
from ..core.untrusted import LARGEST, LARGEST_VERSION
from . import dialects
from .claims import ON_SCHEDULE
from .dialects import Searched
from .keyset import Key, Order, Page
from .models import (
    ENABLED,
    FAILING,
    NOT_ENABLED,
    PENDING,
    RUNNING,
    SKIPPING,
    CronAudit,
    CronJob,
    CronJobDependency,
    CronJobExecution,
    CronJobOutput,
    CronSecret,
    CronToken,
    CronUser,
    CronWorkerRecord,
    KyteCronJobVersion,
    KyteCronJobVersionContent,
    lease_ended,
)

JOB: Any = CronJob.__table__
RUN: Any = CronJobExecution.__table__
OUTPUT: Any = CronJobOutput.__table__

MAX_LIMIT = 200
SCANNED = 5_000
"""Rows that one page looks at, at most, for what no index finds: a worker, an origin, a version."""
SCANNED_FOR_TEXT = 2_000
LOG_CHARACTERS = 1_000_000
"""About as much of a log comes at once."""


# -- jobs ----------------------------------------------------------------------------------------------------


JOB_SORTS = {
    name: Order(name, (Key(column, name.startswith("-")), Key(JOB.c.id)))
    for column, names in (
        (JOB.c.name, ("name", "-name")),
        (JOB.c.next_run_time, ("next_run_time", "-next_run_time")),
        (JOB.c.last_run_at, ("last_run", "-last_run")),
        (JOB.c.dead_letter_since, ("dead_letter_since", "-dead_letter_since")),
    )
    for name in names
} | {
    "id": Order("id", (Key(JOB.c.id),)),
    "-id": Order("-id", (Key(JOB.c.id, True),)),
}
"""How jobs can be sorted; a job without the time sorted by comes last either way."""

JOB_STATUSES = {
    "enabled": ENABLED,
    "disabled": sa.and_(NOT_ENABLED, JOB.c.in_dead_letter_queue.is_(False)),
    "dead": JOB.c.in_dead_letter_queue.is_(True),
    "failing": FAILING,
    "skipping": SKIPPING,
}
NEVER_RAN = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs; None and "" leave a condition out."""

    name: str | None = None
    """The whole name."""
    q: str | None = None
    """Part of the name or the description."""
    status: str | None = None
    """A key of JOB_STATUSES."""
    tag: str | None = None
    schedule_type: str | None = None
    last_result: str | None = None
    """How the last run ended; `skipped`: slots were skipped since then; `never`: no slot has come to anything."""


def jobs(
    session: Session,
    wanted: JobFilter | None = None,
    *,
    sort: str = "name",
    cursor: str | None = None,
    limit: int = 50,
) -> Page[CronJob]:
    """Jobs that are not deleted. Raises Invalid for an unknown `status`, `sort` or `cursor`."""
    order = _choice("sort", sort, JOB_SORTS)
    query = order.page(sa.select(JOB.c.id).where(*_job_conditions(wanted or JobFilter())), cursor, limit)
    ids = list(session.scalars(query))
    rows = {job.id: job for job in session.scalars(sa.select(CronJob).where(CronJob.id.in_(ids)))}
    page: Page[CronJob] = order.cut([rows[job_id] for job_id in ids if job_id in rows], limit)
    return page


def _job_conditions(wanted: JobFilter) -> list[Any]:
    conditions: list[Any] = [JOB.c.deleted_id == 0]
    if wanted.name:
        conditions.append(JOB.c.name == wanted.name.strip())
    if wanted.q:
        conditions.append(
            sa.or_(
                Searched(JOB.c.name).icontains(wanted.q, autoescape=True),
                Searched(JOB.c.description).icontains(wanted.q, autoescape=True),
            )
        )
    if wanted.status:
        conditions.append(_choice("status", wanted.status, JOB_STATUSES))
    if wanted.tag:
        conditions.append(JOB.c.tags.contains(f",{wanted.tag},", autoescape=True))
    if wanted.schedule_type:
        conditions.append(JOB.c.schedule_type == wanted.schedule_type)
    if wanted.last_result:
        conditions.append(_has_last_result(wanted.last_result))
    return conditions


def _has_last_result(wanted: str) -> Any:
    if wanted == NEVER_RAN:
        return sa.and_(JOB.c.last_status.is_(None), JOB.c.runs_skipped == 0)
    ended_so = JOB.c.last_status == wanted
    if wanted != Status.SKIPPED:
        return ended_so
    # Slots that were skipped since then, or before anything ran.
    never_ran = sa.and_(JOB.c.last_status.is_(None), JOB.c.runs_skipped > 0)
    return sa.or_(ended_so, JOB.c.skipped_in_a_row > 0, never_ran)


def jobs_with_next_slot(session: Session) -> Iterator[Any]:
    """What a schedule is made of, of every enabled job that has a next slot, a few hundred at a time."""
    columns = [JOB.c[name] for name in ON_SCHEDULE]
    query = sa.select(*columns).where(ENABLED, JOB.c.next_run_time.is_not(None)).order_by(JOB.c.id)
    last = 0
    while rows := session.execute(query.where(JOB.c.id > last).limit(500)).all():
        yield from rows
        last = rows[-1].id


def job_ids(session: Session) -> Sequence[int]:
    """The ids of all jobs, of deleted ones too."""
    return session.scalars(sa.select(JOB.c.id)).all()


def uncounted_jobs(session: Session) -> int:
    """How many jobs have failed attempts that are not counted into chains yet, as those from before an upgrade."""
    # A job that was inserted in SQL waits as well, and has nothing that could be counted wrongly until it fails.
    failed = JOB.c.runs_failed + JOB.c.runs_timeout > 0
    waiting = sa.select(sa.func.count()).where(JOB.c.chains_counted == sa.false(), failed)
    return session.scalar(waiting) or 0


def parents(session: Session, job_ids: Collection[int]) -> dict[int, list[int]]:
    """The ids of the jobs that each of some jobs depends on."""
    edges = session.execute(
        sa.select(CronJobDependency.cron_job, CronJobDependency.parent)
        .where(CronJobDependency.cron_job.in_(list(job_ids)))
        .order_by(CronJobDependency.parent)
    )
    found: dict[int, list[int]] = {job_id: [] for job_id in job_ids}
    for job_id, parent in edges:
        found[job_id].append(parent)
    return found


def children(session: Session, job_id: int) -> Sequence[CronJob]:
    """The jobs that depend on a job, by name."""
    return session.scalars(
        sa.select(CronJob)
        .join(CronJobDependency, CronJobDependency.cron_job == CronJob.id)
        .where(CronJobDependency.parent == job_id, CronJob.deleted_id == 0)
        .order_by(CronJob.name)
    ).all()


def tags(session: Session) -> list[str]:
    """Every tag in use, sorted."""
    texts = session.scalars(sa.select(JOB.c.tags).where(JOB.c.deleted_id == 0, JOB.c.tags != "").distinct())
    return sorted({tag for text in texts for tag in text.split(",") if tag})


# -- executions ----------------------------------------------------------------------------------------------


class ExecutionRow(NamedTuple):
    """An execution with its job's name."""

    execution: CronJobExecution
    job_name: str


@dataclass(frozen=True, slots=True)
class ExecutionDetail:
    """An execution with all it left, and every attempt of its chain, itself included, in their order."""

    execution: CronJobExecution
    job: CronJob | None
    attempts: Sequence[CronJobExecution]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionFilter:
    """Which executions; None and empty leave a condition out."""

    job: int | None = None
    statuses: Sequence[str] = ()
    slot_from: datetime | None = None
    """Scheduled at that instant or later."""
    slot_to: datetime | None = None
    """Scheduled before that instant."""
    origin: str | None = None
    worker: str | None = None
    version: int | None = None
    text: str | None = None
    """Part of the output or the error."""


NEWEST_FIRST = Order("newest", (Key(RUN.c.id, True),))
LATEST_SLOT_FIRST = Order("latest slot", (Key(RUN.c.scheduled_time, True), Key(RUN.c.id, True)))
# As the index has them: without the tag between the two, MariaDB sorts all failures there are.
LATEST_DUE_FIRST = Order(
    "latest due", (Key(RUN.c.due_time, True, filled=True), Key(RUN.c.worker_tag, True), Key(RUN.c.id, True))
)
NEXT_TO_START_FIRST = Order("next to start", (Key(RUN.c.due_time), Key(RUN.c.id)))


def executions(
    session: Session, wanted: ExecutionFilter | None = None, *, cursor: str | None = None, limit: int = 50
) -> Page[ExecutionRow]:
    """Executions, newest first; where slots or statuses are asked for, those of the latest slots first.

    `origin`, `worker`, `version` and `text` have no index: a page looks through a bounded number of rows for
    them. It may be short or even empty and still have a `next` to go on with. Raises Invalid for `cursor` and `to`.
    """
    wanted = wanted or ExecutionFilter()
    _require_range(wanted.slot_from, wanted.slot_to)
    order, statuses = _execution_order(wanted)
    parts, scanned = _execution_parts(session, wanted, statuses), _scanned_conditions(wanted)
    if not scanned and not wanted.text:
        return _execution_page(session, order, parts, cursor, limit)
    reach = (SCANNED_FOR_TEXT if wanted.text else SCANNED) // len(parts)
    window = order.sorted(_united(order, parts, cursor, reach)).limit(reach)
    matches = _matches(window, scanned, wanted.text)
    ids = list(session.scalars(order.page(matches, None, limit)))
    page = order.cut(_execution_rows(session, ids), limit, _execution_of)
    if page.next is not None:
        return page
    end = session.scalar(window.offset(reach - 1).limit(1))
    return page if end is None else Page(page.items, _cursor_at(session, order, end))


def _execution_order(wanted: ExecutionFilter) -> tuple[Order, Sequence[str]]:
    """The order for which there is an index, and the statuses to ask it for."""
    by_time = wanted.slot_from is not None or wanted.slot_to is not None
    if wanted.job is not None:
        return LATEST_SLOT_FIRST if by_time else NEWEST_FIRST, wanted.statuses
    if not by_time and not wanted.statuses:
        return NEWEST_FIRST, ()
    # The index over slots begins with the status.
    return LATEST_SLOT_FIRST, wanted.statuses or list(Status)


def running(session: Session, *, cursor: str | None = None, limit: int = 50) -> Page[ExecutionRow]:
    """What runs now, the latest start first: also the locks, for a run holds its lease in its own row."""
    return _execution_page(session, NEWEST_FIRST, [[RUNNING]], cursor, limit)


def stale_locks(
    session: Session, now: datetime, *, cursor: str | None = None, limit: int = 50
) -> Page[ExecutionRow]:
    """Running executions whose lease has ended: their worker vanished, and nobody has noticed yet."""
    return _execution_page(session, NEWEST_FIRST, [[lease_ended(now), RUNNING]], cursor, limit)


def pending(session: Session, *, cursor: str | None = None, limit: int = 50) -> Page[ExecutionRow]:
    """What waits: by the time it is due, then what waits for something else (`waiting_for`)."""
    return _execution_page(session, NEXT_TO_START_FIRST, [[PENDING]], cursor, limit)


def failed(
    session: Session, since: datetime, *, cursor: str | None = None, limit: int = 50
) -> Page[ExecutionRow]:
    """Runs due since then that failed, timed out or were lost, the latest first."""
    parts = [[RUN.c.due_time >= since, _has_status(one)] for one in sorted(UNSUCCESSFUL)]
    return _execution_page(session, LATEST_DUE_FIRST, parts, cursor, limit)


NEXT: Any = RUN.alias("next")
FOLLOWED = sa.exists().where(
    NEXT.c.cron_job == RUN.c.cron_job,
    NEXT.c.scheduled_time == RUN.c.scheduled_time,
    NEXT.c.rerun == RUN.c.rerun,
    NEXT.c.retry_count == RUN.c.retry_count + 1,
)
"""Another attempt of the same chain came after this one."""


def failed_chains(session: Session, since: datetime, *, limit: int) -> list[ExecutionRow]:
    """Of the `limit` latest of `failed` those that no other attempt followed: the last of their chains."""
    rows = failed(session, since, limit=limit).items
    ids = [row.execution.id for row in rows]
    last = {*session.scalars(sa.select(RUN.c.id).where(RUN.c.id.in_(ids), sa.not_(FOLLOWED)))}
    return [row for row in rows if row.execution.id in last]


def execution(session: Session, execution_id: int) -> ExecutionDetail:
    """One execution with its stack trace, result and chain; its output is read with `read_log`. Raises NotFound."""
    found = session.scalar(
        sa.select(CronJobExecution)
        .where(CronJobExecution.id == _known_id(execution_id))
        .options(undefer(CronJobExecution.stack_trace), undefer(CronJobExecution.result))
        .execution_options(populate_existing=True)
    )
    if found is None:
        raise NotFound(f"Execution {execution_id} does not exist")
    attempts = session.scalars(
        sa.select(CronJobExecution)
        .where(
            CronJobExecution.cron_job == found.cron_job,
            CronJobExecution.scheduled_time == found.scheduled_time,
            CronJobExecution.rerun == found.rerun,
        )
        .order_by(CronJobExecution.retry_count)
    ).all()
    return ExecutionDetail(found, session.get(CronJob, found.cron_job), attempts)


def last_success_before(session: Session, run: CronJobExecution) -> CronJobExecution | None:
    """The last run of the same job that completed and came into being before `run`."""
    return session.scalar(
        sa.select(CronJobExecution)
        .where(
            CronJobExecution.cron_job == run.cron_job,
            CronJobExecution.status == Status.COMPLETED,
            CronJobExecution.id < run.id,
        )
        .order_by(CronJobExecution.id.desc())
        .limit(1)
    )


def status(session: Session, execution_id: int) -> str:
    """The state of an execution, and nothing else of it. Raises NotFound."""
    found = session.scalar(sa.select(RUN.c.status).where(RUN.c.id == _known_id(execution_id)))
    if found is None:
        raise NotFound(f"Execution {execution_id} does not exist")
    return str(found)


Part = list[Any]
"""Conditions that one index serves. No row meets those of two parts of a list."""


def _execution_parts(session: Session, wanted: ExecutionFilter, statuses: Sequence[str]) -> list[Part]:
    """The parts of a list whose order has an index only within one status."""
    job = None if wanted.job is None else _known_id(wanted.job)
    common = _given((RUN.c.cron_job, eq, job), (RUN.c.scheduled_time, lt, wanted.slot_to))
    conditions = common + _given((RUN.c.scheduled_time, ge, wanted.slot_from))
    parts = [[*conditions, _has_status(one)] for one in dict.fromkeys(statuses)] or [conditions]
    if wanted.slot_from is not None and (not statuses or Status.SKIPPED in statuses):
        # Rows of many missed slots that begin before and reach into what is asked for. Few rows have `slots_until`:
        # by any other index SQLite walks all that was skipped before.
        only = dialects.of(session).without_index
        parts.append(
            [
                *_given((only(RUN.c.cron_job), eq, wanted.job), (RUN.c.scheduled_time, lt, wanted.slot_to)),
                RUN.c.slots_until >= wanted.slot_from,
                RUN.c.scheduled_time < wanted.slot_from,
                only(RUN.c.status) == Status.SKIPPED,
            ]
        )
    return parts


def _scanned_conditions(wanted: ExecutionFilter) -> list[Any]:
    """Conditions that take looking at rows."""
    return _given(
        (RUN.c.origin, eq, wanted.origin),
        (RUN.c.locked_by, eq, wanted.worker),
        (RUN.c.version, eq, None if wanted.version is None else min(wanted.version, LARGEST_VERSION)),
    )


def _execution_page(
    session: Session,
    order: Order,
    parts: Sequence[Part],
    cursor: str | None,
    limit: int,
) -> Page[ExecutionRow]:
    query = order.page(_united(order, parts, cursor, limit + 1), None, limit)
    return order.cut(_execution_rows(session, list(session.scalars(query))), limit, _execution_of)


def _matches(window: Any, conditions: list[Any], text: str | None) -> Any:
    """Ids within `window` that meet conditions and have `text` in their error or output."""
    within = window.subquery("within")
    matches = sa.select(RUN.c.id).join(within, within.c.id == RUN.c.id).where(*conditions)
    if not text:
        return matches
    own = sa.or_(
        Searched(RUN.c.error).icontains(text, autoescape=True),
        Searched(RUN.c.output).icontains(text, autoescape=True),
    )
    # Joined from the window on, so that no plan begins with all the output there is.
    pieces = matches.join(OUTPUT, OUTPUT.c.execution == RUN.c.id).where(
        Searched(OUTPUT.c.text).icontains(text, autoescape=True)
    )
    found = sa.union(matches.where(own), pieces).subquery("found")
    return sa.select(RUN.c.id).join(found, found.c.id == RUN.c.id)


def _cursor_at(session: Session, order: Order, execution_id: int) -> str:
    (row,) = _execution_rows(session, [execution_id])
    return order.cursor(row.execution)


def _united(order: Order, parts: Sequence[Part], cursor: str | None, most: int) -> Any:
    """Ids of the rows of all parts: of several the first `most` of each, so that an index orders them."""
    selects = [sa.select(RUN.c.id).where(*part, *order.after(cursor)) for part in parts]
    if len(selects) == 1:
        return selects[0]
    firsts = [order.sorted(select).limit(most).subquery() for select in selects]
    united = sa.union_all(*(sa.select(first.c.id) for first in firsts)).subquery()
    return sa.select(RUN.c.id).join(united, united.c.id == RUN.c.id)


def _has_status(status: str) -> Any:
    return {Status.PENDING: PENDING, Status.RUNNING: RUNNING}.get(Status(status), RUN.c.status == status)


def _execution_rows(session: Session, ids: list[int]) -> list[ExecutionRow]:
    """Executions in the order of `ids`, with their jobs' names."""
    if not ids:
        return []
    query = (
        sa.select(CronJobExecution, CronJob.name)
        .join(CronJob, CronJob.id == CronJobExecution.cron_job, isouter=True)
        .where(CronJobExecution.id.in_(ids))
        .execution_options(populate_existing=True)
    )
    rows = {row.id: ExecutionRow(row, name or "") for row, name in session.execute(query)}
    return [rows[execution_id] for execution_id in ids if execution_id in rows]


def _execution_of(row: ExecutionRow) -> CronJobExecution:
    return row.execution


# -- versions ------------------------------------------------------------------------------------------------


NEWEST_VERSION_FIRST = Order("versions", (Key(KyteCronJobVersion.__table__.c.version_number, True),))


def versions(
    session: Session, job_id: int, *, cursor: str | None = None, limit: int = 50
) -> Page[KyteCronJobVersion]:
    """The versions of a job's code, newest first. Raises Invalid for `cursor`."""
    mine = sa.select(KyteCronJobVersion).where(KyteCronJobVersion.cron_job == job_id)
    return NEWEST_VERSION_FIRST.cut(
        list(session.scalars(NEWEST_VERSION_FIRST.page(mine, cursor, limit))), limit
    )


# -- logs ----------------------------------------------------------------------------------------------------


class LogPart(NamedTuple):
    """A piece of a log, where the next piece begins, and whether this was the last one."""

    text: str
    cursor: str
    finished: bool


_START = "0"
_END = "end"
_TAIL_NOTE = "\n[... the run has ended; the end of its output, as it is kept, follows ...]\n"


def read_log(session: Session, execution_id: int, after: str | None = None) -> LogPart:
    """What an execution printed from `after` on, at most about LOG_CHARACTERS; `after` is a cursor from before.

    Following a run, ask again with the cursor of the last answer until `finished`; an empty text means that
    nothing new was printed. What was printed after the kept first half of a very long output is shown as it
    comes, and once more, after a line that says so, in the form in which it is kept.

    The pieces are plain parts of one text: a line, an escape sequence, even `\\r\\n` may be cut between two of them
    (core.ansi.advance shows them as if they were not).

    Raises NotFound, and Invalid for `after`.
    """
    found = read_log_pieces(session, execution_id, after)
    return LogPart("".join(text for _, text in found.pieces), found.cursor, found.finished)


class LogPieces(NamedTuple):
    """A LogPart whose text is still in the pieces that are stored, each with the cursor at which it begins."""

    pieces: list[tuple[str, str]]
    cursor: str
    finished: bool


def read_log_pieces(session: Session, execution_id: int, after: str | None = None) -> LogPieces:
    """`read_log`, for whoever has to come back to a place inside."""
    seq, saw_tail, at_end = _log_place(after)
    # The state first: what is read after an ending was seen is complete.
    ended = status(session, execution_id) in FINAL
    if at_end:
        return LogPieces([], _END, ended)
    stored = _log_pieces(session, execution_id, seq)
    pieces: list[tuple[str, str]] = []
    for piece in stored:
        note = _TAIL_NOTE if saw_tail and not piece.is_tail else ""
        pieces.append((_cursor(piece.seq, saw_tail), note + piece.text))
        saw_tail = piece.is_tail
        seq = piece.seq + 1
    if pieces or not ended:
        return LogPieces(pieces, _cursor(seq, saw_tail), False)
    rest = session.scalar(sa.select(RUN.c.output).where(RUN.c.id == execution_id)) or ""
    note = _TAIL_NOTE if saw_tail and rest else ""
    return LogPieces([(_cursor(seq, saw_tail), note + rest)] if rest else [], _END, True)


def _cursor(seq: int, saw_tail: bool) -> str:
    return f"{seq}t" if saw_tail else str(seq)


def _log_place(after: str | None) -> tuple[int, bool, bool]:
    """The number of the next piece, whether the last one was of the live tail, whether all has been read."""
    text = after or _START
    if text == _END:
        return 0, False, True
    number = text.removesuffix("t")
    if not (number.isascii() and number.isdigit() and len(number) <= 9):
        raise Invalid(
            {"after": "after must be the cursor of an earlier answer, or empty to read from the start"}
        )
    return int(number), text.endswith("t"), False


def _log_pieces(session: Session, execution_id: int, first: int) -> list[Any]:
    """The next pieces: as many as make about LOG_CHARACTERS. They may be tiny and very many, or large."""
    here = (OUTPUT.c.execution == execution_id, OUTPUT.c.seq >= first)
    sizes = session.execute(
        sa.select(OUTPUT.c.seq, sa.func.length(OUTPUT.c.text)).where(*here).order_by(OUTPUT.c.seq).limit(2000)
    )
    total, last = 0, None
    for seq, size in sizes:
        if last is not None and total + size > LOG_CHARACTERS:
            break
        total, last = total + size, seq
    if last is None:
        return []
    query = sa.select(OUTPUT).where(*here, OUTPUT.c.seq <= last).order_by(OUTPUT.c.seq)
    return list(session.execute(query))


# -- versions ------------------------------------------------------------------------------------------------


def sharing(session: Session, hashes: Collection[str]) -> dict[str, int]:
    """How many versions, of any job, share each of these contents."""
    content = KyteCronJobVersionContent
    rows = session.execute(
        sa.select(content.content_hash, content.reference_count).where(content.content_hash.in_(set(hashes)))
    )
    return {row.content_hash: row.reference_count for row in rows}


# -- workers and audit ---------------------------------------------------------------------------------------


def workers(session: Session, since: datetime | None = None) -> Sequence[CronWorkerRecord]:
    """Workers that reported since then (all: None), those that run first, then the last seen."""
    query = sa.select(CronWorkerRecord)
    if since is not None:
        query = query.where(CronWorkerRecord.last_seen_at >= since)
    stopped = CronWorkerRecord.stopped_at.is_not(None)
    query = query.order_by(stopped, CronWorkerRecord.last_seen_at.desc())
    return session.scalars(query.execution_options(populate_existing=True)).all()


def unended_workers(session: Session) -> Sequence[CronWorkerRecord]:
    """Workers of which no end is known, the last seen first."""
    query = sa.select(CronWorkerRecord).where(
        CronWorkerRecord.stopped_at.is_(None), CronWorkerRecord.gone_at.is_(None)
    )
    return session.scalars(
        query.order_by(CronWorkerRecord.last_seen_at.desc()).execution_options(populate_existing=True)
    ).all()


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Which changes; None leaves a condition out."""

    actor: str | None = None
    action: str | None = None
    source: str | None = None
    subject_type: str | None = None
    subject_id: str | None = None
    at_from: datetime | None = None
    at_to: datetime | None = None


NEWEST_CHANGE_FIRST = Order("audit", (Key(CronAudit.__table__.c.id, True),))
USERS_BY_NAME = Order("users", (Key(CronUser.username),))
NEWEST_TOKEN_FIRST = Order("tokens", (Key(CronToken.id, descending=True),))
SECRETS_BY_NAME = Order("secrets", (Key(CronSecret.name),))


def audit_log(
    session: Session, wanted: AuditFilter | None = None, *, cursor: str | None = None, limit: int = 50
) -> Page[CronAudit]:
    """Who changed what, newest first. Raises Invalid for `cursor`."""
    wanted = wanted or AuditFilter()
    _require_range(wanted.at_from, wanted.at_to)
    conditions = _given(
        (CronAudit.actor, eq, wanted.actor),
        (CronAudit.action, eq, wanted.action),
        (CronAudit.source, eq, wanted.source),
        (CronAudit.subject_type, eq, wanted.subject_type),
        (CronAudit.subject_id, eq, wanted.subject_id),
        (CronAudit.at, ge, wanted.at_from),
        (CronAudit.at, lt, wanted.at_to),
    )
    query = NEWEST_CHANGE_FIRST.page(sa.select(CronAudit).where(*conditions), cursor, limit)
    return NEWEST_CHANGE_FIRST.cut(list(session.scalars(query)), limit)


# -- people --------------------------------------------------------------------------------------------------


def users(session: Session, *, cursor: str | None = None, limit: int = 50) -> Page[CronUser]:
    """Who may sign in, by name. Raises Invalid for `cursor`."""
    query = USERS_BY_NAME.page(sa.select(CronUser), cursor, limit)
    return USERS_BY_NAME.cut(list(session.scalars(query)), limit)


def tokens(session: Session, *, cursor: str | None = None, limit: int = 50) -> Page[CronToken]:
    """API tokens, revoked and expired ones too, the newest first. Raises Invalid for `cursor`."""
    query = NEWEST_TOKEN_FIRST.page(sa.select(CronToken).where(CronToken.kind == "api"), cursor, limit)
    return NEWEST_TOKEN_FIRST.cut(list(session.scalars(query)), limit)


def secrets(session: Session, *, cursor: str | None = None, limit: int = 50) -> Page[CronSecret]:
    """Secrets by name, without their values. Raises Invalid for `cursor`."""
    query = SECRETS_BY_NAME.page(sa.select(CronSecret), cursor, limit)
    return SECRETS_BY_NAME.cut(list(session.scalars(query)), limit)


# -- helpers -------------------------------------------------------------------------------------------------


def _given(*comparisons: tuple[Any, Callable[[Any, Any], Any], Any]) -> list[Any]:
    """Conditions made of those comparisons whose value is given."""
    return [compare(column, value) for column, compare, value in comparisons if value not in (None, "")]


def _require_range(begin: datetime | None, end: datetime | None) -> None:
    if begin is not None and end is not None and end < begin:
        raise Invalid({"to": "to must not be earlier than from"})


def _known_id(number: int) -> int:
    """`number`, or an id that nothing has where a database could not even hold it."""
    return number if 0 < number <= LARGEST else 0


def _choice(field: str, value: str, choices: dict[str, Any]) -> Any:
    if value not in choices:
        raise Invalid({field: f"Invalid {field}. Must be one of: {', '.join(choices)}"})
    return choices[value]

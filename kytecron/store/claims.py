"""Every statement that moves an execution, a lease or a job's next slot. Nothing else writes these columns.

Each is guarded: the expected old state stands in the WHERE, and the caller learns how many rows it hit.
Locks are always taken in one order, so that two transactions cannot wait for each other: jobs by id, then
executions by id. A claim takes executions only.

What runs for every execution is built once, with bound parameters: building a statement anew costs SQLAlchemy more
than the database needs to execute it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.mysql import insert as mysql_insert
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.orm import Session
from sqlalchemy.sql.expression import UnaryExpression
from sqlalchemy.sql.operators import custom_op

from ..core.states import Claim, Status
from . import db
from .models import (
    ENABLED,
    CronJob,
    CronJobDependency,
    CronJobExecution,
    CronJobOutput,
    CronJobSecret,
    KyteCronJobVersion,
)

JOB: Any = CronJob.__table__
RUN: Any = CronJobExecution.__table__
OUTPUT: Any = CronJobOutput.__table__
VERSION: Any = KyteCronJobVersion.__table__
EARLIER: Any = RUN.alias("earlier")
HELD: Any = RUN.alias("held")
DEPENDENCY: Any = CronJobDependency.__table__
SECRET: Any = CronJobSecret.__table__

PRIORITY_HANDICAP = timedelta(seconds=30)
"""A run of priority p starts as if it had become due (9 - p) times this later: in the end age wins."""

Row = Any
IDS: Any = sa.bindparam("ids", expanding=True)


def _execute(session: Session, statement: Any, parameters: Any = None) -> Any:
    return session.connection().execute(statement, parameters)


def queue_time(due_time: datetime, priority: int) -> datetime:
    """The instant that orders due runs: see PRIORITY_HANDICAP."""
    return due_time + (9 - max(0, min(9, priority))) * PRIORITY_HANDICAP


# -- jobs ---------------------------------------------------------------------------------------------------


def lock_due_jobs(session: Session, now: datetime, limit: int) -> Sequence[Row]:
    """Lock and return enabled jobs whose next slot is due, oldest first; rows another worker holds are passed over."""
    query = (
        sa.select(JOB)
        .where(ENABLED, JOB.c.next_run_time <= now)
        .order_by(JOB.c.next_run_time)
        .limit(limit)
        # Without SKIP LOCKED a second worker waits here for the first one's short transaction: slower, never wrong.
        .with_for_update(skip_locked=db.supports_skip_locked(session))
    )
    return session.execute(query).all()


_LOCK_JOBS = sa.select(JOB).where(JOB.c.id.in_(IDS)).order_by(JOB.c.id).with_for_update()
_LOCK_FREE_JOBS = _LOCK_JOBS.with_for_update(skip_locked=True)


def lock_jobs(session: Session, job_ids: Iterable[int]) -> dict[int, Row]:
    """Lock jobs in the order of their ids and return them by id."""
    ids = sorted(set(job_ids))
    return {row.id: row for row in _execute(session, _LOCK_JOBS, {"ids": ids})} if ids else {}


def lock_free_jobs(session: Session, job_ids: Iterable[int]) -> tuple[dict[int, Row], set[int]]:
    """Lock those jobs that nobody has locked; returns them by id, and the ids of those that somebody has.

    For work that can as well be done a second later. Databases without SKIP LOCKED wait for all of them.
    """
    ids = sorted(set(job_ids))
    if not ids:
        return {}, set()
    query = _LOCK_FREE_JOBS if db.supports_skip_locked(session) else _LOCK_JOBS
    jobs = {row.id: row for row in _execute(session, query, {"ids": ids})}
    missing = [job_id for job_id in ids if job_id not in jobs]
    taken = set(session.scalars(sa.select(JOB.c.id).where(JOB.c.id.in_(missing)))) if missing else set()
    return jobs, taken


def move_next_run_times(session: Session, now: datetime, next_times: Mapping[int, datetime | None]) -> int:
    """Give due jobs their next slots, in one statement; returns how many rows were still due."""
    known = {job_id: when for job_id, when in next_times.items() if when is not None}
    value: Any = None
    if known:
        value = sa.type_coerce(sa.case(known, value=JOB.c.id, else_=None), JOB.c.next_run_time.type)
    return _count(
        session,
        sa.update(JOB)
        .where(JOB.c.id.in_(list(next_times)), ENABLED, JOB.c.next_run_time <= now)
        .values(next_run_time=value),
    )


def update_job(session: Session, job_id: int, values: Mapping[str, Any]) -> int:
    """Write columns of a job whose row the caller has locked."""
    return _count(session, sa.update(JOB).where(JOB.c.id == job_id).values(**values))


AFTER_ENDING = (
    "enabled",
    "disabled_reason",
    "next_run_time",
    "in_dead_letter_queue",
    "dead_letter_reason",
    "dead_letter_since",
    "consecutive_failures",
    "failing_since",
    "runs_total",
    "runs_completed",
    "runs_failed",
    "runs_timeout",
    "duration_total_ms",
    "recent_results",
    "last_execution",
    "last_status",
    "last_run_at",
    "last_success_at",
    "last_success_version",
)
"""The columns of a job that an ending may change."""
_UPDATE_JOBS = (
    sa.update(JOB)
    .where(JOB.c.id == sa.bindparam("job_id"))
    .values({name: sa.bindparam(name) for name in AFTER_ENDING})
)


def update_jobs(session: Session, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the AFTER_ENDING columns of locked jobs; each row has them all, and `job_id`."""
    if rows:
        _execute(session, _UPDATE_JOBS, list(rows))


def jobs_without_slot(session: Session, limit: int) -> Sequence[Row]:
    """Lock enabled jobs whose next slot nobody has computed yet, such as rows inserted by hand."""
    query = (
        sa.select(JOB)
        .where(ENABLED, JOB.c.next_run_time.is_(None), JOB.c.schedule_type != "manual")
        .limit(limit)
        .with_for_update(skip_locked=db.supports_skip_locked(session))
    )
    return session.execute(query).all()


# -- executions: coming into being ---------------------------------------------------------------------------


def new_run(**values: Any) -> dict[str, Any]:
    """A row for CronJobExecution with every column that inserts write: rows inserted together need the same keys."""
    row: dict[str, Any] = {
        "status": Status.PENDING,
        "rerun": 0,
        "retry_count": 0,
        "is_retry": False,
        "parent_execution": None,
        "queue_time": None,
        "waiting_for": None,
        "waiting_until": None,
        "parents_used": None,
        "requested_version": None,
        "parameters": None,
        "note": None,
        "triggered_by": None,
        "skipped_reason": None,
        "completed_at": None,
    }
    return row | values


def insert_slots(session: Session, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert executions; a slot that is in the ledger already stays as it is (the unique key decides)."""
    if rows:
        _execute(session, _insert_or_keep(RUN, session.get_bind().dialect.name), list(rows))


@lru_cache(maxsize=8)
def _insert_or_keep(table: Any, dialect: str) -> Any:
    # INSERT IGNORE would also swallow values that do not fit, so each database is told to ignore duplicates alone.
    if dialect in db.MYSQL_DIALECTS:
        key = next(iter(table.primary_key))
        return mysql_insert(table).on_duplicate_key_update({key.name: key})
    insert = sqlite_insert if dialect == "sqlite" else postgres_insert
    return insert(table).on_conflict_do_nothing()


def insert_run(session: Session, row: Mapping[str, Any]) -> int:
    """Insert one execution and return its id. Raises IntegrityError where the slot is taken."""
    result = session.execute(sa.insert(RUN).values(**row))
    return int(result.inserted_primary_key[0])  # type: ignore[attr-defined]


_ACTIVE_RUNS = (
    sa.select(
        RUN.c.id,
        RUN.c.cron_job,
        RUN.c.status,
        RUN.c.due_time,
        RUN.c.origin,
        RUN.c.scheduled_time,
        RUN.c.rerun,
        RUN.c.retry_count,
        RUN.c.waiting_for,
        RUN.c.waiting_until,
        RUN.c.priority,
    )
    .where(RUN.c.cron_job.in_(IDS), RUN.c.status.in_([Status.PENDING, Status.RUNNING]))
    .order_by(RUN.c.id)
)


def active_runs(session: Session, job_ids: Collection[int]) -> list[Row]:
    """Pending and running executions of some jobs, oldest first."""
    return list(_execute(session, _ACTIVE_RUNS, {"ids": list(job_ids)})) if job_ids else []


def held_job_ids(session: Session) -> list[int]:
    """Jobs with a run that waits for something other than time."""
    query = (
        sa.select(RUN.c.cron_job).where(RUN.c.status == Status.PENDING, RUN.c.due_time.is_(None)).distinct()
    )
    return list(session.scalars(query))


def release(
    session: Session, execution_id: int, due: datetime, priority: int, parents: list[int] | None
) -> int:
    """Let a held run start at `due`."""
    values: dict[str, Any] = {
        "due_time": due,
        "queue_time": queue_time(due, priority),
        "waiting_for": None,
        "waiting_until": None,
    }
    if parents is not None:
        values["parents_used"] = parents
    return _count(session, _held(execution_id).values(**values))


def still_waits_for(session: Session, execution_id: int, reason: str) -> int:
    """Say what a held run waits for now."""
    return _count(session, _held(execution_id).values(waiting_for=reason[:500]))


def _held(execution_id: int) -> Any:
    return sa.update(RUN).where(
        RUN.c.id == execution_id, RUN.c.status == Status.PENDING, RUN.c.due_time.is_(None)
    )


def make_due(session: Session, execution_id: int, now: datetime, priority: int) -> int:
    """Skip the delay of a pending run."""
    return _count(
        session,
        sa.update(RUN)
        .where(RUN.c.id == execution_id, RUN.c.status == Status.PENDING, RUN.c.due_time.is_not(None))
        .values(due_time=now, queue_time=queue_time(now, priority)),
    )


def reassign_pending(session: Session, job_id: int, priority: int, worker_tag: str) -> None:
    """Give a locked job's pending runs another priority and worker tag; those that are due move in the queue."""
    mine = (RUN.c.cron_job == job_id, RUN.c.status == Status.PENDING)
    waiting = session.execute(sa.select(RUN.c.id, RUN.c.due_time).where(*mine).order_by(RUN.c.id)).all()
    for run in waiting:
        place = None if run.due_time is None else queue_time(run.due_time, priority)
        values = {"priority": priority, "worker_tag": worker_tag, "queue_time": place}
        _count(session, sa.update(RUN).where(RUN.c.id == run.id, *mine).values(**values))


# -- executions: held by a worker ----------------------------------------------------------------------------


_START = (
    sa.update(RUN)
    .where(RUN.c.id.in_(IDS), RUN.c.status == Status.PENDING)
    .values(
        status=Status.RUNNING,
        locked_by=sa.bindparam("holder"),
        locked_at=sa.bindparam("at"),
        locked_until=sa.bindparam("until"),
        started_at=sa.bindparam("at"),
        version=sa.bindparam("run_version"),
    )
)


def take(
    session: Session, worker_id: str, tags: Collection[str], limit: int, now: datetime, until: datetime
) -> list[Row]:
    """Move up to `limit` due runs to `running` under a lease for `worker_id`; returns them with their jobs."""
    ids = _lock_due(session, tags, limit, now)
    if not ids:
        return []
    runs = list(_execute(session, _CLAIMED_RUNS, {"ids": ids}))
    by_version: dict[int | None, list[int]] = defaultdict(list)
    for run in runs:
        by_version[run.run_version].append(run.id)
    lease = {"holder": worker_id, "at": now, "until": until}
    for version, of_version in by_version.items():
        _execute(session, _START, {"ids": of_version, "run_version": version, **lease})
    return runs


@lru_cache(maxsize=4)
def _due_runs(dialect: str, skip_locked: bool) -> Any:
    due_time = RUN.c.due_time
    if dialect == "sqlite":
        # A plus sign keeps SQLite from the index of due times, which would have it sort the whole backlog.
        due_time = UnaryExpression(due_time, operator=custom_op("+"), type_=due_time.type)
    return (
        sa.select(RUN.c.id)
        .with_hint(RUN, "FORCE INDEX (ix_CronJobExecution_queue)", "mysql")
        .with_hint(RUN, "FORCE INDEX (ix_CronJobExecution_queue)", "mariadb")
        .where(
            RUN.c.status == Status.PENDING,
            RUN.c.worker_tag == sa.bindparam("tag"),
            due_time <= sa.bindparam("now"),
        )
        .order_by(RUN.c.queue_time)
        .limit(sa.bindparam("most"))
        .with_for_update(skip_locked=skip_locked)
    )


def _lock_due(session: Session, tags: Collection[str], limit: int, now: datetime) -> list[int]:
    """Ids of due runs, locked. Runs that another worker has locked do not count against the limit.

    Without SKIP LOCKED (MySQL 5.7, MariaDB before 10.6) a second worker waits here for the first one's short
    transaction, and at READ COMMITTED then sees what that one left.
    One query per tag: a query over several tags would sort, and a sorting one locks every due row it reads.
    """
    query = _due_runs(session.get_bind().dialect.name, db.supports_skip_locked(session))
    ids: list[int] = []
    for tag in _tags_by_urgency(session, tags, now):
        ids += _execute(session, query, {"tag": tag, "now": now, "most": limit - len(ids)}).scalars()
        if len(ids) >= limit:
            break
    return ids


def _tags_by_urgency(session: Session, tags: Collection[str], now: datetime) -> list[str]:
    wanted = ["", *sorted(tags)]
    if len(wanted) == 1:
        return wanted
    heads = {
        tag: session.scalar(
            sa.select(sa.func.min(RUN.c.queue_time)).where(
                RUN.c.status == Status.PENDING, RUN.c.worker_tag == tag, RUN.c.due_time <= now
            )
        )
        for tag in wanted
    }
    found = [(head, tag) for tag, head in heads.items() if head is not None]
    return [tag for _, tag in sorted(found)]


_WITH_JOB = sa.select(
    RUN.c.id,
    RUN.c.cron_job,
    RUN.c.scheduled_time,
    RUN.c.retry_count,
    RUN.c.due_time,
    RUN.c.parent_execution,
    RUN.c.parameters,
    sa.func.coalesce(RUN.c.requested_version, JOB.c.current_version).label("run_version"),
    VERSION.c.content_hash,
    JOB.c.name,
    JOB.c.timeout_seconds,
    JOB.c.memory_limit_mb,
    JOB.c.cpu_limit_seconds,
    JOB.c.on_lost_contact,
    JOB.c.parameters.label("job_parameters"),
    JOB.c.state,
    EARLIER.c.status.label("previous_status"),
    sa.exists().where(SECRET.c.cron_job == RUN.c.cron_job).label("has_secrets"),
).select_from(
    RUN.outerjoin(JOB, RUN.c.cron_job == JOB.c.id)
    .outerjoin(EARLIER, RUN.c.parent_execution == EARLIER.c.id)
    .outerjoin(
        VERSION,
        sa.and_(
            VERSION.c.cron_job == RUN.c.cron_job,
            VERSION.c.version_number == sa.func.coalesce(RUN.c.requested_version, JOB.c.current_version),
        ),
    )
)
"""What a worker needs to know to start a run."""
_CLAIMED_RUNS = _WITH_JOB.where(RUN.c.id.in_(IDS)).order_by(RUN.c.queue_time)
_RUNS_HELD_BY = _WITH_JOB.where(RUN.c.status == Status.RUNNING, RUN.c.locked_by == sa.bindparam("holder"))


def runs_held_by(session: Session, worker_id: str) -> list[Row]:
    """Running executions that carry this worker's name: what a lost COMMIT reply may have left."""
    return list(_execute(session, _RUNS_HELD_BY, {"holder": worker_id}))


def extend(
    session: Session,
    worker_id: str,
    ids: Collection[int],
    revivable: Collection[int],
    now: datetime,
    until: datetime,
) -> tuple[dict[int, str | None], set[int]]:
    """Renew leases; returns what is still held, each with the reason to cancel it, if any.

    And the ids of those that are held and could not be renewed, because somebody has locked their rows: the others
    do not wait for them. A lease that ended is never renewed, even where nobody has judged it yet, unless its job
    said so (`revivable`).
    """
    alive = sa.or_(RUN.c.locked_until > now, RUN.c.id.in_(list(revivable)))
    held = (RUN.c.id.in_(list(ids)), RUN.c.status == Status.RUNNING, RUN.c.locked_by == worker_id)
    renew = sa.update(RUN).where(*held, alive).values(locked_until=until)
    if db.supports_skip_locked(session):
        free = session.scalars(sa.select(RUN.c.id).where(*held, alive).with_for_update(skip_locked=True))
        renew = renew.where(RUN.c.id.in_(free.all()))
    _count(session, renew)
    rows = session.execute(
        sa.select(RUN.c.id, RUN.c.cancel_reason, RUN.c.locked_until, alive.label("alive")).where(*held)
    )
    renewed: dict[int, str | None] = {}
    taken: set[int] = set()
    for row_id, reason, locked_until, is_alive in rows:
        if locked_until >= until:
            renewed[row_id] = reason
        elif is_alive:
            taken.add(row_id)
    return renewed, taken


_LOCK_RUNS = (
    sa.select(
        *(column for column in RUN.c if column.name not in ("output", "stack_trace", "result")),
        sa.exists().where(DEPENDENCY.c.parent == RUN.c.cron_job).label("has_children"),
        sa.exists()
        .where(HELD.c.cron_job == RUN.c.cron_job, HELD.c.status == Status.PENDING, HELD.c.due_time.is_(None))
        .label("has_held"),
    )
    .where(RUN.c.id.in_(IDS))
    .order_by(RUN.c.id)
    .with_for_update()
)
_LOCK_FREE_RUNS = _LOCK_RUNS.with_for_update(skip_locked=True)


def lock_runs(session: Session, ids: Iterable[int]) -> dict[int, Row]:
    """Lock executions in the order of their ids and return them by id."""
    wanted = sorted(ids)
    return {row.id: row for row in _execute(session, _LOCK_RUNS, {"ids": wanted})} if wanted else {}


def lock_held(session: Session, claims: Collection[Claim]) -> tuple[dict[int, Row], set[int]]:
    """Lock the rows of `claims` that are still held as claimed, in the order of their ids.

    Returns them by id, and the ids of those that somebody else has locked: a worker has other runs to see to, and
    comes back to these. Databases without SKIP LOCKED wait for all of them.
    """
    wanted = {claim.execution_id: claim for claim in claims}
    if not wanted:
        return {}, set()
    query = _LOCK_FREE_RUNS if db.supports_skip_locked(session) else _LOCK_RUNS
    rows = {row.id: row for row in _execute(session, query, {"ids": sorted(wanted)})}
    held = {key: row for key, row in rows.items() if _holds(wanted[key], row)}
    missing = wanted.keys() - rows.keys()
    taken = _execute(session, _HOLDERS, {"ids": sorted(missing)}) if missing else ()
    return held, {row.id for row in taken if _holds(wanted[row.id], row)}


_HOLDERS = sa.select(RUN.c.id, RUN.c.status, RUN.c.locked_by, RUN.c.retry_count).where(RUN.c.id.in_(IDS))


def _holds(claim: Claim, row: Row) -> bool:
    held: bool = (
        row.status == Status.RUNNING and row.locked_by == claim.locked_by and row.retry_count == claim.attempt
    )
    return held


def expired(session: Session, now: datetime, limit: int) -> list[Claim]:
    """Claims whose lease has ended."""
    return _claims(session, sa.and_(RUN.c.status == Status.RUNNING, RUN.c.locked_until < now), limit)


def held_by(session: Session, worker_ids: Collection[str], limit: int) -> list[Claim]:
    """Claims of certain workers, for example of processes that are known to be gone."""
    return _claims(
        session, sa.and_(RUN.c.status == Status.RUNNING, RUN.c.locked_by.in_(list(worker_ids))), limit
    )


def _claims(session: Session, condition: Any, limit: int) -> list[Claim]:
    query = (
        sa.select(RUN.c.id, RUN.c.cron_job, RUN.c.locked_by, RUN.c.retry_count)
        .where(condition)
        .order_by(RUN.c.id)
        .limit(limit)
    )
    return [
        Claim(row.id, row.cron_job, row.locked_by or "", row.retry_count) for row in session.execute(query)
    ]


# -- executions: ending --------------------------------------------------------------------------------------


FINAL_COLUMNS = (
    "status",
    "completed_at",
    "due_time",
    "waiting_for",
    "waiting_until",
    "duration_ms",
    "cpu_ms",
    "memory_peak_mb",
    "exit_code",
    "error",
    "stack_trace",
    "result",
    "skipped_reason",
    "output",
    "output_bytes",
)
_FINISH = (
    sa.update(RUN)
    .where(
        RUN.c.id == sa.bindparam("row_id"),
        RUN.c.status == sa.bindparam("row_status"),
        RUN.c.retry_count == sa.bindparam("row_attempt"),
        sa.func.coalesce(RUN.c.locked_by, "") == sa.bindparam("row_holder"),
    )
    .values({name: sa.bindparam(name) for name in FINAL_COLUMNS})
)


def finish(session: Session, ended: Sequence[tuple[Row, Mapping[str, Any]]]) -> None:
    """Write final states over the state, the holder and the attempt that the rows were locked with."""
    parameters = [
        {
            "row_id": row.id,
            "row_status": row.status,
            "row_attempt": row.retry_count,
            "row_holder": row.locked_by or "",
            **values,
        }
        for row, values in ended
    ]
    if parameters and _execute(session, _FINISH, parameters).rowcount != len(parameters):
        raise RuntimeError("a locked execution changed under its lock")


def ask_to_cancel(session: Session, execution_id: int, reason: str) -> int:
    """Leave a request for the worker that runs this; it is seen within a poll."""
    return _count(
        session,
        sa.update(RUN)
        .where(RUN.c.id == execution_id, RUN.c.status == Status.RUNNING)
        .values(cancel_reason=reason[:500]),
    )


# -- output --------------------------------------------------------------------------------------------------


def append_output(session: Session, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add pieces of output to runs whose rows the caller has locked. A piece that is there already stays."""
    if rows:
        _execute(session, _insert_or_keep(OUTPUT, session.get_bind().dialect.name), list(rows))


def drop_live_tail(session: Session, execution_id: int) -> int:
    """Remove what was only shown while the run went on."""
    return _count(
        session, sa.delete(OUTPUT).where(OUTPUT.c.execution == execution_id, OUTPUT.c.is_tail.is_(True))
    )


def note_progress(session: Session, execution_id: int, values: Mapping[str, Any]) -> int:
    """Write progress or the amount of output of a running execution that the caller has locked."""
    return _count(
        session,
        sa.update(RUN).where(RUN.c.id == execution_id, RUN.c.status == Status.RUNNING).values(**values),
    )


# -- waking --------------------------------------------------------------------------------------------------


_NEXT_INSTANTS = sa.select(
    sa.select(sa.func.min(RUN.c.due_time))
    .where(RUN.c.status == Status.PENDING)
    .scalar_subquery()
    .label("run"),
    sa.select(sa.func.min(JOB.c.next_run_time)).where(ENABLED).scalar_subquery().label("slot"),
)


def next_instants(session: Session) -> tuple[datetime | None, datetime | None]:
    """When the next pending run and the next slot are due: two reads of the first row of an index."""
    row = _execute(session, _NEXT_INSTANTS).one()
    return row.run, row.slot


@dataclass(frozen=True, slots=True)
class Irregularities:
    """What a worker on patrol has to see to."""

    expired: bool
    held: bool
    unplanned: bool
    holders: dict[str, int]
    """How many running executions each worker holds."""


def irregularities(session: Session, now: datetime) -> Irregularities:
    """Whether leases have ended, runs are held, jobs lack a slot; and who holds what runs."""
    running = session.execute(
        sa.select(
            RUN.c.locked_by, sa.func.min(RUN.c.locked_until).label("until"), sa.func.count().label("runs")
        )
        .where(RUN.c.status == Status.RUNNING)
        .group_by(RUN.c.locked_by)
    ).all()
    held = sa.exists().where(RUN.c.status == Status.PENDING, RUN.c.due_time.is_(None))
    unplanned = sa.exists().where(ENABLED, JOB.c.next_run_time.is_(None), JOB.c.schedule_type != "manual")
    found = session.execute(sa.select(held.label("held"), unplanned.label("unplanned"))).one()
    return Irregularities(
        expired=any(row.until is not None and row.until < now for row in running),
        held=bool(found.held),
        unplanned=bool(found.unplanned),
        holders={row.locked_by: row.runs for row in running if row.locked_by},
    )


_CANCEL_REQUESTS = sa.select(RUN.c.id, RUN.c.cancel_reason).where(
    RUN.c.status == Status.RUNNING,
    RUN.c.locked_by == sa.bindparam("holder"),
    RUN.c.cancel_reason.is_not(None),
)


def cancel_requests(session: Session, worker_id: str) -> dict[int, str]:
    """Runs of this worker that somebody asked to stop."""
    return {row.id: row.cancel_reason for row in _execute(session, _CANCEL_REQUESTS, {"holder": worker_id})}


def _count(session: Session, statement: Any) -> int:
    """Execute and tell how many rows were matched (MySQL is asked for matched rows, not changed ones)."""
    return int(session.execute(statement, execution_options={"synchronize_session": False}).rowcount)  # type: ignore[attr-defined]

"""Every statement that moves an execution, a lease or a job's next slot.

Each is guarded: the expected old state stands in the WHERE, and the caller learns how many rows it hit.
Locks are always taken in one order, so that two transactions cannot wait for each other: jobs by id, then
executions by id. A claim takes executions only.

What runs for every execution is built and compiled once (`prepared`): doing that anew costs more than the database
needs to execute it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ..core.choices import ScheduleType
from ..core.fields import Reader, read_by
from ..core.states import Claim, Origin, Status, StopRequest, sources
from ..core.workers import lease_has_ended
from . import db, dialects
from .dialects import Dialect
from .models import (
    ENABLED,
    GOING_ON,
    PENDING,
    RUNNING,
    UNSENT,
    CronJob,
    CronJobDependency,
    CronJobExecution,
    CronJobOutput,
    CronJobSecret,
    CronOutbox,
    KyteCronJobVersion,
    lease_ended,
)
from .prepared import Prepared, UpdateEach, values_of

JOB: Any = CronJob.__table__
RUN: Any = CronJobExecution.__table__
OUTPUT: Any = CronJobOutput.__table__
VERSION: Any = KyteCronJobVersion.__table__
EARLIER: Any = RUN.alias("earlier")
WAITING: Any = RUN.alias("waiting")
DEPENDENCY: Any = CronJobDependency.__table__
SECRET: Any = CronJobSecret.__table__

PRIORITY_HANDICAP = timedelta(seconds=30)
"""A run of priority p starts as if it had become due (9 - p) times this later: in the end age wins."""

Row = Any
IDS: Any = sa.bindparam("ids", expanding=True)


def _clock(on: Dialect) -> Any:
    """The database's clock within a statement, which spares a statement that asks for it.

    Where a database has none it is the parameter `now`: see `db.now`.
    """
    kind = RUN.c.due_time.type
    return sa.literal_column(on.clock, kind) if on.clock else sa.bindparam("now", type_=kind)


def queue_time(due_time: datetime, priority: int) -> datetime:
    """The instant that orders due runs: see PRIORITY_HANDICAP."""
    return due_time + (9 - max(0, min(9, priority))) * PRIORITY_HANDICAP


# -- jobs ---------------------------------------------------------------------------------------------------


ON_SCHEDULE = (
    *("id", "disabled_reason", "next_run_time", "schedule_anchor", "runs_scheduled"),
    *read_by(Reader.SLOTS),
)
"""The columns of a job that decide about its slots. PyMySQL reads each in Python, and a job has seventy."""


@lru_cache(maxsize=2)
def _lock_due_jobs(skip_locked: bool) -> Prepared:
    return Prepared(
        sa.select(*(JOB.c[name] for name in ON_SCHEDULE))
        .where(ENABLED, JOB.c.next_run_time <= sa.bindparam("now"))
        .order_by(JOB.c.next_run_time)
        .limit(sa.bindparam("most"))
        # Without SKIP LOCKED a second worker waits here for the first one's short transaction: slower, never wrong.
        .with_for_update(skip_locked=skip_locked)
    )


def lock_due_jobs(session: Session, now: datetime, limit: int) -> list[Row]:
    """Lock enabled jobs whose next slot is due and return their ON_SCHEDULE, oldest first; rows another worker
    holds are passed over.
    """
    query = _lock_due_jobs(dialects.of(session).skip_locked)
    return query.rows(session, {"now": now, "most": limit})


_JOBS = sa.select(JOB).where(JOB.c.id.in_(IDS)).order_by(JOB.c.id)
_LOCK_JOBS = _JOBS.with_for_update()


def read_jobs(session: Session, job_ids: Collection[int]) -> dict[int, Row]:
    """Jobs by id, as this transaction sees them."""
    return _by_id(session, _JOBS, list(job_ids))


def lock_jobs(session: Session, job_ids: Iterable[int]) -> dict[int, Row]:
    """Lock jobs in the order of their ids and return them by id."""
    return _by_id(session, _LOCK_JOBS, sorted(set(job_ids)))


def _by_id(session: Session, query: Any, ids: Sequence[int]) -> dict[int, Row]:
    if not ids:
        return {}
    # On the connection: the session would first write what is pending in it, and so take locks out of their order.
    return {row.id: row for row in db.connection(session).execute(query, {"ids": ids})}


class EndingJob(NamedTuple):
    """What every ending has to know of its job. PyMySQL reads each column in Python.

    Its settings are those that `Reader.ENDINGS` names: tests/core/test_fields.py compares the two.
    """

    id: int
    schedule_type: str
    interval_anchor: str
    consecutive_failures: int
    failing_since: datetime | None
    runs_total: int
    runs_completed: int
    runs_recovered: int
    duration_total_ms: int
    recent_results: str
    skipped_in_a_row: int
    now: datetime
    """The database's clock."""


@lru_cache(maxsize=8)
def _lock_ending_jobs(on: Dialect, skip_locked: bool) -> Prepared:
    columns = (JOB.c[name] for name in EndingJob._fields if name != "now")
    return Prepared(
        sa.select(*columns, _clock(on).label("now"))
        .where(JOB.c.id.in_(IDS))
        .order_by(JOB.c.id)
        .with_for_update(skip_locked=skip_locked),
        EndingJob,
    )


def lock_ending_jobs(
    session: Session, job_ids: Iterable[int], *, skip_locked: bool = False
) -> dict[int, EndingJob]:
    """Lock jobs of runs that end, in the order of their ids; with `skip_locked` those that nobody has locked."""
    ids = sorted(set(job_ids))
    query = _lock_ending_jobs(dialects.of(session), skip_locked)
    return {row.id: row for row in query.rows(session, {"ids": ids, "now": datetime.now(UTC)})} if ids else {}


class LockedJobs(NamedTuple):
    """What became of jobs that were to be locked."""

    free: dict[int, EndingJob]
    """By id: nobody else had locked them."""
    taken: set[int]
    """Somebody has locked them."""
    now: datetime | None
    """The database's clock; None where nothing was locked."""


def lock_free_jobs(session: Session, job_ids: Iterable[int]) -> LockedJobs:
    """Lock those jobs that nobody has locked.

    For work that can as well be done a second later. Databases without SKIP LOCKED wait for all of them.
    """
    ids = sorted(set(job_ids))
    if not ids:
        return LockedJobs({}, set(), None)
    jobs = lock_ending_jobs(session, ids, skip_locked=dialects.of(session).skip_locked)
    missing = [job_id for job_id in ids if job_id not in jobs]
    taken = set(session.scalars(sa.select(JOB.c.id).where(JOB.c.id.in_(missing)))) if missing else set()
    return LockedJobs(jobs, taken, next(iter(jobs.values())).now if jobs else None)


def move_next_run_times(session: Session, next_times: Mapping[int, datetime | None]) -> int:
    """Give locked jobs their next slots; returns how many were still enabled."""
    rows = [{"job_id": key, "job_enabled": True, "next_run_time": when} for key, when in next_times.items()]
    return _update_each(session, JOB, ("job_id", "job_enabled"), rows)


def update_job(session: Session, job_id: int, values: Mapping[str, Any]) -> int:
    """Write columns of a job whose row the caller has locked."""
    return _count(session, sa.update(JOB).where(JOB.c.id == job_id).values(**values))


def update_jobs(session: Session, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write columns of locked jobs: each row has those that change, and `job_id`."""
    _update_each(session, JOB, ("job_id",), rows)


def add_skips(session: Session, skips: Mapping[int, int]) -> None:
    """Count slots of locked jobs that were skipped."""
    for job_id, count in sorted(skips.items()):
        counts = {name: JOB.c[name] + count for name in ("runs_skipped", "skipped_in_a_row")}
        update_job(session, job_id, counts)


def jobs_without_slot(session: Session, limit: int) -> Sequence[Row]:
    """Lock enabled jobs whose next slot nobody has computed yet, such as rows inserted by hand."""
    query = (
        sa.select(JOB)
        .where(ENABLED, JOB.c.next_run_time.is_(None), JOB.c.schedule_type != ScheduleType.MANUAL)
        .limit(limit)
        .with_for_update(skip_locked=dialects.of(session).skip_locked)
    )
    return session.execute(query).all()


def planned_jobs(session: Session, after: int, limit: int) -> list[int]:
    """Ids of enabled jobs that have a next slot, from the id `after` on."""
    query = sa.select(JOB.c.id).where(ENABLED, JOB.c.next_run_time.is_not(None), JOB.c.id > after)
    return list(session.scalars(query.order_by(JOB.c.id).limit(limit)))


# -- executions: coming into being ---------------------------------------------------------------------------


def new_run(**values: Any) -> dict[str, Any]:
    """A row for CronJobExecution with every column that inserts write: rows inserted together need the same keys."""
    row: dict[str, Any] = {
        "status": Status.PENDING,
        "rerun": 0,
        "retry_count": 0,
        "is_retry": False,
        "given_back": 0,
        "interruptions": 0,
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
        "slots_until": None,
        "slots_count": 1,
        "completed_at": None,
        "output_bytes": 0,
    }
    return row | values


def insert_slots(session: Session, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert executions; a slot that is in the ledger already stays as it is (the unique key decides)."""
    if rows:
        _insert_or_keep(session, RUN, rows)


def _insert_or_keep(session: Session, table: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    _insertion(table, tuple(rows[0]), dialects.of(session)).run_many(session, rows)


@lru_cache(maxsize=32)
def _insertion(table: Any, columns: tuple[str, ...], on: Dialect) -> Prepared:
    return Prepared(on.insert_or_keep(table, values_of(table, columns)))


_OWN_ROWS = Prepared(
    sa.select(RUN.c.scheduled_time).where(
        RUN.c.cron_job == sa.bindparam("job"),
        RUN.c.scheduled_time.between(sa.bindparam("first"), sa.bindparam("last")),
        RUN.c.rerun == 0,
        RUN.c.retry_count == 0,
    )
)


def slots_with_rows(session: Session, job_id: int, first: datetime, last: datetime) -> set[datetime]:
    """The slots from `first` to `last` of a job that `insert_slots` would leave as they are."""
    found = _OWN_ROWS.rows(session, {"job": job_id, "first": first, "last": last})
    return {row.scheduled_time for row in found}


def accounted_until(session: Session, job_id: int, first: datetime, last: datetime) -> datetime | None:
    """The newest slot from `first` to `last` that the ledger has of a job, in a row of its own or with others."""
    mine = (RUN.c.cron_job == job_id, RUN.c.rerun == 0, RUN.c.origin == Origin.SCHEDULE)
    own = sa.select(sa.func.max(RUN.c.scheduled_time)).where(*mine, RUN.c.scheduled_time.between(first, last))
    shared = sa.select(sa.func.max(RUN.c.slots_until)).where(*mine, RUN.c.slots_until >= first)
    found = [when for when in (session.scalar(own), session.scalar(shared)) if when is not None]
    return max(found, default=None)


def is_in_summary(session: Session, job_id: int, slot: datetime) -> bool:
    """Whether a slot has no row of its own because it was missed with many others, which share one."""
    return session.scalar(summaries(slot, slot).where(RUN.c.cron_job == job_id).limit(1)) is not None


def summaries(first: datetime, last: datetime) -> Any:
    """A query for the rows that stand for many slots, among them some from `first` to `last`."""
    return sa.select(RUN.c.id).where(RUN.c.slots_until >= first, RUN.c.scheduled_time <= last)


def insert_run(session: Session, row: Mapping[str, Any]) -> int:
    """Insert one execution and return its id. Raises IntegrityError where the slot is taken."""
    result = session.execute(sa.insert(RUN).values(**row))
    return int(result.inserted_primary_key[0])  # type: ignore[attr-defined]


_ACTIVE_RUNS = Prepared(
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
    .where(RUN.c.cron_job.in_(IDS), GOING_ON)
    .order_by(RUN.c.id)
)


def active_runs(session: Session, job_ids: Collection[int]) -> list[Row]:
    """Pending and running executions of some jobs, oldest first."""
    return _ACTIVE_RUNS.rows(session, {"ids": list(job_ids)}) if job_ids else []


def waiting_job_ids(session: Session) -> list[int]:
    """Jobs with a run that waits for something other than time."""
    query = sa.select(RUN.c.cron_job).where(PENDING, RUN.c.due_time.is_(None)).distinct()
    return list(session.scalars(query))


def release(
    session: Session, execution_id: int, due: datetime, priority: int, parents: list[int] | None
) -> int:
    """Let a waiting run start at `due`."""
    values: dict[str, Any] = {
        "due_time": due,
        "queue_time": queue_time(due, priority),
        "waiting_for": None,
        "waiting_until": None,
    }
    if parents is not None:
        values["parents_used"] = parents
    return _count(session, _waiting(execution_id).values(**values))


def still_waits_for(session: Session, execution_id: int, reason: str) -> int:
    """Say what a waiting run waits for now."""
    return _count(session, _waiting(execution_id).values(waiting_for=reason[:500]))


def _waiting(execution_id: int) -> Any:
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


# -- executions: leased to a worker ----------------------------------------------------------------------------


def take(
    session: Session,
    worker_id: str,
    tags: Collection[str],
    limit: int,
    lease: timedelta,
    token: int,
    without: Collection[int] = (),
) -> list[Row]:
    """Move up to `limit` due runs to `running` under a lease for `worker_id`; returns them with their jobs.

    Runs of the jobs `without` are left to others.
    """
    ids, now = _lock_due(session, tags, limit, without)
    if not ids:
        return []
    runs = _CLAIMED_RUNS.rows(session, {"ids": ids})
    lease_of = {"locked_by": worker_id, "locked_at": now, "locked_until": now + lease, "started_at": now}
    claimed = {"status": Status.RUNNING, "token": token, **lease_of}
    started = [{"row_id": run.id, "version": run.run_version, **claimed} for run in runs]
    _write_each(session, ("row_id",), started)
    return runs


@lru_cache(maxsize=8)
def _due_runs(on: Dialect, passing_over: bool) -> Prepared:
    now = _clock(on)
    # By the index of the queue: that of due times would have the whole backlog sorted.
    query = on.with_index(sa.select(RUN.c.id, now.label("now")), RUN, "ix_CronJobExecution_queue")
    return Prepared(
        query.where(
            PENDING,
            RUN.c.worker_tag == sa.bindparam("tag"),
            on.without_index(RUN.c.due_time) <= now,
            *_not_of(passing_over),
        )
        .order_by(RUN.c.queue_time)
        .limit(sa.bindparam("most"))
        .with_for_update(skip_locked=on.skip_locked)
    )


def _not_of(passing_over: bool) -> tuple[Any, ...]:
    """The condition that leaves runs of certain jobs, the parameter `ids`, to others."""
    return (RUN.c.cron_job.not_in(IDS),) if passing_over else ()


def _few_lengths(ids: Collection[int]) -> list[int]:
    """The same set as a list whose length is a power of two: a statement is compiled for each length of its list."""
    listed = sorted(ids)
    return listed + listed[-1:] * ((1 << (len(listed) - 1).bit_length()) - len(listed)) if listed else []


def _lock_due(
    session: Session, tags: Collection[str], limit: int, without: Collection[int] = ()
) -> tuple[list[int], datetime]:
    """Ids of due runs, locked, and the time. Runs that another worker has locked do not count against the limit.

    Without SKIP LOCKED (MySQL 5.7, MariaDB before 10.6) a second worker waits here for the first one's short
    transaction, and at READ COMMITTED then sees what that one left.
    One query per tag: a query over several tags would sort, and a sorting one locks every due row it reads.
    """
    query = _due_runs(dialects.of(session), bool(without))
    others = {"ids": _few_lengths(without)} if without else {}
    ids: list[int] = []
    now = datetime.now(UTC)
    for tag in _tags_by_urgency(session, tags):
        found = query.rows(session, {"tag": tag, "now": now, "most": limit - len(ids), **others})
        ids += [row.id for row in found]
        now = found[-1].now if found else now
        if len(ids) >= limit:
            break
    return ids, now


def _tags_by_urgency(session: Session, tags: Collection[str]) -> list[str]:
    wanted = ["", *sorted(tags)]
    if len(wanted) == 1:
        return wanted
    now = db.now(session)
    heads = {
        tag: session.scalar(
            sa.select(sa.func.min(RUN.c.queue_time)).where(
                PENDING, RUN.c.worker_tag == tag, RUN.c.due_time <= now
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
    *(JOB.c[name] for name in read_by(Reader.CLAIMS)),
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
_CLAIMED_RUNS = Prepared(_WITH_JOB.where(RUN.c.id.in_(IDS)).order_by(RUN.c.queue_time))
_RUNS_HELD_BY = _WITH_JOB.where(
    RUNNING, RUN.c.locked_by == sa.bindparam("holder"), RUN.c.token == sa.bindparam("token")
)


def runs_leased_by(session: Session, worker_id: str, token: int) -> list[Row]:
    """Running executions that one claim of this worker took: what its lost COMMIT reply may have left."""
    given = {"holder": worker_id, "token": token}
    return list(db.connection(session).execute(_RUNS_HELD_BY, given))


def _asked_to_stop(row: Row) -> StopRequest | None:
    if row.cancel_reason is not None:
        return StopRequest(row.cancel_reason, release=False)
    return None if row.release_reason is None else StopRequest(row.release_reason, release=True)


def extend(
    session: Session, leased: Collection[Claim], revivable: Collection[int], now: datetime, until: datetime
) -> tuple[dict[int, StopRequest | None], set[int]]:
    """Renew the leases of claims; returns what is still leased, each with the request to stop it, if any.

    And the ids of those that are leased and could not be renewed, because somebody has locked their rows: the others
    do not wait for them. A lease that ended is never renewed, even where nobody has judged it yet, unless its job
    said so (`revivable`).
    """
    wanted = {claim.execution_id: claim for claim in leased}
    if not wanted:
        return {}, set()

    def alive(row: Row) -> bool:
        ended = lease_has_ended(row.locked_until, now)
        return _holds(wanted[row.id], row) and (not ended or row.id in revivable)

    query = _LOCK_FREE_HOLDERS if dialects.of(session).skip_locked else _LOCK_HOLDERS
    rows = {row.id: row for row in query.rows(session, {"ids": sorted(wanted)})}
    renewed = [row for row in rows.values() if alive(row)]
    _write_fenced(session, [(row, {"locked_until": until}) for row in renewed])
    missing = sorted(wanted.keys() - rows.keys())
    taken = _HOLDERS.rows(session, {"ids": missing}) if missing else ()
    return {row.id: _asked_to_stop(row) for row in renewed}, {row.id for row in taken if alive(row)}


class EndingRun(NamedTuple):
    """What every ending has to know of its execution."""

    id: int
    cron_job: int
    status: str
    locked_by: str | None
    locked_until: datetime | None
    retry_count: int
    token: int | None
    cancel_reason: str | None
    scheduled_time: datetime
    due_time: datetime | None
    started_at: datetime | None
    version: int | None
    output_bytes: int
    given_back: int
    interruptions: int
    has_children: bool
    """Other jobs depend on its job."""
    has_waiting: bool
    """Something of its job waits for other than time."""


_OF_EXECUTION = [RUN.c[name] for name in EndingRun._fields if name in RUN.c]
_ENDING_RUNS = (
    sa.select(
        *_OF_EXECUTION,
        sa.exists().where(DEPENDENCY.c.parent == RUN.c.cron_job).label("has_children"),
        sa.exists()
        .where(
            WAITING.c.cron_job == RUN.c.cron_job,
            WAITING.c.status == Status.PENDING,
            WAITING.c.due_time.is_(None),
        )
        .label("has_waiting"),
    )
    .where(RUN.c.id.in_(IDS))
    .order_by(RUN.c.id)
)
_LOCK_RUNS = Prepared(_ENDING_RUNS.with_for_update(), EndingRun)
_LOCK_FREE_RUNS = Prepared(_ENDING_RUNS.with_for_update(skip_locked=True), EndingRun)
_TO_REPEAT = (
    sa.select(
        *(RUN.c[name] for name in ("id", "cron_job", "scheduled_time", "rerun", "retry_count", "origin")),
        *(
            RUN.c[name]
            for name in ("parameters", "parents_used", "note", "triggered_by", "requested_version")
        ),
    )
    .where(RUN.c.id.in_(IDS))
    .order_by(RUN.c.id)
)


def lock_runs(session: Session, ids: Iterable[int]) -> dict[int, EndingRun]:
    """Lock executions in the order of their ids and return them by id."""
    wanted = sorted(ids)
    return {row.id: row for row in _LOCK_RUNS.rows(session, {"ids": wanted})} if wanted else {}


def read_to_repeat(session: Session, ids: Collection[int]) -> dict[int, Row]:
    """What another attempt takes over from executions, by their ids."""
    return _by_id(session, _TO_REPEAT, list(ids))


def lock_leased(session: Session, claims: Collection[Claim]) -> tuple[dict[int, EndingRun], set[int]]:
    """Lock the rows of `claims` that are still leased as claimed, in the order of their ids.

    Returns them by id, and the ids of those that somebody else has locked: a worker has other runs to
    see to, and comes back to these. Databases without SKIP LOCKED wait for all of them.
    """
    wanted = {claim.execution_id: claim for claim in claims}
    if not wanted:
        return {}, set()
    query = _LOCK_FREE_RUNS if dialects.of(session).skip_locked else _LOCK_RUNS
    rows = {row.id: row for row in query.rows(session, {"ids": sorted(wanted)})}
    leased = {key: row for key, row in rows.items() if _holds(wanted[key], row)}
    missing = wanted.keys() - rows.keys()
    taken = _HOLDERS.rows(session, {"ids": sorted(missing)}) if missing else ()
    return leased, {row.id for row in taken if _holds(wanted[row.id], row)}


_HOLDINGS = sa.select(
    *(
        RUN.c[name]
        for name in ("id", "cron_job", "status", "locked_by", "locked_until", "retry_count", "token")
    ),
    *(RUN.c[name] for name in ("cancel_reason", "release_reason")),
)
"""Who holds a run, and whether somebody asked for it to be stopped."""
_HOLDERS_OF = _HOLDINGS.where(RUN.c.id.in_(IDS)).order_by(RUN.c.id)
_HOLDERS = Prepared(_HOLDERS_OF)
_LOCK_HOLDERS = Prepared(_HOLDERS_OF.with_for_update())
_LOCK_FREE_HOLDERS = Prepared(_HOLDERS_OF.with_for_update(skip_locked=True))


def _holds(claim: Claim, row: Row) -> bool:
    same: bool = row.status == Status.RUNNING and _claim_of(row) == (
        claim.locked_by,
        claim.attempt,
        claim.token,
    )
    return same


def _claim_of(row: Row) -> tuple[str, int, int]:
    """What of a row tells one claim from another."""
    return row.locked_by or "", row.retry_count, row.token or 0


def expired(session: Session, now: datetime, limit: int) -> list[Claim]:
    """Claims whose lease has ended."""
    return _claims(session, sa.and_(RUNNING, lease_ended(now)), limit)


def leased_by(session: Session, worker_ids: Collection[str], limit: int) -> list[Claim]:
    """Claims of certain workers, for example of processes that are known to be gone."""
    return _claims(session, sa.and_(RUNNING, RUN.c.locked_by.in_(list(worker_ids))), limit)


def _claims(session: Session, condition: Any, limit: int) -> list[Claim]:
    query = _HOLDINGS.where(condition).order_by(RUN.c.id).limit(limit)
    return [Claim(row.id, row.cron_job, *_claim_of(row)) for row in session.execute(query)]


_CLAIMS_OF = Prepared(
    _HOLDINGS.where(RUN.c.status == Status.RUNNING, RUN.c.locked_by == sa.bindparam("holder"))
)


def claims_of(at: db.At, worker_id: str) -> set[Claim]:
    """All that the ledger says this worker holds."""
    rows = _CLAIMS_OF.rows(at, {"holder": worker_id})
    return {Claim(row.id, row.cron_job, *_claim_of(row)) for row in rows}


# -- executions: ending --------------------------------------------------------------------------------------


FENCE = ("row_id", "row_status", "row_attempt", "row_holder", "row_token")
"""What a row must still be for a write about it to count."""


def fence(row: Row) -> dict[str, Any]:
    """The values of FENCE that a row was locked with."""
    holder, attempt, token = _claim_of(row)
    return {
        "row_id": row.id,
        "row_status": row.status,
        "row_attempt": attempt,
        "row_holder": holder,
        "row_token": token,
    }


def finish(session: Session, ended: Sequence[tuple[Row, Mapping[str, Any]]]) -> None:
    """Write final states over the state, the holder, the attempt and the token that the rows were locked with."""
    _write_fenced(session, ended)


def give_back(session: Session, returned: Sequence[tuple[Row, Row]]) -> None:
    """Let locked running rows, of which no process has started, wait for another claim.

    They keep their place in the queue: each comes with its job (or None), whose priority and tag it takes on.
    """
    _write_fenced(session, [(row, _as_pending(row, job)) for row, job in returned])


def _as_pending(row: Row, job: Row) -> dict[str, Any]:
    unclaimed = ("locked_by", "locked_at", "locked_until", "token", "started_at", "version", "release_reason")
    values = dict.fromkeys(unclaimed) | {"status": Status.PENDING, "given_back": row.given_back + 1}
    if job is None:
        return values
    place = queue_time(row.due_time or row.scheduled_time, job.priority)
    return values | {"priority": job.priority, "worker_tag": job.worker_tag, "queue_time": place}


def _write_fenced(session: Session, written: Sequence[tuple[Row, Mapping[str, Any]]]) -> None:
    _write_each(session, FENCE, [{**fence(row), **values} for row, values in written])


def _write_each(session: Session, keys: tuple[str, ...], rows: Sequence[Mapping[str, Any]]) -> None:
    if _update_each(session, RUN, keys, rows) != len(rows):
        raise RuntimeError(
            "a locked execution changed under its lock, or was to make a move that there is not"
        )


def ask_to_cancel(session: Session, execution_id: int, reason: str) -> int:
    """Leave a request for the worker that runs this; it is seen within a poll."""
    return _count(
        session,
        sa.update(RUN)
        .where(RUN.c.id == execution_id, RUN.c.status == Status.RUNNING)
        .values(cancel_reason=reason[:500]),
    )


def ask_to_release(session: Session, row: Row, reason: str) -> None:
    """Ask the worker that holds a locked row to stop the run and to end it as lost; it is seen within a poll."""
    _write_fenced(session, [(row, {"release_reason": reason[:500]})])


# -- output --------------------------------------------------------------------------------------------------


def append_output(session: Session, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add pieces of output to runs whose rows the caller has locked. A piece that is there already stays."""
    if rows:
        _insert_or_keep(session, OUTPUT, rows)


def drop_live_tail(session: Session, execution_id: int) -> int:
    """Remove what was only shown while the run went on."""
    return _count(
        session, sa.delete(OUTPUT).where(OUTPUT.c.execution == execution_id, OUTPUT.c.is_tail.is_(True))
    )


def note_progress(session: Session, row: Row, values: Mapping[str, Any]) -> None:
    """Write progress or the amount of output of a running execution that the caller has locked."""
    _write_fenced(session, [(row, values)])


# -- waking --------------------------------------------------------------------------------------------------


@lru_cache(maxsize=32)
def _next_instants(on: Dialect, counts: bool, tags: int, passing_over: bool) -> Prepared:
    now = _clock(on)
    # By the index of due times: that of the queue would have all sorted that wait.
    runs = on.with_index(sa.select(RUN.c.due_time), RUN, "ix_CronJobExecution_due").where(
        PENDING,
        on.without_index(RUN.c.worker_tag).in_(
            [sa.bindparam(f"tag{number}", type_=RUN.c.worker_tag.type) for number in range(tags)]
        ),
        *_not_of(passing_over),
    )
    first = runs.where(RUN.c.due_time.is_not(None)).order_by(RUN.c.due_time).limit(1)
    slots = sa.select(sa.func.min(JOB.c.next_run_time)).where(ENABLED)
    columns = [
        now.label("now"),
        first.scalar_subquery().label("run"),
        slots.scalar_subquery().label("slot"),
    ]
    if counts:
        due = runs.where(RUN.c.due_time <= now).limit(sa.bindparam("most")).subquery()
        columns.append(sa.select(sa.func.count()).select_from(due).scalar_subquery().label("due"))
    return Prepared(sa.select(*columns))


class NextInstants(NamedTuple):
    """Times on the database's clock, None for what will not come."""

    now: datetime
    run: datetime | None
    slot: datetime | None
    due: int
    """How many runs are due, as far as they were counted."""


def next_instants(
    at: db.At, most: int = 1, tags: Collection[str] = (), without: Collection[int] = ()
) -> NextInstants:
    """When the next pending run and the next slot are due, and how many runs of up to `most` are due already.

    Of runs only those count that a worker with `tags` may take, and that are not of the jobs `without`. Reads the
    first rows of indexes; runs for other workers that are due earlier are passed over within the index.
    """
    counts, wanted = most > 1, ["", *sorted(tags)]
    query = _next_instants(dialects.of(at), counts, len(wanted), bool(without))
    given: dict[str, Any] = {"now": datetime.now(UTC), "most": most}
    given |= {f"tag{number}": tag for number, tag in enumerate(wanted)}
    (row,) = query.rows(at, given | ({"ids": _few_lengths(without)} if without else {}))
    due = row.due if counts else int(row.run is not None and row.run <= row.now)
    return NextInstants(row.now, row.run, row.slot, due)


@dataclass(frozen=True, slots=True)
class Irregularities:
    """What a worker on patrol has to see to."""

    expired: bool
    waiting: bool
    unplanned: bool
    unsent: bool
    """Messages are due."""
    holders: dict[str, int]
    """How many running executions each worker holds."""


_HOLDERS_OF_ALL = Prepared(
    sa.select(RUN.c.locked_by, sa.func.min(RUN.c.locked_until).label("until"), sa.func.count().label("runs"))
    .where(RUNNING)
    .group_by(RUN.c.locked_by)
)


@lru_cache(maxsize=4)
def _oddities(on: Dialect) -> Prepared:
    now = _clock(on)
    waiting = sa.exists().where(PENDING, RUN.c.due_time.is_(None))
    unplanned = sa.exists().where(
        ENABLED, JOB.c.next_run_time.is_(None), JOB.c.schedule_type != ScheduleType.MANUAL
    )
    unsent = sa.exists().where(CronOutbox.status.in_(UNSENT), CronOutbox.due_time <= now)
    return Prepared(
        sa.select(
            now.label("now"), waiting.label("waiting"), unplanned.label("unplanned"), unsent.label("unsent")
        )
    )


def irregularities(at: db.At) -> Irregularities:
    """Whether leases have ended, runs wait, jobs lack a slot, messages are due; and who holds what runs."""
    (found,) = _oddities(dialects.of(at)).rows(at, {"now": datetime.now(UTC)})
    running = _HOLDERS_OF_ALL.rows(at)
    return Irregularities(
        expired=any(row.until is not None and row.until < found.now for row in running),
        waiting=bool(found.waiting),
        unplanned=bool(found.unplanned),
        unsent=bool(found.unsent),
        holders={row.locked_by: row.runs for row in running if row.locked_by},
    )


_STOP_REQUESTS = Prepared(
    _HOLDINGS.where(
        RUNNING,
        RUN.c.locked_by == sa.bindparam("holder"),
        sa.or_(RUN.c.cancel_reason.is_not(None), RUN.c.release_reason.is_not(None)),
    )
)


def stop_requests(at: db.At, worker_id: str, leased: Collection[Claim]) -> dict[int, StopRequest]:
    """Which of this worker's claims somebody asked to stop."""
    known = {claim.execution_id: claim for claim in leased}
    return {
        row.id: request
        for row in _STOP_REQUESTS.rows(at, {"holder": worker_id})
        if row.id in known and _holds(known[row.id], row) and (request := _asked_to_stop(row))
    }


KEYS: Mapping[str, Any] = {
    "job_id": JOB.c.id,
    "job_enabled": JOB.c.enabled,
    "row_id": RUN.c.id,
    "row_status": RUN.c.status,
    "row_attempt": RUN.c.retry_count,
    "row_holder": sa.func.coalesce(RUN.c.locked_by, ""),
    "row_token": sa.func.coalesce(RUN.c.token, 0),
}
"""What rows are found by, under the names that `_update_each` takes."""


def _update_each(
    session: Session, table: Any, keys: tuple[str, ...], rows: Sequence[Mapping[str, Any]]
) -> int:
    """Update a row of `table` with each of `rows`, found by `keys`; returns how many were found.

    A row that gets another `status` is found only where `states.MOVES` lets it come from the one that it has.
    Rows that change the same columns, as most endings do, are written together.
    """
    alike: dict[tuple[Status | None, tuple[str, ...]], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        alike[row.get("status"), tuple(name for name in row if name not in keys)].append(row)
    return sum(
        _writer(table, keys, columns, None if new is None else sources(new)).run(session, some)
        for (new, columns), some in alike.items()
    )


@lru_cache(maxsize=128)
def _writer(
    table: Any, keys: tuple[str, ...], columns: tuple[str, ...], movable: tuple[Status, ...] | None
) -> UpdateEach:
    guard = None if movable is None else table.c.status.in_(movable)
    return UpdateEach(table, {name: KEYS[name] for name in keys}, columns, guard)


def _count(session: Session, statement: Any) -> int:
    """Execute and tell how many rows were matched (MySQL is asked for matched rows, not changed ones)."""
    return int(session.execute(statement, execution_options={"synchronize_session": False}).rowcount)  # type: ignore[attr-defined]

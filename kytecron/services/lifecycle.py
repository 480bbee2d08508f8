"""The way of a run, each step one transaction on the database's clock.

    enqueue_due -> claim -> (append_output, renew)* -> settle
    a run that could not be started: settle with PENDING, which gives it back
    a vanished worker: reap, which settles with LOST; a pending run called off: cancel

Every step locks jobs first and executions second. What an ending means stands in `endings`.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple, assert_never

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ..core.choices import LostContact, ScheduleType
from ..core.errors import Conflict, Invalid, NotFound
from ..core.fields import Reader, read_by
from ..core.jobspec import check_parameters
from ..core.schedule import misfire
from ..core.states import ACTIVE, Claim, Origin, Outcome, Status, StopRequest
from ..core.untrusted import visible
from ..core.workers import lease_has_ended
from ..store import claims, db
from ..store.db import transactional
from ..store.models import CronJob, CronJobExecution, KyteCronJobVersion
from . import audit, endings, registry, slots
from .audit import Actor

log = logging.getLogger(__name__)

REAP_BATCH = 100


def plan(job: CronJob, after: datetime) -> datetime | None:
    """The first slot of a job later than `after`; None for a manual job and where none will come. Raises Invalid."""
    return slots.plan(job, after)


# -- what is there to do ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Look:
    """What a worker sees when it looks for work. Times are on the database's clock."""

    now: datetime
    run_due: datetime | None
    slot_due: datetime | None
    due: int
    """How many runs are due, as far as they were counted."""
    stops: dict[int, StopRequest]
    """Runs of this worker that somebody asked to stop."""


def look(
    at: db.At,
    worker_id: str,
    *,
    leased: Collection[Claim],
    tags: Collection[str] = (),
    without: Collection[int] = (),
    count: int = 1,
) -> Look:
    """When the next run and the next slot are due, and which of the runs `leased` are to be stopped.

    Runs count that a worker with `tags` may take, but of the jobs `without`. Due ones are counted up to `count`.
    Reads a few index rows.
    """
    instants = claims.next_instants(at, count, tags, without)
    stops = claims.stop_requests(at, worker_id, leased) if leased else {}
    return Look(instants.now, instants.run, instants.slot, instants.due, stops)


def irregularities(at: db.At) -> claims.Irregularities:
    """What needs `reap`, `release_waiting`, `adopt` or `notify.deliver`. Reads only."""
    return claims.irregularities(at)


def claims_of(at: db.At, worker_id: str) -> set[Claim]:
    """All that the ledger says this worker holds: to be compared with what it knows. Reads only."""
    return claims.claims_of(at, worker_id)


# -- due slots become executions -----------------------------------------------------------------------------


@transactional
def enqueue_due(session: Session, limit: int = 100) -> int:
    """Put the due slots of up to `limit` jobs into the ledger and move the jobs on; returns how many jobs.

    Each due slot becomes exactly one row, also when it will not run. A job whose row makes no sense is disabled
    with the reason, and the others go on.
    """
    now = db.now(session)
    jobs = claims.lock_due_jobs(session, now, limit)
    if jobs:
        _enqueue(session, jobs, now)
    return len(jobs)


@transactional
def enqueue_due_of(session: Session, job_id: int) -> None:
    """Put the due slots of one job into the ledger, before an edit takes the settings away that they are due by."""
    _enqueue_due_of(session, job_id)


def _enqueue_due_of(session: Session, job_id: int) -> None:
    now = db.now(session)
    jobs = claims.lock_jobs(session, [job_id]).values()
    due = [job for job in jobs if job.enabled and job.next_run_time is not None and job.next_run_time <= now]
    if due:
        _enqueue(session, due, now)


def _enqueue(session: Session, jobs: Sequence[Any], now: datetime) -> None:
    around = slots.Surroundings(session, [job.id for job in jobs])
    rows: list[dict[str, Any]] = []
    next_times: dict[int, datetime | None] = {}
    for job in jobs:
        try:
            made, following, changes = _enqueue_job(session, around, job, now)
        except Exception as error:  # bad rows never stop the worker
            log.warning("the job cannot be scheduled: %s", error, extra={"job": job.id})
            _disable(session, job, f"cannot be scheduled: {error}")
            continue
        rows += made
        if changes:
            claims.update_job(session, job.id, {**changes, "next_run_time": following})
        else:
            next_times[job.id] = following
    rows = _without_known_skips(session, rows)
    claims.insert_slots(session, rows)
    if claims.move_next_run_times(session, next_times) != len(next_times):
        raise RuntimeError("a locked job changed under its lock")
    endings.count_skips(session, rows, now)
    for job_id, active in around.replaced.items():
        endings.make_room(session, job_id, active, now)
    endings.look_at_waiting(session, {row["cron_job"] for row in rows if row["waiting_for"]}, now)


def _without_known_skips(session: Session, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """`rows` without slots to be skipped that are in the ledger already: they would be counted twice.

    So it is where somebody has set next_run_time back by hand.
    """
    skipped: dict[int, list[datetime]] = {}
    for row in rows:
        if row["status"] == Status.SKIPPED:
            skipped.setdefault(row["cron_job"], []).append(row["scheduled_time"])
    known = {
        (job_id, slot)
        for job_id, slots_ in skipped.items()
        for slot in claims.slots_with_rows(session, job_id, min(slots_), max(slots_))
    }
    return [
        row
        for row in rows
        if row["status"] != Status.SKIPPED or (row["cron_job"], row["scheduled_time"]) not in known
    ]


def _enqueue_job(
    session: Session, around: slots.Surroundings, job: Any, now: datetime
) -> tuple[list[dict[str, Any]], datetime | None, dict[str, Any]]:
    """Rows for one job's due slots, its next slot, and what else changes in its row."""
    due = slots.due(session, job, now)
    chosen = misfire(job.misfire_policy, due, now, job.misfire_grace_seconds)
    rows = [slots.missed(job, what, now) for what in chosen.skip]
    placed = _place(around, job, chosen.run, now)
    rows += placed
    changes = slots.after_runs(job, placed)
    if slots.counts_from_completion(job):
        return rows, None, changes
    following = slots.plan(job, now)
    if following is None:
        changes = slots.ended(slots.SCHEDULE_ENDED) | changes
    return rows, None if "enabled" in changes else following, changes


def _place(
    around: slots.Surroundings, job: Any, chosen: Sequence[datetime], now: datetime
) -> list[dict[str, Any]]:
    """Rows for the slots that are to run, as many as `max_runs` leaves; the others are skipped."""
    placed: list[dict[str, Any]] = []
    for slot in chosen:
        if slots.runs_left(job, placed):
            placed.append(around.place(job, slot, now))
        else:
            placed.append(slots.skipped(job, slot, slots.MAX_RUNS_REACHED, now))
    return placed


@transactional
def adopt(session: Session, limit: int = 100) -> int:
    """Give a next slot to enabled jobs that have none, such as rows inserted or changed by hand in SQL."""
    now = db.now(session)
    jobs = claims.jobs_without_slot(session, limit)
    busy = {run.cron_job for run in claims.active_runs(session, [job.id for job in jobs])} if jobs else set()
    adopted = 0
    for job in jobs:
        if slots.counts_from_completion(job) and job.id in busy:
            continue  # the end of its run will set it
        adopted += 1
        values: dict[str, Any] = {}
        if job.schedule_type == ScheduleType.INTERVAL and job.schedule_anchor is None:
            values["schedule_anchor"] = now
        try:
            following = slots.plan_unplanned(job, now, values.get("schedule_anchor"))
        except Invalid as error:
            _disable(session, job, f"cannot be scheduled: {error}")
            continue
        if following is None:
            _disable(session, job, slots.SCHEDULE_ENDED)
            continue
        claims.update_job(session, job.id, {**values, "next_run_time": following})
    return adopted


class Replanned(NamedTuple):
    """What came of a look at some jobs' next slots."""

    changed: int
    last: int | None
    """The last job that was looked at; None at the end."""


@transactional
def replan(session: Session, after: int = 0, limit: int = 500, types: Collection[str] = ()) -> Replanned:
    """Give the next `limit` jobs after the id `after` the slots that their schedules name, where they have others.

    `types` are the schedule types that are looked at; all where none is given. Slots that are due stay.
    """
    ids = claims.planned_jobs(session, after, limit)
    jobs, now, changed = claims.lock_jobs(session, ids), db.now(session), 0
    for job in jobs.values():
        if not job.enabled or (types and job.schedule_type not in types):
            continue
        try:
            wanted = slots.ought_to_be(job, now)
        except Invalid:
            continue  # whoever comes to its slot disables it, and says why
        if wanted is not None:
            values = {"next_run_time": wanted}
            if job.schedule_anchor is not None and job.schedule_anchor > wanted:
                values["schedule_anchor"] = wanted
            changed += claims.update_job(session, job.id, values)
            log.info("the next slot is %s, not %s", wanted, job.next_run_time, extra={"job": job.id})
    return Replanned(changed, ids[-1] if len(ids) == limit else None)


def _disable(session: Session, job: Any, reason: str) -> None:
    claims.update_job(
        session, job.id, {"enabled": False, "disabled_reason": reason[:500], "next_run_time": None}
    )
    audit.record(
        session, audit.WORKER, "disable", ("job", job.id), name=job.name, after={"reason": reason[:500]}
    )


# -- claim ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClaimedRun:
    """A run this worker now holds, with what it needs to start."""

    claim: Claim
    job_name: str
    version: int | None
    content_hash: str | None
    """Of the version's code; None for a job without code."""
    has_secrets: bool
    parameters: dict[str, Any]
    state: dict[str, Any]
    scheduled_time: datetime
    due_time: datetime
    previous_status: str | None
    timeout_seconds: int
    memory_limit_mb: int | None
    cpu_limit_seconds: int | None
    continues_without_contact: bool
    settings: dict[str, Any]
    """All settings of the job that a run takes along (`Reader.CLAIMS`), as its row has them."""
    problem: str | None
    """Why it cannot start: its row, written by hand, makes no sense."""


def draw_token() -> int:
    """A number that no other claim has: 63 random bits, and never 0."""
    return secrets.randbits(63) or 1


@transactional
def claim(
    session: Session,
    worker_id: str,
    tags: Collection[str],
    limit: int,
    lease_seconds: float,
    token: int | None = None,
    without: Collection[int] = (),
) -> list[ClaimedRun]:
    """Take up to `limit` due runs, but of the jobs `without`, under a lease of `lease_seconds`, most urgent first.

    Whoever wants to find them again after a lost COMMIT (`leased`) has drawn the token beforehand.
    """
    token = token or draw_token()
    lease = timedelta(seconds=lease_seconds)
    rows = claims.take(session, worker_id, tags, limit, lease, token, without)
    return [_claimed(row, worker_id, token) for row in rows]


def leased(session: Session, worker_id: str, token: int) -> list[ClaimedRun]:
    """Runs that a claim has taken whose COMMIT got no answer."""
    return [_claimed(row, worker_id, token) for row in claims.runs_leased_by(session, worker_id, token)]


def _claimed(row: Any, worker_id: str, token: int) -> ClaimedRun:
    objects = {
        "the parameters of the job": row.job_parameters,
        "the parameters of the run": row.parameters,
        "the state of the job": row.state,
    }
    wrong = [name for name, value in objects.items() if not isinstance(value, dict | None)]
    defaults, given, state = ({} if wrong else value or {} for value in objects.values())
    return ClaimedRun(
        claim=Claim(row.id, row.cron_job, worker_id, row.retry_count, token),
        job_name=row.name or "",
        version=row.run_version,
        content_hash=row.content_hash,
        has_secrets=bool(row.has_secrets),
        parameters={**defaults, **given},
        state=state,
        scheduled_time=row.scheduled_time,
        due_time=row.due_time or row.scheduled_time,
        previous_status=row.previous_status,
        timeout_seconds=row.timeout_seconds or 300,
        memory_limit_mb=row.memory_limit_mb,
        cpu_limit_seconds=row.cpu_limit_seconds,
        continues_without_contact=_continues_without_contact(row),
        settings={name: getattr(row, name) for name in read_by(Reader.CLAIMS)},
        problem=f"{wrong[0]} must be a JSON object, such as {{}}" if wrong else None,
    )


def _continues_without_contact(row: Any) -> bool:
    match LostContact.of(row.on_lost_contact):
        case LostContact.CONTINUE:
            return True
        case LostContact.STOP:
            return False
        case never:
            assert_never(never)


# -- while it runs -------------------------------------------------------------------------------------------


class Renewed(NamedTuple):
    """What became of leases that were to be extended."""

    leased: dict[int, StopRequest | None]
    """Those extended, each with the request to stop the run or None."""
    busy: set[int]
    """Somebody has locked them: they are leased, and keep the lease they had."""


@transactional
def renew(
    session: Session, leased: Collection[Claim], revivable: Collection[int], lease_seconds: float
) -> Renewed:
    """Extend the leases of the claims `leased`.

    What is missing from the answer is no longer this worker's: kill it and write nothing. `revivable` are runs
    whose job goes on without contact (`on_lost_contact = continue`): their lease may have ended meanwhile,
    as long as nobody took them over.
    """
    now = db.now(session)
    until = now + timedelta(seconds=lease_seconds)
    return Renewed(*claims.extend(session, leased, revivable, now, until))


@dataclass(slots=True)
class Progress:
    """What a running job has said since the last time: output in pieces, how far it is."""

    claim: Claim
    pieces: list[tuple[int, str, bool]] = field(default_factory=list)
    """(seq, text, whether it is only shown while the run goes on)"""
    output_bytes: int | None = None
    percent: float | None = None
    note: str | None = None


class Stored(NamedTuple):
    """What became of output that was to be stored."""

    gone: set[int]
    """Executions that are no longer leased as claimed."""
    busy: set[int]
    """Somebody has locked them: nothing was stored."""


@transactional
def append_output(session: Session, reports: Sequence[Progress]) -> Stored:
    """Store output and progress of running jobs; what was stored before is not stored twice."""
    rows, taken = claims.lock_leased(session, [report.claim for report in reports])
    pieces: list[dict[str, Any]] = []
    for report in reports:
        execution = report.claim.execution_id
        if execution not in rows:
            continue
        pieces += [
            {"execution": execution, "seq": seq, "text": text, "is_tail": is_tail}
            for seq, text, is_tail in report.pieces
        ]
        if values := _progress_values(report):
            claims.note_progress(session, rows[execution], values)
    claims.append_output(session, pieces)
    return Stored({report.claim.execution_id for report in reports} - rows.keys() - taken, taken)


def _progress_values(report: Progress) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if report.output_bytes is not None:
        values["output_bytes"] = report.output_bytes
    if report.percent is not None:
        values |= {"progress_percent": report.percent, "progress_note": (report.note or "")[:500]}
    return values


# -- the ending ----------------------------------------------------------------------------------------------


class Settled(NamedTuple):
    """What became of results that were to be written; executions in neither set are no longer the caller's."""

    ended: set[int]
    busy: set[int]
    """Somebody has locked them, or their job: nothing was written, and they are to be brought again."""


@transactional
def settle(session: Session, ended: Sequence[tuple[Claim, Outcome]]) -> Settled:
    """End runs that are leased as claimed: final state, retry or dead letter, dependants, counters, messages.

    The result of a run that is no longer leased is dropped; what is locked does not keep the others waiting.
    Of what is PENDING no process has started: it is given back, and waits for another claim.
    """
    jobs, taken, now = claims.lock_free_jobs(session, (claim.job_id for claim, _ in ended))
    rows, busy = claims.lock_leased(session, [claim for claim, _ in ended if claim.job_id not in taken])
    ours = [(rows[c.execution_id], outcome) for c, outcome in ended if c.execution_id in rows]
    final = [(row, outcome) for row, outcome in ours if outcome.status is not Status.PENDING]
    endings.end(session, jobs, final, now)
    if returned := [row for row, outcome in ours if outcome.status is Status.PENDING]:
        endings.give_back(session, jobs, returned, now)
    return Settled(set(rows), busy | {claim.execution_id for claim, _ in ended if claim.job_id in taken})


@transactional
def disown(session: Session, strangers: Collection[Claim]) -> list[int]:
    """End as lost what names a worker that knows nothing of it, and runs nothing for it; a next attempt follows.

    So it is with what a restored backup brings back. Nothing of it is the job's fault: it uses up no retry.
    """
    jobs, taken, now = claims.lock_free_jobs(session, (claim.job_id for claim in strangers))
    rows, _ = claims.lock_leased(session, [claim for claim in strangers if claim.job_id not in taken])
    problem = "its worker does not run it: the database was restored, or a claim came to it late"
    lost = Outcome(Status.LOST, error=problem, interrupted=True)
    endings.end(session, jobs, [(row, lost) for row in rows.values()], now)
    return list(rows)


@transactional
def reap(session: Session, gone_workers: Collection[str] = ()) -> list[int]:
    """Mark runs lost whose lease has ended, or whose worker is known to be gone, and apply the retry rule.

    Such workers count as gone from then on. Runs that somebody has locked, or whose job, are left for the next time.
    """
    now = db.now(session)
    vanished = dict.fromkeys(
        claims.expired(session, now, REAP_BATCH), "its worker's lease ended without renewal"
    )
    if gone_workers:
        for claim in claims.leased_by(session, gone_workers, REAP_BATCH):
            vanished[claim] = "its worker's process is gone"
    heard_before = dict.fromkeys(gone_workers, now)
    ours: list[tuple[Any, Outcome]] = []
    if vanished:
        jobs, taken, _ = claims.lock_free_jobs(session, (claim.job_id for claim in vanished))
        # Read again under lock: the worker may have renewed or finished since.
        rows, _ = claims.lock_leased(session, [claim for claim in vanished if claim.job_id not in taken])
        ours = [
            (rows[claim.execution_id], _vanished(rows[claim.execution_id], claim.locked_by, reason))
            for claim, reason in vanished.items()
            if claim.execution_id in rows
            and (
                claim.locked_by in gone_workers or lease_has_ended(rows[claim.execution_id].locked_until, now)
            )
        ]
        endings.end(session, jobs, ours)
        # Whoever has reported after a lease ended lives, and only lost that run.
        heard_before = {row.locked_by: row.locked_until for row, _ in ours} | heard_before
    registry.mark_gone(session, heard_before, now)
    return [row.id for row, _ in ours]


def _vanished(row: claims.EndingRun, worker: str, reason: str) -> Outcome:
    """How a run ends whose worker has vanished: as what somebody wanted it to be, if they had called it off."""
    text = f"worker {worker} vanished: {reason}"
    if row.cancel_reason is not None:
        return Outcome(Status.CANCELLED, error=f"{row.cancel_reason}; its {text}")
    return Outcome(Status.LOST, error=text)


# -- asked for by people (and jobs) --------------------------------------------------------------------------


@transactional
def trigger(
    session: Session,
    job_id: int,
    *,
    parameters: Mapping[str, Any] | None = None,
    note: str = "",
    version: int | None = None,
    actor: Actor,
    origin: Origin = Origin.MANUAL,
) -> CronJobExecution:
    """Make a run that is due now.

    Raises NotFound; Conflict for a disabled or dead-lettered job, and where the overlap policy forbids a second
    run; Invalid for parameters that are not a JSON object.
    """
    job = _runnable_job(session, job_id)
    try:
        checked = check_parameters(dict(parameters)) if parameters else None
    except ValueError as error:
        raise Invalid({"parameters": f"parameters: {error}"}) from None
    if version is not None:
        _require_version(session, job_id, version)
    execution_id = _insert_asked_for(
        session, job, origin, parameters=checked, note=visible(note), version=version, triggered_by=actor.name
    )
    audit.record(
        session,
        actor,
        "trigger",
        ("job", job_id),
        name=job.name,
        after={"execution": execution_id, "note": visible(note)},
    )
    return _read(session, execution_id)


@transactional
def rerun(
    session: Session, execution_id: int, actor: Actor, *, same_version: bool = False
) -> CronJobExecution:
    """Run an ended execution's slot again, with its parameters, on the current version or on the one it had."""
    earlier = _read(session, execution_id)
    if earlier.status in ACTIVE:
        raise Conflict(f"Execution {execution_id} is {earlier.status}; only an ended one can run again")
    if earlier.slots_count > 1:
        raise Conflict(
            f"Execution {execution_id} stands for {earlier.slots_count:,} missed slots; backfill those that are to run"
        )
    job = _runnable_job(session, earlier.cron_job)
    again = _insert_asked_for(
        session,
        job,
        Origin.RERUN,
        slot=earlier.scheduled_time,
        parameters=earlier.parameters,
        note=f"again: execution {execution_id}",
        version=earlier.version if same_version else None,
        triggered_by=actor.name,
    )
    audit.record(
        session, actor, "rerun", ("execution", execution_id), name=job.name, after={"execution": again}
    )
    return _read(session, again)


@transactional
def backfill(
    session: Session, job_id: int, start: datetime, end: datetime, actor: Actor, *, dry_run: bool = False
) -> list[slots.BackfillSlot]:
    """Run the slots in [start, end) that no run has completed, one after another (together under `allow`).

    With `dry_run` only the list is made. Raises Invalid for an empty, future or too long range.
    """
    if not dry_run:
        # Else slots that are due would be served twice: by this and by whoever looks for them next.
        _enqueue_due_of(session, job_id)
    job = _runnable_job(session, job_id)
    found = slots.backfill_slots(session, job, start, end)
    if not dry_run:
        _insert_backfill(session, job, found, actor.name)
        audit.record(
            session,
            actor,
            "backfill",
            ("job", job_id),
            name=job.name,
            after={"start": start, "end": end, "runs": sum(slot.will_run for slot in found)},
        )
    return found


@transactional
def retry_now(session: Session, execution_id: int, actor: Actor) -> CronJobExecution:
    """Skip the delay of a pending retry. For an ended run, skip the delay of the retry that follows it."""
    execution = _read(session, execution_id)
    if execution.status != Status.PENDING:
        follower = session.scalar(
            sa.select(CronJobExecution).where(
                CronJobExecution.cron_job == execution.cron_job,
                CronJobExecution.status == Status.PENDING,
                CronJobExecution.parent_execution == execution_id,
            )
        )
        if follower is None:
            raise Conflict(f"Execution {execution_id} has no retry waiting; run it again instead")
        execution = follower
    before = {"due_time": execution.due_time}
    if not claims.make_due(session, execution.id, db.now(session), execution.priority):
        raise Conflict(f"Execution {execution.id} waits for {execution.waiting_for or 'nothing'}")
    sooner = _read(session, execution.id)
    after = {"due_time": sooner.due_time}
    audit.record(session, actor, "retry_now", ("execution", execution.id), before=before, after=after)
    return sooner


@transactional
def cancel(session: Session, execution_id: int, actor: Actor, reason: str = "") -> CronJobExecution:
    """Call off a pending run at once; ask the worker of a running one to stop it.

    Raises NotFound, and Conflict for a run that has ended.
    """
    job_id = _read(session, execution_id).cron_job
    jobs = claims.lock_ending_jobs(session, [job_id])
    row = claims.lock_runs(session, [execution_id])[execution_id]
    text = f"cancelled by {actor.name}" + (f": {reason}" if reason else "")
    before = {"status": row.status}
    if row.status == Status.PENDING:
        endings.end(session, jobs, [(row, Outcome(Status.CANCELLED, error=text))])
    elif row.status == Status.RUNNING:
        claims.ask_to_cancel(session, execution_id, text)
    else:
        raise Conflict(f"Execution {execution_id} has ended already: {row.status}")
    audit.record(
        session, actor, "cancel", ("execution", execution_id), before=before, after={"reason": reason}
    )
    return _read(session, execution_id)


@transactional
def release_lock(session: Session, execution_id: int, actor: Actor) -> CronJobExecution:
    """Take a run from its worker: it ends as lost and is retried.

    A worker that may be alive is asked to stop the run first, and ends it then, within a poll and the grace: two
    attempts must not run at once. Where the worker has vanished, or its lease has ended, the run ends now.
    """
    job_id = _read(session, execution_id).cron_job
    jobs = claims.lock_ending_jobs(session, [job_id])
    row = claims.lock_runs(session, [execution_id])[execution_id]
    if row.status != Status.RUNNING:
        raise Conflict(f"Execution {execution_id} is {row.status}; only a running one is locked")
    reason = f"lock released by {actor.name}"
    if _may_still_run(session, row):
        claims.ask_to_release(session, row, reason)
    else:
        endings.end(session, jobs, [(row, Outcome(Status.LOST, error=reason))])
    audit.record(
        session, actor, "release_lock", ("execution", execution_id), before={"locked_by": row.locked_by}
    )
    return _read(session, execution_id)


def _may_still_run(session: Session, row: claims.EndingRun) -> bool:
    """Whether the holder of a running execution may have a process of it."""
    if lease_has_ended(row.locked_until, db.now(session)):
        return False  # its worker has killed it in time
    return row.locked_by is not None and registry.may_be_alive(session, row.locked_by)


@transactional
def abandon_pending(session: Session, job_id: int, reason: str) -> int:
    """Cancel what a job has pending, for example because it was disabled. Running ones go on."""
    claims.lock_jobs(session, [job_id])
    now = db.now(session)
    ended = endings.end_all_pending(session, job_id, reason, now)
    endings.after_endings(session, [job_id] if ended else [], now)
    return ended


@transactional
def release_waiting(session: Session) -> int:
    """Look again at every waiting run, so that none waits for an event that was missed; returns how many moved."""
    free = claims.lock_free_jobs(session, claims.waiting_job_ids(session)).free
    return endings.look_at_waiting(session, free, db.now(session))


def reassign_pending(session: Session, job: CronJob) -> None:
    """Give the pending runs of a locked job its present priority and worker tag.

    Otherwise a run that waits for a tag that no worker has would wait on after the tag was set right.
    """
    session.flush()
    claims.reassign_pending(session, job.id, job.priority, job.worker_tag)


def _runnable_job(session: Session, job_id: int) -> Any:
    job = claims.lock_jobs(session, [job_id]).get(job_id)
    if job is None or job.deleted_at is not None:
        raise NotFound(f"Job {job_id} does not exist")
    if job.in_dead_letter_queue:
        raise Conflict("Job is in dead letter queue. Recover it first.")
    if not job.enabled:
        raise Conflict("Job is disabled")
    return job


def _require_version(session: Session, job_id: int, version: int) -> None:
    found = session.scalar(
        sa.select(KyteCronJobVersion.id).where(
            KyteCronJobVersion.cron_job == job_id, KyteCronJobVersion.version_number == version
        )
    )
    if found is None:
        raise Invalid({"version": f"Version {version} not found for job {job_id}"})


def _read(session: Session, execution_id: int) -> CronJobExecution:
    execution = session.get(CronJobExecution, execution_id, populate_existing=True)
    if execution is None:
        raise NotFound(f"Execution {execution_id} does not exist")
    return execution


# -- asked for -----------------------------------------------------------------------------------------------


def _insert_asked_for(
    session: Session,
    job: Any,
    origin: Origin,
    *,
    slot: datetime | None = None,
    parameters: Mapping[str, Any] | None = None,
    note: str = "",
    version: int | None = None,
    triggered_by: str = "",
) -> int:
    """Insert a run that somebody asked for; returns its id. Raises Conflict where the overlap policy forbids it.

    `slot` is given when an earlier slot runs again. Gates do not hold it: a person decided.
    """
    now = db.now(session)
    around = slots.Surroundings(session, [job.id])
    row = around.place(job, now, now, origin)
    if row["status"] == Status.SKIPPED:
        raise Conflict(f"Not started: {row['skipped_reason']}")
    row |= {
        "scheduled_time": slot or now,
        "rerun": slots.next_rerun(session, job.id, slot or now),
        "parameters": dict(parameters) if parameters else None,
        "note": note[:500] or None,
        "requested_version": version,
        "triggered_by": triggered_by[:100],
    }
    execution_id = claims.insert_run(session, row)
    for job_id, active in around.replaced.items():
        endings.make_room(session, job_id, active, now)
    if row["waiting_for"]:
        endings.look_at_waiting(session, [job.id], now)
    return execution_id


def _insert_backfill(
    session: Session, job: Any, found: Sequence[slots.BackfillSlot], triggered_by: str
) -> None:
    """Queue up the slots of a backfill that are to run, oldest first."""
    for item in found:
        if not item.will_run:
            continue
        row = slots.pending(job, item.slot, Origin.BACKFILL)
        row |= {"rerun": slots.next_rerun(session, job.id, item.slot), "triggered_by": triggered_by[:100]}
        if slots.waits_its_turn(job):
            row |= slots.waiting_for(slots.BACKFILL_WAITS)
        claims.insert_run(session, row)
    endings.look_at_waiting(session, [job.id], db.now(session))

"""When a job's slots are, and what a slot becomes when its time has come: due, waiting or skipped.

Decisions only: they read and return rows to insert, `lifecycle` and `endings` write them. A run that waits for
something other than time is *waiting*: pending, without due_time, and `waiting_for` says what for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, assert_never

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ..core import dependencies
from ..core.choices import DependencyMode, IntervalAnchor, OverlapPolicy, ScheduleType
from ..core.dependencies import ParentState, Ready, Skip, Waiting
from ..core.errors import Invalid
from ..core.schedule import DueSlots, Missed, Schedule, due_slots, jitter_offset, next_slot
from ..core.states import FINAL, Origin, Status
from ..store import claims, db
from ..store.claims import JOB, RUN
from ..store.models import CronJobDependency
from ..store.prepared import Prepared

SCHEDULE_ENDED = "its schedule has ended"
MAX_RUNS_REACHED = "max_runs reached"
ENDED_REASONS = (SCHEDULE_ENDED, MAX_RUNS_REACHED)
"""Why a job disables itself without anything being wrong; its last slot keeps its retries."""
MAX_BACKFILL = 1000
QUEUE_WAITS = "the run before it"
BACKFILL_WAITS = "its turn in the backfill"

DEPENDENCY: Any = CronJobDependency.__table__


# -- when is the next slot -----------------------------------------------------------------------------------


@lru_cache(maxsize=20_000)
def _schedule(
    kind: str, cron: str, interval: int, at: str, week: str, month: int, zone: str, anchor: Any
) -> Schedule:
    return Schedule.from_fields(
        schedule_type=kind,
        cron_expression=cron,
        interval_seconds=interval,
        time_of_day=at,
        day_of_week=week,
        day_of_month=month,
        timezone=zone,
        anchor=anchor,
    )


def schedule_of(job: Any, anchor: datetime | None = None) -> Schedule:
    """The schedule of a job's row. Raises Invalid when the row's fields make none."""
    anchor = (anchor or job.schedule_anchor) if job.schedule_type == ScheduleType.INTERVAL else None
    return _schedule(
        job.schedule_type,
        job.cron_expression,
        job.interval_seconds,
        job.time_of_day,
        job.day_of_week,
        job.day_of_month,
        job.timezone,
        anchor,
    )


def plan(job: Any, after: datetime, anchor: datetime | None = None) -> datetime | None:
    """The first slot of a job later than `after`, or None: manual, or none will come. Raises Invalid.

    `anchor` stands in for an interval's beginning that is not in the row yet.
    """
    return next_slot(schedule_of(job, anchor), after, job.starts_at, job.ends_at)


def first_slot(job: Any, now: datetime, anchor: datetime | None = None) -> datetime | None:
    """The first slot of a job that is created or enabled now: for an interval it is now itself."""
    return plan(job, now - timedelta(microseconds=1), anchor)


def ought_to_be(job: Any, now: datetime) -> datetime | None:
    """The next slot of a job where the one in its row is yet to come and is not the one that its schedule names.

    None where it is right, is due, or cannot be told. A slot too far away comes of a clock that was set back, of other
    time zone data, or of a row written by hand. Raises Invalid.
    """
    if job.next_run_time is None or job.next_run_time <= now or job.schedule_type == ScheduleType.MANUAL:
        return None
    if counts_from_completion(job):
        latest = plan_after_completion(job, now)
        return latest if latest is not None and latest < job.next_run_time else None
    wanted = plan(job, now) if not _begins_too_late(job, now) else _drawn_near(job, now)
    return wanted if wanted != job.next_run_time else None


def _begins_too_late(job: Any, now: datetime) -> bool:
    """Whether an interval's beginning lies ahead although nobody has asked for that, as after a clock set back."""
    anchored = job.schedule_type == ScheduleType.INTERVAL and job.schedule_anchor is not None
    return bool(anchored and job.schedule_anchor > max(now, job.starts_at or now))


def _drawn_near(job: Any, now: datetime) -> datetime:
    """The first slot later than now, and than `starts_at`, of an interval that went on before its beginning, too."""
    after = max(now, job.starts_at or now)
    interval = timedelta(seconds=schedule_of(job).interval_seconds or 1)
    anchor: datetime = job.schedule_anchor
    return anchor - (anchor - after - timedelta(microseconds=1)) // interval * interval


def due(session: Session, job: Any, now: datetime) -> DueSlots:
    """The slots of a job that have come since its next_run_time, that one included. Raises Invalid."""
    # Where the next slot comes of the run's end there is never more than one to be missed.
    until = job.next_run_time if counts_from_completion(job) else now
    schedule = schedule_of(job)
    found = due_slots(schedule, job.next_run_time, until, ends_at=job.ends_at)
    if found.older is None:
        return found
    # The unique key knows a row of many slots by its first alone. Some are in the ledger where somebody has set
    # next_run_time back by hand.
    accounted = claims.accounted_until(session, job.id, found.older.first, found.older.last)
    return found if accounted is None else found.after(schedule, accounted)


def plan_after_completion(job: Any, ended: datetime) -> datetime | None:
    """The next slot of an interval that counts from the end of the last run.

    None where it would come after `ends_at`, and for a row that makes no schedule: `adopt` disables either.
    """
    try:
        interval = timedelta(seconds=schedule_of(job).interval_seconds or 1)
    except Invalid:
        return None
    when = max(ended + interval, job.starts_at or ended)
    return None if job.ends_at is not None and when > job.ends_at else when


def plan_unplanned(job: Any, now: datetime, anchor: datetime | None) -> datetime | None:
    """The next slot of an enabled job that has none; `anchor` is that of an interval that only begins.

    Raises Invalid.
    """
    if counts_from_completion(job) and anchor is None:
        schedule_of(job)
        return plan_after_completion(job, now)  # its last slot was skipped: no end of a run has set the next
    return first_slot(job, now, anchor)


def counts_from_completion(job: Any) -> bool:
    """Whether the next slot is known only when the run has ended."""
    if job.schedule_type != ScheduleType.INTERVAL:
        return False
    match IntervalAnchor.of(job.interval_anchor):
        case IntervalAnchor.COMPLETION:
            return True
        case IntervalAnchor.SCHEDULE:
            return False
        case never:
            assert_never(never)


def ended_by_itself(job: Any) -> bool:
    """Whether a disabled job was disabled by its own schedule's end."""
    return job.disabled_reason in ENDED_REASONS


# -- max_runs ------------------------------------------------------------------------------------------------


def runs_left(job: Any, placed: Sequence[Mapping[str, Any]] = ()) -> bool:
    """Whether `max_runs` leaves a job a run after those in `placed`."""
    return job.max_runs is None or _runs_after(job, placed) < job.max_runs


def after_runs(job: Any, placed: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What changes in a job's row for the new rows in `placed`; nothing where it may have any number of runs."""
    if job.max_runs is None:
        return {}
    counted = {"runs_scheduled": _runs_after(job, placed)}
    return counted if runs_left(job, placed) else counted | ended(MAX_RUNS_REACHED)


def _runs_after(job: Any, placed: Sequence[Mapping[str, Any]]) -> int:
    # What the overlap policy skips uses up none: a job with max_runs = 1 still owes its one.
    return int(job.runs_scheduled) + sum(bool(row["status"] == Status.PENDING) for row in placed)


def give_back_run(job: Any, now: datetime) -> dict[str, Any]:
    """What changes in a job's row when a run that was counted for `max_runs` is skipped after all."""
    if job.max_runs is None:
        return {}
    count = JOB.c.runs_scheduled  # not from the row: several may be given back, and enabling counts from zero
    changes: dict[str, Any] = {"runs_scheduled": sa.case((count > 0, count - 1), else_=0)}
    if not job.enabled and job.disabled_reason == MAX_RUNS_REACHED:
        following = None if counts_from_completion(job) else plan(job, now)
        changes |= {"enabled": True, "disabled_reason": None, "next_run_time": following}
    return changes


def end_of(job: Any, now: datetime) -> str | None:
    """Which of ENDED_REASONS keeps a job from another run, if any does."""
    if not runs_left(job):
        return MAX_RUNS_REACHED
    return SCHEDULE_ENDED if job.ends_at is not None and now > job.ends_at else None


def ended(reason: str) -> dict[str, Any]:
    """What changes in the row of a job that disables itself for one of ENDED_REASONS."""
    return {"enabled": False, "disabled_reason": reason, "next_run_time": None}


# -- overlap -------------------------------------------------------------------------------------------------


_GATED = Prepared(sa.select(DEPENDENCY.c.cron_job).where(DEPENDENCY.c.cron_job.in_(claims.IDS)).distinct())


class Surroundings:
    """What stands around some jobs' new slots: active chains and gates, each read in one statement."""

    def __init__(self, session: Session, job_ids: Collection[int]) -> None:
        self.active: dict[int, list[Any]] = defaultdict(list)
        for run in claims.active_runs(session, job_ids):
            # What a backfill has queued up must not make the job miss its regular slots.
            if not waits_in_backfill(run):
                self.active[run.cron_job].append(run)
        self.gated = {row.cron_job for row in _GATED.rows(session, {"ids": list(job_ids)})}
        self.placed: dict[int, int] = defaultdict(int)
        self.queued: dict[int, int] = defaultdict(int)
        """Of those placed, how many wait for the active runs under `queue`."""
        self.replaced: dict[int, list[Any]] = {}
        """Active runs that a new one replaces, by job."""

    def place(
        self, job: Any, slot: datetime, now: datetime, origin: Origin = Origin.SCHEDULE
    ) -> dict[str, Any]:
        """The row for a slot that is to run: due, waiting, or skipped by the overlap policy."""
        row = pending(job, slot, origin)
        if job.id in self.gated and is_gated(job) and origin == Origin.SCHEDULE:
            # The look at waiting runs that follows asks the parents.
            # Counted from now: a slot that comes late, after an outage, has its parents come as late.
            row |= waiting_for("its parents", now + timedelta(seconds=job.dependency_timeout_seconds))
        active, earlier = self.active[job.id], self.placed[job.id]
        self.placed[job.id] += 1
        if not waits_its_turn(job) or not (active or earlier):
            return row
        if not active:  # several missed slots run one after another
            return row | waiting_for(QUEUE_WAITS)
        match OverlapPolicy.of(job.overlap_policy):
            case OverlapPolicy.QUEUE:
                return self._queue(job, slot, now, row)
            case OverlapPolicy.REPLACE:
                self.replaced[job.id] = active
                return row | waiting_for(QUEUE_WAITS)
            case OverlapPolicy.SKIP:
                reason = f"execution {active[0].id} was still {_doing(active[0])} (overlap_policy skip)"
                return skipped(job, slot, reason, now, origin)
            case OverlapPolicy.ALLOW:
                return row
            case never:
                assert_never(never)

    def _queue(self, job: Any, slot: datetime, now: datetime, row: dict[str, Any]) -> dict[str, Any]:
        waiting = [run for run in self.active[job.id] if run.waiting_for]
        if len(waiting) + self.queued[job.id] < job.queue_length:
            self.queued[job.id] += 1
            return row | waiting_for(QUEUE_WAITS)
        one = f"execution {waiting[0].id}" if waiting else "an earlier slot"
        who = f"{one} waits" if job.queue_length == 1 else f"{job.queue_length} runs wait"
        reason = f"{who} already (overlap_policy queue, queue_length {job.queue_length})"
        return skipped(job, slot, reason, now, Origin(row["origin"]))


def waits_its_turn(job: Any) -> bool:
    """Whether a run of a job waits for the one before it to end."""
    return OverlapPolicy.of(job.overlap_policy) is not OverlapPolicy.ALLOW


def is_gated(job: Any) -> bool:
    """Whether a job that has parents keeps its own slots and waits at them; otherwise its parents start it."""
    match DependencyMode.of(job.dependency_mode):
        case DependencyMode.GATE:
            return True
        case DependencyMode.TRIGGER:
            return False
        case never:
            assert_never(never)


def waits_in_backfill(run: Any) -> bool:
    """Whether a run is queued up behind others by a backfill."""
    return bool(run.origin == Origin.BACKFILL and run.due_time is None)


def _doing(run: Any) -> str:
    if run.status == Status.RUNNING:
        return "running"
    return "waiting for its retry" if run.retry_count else "waiting to start"


def start_of(job: Any, slot: datetime, origin: str) -> datetime:
    """When a slot's run starts if it waits for nothing else; the job's own jitter moves what the schedule makes."""
    return slot + jitter_offset(job.id, job.jitter_seconds) if origin == Origin.SCHEDULE else slot


def pending(job: Any, slot: datetime, origin: Origin) -> dict[str, Any]:
    """The row of a run that starts in its turn."""
    due = start_of(job, slot, origin)
    return claims.new_run(
        cron_job=job.id,
        scheduled_time=slot,
        origin=origin,
        due_time=due,
        queue_time=claims.queue_time(due, job.priority),
        priority=job.priority,
        worker_tag=job.worker_tag,
    )


def waiting_for(reason: str, until: datetime | None = None) -> dict[str, Any]:
    """What makes a pending row wait for something other than time; with `until`, for its parents."""
    waiting: dict[str, Any] = {"due_time": None, "queue_time": None, "waiting_for": reason}
    return waiting | {"waiting_until": until} if until else waiting


def skipped(
    job: Any, slot: datetime, reason: str, now: datetime, origin: Origin = Origin.SCHEDULE
) -> dict[str, Any]:
    """The row of a slot that will not run, and why."""
    return claims.new_run(
        cron_job=job.id,
        scheduled_time=slot,
        origin=origin,
        status=Status.SKIPPED,
        due_time=slot,
        priority=job.priority,
        worker_tag=job.worker_tag,
        skipped_reason=reason[:500],
        completed_at=now,
    )


def missed(job: Any, what: Missed, now: datetime) -> dict[str, Any]:
    """The row of a slot that was missed, or of many."""
    row = skipped(job, what.slots.first, what.reason, now)
    if what.slots.count > 1:
        row |= {"slots_until": what.slots.last, "slots_count": what.slots.count}
    return row


# -- dependencies --------------------------------------------------------------------------------------------


def _last_success_began(session: Session, job_id: int) -> datetime | None:
    # When it began, not when it ended: a parent that completed while it ran brings news it has not seen.
    return session.scalar(
        sa.select(RUN.c.started_at)
        .where(RUN.c.cron_job == job_id, RUN.c.status == Status.COMPLETED)
        .order_by(RUN.c.id.desc())
        .limit(1)
    )


def parent_states(session: Session, job_id: int, slot: datetime) -> list[ParentState]:
    """The parents of a job as the dependency rules see them for `slot`."""
    parents = session.execute(
        sa.select(JOB)
        .join(DEPENDENCY, DEPENDENCY.c.parent == JOB.c.id)
        .where(DEPENDENCY.c.cron_job == job_id)
    ).all()
    active: dict[int, list[Any]] = defaultdict(list)
    if parents:
        for run in claims.active_runs(session, [parent.id for parent in parents]):
            active[run.cron_job].append(run)
    return [_parent_state(session, parent, active[parent.id], slot) for parent in parents]


def _parent_state(session: Session, parent: Any, active: Sequence[Any], slot: datetime) -> ParentState:
    latest = _ended_last(session, parent, {(run.scheduled_time, run.rerun) for run in active})
    return ParentState(
        job_id=parent.id,
        name=parent.name,
        enabled=parent.enabled,
        dead=parent.in_dead_letter_queue,
        deleted=parent.deleted_at is not None,
        active=any(run.scheduled_time <= slot for run in active),
        due_at_or_before_slot=parent.next_run_time is not None and parent.next_run_time <= slot,
        latest_status=Status(latest.status) if latest else None,
        latest_execution_id=latest.id if latest else None,
        latest_completed_at=latest.completed_at if latest else None,
    )


def _ended_last(session: Session, parent: Any, going: Collection[tuple[datetime, int]]) -> Any:
    """The last attempt of a job's chain that ended last; `going` are the chains, by slot and rerun, that have not.

    A few newest rows by id hold it, or it is the run that ended last: a long one has any number of slots behind it
    that were skipped because of it.
    """
    ended = sa.select(RUN.c.id, RUN.c.status, RUN.c.completed_at, RUN.c.scheduled_time, RUN.c.rerun).where(
        RUN.c.cron_job == parent.id, RUN.c.status.in_(list(FINAL))
    )
    rows = list(session.execute(ended.order_by(RUN.c.id.desc()).limit(20)))
    if parent.last_execution is not None:
        rows += session.execute(ended.where(RUN.c.id == parent.last_execution))
    over = [row for row in rows if (row.scheduled_time, row.rerun) not in going]
    return max(over, key=lambda row: (row.completed_at, row.id), default=None)


def gate(session: Session, job: Any, run: Any, now: datetime) -> Ready | Waiting | Skip | None:
    """What the parents say about a waiting run; None where they have no say."""
    if run.waiting_until is None:
        return None
    parents = parent_states(session, job.id, run.scheduled_time)
    if not parents:
        return None
    return dependencies.gate(
        parents,
        slot=run.scheduled_time,
        deadline=run.waiting_until,
        now=now,
        require_fresh=job.require_fresh,
        last_success=_last_success_began(session, job.id) if job.require_fresh else None,
    )


def ready_to_trigger(session: Session, job_id: int, now: datetime) -> Ready | Waiting:
    """Whether a job that its parents start may start now."""
    newest = session.execute(
        sa.select(RUN.c.started_at, RUN.c.scheduled_time)
        .where(RUN.c.cron_job == job_id, RUN.c.status != Status.SKIPPED)
        .order_by(RUN.c.id.desc())
        .limit(1)
    ).first()
    own_last = (newest.started_at or newest.scheduled_time) if newest else None
    return dependencies.trigger_ready(parent_states(session, job_id, now), own_last)


# -- asked for -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BackfillSlot:
    """A slot of a backfill: what the ledger says of it, and whether it will run."""

    slot: datetime
    status: str | None
    will_run: bool


def backfill_slots(session: Session, job: Any, start: datetime, end: datetime) -> list[BackfillSlot]:
    """The slots of a job in [start, end). Raises Invalid for an empty, future or too long range."""
    if start >= end:
        raise Invalid({"to": "to must be later than from: the range is [from, to)"})
    if end > db.now(session):
        raise Invalid({"to": "to must not lie in the future: those slots will run by themselves"})
    schedule = schedule_of(job)
    found: list[datetime] = []
    slot = schedule.next_after(start - timedelta(microseconds=1))
    while slot is not None and slot < end:
        found.append(slot)
        if len(found) > MAX_BACKFILL:
            raise Invalid({"to": f"the range holds more than {MAX_BACKFILL} slots; choose a shorter one"})
        slot = schedule.next_after(slot)
    known = _missed_together(session, job.id, found) | _statuses(session, job.id, start, end)
    going = {Status.COMPLETED, Status.PENDING, Status.RUNNING}
    return [BackfillSlot(slot, known.get(slot), known.get(slot) not in going) for slot in found]


def _statuses(session: Session, job_id: int, start: datetime, end: datetime) -> dict[datetime, str]:
    """The best status each slot has in the ledger: completed if any of its runs did."""
    rows = session.execute(
        sa.select(RUN.c.scheduled_time, RUN.c.status)
        .where(RUN.c.cron_job == job_id, RUN.c.scheduled_time >= start, RUN.c.scheduled_time < end)
        .order_by(RUN.c.id)
    )
    known: dict[datetime, str] = {}
    for row in rows:
        if known.get(row.scheduled_time) != Status.COMPLETED:
            known[row.scheduled_time] = row.status
    return known


def _missed_together(session: Session, job_id: int, found: Sequence[datetime]) -> dict[datetime, str]:
    """Those of the slots `found` that have no row of their own because they were missed with many others."""
    if not found:
        return {}
    shared = claims.summaries(found[0], found[-1]).where(RUN.c.cron_job == job_id)
    spans = session.execute(shared.with_only_columns(RUN.c.scheduled_time, RUN.c.slots_until)).all()
    return {
        slot: Status.SKIPPED
        for slot in found
        if any(span.scheduled_time <= slot <= span.slots_until for span in spans)
    }


def next_rerun(session: Session, job_id: int, slot: datetime) -> int:
    """The `rerun` number that makes another run of a slot a row of its own."""
    last = session.scalar(
        sa.select(sa.func.max(RUN.c.rerun)).where(RUN.c.cron_job == job_id, RUN.c.scheduled_time == slot)
    )
    if last is None:
        return int(claims.is_in_summary(session, job_id, slot))
    return int(last) + 1

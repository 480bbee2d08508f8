"""Why a job has not run, or why it waits: one answer for the page, the API and the command line.

What stands in the way comes first, then what is under way, then when it is due. Reads only; nothing is decided
here: the rules are asked (`slots`, `core.dependencies`) or what they wrote down is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ..core.choices import OverlapPolicy, ScheduleType
from ..core.dependencies import ParentState, Waiting
from ..core.errors import Invalid, NotFound
from ..core.schedule import tzdata_order
from ..core.states import ENDED, FINAL, Origin, Status
from ..core.untrusted import LARGEST
from ..core.words import count, in_words
from ..core.workers import lease_has_ended
from ..store import db, locks
from ..store.claims import RUN
from ..store.models import GOING_ON, PENDING, RUNNING, CronAudit, CronJob, CronWorkerRecord
from . import registry, slots

SHOWN = 5
"""Runs that are explained one by one; of a long queue the rest is counted."""
PATIENCE = timedelta(seconds=10)
"""A due run that a free worker has not taken for so long is not about to start."""
COUNTED = 1000
"""Runs before it in the queue are counted up to this many."""
CANNOT_BE_SCHEDULED = "cannot be scheduled: "


class Cause(StrEnum):
    """What a reason is about, the value for programs."""

    DELETED = "deleted"
    DEAD_LETTER = "dead_letter"
    DISABLED = "disabled"
    ENDED = "ended"
    CANNOT_BE_SCHEDULED = "cannot_be_scheduled"
    RUNNING = "running"
    CANCELLING = "cancelling"
    LEASE_ENDED = "lease_ended"
    NO_WORKER = "no_worker"
    WORKER_TAG = "worker_tag"
    DRAINING = "draining"
    TROUBLE = "trouble"
    BUSY = "busy"
    OVERDUE = "overdue"
    PASSED_OVER = "passed_over"
    MISPLANNED = "misplanned"
    ABOUT_TO_START = "about_to_start"
    RETRY = "retry"
    JITTER = "jitter"
    OVERLAP = "overlap"
    DEPENDENCY = "dependency"
    BACKFILL = "backfill"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"
    STARTS_AT = "starts_at"
    NEXT_SLOT = "next_slot"
    MANUAL = "manual"
    UNPLANNED = "unplanned"
    NO_CODE = "no_code"
    MORE = "more"
    PARENT = "parent"
    OVERLAP_POLICY = "overlap_policy"


@dataclass(frozen=True, slots=True)
class Reason:
    """One fact: `code` is stable and for programs, `text` is for people, `since` is when it became so."""

    code: Cause
    text: str
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Why:
    """A sentence, and what it rests on: the weightiest reason first."""

    verdict: str
    reasons: tuple[Reason, ...]

    @property
    def as_planned(self) -> bool:
        """Whether nobody has to do anything about it."""
        return AS_PLANNED.issuperset(reason.code for reason in self.reasons)


VERDICTS = {
    Cause.DELETED: "was deleted",
    Cause.DEAD_LETTER: "is in the dead letter queue",
    Cause.DISABLED: "is disabled",
    Cause.ENDED: "has had all its runs and disabled itself",
    Cause.CANNOT_BE_SCHEDULED: "has settings that make no schedule",
    Cause.RUNNING: "is running now",
    Cause.CANCELLING: "is running and was asked to stop",
    Cause.LEASE_ENDED: "is leased to a worker that has vanished",
    Cause.NO_WORKER: "waits for a worker: none is alive",
    Cause.WORKER_TAG: "waits for a worker with its tag: none is alive",
    Cause.DRAINING: "waits for a worker: those that live are shutting down",
    Cause.TROUBLE: "waits for a worker: those that live cannot start it",
    Cause.BUSY: "waits for free capacity on a worker",
    Cause.OVERDUE: "is overdue although a worker is free",
    Cause.PASSED_OVER: "has a slot that is due and that workers pass over",
    Cause.MISPLANNED: "has a next slot that its schedule does not name",
    Cause.ABOUT_TO_START: "is about to start",
    Cause.RETRY: "waits for its retry",
    Cause.JITTER: "waits for its own offset after the slot (jitter)",
    Cause.OVERLAP: "waits for the run before it",
    Cause.DEPENDENCY: "waits for its parents",
    Cause.BACKFILL: "waits for its turn in the backfill",
    Cause.SKIPPED: "skipped its last slot",
    Cause.CANCELLED: "had its last run cancelled",
    Cause.STARTS_AT: "has not begun: its schedule starts later",
    Cause.NEXT_SLOT: "is not due yet",
    Cause.MANUAL: "has no schedule: it runs when somebody or something starts it",
    Cause.UNPLANNED: "has no next slot yet",
    Cause.NO_CODE: "has no code",
    Cause.MORE: "has runs that wait",
    Cause.PARENT: "waits for its parents",
    Cause.OVERLAP_POLICY: "keeps to its overlap policy",
}
"""What the weightiest reason means for the job; completes the sentence that begins with its name."""
AS_PLANNED = frozenset(
    {
        Cause.RUNNING,
        Cause.ABOUT_TO_START,
        Cause.RETRY,
        Cause.JITTER,
        Cause.STARTS_AT,
        Cause.NEXT_SLOT,
        Cause.MANUAL,
    }
)
"""Reasons for which nobody has to do anything."""


def explain(session: Session, job_id: int, now: datetime | None = None) -> Why:
    """Say why a job has not run, or what it waits for. Raises NotFound.

    `now` is by the database's clock, which is asked if it is not given.
    """
    job = session.get(CronJob, job_id, populate_existing=True) if 0 < job_id <= LARGEST else None
    if job is None:
        raise NotFound(f"Job {job_id} does not exist")
    look = _Look(session, job, now or db.now(session))
    reasons = tuple(look.reasons())
    return Why(f'Job {job.id} "{_plain(job.name)}" {VERDICTS[reasons[0].code]}.', reasons)


class _Look:
    """One look at one job. The workers are looked up once, and only if they matter."""

    def __init__(self, session: Session, job: CronJob, now: datetime) -> None:
        self.session = session
        self.job = job
        self.now = now
        self._workers: Sequence[CronWorkerRecord] | None = None

    def reasons(self) -> Iterator[Reason]:
        standing = self._standing()
        active = self._active_runs()
        if standing is not None:
            yield standing
        yield from self._under_way(active)
        if standing is not None:
            return
        if not active:
            yield from self._last_ending()
        yield from self._to_come(active)
        if self.job.current_version is None:
            yield Reason(Cause.NO_CODE, "It has no code yet: its runs are skipped")

    # -- what stands in the way of everything ----------------------------------------------------------------

    def _standing(self) -> Reason | None:
        job = self.job
        if job.deleted_at is not None:
            by = self._audited({"delete"})
            return Reason(Cause.DELETED, f"Deleted{_by(by)} at {_time(job.deleted_at)}", job.deleted_at)
        if job.in_dead_letter_queue:
            since = f" since {_time(job.dead_letter_since)}" if job.dead_letter_since else ""
            text = (
                f"In the dead letter queue{since}: {job.dead_letter_reason or 'no reason was written down'}"
            )
            return Reason(Cause.DEAD_LETTER, f"{text}. Recover it to let it run again", job.dead_letter_since)
        if not job.enabled:
            return self._disabled()
        try:
            slots.schedule_of(job)
        except Invalid as invalid:
            return Reason(Cause.CANNOT_BE_SCHEDULED, f"Its settings make no schedule: {invalid.message}")
        return None

    def _disabled(self) -> Reason:
        job, reason = self.job, self.job.disabled_reason or ""
        if slots.ended_by_itself(job):
            return Reason(Cause.ENDED, f"It disabled itself: {reason}{self._end()}")
        change = self._audited({"enable", "disable"})
        if reason.startswith(CANNOT_BE_SCHEDULED):
            problem = reason.removeprefix(CANNOT_BE_SCHEDULED)
            text = f"A worker disabled it, for its settings make no schedule: {problem}"
            return Reason(Cause.CANNOT_BE_SCHEDULED, text, change.at if change else None)
        if change is None or change.action == "enable":
            text = "Disabled without a trace, as a change made in SQL is"
            return Reason(Cause.DISABLED, f"{text}: {reason}" if reason else text)
        text = f"Disabled{_by(change)} at {_time(change.at)}"
        return Reason(Cause.DISABLED, f"{text}: {reason}" if reason else text, change.at)

    def _end(self) -> str:
        if self.job.disabled_reason == slots.MAX_RUNS_REACHED and self.job.max_runs is not None:
            return f" ({self.job.max_runs})"
        return f" (ends_at {_time(self.job.ends_at)})" if self.job.ends_at else ""

    def _audited(self, actions: set[str]) -> CronAudit | None:
        """The job's newest change of one of these kinds; one that says `enabled` is one that enables or disables."""
        rows = self.session.scalars(
            sa.select(CronAudit)
            .where(CronAudit.subject_type == "job", CronAudit.subject_id == str(self.job.id))
            .order_by(CronAudit.id.desc())
            .limit(100)
        )
        for row in rows:
            if row.action in actions or ("disable" in actions and (row.after or {}).get("enabled") is False):
                return row
        return None

    # -- what is under way -----------------------------------------------------------------------------------

    def _active_runs(self) -> list[Any]:
        """Pending and running executions: those that run, those that are due, those that wait."""
        rows = self.session.execute(
            sa.select(*_ACTIVE_COLUMNS).where(RUN.c.cron_job == self.job.id, GOING_ON).order_by(RUN.c.id)
        ).all()
        return sorted(rows, key=lambda run: (run.status != Status.RUNNING, run.due_time is None, run.id))

    def _under_way(self, active: Sequence[Any]) -> Iterator[Reason]:
        for run in active[:SHOWN]:
            yield from self._running(run) if run.status == Status.RUNNING else self._pending(run)
        if len(active) > SHOWN:
            yield Reason(Cause.MORE, f"{len(active) - SHOWN} more of its runs wait")

    def _running(self, run: Any) -> Iterator[Reason]:
        where = f"{_execution(run)} runs on worker {run.locked_by} since {_time(run.started_at)}"
        if lease_has_ended(run.locked_until, self.now):
            when = f" at {_time(run.locked_until)}" if run.locked_until else ""
            text = f"{where}, whose lease ended{when}: any living worker ends it as lost"
            yield Reason(Cause.LEASE_ENDED, text, run.locked_until)
            if none := self._no_worker():
                yield none
        elif run.cancel_reason:
            yield Reason(
                Cause.CANCELLING, f"{where} and was asked to stop: {run.cancel_reason}", run.started_at
            )
        else:
            yield Reason(Cause.RUNNING, where, run.started_at)

    def _pending(self, run: Any) -> Iterator[Reason]:
        if run.due_time is None:
            yield from self._waiting(run)
        elif run.due_time > self.now:
            yield self._not_yet(run)
        else:
            yield self._due(run)

    def _waiting(self, run: Any) -> Iterator[Reason]:
        waits = f"{_execution(run)} waits for {run.waiting_for}"
        gate = slots.gate(self.session, self.job, run, self.now)
        if isinstance(gate, Waiting):
            text = f"{_execution(run)} waits for {gate.for_}, at most until {_time(run.waiting_until)}"
            yield Reason(Cause.DEPENDENCY, text, run.scheduled_time)
            yield from self._parents(run.scheduled_time)
        elif run.origin == Origin.BACKFILL:
            yield Reason(Cause.BACKFILL, waits, None)
        elif gate is not None:
            text = f"{_execution(run)}: its parents have ended; any living worker decides within a second"
            yield self._no_worker() or Reason(Cause.ABOUT_TO_START, text, run.scheduled_time)
        else:
            yield Reason(Cause.OVERLAP, waits, run.scheduled_time)

    def _not_yet(self, run: Any) -> Reason:
        left = in_words((run.due_time - self.now).total_seconds())
        if not run.is_retry:
            text = f"{_execution(run)} starts at {_time(run.due_time)}, in {left} (jitter_seconds)"
            return Reason(Cause.JITTER, text, run.scheduled_time)
        before = self.session.execute(
            sa.select(RUN.c.id, RUN.c.status, RUN.c.error, RUN.c.completed_at).where(
                RUN.c.id == run.parent_execution
            )
        ).first()
        text = (
            f"{_execution(run)} is retry {run.retry_count} of {self.job.max_retries} and starts at "
            f"{_time(run.due_time)}, in {left}"
        )
        if before is None:
            return Reason(Cause.RETRY, text)
        cause = f": {_plain(before.error)}" if before.error else ""
        return Reason(
            Cause.RETRY, f"{text}. Execution {before.id} {before.status}{cause}", before.completed_at
        )

    def _due(self, run: Any) -> Reason:
        """A run that waits for nothing but a worker."""
        if none := self._no_worker(run.worker_tag, run.due_time):
            return none
        due = f"{_execution(run)} has been due since {_time(run.due_time)}"
        able = [one for one in self._alive() if _takes(one, run.worker_tag)]
        working = [one for one in able if not one.draining]
        if not working:
            text = f"{due}; {count(len(able), 'living worker')} could take it, but shut down"
            return Reason(Cause.DRAINING, text, run.due_time)
        if all(registry.hinders(one, self.job.id) for one in working):
            first, *others = working
            also = f" and {count(len(others), 'other')}" if others else ""
            text = f"{due}; worker {first.worker_id}{also} cannot start it: {first.trouble}"
            return Reason(Cause.TROUBLE, text, first.trouble_since)
        if not self._free(working):
            slots_ = sum(one.slots for one in working)
            text = f"{due}; all {slots_} slots of {count(len(working), 'living worker')} are busy"
            return Reason(Cause.BUSY, f"{text}, and {self._before(run, working)} due before it", run.due_time)
        if self.now - run.due_time > PATIENCE:
            names = ", ".join(one.worker_id for one in working[:3])
            text = f"{due} although a worker has free capacity: look at the log of {names}"
            if locks.run_is_locked(self.session, run.id):
                text = f"{due} and workers pass over it, for its row is locked{self._by_whom()}"
            return Reason(Cause.OVERDUE, text, run.due_time)
        return Reason(Cause.ABOUT_TO_START, f"{due}, and a worker has free capacity", run.due_time)

    def _free(self, workers: Sequence[CronWorkerRecord]) -> bool:
        running = Counter(self.session.scalars(sa.select(RUN.c.locked_by).where(RUNNING)))
        return any(running[one.worker_id] < one.slots for one in workers)

    def _before(self, run: Any, workers: Sequence[CronWorkerRecord]) -> str:
        """How many runs those workers will take first."""
        tags = {"", *(tag for one in workers for tag in one.tags.split(",") if tag)}
        earlier = (
            sa.select(RUN.c.id)
            .where(
                PENDING,
                RUN.c.worker_tag.in_(sorted(tags)),
                RUN.c.due_time <= self.now,
                RUN.c.queue_time < run.queue_time,
            )
            .limit(COUNTED)
            .subquery()
        )
        number = self.session.scalar(sa.select(sa.func.count()).select_from(earlier)) or 0
        return (
            f"at least {COUNTED} runs are" if number == COUNTED else f"{count(number, 'run')} {_are(number)}"
        )

    # -- workers ---------------------------------------------------------------------------------------------

    def _alive(self) -> Sequence[CronWorkerRecord]:
        if self._workers is None:
            self._workers = [one.worker for one in registry.living(self.session, self.now)]
        return self._workers

    def _no_worker(self, tag: str = "", since: datetime | None = None) -> Reason | None:
        """Why nobody would take a run with this tag; None if a living worker would."""
        alive = self._alive()
        if not alive:
            return Reason(Cause.NO_WORKER, f"No worker is alive. {self._last_seen()}", since)
        if not any(_takes(one, tag) for one in alive):
            text = (
                f'It needs a worker with the tag "{tag}"; none of {count(len(alive), "living worker")} has it'
            )
            return Reason(Cause.WORKER_TAG, text, since)
        return None

    def _last_seen(self) -> str:
        last = self.session.scalar(
            sa.select(CronWorkerRecord).order_by(CronWorkerRecord.last_seen_at.desc()).limit(1)
        )
        if last is None:
            return "None has ever been started: python worker.py"
        ended = "stopped" if last.stopped_at else "was last heard of"
        return f"The last one, {last.worker_id}, {ended} at {_time(last.stopped_at or last.last_seen_at)}"

    # -- parents ---------------------------------------------------------------------------------------------

    def _parents(self, slot: datetime) -> Iterator[Reason]:
        for parent in slots.parent_states(self.session, self.job.id, slot):
            yield Reason(Cause.PARENT, f"Its parent {_parent(parent)}", parent.latest_completed_at)

    # -- what was, and what will be --------------------------------------------------------------------------

    def _last_ending(self) -> Iterator[Reason]:
        """The last ending, where it says why nothing ran."""
        last = self.session.execute(
            sa.select(*_ENDED_COLUMNS)
            .where(RUN.c.cron_job == self.job.id, RUN.c.status.in_(sorted(FINAL)))
            .order_by(RUN.c.id.desc())
            .limit(1)
        ).first()
        if last is None or last.status not in (Status.SKIPPED, Status.CANCELLED):
            return
        text = (
            f"{_execution(last)} was {last.status}: {last.skipped_reason or last.error or 'nobody said why'}"
        )
        yield Reason(Cause(last.status), text, last.completed_at)

    def _to_come(self, active: Sequence[Any]) -> Iterator[Reason]:
        job = self.job
        yield from self._triggers()
        if job.schedule_type == ScheduleType.MANUAL:
            yield Reason(Cause.MANUAL, "It has no schedule: a person, a program or a parent starts it")
            return
        if active and (text := _OVERLAP[OverlapPolicy.of(job.overlap_policy)]):
            told = text.format(slots=_up_to(job.queue_length), length=job.queue_length)
            yield Reason(Cause.OVERLAP_POLICY, told)
        if job.next_run_time is None:
            if not (active and slots.counts_from_completion(job)):
                text = "It has no next slot yet; a worker gives it one within seconds"
                yield self._no_worker() or Reason(Cause.UNPLANNED, text)
        elif job.next_run_time <= self.now:
            text = f"Its slot {_time(job.next_run_time)} is due, and becomes a run as soon as a worker looks"
            none = self._no_worker(job.worker_tag, job.next_run_time)
            passed = self._passed_over(job.next_run_time)
            yield none or passed or Reason(Cause.ABOUT_TO_START, text, job.next_run_time)
        else:
            yield self._next_slot(job.next_run_time)
            if none := self._no_worker(job.worker_tag):
                yield none

    def _passed_over(self, slot: datetime) -> Reason | None:
        """Why living workers leave a due slot alone; None where it has been due since a moment."""
        late = self.now - slot
        if late <= PATIENCE:
            return None
        text = f"Its slot {_time(slot)} has been due for {in_words(late.total_seconds())} and workers pass over it"
        if locks.job_is_locked(self.session, self.job.id):
            text += f": somebody keeps the job's row locked{self._by_whom()}"
        elif len({tzdata_order(one.tzdata) for one in self._alive()}) > 1:
            text += ": only those with the newest time zones plan slots"
        return Reason(Cause.PASSED_OVER, text, slot)

    def _by_whom(self) -> str:
        found = locks.holders(self.session)
        return f" ({', '.join(found)})" if found else ""

    def _next_slot(self, slot: datetime) -> Reason:
        when = f"{_time(slot)}, in {in_words((slot - self.now).total_seconds())}"
        wanted = slots.ought_to_be(self.job, self.now)
        if wanted is not None and wanted < slot:
            text = (
                f"Its next slot is {when}, but its schedule names {_time(wanted)}: doctor --fix plans it anew"
            )
            return Reason(Cause.MISPLANNED, text)
        if self.job.starts_at is not None and self.job.starts_at > self.now:
            return Reason(
                Cause.STARTS_AT,
                f"Its schedule starts at {_time(self.job.starts_at)}; its first slot is {when}",
            )
        return Reason(Cause.NEXT_SLOT, f"Its next slot is {when}")

    def _triggers(self) -> Iterator[Reason]:
        """What a job that is started by its parents still waits for."""
        if slots.is_gated(self.job):
            return
        states = slots.parent_states(self.session, self.job.id, self.now)
        if not states:
            return
        if self.job.starts_at is not None and self.job.starts_at > self.now:
            yield Reason(Cause.STARTS_AT, f"Its parents start it from {_time(self.job.starts_at)} on")
        ready = slots.ready_to_trigger(self.session, self.job.id, self.now)
        if isinstance(ready, Waiting):
            yield Reason(Cause.DEPENDENCY, f"Since its own last start it waits for {ready.for_}")
            yield from self._parents(self.now)


_ACTIVE_COLUMNS = tuple(
    RUN.c[name]
    for name in (
        *("id", "status", "scheduled_time", "due_time", "queue_time", "started_at", "origin", "worker_tag"),
        *("is_retry", "retry_count", "parent_execution", "waiting_for", "waiting_until"),
        *("locked_by", "locked_until", "cancel_reason"),
    )
)
_ENDED_COLUMNS = tuple(
    RUN.c[name]
    for name in (
        *("id", "status", "scheduled_time", "completed_at", "skipped_reason", "error"),
        *("slots_until", "slots_count"),
    )
)
_OVERLAP: dict[OverlapPolicy, str] = {
    OverlapPolicy.SKIP: "Slots that come until then are skipped (overlap_policy skip)",
    OverlapPolicy.QUEUE: "{slots} until then, more are skipped (overlap_policy queue, queue_length {length})",
    OverlapPolicy.REPLACE: "A slot that comes until then stops the run and takes its place (overlap_policy replace)",
    OverlapPolicy.ALLOW: "",
}


def _up_to(length: int) -> str:
    return "One slot may wait" if length == 1 else f"Up to {length} slots may wait"


def _takes(worker: CronWorkerRecord, tag: str) -> bool:
    return not tag or tag in worker.tags.split(",")


def _parent(parent: ParentState) -> str:
    name = f'"{_plain(parent.name)}" (job {parent.job_id})'
    if parent.deleted:
        return f"{name} was deleted"
    if parent.active:
        return f"{name} is running or waits to start"
    if parent.dead:
        return f"{name} is in the dead letter queue"
    if not parent.enabled:
        return f"{name} is disabled"
    if parent.due_at_or_before_slot:
        return f"{name} is due"
    if parent.latest_status is None:
        return f"{name} has never run"
    return f"{name} {ENDED[parent.latest_status]} last (execution {parent.latest_execution_id})"


def _execution(run: Any) -> str:
    if getattr(run, "slots_count", 1) > 1:
        slots = f"{run.slots_count:,} slots from {_time(run.scheduled_time)} to {_time(run.slots_until)}"
    else:
        slots = f"slot {_time(run.scheduled_time)}"
    return f"Execution {run.id} ({slots})"


def _by(change: CronAudit | None) -> str:
    return f" by {_plain(change.actor)} ({change.source})" if change else ""


def _plain(text: str) -> str:
    return " ".join(text.split())


def _time(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M:%S} UTC"


def _are(number: int) -> str:
    return "is" if number == 1 else "are"

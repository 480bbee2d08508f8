"""Why a job has not run, or why it waits: one answer for the page, the API and the command line.

What stands in the way comes first, then what is under way, then when it is due. Reads only; nothing is decided
here: the rules are asked (`slots`, `core.dependencies`) or what they wrote down is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
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


@dataclass(frozen=True, slots=True)
class Reason:
    """One fact: `code` is stable and for programs, `text` is for people, `since` is when it became so."""

    code: str
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
    "deleted": "was deleted",
    "dead_letter": "is in the dead letter queue",
    "disabled": "is disabled",
    "ended": "has had all its runs and disabled itself",
    "cannot_be_scheduled": "has settings that make no schedule",
    "running": "is running now",
    "cancelling": "is running and was asked to stop",
    "lease_ended": "is leased to a worker that has vanished",
    "no_worker": "waits for a worker: none is alive",
    "worker_tag": "waits for a worker with its tag: none is alive",
    "draining": "waits for a worker: those that live are shutting down",
    "trouble": "waits for a worker: those that live cannot start it",
    "busy": "waits for free capacity on a worker",
    "overdue": "is overdue although a worker is free",
    "passed_over": "has a slot that is due and that workers pass over",
    "misplanned": "has a next slot that its schedule does not name",
    "about_to_start": "is about to start",
    "retry": "waits for its retry",
    "jitter": "waits for its own offset after the slot (jitter)",
    "overlap": "waits for the run before it",
    "dependency": "waits for its parents",
    "backfill": "waits for its turn in the backfill",
    "skipped": "skipped its last slot",
    "cancelled": "had its last run cancelled",
    "starts_at": "has not begun: its schedule starts later",
    "next_slot": "is not due yet",
    "manual": "has no schedule: it runs when somebody or something starts it",
    "unplanned": "has no next slot yet",
}
AS_PLANNED = frozenset({"running", "about_to_start", "retry", "jitter", "starts_at", "next_slot", "manual"})
"""What the weightiest reason means for the job; completes the sentence that begins with its name."""


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
            yield Reason("no_code", "It has no code yet: its runs are skipped")

    # -- what stands in the way of everything ----------------------------------------------------------------

    def _standing(self) -> Reason | None:
        job = self.job
        if job.deleted_at is not None:
            by = self._audited({"delete"})
            return Reason("deleted", f"Deleted{_by(by)} at {_time(job.deleted_at)}", job.deleted_at)
        if job.in_dead_letter_queue:
            since = f" since {_time(job.dead_letter_since)}" if job.dead_letter_since else ""
            text = (
                f"In the dead letter queue{since}: {job.dead_letter_reason or 'no reason was written down'}"
            )
            return Reason("dead_letter", f"{text}. Recover it to let it run again", job.dead_letter_since)
        if not job.enabled:
            return self._disabled()
        try:
            slots.schedule_of(job)
        except Invalid as invalid:
            return Reason("cannot_be_scheduled", f"Its settings make no schedule: {invalid.message}")
        return None

    def _disabled(self) -> Reason:
        job, reason = self.job, self.job.disabled_reason or ""
        if slots.ended_by_itself(job):
            return Reason("ended", f"It disabled itself: {reason}{self._end()}")
        change = self._audited({"enable", "disable"})
        if reason.startswith(CANNOT_BE_SCHEDULED):
            problem = reason.removeprefix(CANNOT_BE_SCHEDULED)
            text = f"A worker disabled it, for its settings make no schedule: {problem}"
            return Reason("cannot_be_scheduled", text, change.at if change else None)
        if change is None or change.action == "enable":
            text = "Disabled without a trace, as a change made in SQL is"
            return Reason("disabled", f"{text}: {reason}" if reason else text)
        text = f"Disabled{_by(change)} at {_time(change.at)}"
        return Reason("disabled", f"{text}: {reason}" if reason else text, change.at)

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
            yield Reason("more", f"{len(active) - SHOWN} more of its runs wait")

    def _running(self, run: Any) -> Iterator[Reason]:
        where = f"{_execution(run)} runs on worker {run.locked_by} since {_time(run.started_at)}"
        if lease_has_ended(run.locked_until, self.now):
            when = f" at {_time(run.locked_until)}" if run.locked_until else ""
            text = f"{where}, whose lease ended{when}: any living worker ends it as lost"
            yield Reason("lease_ended", text, run.locked_until)
            if none := self._no_worker():
                yield none
        elif run.cancel_reason:
            yield Reason("cancelling", f"{where} and was asked to stop: {run.cancel_reason}", run.started_at)
        else:
            yield Reason("running", where, run.started_at)

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
            yield Reason("dependency", text, run.scheduled_time)
            yield from self._parents(run.scheduled_time)
        elif run.origin == Origin.BACKFILL:
            yield Reason("backfill", waits, None)
        elif gate is not None:
            text = f"{_execution(run)}: its parents have ended; any living worker decides within a second"
            yield self._no_worker() or Reason("about_to_start", text, run.scheduled_time)
        else:
            yield Reason("overlap", waits, run.scheduled_time)

    def _not_yet(self, run: Any) -> Reason:
        left = in_words((run.due_time - self.now).total_seconds())
        if not run.is_retry:
            text = f"{_execution(run)} starts at {_time(run.due_time)}, in {left} (jitter_seconds)"
            return Reason("jitter", text, run.scheduled_time)
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
            return Reason("retry", text)
        cause = f": {_plain(before.error)}" if before.error else ""
        return Reason("retry", f"{text}. Execution {before.id} {before.status}{cause}", before.completed_at)

    def _due(self, run: Any) -> Reason:
        """A run that waits for nothing but a worker."""
        if none := self._no_worker(run.worker_tag, run.due_time):
            return none
        due = f"{_execution(run)} has been due since {_time(run.due_time)}"
        able = [one for one in self._alive() if _takes(one, run.worker_tag)]
        working = [one for one in able if not one.draining]
        if not working:
            text = f"{due}; {count(len(able), 'living worker')} could take it, but shut down"
            return Reason("draining", text, run.due_time)
        if all(registry.hinders(one, self.job.id) for one in working):
            first, *others = working
            also = f" and {count(len(others), 'other')}" if others else ""
            text = f"{due}; worker {first.worker_id}{also} cannot start it: {first.trouble}"
            return Reason("trouble", text, first.trouble_since)
        if not self._free(working):
            slots_ = sum(one.slots for one in working)
            text = f"{due}; all {slots_} slots of {count(len(working), 'living worker')} are busy"
            return Reason("busy", f"{text}, and {self._before(run, working)} due before it", run.due_time)
        if self.now - run.due_time > PATIENCE:
            names = ", ".join(one.worker_id for one in working[:3])
            text = f"{due} although a worker has free capacity: look at the log of {names}"
            if locks.run_is_locked(self.session, run.id):
                text = f"{due} and workers pass over it, for its row is locked{self._by_whom()}"
            return Reason("overdue", text, run.due_time)
        return Reason("about_to_start", f"{due}, and a worker has free capacity", run.due_time)

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
            return Reason("no_worker", f"No worker is alive. {self._last_seen()}", since)
        if not any(_takes(one, tag) for one in alive):
            text = (
                f'It needs a worker with the tag "{tag}"; none of {count(len(alive), "living worker")} has it'
            )
            return Reason("worker_tag", text, since)
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
            yield Reason("parent", f"Its parent {_parent(parent)}", parent.latest_completed_at)

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
        yield Reason(last.status, text, last.completed_at)

    def _to_come(self, active: Sequence[Any]) -> Iterator[Reason]:
        job = self.job
        yield from self._triggers()
        if job.schedule_type == ScheduleType.MANUAL:
            yield Reason("manual", "It has no schedule: a person, a program or a parent starts it")
            return
        if active and (text := _OVERLAP[OverlapPolicy.of(job.overlap_policy)]):
            told = text.format(slots=_up_to(job.queue_length), length=job.queue_length)
            yield Reason("overlap_policy", told)
        if job.next_run_time is None:
            if not (active and slots.counts_from_completion(job)):
                text = "It has no next slot yet; a worker gives it one within seconds"
                yield self._no_worker() or Reason("unplanned", text)
        elif job.next_run_time <= self.now:
            text = f"Its slot {_time(job.next_run_time)} is due, and becomes a run as soon as a worker looks"
            none = self._no_worker(job.worker_tag, job.next_run_time)
            passed = self._passed_over(job.next_run_time)
            yield none or passed or Reason("about_to_start", text, job.next_run_time)
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
        return Reason("passed_over", text, slot)

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
            return Reason("misplanned", text)
        if self.job.starts_at is not None and self.job.starts_at > self.now:
            return Reason(
                "starts_at", f"Its schedule starts at {_time(self.job.starts_at)}; its first slot is {when}"
            )
        return Reason("next_slot", f"Its next slot is {when}")

    def _triggers(self) -> Iterator[Reason]:
        """What a job that is started by its parents still waits for."""
        if slots.is_gated(self.job):
            return
        states = slots.parent_states(self.session, self.job.id, self.now)
        if not states:
            return
        if self.job.starts_at is not None and self.job.starts_at > self.now:
            yield Reason("starts_at", f"Its parents start it from {_time(self.job.starts_at)} on")
        ready = slots.ready_to_trigger(self.session, self.job.id, self.now)
        if isinstance(ready, Waiting):
            yield Reason("dependency", f"Since its own last start it waits for {ready.for_}")
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

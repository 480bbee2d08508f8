"""How an execution ends and what follows from it: the one place that writes final states.

`end` takes rows that the caller has locked, as their jobs are, and writes in the caller's transaction: final
state, output, retry or dead letter, counters, messages. Then the jobs whose chains ended release what they held up
and start the children that they trigger.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ..core import retry
from ..core.dependencies import Ready, Skip, Waiting
from ..core.states import UNSUCCESSFUL, Origin, Outcome, Status
from ..core.statistics import bucket
from ..store import claims, db, dialects
from ..store.claims import JOB, EndingJob, EndingRun
from ..store.dialects import Dialect
from ..store.models import CronJobDailyStat
from ..store.prepared import Prepared, values_of
from . import audit, notify, slots
from .slots import DEPENDENCY

log = logging.getLogger(__name__)

STAT: Any = CronJobDailyStat.__table__

LETTERS = {
    Status.COMPLETED: "c",
    Status.FAILED: "f",
    Status.TIMEOUT: "t",
    Status.LOST: "l",
    Status.CANCELLED: "x",
    Status.SKIPPED: "s",
}
"""How `CronJob.recent_results` writes an ending."""

RETRIED = {status: f"retried_{status}" for status in sorted(UNSUCCESSFUL)}
"""Where a day counts failures that another attempt followed."""
COUNTED = (*map(str, LETTERS), *RETRIED.values(), "recovered")
"""What a day's row counts."""

INLINE_OUTPUT = 16_384
"""Characters of output that may stand in the execution's own row; more goes to CronJobOutput in pieces.

A result takes up to 917,504 bytes of a statement: with this it still fits in `dialects.LEAST_PACKET`.
"""
LONGEST_PIECE = 65_536
"""Characters of such a piece."""
TAIL_SEQ = 1_000_000
"""Where the pieces of the last half are numbered from; those of the first half stay below."""
KEPT_STACK = 100_000


def end(
    session: Session,
    jobs: Mapping[int, EndingJob],
    ended: Sequence[tuple[EndingRun, Outcome]],
    now: datetime | None = None,
) -> None:
    """Write the endings of locked rows, whose jobs (`jobs`, by id) are locked too."""
    if not ended:
        return
    now = now or db.now(session)
    whole = claims.read_jobs(session, _to_read_whole(jobs, ended))
    tallies = {job_id: _Tally(job, whole.get(job_id)) for job_id, job in jobs.items()}
    retries: dict[int, tuple[datetime, int]] = {}
    for row, outcome in ended:
        _store_output(session, row.id, outcome)
        tally = tallies.get(row.cron_job)
        if tally is None:  # a row of the job was removed by hand; its runs still end
            continue
        decision = _decide(tally, row, outcome, now)
        if isinstance(decision, retry.RetryAt):
            retries[row.id] = decision.when, row.interruptions + outcome.interrupted
            if decision.note:
                log.warning("%s", decision.note, extra={"job": row.cron_job, "execution": row.id})
        tally.add(row, outcome, decision, now)
    claims.finish(session, [(row, _final_values(row, outcome, now)) for row, outcome in ended])
    again = claims.read_to_repeat(session, retries.keys())
    claims.insert_slots(
        session,
        [_retry_row(row, tallies[row.cron_job].whole, *retries[row_id]) for row_id, row in again.items()],
    )
    touched = [tally for tally in tallies.values() if tally.counts]
    _plan_after_completion(session, touched, now)
    claims.update_jobs(session, [tally.row() for tally in touched if tally.values])
    roll_up(session, now, {tally.job.id: (tally.counts, tally.durations) for tally in touched})
    for tally in touched:
        tally.save_rest(session, now)
    # Most jobs neither hold anything up nor have children: they are spared the look.
    followed = {row.cron_job for row, _ in ended if row.has_children or row.has_waiting}
    after_endings(
        session, [tally.job.id for tally in touched if tally.chain_ended and tally.job.id in followed], now
    )


def _to_read_whole(jobs: Mapping[int, EndingJob], ended: Sequence[tuple[EndingRun, Outcome]]) -> set[int]:
    """Jobs of which it takes more to know than of those that complete again: what follows is theirs to say."""
    return {
        row.cron_job
        for row, outcome in ended
        if (job := jobs.get(row.cron_job)) is not None
        and (
            outcome.status is not Status.COMPLETED
            or job.consecutive_failures
            or job.failing_since is not None
            or slots.counts_from_completion(job)
        )
    }


def _decide(tally: _Tally, row: EndingRun, outcome: Outcome, now: datetime) -> retry.Decision:
    if outcome.status is Status.COMPLETED:
        return retry.Done()
    job = tally.whole
    policy = retry.Policy(
        job.retry_strategy, job.max_retries, job.retry_delay_seconds, job.retry_max_delay_seconds
    )
    decision = retry.decide(policy, row.retry_count, outcome, now, interruptions=row.interruptions)
    unwanted = why_unwanted(job, row) is not None
    return retry.Done() if unwanted and not isinstance(decision, retry.Done) else decision


def why_unwanted(job: Any, row: EndingRun) -> str | None:
    """Why nobody wants another attempt at a run, or one that is given back; None where somebody does."""
    if row.cancel_reason is not None:
        return str(row.cancel_reason)
    if job.deleted_at is not None:
        return "the job was deleted"
    if job.in_dead_letter_queue:
        return "the job went to the dead letter queue"
    return "the job was disabled" if _was_disabled_by_person(job) else None


def _was_disabled_by_person(job: Any) -> bool:
    # A job that disabled itself with its last slot (max_runs, ends_at) still owes that slot its retries.
    return not job.enabled and not slots.ended_by_itself(job)


def give_back(
    session: Session, jobs: Mapping[int, EndingJob], rows: Sequence[EndingRun], now: datetime | None
) -> None:
    """Let locked running rows of which no process has started wait for another claim, unless nobody wants them now."""
    whole = claims.read_jobs(session, {row.cron_job for row in rows})
    wanted: list[tuple[EndingRun, Any]] = []
    unwanted: list[tuple[EndingRun, Outcome]] = []
    for row in rows:
        job = whole.get(row.cron_job)
        if job is not None and (reason := why_unwanted(job, row)):
            unwanted.append((row, Outcome(Status.CANCELLED, error=reason)))
        else:
            wanted.append((row, job))
    claims.give_back(session, wanted)
    end(session, jobs, unwanted, now)


def _final_values(row: EndingRun, outcome: Outcome, now: datetime) -> dict[str, Any]:
    values = {
        "status": outcome.status,
        "completed_at": now,
        "duration_ms": outcome.duration_ms,
        "cpu_ms": outcome.cpu_ms,
        "memory_peak_mb": outcome.memory_peak_mb,
        "exit_code": outcome.exit_code,
        "error": outcome.error[:2000] if outcome.error else None,
        "stack_trace": outcome.stack_trace[-KEPT_STACK:] if outcome.stack_trace else None,
        "result": outcome.result,
        "skipped_reason": outcome.skipped_reason[:500] if outcome.skipped_reason else None,
        "output": outcome.output if 0 < len(outcome.output) <= INLINE_OUTPUT else None,
        "output_bytes": outcome.output_bytes or row.output_bytes,
    }
    if row.status == Status.PENDING:
        waited = {"due_time": row.due_time or row.scheduled_time, "waiting_for": None, "waiting_until": None}
        return values | waited
    # Nothing has been written yet of what a run brings: most of it stays as it is.
    return {name: value for name, value in values.items() if value is not None}


def _store_output(session: Session, execution_id: int, outcome: Outcome) -> None:
    if outcome.output_replaces_tail:
        claims.drop_live_tail(session, execution_id)
    if len(outcome.output) > INLINE_OUTPUT:
        starts = range(0, len(outcome.output), LONGEST_PIECE)
        claims.append_output(
            session,
            [
                {
                    "execution": execution_id,
                    "seq": TAIL_SEQ + number,
                    "text": outcome.output[start : start + LONGEST_PIECE],
                    "is_tail": False,
                }
                for number, start in enumerate(starts)
            ],
        )


def _retry_row(row: Any, job: Any, when: datetime, interruptions: int) -> dict[str, Any]:
    """The next attempt after `row`, for a worker that the job asks for now: it may have been moved meanwhile."""
    return claims.new_run(
        cron_job=row.cron_job,
        scheduled_time=row.scheduled_time,
        rerun=row.rerun,
        retry_count=row.retry_count + 1,
        is_retry=True,
        parent_execution=row.id,
        origin=row.origin,
        due_time=when,
        queue_time=claims.queue_time(when, job.priority),
        priority=job.priority,
        worker_tag=job.worker_tag,
        interruptions=interruptions,
        parameters=row.parameters,
        parents_used=row.parents_used,
        note=row.note,
        triggered_by=row.triggered_by,
        requested_version=row.requested_version,
    )


class _Tally:
    """What endings in this transaction mean for one job: counters, dead letter, messages."""

    def __init__(self, job: EndingJob, whole: Any) -> None:
        self.job = job
        self.whole = whole
        """Its whole row; None where a job that was well completes again."""
        self.values: dict[str, Any] = {}
        self.counts: Counter[str] = Counter()
        self.durations: list[int] = []
        self.messages: list[notify.SettledEvent] = []
        self.chain_ended = False
        self.dead_letter: str | None = None
        self.state: dict[str, Any] | None = None

    def _get(self, name: str) -> Any:
        if name in self.values:
            return self.values[name]
        return getattr(self.job if self.whole is None else self.whole, name)

    def add(self, row: EndingRun, outcome: Outcome, decision: retry.Decision, now: datetime) -> None:
        over = not isinstance(decision, retry.RetryAt)
        self.chain_ended = self.chain_ended or over
        self._count_chain(row, outcome, over)
        if row.status == Status.RUNNING:
            self._count_run(row, outcome, over, now)
        # A failure that a retry may repair is none yet: slots count, not attempts.
        recovered_after = self._follow_failures(outcome, now) if over else None
        gives_up = isinstance(decision, retry.DeadLetter) and self.dead_letter is None
        if isinstance(decision, retry.DeadLetter) and gives_up:
            self._give_up(decision.reason, now)
        if outcome.status is Status.COMPLETED:
            self._succeed(row, outcome, now)
        if over and (outcome.status in UNSUCCESSFUL or recovered_after is not None):
            self.messages.append(
                notify.SettledEvent(
                    job=self.whole,
                    execution_id=row.id,
                    status=outcome.status,
                    error=outcome.error,
                    attempt=row.retry_count,
                    version=row.version,
                    consecutive_failures=self._get("consecutive_failures"),
                    dead_letter_reason=self.dead_letter if gives_up else None,
                    recovered_after=recovered_after,
                    ended_at=now,
                    output_tail=outcome.output[-2000:],
                )
            )

    def _count_chain(self, row: EndingRun, outcome: Outcome, over: bool) -> None:
        """Count the ending, and what it means for its chain: it goes on, has recovered, or was skipped."""
        self.counts[outcome.status] += 1
        if not over:
            self.counts[RETRIED[outcome.status]] += 1
            self._grow("retried_timeout" if outcome.status is Status.TIMEOUT else "retried_failed")
        elif outcome.status is Status.COMPLETED and row.retry_count > row.interruptions:
            self.counts["recovered"] += 1
            self._grow("runs_recovered")
        elif outcome.status is Status.SKIPPED:
            self._grow("runs_skipped")
            self._grow("skipped_in_a_row")

    def _grow(self, name: str, amount: int = 1) -> None:
        self.values[name] = self._get(name) + amount

    def _count_run(self, row: EndingRun, outcome: Outcome, over: bool, now: datetime) -> None:
        counters = {
            "runs_total": 1,
            "runs_completed": outcome.status is Status.COMPLETED,
            "runs_failed": outcome.status in (Status.FAILED, Status.LOST),
            "runs_timeout": outcome.status is Status.TIMEOUT,
            "duration_total_ms": outcome.duration_ms or 0,
        }
        for name, amount in counters.items():
            if amount:
                self._grow(name, int(amount))
        if outcome.duration_ms is not None:
            self.durations.append(outcome.duration_ms)
        if outcome.status is not Status.SKIPPED and self._get("skipped_in_a_row"):
            self.values["skipped_in_a_row"] = 0
        if over:
            letters = self._get("recent_results") + LETTERS[outcome.status]
            self.values["recent_results"] = letters[-30:]
        self.values |= {
            "last_execution": row.id,
            "last_status": outcome.status,
            "last_run_at": row.started_at or now,
        }

    def _follow_failures(self, outcome: Outcome, now: datetime) -> timedelta | None:
        """Count chains that failed in a row, in the order they end; after a success, how long the job was failing."""
        if outcome.status in UNSUCCESSFUL and not outcome.interrupted:
            self.values["consecutive_failures"] = self._get("consecutive_failures") + 1
            self.values["failing_since"] = self._get("failing_since") or now
        elif outcome.status is Status.COMPLETED:
            since: datetime | None = self._get("failing_since")
            if self._get("consecutive_failures"):
                self.values["consecutive_failures"] = 0
            # A run that was still going when its job became a dead letter does not mean that it works again.
            if since is not None and not self._get("in_dead_letter_queue"):
                self.values["failing_since"] = None
                return now - since
        return None

    def _give_up(self, reason: str, now: datetime) -> None:
        self.dead_letter = reason
        log.warning(
            "moved to the dead letter queue: %s", " ".join(reason.split()), extra={"job": self.job.id}
        )
        self.values |= {
            "enabled": False,
            "disabled_reason": "in the dead letter queue",
            "next_run_time": None,
            "in_dead_letter_queue": True,
            "dead_letter_reason": reason,
            "dead_letter_since": now,
        }

    def _succeed(self, row: EndingRun, outcome: Outcome, now: datetime) -> None:
        self.values |= {"last_success_at": now, "last_success_version": row.version}
        if outcome.state is not None:
            self.state = outcome.state

    def plan(self, when: datetime | None) -> None:
        """Set the next slot of a job that goes on."""
        if self._get("enabled"):
            self.values["next_run_time"] = when

    def row(self) -> dict[str, Any]:
        """What changes in the job's row."""
        return {"job_id": self.job.id, **self.values}

    def save_rest(self, session: Session, now: datetime) -> None:
        """What few endings bring: state, messages, the dead letter."""
        if self.state is not None:
            claims.update_job(session, self.job.id, {"state": self.state})
        for message in self.messages:
            notify.on_settled(session, message)
        if self.dead_letter is not None:
            end_all_pending(session, self.job.id, "the job went to the dead letter queue", now)
            audit.record(
                session,
                audit.WORKER,
                "dead_letter",
                ("job", self.job.id),
                name=self.whole.name,
                after={"reason": self.dead_letter},
            )


def _plan_after_completion(session: Session, tallies: Sequence[_Tally], now: datetime) -> None:
    """Set the next slots of intervals that count from the end of the last run, once nothing of them goes on."""
    ended = [one for one in tallies if one.chain_ended and slots.counts_from_completion(one.job)]
    going = {run.cron_job for run in claims.active_runs(session, [one.job.id for one in ended])}
    for one in ended:
        one.plan(None if one.job.id in going else slots.plan_after_completion(one.whole, now))


_STATS_OF_DAY = Prepared(
    sa.select(STAT).where(STAT.c.cron_job.in_(claims.IDS), STAT.c.day == sa.bindparam("day"))
)


@lru_cache(maxsize=4)
def _put_stats(on: Dialect) -> Prepared:
    """A day's row with these values, whether it was there or not."""
    counts = [column.name for column in STAT.c if not column.primary_key]
    every = values_of(STAT, [column.name for column in STAT.c])
    return Prepared(on.insert_or_change(STAT, every, lambda new: {name: new[name] for name in counts}))


def roll_up(
    session: Session, now: datetime, endings: Mapping[int, tuple[Mapping[str, int], Sequence[int]]]
) -> None:
    """Add endings to the jobs' rows of the day: counts by column (COUNTED), and durations in milliseconds.

    The jobs' rows are locked, so nobody else writes these meanwhile.
    """
    if not endings:
        return
    day = now.date()
    known = {row.cron_job: row for row in _STATS_OF_DAY.rows(session, {"ids": list(endings), "day": day})}
    rows = [
        {"cron_job": job_id, "day": day, **_added(known.get(job_id), counts, durations)}
        for job_id, (counts, durations) in endings.items()
    ]
    _put_stats(dialects.of(session)).run_many(session, rows)


def _added(row: Any, counts: Mapping[str, int], durations: Sequence[int]) -> dict[str, Any]:
    """The columns of a day's row after some endings."""
    values = {name: (getattr(row, name) if row else 0) + counts.get(name, 0) for name in COUNTED}
    shortest, longest = _edges(row, durations)
    histogram = dict(row.durations) if row and isinstance(row.durations, dict) else {}
    for duration in durations:
        histogram[bucket(duration)] = histogram.get(bucket(duration), 0) + 1
    total = (row.duration_ms if row else 0) + sum(durations)
    edges = {"duration_min_ms": shortest, "duration_max_ms": longest}
    return {**values, **edges, "duration_ms": total, "durations": histogram}


def _edges(row: Any, durations: Sequence[int]) -> tuple[int | None, int | None]:
    """The shortest and the longest duration of a day after some endings; None where they cannot be known."""
    if row is None or not row.durations:
        known = list(durations)
    elif row.duration_min_ms is None or row.duration_max_ms is None:
        known = []  # counted by an earlier release, in the histogram alone
    else:
        known = [row.duration_min_ms, row.duration_max_ms, *durations]
    return min(known, default=None), max(known, default=None)


# -- pending runs --------------------------------------------------------------------------------------------


def end_pending(session: Session, job_id: int, ids: Collection[int], outcome: Outcome, now: datetime) -> int:
    """End those of a locked job's runs that are still pending; returns how many. No chain's end is announced."""
    rows = [row for row in claims.lock_runs(session, ids).values() if row.status == Status.PENDING]
    claims.finish(session, [(row, _final_values(row, outcome, now)) for row in rows])
    if rows:
        roll_up(session, now, {job_id: ({outcome.status: len(rows)}, [])})
        if outcome.status is Status.SKIPPED:
            claims.add_skips(session, {job_id: len(rows)})
    return len(rows)


def end_all_pending(session: Session, job_id: int, reason: str, now: datetime) -> int:
    """Cancel all that a locked job has pending; returns how many."""
    waiting = [run.id for run in claims.active_runs(session, [job_id]) if run.status == Status.PENDING]
    return end_pending(session, job_id, waiting, Outcome(Status.CANCELLED, error=reason), now)


def make_room(session: Session, job_id: int, active: Sequence[Any], now: datetime) -> None:
    """Let a new run replace active ones: pending ones are called off, running ones asked to stop."""
    reason = "replaced by a newer run (overlap_policy replace)"
    for run in active:
        if run.status == Status.RUNNING:
            claims.ask_to_cancel(session, run.id, reason)
    pending = [run.id for run in active if run.status == Status.PENDING]
    end_pending(session, job_id, pending, Outcome(Status.CANCELLED, error=reason), now)


def count_skips(session: Session, rows: Sequence[Mapping[str, Any]], now: datetime) -> None:
    """Roll up the slots of rows that were inserted as skipped."""
    skips: Counter[int] = Counter()
    for row in rows:
        if row["status"] == Status.SKIPPED:
            skips[row["cron_job"]] += row["slots_count"]
    claims.add_skips(session, skips)
    roll_up(session, now, {job_id: ({Status.SKIPPED: count}, []) for job_id, count in sorted(skips.items())})


# -- what a chain's end sets free ----------------------------------------------------------------------------


_CHILDREN = (
    sa.select(DEPENDENCY.c.cron_job, JOB.c.dependency_mode)
    .join(JOB, JOB.c.id == DEPENDENCY.c.cron_job)
    .where(DEPENDENCY.c.parent.in_(claims.IDS), JOB.c.enabled.is_(True))
    .distinct()
)


def after_endings(session: Session, job_ids: Collection[int], now: datetime) -> None:
    """Chains of these jobs have ended: release what they held up and start the children that they trigger."""
    if not job_ids:
        return
    children = db.connection(session).execute(_CHILDREN, {"ids": list(job_ids)}).all()
    gated = [row.cron_job for row in children if slots.is_gated(row)]
    look_at_waiting(session, {*job_ids, *gated}, now)
    for child in sorted(row.cron_job for row in children if not slots.is_gated(row)):
        _trigger_child(session, child, now)


def look_at_waiting(session: Session, job_ids: Collection[int], now: datetime) -> int:
    """Release or skip those waiting runs of some jobs that need not wait any longer; returns how many."""
    runs = claims.active_runs(session, job_ids) if job_ids else []
    waiting_jobs = {run.cron_job for run in runs if run.due_time is None and run.status == Status.PENDING}
    if not waiting_jobs:
        return 0
    jobs = claims.lock_jobs(session, waiting_jobs)
    # Again, under the locks: somebody may have been here in between.
    runs = claims.active_runs(session, waiting_jobs)
    moved = 0
    for job_id in sorted(jobs):
        moved += _release_one(session, jobs[job_id], [run for run in runs if run.cron_job == job_id], now)
    return moved


def _release_one(session: Session, job: Any, runs: Sequence[Any], now: datetime) -> int:
    waiting = sorted(
        (run for run in runs if run.due_time is None), key=lambda run: (slots.waits_in_backfill(run), run.id)
    )
    going = [run for run in runs if run.due_time is not None]
    moved = 0
    for run in waiting:
        gate = slots.gate(session, job, run, now)
        if isinstance(gate, Skip):
            end_pending(session, job.id, [run.id], Outcome(Status.SKIPPED, skipped_reason=gate.reason), now)
            if changes := slots.give_back_run(job, now):
                claims.update_job(session, job.id, changes)
            moved += 1
        elif isinstance(gate, Waiting):
            claims.still_waits_for(session, run.id, gate.for_)
            going.append(run)  # what was scheduled first starts first
        elif slots.waits_its_turn(job) and going:
            claims.still_waits_for(session, run.id, _turn(run, going[0]))
        else:
            due = max(now, slots.start_of(job, run.scheduled_time, run.origin))
            moved += claims.release(session, run.id, due, run.priority, list(gate.used) if gate else None)
            going.append(run)
    return moved


def _turn(run: Any, before: Any) -> str:
    return (
        f"{slots.BACKFILL_WAITS}, after execution {before.id}"
        if run.origin == Origin.BACKFILL
        else f"execution {before.id}"
    )


def _trigger_child(session: Session, child_id: int, now: datetime) -> None:
    job = claims.lock_jobs(session, [child_id]).get(child_id)
    if job is None or not job.enabled or job.deleted_at is not None:
        return
    if reason := slots.end_of(job, now):
        claims.update_job(session, child_id, slots.ended(reason))
        return
    if job.starts_at is not None and now < job.starts_at:
        return
    ready = slots.ready_to_trigger(session, child_id, now)
    if not isinstance(ready, Ready):
        return
    around = slots.Surroundings(session, [child_id])
    row = around.place(job, now, now, Origin.TRIGGER)
    claims.insert_slots(session, [row | {"parents_used": list(ready.used)}])
    if changes := slots.after_runs(job, [row]):
        claims.update_job(session, child_id, changes)
    count_skips(session, [row], now)
    for active in around.replaced.values():
        make_room(session, child_id, active, now)
    if row["waiting_for"]:
        look_at_waiting(session, [child_id], now)

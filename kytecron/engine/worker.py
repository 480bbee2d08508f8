"""The worker: finds due work, runs it, writes down what came of it.

One loop of short steps on the main thread does all that needs the database; the Runner's own thread keeps watch
over the job processes, so that time limits and leases hold even while a statement hangs. A third thread sends
notifications and removes old rows: a dead channel or a long clean-up delays no job.

    step: collect what the processes said -> renew -> enqueue -> claim and start -> settle -> flush output

A slot is free as soon as its process is gone: it is filled before the result is written, so that jobs run meanwhile.
"""

from __future__ import annotations

import logging
import math
import os
import select
import signal
import socket
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from ..config import Settings
from ..core.errors import Invalid, KytecronError, NotFound, Unreadable
from ..core.states import UNSUCCESSFUL, Outcome, Status
from ..services import jobapi, lifecycle, registry, secrets, versions
from ..services.lifecycle import ClaimedRun, Progress
from ..store import db
from .child import boot_time
from .runner import Call, Ended, Progressed, Runner, RunRequest, Started
from .statistics import Statistics
from .upkeep import Upkeep

log = logging.getLogger(__name__)

ENQUEUE_BATCH = 100
FLUSH_SECONDS = 0.4
"""Output reaches the database this long after it was printed, at most."""
PATROL_SECONDS = 1.0
"""How often a worker looks for leases that ended, workers that are gone, held runs and jobs without a slot."""
OUTAGE_PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0)
SETTLE_PAUSE_SECONDS = 1.0
"""How long results that could not be written wait for their next try."""
BUSY_PAUSE_SECONDS = 0.02
"""The same for one that somebody has locked, or whose job; doubled each time, up to SETTLE_PAUSE_SECONDS."""
RENEW_PAUSE_SECONDS = 0.5
"""How long a lease waits that could not be renewed."""
SHORTEST_TIMEOUT_SECONDS = 2.0
CREW_SECONDS = 5.0
"""How often a worker asks which others do the same work."""
TURN_SECONDS = 0.015
"""Workers come to a slot one after another, so far apart: all at once they would only be in each other's way."""
LAST_TURN_SECONDS = 0.1
"""The last of many comes no later than this."""
FRESH_SECONDS = 1.0
"""A slot that became due within this time and is locked is being served; after it, somebody has forgotten a lock."""
MOST_UNWRITTEN = 2
"""Results that wait to be written, for each slot, before no more runs are claimed."""
MOST_PIECES = 16
"""Pieces of one run's output that are stored at once."""
CODE_CACHE_BYTES = 16_000_000


@dataclass(slots=True)
class _Run:
    """A run this worker holds."""

    run: ClaimedRun
    seq: int = 0
    """Number of the next piece of output."""
    pieces: list[tuple[int, str, bool]] = field(default_factory=list)
    """Output that was taken from the runner, until it is stored; see `lifecycle.Progress`."""
    progress: tuple[float, str] | None = None
    cancelling: bool = False
    settle_at: float = 0.0
    """When its result may be brought again, on the monotonic clock: it was locked, or its job."""
    busy_pause: float = BUSY_PAUSE_SECONDS


_Ending = tuple[_Run, Outcome]


@dataclass(slots=True)
class _Timers:
    """When each of the loop's regular duties is due next, on the monotonic clock."""

    settle: float = 0.0
    renew: float = 0.0
    patrol: float = 0.0
    flush: float = 0.0
    report: float = 0.0
    crew: float = 0.0


class CronWorker:
    """A worker process. `run()` works until `stop()` or a signal; tests call `step()`."""

    def __init__(self, settings: Settings, *, drain: bool = False) -> None:
        self.settings = settings
        self.drain = drain
        """Work off what is due, then end."""
        self.worker_id = f"{socket.gethostname()[:60]}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        # A connection that goes dead in silence, its locks still held over there, must not cost the leases:
        # there is time for a second one.
        timeout = min(db.STATEMENT_SECONDS, max(SHORTEST_TIMEOUT_SECONDS, settings.lease_seconds / 4))
        self.engine = db.make_engine(
            settings,
            statement_seconds=timeout,
            idle_seconds=timeout,
            # Every transaction in this process is ended by name: no need to end it once more.
            pool_reset_on_return=None,
        )
        self.session: Session = db.make_sessions(self.engine)()
        self._onlooker = db.Onlooker(self.engine)
        self.statistics = Statistics()
        self._runs: dict[int, _Run] = {}
        self._ended: list[_Ending] = []
        self._code = _CodeCache(CODE_CACHE_BYTES)
        self._timers = _Timers()
        self._looked_at = 0.0
        self._look_by = 0.0
        """When to look again at the latest, on the monotonic clock."""
        self._crew: list[str] = [self.worker_id]
        """The workers that do the same work, itself included."""
        self._place = 0
        """In the order in which they come to the next slot."""
        self._left_to = 0
        """To so many workers before it this one has left what was due when it last looked."""
        self._slot_late = 0.0
        """Seconds that a slot had been due when this worker last looked."""
        self._slot_in = math.inf
        self._run_in = math.inf
        """Seconds from the last look until the next slot and the next pending run are due."""
        self._backlog = False
        """Due runs were left over when this worker last looked or claimed."""
        self._skew = timedelta(0)
        """This machine's clock less the database's."""
        self._claim_unknown = False
        self._given_up: set[int] = set()
        """Runs stopped here whose rows may still name this worker: they never start a second time."""
        self._outage_since: float | None = None
        self._failures = 0
        self._judge_after = time.monotonic() + settings.renew_seconds
        """Until then the others may not have had time to renew: this worker, or all, had no database."""
        self._stopping_since: float | None = None
        self._stop_signals = 0
        self._wake_reader, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.runner = Runner(
            output_limit_bytes=settings.output_limit_bytes,
            kill_grace_seconds=settings.kill_grace_seconds,
            lease_margin_seconds=min(1.0, settings.lease_seconds / 6),
            job_directory=settings.make_job_directory(),
            job_variables=settings.job_variable_names,
            job_modules=settings.job_modules and os.path.abspath(settings.job_modules),
            on_wake=self.wake,
            name=self.worker_id,
        )
        self.upkeep = Upkeep(self.engine, settings, self.worker_id)

    # -- from outside ----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until told to stop and every run has ended or been given back."""
        self._watch_signals()
        self.upkeep.start()
        log.info("worker %s starts: %s", self.worker_id, self.described())
        try:
            while not self._finished():
                if not self.step():
                    self._sleep()
        finally:
            self.close()

    def stop(self) -> None:
        """Claim nothing new, let running jobs end within the grace; called again, stop them now."""
        self._stop_signals += 1
        self.wake()

    def wake(self) -> None:
        """End the loop's sleep. Safe from any thread and from signal handlers."""
        try:
            os.write(self._wake_writer, b".")
        except BlockingIOError:
            pass  # the pipe is full of wakes already

    def described(self) -> str:
        """The settings that matter to whoever reads the log."""
        shown = self.settings
        return (
            f"concurrency {shown.concurrency}, poll {shown.poll_interval:g} s, lease {shown.lease_seconds:g} s, "
            f"renewal {shown.renew_seconds:g} s, tags {','.join(sorted(shown.tags)) or 'none'}, "
            f"database {self.engine.url.render_as_string(hide_password=True)}"
        )

    def close(self) -> None:
        """End what still runs, say goodbye, free everything."""
        self.runner.close()
        self.upkeep.stop()
        with self._database("sign off"):
            registry.sign_off(self.session, self.worker_id, self.statistics.as_dict())
        self.session.close()
        self._onlooker.close()
        self.engine.dispose()
        for descriptor in (self._wake_reader, self._wake_writer):
            os.close(descriptor)

    # -- the loop --------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Do what can be done now; returns whether there may be more to do at once."""
        self.statistics.cycles += 1
        self._collect()
        self._follow_shutdown()
        if self._outage_since is not None and not self._probe():
            return False
        self._renew()
        self._report()
        self._read_back()
        self._patrol()
        busy = self._look_and_take()
        busy |= self._settle()
        self._flush()
        return busy

    def _finished(self) -> bool:
        idle = not self._runs and not self._ended and not self._claim_unknown
        if self._stopping_since is not None:
            # Results that the database will not take are given up once no lease can protect them any more.
            patience = self.settings.grace_seconds + self.settings.lease_seconds
            return idle or time.monotonic() - self._stopping_since > patience
        return self.drain and idle and self._looked_at > 0 and not self._due_now()

    def _sleep(self) -> None:
        """Wait for the next duty, the next due instant or a wake, whichever comes first."""
        now = time.monotonic()
        until = [self._timers.patrol, self._look_by]
        if self._runs:
            until += [self._timers.renew, self._timers.flush]
        if self._ended:
            soonest = min(held.settle_at for held, _ in self._ended)
            until.append(max(self._timers.settle, soonest))
        until.append(self._looked_at + self._next_due_in())
        if self._outage_since is not None:
            until = [now + OUTAGE_PAUSES[min(self._failures, len(OUTAGE_PAUSES) - 1)]]
        # Rounded up to the poller's milliseconds: waking a moment early would only mean a second look.
        timeout = max(0.0, min(until) - now)
        ready, _, _ = select.select([self._wake_reader], [], [], timeout)
        if ready:
            try:
                os.read(self._wake_reader, 65_536)
            except BlockingIOError:
                pass

    # -- what the processes said -----------------------------------------------------------------------------

    def _collect(self) -> None:
        for event in self.runner.collect():
            held = self._runs.get(event.execution_id)
            if held is None:
                continue  # dropped meanwhile
            match event:
                case Started(started_at=moment):
                    self.statistics.started((moment - self._skew - held.run.due_time).total_seconds())
                case Progressed(percent=percent, note=note):
                    held.progress = (percent, note)
                case Call():
                    self._answer(event, held)
                case Ended(outcome=outcome):
                    self._take_ending(held, outcome)

    def _take_ending(self, held: _Run, outcome: Outcome) -> None:
        execution_id = held.run.claim.execution_id
        if outcome.status is Status.LOST and not outcome.interrupted:
            # The lease ran out here: the row belongs to whoever judges it, this worker writes nothing.
            log.warning("execution %s: %s", execution_id, outcome.error)
            self.statistics.leases_expired += 1
            self._given_up.add(execution_id)
            del self._runs[execution_id]
            return
        self._ended.append((held, outcome))

    def _answer(self, call: Call, held: _Run) -> None:
        result: Any = None
        problem: str | None = None
        try:
            result = jobapi.answer_call(self.session, held.run.job_name, call.method, call.arguments)
        except KytecronError as error:
            problem = error.message
        except (TypeError, ValueError, OverflowError) as error:
            problem = f"bad arguments: {error}"
        except db.CommitUnknown as error:
            self._note_failure("answer a job's call", error)
            problem = "the database was lost while saving: it is not known whether it was done"
        except Exception as error:  # a job asks for what it likes, and the worker outlives the answer
            self._note_failure("answer a job's call", error)
            problem = "the database cannot be reached" if _is_outage(error) else db.cause(error)
        self.runner.reply(call.execution_id, call.call_id, result=result, error=problem)

    # -- ending runs -----------------------------------------------------------------------------------------

    def _settle(self) -> bool:
        now = time.monotonic()
        if not self._ended or now < self._timers.settle:
            return False
        batch = [ending for ending in self._ended if ending[0].settle_at <= now][:ENQUEUE_BATCH]
        if not batch:
            return False
        with self._database("settle") as attempt:
            self._bring(batch)
        if attempt.failed is None:
            return True
        self._timers.settle = time.monotonic() + SETTLE_PAUSE_SECONDS
        if not _is_outage(attempt.failed):
            self._settle_one_by_one(batch)
        return False

    def _settle_one_by_one(self, batch: list[_Ending]) -> None:
        """One result that cannot be written must not keep the others from being written."""
        for ending in batch:
            held, outcome = ending
            with self._database(f"settle execution {held.run.claim.execution_id}") as attempt:
                self._bring([ending])
            if attempt.failed is None:
                continue
            self._ended.remove(ending)  # to the end of the queue
            if _is_outage(attempt.failed) or db.is_row_conflict(attempt.failed):
                self._ended.append(ending)
                return  # this took its time, and leases are to be renewed
            held.pieces.clear()  # it may have been these
            self._ended.append((held, _unstorable(outcome, attempt.failed)))

    def _bring(self, batch: list[_Ending]) -> None:
        """Write results, and forget the runs; what somebody has locked comes again in a moment."""
        unstored = [Progress(held.run.claim, held.pieces) for held, _ in batch if held.pieces]
        if unstored:
            busy = lifecycle.append_output(self.session, unstored).busy
            for report in unstored:
                if report.claim.execution_id not in busy:
                    report.pieces.clear()
        settled = lifecycle.settle(
            self.session, [(held.run.claim, outcome) for held, outcome in batch if not held.pieces]
        )
        for ending in batch:
            held, outcome = ending
            if held.pieces or held.run.claim.execution_id in settled.busy:
                held.settle_at = time.monotonic() + held.busy_pause
                held.busy_pause = min(SETTLE_PAUSE_SECONDS, 2 * held.busy_pause)
                continue
            self.statistics.ended(outcome.status)
            if outcome.status in UNSUCCESSFUL:
                _tell(held.run, outcome)
            self._runs.pop(held.run.claim.execution_id, None)
            self._ended.remove(ending)

    # -- keeping runs ----------------------------------------------------------------------------------------

    def _renew(self) -> None:
        now = time.monotonic()
        if not self._runs or now < self._timers.renew:
            return
        before, busy = boot_time(), set[int]()
        ids = list(self._runs)
        revivable = [key for key, held in self._runs.items() if held.run.continues_without_contact]
        with self._database("renew leases") as attempt:
            still, busy = lifecycle.renew(
                self.session, self.worker_id, ids, revivable, self.settings.lease_seconds
            )
            for execution_id in ids:
                if execution_id not in busy:
                    self._apply_renewal(execution_id, still, before)
        again_soon = attempt.failed or busy
        self._timers.renew = now + (RENEW_PAUSE_SECONDS if again_soon else self.settings.renew_seconds)

    def _apply_renewal(self, execution_id: int, still: Mapping[int, str | None], before: float) -> None:
        if execution_id not in still:
            if any(held.run.claim.execution_id == execution_id for held, _ in self._ended):
                return  # it has ended: whether its result still counts is for the fence to say
            log.warning("execution %s is no longer held by this worker: its process is killed", execution_id)
            self.statistics.leases_expired += 1
            self._drop(execution_id)
            return
        self.runner.set_lease(execution_id, before + self.settings.lease_seconds)
        self._maybe_cancel(execution_id, still[execution_id])

    def _drop(self, execution_id: int) -> None:
        self.runner.drop(execution_id)
        self._given_up.add(execution_id)
        self._runs.pop(execution_id, None)
        self._ended = [item for item in self._ended if item[0].run.claim.execution_id != execution_id]

    def _maybe_cancel(self, execution_id: int, reason: str | None) -> None:
        held = self._runs.get(execution_id)
        if reason and held and not held.cancelling:
            held.cancelling = True
            self.runner.stop(execution_id, Status.CANCELLED, reason)

    def _flush(self) -> None:
        """Store new output and progress of running jobs."""
        now = time.monotonic()
        if not self._runs or now < self._timers.flush:
            return
        self._timers.flush = now + FLUSH_SECONDS
        reports = [report for held in self._runs.values() if (report := self._progress_of(held))]
        if not reports:
            return
        with self._database("store output"):
            gone, busy = lifecycle.append_output(self.session, reports)
            for report in reports:
                if report.claim.execution_id not in busy:
                    held = self._runs[report.claim.execution_id]
                    held.pieces, held.progress = [], None
            for execution_id in gone:
                self._drop(execution_id)

    def _progress_of(self, held: _Run) -> Progress | None:
        while len(held.pieces) < MOST_PIECES:
            chunk = self.runner.take_output(held.run.claim.execution_id)
            if chunk is None:
                break
            held.pieces.append((held.seq, chunk.text, chunk.tail))
            held.seq += 1
            if not chunk.more:
                break
        report = Progress(held.run.claim, held.pieces)
        if held.progress:
            report.percent, report.note = held.progress
        return report if report.pieces or report.percent is not None else None

    # -- finding work ----------------------------------------------------------------------------------------

    def _look_and_take(self) -> bool:
        """Look what is due, put due slots into the ledger, claim and start; returns whether anything happened."""
        if not self._backlog and not self._must_look():
            return False
        enqueued = started = 0
        with self._database("look for work") as attempt:
            if self._place == 0 and 0 < self._slot_in <= self._since_look():
                self._slot_in = self._slot_late = 0  # served first: the look that tells what is next can wait
            elif self._must_look():
                self._look()
            if self._slot_in == 0 and self._stopping_since is None:
                enqueued = lifecycle.enqueue_due(self.session, ENQUEUE_BATCH)
                if not enqueued:
                    self._slot_in = math.inf  # the job is locked by somebody: no reason to spin
                    if self._slot_late < FRESH_SECONDS:
                        self._look_by = time.monotonic() + self._turn(max(1, self._place))
            if (enqueued or self._backlog) and self._takes_work():
                started = self._take()
        return not attempt.failed and bool(enqueued or started)

    def _look(self) -> None:
        before, wall = time.monotonic(), datetime.now(UTC)
        by_chance = self._since_look() >= self.settings.poll_interval
        crew = len(self._crew)
        look = self._onlooker.ask(
            lifecycle.look,
            self.worker_id,
            holds_runs=bool(self._runs),
            count=crew * self.settings.concurrency if crew > 1 else 1,
        )
        self._skew = wall - look.now
        for execution_id, reason in look.cancels.items():
            self._maybe_cancel(execution_id, reason)
        self._looked_at = before
        self._look_by = before + self.settings.poll_interval
        self._slot_late = (look.now - look.slot_due).total_seconds() if look.slot_due else 0.0
        self._place = self._place_at(look.slot_due) if look.slot_due else 0
        passed = time.monotonic() - before
        self._slot_in = self._comes_in(look.slot_due, look.now, passed)
        self._run_in = self._comes_in(look.run_due, look.now, passed)
        self._backlog = self._run_in == 0
        contended = self._backlog and not (by_chance or self.drain)
        self._left_to = self._enough_before(look.due, look.run_due) if contended and look.run_due else 0
        if self._left_to:
            self._backlog, self._run_in = False, passed + self._turn(self._left_to)

    def _enough_before(self, due: int, since: datetime) -> int:
        """How many workers before this one have room enough for what is due, so that it leaves it to them; or none.

        Only for a moment: they may be busy. Whenever it comes back it counts half as many before it.
        """
        before = self._left_to // 2 if self._left_to else self._place_at(since)
        return before if due <= before * self.settings.concurrency else 0

    def _comes_in(self, moment: datetime | None, now: datetime, passed: float) -> float:
        """Seconds from a look, which was `passed` seconds ago, until this worker comes to what is due at `moment`."""
        if moment is None:
            return math.inf
        seconds = max(0.0, (moment - now).total_seconds())
        if not seconds:
            return 0
        # As late as it may be: served a moment too early there would be nothing to serve.
        return seconds + passed + self._turn(self._place_at(moment))

    def _place_at(self, moment: datetime) -> int:
        return registry.place(self._crew, self.worker_id, moment)

    def _turn(self, place: int) -> float:
        """Seconds after a slot at which the worker at `place` comes to it."""
        return min(place * TURN_SECONDS, place * LAST_TURN_SECONDS / len(self._crew))

    def _must_look(self) -> bool:
        """Whether the last look is too old to go by."""
        since = self._since_look()
        others_had_time = len(self._crew) > 1 and since >= TURN_SECONDS
        return (
            time.monotonic() >= self._look_by
            or since >= self._next_due_in()
            or (self._backlog and others_had_time and self._takes_work())
        )

    def _since_look(self) -> float:
        return time.monotonic() - self._looked_at

    def _next_due_in(self) -> float:
        """Seconds from the last look to the next instant at which there is something for this worker."""
        if self._stopping_since is not None:
            return math.inf
        # What is due already is either taken from the backlog or has to wait for a free slot.
        return min(self._slot_in, self._run_in if self._takes_work() and not self._backlog else math.inf)

    def _due_now(self) -> bool:
        return self._backlog or self._next_due_in() <= self._since_look()

    def _takes_work(self) -> bool:
        return self._stopping_since is None and self._free_slots() > 0

    def _running(self) -> int:
        """How many runs still have, or may have, a process."""
        return len(self._runs) - len(self._ended)

    def _free_slots(self) -> int:
        """How many runs may start; none while very many results wait that the database does not take."""
        most = self.settings.concurrency
        return min(most - self._running(), MOST_UNWRITTEN * most - len(self._ended))

    def _take(self) -> int:
        """Claim as many runs as there are free slots and start them."""
        if self._claim_unknown:
            return 0  # `_read_back` comes first
        before, free = boot_time(), self._free_slots()
        self._claim_unknown = True  # until COMMIT has answered
        runs = lifecycle.claim(
            self.session, self.worker_id, self.settings.tags, free, self.settings.lease_seconds
        )
        self._claim_unknown = False
        if runs or self._backlog:  # else nothing was seen to be due: what was enqueued waits
            self.statistics.claimed(len(runs))
        self._backlog = len(runs) == free
        if not runs:
            self._run_in = (
                math.inf
            )  # it is locked, or asks for a tag that this worker lacks: no reason to spin
        self._start(runs, before + self.settings.lease_seconds)
        return len(runs)

    def _read_back(self) -> None:
        """A claim's COMMIT got no answer, or its runs could not be started: find out what is held, and start it."""
        if not self._claim_unknown:
            return
        before = boot_time()
        with self._database("read back a claim"):
            held = {run.claim.execution_id: run for run in lifecycle.held(self.session, self.worker_id)}
            self.session.rollback()
            self._given_up &= held.keys()
            unknown = [run for key, run in held.items() if key not in self._runs.keys() | self._given_up]
            if self._stopping_since is not None:
                self._give_back(unknown)
                return
            # What somebody has locked is found again by the patrol.
            still, _ = lifecycle.renew(
                self.session,
                self.worker_id,
                [run.claim.execution_id for run in unknown],
                [],
                self.settings.lease_seconds,
            )
            self._claim_unknown = False
            self._start(
                [run for run in unknown if run.claim.execution_id in still],
                before + self.settings.lease_seconds,
            )

    def _give_back(self, runs: list[ClaimedRun]) -> None:
        self._claim_unknown = False
        for run in runs:
            held = self._runs[run.claim.execution_id] = _Run(run)
            error = "its worker was shut down before it started"
            self._ended.append((held, Outcome(Status.LOST, error=error, interrupted=True)))

    def _start(self, runs: list[ClaimedRun], lease_until: float) -> None:
        requests: list[RunRequest] = []
        for run in runs:
            self._runs[run.claim.execution_id] = _Run(run)
        try:
            granted = self._secrets_for(runs)
            self._code.load(self.session, {run.content_hash for run in runs if run.content_hash})
            for run in runs:
                if request := self._request(run, granted.get(run.claim.job_id, {}), lease_until):
                    requests.append(request)
        except Exception:
            # What was claimed and not started is found again by `_read_back` once the database answers.
            ready = {request.execution_id for request in requests}
            for run in runs:
                if run.claim.execution_id not in ready:
                    del self._runs[run.claim.execution_id]
            self._claim_unknown = True
            raise
        finally:
            self.runner.start_many(requests)
        self.session.rollback()
        self._timers.renew = min(self._timers.renew, time.monotonic() + self.settings.renew_seconds)

    def _secrets_for(self, runs: list[ClaimedRun]) -> Mapping[int, dict[str, str] | KytecronError]:
        jobs = {run.claim.job_id for run in runs if run.has_secrets}
        return secrets.granted_to_jobs(self.session, self.settings, jobs) if jobs else {}

    def _request(
        self, run: ClaimedRun, granted: Mapping[str, str] | KytecronError, lease_until: float
    ) -> RunRequest | None:
        """What the runner needs; None where the run cannot start, whose ending is then recorded."""
        if isinstance(granted, KytecronError):
            # Another worker may have the key that is missing here: worth a retry.
            self._cannot_start(run, granted, permanent=False)
            return None
        if run.problem is not None:
            self._cannot_start(run, Invalid({"parameters": run.problem}), permanent=True)
            return None
        if run.version is None:
            # Written by hand in SQL, its code to follow: not a reason to give up on the job.
            skipped = Outcome(Status.SKIPPED, skipped_reason="the job has no code yet")
            self._ended.append((self._runs[run.claim.execution_id], skipped))
            return None
        try:
            code = self._code.get(run.content_hash)
        except KytecronError as error:
            self._cannot_start(run, error, permanent=True)
            return None
        return RunRequest(
            execution_id=run.claim.execution_id,
            job_id=run.claim.job_id,
            job_name=run.job_name,
            version=run.version or 0,
            code=code,
            parameters=run.parameters,
            scheduled_time=run.scheduled_time.isoformat(),
            attempt=run.claim.attempt + 1,
            previous_status=run.previous_status,
            timeout_seconds=run.timeout_seconds,
            memory_limit_mb=run.memory_limit_mb,
            cpu_limit_seconds=run.cpu_limit_seconds,
            state=run.state,
            secrets=dict(granted),
            lease_until=lease_until,
            stop_before_lease_end=not run.continues_without_contact,
        )

    def _cannot_start(self, run: ClaimedRun, error: KytecronError, *, permanent: bool) -> None:
        problem = Outcome(Status.FAILED, error=f"cannot start: {error.message}", permanent=permanent)
        self._ended.append((self._runs[run.claim.execution_id], problem))

    # -- regular duties --------------------------------------------------------------------------------------

    def _report(self) -> None:
        """Tell the registry that this worker is alive."""
        now = time.monotonic()
        if now < self._timers.report:
            return
        self._timers.report = now + self.settings.renew_seconds
        with self._database("report"):
            self._say_alive()

    def _say_alive(self) -> None:
        registry.report(
            self.session,
            self.worker_id,
            self.settings,
            running=self._running(),
            draining=self._stopping_since is not None,
            clock_skew_ms=round(self._skew.total_seconds() * 1000, 1),
            statistics=self.statistics.as_dict(),
        )

    def _patrol(self) -> None:
        """See to leases that ended, workers that are gone, held runs, jobs that have no slot yet, and messages."""
        now = time.monotonic()
        if now < self._timers.patrol:
            return
        self._timers.patrol = now + PATROL_SECONDS
        with self._database("patrol"):
            found = self._onlooker.ask(lifecycle.irregularities)
            others = found.holders.keys() - {self.worker_id}
            gone = registry.gone(self.session, others) if others else set()
            if now >= self._timers.crew:
                self._timers.crew = now + CREW_SECONDS
                self._crew = sorted({self.worker_id, *registry.crew(self.session, self.settings)})
            self.session.rollback()
            if found.holders.get(self.worker_id, 0) > len(self._runs):
                self._claim_unknown = True  # a COMMIT that was given up for lost has arrived late
            # Who was itself without the database gives the others time to renew before it judges them.
            if gone or (found.expired and now >= self._judge_after):
                reaped = lifecycle.reap(self.session, gone)
                self.statistics.leases_expired += len(reaped)
            if found.held:
                lifecycle.release_waiting(self.session)
            if found.unplanned:
                lifecycle.adopt(self.session)
            if found.unsent:
                self.upkeep.send()

    # -- shutdown --------------------------------------------------------------------------------------------

    def _watch_signals(self) -> None:
        signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop())

    def _follow_shutdown(self) -> None:
        """Move on from running to draining to stopping, as signals and time demand."""
        if self._stop_signals and self._stopping_since is None:
            self._stopping_since = time.monotonic()
            self._timers.report = 0
            log.info(
                "stopping: %d running jobs have %g s to end", len(self._runs), self.settings.grace_seconds
            )
        if self._stopping_since is None or not self._runs:
            return
        if self._stop_signals > 1:
            self._interrupt(grace_seconds=0)
        elif time.monotonic() - self._stopping_since > self.settings.grace_seconds:
            self._interrupt(grace_seconds=None)

    def _interrupt(self, grace_seconds: float | None) -> None:
        """Stop what runs; its rows are given back at once."""
        for execution_id, held in self._runs.items():
            if not held.cancelling or grace_seconds == 0:
                held.cancelling = True
                self.runner.stop(
                    execution_id,
                    Status.LOST,
                    "its worker was shut down",
                    interrupted=True,
                    grace_seconds=grace_seconds,
                )

    # -- the database goes away and comes back ---------------------------------------------------------------

    @contextmanager
    def _database(self, what: str) -> Iterator[_Attempt]:
        """Do something with the database; whatever goes wrong is noted, and the loop goes on."""
        attempt = _Attempt()
        try:
            yield attempt
        except Exception as error:  # bad rows, bad code and an absent database never stop the worker
            attempt.failed = error
            self._note_failure(what, error)
        else:
            self._failures = 0

    def _note_failure(self, what: str, error: Exception) -> None:
        self._failures += 1
        try:
            self.session.rollback()
        except SQLAlchemyError:
            self.session.close()
        if _is_outage(error):
            if self._outage_since is None:
                self._outage_since = time.monotonic()
                log.warning("the database is not available (%s): %s", what, db.cause(error))
        elif db.is_row_conflict(error):
            log.warning("%s has to wait: %s", what, db.cause(error))
        else:
            log.error("%s failed: %s", what, db.cause(error), exc_info=error)

    def _probe(self) -> bool:
        """Whether the database is back, and takes writes: it may be read-only, full or locked."""
        try:
            self._say_alive()
        except Exception as error:
            self._note_failure("probe", error)
            return False
        assert self._outage_since is not None
        now = time.monotonic()
        log.info("the database answers again after %.1f s", now - self._outage_since)
        self._judge_after = now + self.settings.renew_seconds
        self._outage_since = None
        self._failures = 0
        self._timers.renew = 0
        return True


@dataclass(slots=True)
class _Attempt:
    """How something tried with the database went."""

    failed: Exception | None = None


class _CodeCache:
    """Source code by its hash; the least recently used goes first."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._size = 0
        self._codes: OrderedDict[str, str] = OrderedDict()
        self._unreadable: dict[str, Unreadable] = {}

    def load(self, session: Session, hashes: set[str]) -> None:
        """Fetch what is not here yet, in one statement."""
        self._unreadable.clear()
        for digest, code in versions.sources(session, hashes - self._codes.keys()).items():
            if isinstance(code, Unreadable):
                self._unreadable[digest] = code
                continue
            self._codes[digest] = code
            self._size += len(code)

    def get(self, digest: str | None) -> str:
        """Code that was loaded. Raises NotFound where there is none, Unreadable for a damaged content."""
        if digest in self._unreadable:
            raise self._unreadable[digest]
        if digest is None or digest not in self._codes:
            raise NotFound("the code of this version is gone")
        self._codes.move_to_end(digest)
        while self._size > self._limit and len(self._codes) > 1:
            self._size -= len(self._codes.popitem(last=False)[1])
        return self._codes[digest]


def _is_outage(error: Exception) -> bool:
    """Whether the database is away, rather than one statement wrong."""
    if isinstance(error, (db.CommitUnknown, OSError, PoolTimeout)):
        return True
    if db.is_row_conflict(error):
        return False
    return isinstance(error, (OperationalError, InterfaceError)) or (
        isinstance(error, DBAPIError) and error.connection_invalidated
    )


def _tell(run: ClaimedRun, outcome: Outcome) -> None:
    error = " ".join((outcome.error or "").split())[:300]
    log.warning("execution %d of %r: %s: %s", run.claim.execution_id, run.job_name, outcome.status, error)


def _unstorable(outcome: Outcome, error: Exception) -> Outcome:
    """What is recorded instead of a result that the database refuses."""
    problem = f"the result cannot be stored: {db.cause(error)}"
    return Outcome(Status.FAILED, error=problem, exit_code=outcome.exit_code, duration_ms=outcome.duration_ms)

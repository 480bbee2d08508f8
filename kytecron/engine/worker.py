"""The worker: finds due work, runs it, writes down what came of it.

One loop of short steps on the main thread does all that needs the database; the Runner's own thread keeps watch
over the job processes, so that time limits and leases hold even while a statement hangs. Two more (`upkeep`) send
notifications and remove old rows: a dead channel or a long clean-up delays no job.

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
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from ..config import Settings
from ..core.errors import KytecronError, NotFound, Unreadable
from ..core.schedule import OFFSETS_MATTER, TZDATA_VERSION, tzdata_order
from ..core.states import UNSUCCESSFUL, Claim, Outcome, Status, StopRequest
from ..core.words import count
from ..services import jobapi, lifecycle, registry, secrets, versions
from ..services.lifecycle import ClaimedRun, Progress
from ..services.registry import Trouble
from ..store import db, schema
from .child import boot_time
from .limits import affordable
from .lookout import Lookout, Sight, Wants
from .runner import Call, Ended, Progressed, Refused, Runner, RunRequest, Started
from .statistics import Statistics
from .telling import Rarely
from .trouble import PausedJobs, Shortage
from .upkeep import Upkeep

log = logging.getLogger(__name__)

ENQUEUE_BATCH = 100
FLUSH_SECONDS = 0.4
"""Output reaches the database this long after it was printed, at most."""
PATROL_SECONDS = 1.0
"""How often a worker looks for leases that ended, workers that are gone, waiting runs and jobs without a slot."""
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
MOST_UNWRITTEN = 2
"""Results that wait to be written, for each slot, before no more runs are claimed."""
MOST_PIECES = 16
"""Pieces of one run's output that are stored at once."""
CODE_CACHE_BYTES = 16_000_000
OUTAGE = "outage"
"""What the time without a database is told under, whatever was tried."""


@dataclass(slots=True)
class _Run:
    """A run leased to this worker."""

    run: ClaimedRun
    seq: int = 0
    """Number of the next piece of output."""
    pieces: list[tuple[int, str, bool]] = field(default_factory=list)
    """Output that was taken from the runner, until it is stored; see `lifecycle.Progress`."""
    progress: tuple[float, str] | None = None
    stopping: bool = False
    """It was told to stop."""
    released: bool = False
    """Somebody has released its lock: it ends as lost, and this worker writes so."""
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
    replan_again: float = math.inf


class CronWorker:
    """A worker process. `run()` works until `stop()` or a signal; tests call `step()`."""

    def __init__(self, settings: Settings, *, drain: bool = False) -> None:
        concurrency, self._limited = affordable(settings.concurrency)
        if self._limited:
            log.warning("this worker is limited: %s", self._limited)
        settings = self.settings = replace(settings, concurrency=concurrency)
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
        self._lookout = Lookout(self.worker_id, concurrency, settings.poll_interval, drain)
        self._skew = timedelta(0)
        """This machine's clock less the database's."""
        self._unsure: int | None = None
        """The token of a claim whose COMMIT has not answered: it holds runs, or none."""
        self._given_up: set[Claim] = set()
        """Claims lost here whose rows may still name this worker: whoever judges their leases ends them."""
        self._shortage = Shortage(concurrency)
        self._paused = PausedJobs()
        self._trouble_told: Trouble | None = None
        self._files = db.files_of(self.engine)
        self._outage_since: float | None = None
        self._told = Rarely()
        self.left_because: str | None = None
        """Why it ends although nobody told it to: the database's tables are another version's now."""
        self._newer_tzdata = ""
        """What a living worker has that plans slots by newer time zones than this one knows: this one plans none."""
        self._plan_from = 0.0
        """On the monotonic clock: until then others may still plan by older time zones."""
        self._replan_after: int | None = None
        """The job up to which next slots were compared with this worker's time zones; None: that is done."""
        self._compared_tzdata = False
        """Whether it is known that nobody has planned slots by older time zones since this worker last looked."""
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
            f"database {db.shown(self.engine.url)}"
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
        idle = not self._runs and not self._ended and self._unsure is None
        if self._stopping_since is not None:
            # Results that the database will not take are given up once no lease can protect them any more.
            patience = self.settings.grace_seconds + self.settings.lease_seconds
            return idle or time.monotonic() - self._stopping_since > patience
        now, wants = time.monotonic(), self._wants()
        looked = self._lookout.looked_at > 0 and not self._lookout.must_look(now, wants)
        return self.drain and idle and looked and not self._lookout.is_due(now, wants) and not self._pauses()

    def _sleep(self) -> None:
        """Wait for the next duty, the next due instant or a wake, whichever comes first."""
        now = time.monotonic()
        until = [self._timers.patrol, self._lookout.wakes_at(self._wants())]
        if self._runs:
            until += [self._timers.renew, self._timers.flush]
        if self._ended:
            soonest = min(leased.settle_at for leased, _ in self._ended)
            until.append(max(self._timers.settle, soonest))
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
        refused: str | None = None
        for event in self.runner.collect():
            leased = self._runs.get(event.execution_id)
            if leased is None:
                continue  # dropped meanwhile
            match event:
                case Started(started_at=moment):
                    self.statistics.started((moment - self._skew - leased.run.due_time).total_seconds())
                    self._shortage.started(time.monotonic())
                case Progressed(percent=percent, note=note):
                    leased.progress = (percent, note)
                case Call():
                    self._answer(event, leased)
                case Ended(outcome=outcome):
                    self._take_ending(leased, outcome)
                case Refused(reason=refused):
                    self._give_back(leased)
        if refused is not None:
            self._note_shortage(refused)

    def _note_shortage(self, reason: str) -> None:
        log.warning("a run is given back, nothing is claimed for a while: %s", reason)
        self._shortage.refused(reason, self._running(), time.monotonic())

    def _take_ending(self, leased: _Run, outcome: Outcome) -> None:
        execution_id = leased.run.claim.execution_id
        if outcome.status is Status.LOST and not outcome.interrupted and not leased.released:
            # The lease ran out here: the row belongs to whoever judges it, this worker writes nothing.
            log.warning("%s", outcome.error, extra=_keys(leased.run))
            self.statistics.leases_expired += 1
            self._given_up.add(leased.run.claim)
            del self._runs[execution_id]
            return
        self._ended.append((leased, outcome))

    def _answer(self, call: Call, leased: _Run) -> None:
        result: Any = None
        problem: str | None = None
        try:
            caller = jobapi.Caller(leased.run.claim.job_id, leased.run.job_name, call.mask)
            result = jobapi.answer_call(self.session, caller, call.method, call.arguments)
        except KytecronError as error:
            problem = error.message
        except (TypeError, ValueError, OverflowError) as error:
            problem = f"bad arguments: {error}"
        except db.CommitUnknown as error:
            self._note_failure("answer a job's call", error)
            problem = "the database was lost while saving: it is not known whether it was done"
        except Exception as error:  # a job asks for what it likes, and the worker outlives the answer
            self._note_failure("answer a job's call", error)
            problem = "the database cannot be reached" if db.is_outage(error) else db.cause(error)
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
        if not db.is_outage(attempt.failed):
            self._settle_one_by_one(batch)
        return False

    def _settle_one_by_one(self, batch: list[_Ending]) -> None:
        """One result that cannot be written must not keep the others from being written."""
        for ending in batch:
            leased, outcome = ending
            with self._database("settle one result") as attempt:
                self._bring([ending])
            if attempt.failed is None:
                continue
            self._ended.remove(ending)  # to the end of the queue
            if db.is_outage(attempt.failed) or db.is_row_conflict(attempt.failed):
                self._ended.append(ending)
                return  # this took its time, and leases are to be renewed
            leased.pieces.clear()  # it may have been these
            self._ended.append((leased, _unstorable(outcome, attempt.failed)))

    def _bring(self, batch: list[_Ending]) -> None:
        """Write results, and forget the runs; what somebody has locked comes again in a moment."""
        unstored = [Progress(leased.run.claim, leased.pieces) for leased, _ in batch if leased.pieces]
        if unstored:
            busy = lifecycle.append_output(self.session, unstored).busy
            for report in unstored:
                if report.claim.execution_id not in busy:
                    report.pieces.clear()
        settled = lifecycle.settle(
            self.session, [(leased.run.claim, outcome) for leased, outcome in batch if not leased.pieces]
        )
        for ending in batch:
            leased, outcome = ending
            if leased.pieces or leased.run.claim.execution_id in settled.busy:
                leased.settle_at = time.monotonic() + leased.busy_pause
                leased.busy_pause = min(SETTLE_PAUSE_SECONDS, 2 * leased.busy_pause)
                continue
            if outcome.status is Status.PENDING:
                self._lookout.gave_back(max(time.monotonic(), self._shortage.until))
            else:
                self.statistics.ended(outcome.status)
            if outcome.status in UNSUCCESSFUL:
                _tell(leased.run, outcome)
            self._runs.pop(leased.run.claim.execution_id, None)
            self._ended.remove(ending)

    # -- keeping runs ----------------------------------------------------------------------------------------

    def _renew(self) -> None:
        now = time.monotonic()
        if not self._runs or now < self._timers.renew:
            return
        before, busy = boot_time(), set[int]()
        claims = [leased.run.claim for leased in self._runs.values()]
        revivable = [key for key, leased in self._runs.items() if leased.run.continues_without_contact]
        with self._database("renew leases") as attempt:
            still, busy = lifecycle.renew(self.session, claims, revivable, self.settings.lease_seconds)
            for execution_id in [claim.execution_id for claim in claims]:
                if execution_id not in busy:
                    self._apply_renewal(execution_id, still, before)
        again_soon = attempt.failed or busy
        self._timers.renew = now + (RENEW_PAUSE_SECONDS if again_soon else self.settings.renew_seconds)

    def _apply_renewal(
        self, execution_id: int, still: Mapping[int, StopRequest | None], before: float
    ) -> None:
        if execution_id not in still:
            if any(leased.run.claim.execution_id == execution_id for leased, _ in self._ended):
                return  # it has ended: whether its result still counts is for the fence to say
            text = "the run is no longer leased to this worker: its process is killed"
            log.warning(text, extra=_keys(self._runs[execution_id].run))
            self.statistics.leases_expired += 1
            self._timers.report = 0  # whoever took it took this worker for gone
            self._drop(execution_id)
            return
        self.runner.set_lease(execution_id, before + self.settings.lease_seconds)
        self._maybe_stop(execution_id, still[execution_id])

    def _drop(self, execution_id: int) -> None:
        self.runner.drop(execution_id)
        if leased := self._runs.pop(execution_id, None):
            self._given_up.add(leased.run.claim)
        self._ended = [item for item in self._ended if item[0].run.claim.execution_id != execution_id]

    def _maybe_stop(self, execution_id: int, asked: StopRequest | None) -> None:
        leased = self._runs.get(execution_id)
        if asked and leased and not leased.stopping:
            leased.stopping, leased.released = True, asked.release
            status = Status.LOST if asked.release else Status.CANCELLED
            self.runner.stop(execution_id, status, asked.reason)

    def _flush(self) -> None:
        """Store new output and progress of running jobs."""
        now = time.monotonic()
        if not self._runs or now < self._timers.flush:
            return
        self._timers.flush = now + FLUSH_SECONDS
        reports = [report for leased in self._runs.values() if (report := self._progress_of(leased))]
        if not reports:
            return
        with self._database("store output"):
            gone, busy = lifecycle.append_output(self.session, reports)
            for report in reports:
                if report.claim.execution_id not in busy:
                    leased = self._runs[report.claim.execution_id]
                    leased.pieces, leased.progress = [], None
            for execution_id in gone:
                self._drop(execution_id)

    def _progress_of(self, leased: _Run) -> Progress | None:
        while len(leased.pieces) < MOST_PIECES:
            chunk = self.runner.take_output(leased.run.claim.execution_id)
            if chunk is None:
                break
            leased.pieces.append((leased.seq, chunk.text, chunk.tail))
            leased.seq += 1
            if not chunk.more:
                break
        report = Progress(leased.run.claim, leased.pieces)
        if leased.progress:
            report.percent, report.note = leased.progress
        return report if report.pieces or report.percent is not None else None

    # -- finding work ----------------------------------------------------------------------------------------

    def _look_and_take(self) -> bool:
        """Look what is due, put due slots into the ledger, claim and start; returns whether anything happened."""
        lookout, wants = self._lookout, self._wants()
        if not lookout.backlog and not lookout.must_look(time.monotonic(), wants):
            return False
        enqueued = started = 0
        with self._database("look for work") as attempt:
            now = time.monotonic()
            if not lookout.slot_came(now) and lookout.must_look(now, wants):
                self._look()
            if lookout.slot_in == 0:
                enqueued = self._enqueue()
            if (enqueued or lookout.backlog) and wants.runs:
                started = self._take()
        return not attempt.failed and bool(enqueued or started)

    def _wants(self) -> Wants:
        goes_on = self._stopping_since is None
        return Wants(slots=goes_on, runs=goes_on and self._free_capacity() > 0)

    def _enqueue(self) -> int:
        """Put due slots into the ledger, unless that is for others; returns how many jobs had some."""
        if not self._plans():
            self._lookout.leaves_slots()
            return 0
        enqueued = lifecycle.enqueue_due(self.session, ENQUEUE_BATCH)
        if not enqueued:
            self._lookout.met_locked_slot(time.monotonic())
        return enqueued

    def _plans(self) -> bool:
        """Whether it is for this worker to turn slots into runs."""
        return (
            self._stopping_since is None
            and not self._newer_tzdata
            and self._replan_after is None
            and time.monotonic() >= self._plan_from
        )

    def _look(self) -> None:
        before, wall = time.monotonic(), datetime.now(UTC)
        look = self._onlooker.ask(
            lifecycle.look,
            self.worker_id,
            leased=[leased.run.claim for leased in self._runs.values()],
            tags=self.settings.tags,
            without=self._paused.ids,
            count=self._lookout.counts,
        )
        self._skew = wall - look.now
        for execution_id, asked in look.stops.items():
            self._maybe_stop(execution_id, asked)
        sight = Sight(look.now, look.slot_due, look.run_due, look.due)
        self._lookout.saw(sight, before, time.monotonic())

    def _running(self) -> int:
        """How many runs still have, or may have, a process."""
        return len(self._runs) - len(self._ended)

    def _free_capacity(self) -> int:
        """How many runs may start; none while very many results wait that the database does not take."""
        room = self._shortage.room(time.monotonic())
        return min(room - self._running(), MOST_UNWRITTEN * self.settings.concurrency - len(self._ended))

    def _pauses(self) -> bool:
        """Whether nothing is claimed for a while, because nothing could be started."""
        return time.monotonic() < self._shortage.until

    def _take(self) -> int:
        """Claim as many runs as there is free capacity for and start them."""
        if self._unsure is not None:
            return 0  # `_read_back` comes first
        before, free, token = boot_time(), self._free_capacity(), lifecycle.draw_token()
        self._unsure = token  # until COMMIT has answered
        runs = lifecycle.claim(
            self.session,
            self.worker_id,
            self.settings.tags,
            free,
            self.settings.lease_seconds,
            token,
            self._paused.ids,
        )
        self._unsure = None
        if runs or self._lookout.backlog:  # else nothing was seen to be due: what was enqueued waits
            self.statistics.claimed(len(runs))
        self._lookout.claimed(len(runs), free)
        self._start(runs, before + self.settings.lease_seconds)
        return len(runs)

    def _read_back(self) -> None:
        """A claim's COMMIT got no answer: find out what it holds by its token, and start that."""
        if self._unsure is None:
            return
        before = boot_time()
        with self._database("read back a claim"):
            runs = lifecycle.leased(self.session, self.worker_id, self._unsure)
            self.session.rollback()
            claims = [run.claim for run in runs]
            leased, busy = lifecycle.renew(self.session, claims, [], self.settings.lease_seconds)
            self._unsure = None
            startable = [run for run in runs if run.claim.execution_id in leased]
            if self._stopping_since is not None:
                self._return(startable)
            else:
                self._start(startable, before + self.settings.lease_seconds)
            self._return([run for run in runs if run.claim.execution_id in busy])
            self._given_up |= {claim for claim in claims if claim.execution_id not in leased.keys() | busy}

    def _believe(self, run: ClaimedRun) -> _Run:
        """Take note that this worker holds a run."""
        execution_id = run.claim.execution_id
        if execution_id in self._runs:
            # Ids were given anew: what was claimed before under this one is no longer in the ledger.
            log.warning(
                "execution %s is another run now: the process of the former one is killed", execution_id
            )
            self._drop(execution_id)
        leased = self._runs[execution_id] = _Run(run)
        return leased

    def _return(self, runs: list[ClaimedRun]) -> None:
        """Give back runs that were claimed and are not started."""
        for run in runs:
            self._give_back(self._believe(run))

    def _give_back(self, leased: _Run) -> None:
        """No process of this claim has started: the run is for whoever can start it."""
        self._ended.append((leased, Outcome(Status.PENDING)))

    def _start(self, runs: list[ClaimedRun], lease_until: float) -> None:
        """Start what was claimed; what keeps one run from starting keeps no other from it."""
        if not runs:
            return
        try:
            granted = self._secrets_for(runs)
            self._code.load(self.session, {run.content_hash for run in runs if run.content_hash})
        except Exception as error:
            self._return(runs)
            if not db.is_outage(error):
                self._note_shortage(f"cannot read what it takes to start a run: {db.cause(error)}")
            raise
        requests = []
        for run in runs:
            leased = self._believe(run)
            try:
                request = self._request(leased, granted.get(run.claim.job_id, {}), lease_until)
            except Exception as error:  # bad rows never stop the worker, nor the runs beside them
                log.exception("execution %s cannot be started", run.claim.execution_id)
                self._cannot_start(leased, f"{type(error).__name__}: {error}", permanent=False)
                continue
            if request is not None:
                requests.append(request)
        self.runner.start_many(requests)
        self.session.rollback()
        self._timers.renew = min(self._timers.renew, time.monotonic() + self.settings.renew_seconds)

    def _secrets_for(self, runs: list[ClaimedRun]) -> Mapping[int, dict[str, str] | KytecronError]:
        jobs = {run.claim.job_id for run in runs if run.has_secrets}
        return secrets.granted_to_jobs(self.session, self.settings, jobs) if jobs else {}

    def _request(
        self, leased: _Run, granted: Mapping[str, str] | KytecronError, lease_until: float
    ) -> RunRequest | None:
        """What the runner needs; None where the run cannot start: its ending is recorded, or it is given back."""
        run = leased.run
        if isinstance(granted, KytecronError):
            # This worker lacks a key, which is no fault of the job; another worker may have it.
            log.warning("job %s is left to other workers: %s", run.claim.job_id, granted.message)
            self._paused.pause(run.claim.job_id, granted.message, time.monotonic())
            self._give_back(leased)
            return None
        if run.problem is not None:
            self._cannot_start(leased, run.problem, permanent=True)
            return None
        if run.version is None:
            # Written by hand in SQL, its code to follow: not a reason to give up on the job.
            self._ended.append((leased, Outcome(Status.SKIPPED, skipped_reason="the job has no code yet")))
            return None
        try:
            code = self._code.get(run.content_hash)
        except KytecronError as error:
            self._cannot_start(leased, error.message, permanent=True)
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
            settings=run.settings,
            state=run.state,
            secrets=dict(granted),
            lease_until=lease_until,
            stop_before_lease_end=not run.continues_without_contact,
        )

    def _cannot_start(self, leased: _Run, problem: str, *, permanent: bool) -> None:
        outcome = Outcome(Status.FAILED, error=f"cannot start: {problem}", permanent=permanent)
        self._ended.append((leased, outcome))

    # -- regular duties --------------------------------------------------------------------------------------

    def _report(self) -> None:
        """Tell the registry that this worker is alive, and what troubles it, as soon as that changes."""
        now = time.monotonic()
        if now < self._timers.report and self._trouble() == self._trouble_told:
            return
        self._timers.report = now + self.settings.renew_seconds
        with self._database("report"):
            self._say_alive()

    def _trouble(self) -> Trouble | None:
        """What keeps this worker from starting runs, the worst first."""
        limited = [self._limited] if self._limited else []
        if reason := self._shortage.reason(time.monotonic()):
            return Trouble("; ".join([reason, *limited]), jobs=None)
        reasons = [*self._paused.reasons(), *limited]
        return Trouble("; ".join(reasons), jobs=sorted(self._paused.ids)) if reasons else None

    def _say_alive(self) -> None:
        trouble = self._trouble()
        registry.report(
            self.session,
            self.worker_id,
            self.settings,
            running=self._running(),
            draining=self._stopping_since is not None,
            clock_skew_ms=round(self._skew.total_seconds() * 1000, 1),
            statistics=self.statistics.as_dict(),
            trouble=trouble,
        )
        self._trouble_told = trouble

    def _patrol(self) -> None:
        """See to leases that ended, workers that are gone, waiting runs, jobs that have no slot yet, and messages."""
        now = time.monotonic()
        if now < self._timers.patrol:
            return
        if now - self._timers.patrol > self.settings.lease_seconds / 2 - PATROL_SECONDS:
            # Whoever was stopped or without a database may have looked dead, and others have planned meanwhile.
            self._timers.crew, self._compared_tzdata = 0, False
        self._timers.patrol = now + PATROL_SECONDS
        with self._database("look at the schema"):
            self._leave_if_outdated()
        self._compare_with_runner()
        self._notice_other_files()
        with self._database("patrol"):
            found = self._onlooker.ask(lifecycle.irregularities)
            others = found.holders.keys() - {self.worker_id}
            gone = registry.gone(self.session, others) if others else set()
            if now >= self._timers.crew:
                self._timers.crew = now + CREW_SECONDS
                gone |= registry.ended_unsaid(self.session)
                self._lookout.crew = sorted({self.worker_id, *registry.crew(self.session, self.settings)})
                self._compare_tzdata()
            self.session.rollback()
            self._compare_with_ledger(found.holders.get(self.worker_id, 0))
            self._try_paused_jobs(now)
            # Who was itself without the database gives the others time to renew before it judges them.
            if gone or (found.expired and now >= self._judge_after):
                reaped = lifecycle.reap(self.session, gone)
                self.statistics.leases_expired += len(reaped)
            if found.waiting:
                lifecycle.release_waiting(self.session)
            if now >= self._timers.replan_again:
                self._replan_after, self._timers.replan_again = 0, math.inf
            if self._replan_after is not None and now >= self._plan_from:
                self._replan()
            if found.unplanned and self._plans():
                lifecycle.adopt(self.session)
            if found.unsent:
                self.upkeep.send()

    def _leave_if_outdated(self) -> None:
        """Stop once the database's tables are another version's."""
        if self.left_because is None and (moved := self._onlooker.ask(schema.has_moved_on)):
            self.left_because = f"{moved}. The worker stops; start the version that fits"
            log.warning("%s", self.left_because)
            if self._stopping_since is None:
                self._begin_to_stop()

    def _compare_tzdata(self) -> None:
        """Plan nothing beside a worker with newer time zones; after workers with older ones, plan anew."""
        found = registry.tzdata_elsewhere(self.session, self.worker_id)
        newer = found.newest if tzdata_order(found.newest) > tzdata_order(TZDATA_VERSION) else ""
        if newer and newer != self._newer_tzdata:
            log.warning(
                "another worker has tzdata %s, this one %s: it plans no slots, and runs what others plan. "
                "Install the same requirements.txt everywhere",
                *(newer, TZDATA_VERSION),
            )
        elif self._newer_tzdata and not newer:
            log.info("no living worker has newer time zones any more: this one plans slots again")
        self._newer_tzdata = newer
        if not self._compared_tzdata:
            self._compared_tzdata = True
            if found.planned_by_older and not newer:
                self._replan_after = 0
                known_of = time.monotonic() + 2 * CREW_SECONDS
                if found.older:
                    self._plan_from = known_of  # the others notice that they have become the older ones
                else:
                    # Whoever was creating a job when this worker came did not know of it. That job's id may be one
                    # that this walk over the jobs has passed before the job was there to be seen.
                    self._timers.replan_again = known_of

    def _replan(self) -> None:
        """Compare some jobs' next slots with what they are by this worker's time zones."""
        assert self._replan_after is not None
        changed, self._replan_after = lifecycle.replan(self.session, self._replan_after, types=OFFSETS_MATTER)
        if changed:
            log.info("planned anew by tzdata %s: %s", TZDATA_VERSION, count(changed, "job"))
        if self._replan_after is not None:
            self._timers.patrol = time.monotonic()  # there is more

    def _compare_with_runner(self) -> None:
        """What this worker believes it runs and what is run for it must be the same."""
        running = self.runner.running
        for execution_id in running - self._runs.keys():
            log.error(
                "a process of execution %s is run that this worker knows nothing of: killed", execution_id
            )
            self.runner.drop(execution_id)
        ended = {leased.run.claim.execution_id for leased, _ in self._ended}
        for execution_id in self._runs.keys() - running - ended:
            log.error("execution %s is leased and not run: ended", execution_id)
            lost = Outcome(Status.LOST, error="its worker lost track of its process", interrupted=True)
            self._ended.append((self._runs[execution_id], lost))

    def _compare_with_ledger(self, rows: int) -> None:
        """What the ledger says this worker holds and what it believes must be the same.

        They differ when the database was restored from a backup, and when a COMMIT that was given up arrives late.
        """
        if not rows and not self._runs:
            self._given_up.clear()
            return
        leased = self._onlooker.ask(lifecycle.claims_of, self.worker_id)
        self._given_up &= leased
        believed = {run.run.claim for run in self._runs.values()}
        strangers = {claim for claim in leased - believed - self._given_up if claim.token != self._unsure}
        if strangers:
            ended = lifecycle.disown(self.session, strangers)
            log.warning("executions named this worker, which knows nothing of them: %s ended as lost", ended)
        if believed - {run.run.claim for run, _ in self._ended} - leased:
            self._timers.renew = 0  # which decides, under locks, what is no longer this worker's

    def _try_paused_jobs(self, now: float) -> None:
        """Look whether the secrets of paused jobs can be decrypted by now."""
        if not (jobs := self._paused.due(now)):
            return
        granted = secrets.granted_to_jobs(self.session, self.settings, jobs)
        self.session.rollback()
        for job_id in jobs:
            if isinstance(error := granted.get(job_id), KytecronError):
                self._paused.pause(job_id, error.message, now)
            else:
                self._paused.lift(job_id)
                self._lookout.look_now()

    def _notice_other_files(self) -> None:
        """An SQLite file that was put in the place of this one, from a backup say, is opened; the old one let go."""
        before, self._files = self._files, db.files_of(self.engine)
        if any(old not in (None, new) for old, new in zip(before, self._files, strict=True)):
            log.warning("the database file was replaced: it is opened anew")
            self._onlooker.close()
            self.session.close()
            self.engine.dispose()
            self._timers.renew = self._timers.report = 0

    # -- shutdown --------------------------------------------------------------------------------------------

    def _watch_signals(self) -> None:
        signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: self.stop())
        for number in (signal.SIGINT, signal.SIGHUP):  # Ctrl-C, and a terminal that is closed
            # A shell's background process and nohup's are not meant: they were started with it ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: self.stop())

    def _follow_shutdown(self) -> None:
        """Move on from running to draining to stopping, as signals and time demand."""
        if self._stop_signals and self._stopping_since is None:
            self._begin_to_stop()
        if self._stopping_since is None or not self._runs:
            return
        if self._stop_signals > 1:
            self._interrupt(grace_seconds=0)
        elif time.monotonic() - self._stopping_since > self.settings.grace_seconds:
            self._interrupt(grace_seconds=None)

    def _begin_to_stop(self) -> None:
        self._stopping_since = time.monotonic()
        self._timers.report = 0
        log.info("stopping: %d running jobs have %g s to end", len(self._runs), self.settings.grace_seconds)

    def _interrupt(self, grace_seconds: float | None) -> None:
        """Stop what runs; its rows are given back at once."""
        for execution_id, leased in self._runs.items():
            if not leased.stopping or grace_seconds == 0:
                leased.stopping = True
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
            if self._told:
                self._told.over(what, time.monotonic())

    def _note_failure(self, what: str, error: Exception) -> None:
        self._failures += 1
        db.give_up(self.session)
        now = time.monotonic()
        if self._outage_since is not None or db.is_outage(error):
            if self._outage_since is None:
                self._outage_since = now
            what, line = OUTAGE, "the database is not available: %s%s"
        elif db.is_row_conflict(error):
            line = f"{what} has to wait: %s%s"
        else:
            line = f"{what} failed: %s%s"
        added = self._told.due(what, now)
        if added is None:
            return
        level = logging.ERROR if line.startswith(f"{what} failed") else logging.WARNING
        log.log(level, line, db.cause(error), added, exc_info=error if level == logging.ERROR else None)

    def _probe(self) -> bool:
        """Whether the database is back, and takes writes: it may be read-only, full or locked."""
        try:
            self._say_alive()
        except Exception as error:
            if not db.is_missing(error):
                self._note_failure("probe", error)
                return False
            db.give_up(self.session)  # it answers, and has other tables: the patrol looks at them
        assert self._outage_since is not None
        now = time.monotonic()
        self._told.over(OUTAGE, now)
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


def _tell(run: ClaimedRun, outcome: Outcome) -> None:
    error = " ".join((outcome.error or "").split())[:300]
    log.warning("%r %s: %s", run.job_name, outcome.status, error, extra=_keys(run))


def _keys(run: ClaimedRun) -> dict[str, int]:
    """What a line of the log about a run carries."""
    return {"execution": run.claim.execution_id, "job": run.claim.job_id}


def _unstorable(outcome: Outcome, error: Exception) -> Outcome:
    """What is recorded instead of a result that the database refuses."""
    problem = f"the result cannot be stored: {db.cause(error)}"
    return Outcome(Status.FAILED, error=problem, exit_code=outcome.exit_code, duration_ms=outcome.duration_ms)

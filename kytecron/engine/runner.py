"""The parent half of every run: start it, stream it, stop it, and say how it ended.

A `Runner` owns a fork server (engine/forkserver.py, which forks, keeps the deadlines and kills) and a supervisor
thread that moves bytes: what the jobs print and say, what the fork server reports. The worker's main thread calls
the methods, all of them safe from any thread and none of them waiting for a job, and collects events. So the main
thread may be stuck in a database call for a minute: output still flows, limits and leases still hold.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import selectors
import socket
import struct
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

from ..core.states import Outcome, Status
from .child import boot_time, encode_message
from .forkserver import (
    ENDED,
    ITSELF,
    LEASE,
    LIMIT,
    LOST_LEASE,
    READY,
    REFUSED,
    START,
    STARTED,
    STOP,
    STOPPING,
    adopt_orphans,
)
from .output import Mask, OutputChunk
from .run import (
    LONGEST_NOTE,
    LOST_LEASE_ERROR,
    PIPE,
    READ,
    READ_CONTROL,
    Run,
    RunRequest,
    Stop,
    conclude,
    conclude_alone,
)
from .server import LOOK_SECONDS, News, Server, how_it_ended

__all__ = [
    "Call",
    "Ended",
    "Event",
    "OutputChunk",
    "Progressed",
    "Refused",
    "RunRequest",
    "Runner",
    "Started",
]

log = logging.getLogger(__name__)

FINAL_READ = 1024 * 1024
"""Bytes of output still read when a run has ended: more than a pipe can hold."""

COMPILED_BYTES = 8 * 1024 * 1024

REST_SECONDS = 0.005
"""How long a run that was just read is left to gather more before it is read again."""

REST_FACTOR = 20
"""A run rests for so many times the CPU time that its messages cost: a flood of them leaves room for the others."""

IDLE_LOOK_SECONDS = 2.0
"""Longest sleep while nothing runs: a start by another thread does not end it, a silent fork server must."""

BURIAL_SECONDS = 0.002
"""How often is looked whether all that a dead fork server left behind is gone."""

CALLERS_AT_ONCE = 4
"""Jobs that come back after they have closed their channel, let in at one time."""

MOST_EARLY = 16
"""Callers that are kept whose run may not have been told of yet."""

DOOR_BACKLOG = 64
"""Callers that may wait at the door."""


@dataclass(slots=True)
class Started:
    execution_id: int
    pid: int
    started_at: datetime


@dataclass(slots=True)
class Progressed:
    execution_id: int
    percent: float
    note: str


@dataclass(slots=True)
class Call:
    """The job asks for something through `self.api`; answer with `Runner.reply`. Arguments are not checked.

    A run asks one thing at a time: the next call comes when this one is answered.
    """

    execution_id: int
    call_id: int
    method: str
    arguments: dict[str, Any]
    mask: Mask
    """Hides the secrets that the run was given."""


@dataclass(slots=True)
class Ended:
    execution_id: int
    outcome: Outcome


@dataclass(slots=True)
class Refused:
    """No process was made for the run, for want of what the machine has to give: nothing of it has started."""

    execution_id: int
    reason: str


Event = Started | Progressed | Call | Ended | Refused


class Runner:
    """Runs jobs, each in a process of its own.

    The process that makes one becomes the reaper of its orphaned descendants, and when its fork server is killed
    it kills what the runs left behind: beside a Runner, start no processes in sessions of their own that must
    outlive the fork server.

    `on_wake` is called from the supervisor thread when a run has ended or asks for something. `job_directory` is made
    if need be; in it each run has a working directory of its own, for as long as it lasts. Jobs see those of this
    process's variables that every job may see and `job_variables`, and find the modules of the directory
    `job_modules`. `name` stands in the command line of the fork server and of
    its runs: whoever finds it in none knows that they are gone.
    """

    def __init__(
        self,
        *,
        job_directory: str | os.PathLike[str],
        on_wake: Callable[[], None],
        output_limit_bytes: int = 10 * 1024 * 1024,
        kill_grace_seconds: float = 10,
        lease_margin_seconds: float = 1,
        name: str = "",
        job_variables: Iterable[str] = (),
        job_modules: str = "",
    ) -> None:
        self.job_directory = Path(job_directory)
        self.job_directory.mkdir(parents=True, exist_ok=True)
        self._on_wake = on_wake
        self._name = name
        self._job_variables = tuple(job_variables)
        self._job_modules = job_modules
        self._output_limit = output_limit_bytes
        self._grace = kill_grace_seconds
        self._lease_margin = lease_margin_seconds
        self._lock = threading.Lock()
        self._runs: dict[int, Run] = {}
        self._events: list[Event] = []
        self._urgent = False
        self._progress: dict[int, Progressed] = {}
        self._compiled = _Compiled()
        self._resting: deque[Run] = deque()
        self._closing = False
        self._selector = selectors.DefaultSelector()
        self._wake, self._waker = socket.socketpair()
        self._watched: dict[int, int] = {}
        self._news: deque[tuple[Run, News]] = deque()
        """Heard, and not acted upon yet."""
        self._graves: list[tuple[Server, list[Run]]] = []
        """Fork servers that have died, with their runs, until all that they left behind is gone."""
        self._look_at = 0.0
        # Written to once, to end the thread.
        self._watch(self._wake.fileno(), selectors.EVENT_READ, lambda *_: None)
        self._door, self._address = _open_door()
        if self._door is not None:
            self._watch(self._door.fileno(), selectors.EVENT_READ, self._on_caller)
        self._door_shut_until = 0.0
        self._early: list[socket.socket] = []
        adopt_orphans()
        self._server: Server | None = None
        with contextlib.suppress(OSError):  # the first start will try again, and say so
            self._ensure_server()
        self._thread = threading.Thread(target=self._supervise, name="runs", daemon=True)
        self._thread.start()

    # For the worker's main thread

    @property
    def running(self) -> set[int]:
        """The executions that were started and whose end was not yet collected."""
        with self._lock:
            ended = {event.execution_id for event in self._events if isinstance(event, Ended | Refused)}
            return {run.id for run in self._runs.values() if not run.dropped} | ended

    @property
    def server_pid(self) -> int | None:
        """Process id of the fork server; None between the death of one and the start of the next."""
        with self._lock:
            return self._server.pid if self._server is not None else None

    def start(self, request: RunRequest) -> None:
        """Start one run. It ends with exactly one `Ended`, or `Refused` when no process could be made for it."""
        self.start_many([request])

    def start_many(self, requests: Iterable[RunRequest]) -> None:
        """Start several; one that cannot be started keeps none of the others from it."""
        with self._telling():
            for request in requests:
                self._start(request)

    def collect(self) -> list[Event]:
        """The events since the last call, in order; of the progress of a run only the latest."""
        with self._lock:
            events, self._events = self._events, []
            self._progress.clear()
            return events

    def take_output(self, execution_id: int) -> OutputChunk | None:
        """What the run has printed since the last call, or the next piece of it; None when there is nothing."""
        with self._lock:
            run = self._runs.get(execution_id)
            return run.output.take() if run is not None and not run.dropped else None

    def set_lease(self, execution_id: int, deadline: float) -> None:
        """The lease of this run now ends at `deadline` (on `boot_time()`, which counts time asleep).

        Shortly before (`lease_margin_seconds`) the run and all its processes are killed and it ends as LOST,
        unless the deadline moves on in time or the request said `stop_before_lease_end=False`.
        """
        with self._telling():
            run = self._runs.get(execution_id)
            if run is not None and not run.dropped:
                run.lease = deadline
                self._order(LEASE, run, self._lease_end(run))

    def stop(
        self,
        execution_id: int,
        status: Status,
        reason: str,
        *,
        interrupted: bool = False,
        grace_seconds: float | None = None,
    ) -> None:
        """Stop a run: SIGTERM to its process group, the grace, SIGKILL to all its processes.

        It ends with `status` and `reason`; also when the job returns normally after all, except that an
        interrupted one (by the worker's own shutdown) then counts as what it is, completed.
        """
        with self._telling():
            run = self._runs.get(execution_id)
            if run is not None and not run.dropped:
                grace = self._grace if grace_seconds is None else grace_seconds
                self._stop(run, Stop(status, reason, interrupted), grace)

    def drop(self, execution_id: int) -> None:
        """No longer ours: SIGKILL now, and not a word about it any more."""
        with self._telling():
            self._events = [event for event in self._events if event.execution_id != execution_id]
            run = self._runs.get(execution_id)
            if run is not None:
                run.dropped = True
                self._order(STOP, run, 0)

    def reply(self, execution_id: int, call_id: int, result: Any = None, error: str | None = None) -> None:
        """Answer a `Call`: with a result that JSON can hold, or with an error that the job sees as ApiError."""
        answer = {"error": error} if error is not None else {"result": result}
        try:
            message = encode_message({"reply": call_id, **answer})
        except (TypeError, ValueError) as problem:
            message = encode_message({"reply": call_id, "error": f"the answer cannot be sent: {problem}"})
        with self._telling():
            run = self._runs.get(execution_id)
            if run is not None and not run.dropped and run.asking == call_id:
                self._send(run, message)
                run.asking, following, run.next_call = None, run.next_call, None
                if following is not None:
                    self._ask(run, following)

    def close(self) -> None:
        """Kill every run and end the fork server and the thread. No events come after this."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
        self._waker.send(b"\0")
        self._thread.join()
        if self._server is not None:
            self._server.close()
        for server, _ in self._graves:
            server.close()
        # Nobody here would wait for them now: they would stay as zombies.
        adopt_orphans(False)
        for run in self._runs.values():
            run.close()
        if self._door is not None:
            self._door.close()
        for caller in self._early:
            caller.close()
        self._runs.clear()
        self._selector.close()
        self._wake.close()
        self._waker.close()

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The supervisor thread

    def _supervise(self) -> None:
        while not self._closing:
            try:
                self._turn()
            except Exception:
                log.exception("supervising the runs failed")
                time.sleep(0.1)  # whatever it was: neither die of it nor spin

    def _turn(self) -> None:
        ready = self._selector.select(self._until_next_duty())
        with self._telling():
            self._end_rests()
            self._open_the_door_again()
            for key, mask in ready:
                handler, subject = key.data
                if not self._closing:
                    self._attend(handler, subject, mask)
            self._act_on_news()
            self._look_after_server()
            self._bury_servers()

    def _until_next_duty(self) -> float:
        """Seconds; nothing in here waits for anything else."""
        longest = LOOK_SECONDS if self._runs else IDLE_LOOK_SECONDS
        if self._graves:
            longest = BURIAL_SECONDS
        if self._door_shut_until:
            longest = min(longest, REST_SECONDS)
        if self._resting:
            longest = min(longest, max(0.0, self._resting[0].rest_until - time.monotonic()))
        return longest

    def _attend(self, handler: Callable[[Any, Any], None], subject: Any, mask: Any) -> None:
        try:
            handler(subject, mask)
        except Exception:
            # One strange run must not end the supervision of the others, nor keep this thread busy for ever.
            about = {"execution": subject.id} if isinstance(subject, Run) else {}
            log.exception("supervising a run failed", extra=about)
            if isinstance(subject, Run) and not subject.closed:
                subject.control_ended = subject.output_ended = True
                self._listen(subject)
                self._stop(subject, Stop(Status.FAILED, "the run could not be supervised", False), 0)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """The lock, for whoever may leave events; afterwards the worker is woken if one of them is urgent."""
        with self._lock:
            yield
            wake, self._urgent = self._urgent, False
        if wake:
            self._on_wake()

    def _leave(self, event: Event) -> None:
        """For `collect`. The worker is not woken for what it only notes down."""
        self._events.append(event)
        self._urgent = self._urgent or isinstance(event, Ended | Call | Refused)

    def _watch(self, fd: int, events: int, handler: Callable[[Any, int], None], subject: Any = None) -> None:
        known = self._watched.get(fd, 0)
        if events == known:
            return
        if not events:
            del self._watched[fd]
            self._selector.unregister(fd)
            return
        if known:
            self._selector.modify(fd, events, (handler, subject))
        else:
            self._selector.register(fd, events, (handler, subject))
        self._watched[fd] = events

    # Starting and stopping

    def _start(self, request: RunRequest) -> None:
        try:
            told = request.encoded(self._compiled.get(request))
        except (TypeError, ValueError) as error:
            outcome = Outcome(Status.FAILED, error=f"cannot start: {error}", permanent=True)
            self._leave(Ended(request.execution_id, outcome))
            return
        if request.execution_id in self._runs:
            # Ids are given anew after a restored backup: this one's former run is being killed.
            self._leave(
                Refused(request.execution_id, "a process of another run with its number is still there")
            )
            return
        try:
            self._hand_over(request, told)
        except (OSError, MemoryError) as error:
            self._leave(Refused(request.execution_id, f"cannot start a process: {_cause(error)}"))

    def _hand_over(self, request: RunRequest, told: bytes) -> None:
        """Have a process made for a run. Raises OSError where none was, nor will be."""
        server = self._ensure_server()
        run = Run(request, self._output_limit)
        seconds = inf if request.timeout_seconds is None else request.timeout_seconds
        # Also a run that may go on without its lease does not start without it.
        lease = inf if run.lease is None else run.lease - self._lease_margin
        self._runs[run.id] = run
        run.server = server
        try:
            with run.child_ends() as fds:
                self._send(run, told)
                server.order(START, run.id, (seconds, lease, self._grace), fds)
        except ConnectionError:
            server.unstarted.add(run.id)  # its socket tells of its death, and of what it died
        except (OSError, MemoryError):
            self._forget(run)
            raise
        self._listen_to(server)
        if self._lease_end(run) != lease:
            self._order(LEASE, run, self._lease_end(run))

    def _refuse(self, run: Run, reason: str) -> None:
        self._forget(run)
        if not run.dropped:
            self._leave(Refused(run.id, reason))

    def _forget(self, run: Run) -> None:
        del self._runs[run.id]
        self._listen(run, closing=True)
        run.close()

    def _lease_end(self, run: Run) -> float:
        if run.lease is None or not run.request.stop_before_lease_end:
            return inf
        return run.lease - self._lease_margin

    def _stop(self, run: Run, stop: Stop, grace_seconds: float) -> None:
        if run.stop is None:
            run.stop = stop
        self._order(STOP, run, grace_seconds)

    # The fork server

    def _ensure_server(self) -> Server:
        if self._closing:
            raise RuntimeError("the runner is closed")
        if self._server is None:
            server = Server(
                self.job_directory, self._name, self._address, self._job_variables, self._job_modules
            )
            try:
                self._listen_to(server)
            except OSError:
                server.close()
                raise
            self._server = server
        return self._server

    def _listen_to(self, server: Server) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if server.has_orders_waiting else 0)
        self._watch(server.socket.fileno(), events, self._on_server, server)

    def _order(self, what: bytes, run: Run, seconds: float) -> None:
        """Never waits, and never fails: of the death of the fork server its socket tells."""
        server = self._server
        if server is not None and run.server is server:  # else it is dying, and its runs with it
            with contextlib.suppress(ConnectionError):
                server.order(what, run.id, (seconds, 0, 0))
            self._listen_to(server)

    def _on_server(self, server: Server, mask: int) -> None:
        if server is not self._server:
            return
        if mask & selectors.EVENT_WRITE:
            server.send_waiting()
            self._listen_to(server)
        if mask & selectors.EVENT_READ:
            try:
                self._hear(server)
            except (EOFError, ConnectionError):
                self._on_server_death(server)

    def _hear(self, server: Server) -> bool:
        """Take in what the fork server has said. That it stops a run counts at once, the rest when it is acted upon.

        Whether it has said anything. Raises EOFError or ConnectionError when it is gone.
        """
        news = server.receive()
        for item in news:
            server.ready = server.ready or item.what == READY
            run = self._runs.get(item.run_id)
            if run is None:
                continue
            if item.what == STOPPING:
                run.stopping = True
            else:
                self._news.append((run, item))
        return bool(news)

    def _act_on_news(self) -> None:
        while self._news:
            run, item = self._news.popleft()
            if not run.closed:
                self._attend(self._on_news, run, item)

    def _look_after_server(self) -> None:
        """Ask for a sign of life now and then; end a fork server that does not give one."""
        server = self._server
        if server is None or not (self._runs or server.has_orders_waiting) or boot_time() < self._look_at:
            return
        self._look_at = boot_time() + LOOK_SECONDS
        server.look()
        self._listen_to(server)
        if server.is_stuck or (server.silence >= 2 * LOOK_SECONDS and self._lease_is_over()):
            self._on_server_death(server, stuck=True)

    def _lease_is_over(self) -> bool:
        """Whether a run goes on beyond its lease: the fork server should have ended it before."""
        ends = [run.lease for run in self._runs.values() if run.lease and run.request.stop_before_lease_end]
        return min(ends, default=inf) <= boot_time()

    def _on_news(self, run: Run, news: News) -> None:
        if news.what == ENDED and news.cause == ITSELF and self._never_began(run):
            how = how_it_ended(os.waitstatus_to_exitcode(news.number))
            self._refuse(run, f"the process made for it {how} before the job began")
        elif news.what == ENDED:
            self._end(run, lambda: conclude(run, news))
        elif news.what == REFUSED and news.cause == LOST_LEASE:
            self._end(run, lambda: Outcome(Status.LOST, error=LOST_LEASE_ERROR))
        elif news.what == REFUSED:
            self._refuse(run, f"cannot start a process: {os.strerror(news.number)}")
        elif news.what == STARTED:
            run.pid = news.number
            early, self._early = self._early, []
            for caller in early:
                self._let_in(caller)
            if not run.dropped:
                self._leave(Started(run.id, news.number, datetime.fromtimestamp(news.seconds, UTC)))

    def _never_began(self, run: Run) -> bool:
        """Whether a process is over that has not even read its request: that is no fault of the job's."""
        self._read_control(run, READ)
        return run.never_began

    def _on_server_death(self, server: Server, stuck: bool = False) -> None:
        """A job has killed or stopped the fork server. Its runs end with it; the next start makes a new one."""
        self._hear_the_last_of(server)
        self._watch(server.socket.fileno(), 0, self._on_server)
        self._server = None
        self._act_on_news()
        server.bury(stuck=stuck)
        self._graves.append((server, [run for run in self._runs.values() if run.server is server]))

    def _hear_the_last_of(self, server: Server) -> None:
        """What a fork server said before it died: which runs had ended, and whether it made any process."""
        with contextlib.suppress(OSError, EOFError):
            while self._hear(server):
                pass

    def _bury_servers(self) -> None:
        """A run has ended when its processes are gone: only then is it told."""
        for grave in self._graves.copy():
            server, runs = grave
            if not server.is_buried():
                continue
            self._graves.remove(grave)
            how = server.end()
            log.error("the fork server %s; runs killed with it: %s", how, sorted(run.id for run in runs))
            error = f"the process that starts the jobs {how}"
            for run in runs:
                if run.closed:
                    continue
                self._read_control(run, READ)
                if not server.ready or run.id in server.unstarted or run.never_began:
                    self._refuse(run, error)
                    continue
                self._end(run, partial(conclude_alone, run, f"{error}, and this run was killed with it"))

    def _end(self, run: Run, ending: Callable[[], Outcome]) -> None:
        try:
            outcome = self._outcome(run, ending)
        except Exception:
            log.exception("the end of the run could not be read", extra={"execution": run.id})
            outcome = Outcome(Status.FAILED, error="how the run ended could not be read")
        self._forget(run)
        if not run.dropped:
            self._leave(Ended(run.id, outcome))

    def _outcome(self, run: Run, ending: Callable[[], Outcome]) -> Outcome:
        """All processes of the run are gone, so what its channels still hold is all that there will be."""
        self._read_control(run, READ)
        if run.report is None:
            # It may have come back by the door a moment before it ended, only to say how.
            self._answer_door(DOOR_BACKLOG)
            self._read_control(run, READ)
        self._read_output(run, FINAL_READ)
        run.output.finish()
        outcome = ending()
        outcome.output, outcome.output_replaces_tail = run.output.rest()
        outcome.output_bytes = run.output.printed
        return outcome

    # The jobs

    def _listen(self, run: Run, closing: bool = False) -> None:
        if run.closed:
            return
        reading = 0 if closing or run.resting else selectors.EVENT_READ
        writing = selectors.EVENT_WRITE if run.unsent and not closing else 0
        # Who does not read its answers is not heard either: they would pile up.
        control = (0 if run.control_ended or run.unsent else reading) | writing
        self._watch(run.control_fd, control, self._on_control, run)
        self._watch(run.output_fd, 0 if run.output_ended else reading, self._on_output, run)

    def _on_control(self, run: Run, mask: int) -> None:
        if run.closed:
            return
        if mask & selectors.EVENT_WRITE:
            run.send()
        if mask & selectors.EVENT_READ and not self._may_rest(run):
            self._read_control(run, READ_CONTROL)
        self._listen(run)

    def _on_output(self, run: Run, mask: int) -> None:
        if run.closed:
            return
        if not self._may_rest(run) and self._read_output(run, READ) >= PIPE:
            run.rest_until = run.silent_until  # in full flow
        self._listen(run)

    def _may_rest(self, run: Run) -> bool:
        """Whether the run was read so lately that more should gather first.

        A job that prints in small pieces would otherwise wake this thread for each of them.
        """
        now = time.monotonic()
        if not run.resting and now >= run.rest_until:
            run.rest_until = now + REST_SECONDS
            return False
        if not run.resting:
            run.resting = True
            self._resting.append(run)
        return True

    def _end_rests(self) -> None:
        now = time.monotonic()
        while self._resting and self._resting[0].rest_until <= now:
            run = self._resting.popleft()
            run.resting = False
            if not run.closed:
                self._listen(run)

    def _read_control(self, run: Run, most: int) -> None:
        before = time.thread_time()
        for message in run.receive(most):
            self._on_message(run, message)
        cost = time.thread_time() - before
        if cost * REST_FACTOR > REST_SECONDS:
            run.rest_until = run.silent_until = time.monotonic() + cost * REST_FACTOR

    def _read_output(self, run: Run, most: int) -> int:
        size = 0
        while size < most and (data := run.read_output()):
            run.output.feed(data)
            size += len(data)
        return size

    def _on_message(self, run: Run, message: dict[str, Any]) -> None:
        """A message from a job: whatever it holds, it must do no harm here."""
        match message:
            case {"end": str(), "at": int() | float()}:
                run.report = run.report or message
            case {"compiled": str() as compiled}:
                self._compiled.put(run.request, compiled)
            case {"progress": int() | float() as percent, "note": str() as note} if not run.dropped:
                self._on_progress(run, percent, run.mask.text(note)[:LONGEST_NOTE])
            case {
                "call": int() as number,
                "method": "heartbeat",
                "arguments": {"seconds": int() | float() as seconds},
            }:
                self._send(run, encode_message({"reply": number, "result": self._heartbeat(run, seconds)}))
            case {"call": int() as number, "method": str() as method, "arguments": dict() as arguments}:
                self._ask(run, Call(run.id, number, method, arguments, run.mask))

    def _ask(self, run: Run, call: Call) -> None:
        """One call at a time. Of those that come meanwhile the newest waits: an interrupted job waits for no other."""
        if run.dropped or run.asking is not None:
            run.next_call = call
            return
        run.asking = call.call_id
        self._leave(call)

    def _on_progress(self, run: Run, percent: float, note: str) -> None:
        waiting = self._progress.get(run.id)
        if waiting is None:
            waiting = self._progress[run.id] = Progressed(run.id, percent, note)
            self._leave(waiting)
        waiting.percent, waiting.note = percent, note

    def _heartbeat(self, run: Run, seconds: float) -> bool:
        if self._server is not None:
            with contextlib.suppress(EOFError, ConnectionError):  # its socket will say so again
                self._hear(self._server)  # perhaps it has begun to stop this run
        now = boot_time()
        lease_gone = run.lease is not None and now >= run.lease
        if run.stop is not None or run.stopping or run.dropped or lease_gone or not 0 < seconds < 1e9:
            return False
        if run.request.timeout_seconds is not None:
            run.extended_by = seconds
            self._order(LIMIT, run, now + seconds)
        return True

    def _send(self, run: Run, data: bytes) -> None:
        if not run.closed:
            run.unsent += data
            run.send()
            self._listen(run)

    def _on_caller(self, subject: None, mask: int) -> None:
        """Jobs that have closed their channel, as daemons do with whatever is open, come back by the door."""
        assert self._door is not None
        self._watch(self._door.fileno(), 0, self._on_caller)
        self._door_shut_until = time.monotonic() + REST_SECONDS
        with contextlib.suppress(EOFError, ConnectionError):
            if self._server is not None:
                self._hear(self._server)  # who comes may have started a moment ago
        self._act_on_news()
        self._answer_door(CALLERS_AT_ONCE)

    def _answer_door(self, most: int) -> None:
        if self._door is None:
            return
        for _ in range(most):
            try:
                caller = self._door.accept()[0]
            except OSError:  # no more of them, or no descriptors
                return
            self._let_in(caller)

    def _let_in(self, caller: socket.socket) -> None:
        """The kernel says which process it is: a run's own, or nobody that is known here.

        A run may be here before the fork server has said that it started: it waits for the news.
        """
        pid, user, _ = struct.unpack("=iII", caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        ours = [run for run in self._runs.values() if not run.dropped] if user == os.getuid() else []
        run = next((run for run in ours if run.pid == pid), None)
        if run is None:
            if any(run.pid is None for run in ours) and len(self._early) < MOST_EARLY:
                self._early.append(caller)
            else:
                caller.close()
            return
        self._read_control(run, READ)  # what it said before
        self._watch(run.control_fd, 0, self._on_control, run)
        run.connect(caller)
        self._listen(run)

    def _open_the_door_again(self) -> None:
        if self._door is not None and self._door_shut_until and time.monotonic() >= self._door_shut_until:
            self._door_shut_until = 0.0
            self._watch(self._door.fileno(), selectors.EVENT_READ, self._on_caller)


def _open_door() -> tuple[socket.socket | None, str]:
    """A listening socket that has a name and no file, and its name. Linux only."""
    if sys.platform != "linux":
        return None, ""
    name = f"kytecron-{secrets.token_hex(16)}"
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    door.setblocking(False)
    door.bind(f"\0{name}")
    door.listen(DOOR_BACKLOG)
    return door, name


def _cause(error: OSError | MemoryError) -> str:
    return getattr(error, "strerror", None) or str(error) or "out of memory"


class _Compiled:
    """Compiled code of the jobs that ran lately. It was made by a job's process, and goes to that job's only."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, int], tuple[str, bytes]] = OrderedDict()
        self._size = 0

    def get(self, request: RunRequest) -> bytes | None:
        key = (request.job_id, request.version)
        code, compiled = self._kept.get(key, ("", b""))
        if not compiled or code != request.code:
            return None
        self._kept.move_to_end(key)
        return compiled

    def put(self, request: RunRequest, compiled: str) -> None:
        """Keep it, unless there is one already: a job's process sends it before any of the job's code has run."""
        if self.get(request) is not None:
            return
        with contextlib.suppress(ValueError):
            self._keep((request.job_id, request.version), request.code, bytes.fromhex(compiled))

    def _keep(self, key: tuple[int, int], code: str, compiled: bytes) -> None:
        _, former = self._kept.pop(key, ("", b""))
        self._kept[key] = code, compiled
        self._size += len(compiled) - len(former)
        while self._size > COMPILED_BYTES:
            _, (_, oldest) = self._kept.popitem(last=False)
            self._size -= len(oldest)

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
import selectors
import socket
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    LEASE,
    LIMIT,
    LOST_LEASE,
    REFUSED,
    START,
    STARTED,
    STOP,
    STOPPING,
    adopt_orphans,
)
from .output import OutputChunk
from .run import (
    LONGEST_NOTE,
    LOST_LEASE_ERROR,
    PIPE,
    READ,
    Run,
    RunRequest,
    Stop,
    conclude,
    conclude_alone,
)
from .server import News, Server

__all__ = ["Call", "Ended", "Event", "OutputChunk", "Progressed", "RunRequest", "Runner", "Started"]

log = logging.getLogger(__name__)

FINAL_READ = 1024 * 1024
"""Bytes of output still read when a run has ended: more than a pipe can hold."""

COMPILED_BYTES = 8 * 1024 * 1024

REST_SECONDS = 0.005
"""How long a run that was just read is left to gather more before it is read again."""


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
    """The job asks for something through `self.api`; answer with `Runner.reply`. Arguments are not checked."""

    execution_id: int
    call_id: int
    method: str
    arguments: dict[str, Any]


@dataclass(slots=True)
class Ended:
    execution_id: int
    outcome: Outcome


Event = Started | Progressed | Call | Ended


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
        # Written to once, to end the thread.
        self._watch(self._wake.fileno(), selectors.EVENT_READ, lambda *_: None)
        adopt_orphans()
        self._server: Server | None = None
        self._ensure_server()
        self._thread = threading.Thread(target=self._supervise, name="runs", daemon=True)
        self._thread.start()

    # For the worker's main thread

    @property
    def running(self) -> set[int]:
        """The executions that were started and whose end was not yet collected."""
        with self._lock:
            ended = {event.execution_id for event in self._events if isinstance(event, Ended)}
            return {run.id for run in self._runs.values() if not run.dropped} | ended

    @property
    def server_pid(self) -> int | None:
        """Process id of the fork server; None between the death of one and the start of the next."""
        with self._lock:
            return self._server.pid if self._server is not None else None

    def start(self, request: RunRequest) -> None:
        """Start one run. It ends with exactly one `Ended` event, also when no process could be made for it."""
        self.start_many([request])

    def start_many(self, requests: Iterable[RunRequest]) -> None:
        """Start several."""
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
            if run is not None:
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
            if run is not None:
                grace = self._grace if grace_seconds is None else grace_seconds
                self._stop(run, Stop(status, reason, interrupted), grace)

    def kill_all(self, status: Status, reason: str, *, interrupted: bool = True) -> None:
        """SIGKILL for every run, now. Each ends with `status` and `reason`."""
        with self._telling():
            for run in list(self._runs.values()):
                self._stop(run, Stop(status, reason, interrupted), 0)

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
        with self._lock:
            run = self._runs.get(execution_id)
            if run is not None:
                self._send(run, message)

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
        for run in self._runs.values():
            run.close()
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
        ready = self._selector.select(self._until_next_reading())
        with self._telling():
            self._end_rests()
            for key, mask in ready:
                handler, subject = key.data
                if not self._closing:
                    self._attend(handler, subject, mask)

    def _attend(self, handler: Callable[[Any, int], None], subject: Any, mask: int) -> None:
        try:
            handler(subject, mask)
        except Exception:
            # One strange run must not end the supervision of the others, nor keep this thread busy for ever.
            log.exception("supervising a run failed")
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
        self._urgent = self._urgent or isinstance(event, Ended | Call)

    def _watch(self, fd: int, events: int, handler: Callable[[Any, int], None], subject: Any = None) -> None:
        known = self._watched.get(fd, 0)
        if events == known:
            return
        if not events:
            del self._watched[fd]
            self._selector.unregister(fd)
            return
        self._watched[fd] = events
        if known:
            self._selector.modify(fd, events, (handler, subject))
        else:
            self._selector.register(fd, events, (handler, subject))

    # Starting and stopping

    def _start(self, request: RunRequest) -> None:
        if request.execution_id in self._runs:
            raise ValueError(f"execution {request.execution_id} is running already")
        try:
            told = request.encoded(self._compiled.get(request))
            self._ensure_server()
            run = Run(request, self._output_limit)
        except (TypeError, ValueError) as error:
            self._refuse(request, Outcome(Status.FAILED, error=f"cannot start: {error}", permanent=True))
            return
        except OSError as error:
            self._refuse(request, Outcome(Status.FAILED, error=f"cannot start a process: {error.strerror}"))
            return
        self._runs[run.id] = run
        self._send(run, told)
        seconds = inf if request.timeout_seconds is None else request.timeout_seconds
        # Also a run that may go on without its lease does not start without it.
        lease = inf if run.lease is None else run.lease - self._lease_margin
        with run.child_ends() as fds:
            self._order(START, run, seconds, lease, self._grace, fds=fds)
        if self._lease_end(run) != lease and run.id in self._runs:
            self._order(LEASE, run, self._lease_end(run))

    def _refuse(self, request: RunRequest, outcome: Outcome) -> None:
        self._leave(Ended(request.execution_id, outcome))

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
            self._server = Server(self.job_directory, self._name, self._job_variables, self._job_modules)
            self._watch(self._server.socket.fileno(), selectors.EVENT_READ, self._on_server, self._server)
        return self._server

    def _order(
        self, what: bytes, run: Run, a: float, b: float = 0, c: float = 0, fds: Sequence[int] = ()
    ) -> None:
        server = self._ensure_server()
        try:
            server.order(what, run.id, (a, b, c), fds)
        except TimeoutError:
            self._on_server_death(server, stuck=True)
        except OSError:
            self._on_server_death(server)

    def _on_server(self, server: Server, mask: int) -> None:
        if server is not self._server:
            return
        try:
            news = server.receive()
        except (EOFError, ConnectionError):
            self._on_server_death(server)
            return
        for item in news:
            run = self._runs.get(item.run_id)
            if run is not None:
                self._on_news(run, item)

    def _on_news(self, run: Run, news: News) -> None:
        if news.what == ENDED:
            self._end(run, lambda: conclude(run, news))
        elif news.what == STOPPING:
            run.stopping = True
        elif news.what == REFUSED and news.cause == LOST_LEASE:
            self._end(run, lambda: Outcome(Status.LOST, error=LOST_LEASE_ERROR))
        elif news.what == REFUSED:
            error = f"cannot start a process: {os.strerror(news.number)}"
            self._end(run, lambda: Outcome(Status.FAILED, error=error))
        elif news.what == STARTED and not run.dropped:
            self._leave(Started(run.id, news.number, datetime.fromtimestamp(news.seconds, UTC)))

    def _on_server_death(self, server: Server, stuck: bool = False) -> None:
        """A job killed the fork server, or it is stuck. Its runs end with it; the next start makes a new one."""
        self._watch(server.socket.fileno(), 0, self._on_server)
        self._server = None
        how = server.bury(stuck)
        log.error("the fork server %s; runs killed with it: %s", how, sorted(self._runs))
        error = f"the process that starts the jobs {how}, and this run was killed with it"
        for run in list(self._runs.values()):
            self._end(run, partial(conclude_alone, run, error))

    def _end(self, run: Run, ending: Callable[[], Outcome]) -> None:
        try:
            outcome = self._outcome(run, ending)
        except Exception:
            log.exception("the end of run %s could not be read", run.id)
            outcome = Outcome(Status.FAILED, error="how the run ended could not be read")
        del self._runs[run.id]
        self._listen(run, closing=True)
        run.close()
        if not run.dropped:
            self._leave(Ended(run.id, outcome))

    def _outcome(self, run: Run, ending: Callable[[], Outcome]) -> Outcome:
        """All processes of the run are gone, so what its channels still hold is all that there will be."""
        self._read_control(run)
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
        control = (0 if run.control_ended else reading) | writing
        self._watch(run.control_fd, control, self._on_control, run)
        self._watch(run.output_fd, 0 if run.output_ended else reading, self._on_output, run)

    def _on_control(self, run: Run, mask: int) -> None:
        if run.closed:
            return
        if mask & selectors.EVENT_WRITE:
            run.send()
        if mask & selectors.EVENT_READ and not self._may_rest(run):
            self._read_control(run)
        self._listen(run)

    def _on_output(self, run: Run, mask: int) -> None:
        if run.closed:
            return
        if not self._may_rest(run) and self._read_output(run, READ) >= PIPE:
            run.rest_until = 0.0  # in full flow
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

    def _until_next_reading(self) -> float | None:
        return max(0.0, self._resting[0].rest_until - time.monotonic()) if self._resting else None

    def _end_rests(self) -> None:
        now = time.monotonic()
        while self._resting and self._resting[0].rest_until <= now:
            run = self._resting.popleft()
            run.resting = False
            if not run.closed:
                self._listen(run)

    def _read_control(self, run: Run) -> None:
        for message in run.receive():
            self._on_message(run, message)

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
                if not run.dropped:
                    self._leave(Call(run.id, number, method, arguments))

    def _on_progress(self, run: Run, percent: float, note: str) -> None:
        waiting = self._progress.get(run.id)
        if waiting is None:
            waiting = self._progress[run.id] = Progressed(run.id, percent, note)
            self._leave(waiting)
        waiting.percent, waiting.note = percent, note

    def _heartbeat(self, run: Run, seconds: float) -> bool:
        server = self._server
        if server is not None and server.has_news():
            self._on_server(server, selectors.EVENT_READ)  # perhaps it has begun to stop this run
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

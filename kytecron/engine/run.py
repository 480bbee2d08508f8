"""One run as its worker sees it: what it was asked to do, its two channels, and how it ended."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
import termios
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..core.states import Outcome, Status
from ..core.untrusted import MAX_DEPTH, too_deep
from .child import LONGEST_CALL, NO_CHANNEL, UNTOLD, boot_time, cpu_limit_error, dump, encode_request
from .forkserver import ITSELF, LOST_LEASE, TIMEOUT
from .output import Mask, Output
from .server import News, Server, signal_name

if TYPE_CHECKING:
    from .runner import Call

PIPE = 64 * 1024
"""What a pipe holds at first; a run that fills it gets one of READ bytes."""

READ = 256 * 1024
"""Most output that is read at once; a control socket never holds as much."""

READ_CONTROL = 32 * 1024
"""Most of what a job says that is read at once: thousands of messages at worst."""

LONGEST_MESSAGE = 1024 * 1024
"""Bytes. The longest is the end of a run with a result of all the characters that are kept."""

PROGRESS = b'{"progress": '
"""How a report of progress begins (see child.encode_message)."""

LONGEST_ERROR = 2_000
LONGEST_NOTE = 500
LONGEST_TRACE = 70_000

LOST_LEASE_ERROR = "lease lost: the worker could not renew it in time, so the run was stopped before its end"


@dataclass(slots=True)
class RunRequest:
    """All that is needed for one attempt. Times are in seconds, memory in MiB."""

    execution_id: int
    job_id: int
    job_name: str
    version: int
    code: str
    parameters: dict[str, Any] = field(default_factory=dict)
    scheduled_time: str | None = None
    """ISO 8601; UTC when it names no offset."""
    attempt: int = 1
    previous_status: str | None = None
    timeout_seconds: float | None = None
    memory_limit_mb: int | None = None
    cpu_limit_seconds: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What else the job's process is told of its job's settings, as its row has them: see `core.fields.Reader`."""
    state: dict[str, Any] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    lease_until: float | None = None
    """End of the lease on `boot_time()`; see `Runner.set_lease`."""
    stop_before_lease_end: bool = True
    """False for `on_lost_contact = continue`: the process goes on when the lease is gone."""

    mask: Mask = field(init=False)
    """Hides the secrets, in all that the run leaves."""

    def __post_init__(self) -> None:
        self.mask = Mask(self.secrets.values())

    def encoded(self, compiled: bytes | None) -> bytes:
        """What the job's process is told. Raises TypeError or ValueError for what JSON cannot hold."""
        return encode_request(
            {
                **self.settings,
                "execution_id": self.execution_id,
                "job_id": self.job_id,
                "job_name": str(self.job_name),
                "version": self.version,
                "code": str(self.code),
                "compiled": compiled,
                "scheduled_time": self.scheduled_time,
                "attempt": self.attempt,
                "previous_status": None if self.previous_status is None else str(self.previous_status),
                "memory_limit_mb": self.memory_limit_mb,
                "cpu_limit_seconds": self.cpu_limit_seconds,
                "parameters": dump(self.parameters),
                "state": dump(self.state),
                "secrets": dump(self.secrets),
                "hidden": self.mask.texts,
            }
        )


@dataclass(frozen=True, slots=True)
class Stop:
    """An order to stop a run: how it is then said to have ended."""

    status: Status
    reason: str
    interrupted: bool


class Run:
    """One run: its channels, and what has been learned about it."""

    def __init__(self, request: RunRequest, output_limit: int) -> None:
        self.request = request
        self.id = request.execution_id
        self.mask = request.mask
        self.output = Output(output_limit, self.mask)
        self.lease = request.lease_until
        self.extended_by: float | None = None
        self.stop: Stop | None = None
        self.stopping = False
        """The fork server has begun to end it, for whatever cause."""
        self.dropped = False
        self.server: Server | None = None
        """The fork server that was ordered to start it."""
        self.pid: int | None = None
        self.asking: int | None = None
        """The call of the job that is being answered."""
        self.next_call: Call | None = None
        """The newest of those that came meanwhile."""
        self.report: dict[str, Any] | None = None
        self.resting = False
        self.rest_until = self.silent_until = 0.0
        self.closed = False
        self.control_ended = self.output_ended = False
        self.heard = False
        """Its process has said something."""
        self.left_unread = False
        """Its channel ended before all that stands in it was read."""
        self.unsent = b""
        self._unread = bytearray()
        self.control, self._child_control = socket.socketpair()
        self.control.setblocking(False)
        self.control_fd = self.control.fileno()
        try:
            self.output_fd, self._child_output = os.pipe()
        except OSError:
            self.control.close()
            self._child_control.close()
            raise
        os.set_blocking(self.output_fd, False)

    @contextlib.contextmanager
    def child_ends(self) -> Iterator[tuple[int, int]]:
        """The job's ends of the channels, closed here once they were passed on."""
        try:
            yield self._child_control.fileno(), self._child_output
        finally:
            self._child_control.close()
            os.close(self._child_output)

    def send(self) -> None:
        try:
            sent = self.control.send(self.unsent)
        except BlockingIOError:
            return
        except OSError:
            sent = len(self.unsent)  # nobody reads it any more
        self.unsent = self.unsent[sent:]

    def receive(self, most: int) -> list[dict[str, Any]]:
        """The messages that have arrived; of progress only the latest.

        What is no message is skipped (see child.Channel), as are those that are longer than a job is to send.
        """
        try:
            data = self.control.recv(most)
        except BlockingIOError:
            return []
        except OSError as error:
            data = b""
            self.left_unread = self.left_unread or isinstance(error, ConnectionResetError)
        self.control_ended = not data
        self.heard = self.heard or bool(data)
        first, *others = data.split(b"\n")
        self._unread += first
        if len(self._unread) > LONGEST_MESSAGE:
            self._unread.clear()
        if not others:
            return []
        lines = [bytes(self._unread), *others[:-1]]
        self._unread[:] = others[-1]
        return [message for line in _latest(lines) if (message := _parse(line)) is not None]

    @property
    def never_began(self) -> bool:
        """Whether it is certain, now that all its processes are gone, that none of the job's code has run.

        A process reads the whole request first, and is written to only in reply to what it says. What it left unread is
        told by the end of its socket, and until then by how much of what was sent is still there: a process that was
        forked meanwhile may hold a copy of the socket for a moment longer.
        """
        return not self.heard and (self.left_unread or bool(self.unsent) or self._is_unread())

    def _is_unread(self) -> bool:
        size = fcntl.ioctl(self.control_fd, termios.TIOCOUTQ, bytes(4))
        return int.from_bytes(size, sys.byteorder) > 0

    def connect(self, control: socket.socket) -> None:
        """The job has closed its channel and comes back by another one."""
        self.control.close()
        control.setblocking(False)
        self.control, self.control_fd = control, control.fileno()
        self.control_ended = False
        self.unsent = b""
        self._unread.clear()

    def read_output(self) -> bytes:
        """What the job has printed, or nothing when there is nothing yet or any more."""
        try:
            data = os.read(self.output_fd, READ)
        except BlockingIOError:
            return b""
        self.output_ended = not data
        if len(data) >= PIPE:
            self._widen()
        return data

    def close(self) -> None:
        self.closed = True
        self.control.close()
        os.close(self.output_fd)

    def _widen(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # over the user's allowance; not on macOS
            fcntl.fcntl(self.output_fd, fcntl.F_SETPIPE_SZ, READ)


def _latest(lines: list[bytes]) -> list[bytes]:
    """These lines without the empty ones, and of the reports of progress only the last."""
    kept: list[bytes] = []
    progress_seen = False
    for line in reversed(lines):
        is_progress = line.startswith(PROGRESS)
        if line and not (is_progress and progress_seen):
            kept.append(line)
        progress_seen = progress_seen or is_progress
    return kept[::-1]


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, dict) or ("call" in message and len(line) > LONGEST_CALL):
        return None
    return message


# How a run ended


def conclude(run: Run, ended: News) -> Outcome:
    """The outcome, from what the fork server saw and what the job reported."""
    outcome = _stopped(run, ended) or _own_end(run, ended)
    code = os.waitstatus_to_exitcode(ended.number)
    outcome.exit_code = code if code >= 0 else 128 - code
    outcome.duration_ms = round(ended.seconds * 1000)
    outcome.cpu_ms = round(ended.cpu_seconds * 1000)
    outcome.memory_peak_mb = round(ended.peak_kb / 1024, 1)
    return outcome


def conclude_alone(run: Run, error: str) -> Outcome:
    """The outcome when there is no fork server left to say how the process ended."""
    if run.report is not None:
        return _reported(run, run.report)
    if run.lease is not None and run.request.stop_before_lease_end and boot_time() >= run.lease:
        return Outcome(Status.LOST, error=LOST_LEASE_ERROR)
    return _as_ordered(run.stop) if run.stop is not None else Outcome(Status.FAILED, error=error)


def _stopped(run: Run, ended: News) -> Outcome | None:
    """The outcome of a run that was stopped before it reported its end; None for one that was not."""
    report = run.report
    if report is not None and report["at"] <= ended.stopped:
        return None
    # Where the job was when it was stopped.
    trace = _text(run, (report or {}).get("stack_trace"), LONGEST_TRACE)
    if ended.cause == LOST_LEASE:
        return Outcome(Status.LOST, error=LOST_LEASE_ERROR, stack_trace=trace)
    if ended.cause == TIMEOUT:
        return Outcome(Status.TIMEOUT, error=_time_limit_error(run), stack_trace=trace)
    if ended.cause == ITSELF or run.stop is None:
        return None
    if run.stop.interrupted and report is not None and report["end"] == "completed":
        return None
    return _as_ordered(run.stop, trace)


def _as_ordered(stop: Stop, stack_trace: str | None = None) -> Outcome:
    return Outcome(stop.status, error=stop.reason, stack_trace=stack_trace, interrupted=stop.interrupted)


def _time_limit_error(run: Run) -> str:
    if run.extended_by is not None:
        return f"no heartbeat within the {run.extended_by:g} s that the last one asked for"
    return f"ran longer than {run.request.timeout_seconds:g} s"


def _own_end(run: Run, ended: News) -> Outcome:
    if run.report is not None:
        return _reported(run, run.report)
    return Outcome(Status.FAILED, error=_cause_of_death(run.request, ended))


def _reported(run: Run, report: dict[str, Any]) -> Outcome:
    match report["end"]:
        case "completed":
            state = report.get("state")
            if too_deep(state):
                problem = f"self.state cannot be kept: it is nested more than {MAX_DEPTH} levels deep"
                return Outcome(Status.FAILED, error=problem)
            # The state is the job's own and goes back to it: nothing in it is masked.
            return Outcome(
                Status.COMPLETED,
                result=run.mask.value(report.get("result")),
                state=Mask().value(state) if isinstance(state, dict) else None,
            )
        case "skipped":
            return Outcome(Status.SKIPPED, skipped_reason=_text(run, report.get("reason"), LONGEST_ERROR))
    return Outcome(
        Status.FAILED,
        error=_text(run, report.get("error"), LONGEST_ERROR),
        stack_trace=_text(run, report.get("stack_trace"), LONGEST_TRACE),
        permanent=report.get("permanent") is True,
    )


def _cause_of_death(request: RunRequest, ended: News) -> str:
    code = os.waitstatus_to_exitcode(ended.number)
    if code == UNTOLD:
        return f"{NO_CHANNEL}, so how it ended is not known"
    if code == 0:
        return "exited with status 0 before execute returned"
    if code > 0:
        return f"exited with status {code}"
    limit = request.cpu_limit_seconds
    if -code == signal.SIGXCPU or (-code == signal.SIGKILL and limit and ended.cpu_seconds >= limit):
        return cpu_limit_error(limit)
    return f"killed by {signal_name(-code)}"


def _text(run: Run, value: object, longest: int) -> str | None:
    return run.mask.text(value)[:longest] if isinstance(value, str) else None

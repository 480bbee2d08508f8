"""The worker's end of its fork server: start it, give it orders, hear its news, and bury it."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from math import inf
from pathlib import Path
from typing import ClassVar, NamedTuple

from .child import HELD_BACK, boot_time
from .forkserver import LAST_GRACE, LEASE, LIMIT, NEWS, ORDER, PING, children_in, is_tracker

ROOT = str(Path(__file__).resolve().parents[2])
BOOT = (
    "import sys; sys.path.append(sys.argv[1]); "
    "from kytecron.engine.forkserver import serve; serve(int(sys.argv[2]), *sys.argv[4:])"
)

KEPT_VARIABLES = frozenset(
    {
        *("HOME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER"),
        *("LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV"),
        *("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "ALL_PROXY", "NO_PROXY"),
        *("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"),
        *("SSL_CERT_DIR", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE"),
        *("NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO", "PIP_CERT", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"),
        *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"),
    }
)
"""All that a job sees of the worker's environment, with LC_* and what the setting `job_variables` names."""

LOOK_SECONDS = 0.5
"""How often a fork server that has runs is asked for a sign of life."""

SILENCE_SECONDS = 10.0
"""A fork server that owes an answer for so long is stuck; it is killed, and its runs end with it."""

ALONE_SECONDS = 2.0
"""How long its children are killed before itself: processes that multiply may keep ahead of that."""

END_SECONDS = 5.0
"""How long the end of a fork server, and of what it leaves behind, is waited for."""


class News(NamedTuple):
    """A record of forkserver.NEWS; there is what the fields hold in each case."""

    what: bytes
    cause: bytes
    run_id: int
    number: int
    peak_kb: int
    seconds: float
    cpu_seconds: float
    stopped: float


@dataclass(slots=True)
class _Order:
    """An order, or the rest of one, that its socket did not take yet. The descriptors are copies of our own."""

    data: bytes
    fds: list[int]
    key: tuple[bytes, int] | None = None
    """What it sets of which run, while a newer order may still take its place."""


class Server:
    """A fork server process and the socket to it. It sees none of this process's environment but what a job may.

    Nothing that a job can plant in its HOME or in PYTHONPATH is imported by it: `-s`, `-P`, and the path of the jobs
    is handed over as an argument.

    No method waits for it, `close` aside: a job may have stopped or flooded it. `door` is where a job that has closed
    its channel finds its worker again.
    """

    alive: ClassVar[set[int]] = set()

    def __init__(
        self,
        directory: Path,
        name: str,
        door: str = "",
        variables: Iterable[str] = (),
        modules: str = "",
    ) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.setblocking(False)
        self._waiting: deque[_Order] = deque()
        self._newest: dict[tuple[bytes, int], _Order] = {}
        self._unread = b""
        self.ready = False
        """It has said that it takes orders: from then on a process may have been made of a run."""
        self.unstarted: set[int] = set()
        """Runs whose start it was never told of; all of them are known once it is buried."""
        self._asked = False
        self.silence = 0.0
        """Seconds for which it has owed an answer."""
        self._started = self._looked = boot_time()
        self._stuck = False
        self._kill_at = self._give_up_at = 0.0
        self._spare_trackers_until = inf
        directory.mkdir(parents=True, exist_ok=True)  # a run may have removed it
        environment = job_environment(os.environ, variables)
        environment["HOME"] = str(_home(environment.get("HOME"), directory))
        paths = [path for path in (modules, environment.pop("PYTHONPATH", "")) if path]
        with theirs, _held_back():
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-s", "-P", "-c", BOOT),
                    *(ROOT, str(theirs.fileno()), name, door, os.pathsep.join(paths)),
                ],
                cwd=directory,
                env={**environment, "PYTHONNOUSERSITE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self.pid = self._process.pid
        self.alive.add(self.pid)

    # Orders and news

    @property
    def has_orders_waiting(self) -> bool:
        """Whether `send_waiting` is to be called when the socket takes more."""
        return bool(self._waiting)

    def order(
        self, what: bytes, run_id: int, numbers: tuple[float, float, float], fds: Sequence[int] = ()
    ) -> None:
        """Give one of forkserver.ORDER. What the socket does not take waits here.

        Raises OSError when it was not given: ConnectionError when the fork server is gone, others when it would have
        to wait and there are no descriptors left to keep its channels by.
        """
        data = ORDER.pack(what, run_id, *numbers)
        key = (what, run_id) if what in (LIMIT, LEASE) else None
        if key in self._newest:
            self._newest[key].data = data
            return
        sent = 0 if self._waiting else self._write(data, fds)
        if sent == len(data):
            return
        order = _Order(data[sent:], [] if sent else [os.dup(fd) for fd in fds], None if sent else key)
        self._waiting.append(order)
        if order.key:
            self._newest[order.key] = order

    def send_waiting(self) -> None:
        """Send of the waiting orders what the socket takes; `receive` tells of a death."""
        with contextlib.suppress(ConnectionError):
            self._send_waiting()

    def _send_waiting(self) -> None:
        while self._waiting:
            order = self._waiting[0]
            sent = self._write(order.data, order.fds)
            if not sent:
                return
            if order.key:
                del self._newest[order.key]
                order.key = None
            _close_all(order.fds)
            order.data = order.data[sent:]
            if not order.data:
                self._waiting.popleft()

    def _write(self, data: bytes, fds: Sequence[int]) -> int:
        try:
            if not fds:
                return self.socket.send(data)
            rights = struct.pack(f"={len(fds)}i", *fds)
            return self.socket.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:
                raise
            return 0  # too many descriptors are on their way: later

    def receive(self) -> list[News]:
        """What it has said since the last time. Raises EOFError or ConnectionError when it is gone."""
        try:
            data = self.socket.recv(1 << 16)
        except BlockingIOError:
            return []
        if not data:
            raise EOFError
        self._asked, self.silence = False, 0.0
        data = self._unread + data
        whole = len(data) - len(data) % NEWS.size
        self._unread = data[whole:]
        return [News(*record) for record in NEWS.iter_unpack(data[:whole])]

    def look(self) -> None:
        """Note how long it has owed an answer; ask for one when it owes none. To be called every LOOK_SECONDS.

        A look that comes late counts no more than one in time: then this process was stopped or slow as well, or the
        machine asleep.
        """
        now = boot_time()
        passed, self._looked = now - self._looked, now
        if self._asked:
            self.silence += min(passed, LOOK_SECONDS)
        else:
            with contextlib.suppress(ConnectionError):
                self.order(PING, 0, (0, 0, 0))
            self._asked = True

    @property
    def is_stuck(self) -> bool:
        """Whether it has owed an answer for too long."""
        return self.silence >= SILENCE_SECONDS

    # Its end

    def close(self) -> None:
        """At the end of file on its socket it kills every run, and ends. Waits for that."""
        self.bury(grace_seconds=END_SECONDS)
        while not self.is_buried():
            time.sleep(0.002)

    def bury(self, *, stuck: bool = False, grace_seconds: float = 1.0) -> None:
        """It has died, or is to die; call `is_buried` until it is."""
        self._stuck = stuck
        self.socket.close()
        for order in self._waiting:
            if order.fds:
                self.unstarted.add(ORDER.unpack(order.data)[1])
            _close_all(order.fds)
        self._waiting.clear()
        self._newest.clear()
        self._kill_at = boot_time() + (0 if stuck else grace_seconds)
        self._give_up_at = self._kill_at + END_SECONDS

    def is_buried(self) -> bool:
        """Kill what it left behind; True once all that is gone, or hangs in the kernel."""
        now = boot_time()
        if self._process.poll() is None:
            if now >= self._kill_at and (self._is_alone() or now >= self._kill_at + ALONE_SECONDS):
                self._process.kill()
            return now >= self._give_up_at
        self.alive.discard(self.pid)
        # The kernel has killed the leaders of its runs; with the fork server gone, the rest became ours.
        self._spare_trackers_until = min(self._spare_trackers_until, now + LAST_GRACE)
        orphans = self._find_orphans()
        for pid in orphans:
            if now >= self._spare_trackers_until or not is_tracker(pid):
                os.kill(pid, signal.SIGKILL)  # ours, and not waited for: it cannot be another's number
        for pid in orphans:
            os.waitpid(pid, os.WNOHANG)
        return not orphans or now >= self._give_up_at

    def _is_alone(self) -> bool:
        """Stop it and kill its children; True once none is left that could do anything.

        With its death they would become ours: one that stops its parent over and over would stop this process. Stopped,
        it waits for none of them, so their numbers cannot be others'; and what they leave behind comes to it.
        """
        self._process.send_signal(signal.SIGSTOP)
        living = [pid for pid in children_of(self.pid) if not _is_over(pid) and not is_tracker(pid)]
        for pid in living:
            with contextlib.suppress(ProcessLookupError):  # it was not yet stopped, and waited for that one
                os.kill(pid, signal.SIGKILL)
        return not living

    def end(self) -> str:
        """How it ended, in words."""
        code = self._process.poll()
        if self._stuck or code is None:
            return f"did not answer for {SILENCE_SECONDS:g} s"
        return how_it_ended(code)

    def _find_orphans(self) -> list[int]:
        return [pid for pid in children_of(os.getpid()) - self.alive if self._is_orphan(pid)]

    def _is_orphan(self, pid: int) -> bool:
        """Whether a child of ours has a session of its own and is younger than the fork server.

        This process starts no other such children.
        """
        try:
            return os.getsid(pid) != os.getsid(0) and _started_at(pid) >= self._started - 1
        except (ProcessLookupError, FileNotFoundError):
            return False  # not an orphan: another thread has waited for it


def children_of(pid: int) -> set[int]:
    """The children of all threads of a process, zombies included."""
    return {child for path in glob(f"/proc/{pid}/task/*/children") for child in children_in(path)}


def _is_over(pid: int) -> bool:
    """Whether a process has ended, waited for or not."""
    try:
        return _status(pid)[0] in "ZX"
    except (ProcessLookupError, FileNotFoundError):
        return True


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
    fds.clear()


def how_it_ended(code: int) -> str:
    """Of a process, with the number of a signal below zero, for people."""
    return f"exited with status {code}" if code >= 0 else f"was killed by {signal_name(-code)}"


def signal_name(number: int) -> str:
    """For people: `signal 9 (SIGKILL)`."""
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """A service manager signals every process: the fork server must be deaf to that from its first moment."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _started_at(pid: int) -> float:
    """When a process started, on `boot_time()`."""
    return int(_status(pid)[19]) / os.sysconf("SC_CLK_TCK")


def _status(pid: int) -> list[str]:
    """The fields of `/proc/<pid>/stat` that follow its name, the state first."""
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()


def job_environment(environment: Mapping[str, str], variables: Iterable[str] = ()) -> dict[str, str]:
    """What of the worker's environment its jobs may see; `variables` names more than is kept for every job."""
    names = {*KEPT_VARIABLES, *variables}
    kept = {name: value for name, value in environment.items() if name in names or name.startswith("LC_")}
    if "PYTHONPATH" in kept:  # relative parts were meant from the worker's directory, not from the jobs'
        paths = kept["PYTHONPATH"].split(os.pathsep)
        kept["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in paths)
    return kept


def _home(home: str | None, directory: Path) -> Path:
    """HOME of the jobs: the worker's own where it exists and can be written to, else one in the job directory."""
    if home and os.path.isdir(home) and os.access(home, os.W_OK | os.X_OK):
        return Path(home)
    made = directory / "home"
    made.mkdir(mode=0o700, exist_ok=True)
    return made

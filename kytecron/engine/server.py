"""The worker's end of its fork server: start it, give it orders, hear its news, and bury it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import ClassVar, NamedTuple

from .child import HELD_BACK, boot_time
from .forkserver import LAST_GRACE, NEWS, ORDER, children_in, is_tracker

ROOT = str(Path(__file__).resolve().parents[2])
BOOT = (
    "import sys; sys.path.append(sys.argv[1]); "
    "from kytecron.engine.forkserver import serve; serve(int(sys.argv[2]), sys.argv[4])"
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

ORDER_SECONDS = 5.0
"""A fork server that takes no order for so long is stuck; it is killed, and its runs end with it."""


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


class Server:
    """A fork server process and the socket to it. It sees none of this process's environment but what a job may.

    Nothing that a job can plant in its HOME or in PYTHONPATH is imported by it: `-s`, `-P`, and the path of the jobs
    is handed over as an argument.
    """

    alive: ClassVar[set[int]] = set()

    def __init__(self, directory: Path, name: str, variables: Iterable[str] = (), modules: str = "") -> None:
        self.socket, theirs = socket.socketpair()
        # Orders are small and at once taken. If they are not for so long, something is wrong over there.
        self.socket.settimeout(ORDER_SECONDS)
        self._unread = b""
        self._started = boot_time()
        directory.mkdir(parents=True, exist_ok=True)  # a run may have removed it
        environment = job_environment(os.environ, variables)
        environment["HOME"] = str(_home(environment.get("HOME"), directory))
        paths = [path for path in (modules, environment.pop("PYTHONPATH", "")) if path]
        with theirs, _held_back():
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-s", "-P", "-c", BOOT),
                    *(ROOT, str(theirs.fileno()), name, os.pathsep.join(paths)),
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

    def order(
        self, what: bytes, run_id: int, numbers: tuple[float, float, float], fds: Sequence[int]
    ) -> None:
        """One of forkserver.ORDER. Raises OSError when it is gone, TimeoutError when it is stuck."""
        order = ORDER.pack(what, run_id, *numbers)
        if fds:
            rights = struct.pack(f"={len(fds)}i", *fds)
            self.socket.sendmsg([order], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        else:
            self.socket.sendall(order)

    def has_news(self) -> bool:
        """Whether it has said something that was not received yet, or is gone."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return bool(poll.poll(0))

    def receive(self) -> list[News]:
        """What it says. Raises EOFError or ConnectionError when it is gone."""
        data = self.socket.recv(1 << 16)
        if not data:
            raise EOFError
        data = self._unread + data
        whole = len(data) - len(data) % NEWS.size
        self._unread = data[whole:]
        return [News(*record) for record in NEWS.iter_unpack(data[:whole])]

    def close(self) -> None:
        """At the end of file on its socket it kills every run, and ends."""
        self.socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(ORDER_SECONDS)
        self._bury()

    def bury(self, stuck: bool) -> str:
        """It has died, or is to die; kill what it left behind. Says how it ended."""
        self.socket.close()
        if not stuck:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
        code = self._bury()
        if stuck or code is None:
            return f"took no orders for {ORDER_SECONDS:g} s"
        return f"exited with status {code}" if code >= 0 else f"was killed by {signal_name(-code)}"

    def _bury(self) -> int | None:
        code = self._process.poll()
        self._process.kill()
        self._process.wait()
        self.alive.discard(self.pid)
        self._kill_orphans()
        return code

    def _kill_orphans(self) -> None:
        """The kernel has killed the leaders of its runs; with the fork server gone, the rest became ours."""
        began = time.monotonic()
        while (orphans := self._find_orphans()) and time.monotonic() < began + ORDER_SECONDS:
            for pid in orphans:
                if time.monotonic() >= began + LAST_GRACE or not is_tracker(pid):
                    os.kill(pid, signal.SIGKILL)  # ours, and not waited for: it cannot be another's number
            time.sleep(0.002)
            for pid in orphans:
                os.waitpid(pid, os.WNOHANG)

    def _find_orphans(self) -> list[int]:
        children = {pid for path in glob("/proc/self/task/*/children") for pid in children_in(path)}
        return [pid for pid in children - self.alive if self._is_orphan(pid)]

    def _is_orphan(self, pid: int) -> bool:
        """Whether a child of ours has a session of its own and is younger than the fork server.

        This process starts no other such children.
        """
        try:
            return os.getsid(pid) != os.getsid(0) and _started_at(pid) >= self._started - 1
        except (ProcessLookupError, FileNotFoundError):
            return False  # not an orphan: another thread has waited for it


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
    with open(f"/proc/{pid}/stat") as stat:
        after_name = stat.read().rpartition(")")[2]
    return int(after_name.split()[19]) / os.sysconf("SC_CLK_TCK")


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

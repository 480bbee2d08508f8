"""The fork server: a small warm process that forks job processes, ends them in time and reaps them.

Standard library only, one thread, no database: forking it costs a millisecond or two, and a job finds nothing
in its memory. It takes orders from one worker over a socket and answers with news, both in records of fixed size
(ORDER, NEWS). Two descriptors, the job's ends of its channels, come along with the order to start.

Deadlines are kept here, not in the worker: they hold while the worker is busy, stuck or stopped. When the worker
is gone (end of file on the socket) every run is killed and the fork server ends.

A run is over when its processes are. Each run leads a session and is a subreaper: whatever its processes do,
they stay below it in the process tree until it ends, and then become children of the fork server. So every child
of the fork server that leads no run has outlived its run: SIGTERM, a moment, SIGKILL.

Processes are forked in advance, several in a row, when there is nothing else to do: a spare one is all but ready to
run a job, and is given one run, its first and only.

Every page that is written between two forks, here or in a child, is copied first, and that is most of what a
fork costs. Hence records instead of JSON, descriptors instead of file objects, nothing imported that runs code at
a fork (threading, and so logging, does).
"""

from __future__ import annotations

import _socket
import errno
import gc
import os
import resource
import select
import signal
import struct
import sys
import time
from collections import deque

from . import child
from .child import boot_time, prctl
from .scratch import Scratch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

ORDER = struct.Struct("=cqddd")
"""What to do, with which run, and three numbers:

    start   seconds it may run, end of its lease, seconds between SIGTERM and SIGKILL
    limit   new end of its time
    lease   new end of its lease
    stop    seconds between SIGTERM, which is sent at once, and SIGKILL
    ping    nothing; answered with news of the same kind, of no run

An end is a moment on `boot_time()`; what does not end has `inf`.
"""

START, LIMIT, LEASE, STOP, PING = b"s", b"t", b"l", b"k", b"?"

NEWS = struct.Struct("=ccqqqddd")
"""What happened, the cause, to which run, two whole numbers and three others:

    ready      it takes orders from now on; before it said so, no process of a run was made
    started    process id; wall clock
    refused    (because its lease had ended) or error number of the fork
    stopping   (with its cause)
    awake      (the answer to a ping)
    ended      wait status, peak memory in KiB; seconds it took, CPU seconds, when it was stopped (`inf`: it was not)
"""

READY, STARTED, REFUSED, STOPPING, ENDED, AWAKE = b"y", b"s", b"r", b"p", b"e", b"!"

ITSELF, TIMEOUT, LOST_LEASE, STOPPED = b"-", b"t", b"l", b"k"
"""Causes of an end: the run's own, its time limit, its lease, an order."""

POLL_SECONDS = 0.5
"""Longest sleep while a run is on: `poll` does not count the time that the machine is suspended."""

STRAY_GRACE = 1.0
"""Seconds between SIGTERM and SIGKILL for what has outlived its run."""

TRACKER_GRACE = 5.0
"""The same for multiprocessing's resource trackers. They wait until all that use them are gone, then remove the
shared memory and the semaphores that these left, and end.
"""

LAST_GRACE = 1.0
"""The same for resource trackers when everything is to end."""

STRAY_SECONDS = 7.0
"""How long the news of an end waits for what outlived the run to be gone."""

SWEEP_SECONDS = 0.3
"""How long the end of the fork server waits for the sweeper. Others take its name in the process list for its life."""

STRAY_RETRY_SECONDS = 0.01

SPARES = 8
"""How many processes wait for a run."""

FEW_SPARES = 4
"""When no more than so many wait, others are made: several in a row cost less than one at a time."""

RUN_ID = struct.Struct("=q")
"""What a spare process is told; the job's ends of its channels come along."""

CONTROL_FD = 4095
"""Where a job has its end of the control socket; its limit on open files is lowered to just that.

Jobs close descriptors in loops up to the limit (to become a daemon, say): this one is out of their reach, and no
file that a job opens ever gets its number.
"""

_LINUX = sys.platform == "linux"
_LOST = -1
"""In the place of a descriptor that is not there."""
_NEVER = float("inf")  # math.inf would cost the mapping of one more library at every fork
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36


class Spare:
    """A process that waits for its run."""

    __slots__ = ("channel", "pid", "pidfd", "scratch")

    def __init__(self, pid: int, channel: _socket.socket, scratch: str) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid) if _LINUX else -1
        self.channel = channel
        self.scratch = scratch


class Run:
    """One job process, from the moment it is given its run until its end was told."""

    __slots__ = (
        *("id", "pid", "pidfd", "started", "limit", "lease", "grace"),
        *("cause", "stopped", "kill_at", "killed", "ended", "news", "scratch", "strays", "names"),
    )

    def __init__(
        self, run_id: int, process: Spare, started: float, seconds: float, lease: float, grace: float
    ) -> None:
        self.id = run_id
        self.pid = process.pid
        self.pidfd = process.pidfd
        self.started = started
        self.limit = started + seconds
        self.lease = lease
        self.grace = grace
        self.cause = ITSELF
        self.stopped = _NEVER
        self.kill_at = _NEVER
        self.killed = False
        self.ended = 0.0
        self.news = b""
        self.scratch = process.scratch
        self.strays: set[int] | None = None
        self.names = False

    def next_deadline(self) -> float:
        return min(self.limit, self.lease, self.kill_at)


def serve(fd: int, door: str, python_path: str = "") -> NoReturn:
    """Be the fork server of the worker at the other end of socket `fd`. Runs on a fresh interpreter.

    `door` is where a job finds its worker again when it has closed its channel (see `child.Channel`). `python_path` is
    the PYTHONPATH of the jobs: nothing that lies there is imported here.
    """
    prepare()
    if python_path:
        os.environ["PYTHONPATH"] = python_path
    ForkServer(_socket.socket(fileno=fd), door, python_path).run()
    os._exit(0)


def prepare() -> None:
    """Everything that can be done once, before the first fork."""
    name_process("kyte-forkserver")
    adopt_orphans()
    # Stopped by one of its jobs it would not see that its worker is gone, and its runs would outlive both.
    prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)  # the worker's parent may have ignored them
    # Held back (by the worker already), not ignored: what is sent to a young child waits until it can take it.
    signal.pthread_sigmask(signal.SIG_BLOCK, child.HELD_BACK)
    os.umask(0o022)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prefer_for_out_of_memory()
    child.hide_memory(True)  # a run is hidden before its secrets arrive, and shows itself when there are none
    child.prepare()
    gc.collect()
    gc.disable()
    gc.freeze()  # a collection in a child must not touch, and so copy, every page


def enter(directory: str) -> None:
    """Work in `directory`. Somebody may have removed it since it was made: then it is made again."""
    try:
        try:
            os.chdir(directory)
        except FileNotFoundError:
            os.makedirs(directory, exist_ok=True)
            os.chdir(directory)
    except OSError:
        pass  # most jobs need none


class ForkServer:
    """The loop: orders in, signals and forks out, ends reported."""

    def __init__(self, worker: _socket.socket, door: str, python_path: str = "") -> None:
        self._worker = worker
        self._door = door
        self._worker.setblocking(False)
        self._pid = os.getpid()
        self._scratch = Scratch(os.getcwd())
        self._python_path = python_path.split(os.pathsep) if python_path else []
        # Opened once: whoever has no descriptor left must still find the processes that are to be killed.
        self._children = _open_if_there(f"/proc/{self._pid}/task/{self._pid}/children")
        self._unread = b""
        self._fds: deque[int] = deque()
        self._unsent = b""
        self._spares: dict[int, Spare] = {}
        self._lacks_spares = True
        self._runs: dict[int, Run] = {}
        self._by_pid: dict[int, Run] = {}
        self._over: list[Run] = []
        self._strays: dict[int, float] = {}
        self._unkillable: set[int] = set()
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._control_fd = CONTROL_FD if hard == resource.RLIM_INFINITY else min(CONTROL_FD, hard - 1)
        self._files_of_runs = (self._control_fd, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (self._control_fd + 1, hard))
        self._poll = select.poll()
        self._poll.register(worker, select.POLLIN)

    def run(self) -> None:
        """Serve until the worker is gone; then kill every run and return."""
        self._scratch.start_sweeper(self._become_sweeper)
        self._tell(READY, ITSELF, 0)
        try:
            while True:
                self._keep_deadlines(boot_time())
                self._send()
                orders_came = self._wait()
                self._reap()
                if orders_came:
                    self._obey()
        except (EOFError, ConnectionError):
            self._end_all()

    # Waiting and talking

    def _wait(self) -> bool:
        """Sleep until something happens; True when the worker has written, or is gone."""
        orders_came = False
        events = self._events(0 if self._lacks_spares else self._timeout())
        if not events and self._lacks_spares:
            self._make_spares()
        for fd, event in events:
            if fd == self._worker.fileno():
                orders_came = bool(event & ~select.POLLOUT)
        return orders_came

    def _events(self, timeout: float | None) -> list[tuple[int, int]]:
        try:
            return self._poll.poll(timeout)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # Somebody has set the limit on open files below what is watched here: look often instead.
            alone = select.poll()
            alone.register(self._worker, select.POLLIN)
            return alone.poll(STRAY_RETRY_SECONDS * 1000)

    def _timeout(self) -> float | None:
        if not self._runs:
            return None
        nearest = POLL_SECONDS
        if self._over or not _LINUX:
            nearest = STRAY_RETRY_SECONDS
        now = boot_time()
        for run in self._by_pid.values():
            nearest = min(nearest, run.next_deadline() - now)
        return max(0.0, nearest) * 1000

    def _tell(self, what: bytes, cause: bytes, run_id: int, number: int = 0, at: float = 0.0) -> None:
        self._unsent += NEWS.pack(what, cause, run_id, number, 0, at, 0.0, 0.0)

    def _send(self) -> None:
        if not self._unsent:
            return
        try:
            sent = self._worker.send(self._unsent)
        except BlockingIOError:
            sent = 0
        self._unsent = self._unsent[sent:]
        self._poll.modify(self._worker, select.POLLIN | (select.POLLOUT if self._unsent else 0))

    def _obey(self) -> None:
        try:
            data, ancillary, flags, _ = self._worker.recvmsg(1 << 14, 1 << 10)
        except BlockingIOError:
            return
        if not data:
            raise EOFError
        # Descriptors arrive in the sequence of the orders that they belong to.
        fds = [fd for _, _, raw in ancillary for fd in struct.unpack(f"={len(raw) // 4}i", raw)]
        if flags & _socket.MSG_CTRUNC:
            # There was no room for them here. One message brings those of one order at most.
            for fd in fds:
                os.close(fd)
            fds = [_LOST, _LOST]
        self._fds += fds
        data = self._unread + data
        whole = len(data) - len(data) % ORDER.size
        self._unread = data[whole:]
        for what, run_id, a, b, c in ORDER.iter_unpack(data[:whole]):
            if what == START:
                self._start(run_id, a, b, c)
            elif what == PING:
                self._tell(AWAKE, ITSELF, 0)
            elif (run := self._runs.get(run_id)) is None:
                pass  # its end is on the way to the worker
            elif what == LIMIT:
                run.limit = a if run.cause == ITSELF else _NEVER
            elif what == LEASE:
                run.lease = a
            else:
                self._stop(run, STOPPED, a)

    # Starting

    def _start(self, run_id: int, seconds: float, lease: float, grace: float) -> None:
        control, output = self._fds.popleft(), self._fds.popleft()
        if control == _LOST:
            self._tell(REFUSED, ITSELF, run_id, number=errno.EMFILE)
            return
        if boot_time() >= lease:
            # The worker was stopped, or slow, since it claimed this run: another may have it by now.
            self._tell(REFUSED, LOST_LEASE, run_id)
        else:
            self._hand_over(run_id, (control, output), (seconds, lease, grace))
        os.close(control)
        os.close(output)

    def _hand_over(self, run_id: int, fds: tuple[int, int], times: tuple[float, float, float]) -> None:
        """Let a spare process be the run."""
        now, started = time.time(), boot_time()
        try:
            process = self._told(run_id, fds)
        except OSError as error:
            self._tell(REFUSED, ITSELF, run_id, number=error.errno or 0)
            return
        run = Run(run_id, process, started, *times)
        self._runs[run_id] = self._by_pid[run.pid] = run
        self._tell(STARTED, ITSELF, run_id, number=run.pid, at=now)

    def _told(self, run_id: int, fds: tuple[int, int]) -> Spare:
        """A process that was told its run. Raises OSError when none can be made."""
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("=2i", *fds))]
        message = RUN_ID.pack(run_id)
        while True:
            if not self._spares and (problem := self._make_spares()):
                raise problem
            spare = next(iter(self._spares.values()))
            # A job has removed more than its own, or stopped another's process.
            if not self._scratch.is_as_made(spare.scratch) or _is_stopped(spare.pid):
                _kill(spare.pid)
                self._bury(spare)
                continue
            try:
                spare.channel.sendmsg([message], rights)
            except OSError:
                self._bury(spare)  # somebody has killed it
                continue
            del self._spares[spare.pid]
            spare.channel.close()
            self._lacks_spares = len(self._spares) <= FEW_SPARES
            return spare

    def _make_spares(self) -> OSError | None:
        """Fork the processes that are lacking, with as little as can be between two forks.

        Returns what went wrong where there is none then.
        """
        self._lacks_spares = False  # also where it fails, or they are killed: the next start will try again
        channels: list[tuple[_socket.socket, _socket.socket]] = []
        directories: list[str] = []
        pids: list[int] = []
        problem: OSError | None = None
        try:
            for _ in range(SPARES - len(self._spares)):
                channels.append(_socket.socketpair())
                directories.append(self._scratch.make())
        except OSError as error:
            problem = error
        try:
            for (_, theirs), directory in zip(channels, directories, strict=False):
                pids.append(os.fork() or self._become_spare(theirs, directory))
        except OSError as error:
            problem = error
        for directory in directories[len(pids) :]:
            self._give_up(directory)
        for pid, (ours, _), directory in zip(pids, channels, directories, strict=False):
            try:
                self._spares[pid] = Spare(pid, ours, directory)
            except OSError as error:
                _kill(pid)
                problem = error
            else:
                self._watch(self._spares[pid])
        for pair in channels:
            pair[1].close()
        return None if self._spares else problem

    def _become_spare(self, orders: _socket.socket, directory: str) -> NoReturn:
        """In the child: leave everything of the fork server behind, wait for a run and be it."""
        try:
            os.setsid()
            die_with_parent(self._pid)
            adopt_orphans()
            name_process("kyte-spare")
            # Whatever has become of the fork server's own limit: the channels must find room.
            _limit_files(self._control_fd + 1, self._files_of_runs[1])
            os.closerange(3, orders.fileno())
            os.closerange(orders.fileno() + 1, self._control_fd)
            sys.path[:0] = self._python_path
            message, ancillary, _, _ = orders.recvmsg(RUN_ID.size, 64)
            if not message:
                os._exit(0)  # the fork server is gone
            orders.close()
            control, output = struct.unpack("=2i", ancillary[0][2])
            name_process(f"kyte-run {RUN_ID.unpack(message)[0]}")
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.dup2(control, self._control_fd, inheritable=False)
            os.closerange(3, self._control_fd)
            _limit_files(*self._files_of_runs)
            enter(directory)
            child.main(self._control_fd, self._door, directory)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)

    def _become_sweeper(self) -> None:
        """In the child that removes the directories of runs: keep nothing else of the fork server."""
        os.setsid()
        die_with_parent(self._pid)
        name_process("kyte-sweeper")
        low, high = sorted(self._scratch.descriptors())
        os.closerange(3, low)
        os.closerange(low + 1, high)
        os.closerange(high + 1, self._control_fd)

    # Ending

    def _keep_deadlines(self, now: float) -> None:
        for run in self._by_pid.values():
            if now < run.next_deadline():
                continue
            if now >= run.lease:
                run.lease = _NEVER
                self._stop(run, LOST_LEASE, 0)
            if now >= run.limit:
                run.limit = _NEVER
                self._stop(run, TIMEOUT, run.grace)
            if now >= run.kill_at:
                run.kill_at = now + 1
                self._kill(run)

    def _stop(self, run: Run, cause: bytes, grace: float) -> None:
        """SIGTERM now and SIGKILL after `grace` seconds. A lost lease outranks the cause before it."""
        if run.news:
            return  # over already
        now = boot_time()
        if run.cause == ITSELF or cause == LOST_LEASE:
            run.cause = cause
            run.stopped = min(run.stopped, now)
            self._tell(STOPPING, cause, run.id)
            self._send()  # before the signal: whatever the job then asks of the worker, the worker knows
        run.limit = _NEVER
        run.kill_at = min(run.kill_at, now + grace)
        if grace > 0:
            self._signal(run, signal.SIGTERM)
            self._signal(run, signal.SIGCONT)  # one that is stopped could not clean up
        else:
            self._kill(run)

    def _kill(self, run: Run) -> None:
        """SIGKILL to the leader. The rest becomes ours with that, and is killed as soon as it was reaped."""
        run.killed = True
        if _LINUX:
            _kill(run.pid)
        else:
            self._signal(run, signal.SIGKILL)

    def _signal(self, run: Run, number: int) -> None:
        """To the run's process group. What left the group is dealt with when the leader has been reaped."""
        try:
            os.killpg(run.pid, number)
        except ProcessLookupError:
            os.kill(run.pid, number)  # so young that it does not lead a group yet
        except PermissionError:
            pass  # macOS: the group is a zombie

    def _reap(self) -> None:
        self._reap_children()
        if not self._over:
            return
        now = boot_time()
        self._end_strays(now)
        over = [run for run in self._over if self._has_let_go(run, now)]
        for run in over:
            # Hanging in the kernel (a dead disk, say): not waited for a second time.
            self._unkillable |= run.strays or set()
            del self._runs[run.id]
            self._over.remove(run)
            self._unsent += run.news
            self._give_up(run.scratch)

    def _has_let_go(self, run: Run, now: float) -> bool:
        """Whether nothing of a run that is over is left: no process, and no name that they shared."""
        if now >= run.ended + STRAY_SECONDS:
            return True
        if run.strays:
            return False
        if not run.names and self._scratch.is_as_made(run.scratch):
            return True  # so it has shared nothing by name either
        if not run.names and self._scratch.give_up_names(run.scratch):
            run.names = True
            self._wake_sweeper()
        return not run.names or not self._scratch.has_names(run.scratch)

    def _end_strays(self, now: float) -> None:
        """SIGTERM, a moment, SIGKILL for what has outlived the runs that are over."""
        found = self._find_strays()
        while found and self._reap_children():
            found = self._find_strays()  # the strays of whoever died meanwhile are among them
        found -= self._unkillable
        self._strays = {pid: kill_at for pid, kill_at in self._strays.items() if pid in found}
        fresh = found - self._strays.keys()
        # A stray comes with the end of its run, or of another stray: it belongs to nobody else.
        owners = [run for run in self._over if run.strays is None] or self._over
        hurried = any(run.killed or run.cause == LOST_LEASE for run in owners)
        for pid in fresh:
            self._strays[pid] = now + self._moment_for(pid, hurried)
            _kill(pid, signal.SIGTERM)
            _kill(pid, signal.SIGCONT)  # one that is stopped could not end
        for run in self._over:
            run.strays = ((run.strays or set()) & found) | (fresh if run in owners else set())
        for pid, kill_at in self._strays.items():
            if now >= kill_at:
                _kill(pid)

    def _moment_for(self, pid: int, hurried: bool) -> float:
        """How long a stray may take to end. Those of a run that was killed have had their time."""
        if is_tracker(pid):
            return STRAY_GRACE if hurried else TRACKER_GRACE
        return 0.0 if hurried else STRAY_GRACE

    def _give_up(self, directory: str) -> None:
        if self._scratch.is_as_made(directory):
            self._scratch.keep(directory)
        else:
            self._scratch.give_up(directory)
            self._wake_sweeper()

    def _wake_sweeper(self) -> None:
        if self._scratch.sweeper is None:
            self._scratch.start_sweeper(self._become_sweeper)
        self._scratch.wake_sweeper()

    def _reap_children(self) -> bool:
        """Whether a run is over."""
        over = False
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return over
            if pid == 0:
                return over
            self._unkillable.discard(pid)
            run = self._by_pid.pop(pid, None)
            if run is not None:
                self._note_end(run, status, usage)
                over = True
            elif pid == self._scratch.sweeper:
                self._scratch.sweeper = None
            elif pid in self._spares:
                self._bury(self._spares[pid])

    def _bury(self, spare: Spare) -> None:
        """It was killed before it had a run."""
        del self._spares[spare.pid]
        self._forget(spare)
        spare.channel.close()
        self._give_up(spare.scratch)

    def _watch(self, process: Spare) -> None:
        if _LINUX:
            self._poll.register(process.pidfd, select.POLLIN)

    def _forget(self, process: Spare | Run) -> None:
        if _LINUX:
            self._poll.unregister(process.pidfd)
            os.close(process.pidfd)

    def _note_end(self, run: Run, status: int, usage: resource.struct_rusage) -> None:
        self._forget(run)
        run.ended = boot_time()
        run.news = NEWS.pack(
            ENDED,
            run.cause,
            run.id,
            status,
            usage.ru_maxrss if _LINUX else usage.ru_maxrss // 1024,
            run.ended - run.started,
            usage.ru_utime + usage.ru_stime,
            run.stopped,
        )
        self._over.append(run)

    def _find_strays(self) -> set[int]:
        """Our children that lead no run and wait for none: they have outlived theirs."""
        known = {*self._by_pid, *self._spares, self._scratch.sweeper}
        return {pid for pid in _listed_in(self._children) if pid not in known}

    def _end_all(self) -> None:
        """The worker is gone: nobody may survive it, and nobody is left to tell."""
        give_up = boot_time() + LAST_GRACE
        while True:
            strays = self._find_strays()
            for pid in [*self._by_pid, *self._spares, *strays]:
                if pid not in strays or boot_time() >= give_up or not is_tracker(pid):
                    _kill(pid)
            self._reap_children()
            if not self._by_pid and not self._spares and not self._find_strays():
                break
            time.sleep(0.005)
        self._scratch.close()
        give_up = boot_time() + SWEEP_SECONDS
        while self._scratch.sweeper is not None and boot_time() < give_up:
            time.sleep(0.005)
            self._reap_children()


# The process tree (Linux; elsewhere these do nothing, and only process groups are killed)


def adopt_orphans(does: bool = True) -> None:
    """From now on the orphans among this process's descendants become its children, not init's; or no longer."""
    prctl(_PR_SET_CHILD_SUBREAPER, int(does))


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent`, which has one thread, dies; or end, if it has already."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _limit_files(soft: int, hard: int) -> None:
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    except ValueError:  # somebody has lowered the hard limit since, which cannot be raised again
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, hard), hard))


def name_process(name: str) -> None:
    """What `ps` and `top` show; 15 characters."""
    prctl(_PR_SET_NAME, name.encode()[:15])


def children_in(path: str) -> list[int]:
    """The processes in a `/proc/.../children`, zombies included. Reliable for a process's own children, while it
    is not reaping them.
    """
    if (fd := _open_if_there(path)) == _LOST:
        return []
    try:
        return _listed_in(fd)
    finally:
        os.close(fd)


def _open_if_there(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return _LOST


def _listed_in(fd: int) -> list[int]:
    """The processes in an open `/proc/.../children`, as they are now."""
    found = b""
    while fd != _LOST and (data := os.pread(fd, 1 << 14, len(found))):
        found += data
    return [int(pid) for pid in found.split()]


def _prefer_for_out_of_memory() -> None:
    """When the machine runs out of memory the kernel should take a job before the worker."""
    try:
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write("500")
    except OSError:
        pass


def _is_stopped(pid: int) -> bool:
    """Whether somebody has stopped this child of ours."""
    try:
        return _LINUX and os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def is_tracker(pid: int) -> bool:
    """Whether a process is a resource tracker, of multiprocessing or loky."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as command:
            return b"resource_tracker" in command.read(1 << 12)
    except OSError:
        return False


def _kill(pid: int, number: int = signal.SIGKILL) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass

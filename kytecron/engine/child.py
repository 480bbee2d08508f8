"""The child half of a run: load the job's class, run it, and tell the worker how it ended.

Runs in a process of its own that the fork server made. Standard library only.

The channel to the worker is a stream socket. First comes the request (`encode_request`); after that both sides
write one JSON document per line. The job's: `{"compiled": code}`, when the worker did not have it yet;
`{"call": n, "method": ..., "arguments": {...}}`, answered by `{"reply": n, "result" | "error": ...}`;
`{"progress": percent, "note": ...}`; and at the very end, once, `{"end": "completed" | "failed" | "skipped", ...}`.
"""

from __future__ import annotations

import _io
import _socket
import _thread
import atexit
import ctypes
import gc
import importlib.machinery
import json
import linecache
import marshal
import os
import resource
import signal
import sys
import time
import traceback
import types
from _signal import pthread_sigmask  # type: ignore[import-not-found]  # without signal.py's enum for each answer
from datetime import UTC, datetime

from .. import job as api
from . import shared

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType
    from typing import Any, NoReturn

MODULE = "kytecron_job"
"""The name under which a job's code is a module: dataclasses, pickle and logging look it up."""

CODE = ".code"
"""What the name of the directory ends with into which a job's code is written; its beginning is the run's directory."""

KEPT = 64 * 1024
"""Most characters kept of a result, of a stack trace and of the state."""

MASKED = "***"

SHARED = "shared"
"""A directory in there: what the run's processes share by name."""

LONGEST_CALL = 256 * 1024
"""Bytes of a call through `self.api`. Parameters of 64,000 bytes are at most 192,000 in JSON."""

NO_CHANNEL = "the job closed its connection to the worker"

UNTOLD = 76
"""Exit status of a run that could not tell how it ended (EX_PROTOCOL of sysexits.h)."""

PLAIN_END = {"end": "completed", "result": None}
"""The end of most runs: told without waking the JSON encoder, which costs a young process 0.15 ms."""

CPU_GRACE_SECONDS = 10
"""CPU seconds between SIGXCPU, which lets `tear_down` run, and the kernel's SIGKILL."""

_PACKAGE = os.path.dirname(os.path.abspath(api.__file__)) + os.sep


def boot_time() -> float:
    """Seconds since boot, time asleep included: what a lease is measured with on this machine."""
    return time.clock_gettime(_BOOT_CLOCK)


_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def prctl(option: int, value: int | bytes) -> None:
    """Set one of Linux's attributes of this process; elsewhere nothing."""
    if sys.platform == "linux":
        _libc.prctl(option, value, 0, 0, 0)


def hide_memory(hidden: bool) -> None:
    """Whether other processes of this user, other jobs above all, are kept from this one's memory and environment.

    Copies that it forks are like it; another program that it becomes shows itself again.
    """
    prctl(_PR_SET_DUMPABLE, 0 if hidden else 1)


_PR_SET_DUMPABLE = 4
_libc = ctypes.CDLL(None)


class Interruption(BaseException):
    """A signal asks the job to end. Not an Exception: `except Exception` in a job must not swallow it."""


class Terminated(Interruption):
    """SIGTERM: the time limit, a cancellation, or the worker's shutdown."""


class CpuLimitReached(Interruption):
    """SIGXCPU: the job used all the CPU time that it may."""


def encode_request(request: dict[str, Any]) -> bytes:
    """What the worker sends first. In marshal, which is quicker to read than JSON: both run the same Python."""
    data = marshal.dumps(request)
    return len(data).to_bytes(4) + data


def encode_message(message: dict[str, Any]) -> bytes:
    """Any message after the first, either way. It begins with a newline too: see Channel."""
    return b"\n" + json.dumps(message).encode() + b"\n"


class Channel:
    """The job's end of the socket to its worker.

    A signal may raise between any two steps here. So every line begins with a newline too and what does not
    parse is skipped: half a line, left behind by an exception, spoils nothing but itself.

    A job may close all descriptors, to become a daemon say, and then open files that get their numbers. So it is
    looked before each use whether the socket is still there, and if not another is made to the worker's `door`, where
    the kernel tells the worker which process it is.
    """

    def __init__(self, fd: int, door: str = "") -> None:
        self.pid = os.getpid()
        self._fd = fd
        self._file = _identity(fd)
        self._door = door
        self._unread = bytearray()
        self._calls = 0
        self._calling = _thread.allocate_lock()
        self._writing = _thread.allocate_lock()

    def request(self) -> dict[str, Any]:
        """The first message. Raises EOFError when the worker is gone."""
        self._read(1 << 12)
        size = int.from_bytes(self._unread[:4]) + 4
        while len(self._unread) < size:
            self._read(1 << 20)
        data = bytes(self._unread[4:size])
        del self._unread[:size]
        message: dict[str, Any] = marshal.loads(data)
        return message

    def tell(self, message: dict[str, Any]) -> None:
        """Send one message.

        Raises RuntimeError in a process that the job forked, ConnectionError when the job has closed the socket and
        no other can be made.
        """
        self.write(encode_message(message))

    def write(self, line: bytes) -> None:
        """`tell`, of a message that is encoded already."""
        self._check()
        with self._writing:
            self._hold_on()
            while line:
                line = line[os.write(self._fd, line) :]

    def call(self, method: str, arguments: dict[str, Any]) -> Any:
        """Ask the worker and wait for its answer. Raises what `tell` does, and ApiError when it says no."""
        self._check()
        with self._calling:
            self._calls += 1
            number = self._calls
            question = encode_message({"call": number, "method": method, "arguments": arguments})
            if len(question) > LONGEST_CALL:
                raise api.ApiError(f"the call takes {len(question):,} bytes of at most {LONGEST_CALL:,}")
            self.write(question)
            reply = self.receive()
            while reply.get("reply") != number:
                reply = self.receive()
        if "error" in reply:
            raise api.ApiError(reply["error"])
        return reply.get("result")

    def receive(self) -> dict[str, Any]:
        """The next message from the worker. Raises EOFError when the worker is gone."""
        searched = 0
        while True:
            end = self._unread.find(b"\n", searched)
            if end < 0:
                searched = len(self._unread)
                self._read(1 << 16)
                continue
            line = bytes(self._unread[:end])
            del self._unread[: end + 1]
            searched = 0
            try:
                message = json.loads(line)
            except ValueError:
                continue
            if isinstance(message, dict):
                return message

    def hide(self, text: str) -> str:
        """`text` with the run's secrets masked."""
        return hide(text, _hidden)

    def _hold_on(self) -> None:
        """Make sure that the descriptor is the socket to the worker. Raises ConnectionError when it cannot be."""
        try:
            if _identity(self._fd) == self._file:
                return
        except OSError:
            pass  # closed
        try:
            self._fd = _connect(self._door)
            self._file = _identity(self._fd)
        except OSError:
            raise ConnectionError(NO_CHANNEL) from None
        self._unread.clear()

    def _read(self, most: int) -> None:
        data = os.read(self._fd, most)
        if not data:
            raise EOFError("the worker is gone")
        self._unread += data

    def _check(self) -> None:
        if os.getpid() != self.pid:
            raise RuntimeError("only the job's own process can talk to the worker, not one that it forked")


def _identity(fd: int) -> object:
    """Which file a descriptor stands for. Raises OSError for one that is closed."""
    try:
        # One text; what fstat tells is twenty objects, which a young process has no room for yet.
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        found = os.fstat(fd)  # there is no /proc: the job has changed its root
        return found.st_dev, found.st_ino


def _connect(door: str) -> int:
    """Another socket to the worker. Not in the place of a standard stream: those may be closed too."""
    import fcntl

    line = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        line.connect(f"\0{door}")
        return fcntl.fcntl(line.fileno(), fcntl.F_DUPFD_CLOEXEC, LOWEST_FD)
    finally:
        line.close()


LOWEST_FD = 32


class Signals:
    """Turns SIGTERM and SIGXCPU into one exception inside the job's code, and never inside ours."""

    def __init__(self) -> None:
        self._armed = False
        self._waiting: Interruption | None = None
        self._raised = False
        self._masks = _thread._local()

    def install(self) -> None:
        """In the job's process: from now on the signals reach it. The handlers were set before the fork."""
        os.register_at_fork(
            before=self._before_fork, after_in_parent=self._after_fork, after_in_child=self._in_copy
        )
        pthread_sigmask(signal.SIG_SETMASK, ())

    def attempt(
        self, call: Callable[[], Any], interruptible: bool = True
    ) -> tuple[Any, BaseException | None]:
        """Run a piece of the job's code: what it returned, or what it raised."""
        try:
            self._armed = interruptible
            return call(), None
        except BaseException as error:
            self._armed = False
            return None, error
        finally:
            self._armed = False

    def check(self) -> None:
        """Raise what arrived while none of the job's code was running."""
        if self._waiting is not None and not self._raised:
            self._raised = True
            raise self._waiting

    def received(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if not self._raised:
            self._waiting = CpuLimitReached() if number == signal.SIGXCPU else Terminated()
            if self._armed:
                self.check()

    # A process that the job forks (multiprocessing's, say) is to die of a signal as it would anywhere. Until it has
    # its handlers back the signals wait: Python in a new process forgets the ones that came before it was ready.

    def _before_fork(self) -> None:
        self._masks.before = pthread_sigmask(signal.SIG_BLOCK, STOPS)

    def _after_fork(self) -> None:
        pthread_sigmask(signal.SIG_SETMASK, self._masks.before)

    def _in_copy(self) -> None:
        for number in STOPS:
            if signal.getsignal(number) == self.received:
                signal.signal(number, signal.SIG_DFL)
        self._after_fork()


STOPS = {signal.SIGTERM, signal.SIGXCPU}
"""Signals that end a job by an exception."""

_signals = Signals()

HELD_BACK = {*STOPS, signal.SIGINT, signal.SIGHUP}
"""Signals that are blocked from before the fork until the job can take them."""


class AtImport:
    """Does something when a job first imports a module of Python's that few jobs need.

    These are not imported for the job beforehand: they bring threading, which runs code of its own at every fork.
    """

    def __init__(self, actions: dict[str, Callable[[types.ModuleType], None]]) -> None:
        self._actions = actions

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in self._actions:
            return None
        action = self._actions.pop(name)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: types.ModuleType) -> None:
                load(module)
                action(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _set_up_logging(logging: Any) -> None:
    """INFO and above go to stderr until the job says otherwise."""
    # Through the handler of last resort: one on the root logger would make the job's own basicConfig void.
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    formatter.converter = time.gmtime
    formatter.default_time_format, formatter.default_msec_format = "%Y-%m-%dT%H:%M:%S", "%s.%03dZ"
    logging.root.setLevel(logging.INFO)
    logging.lastResort.setLevel(logging.INFO)
    logging.lastResort.setFormatter(formatter)


STARTS_PROCESSES = ("multiprocessing", "multiprocess", "billiard")
"""Modules that start new interpreters and hand them functions and classes by name (concurrent.futures and joblib do
it through the first, pathos and celery through the others).
"""

COPY = """\
# The code of a job, for the processes that it starts.
import linecache
from kytecron.job import CronJobBase, PermanentFailure, SkipRun
with open({path!r}, encoding="utf-8", errors="surrogatepass", newline="") as file:
    source = file.read()
__file__ = {filename!r}
linecache.cache[__file__] = (len(source), None, source.splitlines(keepends=True), __file__)
code = compile(source, __file__, "exec", dont_inherit=True)
from kytecron.engine.shared import note_names_here
note_names_here({shared!r})
del linecache, file, source, note_names_here, globals()["__cached__"]
exec(globals().pop("code"))
"""
"""The module as another interpreter imports it. Like there, the module's own code runs and `execute` does not."""


class _Place:
    """Where the code of this process's job may be written, and what it is."""

    __slots__ = ("directory", "filename", "source")

    def __init__(self) -> None:
        self.directory = self.filename = self.source = ""


_place = _Place()


def _write_module(_: types.ModuleType | None = None) -> None:
    """Let the interpreters that this job starts find its module by name: they are handed our `sys.path`.

    Last in the path: it hides nothing. Written now, because nothing tells when a process is started.
    """
    directory = _place.directory
    if not directory or directory in sys.path:
        return
    try:
        os.mkdir(directory, 0o700)
        os.utime(directory.removesuffix(CODE))  # the run's directory counts as used: both go in the end
        path = f"{directory}/{MODULE}.txt"
        _write(path, _place.source.encode("utf-8", "surrogatepass"))
        copy = COPY.format(path=path, filename=_place.filename, shared=f"{directory}/{SHARED}")
        _write(f"{directory}/{MODULE}.py", copy.encode())
    except OSError as error:
        # Those processes would end as they start, and a pool would start others for ever.
        text = f"{error.strerror}: the processes that this job starts need a copy of its code"
        raise OSError(error.errno, text, error.filename) from None
    sys.path.append(directory)


def _note_names(tracker: types.ModuleType) -> None:
    if _place.directory:
        shared.note_names(tracker, f"{_place.directory}/{SHARED}")


def _write(path: str, data: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(data)


def prepare() -> None:
    """In the fork server, once: all that need not be done in each child."""
    for number in STOPS:
        signal.signal(number, _signals.received)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    actions = dict.fromkeys(STARTS_PROCESSES, _write_module) | dict.fromkeys(shared.TRACKERS, _note_names)
    sys.meta_path.insert(0, AtImport({"logging": _set_up_logging, **actions}))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    _rehearse()


REHEARSALS = 20
"""More than Python needs to specialize the code."""


def _rehearse() -> None:
    """Run a job that does nothing, several times, where the children are forked from.

    Python learns by it (the first compilation in a process costs 2 ms more than the next, code is specialized after
    some calls, attributes are found in a cache) and what it learns it writes down: here once, and not in each child.
    """
    ours, theirs = _socket.socketpair()
    arguments = sys.argv
    code = "class Rehearsal(CronJobBase):\n    def execute(self):\n        return None\n"
    request: dict[str, Any] = {
        "execution_id": 0,
        "job_id": 0,
        "job_name": "",
        "version": 0,
        "code": code,
        "compiled": None,
        "scheduled_time": "2000-01-01T00:00:00+00:00",
        "attempt": 1,
        "previous_status": None,
        "memory_limit_mb": None,
        "cpu_limit_seconds": None,
        "parameters": "{}",
        "state": "{}",
        "secrets": "{}",
        "hidden": [],
    }
    gc.freeze()  # what the end of a run looks through is its own
    for _ in range(REHEARSALS):
        theirs.send(encode_request(request))
        channel = Channel(ours.fileno())
        _run(channel, channel.request())
        theirs.recv(1 << 12)
        request["compiled"] = marshal.dumps(compile(code, "", "exec"))
    ours.close()
    theirs.close()
    sys.argv = arguments
    del sys.modules[MODULE]
    linecache.clearcache()
    hide_memory(True)


def main(control: int, door: str, directory: str) -> NoReturn:
    """Run the job whose request arrives on `control` in `directory`, report how it ended and leave the process.

    `sys.exit()` and `sys.exit(0)` inside the job complete it, with no result; any other status is a failure.
    The run ends when its threads have ended (daemons aside) and its exit handlers have run, as any program.
    """
    exit_code = 1
    try:
        channel = Channel(control, door)
        request = channel.request()
        _place.directory = directory + CODE
        _signals.install()
        gc.freeze()  # what has come up since the fork server froze its own
        gc.enable()
        exit_code = _run(channel, request)
    except EOFError:
        pass  # the worker is gone, and the fork server is about to end this process
    except BaseException:
        traceback.print_exc()
        _flush()
    finally:
        os._exit(exit_code)


def _run(channel: Channel, request: dict[str, Any]) -> int:
    run = _describe(request, channel)
    hide_memory(bool(run.secrets))
    result, tear_down_error = None, None
    job, error = _signals.attempt(lambda: _create(request, run, channel))
    if job is not None:
        result, error = _signals.attempt(lambda: _work(job))
    if os.getpid() != channel.pid:
        return _leave_as_copy(error)
    if job is not None:
        # Cleaning up is what a stop is to make room for: it does not stop that, the end of the grace does.
        _, tear_down_error = _signals.attempt(job.tear_down, interruptible=False)
    _, exit_error = _signals.attempt(_finish)
    gc.disable()  # it may finalize a file before the one that writes into it: they are written out first
    _lift_memory_limit(request)
    errors = [found for found in (error, tear_down_error, exit_error) if found is not None]
    try:
        report, exit_code = _ending(errors, result, run, request)
    except BaseException as own:  # an exception class of the job's that cannot even be looked at
        report, exit_code = {"end": "failed", "error": _headline(own)}, 1
    _forget_frames(*errors)
    job = result = error = tear_down_error = exit_error = None
    errors.clear()
    _finalize()
    try:
        if report == PLAIN_END:
            channel.write(b'\n{"end": "completed", "at": %f}\n' % boot_time())
        else:
            channel.tell({**report, "at": boot_time()})
    except OSError:
        return UNTOLD
    return exit_code


def _describe(request: dict[str, Any], channel: Channel) -> api.Run:
    slot = request["scheduled_time"]
    scheduled_time = None
    if slot is not None:
        scheduled_time = datetime.fromisoformat(slot)
        scheduled_time = scheduled_time.replace(tzinfo=scheduled_time.tzinfo or UTC)
    return api.Run(
        job=api.JobInfo(
            request["job_id"], request["job_name"], request["version"], _undump(request["parameters"])
        ),
        execution=api.ExecutionInfo(
            request["execution_id"], scheduled_time, request["attempt"], request["previous_status"]
        ),
        state=_undump(request["state"]),
        secrets=_undump(request["secrets"]),
        worker=channel,
    )


def _create(request: dict[str, Any], run: api.Run, channel: Channel) -> api.CronJobBase:
    filename = f"<job {request['job_id']} v{request['version']}>"
    sys.argv = [filename]
    _place.filename, _place.source = filename, request["code"]
    _limit_cpu(request["cpu_limit_seconds"])
    _limit_memory(request["memory_limit_mb"])
    api.enter(run)
    _hidden[:] = request["hidden"]
    source = request["code"]
    # With its source in linecache a stack trace shows the lines. No modification time: never looked up on disk.
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    return _load(_compile(request, filename, channel), filename)()


def _compile(request: dict[str, Any], filename: str, channel: Channel) -> types.CodeType:
    """The code object; compiled here, where hostile source can harm nobody else, and then kept by the worker.

    Compiling takes milliseconds for a hundred lines, reading the result a hundredth of that.
    """
    if request["compiled"] is not None:
        kept: types.CodeType = marshal.loads(request["compiled"])
        return kept
    code = compile(request["code"], filename, "exec", dont_inherit=True)
    channel.tell({"compiled": marshal.dumps(code).hex()})
    return code


def _load(code: types.CodeType, filename: str) -> type[api.CronJobBase]:
    module = types.ModuleType(MODULE)
    module.__file__ = filename
    scope = vars(module)
    scope.update(
        CronJobBase=api.CronJobBase,
        PermanentFailure=api.PermanentFailure,
        SkipRun=api.SkipRun,
        __name__=MODULE,
    )
    sys.modules[MODULE] = module
    exec(code, scope)
    return _find_class(scope)


def _find_class(scope: dict[str, Any]) -> type[api.CronJobBase]:
    found = {
        value
        for value in scope.values()
        if isinstance(value, type) and issubclass(value, api.CronJobBase) and value.__module__ == MODULE
    }
    # A class that another one extends is its base, not a job.
    jobs = [value for value in found if not any(value in other.__mro__[1:] for other in found)]
    if not jobs:
        raise api.PermanentFailure("the code has no class that extends CronJobBase")
    if len(jobs) > 1:
        names = ", ".join(sorted(value.__name__ for value in jobs))
        raise api.PermanentFailure(f"the code has several classes that extend CronJobBase: {names}")
    return jobs[0]


def _work(job: api.CronJobBase) -> Any:
    _signals.check()
    job.set_up()
    return job.execute()


def _finish() -> None:
    """What the interpreter does before it ends, without the slow rest of it."""
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()
    atexit._run_exitfuncs()


def _finalize() -> None:
    """What the interpreter does at its end to what nobody closed, in the cases that matter: files are written out.

    The rest of the interpreter's end is slow, and may crash in somebody's library.
    """
    alone = len(sys._current_frames()) == 1  # a daemon thread must not see its module vanish
    if alone and (module := sys.modules.get(MODULE)) is not None:
        _let_go(vars(module))
    _close_files()
    if alone:
        gc.collect(2 if gc.get_objects(2) else 1)  # the last would touch, and so copy, what few runs need
    _flush()


def _let_go(scope: dict[str, Any]) -> None:
    """Drop the module's values one after the other, so that each is finalized before what it is made of.

    Its functions, classes and modules stay: finalizers need them.
    """
    for name, value in list(scope.items()):
        if not isinstance(value, _STAYS):
            scope[name] = None


_STAYS = (types.ModuleType, types.FunctionType, type)


def _forget_frames(*errors: BaseException | None) -> None:
    """Let go of what the functions that failed still hold: files that end with their last use, above all."""
    seen = set()
    waiting = [*errors]
    while waiting:
        error = waiting.pop()
        if error is not None and id(error) not in seen:
            seen.add(id(error))
            error.__traceback__ = None
            waiting += [error.__cause__, error.__context__, *getattr(error, "exceptions", ())]


def _close_files() -> None:
    """Write out every file that is still open, the outermost layer first: text, compression, bytes."""
    texts, others, buffers = [], [], []
    # By their types alone: an object of the job's may answer for itself, with anything.
    for item in [found for found in gc.get_objects() if issubclass(type(found), _io._IOBase)]:
        kind = type(item)
        if issubclass(kind, _io.TextIOWrapper):
            texts.append(item)
        elif issubclass(kind, _io.BufferedWriter | _io.BufferedRandom):
            buffers.append(item)
        elif kind.__module__ != "_io":
            others.append(item)
    for file in (*texts, *others, *buffers):
        try:
            if not file.closed:
                file.close() if file in others else file.flush()
        except Exception:
            traceback.print_exc()  # a full disk, say: where nobody looks for it otherwise
    _libc.fflush(None)  # what libraries in C have written


def _leave_as_copy(error: BaseException | None) -> int:
    """A forked copy of the job came back from `execute`. It ends here: the run is its parent's to report."""
    if error is not None and not isinstance(error, SystemExit):
        traceback.print_exception(error)
    _forget_frames(error)
    _finalize()
    if isinstance(error, SystemExit):
        return _exit_status(error)
    return 0 if error is None else 1


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        try:
            stream.flush()  # type: ignore[union-attr]
        except Exception:
            pass  # the job closed or replaced it


# How a run ended


def _ending(
    errors: list[BaseException], result: Any, run: api.Run, request: dict[str, Any]
) -> tuple[dict[str, Any], int]:
    failures = [error for error in errors if not _is_peaceful(error)]
    if failures:
        return _failure(failures, request)
    for error in errors:
        if isinstance(error, api.SkipRun):
            return {"end": "skipped", "reason": error.reason}, 0
    try:
        after = dump(run.state)
    except (TypeError, ValueError, RecursionError) as error:
        return {"end": "failed", "error": f"self.state cannot be kept: {error}"}, 1
    if len(after) > KEPT:
        problem = f"self.state cannot be kept: it takes {len(after):,} characters of at most {KEPT:,}"
        return {"end": "failed", "error": problem}, 1
    report = {"end": "completed", "result": _presentable(result)}
    if after != request["state"]:
        report["state"] = run.state
    return report, 0


def _is_peaceful(error: BaseException) -> bool:
    return isinstance(error, api.SkipRun) or (isinstance(error, SystemExit) and _exit_status(error) == 0)


def _failure(failures: list[BaseException], request: dict[str, Any]) -> tuple[dict[str, Any], int]:
    error, exit_code = _cause(failures[0], request)
    trace = "\nThen, while the job was being torn down:\n\n".join(_trace(failure) for failure in failures)
    trace = hide(trace, _hidden)
    return {
        "end": "failed",
        "error": error,
        "stack_trace": trace if len(trace) <= KEPT else f"{trace[: KEPT // 2]}\n[...]\n{trace[-KEPT // 2 :]}",
        "permanent": any(isinstance(failure, api.PermanentFailure) for failure in failures),
    }, exit_code


def _cause(error: BaseException, request: dict[str, Any]) -> tuple[str, int]:
    """One line for people, and the exit status (128 + n for signal n, as a shell has it)."""
    if isinstance(error, SystemExit):
        status = _exit_status(error)
        said = "" if error.code is None or isinstance(error.code, int) else f": {_first_line(error.code)}"
        return f"exited with status {status}{said}", status
    if isinstance(error, Terminated):
        return "killed by signal 15 (SIGTERM)", 128 + signal.SIGTERM
    if isinstance(error, KeyboardInterrupt):
        return "killed by signal 2 (SIGINT)", 128 + signal.SIGINT
    if isinstance(error, CpuLimitReached):
        return cpu_limit_error(request["cpu_limit_seconds"]), 128 + signal.SIGXCPU
    if isinstance(error, MemoryError) and request["memory_limit_mb"]:
        return f"ran out of memory (limit {request['memory_limit_mb']} MB)", 1
    return _headline(error), 1


def cpu_limit_error(seconds: float | None) -> str:
    return f"used more than {seconds:g} s of CPU time" if seconds else "killed by signal 24 (SIGXCPU)"


def _exit_status(error: SystemExit) -> int:
    if error.code is None:
        return 0
    return error.code & 0xFF if isinstance(error.code, int) else 1


def _headline(error: BaseException) -> str:
    kind = type(error)
    known = kind.__module__ in ("builtins", MODULE, api.__name__)
    name = kind.__qualname__ if known else f"{kind.__module__}.{kind.__qualname__}"
    text = _first_line(error)
    return f"{name}: {text}" if text else name


def _first_line(value: object) -> str:
    try:
        text = hide(str(value), _hidden).strip()
    except Exception:
        return "(its message cannot be shown)"
    return text.partition("\n")[0][:1000]


def _trace(error: BaseException) -> str:
    """The stack trace as Python prints it, without the frames that lead from kytecron into the job."""
    shown = traceback.TracebackException.from_exception(error)
    waiting: list[traceback.TracebackException | None] = [shown]
    while waiting:
        part = waiting.pop()
        if part is not None:
            frames = [frame for frame in part.stack if not frame.filename.startswith(_PACKAGE)]
            part.stack = traceback.StackSummary.from_list(frames)
            waiting += [part.__cause__, part.__context__, *(part.exceptions or ())]
    return "".join(shown.format())


def _presentable(result: Any) -> Any:
    """The result as JSON can hold it: itself where it can, else its repr; text that is too long is cut."""
    if result is None:
        return None
    try:
        size = len(result) if isinstance(result, str) else len(dump(result))
        if size <= KEPT:
            return result
        text = result if isinstance(result, str) else dump(result)
    except (TypeError, ValueError, RecursionError):
        try:
            text = repr(result)
        except Exception:
            return f"<{type(result).__name__} that cannot be shown>"
    text = hide(text, _hidden)
    return text if len(text) <= KEPT else f"{text[:KEPT]}[... {len(text) - KEPT:,} characters cut ...]"


# Secrets. The worker masks all that it hears (output.Mask); what is cut here must be masked before: it would not know
# a half.


def hide(text: str, forms: Iterable[str]) -> str:
    """`text` with these spellings masked."""
    for form in forms:
        text = text.replace(form, MASKED)
    return text


_hidden: list[str] = []
"""The spellings of this run's secrets, the longest first; see output.spellings."""


def dump(value: Any) -> str:
    """The same text for the same value; refuses what is not JSON. Short work of what is mostly empty."""
    return "{}" if type(value) is dict and not value else json.dumps(value, sort_keys=True, allow_nan=False)


def _undump(text: str) -> Any:
    return {} if text == "{}" else json.loads(text)


# Limits


def _limit_cpu(seconds: float | None) -> None:
    if seconds:
        soft = int(-(-seconds // 1))  # whole seconds, rounded up
        _set_limit(resource.RLIMIT_CPU, soft, soft + CPU_GRACE_SECONDS)


def _limit_memory(megabytes: int | None) -> None:
    """The limit counts what the job adds: the interpreter's own address space is not the job's doing.

    Soft only, so that the end of a job that ran out can still be told.
    """
    if megabytes and sys.platform == "linux":
        with open("/proc/self/statm") as statm:
            own = int(statm.read().split()[0]) * resource.getpagesize()
        _set_limit(resource.RLIMIT_AS, own + (megabytes << 20), None)


def _lift_memory_limit(request: dict[str, Any]) -> None:
    if not request["memory_limit_mb"]:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def _set_limit(which: int, soft: int, hard: int | None) -> None:
    _, ceiling = resource.getrlimit(which)
    hard = ceiling if hard is None or (ceiling != resource.RLIM_INFINITY and hard > ceiling) else hard
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(which, (soft, hard))

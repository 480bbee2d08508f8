"""Scratch directories: one for each run, made ahead by the fork server and removed by a process of their own.

    <job directory>/
        home/               HOME of the jobs, where the worker's own cannot be written to
        runs-x7f.../        of one fork server, which holds a lock on it while it lives
            12/             working directory of one process
            12.code/        its job's code, for the processes that it starts (child.write_module)
            12.code/shared/ what these share by name (shared.py)
            s9/             the same of a run that is over: these names are to be removed, and it
            x9/             of a run that is over, or a piece of it: to be removed

Most runs touch nothing in theirs, and then the next one gets it: the inode says so. Its change time cannot be set, but
is that of the last tick of the kernel's clock; within a tick the modification time tells, which was set to MARK.

A job may leave anything: a hundred thousand files, directories that nobody may enter, links to elsewhere. So whoever
keeps deadlines renames only. The sweeper removes, keeps no deadlines, goes by descriptors and follows no link.

Standard library only: the fork server carries it.
"""

from __future__ import annotations

import os
import select
import signal
import time
from ctypes import CDLL

from .child import CODE, SHARED
from .shared import remove_noted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

HOUSE = "runs-"
OVER = "x"
NAMES = "s"

AT_ONCE = 5_000
"""Names that the sweeper reads before it removes what they name."""

MARK = 86_400 * 10**9
"""The modification time that a directory is given: the first new name in it has another."""

GATHER_SECONDS = 0.05
"""How long the sweeper lets more runs end before it looks: it should not wake for each of them."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Scratch:
    """The directories of one fork server, below `base`."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._count = 0
        self._known: dict[str, tuple[int, ...]] = {}
        self._untouched: list[str] = []
        self._wake_reader, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.sweeper: int | None = None
        self._path = ""
        self._house = -1
        try:
            self._enter_house()
        except OSError:
            pass  # `make` tries again, and says what is wrong to whoever wants to start a run

    def make(self) -> str:
        """The path of an empty directory, if nobody has put something into it: ask `is_as_made` when it is used.

        Raises OSError (a full disk, no inodes).
        """
        if self._untouched:
            return self._untouched.pop()
        self._count += 1
        name = str(self._count)
        if self._house < 0:
            self._enter_house()
        try:
            return self._make(name)
        except FileNotFoundError:  # a job has removed, or moved, the whole of it
            os.close(self._house)
            self._house = -1
            self._known.clear()
            self._enter_house()
            if self.sweeper is not None:
                os.kill(self.sweeper, signal.SIGKILL)  # the next one finds the new directory
            return self._make(name)

    def _make(self, name: str) -> str:
        os.mkdir(name, 0o700, dir_fd=self._house)
        os.utime(name, ns=(MARK, MARK), dir_fd=self._house)
        path = f"{self._path}/{name}"
        self._known[path] = _looks(os.lstat(path))
        return path

    def is_as_made(self, path: str) -> bool:
        """Whether nobody has touched a directory of ours, or anything in it."""
        try:
            return _looks(os.lstat(path)) == self._known.get(path)
        except OSError:
            return False

    def keep(self, path: str) -> None:
        """Of a run that is over and has touched nothing: the next one gets its directory."""
        self._untouched.append(path)

    def give_up(self, path: str) -> None:
        """Of a run that is over, or never came: have the sweeper remove its directory, once it is woken."""
        self._known.pop(path, None)
        name = path.rpartition("/")[2]
        try:
            os.rename(name, OVER + name, src_dir_fd=self._house, dst_dir_fd=self._house)
        except OSError:
            pass  # removed by its job, or out of our hands until the next start

    def give_up_names(self, path: str) -> bool:
        """Of a run whose processes are gone: whether the sweeper has names to remove that they shared."""
        name = path.rpartition("/")[2]
        try:
            os.rename(f"{name}{CODE}/{SHARED}", NAMES + name, src_dir_fd=self._house, dst_dir_fd=self._house)
        except OSError:
            return False
        return True

    def has_names(self, path: str) -> bool:
        """Whether the sweeper has not removed them yet."""
        try:
            os.lstat(NAMES + path.rpartition("/")[2], dir_fd=self._house)
        except OSError:
            return False
        return True

    def wake_sweeper(self) -> None:
        """Have it remove what is marked."""
        try:
            os.write(self._wake_writer, b"\0")
        except BlockingIOError:
            pass  # it has been told often enough

    def start_sweeper(self, become: Callable[[], object]) -> None:
        """Fork the sweeper; `become` makes a process of its own of the child. Without one nothing is removed."""
        if self._house < 0:
            return
        try:
            self.sweeper = os.fork()
        except OSError:
            self.sweeper = None
            return
        if self.sweeper == 0:
            try:
                become()
                self._sweep_for_ever()
            finally:
                os._exit(1)

    def descriptors(self) -> tuple[int, int]:
        """What the sweeper needs of the fork server's descriptors: the directory and the pipe that wakes it."""
        return self._house, self._wake_reader

    def close(self) -> None:
        """Every run is over: let the sweeper remove what is left, and end."""
        os.close(self._wake_writer)

    def _enter_house(self) -> None:
        """Make a directory that no sweeper of another takes for one of the dead: it is locked while this lives."""
        while True:
            path = f"{self._base}/{HOUSE}{os.urandom(6).hex()}"
            os.makedirs(path, 0o700)
            house = os.open(path, _DIRECTORY)
            if _lock(house) and _is_linked(path, house):
                break
            os.close(house)
        self._path = path
        self._house = house

    # The sweeper

    def _sweep_for_ever(self) -> NoReturn:
        os.nice(10)
        stubborn: set[str] = set()
        _remove_marked(self._house, stubborn)
        self._remove_houses_of_the_dead()
        while _was_woken(self._wake_reader):
            _remove_marked(self._house, stubborn)
        # The fork server has ended.
        _remove_house(self._base, self._path.rpartition("/")[2], self._house)
        os._exit(0)

    def _remove_houses_of_the_dead(self) -> None:
        own = self._path.rpartition("/")[2]
        for name in os.listdir(self._base):
            if not name.startswith(HOUSE) or name == own:
                continue
            try:
                house = os.open(f"{self._base}/{name}", _DIRECTORY)
            except OSError:
                continue
            if _lock(house):
                _remove_house(self._base, name, house)
            os.close(house)


def _looks(status: os.stat_result) -> tuple[int, ...]:
    """What of a directory changes when something in it does."""
    return status.st_ino, status.st_mode, status.st_ctime_ns, status.st_mtime_ns


_LOCK_EX, _LOCK_NB = 2, 4


def _lock(directory: int) -> bool:
    # The module fcntl would cost the mapping of one more library at every fork.
    return bool(CDLL(None).flock(directory, _LOCK_EX | _LOCK_NB) == 0)


def _is_linked(path: str, directory: int) -> bool:
    """Whether `directory` still stands at `path`: a sweeper may have been quicker than its maker's lock."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(directory))
    except OSError:
        return False


def _was_woken(pipe: int) -> bool:
    """Wait until somebody writes; False when nobody can any more."""
    select.select([pipe], [], [])
    time.sleep(GATHER_SECONDS)
    return bool(os.read(pipe, 1 << 16))


def _remove_house(base: str, name: str, house: int) -> None:
    for entry in os.listdir(house):
        if entry.endswith(CODE):
            _take_names(house, entry)
    _remove_names(house)
    for entry in os.listdir(house):
        _move(house, entry, house)
    _remove_marked(house, set())
    try:
        os.rmdir(f"{base}/{name}")
    except OSError:
        pass  # something in it resists; the next start tries again


def _remove_marked(house: int, stubborn: set[str]) -> None:
    """Remove what is marked as over. What resists (a mount, a file that is immutable) is noted, and left alone then."""
    while True:
        _remove_names(house)
        marked = [name for name in os.listdir(house) if name.startswith(OVER) and name not in stubborn]
        if not marked:
            return
        for name in marked:
            if not _remove(house, name):
                stubborn.add(name)
            if name[len(OVER) :].isdecimal():
                _move(house, name[len(OVER) :] + CODE, house)


def _take_names(house: int, code: str) -> None:
    """Mark what a run has shared by name, of which its fork server saw no end."""
    try:
        os.rename(f"{code}/{SHARED}", NAMES + code.removesuffix(CODE), src_dir_fd=house, dst_dir_fd=house)
    except OSError:
        pass  # most share nothing


def _remove_names(house: int) -> None:
    """Remove what the processes of runs that are over have shared by name, and nobody has removed."""
    for name in os.listdir(house):
        if name.startswith(NAMES) and name[len(NAMES) :].isdecimal():
            remove_noted(house, name)
            _move(house, name, house)


def _remove(house: int, name: str) -> bool:
    """Remove one entry of `house`. Its directories are moved up and marked, so no depth is too deep."""
    if _unlink(house, name):
        return True
    directory = _open(house, name)
    if directory is None:
        return False
    try:
        while entries := _some_entries(directory):
            gone = [_unlink(directory, entry) or _move(directory, entry, house) for entry in entries]
            if not any(gone):
                break
    finally:
        os.close(directory)
    return _unlink(house, name)


def _unlink(directory: int, name: str) -> bool:
    """Remove a file, a link or an empty directory."""
    try:
        os.unlink(name, dir_fd=directory)
        return True
    except FileNotFoundError:
        return True
    except OSError:
        pass  # a directory, most likely
    try:
        os.rmdir(name, dir_fd=directory)
        return True
    except OSError:
        return False


def _move(source: int, name: str, house: int) -> bool:
    """Mark an entry as over, in `house`."""
    marked = OVER + os.urandom(8).hex()
    for attempt in (1, 2):
        try:
            os.rename(name, marked, src_dir_fd=source, dst_dir_fd=house)
            return True
        except PermissionError:
            if attempt == 2 or (directory := _open(source, name)) is None:
                return False
            os.close(directory)  # opening it has made it writable
        except OSError:
            return False
    return False


def _open(directory: int, name: str) -> int | None:
    """Open a directory whatever its mode is, and let its owner do all in it.

    None when it is none, or where something is mounted: what is in there is not the run's.
    """
    try:
        handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return None
    try:
        if _mount_of(handle) != _mount_of(directory):
            return None
        os.chmod(f"/proc/self/fd/{handle}", 0o700)  # through the handle: the name may be a link by now
        return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    finally:
        os.close(handle)


def _mount_of(handle: int) -> bytes:
    """Which mount a descriptor is on. The device does not tell: one filesystem can be mounted into itself."""
    info = os.open(f"/proc/self/fdinfo/{handle}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(info, 1 << 10).partition(b"mnt_id:")[2].split()[0]
    finally:
        os.close(info)


def _some_entries(directory: int) -> list[str]:
    names = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                names.append(entry.name)
                if len(names) == AT_ONCE:
                    break
    except OSError:
        pass
    return names

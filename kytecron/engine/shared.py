"""What the processes of a run share by name: noted while the run is on, and removed when it is over.

Python leaves that to a process, a resource tracker, which a job can kill. So each name is noted as an entry of a
directory, under the name that it has in /dev/shm.

Standard library only: jobs, the interpreters that they start, and the sweeper carry it.
"""

from __future__ import annotations

import importlib
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

TRACKERS = (
    "multiprocessing.resource_tracker",
    "multiprocess.resource_tracker",
    "loky.backend.resource_tracker",
    "joblib.externals.loky.backend.resource_tracker",
)
"""Modules that whatever is shared is registered with."""

PREFIXES = {"shared_memory": "", "semaphore": "sem.", "semlock": "sem."}
"""How the names in /dev/shm begin, by what is registered."""

PLACE = "/dev/shm"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def note_names(tracker: ModuleType, directory: str) -> None:
    """Have all that is registered with this module noted in `directory`, until it is unregistered."""
    register, unregister = tracker.register, tracker.unregister

    def noting(name: str, kind: str) -> None:
        if kind in PREFIXES:
            _note(directory, PREFIXES[kind] + name.lstrip("/"))
        register(name, kind)

    def forgetting(name: str, kind: str) -> None:
        unregister(name, kind)
        if kind in PREFIXES:
            _forget(directory, PREFIXES[kind] + name.lstrip("/"))

    tracker.register, tracker.unregister = noting, forgetting  # type: ignore[attr-defined]


def note_names_here(directory: str) -> None:
    """`note_names`, in an interpreter that a job has started, of every tracker that is in use there."""
    importlib.import_module(TRACKERS[0])
    for name in TRACKERS:
        if name in sys.modules:
            note_names(sys.modules[name], directory)


def _note(directory: str, name: str) -> None:
    for _ in range(2):
        try:
            os.close(os.open(f"{directory}/{name}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            return
        except FileNotFoundError:
            try:
                os.mkdir(directory, 0o700)
            except OSError:
                return  # the job has removed what is above; the tracker is there still
        except OSError:
            return


def _forget(directory: str, name: str) -> None:
    try:
        os.unlink(f"{directory}/{name}")
    except OSError:
        pass


def remove_noted(at: int, directory: str) -> None:
    """Remove what is noted in a directory below the open directory `at`, whose processes are gone, and the notes.

    What has changed after the directory was moved to where it is belongs to somebody else: names come again.
    """
    try:
        notes = os.open(directory, _DIRECTORY, dir_fd=at)
    except OSError:
        return
    try:
        shared = os.open(PLACE, _DIRECTORY)
    except OSError:
        os.close(notes)
        return
    try:
        since = os.fstat(notes).st_ctime_ns
        with os.scandir(notes) as entries:
            for entry in entries:
                _remove(shared, entry.name, since)
    except OSError:
        pass
    finally:
        os.close(notes)
        os.close(shared)


def _remove(shared: int, name: str, since: int) -> None:
    try:
        if os.stat(name, dir_fd=shared, follow_symlinks=False).st_ctime_ns <= since:
            os.unlink(name, dir_fd=shared)
    except OSError:
        pass  # gone: its process, or the tracker, has removed it

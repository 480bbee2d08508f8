"""What keeps a worker from starting runs, and what it claims meanwhile.

A worker's own troubles never cost a job its retries: what it cannot start it gives back, and claims less. Times are
in seconds on a monotonic clock, and passed in.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
RECOVERY_SECONDS = 5.0
"""Once something could be started again, as many runs as before may be on; twice as many each time this has passed."""


class Shortage:
    """The machine has no process, descriptor or memory for another run.

    Nothing is claimed for a pause, which grows while nothing at all can be started. Afterwards only so many runs are
    on at once as were when the last one was refused, and from the first that starts on more and more.
    """

    def __init__(self, concurrency: int) -> None:
        self._concurrency = concurrency
        self._reason: str | None = None
        self._pause = 0.0
        self._room = concurrency
        self._works_since: float | None = None
        self.until = -math.inf
        """Nothing is claimed before this moment."""

    def refused(self, reason: str, running: int, now: float) -> None:
        """A run could not be started while `running` others were on."""
        nothing_works = self._reason is not None and self._works_since is None
        self._pause = min(LONGEST_PAUSE, 2 * self._pause) if nothing_works else FIRST_PAUSE
        self._reason, self._room, self._works_since = reason, max(1, running), None
        self.until = now + self._pause

    def started(self, now: float) -> None:
        """A run has started."""
        if self._reason is not None and self._works_since is None:
            self._works_since = now

    def room(self, now: float) -> int:
        """How many runs may be on at once."""
        if self._reason is None:
            return self._concurrency
        if now < self.until:
            return 0
        if self._works_since is None:
            return min(self._concurrency, self._room)
        doublings = min(60.0, (now - self._works_since) / RECOVERY_SECONDS)
        return min(self._concurrency, int(self._room * 2**doublings))

    def reason(self, now: float) -> str | None:
        """Why runs were refused; None once there is room for all again."""
        return None if self.room(now) >= self._concurrency and self._works_since is not None else self._reason


@dataclass(slots=True)
class _Pause:
    reason: str
    seconds: float
    until: float


class PausedJobs:
    """Jobs that this worker cannot start, for want of the key to their secrets; others may have it."""

    def __init__(self) -> None:
        self._pauses: dict[int, _Pause] = {}

    @property
    def ids(self) -> Collection[int]:
        """The jobs whose runs are left to other workers."""
        return self._pauses.keys()

    def pause(self, job_id: int, reason: str, now: float) -> None:
        """Leave a job alone for a while, and longer each time."""
        before = self._pauses.get(job_id)
        seconds = min(LONGEST_PAUSE, 2 * before.seconds) if before else FIRST_PAUSE
        self._pauses[job_id] = _Pause(reason, seconds, now + seconds)

    def due(self, now: float) -> list[int]:
        """The jobs whose pause is over: to be tried again."""
        return [job_id for job_id, pause in self._pauses.items() if now >= pause.until]

    def lift(self, job_id: int) -> None:
        """The job can be started again."""
        del self._pauses[job_id]

    def reasons(self) -> list[str]:
        """Why, each reason once."""
        return list(dict.fromkeys(pause.reason for pause in self._pauses.values()))

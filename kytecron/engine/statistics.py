"""What a worker counts while it works, printed when it ends and shown on the workers page."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from ..core.states import UNSUCCESSFUL, Status
from ..core.statistics import success_rate

KEPT_LATENESS = 10_000


class Statistics:
    """Counters of one worker's life."""

    def __init__(self) -> None:
        self.cycles = 0
        self.executed = 0
        self.locks_acquired = 0
        self.locks_missed = 0
        self.leases_expired = 0
        self.endings: Counter[Status] = Counter()
        self._lateness: deque[float] = deque(maxlen=KEPT_LATENESS)

    def claimed(self, acquired: int) -> None:
        """A claim for work that was seen to be due came back with `acquired` runs; none: others were faster."""
        self.locks_acquired += acquired
        self.locks_missed += not acquired

    def started(self, lateness_seconds: float) -> None:
        """A run's process began this long after the run was due."""
        self.executed += 1
        self._lateness.append(max(0.0, lateness_seconds))

    def ended(self, status: Status) -> None:
        """A run ended."""
        self.endings[status] += 1

    def as_dict(self) -> dict[str, Any]:
        """All figures, with rates in per cent and lateness in milliseconds.

        A worker sees attempts, whose chains other workers may go on with: that is what its success rate is of.
        """
        failed = sum(self.endings[status] for status in UNSUCCESSFUL)
        claims = self.locks_acquired + self.locks_missed
        return {
            "cycles": self.cycles,
            "executed": self.executed,
            "completed": self.endings[Status.COMPLETED],
            "failed": failed,
            "cancelled": self.endings[Status.CANCELLED],
            "skipped": self.endings[Status.SKIPPED],
            "success_rate": success_rate(
                self.endings[Status.COMPLETED], self.endings[Status.COMPLETED] + failed
            ),
            "success_rate_of": "attempts",
            "locks_acquired": self.locks_acquired,
            "locks_missed": self.locks_missed,
            "leases_expired": self.leases_expired,
            "contention_rate": round(100 * self.locks_missed / claims, 1) if claims else 0.0,
            "lateness_ms": {f"p{share}": self._percentile(share) for share in (50, 95, 99)},
        }

    def _percentile(self, share: int) -> float | None:
        ordered = sorted(self._lateness)
        if not ordered:
            return None
        return round(1000 * ordered[min(len(ordered) - 1, len(ordered) * share // 100)], 1)

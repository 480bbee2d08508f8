"""What goes wrong again and again is told once, then ever more rarely."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_PAUSE_SECONDS = 60.0
LONGEST_PAUSE_SECONDS = 3600.0


@dataclass(slots=True)
class _Trouble:
    since: float
    tell_at: float
    pause: float
    times: int = 0
    """How often it came since it was last told."""


class Rarely:
    """Says when a trouble is to be told. Instants are seconds on any clock that only goes forward."""

    def __init__(self) -> None:
        self._troubles: dict[str, _Trouble] = {}

    def __bool__(self) -> bool:
        return bool(self._troubles)

    def due(self, what: str, now: float) -> str | None:
        """What to add to the line about `what`, which has just happened; None: it is not to be told now."""
        trouble = self._troubles.get(what)
        if trouble is None:
            self._troubles[what] = _Trouble(now, now + FIRST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS)
            return ""
        trouble.times += 1
        if now < trouble.tell_at:
            return None
        added = f" (for {now - trouble.since:.0f} s now, {trouble.times} times since the last line)"
        trouble.pause = min(LONGEST_PAUSE_SECONDS, trouble.pause * 2)
        trouble.tell_at, trouble.times = now + trouble.pause, 0
        return added

    def over(self, what: str, now: float) -> float | None:
        """How long `what` has lasted, now that it is over; None where it had not begun."""
        trouble = self._troubles.pop(what, None)
        return None if trouble is None else now - trouble.since

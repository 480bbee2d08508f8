"""A bound on what keeps a thread of the server for long: so many at once in this process, so many for one caller."""

from __future__ import annotations

import threading
from collections import Counter
from types import TracebackType
from typing import Self

from ..core.errors import Busy

RETRY_SECONDS = 5


class Seats:
    """`total` seats in this process, at most `each` of them for one caller.

    `what` names in the refusal what takes a seat, such as "requests that wait".
    """

    def __init__(self, total: int, each: int, what: str) -> None:
        self.total, self.each, self.what = total, each, what
        self._lock = threading.Lock()
        self._taken: Counter[str] = Counter()

    def take(self, caller: str) -> Seat:
        """A seat for `caller`, such as `token:7`, until it is left. Raises Busy when there is none."""
        with self._lock:
            if self._taken[caller] >= self.each:
                raise Busy(
                    f"You have {self.each} {self.what} here already, which is the most for one caller. "
                    f"Try again in {RETRY_SECONDS} seconds.",
                    RETRY_SECONDS,
                )
            if self._taken.total() >= self.total:
                raise Busy(
                    f"The server has {self.total} {self.what} already, which is the most at once. "
                    f"Try again in {RETRY_SECONDS} seconds.",
                    RETRY_SECONDS,
                )
            self._taken[caller] += 1
        return Seat(self, caller)

    def taken(self) -> int:
        """How many seats are taken now."""
        with self._lock:
            return self._taken.total()

    def _leave(self, caller: str) -> None:
        with self._lock:
            self._taken[caller] -= 1
            if not self._taken[caller]:
                del self._taken[caller]  # callers come and go: the table holds those who are here


class Seat:
    """One taken seat. Leaving it twice is no error: a response and its stream may both end."""

    def __init__(self, seats: Seats, caller: str) -> None:
        self._seats: Seats | None = seats
        self._caller = caller

    def leave(self) -> None:
        """Give the seat to the next caller."""
        seats, self._seats = self._seats, None
        if seats is not None:
            seats._leave(self._caller)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()


def waiting_seats(threads: int) -> Seats:
    """Seats for what waits in a process of so many threads: half of them, and half of those for one caller.

    The other half answers everybody else, however long the waiting takes.
    """
    total = max(1, threads // 2)
    return Seats(total, max(1, total // 2), "requests that wait or stream")

"""When a worker looks for work next, and which of several workers comes to it first. Decides only: no I/O, no clock.

Two clocks: `now` and other moments in seconds are on the worker's monotonic clock, instants on the database's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

TURN_SECONDS = 0.015
"""Workers come to a slot one after another, so far apart: all at once they would only be in each other's way."""
LAST_TURN_SECONDS = 0.1
"""The last of many comes no later than this."""
FRESH_SECONDS = 1.0
"""A slot that became due within this time and is locked is being served; after it, somebody has forgotten a lock."""

_GOLDEN = 0x9E3779B97F4A7C15
"""2 ** 64 by the golden ratio: its multiples, whatever the step between them, spread evenly over 2 ** 64."""


class Sight(NamedTuple):
    """What a look at the database told."""

    now: datetime
    slot: datetime | None
    """When the next slot is due."""
    run: datetime | None
    """When the next pending run is due."""
    due: int
    """How many runs were due, as far as they were counted."""


class Wants(NamedTuple):
    """What a worker would do if there were something to do."""

    slots: bool
    """Put slots into the ledger."""
    runs: bool
    """Claim and start runs."""


@dataclass(slots=True)
class Lookout:
    """What one worker expects, from one look to the next."""

    worker_id: str
    concurrency: int
    poll_seconds: float
    drains: bool = False
    """It works off what is due and ends: it leaves nothing to others."""

    crew: list[str] = field(default_factory=list)
    """The workers that do the same work, itself included, in the same order for all."""
    looked_at: float = 0.0
    look_by: float = 0.0
    """When to look again at the latest."""
    backlog: bool = False
    """Due runs were left over at the last look or claim."""
    slot_in: float = math.inf
    run_in: float = math.inf
    """Seconds from the last look until this worker comes to the next slot, and to the next pending run."""
    place: int = 0
    """In the order in which the crew comes to the next slot."""
    slot_late: float = 0.0
    """Seconds that a slot had been due at the last look."""
    left_to: int = 0
    """To so many workers before it this one left what was due at the last look."""

    def __post_init__(self) -> None:
        self.crew = self.crew or [self.worker_id]

    # -- what to do now --------------------------------------------------------------------------------------

    def wakes_at(self, wants: Wants) -> float:
        """Return when this worker has to do with slots or runs again, if nothing happens before."""
        return min(self.look_by, self.looked_at + self._due_in(wants))

    def must_look(self, now: float, wants: Wants) -> bool:
        """Return whether the last look is too old to go by."""
        since = now - self.looked_at
        others_had_time = len(self.crew) > 1 and since >= TURN_SECONDS
        return (
            now >= self.look_by
            or since >= self._due_in(wants)
            or (self.backlog and others_had_time and wants.runs)
        )

    def is_due(self, now: float, wants: Wants) -> bool:
        """Return whether there is something for this worker to do."""
        return self.backlog or self._due_in(wants) <= now - self.looked_at

    def slot_came(self, now: float) -> bool:
        """Return whether a slot has come that is this worker's first of all: it is served before another look."""
        came = self.place == 0 and 0 < self.slot_in <= now - self.looked_at
        if came:
            self.slot_in = self.slot_late = 0
        return came

    @property
    def counts(self) -> int:
        """How many due runs a look has to count: so many as would keep the whole crew busy."""
        return len(self.crew) * self.concurrency if len(self.crew) > 1 else 1

    def _due_in(self, wants: Wants) -> float:
        """Seconds from the last look to the next instant at which there is something for this worker."""
        # What is due already is either taken from the backlog or has to wait for free capacity.
        run_in = self.run_in if wants.runs and not self.backlog else math.inf
        return min(self.slot_in, run_in) if wants.slots else math.inf

    # -- what happened ---------------------------------------------------------------------------------------

    def saw(self, sight: Sight, began: float, ended: float) -> None:
        """A look, which took from `began` to `ended`, told `sight`."""
        by_chance = began - self.looked_at >= self.poll_seconds
        self.looked_at, self.look_by = began, began + self.poll_seconds
        self.slot_late = (sight.now - sight.slot).total_seconds() if sight.slot else 0.0
        self.place = self._place_at(sight.slot) if sight.slot else 0
        took = ended - began
        self.slot_in = self._comes_in(sight.slot, sight.now, took)
        self.run_in = self._comes_in(sight.run, sight.now, took)
        self.backlog = self.run_in == 0
        contended = self.backlog and not (by_chance or self.drains)
        self.left_to = self._enough_before(sight.due, sight.run) if contended and sight.run else 0
        if self.left_to:
            self.backlog, self.run_in = False, took + self._turn(self.left_to)

    def leaves_slots(self) -> None:
        """The slot that is due is for others to put into the ledger."""
        self.slot_in = math.inf

    def met_locked_slot(self, now: float) -> None:
        """The job whose slot is due is locked by somebody: no reason to spin."""
        self.slot_in = math.inf
        if self.slot_late < FRESH_SECONDS:
            self.look_by = now + self._turn(max(1, self.place))

    def claimed(self, count: int, room: int) -> None:
        """A claim for `room` runs brought `count`."""
        self.backlog = count == room
        if not count:
            self.run_in = math.inf  # somebody has them, or has them locked: no reason to spin

    def gave_back(self, until: float) -> None:
        """A run is due again that this worker gave back, and may take again from `until` on."""
        self.look_by = min(self.look_by, until)

    def look_now(self) -> None:
        """What this worker may take is more than before."""
        self.look_by = 0.0

    # -- turns -----------------------------------------------------------------------------------------------

    def _enough_before(self, due: int, since: datetime) -> int:
        """How many workers before this one have room enough for what is due, so that it leaves it to them; or none.

        Only for a moment: they may be busy. Whenever it comes back it counts half as many before it.
        """
        before = self.left_to // 2 if self.left_to else self._place_at(since)
        return before if due <= before * self.concurrency else 0

    def _comes_in(self, moment: datetime | None, now: datetime, took: float) -> float:
        """Seconds from a look, which took some, until this worker comes to what is due at `moment`."""
        if moment is None:
            return math.inf
        seconds = max(0.0, (moment - now).total_seconds())
        if not seconds:
            return 0
        # As late as it may be: served a moment too early there would be nothing to serve.
        return seconds + took + self._turn(self._place_at(moment))

    def _place_at(self, moment: datetime) -> int:
        return place(self.crew, self.worker_id, moment)

    def _turn(self, place: int) -> float:
        """Seconds after a slot at which the worker at `place` comes to it."""
        return min(place * TURN_SECONDS, place * LAST_TURN_SECONDS / len(self.crew))


def place(crew: Sequence[str], worker_id: str, moment: datetime) -> int:
    """Return a worker's place in the order in which `crew` comes to what is due at `moment`; the first is 0.

    Each is first equally often, whether such moments are a second, an hour or a day apart.
    """
    first = int(moment.timestamp()) * _GOLDEN % 2**64 * len(crew) >> 64
    return (crew.index(worker_id) + first) % len(crew)

"""Whether a worker is alive: by its own lease, unless it has stopped or is known to be gone."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from kytecron.core.workers import LIVING, WorkerState, lease_has_ended, state_of

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Said:
    """What a worker reported so many seconds ago."""

    ago: float = 0
    lease_seconds: float = 60
    draining: bool = False
    stopped_at: datetime | None = None
    gone_at: datetime | None = None

    @property
    def last_seen_at(self) -> datetime:
        return NOON - timedelta(seconds=self.ago)


@pytest.mark.parametrize(
    ("said", "state"),
    [
        (Said(), "alive"),
        (Said(ago=60), "alive"),
        (Said(ago=60.1), "silent"),
        (Said(ago=-5), "alive"),
        (Said(ago=299, lease_seconds=300), "alive"),
        (Said(ago=3, lease_seconds=2), "silent"),
        (Said(ago=59, draining=True), "draining"),
        (Said(ago=61, draining=True), "silent"),
        (Said(gone_at=NOON), "gone"),
        (Said(gone_at=NOON, draining=True), "gone"),
        (Said(ago=1000, gone_at=NOON), "gone"),
        (Said(ago=1000, stopped_at=NOON), "stopped"),
        (Said(stopped_at=NOON, gone_at=NOON), "stopped"),
    ],
)
def test_a_worker_lives_for_as_long_as_its_own_lease_says(said: Said, state: str) -> None:
    assert state_of(said, NOON) == state


def test_a_worker_that_lives_drains_or_does_not() -> None:
    assert {WorkerState.ALIVE, WorkerState.DRAINING} == LIVING


@pytest.mark.parametrize(("ends_in", "ended"), [(1, False), (0, False), (-0.001, True), (None, True)])
def test_a_lease_ends_after_its_last_moment_and_without_one_nobody_holds_the_run(
    ends_in: float | None, ended: bool
) -> None:
    until = None if ends_in is None else NOON + timedelta(seconds=ends_in)
    assert lease_has_ended(until, NOON) == ended

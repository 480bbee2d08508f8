"""Whether a worker is alive, and whether its lease of a run has ended: one rule each.

A worker is judged by what it last reported and what became known of it since.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol


class WorkerState(StrEnum):
    """What a worker is doing, as far as anybody knows."""

    ALIVE = "alive"
    DRAINING = "draining"
    """Alive; stops when its jobs have ended, and starts nothing."""
    SILENT = "silent"
    """It has not reported for as long as its own lease."""
    GONE = "gone"
    """Its process has ended without saying so, or its runs were taken over."""
    STOPPED = "stopped"


LIVING = frozenset({WorkerState.ALIVE, WorkerState.DRAINING})


class Report(Protocol):
    """What a worker last said of itself, and what others found out."""

    @property
    def last_seen_at(self) -> datetime: ...
    @property
    def lease_seconds(self) -> float: ...
    @property
    def draining(self) -> bool: ...
    @property
    def stopped_at(self) -> datetime | None: ...
    @property
    def gone_at(self) -> datetime | None: ...


def state_of(worker: Report, now: datetime) -> WorkerState:
    """Return the state of a worker at `now`, by the database's clock.

    It lives for as long as its last report and its own lease say, unless it has stopped or is known to be gone.
    """
    if worker.stopped_at is not None:
        return WorkerState.STOPPED
    if worker.gone_at is not None:
        return WorkerState.GONE
    if now - worker.last_seen_at > timedelta(seconds=worker.lease_seconds):
        return WorkerState.SILENT
    return WorkerState.DRAINING if worker.draining else WorkerState.ALIVE


def lease_has_ended(until: datetime | None, now: datetime) -> bool:
    """Return whether nobody holds a running run any more at `now`, by the database's clock: nor does one without lease.

    `store.models.lease_ended` is the same as a condition on rows.
    """
    return until is None or until < now

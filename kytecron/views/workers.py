"""Workers: their states, how much of them is in use, and what about them wants a look."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple, assert_never

from sqlalchemy.orm import Session

from ..core import words
from ..core.schedule import TZDATA_VERSION, tzdata_order
from ..core.workers import LIVING, WorkerState
from ..services import registry
from ..services.registry import VERSION, Known
from ..store.models import CronWorkerRecord
from .programs import names

LATE_RENEWALS = 3
"""A living worker that has missed so many reports of its own is told of."""


class Note(NamedTuple):
    """Something about a worker that wants a look: `text` completes the sentence that begins with its name."""

    text: str
    advice: str = ""
    since: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """A worker as it last reported, and what that means."""

    worker_id: str
    state: WorkerState
    sentence: str
    """What the state means: `Stops when its 2 runs have ended`."""
    notes: tuple[Note, ...]
    """Of one that has ended none."""
    host: str
    pid: int
    version: str
    tags: tuple[str, ...]
    capacity: int
    """Runs at once."""
    running: int
    clock_skew_ms: float
    tzdata: str
    lease_seconds: float
    renew_seconds: float
    started_at: datetime
    last_seen_at: datetime
    stopped_at: datetime | None
    gone_at: datetime | None
    statistics: dict[str, Any] | None
    trouble: str | None
    trouble_since: datetime | None
    trouble_jobs: list[int] | None
    """The jobs that it cannot start; None: all."""
    other_tzdata: bool
    """It is alive and has other time zones than whoever asks."""

    def for_programs(self) -> dict[str, Any]:
        """Return what programs are told, by the names that the JSON API has for it."""
        return {
            **{name: getattr(self, name) for name in PLAIN},
            "state": self.state,
            "tags": list(self.tags),
            "slots": self.capacity,
        }

    @property
    def living(self) -> bool:
        """Whether it is alive, draining or not."""
        return self.state in LIVING

    @property
    def seen_at(self) -> datetime:
        """When it was last heard of."""
        return self.stopped_at or self.last_seen_at


PLAIN = names(WorkerView, "state", "sentence", "notes", "tags", "capacity", "other_tzdata")
"""What a view takes from its row as it is."""


def workers(session: Session, now: datetime, within: timedelta | None = None) -> list[WorkerView]:
    """Return the workers that reported lately (all: None), those that have not stopped first, then the last seen."""
    return _views(registry.known(session, now, None if within is None else now - within), now)


def living(session: Session, now: datetime) -> list[WorkerView]:
    """Return the workers that are alive, the last seen first."""
    return _views(registry.living(session, now), now)


def _views(found: Sequence[Known], now: datetime) -> list[WorkerView]:
    newest = registry.newest_tzdata(one.worker for one in found if one.state is WorkerState.ALIVE)
    return [_view(one, now, newest) for one in found]


def _view(found: Known, now: datetime, newest_tzdata: str) -> WorkerView:
    row, state = found
    return WorkerView(
        state=state,
        sentence=_sentence(found, now),
        notes=tuple(_notes(row, now, newest_tzdata)) if found.living else (),
        tags=tuple(tag for tag in row.tags.split(",") if tag),
        capacity=row.slots,
        other_tzdata=found.living and row.tzdata != TZDATA_VERSION,
        **{name: getattr(row, name) for name in PLAIN},
    )


def _sentence(found: Known, now: datetime) -> str:
    row, state = found
    silent = _age(row, now)
    match state:
        case WorkerState.ALIVE:
            return "Takes runs"
        case WorkerState.DRAINING:
            has = f"its {words.count(row.running, 'run')} {'has' if row.running == 1 else 'have'} ended"
            return (
                f"Takes no more runs and stops when {has}" if row.running else "Takes no more runs and stops"
            )
        case WorkerState.SILENT:
            return f"Has not reported for {silent}; its lease is {_seconds(row.lease_seconds)}"
        case WorkerState.GONE:
            return "Its process has ended, or its runs were taken over"
        case WorkerState.STOPPED:
            return "Has stopped"
        case _:
            assert_never(state)


def _notes(row: CronWorkerRecord, now: datetime, newest_tzdata: str) -> Iterator[Note]:
    if row.trouble:
        yield Note(f"is in trouble: {row.trouble}", since=row.trouble_since)
    if now - row.last_seen_at > LATE_RENEWALS * timedelta(seconds=row.renew_seconds):
        often = _seconds(row.renew_seconds)
        yield Note(f"has not reported for {_age(row, now)}, and should every {often}", since=row.last_seen_at)
    yield from _tzdata(row.tzdata, newest_tzdata)
    if row.version != VERSION:
        yield Note(f"runs version {row.version}, here {VERSION}", "Restart it after an upgrade")


def _tzdata(its: str, newest: str) -> Iterator[Note]:
    older = tzdata_order(its) < tzdata_order(newest)
    plans = ": it plans no slots" if older else ""
    advice = "Only workers with the newest plan slots. Install the same requirements.txt everywhere"
    if tzdata_order(its) != tzdata_order(TZDATA_VERSION):
        yield Note(f"has tzdata {its or 'unknown'}, here {TZDATA_VERSION}{plans}", advice)
    elif older:
        yield Note(f"has tzdata {its}, another worker {newest}{plans}", advice)


def _age(row: CronWorkerRecord, now: datetime) -> str:
    return _seconds((now - row.last_seen_at).total_seconds())


def _seconds(seconds: float) -> str:
    return words.duration(max(0.0, seconds) * 1000)


@dataclass(frozen=True, slots=True)
class Workforce:
    """What some workers can take together, and how much of it is in use; those that take no more left out."""

    alive: int
    draining: int
    capacity: int
    """Runs at once."""
    busy: int


def workforce(found: Iterable[WorkerView]) -> Workforce:
    """Return what `found` can take together."""
    found = list(found)
    alive = [one for one in found if one.state is WorkerState.ALIVE]
    return Workforce(
        alive=len(alive),
        draining=sum(one.state is WorkerState.DRAINING for one in found),
        capacity=sum(one.capacity for one in alive),
        busy=sum(one.running for one in alive),
    )

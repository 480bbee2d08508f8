"""Jobs that wait for other jobs: no cycles, and may this slot run yet."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from kytecron.core.states import ENDED, Status

TEXT_LENGTH = 500
"""Characters of a reason or of what is waited for: as much as their columns hold."""


@dataclass(frozen=True, slots=True)
class ParentState:
    """What the rules need to know about one parent.

    `latest_*` tell of the chain that ended last, by its last attempt. By the time of its end and not by its
    slot: a slot that was skipped because an older run still went on ended before that run did.
    """

    job_id: int
    name: str
    enabled: bool = True
    dead: bool = False
    """In the dead letter queue."""
    deleted: bool = False
    active: bool = False
    """A chain for the child's slot or an older one is pending or running; waiting for a retry counts."""
    due_at_or_before_slot: bool = False
    """A slot at the child's or before it has come that is no row yet."""
    latest_status: Status | None = None
    latest_execution_id: int | None = None
    latest_completed_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """Run it. `used` are the parents' executions whose success it builds on."""

    used: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Waiting:
    """Not yet. `for_` completes the sentence "waits for ..."."""

    for_: str


@dataclass(frozen=True, slots=True)
class Skip:
    """Not at all, and why."""

    reason: str


def find_cycle(
    edges: Mapping[int, Collection[int]], job_id: int, parents: Collection[int]
) -> list[int] | None:
    """Return the shortest cycle that giving `job_id` these `parents` would close, or None.

    `edges` maps each job to its parents as stored; what it says of `job_id` itself is replaced. The path
    begins and ends with `job_id`, each job followed by one it would wait for.
    """
    child_of: dict[int, int] = {}
    layer = [job_id]
    while layer:
        found: list[int] = []
        for job in layer:
            for parent in parents if job == job_id else edges.get(job, ()):
                if parent == job_id:
                    return [*_path(child_of, job_id, job), job_id]
                if parent not in child_of:
                    child_of[parent] = job
                    found.append(parent)
        layer = found
    return None


def gate(
    parents: Sequence[ParentState],
    *,
    slot: datetime,
    deadline: datetime,
    now: datetime,
    require_fresh: bool = False,
    last_success: datetime | None = None,
) -> Ready | Waiting | Skip:
    """Say whether the slot of a job that keeps its own clock may run.

    It waits until `deadline` for parents that have something to do at or before `slot`, then it is judged by
    how each parent's latest chain ended. `last_success` is when this job's last successful run started: with
    `require_fresh` every parent must have completed after that.
    """
    if busy := [parent for parent in parents if _busy(parent)]:
        if now < deadline:
            return Waiting(_list(f"{_name(parent)} {_awaited(parent)}" for parent in busy))
        return Skip(_cut(f"waited too long for {_list(_name(parent) for parent in busy)}"))
    since = last_success if require_fresh else None
    if objections := [why for parent in parents if (why := _objection(parent, slot, since))]:
        return Skip(_list(objections))
    return Ready(_executions(parents))


def trigger_ready(parents: Sequence[ParentState], own_last_start: datetime | None) -> Ready | Waiting:
    """Say whether a job that is started by its parents may start now.

    Each parent's latest chain must have completed after `own_last_start`, which is when this job's newest
    run started, or was queued if it has not started yet; None if there never was one.
    """
    missing = [parent for parent in parents if not _completed_since(parent, own_last_start)]
    if missing:
        return Waiting(_list(f"{_name(parent)} to complete" for parent in missing))
    return Ready(_executions(parents))


def _path(child_of: Mapping[int, int], start: int, end: int) -> list[int]:
    backwards = [end]
    while backwards[-1] != start:
        backwards.append(child_of[backwards[-1]])
    return backwards[::-1]


def _busy(parent: ParentState) -> bool:
    if parent.deleted:
        return False
    # A run goes on although its job was disabled meanwhile; a slot of a disabled job never becomes one.
    return parent.active or (parent.due_at_or_before_slot and parent.enabled and not parent.dead)


def _awaited(parent: ParentState) -> str:
    return "to end" if parent.active else "to start"


def _objection(parent: ParentState, slot: datetime, since: datetime | None) -> str | None:
    problem = _problem(parent, slot, since)
    return problem and f"{_name(parent)} {problem}"


def _problem(parent: ParentState, slot: datetime, since: datetime | None) -> str | None:
    if parent.deleted:
        return "was deleted"
    if parent.dead:
        return "is in the dead letter queue"
    # A parent that disabled itself with its last run (max_runs, ends_at) has still done what was waited for.
    if not parent.enabled and not _completed_since(parent, slot):
        return "is disabled"
    if parent.latest_status is None:
        return "has never run"
    if parent.latest_status != Status.COMPLETED:
        return ENDED.get(parent.latest_status, "has not ended")
    if since is not None and not _completed_since(parent, since):
        return f"has not completed again since {_time(since)}, when this job last ran with success"
    return None


def _completed_since(parent: ParentState, instant: datetime | None) -> bool:
    """Whether the latest chain completed, and after `instant`."""
    if parent.deleted or parent.latest_status != Status.COMPLETED:
        return False
    if instant is None:
        return True
    return parent.latest_completed_at is not None and parent.latest_completed_at > instant


def _executions(parents: Sequence[ParentState]) -> tuple[int, ...]:
    return tuple(p.latest_execution_id for p in parents if p.latest_execution_id is not None)


def _name(parent: ParentState) -> str:
    name = " ".join(parent.name.split())
    return f'"{name if len(name) <= 60 else name[:59] + "…"}"'


def _list(texts: Iterable[str]) -> str:
    """Join a few texts for people; of many, the first three and how many more."""
    named = list(texts)
    if len(named) > 4:
        named[3:] = [f"and {len(named) - 3} more"]
    return _cut(", ".join(named))


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_LENGTH else text[: TEXT_LENGTH - 1] + "…"


def _time(instant: datetime) -> str:
    return f"{instant.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"

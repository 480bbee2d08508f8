"""What an execution can be, which moves are allowed, and the two values that travel with a run.

    pending --claim--> running --settle--> completed | failed | timeout | lost | cancelled
    pending --settle--> skipped | cancelled
    running --given back--> pending, while no process of this claim has started

`lost` means the lease ran out: the worker vanished. A final state never changes.
The same drawing, with who makes each move, is in docs/architecture.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple


class Status(StrEnum):
    """The states of one execution row."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    TIMEOUT = "timeout"
    LOST = "lost"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"


ACTIVE = frozenset({Status.PENDING, Status.RUNNING})
FINAL = frozenset(Status) - ACTIVE
UNSUCCESSFUL = frozenset({Status.FAILED, Status.TIMEOUT, Status.LOST})
"""The endings that count as a failure: they are retried, counted and told."""

ENDED = {
    Status.COMPLETED: "completed",
    Status.FAILED: "failed",
    Status.TIMEOUT: "ran into its time limit",
    Status.LOST: "was lost with its worker",
    Status.CANCELLED: "was cancelled",
    Status.SKIPPED: "was skipped",
}
"""How a run ended, as the phrase that follows its name."""

MOVES: dict[Status, frozenset[Status]] = {
    Status.PENDING: frozenset({Status.RUNNING, Status.SKIPPED, Status.CANCELLED}),
    # SkipRun, raised by the job itself, is the one way from running to skipped. Pending: given back, not started.
    Status.RUNNING: FINAL | {Status.PENDING},
    **{status: frozenset() for status in FINAL},
}


def sources(new: Status) -> tuple[Status, ...]:
    """Return the states that an execution may become `new` from: what every statement that moves one asks for."""
    return tuple(old for old, following in MOVES.items() if new in following)


class Origin(StrEnum):
    """Why an execution exists."""

    SCHEDULE = "schedule"
    MANUAL = "manual"
    TRIGGER = "trigger"  # a parent completed
    BACKFILL = "backfill"
    RERUN = "rerun"


@dataclass(frozen=True, slots=True)
class Claim:
    """Proof that `locked_by` holds attempt `attempt` of an execution: the fence of every later write.

    `token` was drawn for this claim alone. The rest can come true again: a run that was given back may be claimed
    by the same worker, and a database restored from a backup gives the same ids to other runs.
    """

    execution_id: int
    job_id: int
    locked_by: str
    attempt: int
    token: int


class StopRequest(NamedTuple):
    """Somebody asked for a run to be stopped."""

    reason: str
    release: bool
    """It is to be given up as lost, and tried again; otherwise it is cancelled."""


@dataclass(slots=True)
class Outcome:
    """How one run ended, as its worker saw it. Durations are in milliseconds, memory in MiB."""

    status: Status
    """PENDING: no process of this claim has started, and the run is given back."""
    error: str | None = None
    """One line for people, for example `killed by signal 9 (SIGKILL)`."""
    stack_trace: str | None = None
    exit_code: int | None = None
    permanent: bool = False
    """The job raised PermanentFailure: no retries."""
    interrupted: bool = False
    """The run was cut short by its worker's own shutdown, not by the job: it uses up no retry."""
    skipped_reason: str | None = None
    result: Any = None
    state: dict[str, Any] | None = None
    """The job's saved state, only when the run completed and changed it."""
    duration_ms: int | None = None
    cpu_ms: int | None = None
    memory_peak_mb: float | None = None
    output: str = ""
    """Output that was not yet appended while the run went on."""
    output_bytes: int = 0
    """All that the job printed, before cutting."""
    output_replaces_tail: bool = False
    """More was printed than is kept: `output` replaces the live tail (see lifecycle.settle)."""

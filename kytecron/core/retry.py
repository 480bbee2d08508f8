"""What happens after a run has ended: nothing, another attempt, or the dead letter queue."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import assert_never

from kytecron.core.choices import RetryStrategy
from kytecron.core.states import FINAL, UNSUCCESSFUL, Outcome, Status

LONGEST_DELAY = timedelta(days=366)
"""No row, however wrong, makes a delay that a datetime cannot hold."""

REASON_LENGTH = 500
"""Characters of a dead letter's reason; the run itself keeps the whole error."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A job's retry settings, as its row says them. Delays are in seconds."""

    strategy: str = RetryStrategy.EXPONENTIAL
    max_retries: int = 3
    delay_seconds: int = 60
    max_delay_seconds: int = 3600


@dataclass(frozen=True, slots=True)
class Done:
    """The chain has ended and the job goes on."""


@dataclass(frozen=True, slots=True)
class RetryAt:
    """The chain goes on with another attempt, due at `when`. `note` names a setting nobody understood."""

    when: datetime
    note: str | None = None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """The chain has ended and so has the job, until somebody recovers it. `reason` is for people."""

    reason: str


Decision = Done | RetryAt | DeadLetter


def decide(
    policy: Policy, attempt: int, outcome: Outcome, now: datetime, *, interruptions: int = 0
) -> Decision:
    """Say what follows `outcome`, which ended attempt `attempt` (0 is the first) at `now`.

    `interruptions` of the attempts before it were cut short by their workers' shutdown, and do not count.
    Raises ValueError for an outcome that is not an ending.
    """
    if outcome.status not in FINAL:
        raise ValueError(f"{outcome.status} is not an ending")
    if outcome.status not in UNSUCCESSFUL:
        return Done()
    if outcome.interrupted:
        # Our own shutdown cut the run short: it says nothing about the job, so no delay and no dead letter.
        return RetryAt(now)
    if outcome.permanent:
        return DeadLetter(_shorten(f"permanent failure: {_cause(outcome)}"))
    counted = attempt - interruptions
    if counted < policy.max_retries:
        return RetryAt(now + delay(policy, counted), _note(policy))
    return DeadLetter(_shorten(f"{_how_often(counted)}: {_cause(outcome)}"))


def delay(policy: Policy, attempt: int) -> timedelta:
    """How long the chain waits after attempt `attempt` failed. An unknown strategy counts as exponential."""
    match RetryStrategy.of(policy.strategy):
        case RetryStrategy.IMMEDIATE:
            return timedelta(0)
        case RetryStrategy.FIXED:
            return _seconds(policy.delay_seconds)
        case RetryStrategy.EXPONENTIAL:
            # 2 ** 64 exceeds every ceiling; a larger exponent would only cost memory.
            growing = policy.delay_seconds * 2 ** min(max(attempt, 0), 64)
            return _seconds(min(growing, policy.max_delay_seconds))
        case never:
            assert_never(never)


def _seconds(seconds: int) -> timedelta:
    return timedelta(seconds=min(max(seconds, 0), LONGEST_DELAY.total_seconds()))


def _note(policy: Policy) -> str | None:
    if policy.strategy in set(RetryStrategy):
        return None
    known = ", ".join(RetryStrategy)
    return f"retry_strategy {policy.strategy!r} is not one of {known}: taken as {RetryStrategy.EXPONENTIAL}"


def _how_often(attempt: int) -> str:
    return "failed once, with no retries" if attempt <= 0 else f"failed {attempt + 1} times, the last"


def _cause(outcome: Outcome) -> str:
    if error := " ".join((outcome.error or "").split()):
        return error
    if outcome.status is Status.TIMEOUT:
        return "it ran longer than its time limit"
    if outcome.status is Status.LOST:
        return "its worker vanished"
    return "no message was given"


def _shorten(text: str) -> str:
    return text if len(text) <= REASON_LENGTH else text[: REASON_LENGTH - 1] + "…"

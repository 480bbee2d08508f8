"""The words that a column holds one of: what a job's settings choose from, who may do what, what a message is.

Stored and sent as they are. A new word goes in here; then mypy, at every `assert_never`, and
tests/core/test_choices.py, at every table that is keyed by one, name the places where it has to be decided on.
What an execution can be, and why it exists, is in `states`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Literal, Self


class Policy(StrEnum):
    """A choice whose first word stands for every word that nobody knows: a row written by hand may hold anything."""

    @classmethod
    def of(cls, word: object) -> Self:
        """Return the member that `word` names, or the first one."""
        known = cls._value2member_map_.get(word)
        return next(iter(cls)) if known is None else known  # type: ignore[return-value]


class ScheduleType(StrEnum):
    """How a job says when it runs."""

    CRON = "cron"
    INTERVAL = "interval"
    DAILY = "daily"
    WEEKLY = "weekly"
    MONTHLY = "monthly"
    MANUAL = "manual"


class IntervalAnchor(Policy):
    """What an interval is counted from."""

    SCHEDULE = "schedule"
    COMPLETION = "completion"


class OverlapPolicy(Policy):
    """What becomes of a slot while the previous run is still going."""

    SKIP = "skip"
    QUEUE = "queue"
    ALLOW = "allow"
    REPLACE = "replace"


class MisfirePolicy(StrEnum):
    """What becomes of slots that were missed."""

    RUN_ONCE = "run_once"
    SKIP = "skip"
    RUN_ALL = "run_all"


class LostContact(Policy):
    """What becomes of a run whose worker cannot reach the database."""

    STOP = "stop"
    CONTINUE = "continue"


class RetryStrategy(Policy):
    """How long a failed chain waits before its next attempt."""

    EXPONENTIAL = "exponential"
    FIXED = "fixed"
    IMMEDIATE = "immediate"


class DependencyMode(Policy):
    """What a job's parents do to it."""

    GATE = "gate"
    TRIGGER = "trigger"


class Role(StrEnum):
    """What a person or a token may do: each may do what those before it may."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    EDITOR = "editor"
    ADMIN = "admin"


PUBLIC: Final = "public"
"""What is needed for what anybody may see: signing in, the API's description."""
Needed = Role | Literal["public"]


class TokenKind(StrEnum):
    """What a token is for."""

    API = "api"
    SIGN_IN = "sign-in"
    """A link that works once and begins an administrator's session."""


class Source(StrEnum):
    """Through which front somebody acts."""

    WEB = "web"
    API = "api"
    CLI = "cli"
    WORKER = "worker"
    PYTHON = "python"


class Channel(StrEnum):
    """By what a message goes out."""

    SLACK = "slack"
    EMAIL = "email"


class MessageKind(StrEnum):
    """What a message tells."""

    FAILURE = "failure"
    DEAD_LETTER = "dead_letter"
    RECOVERY = "recovery"
    TEST = "test"


class MessageStatus(StrEnum):
    """How far a message is."""

    PENDING = "pending"
    SENDING = "sending"
    SENT = "sent"
    DEAD = "dead"

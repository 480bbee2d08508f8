"""What a job is set to, in words: the facts that its page and `jobs show` tell, as core.fields says what each field is.

A field that most jobs leave alone is told where it differs from its default. What the page tells elsewhere (name,
schedule, parents ...) is not told again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple, assert_never

from ..core import words
from ..core.choices import OverlapPolicy, RetryStrategy
from ..core.fields import FIELDS, TARGETS, Group, JobField, Kind, in_group
from ..core.words import in_words
from ..store.models import CronJob

LONGEST_VALUE = 200


class Fact(NamedTuple):
    """What one field, together with those that are told with it, is set to."""

    name: str
    """Of the field."""
    label: str
    text: str


class Facts(NamedTuple):
    """What a part of the form is set to."""

    title: Group
    rows: tuple[Fact, ...]


GROUPS = (Group.SCHEDULE, Group.LIMITS, Group.LIFE, Group.DEPENDENCIES, Group.FAILURES, Group.NOTIFICATIONS)
SAID_BY_THE_PAGE = frozenset({"depends_on", "dependency_mode"})
SAID_WITH_ANOTHER = frozenset(
    {
        "queue_length",
        "retry_strategy",
        "retry_delay_seconds",
        "retry_max_delay_seconds",
        "notify_after_failures",
    }
)
NO_CHANNEL = Fact(
    "notify_on_failure", "Notifications", "nobody: the job has no Slack webhook and no email address"
)


def facts(job: CronJob) -> tuple[Facts, ...]:
    """Return what the row of a job says, by group; groups without anything to say are left out."""
    found = [Facts(group, tuple(_rows(job, group))) for group in GROUPS]
    return tuple(one for one in found if one.rows)


def _rows(job: CronJob, group: Group) -> list[Fact]:
    if group is Group.NOTIFICATIONS and not any(getattr(job, name) for name in TARGETS.values()):
        return [NO_CHANNEL]
    told = [one for one in in_group(group) if one.name not in SAID_BY_THE_PAGE | SAID_WITH_ANOTHER]
    told = [one for one in told if not one.schedules]  # the schedule is a sentence of its own
    told.sort(key=lambda one: one.rare)
    return [Fact(one.name, one.label, _said(job, one)) for one in told if _is_worth_telling(job, one)]


def _is_worth_telling(job: CronJob, one: JobField) -> bool:
    value = getattr(job, one.name)
    if value is None or value == "" or not _means_something(job, one):
        return False
    return not one.rare or value != one.default


def _means_something(job: CronJob, one: JobField) -> bool:
    return one.asked_with is None or getattr(job, one.asked_with[0]) in one.asked_with[1]


def _said(job: CronJob, one: JobField) -> str:
    phrase = _PHRASES.get(one.name)
    return phrase(job) if phrase else said(one, getattr(job, one.name), job.timezone)


def said(one: JobField, value: Any, timezone: str = "UTC") -> str:
    """Return a value of a field as a person would say it."""
    if one.secret:
        return "set"
    match one.kind:
        case Kind.NUMBER if one.unit == "seconds":
            return in_words(value)
        case Kind.NUMBER:
            return f"{value:,} {one.unit}".rstrip()
        case Kind.CHOICE:
            return one.choices.get(value, str(value))
        case Kind.FLAG:
            return "yes" if value else "no"
        case Kind.MOMENT:
            return words.in_zone(value, timezone)
        case Kind.OBJECT:
            return json.dumps(value, ensure_ascii=False)[:LONGEST_VALUE]
        case Kind.LINE | Kind.PROSE | Kind.WEEKDAYS:
            return str(value)[:LONGEST_VALUE]
        case Kind.WORDS | Kind.JOBS:
            return str(value).strip(",").replace(",", ", ")
        case never:
            assert_never(never)


def _overlap(job: CronJob) -> str:
    done = said(FIELDS["overlap_policy"], job.overlap_policy)
    if OverlapPolicy.of(job.overlap_policy) is OverlapPolicy.QUEUE:
        return f"{done}; at most {words.count(job.queue_length, 'run waits', 'runs wait')}"
    return done


def retries(job: CronJob) -> str:
    """Return the retry policy as a phrase."""
    if job.max_retries == 0:
        return "none"
    times = "once" if job.max_retries == 1 else f"up to {job.max_retries} times"
    delay = in_words(job.retry_delay_seconds)
    each, at_once = f"{times}, {delay} after each failure", f"{times}, at once"
    match RetryStrategy.of(job.retry_strategy):
        case RetryStrategy.IMMEDIATE:
            return at_once
        case RetryStrategy.FIXED | RetryStrategy.EXPONENTIAL if job.retry_delay_seconds == 0:
            return at_once
        case RetryStrategy.EXPONENTIAL if job.max_retries > 1:
            longest = in_words(job.retry_max_delay_seconds)
            return f"{times}, after {delay} at first, doubling to at most {longest}"
        case RetryStrategy.FIXED | RetryStrategy.EXPONENTIAL:
            return each
        case never:
            assert_never(never)


def _failures(job: CronJob) -> str:
    if not job.notify_on_failure or job.notify_after_failures == 1:
        return "yes" if job.notify_on_failure else "no"
    return f"after {words.count(job.notify_after_failures, 'failure')} in a row"


_PHRASES: dict[str, Callable[[CronJob], str]] = {
    "overlap_policy": _overlap,
    "max_retries": lambda job: f"{retries(job)}; then the job moves to the dead letter queue",
    "max_runs": lambda job: f"{job.max_runs:,} ({job.runs_scheduled:,} so far), then the job is disabled",
    "priority": lambda job: f"{job.priority} of 9",
    "notify_on_failure": _failures,
}
"""Of fields that are told in words of their own, or with others."""

"""Every field of a job, once: what it holds, what it is called, how it is explained.

From this table come the checks (`jobspec`), the API's schema, the options of the command line, the columns (`models`),
the controls of the form, the facts on the job's page, docs/fields.md, and which fields a run takes along. A new field
is an entry here, a migration, and the code that uses it; tests/core/test_fields.py names what else is missing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import Any

from .choices import (
    Channel,
    DependencyMode,
    IntervalAnchor,
    LostContact,
    MisfirePolicy,
    OverlapPolicy,
    RetryStrategy,
    ScheduleType,
)

DAY = 86_400
MAX_NAME = 200
MAX_TAGS_LENGTH = 500
MAX_PARENTS = 50


class Kind(StrEnum):
    """What the values of a field are."""

    LINE = "line"
    """Text of one line; no text where the default is None."""
    PROSE = "prose"
    """Text of several lines."""
    WORDS = "words"
    NUMBER = "number"
    """A whole number."""
    FLAG = "flag"
    CHOICE = "choice"
    MOMENT = "moment"
    WEEKDAYS = "weekdays"
    OBJECT = "object"
    """JSON."""
    JOBS = "jobs"


class Group(StrEnum):
    """The parts of the form and of the job's page, by their titles."""

    BASICS = "Basics"
    CODE = "Code"
    SCHEDULE = "Schedule"
    LIFE = "Start, end and jitter"
    DEPENDENCIES = "Dependencies"
    FAILURES = "Failures and retries"
    NOTIFICATIONS = "Notifications"
    LIMITS = "Overlap and limits"


class Unit(StrEnum):
    """What a number counts, as it stands behind it."""

    NONE = ""
    SECONDS = "seconds"
    MIB = "MiB"


class Reader(StrEnum):
    """Statements that run so often that they read a few columns only."""

    SLOTS = "slots"
    """What decides about a job's slots: `claims.ON_SCHEDULE`."""
    ENDINGS = "endings"
    """What every ending has to know of its job: `claims.EndingJob`."""
    CLAIMS = "claims"
    """What travels to the run: `claims` reads it with the run, `lifecycle.ClaimedRun` carries it."""


REQUIRED: Any = object()
"""The default of a field that has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobField:
    """One thing that a person may set on a job."""

    name: str
    kind: Kind
    group: Group
    label: str
    """Its name on pages."""
    help: str
    """What it does, without a full stop: the command line's and the API's description, and the control's hint."""
    default: Any = None
    unit: Unit = Unit.NONE
    least: int | None = None
    most: int | None = None
    """Bounds of a number."""
    longest: int | None = None
    """Characters of a text, items of a list; None where something else bounds them."""
    width: int = 0
    """Characters of the column, where these are not `longest`."""
    choices: Mapping[Any, str] = field(default_factory=dict)
    """The words that it is one of, each as the form says it, completing the label."""
    asked_with: tuple[str, tuple[str, ...]] | None = None
    """Another field and the words of it with which this one has a meaning: the form shows it with these."""
    rare: bool = False
    """Most jobs leave it as it is: the form keeps it out of sight until it is asked for."""
    schedules: bool = False
    """`core.schedule.Schedule` is made of it."""
    replans: bool = False
    """A change of it gives the job another next slot."""
    secret: bool = False
    """Masked wherever it is told."""
    readers: frozenset[Reader] = frozenset()

    @property
    def required(self) -> bool:
        return self.default is REQUIRED

    @property
    def optional(self) -> bool:
        """Whether it may be without a value."""
        return self.default is None

    def a_default(self) -> Any:
        """Return the default as it is stored, a new one each time where it can be changed."""
        if isinstance(self.default, list | dict):
            return self.default.copy()
        return str(self.default) if self.kind is Kind.CHOICE else self.default


def _read_by(*readers: Reader) -> frozenset[Reader]:
    return frozenset(readers)


_SLOTS, _CLAIMS = _read_by(Reader.SLOTS), _read_by(Reader.CLAIMS)
_SLOTS_AND_ENDINGS = _read_by(Reader.SLOTS, Reader.ENDINGS)
_SCHEDULE: dict[str, Any] = {"group": Group.SCHEDULE, "schedules": True, "replans": True, "readers": _SLOTS}

_ALL = (
    JobField(
        name="name",
        kind=Kind.LINE,
        group=Group.BASICS,
        label="Name",
        help="Unique among the jobs that are not deleted",
        default=REQUIRED,
        longest=MAX_NAME,
        readers=_read_by(Reader.SLOTS, Reader.CLAIMS),
    ),
    JobField(
        name="description",
        kind=Kind.PROSE,
        group=Group.BASICS,
        label="Description",
        help="What the job is for, in your words",
        default="",
        longest=2000,
    ),
    JobField(
        name="tags",
        kind=Kind.WORDS,
        group=Group.BASICS,
        label="Tags",
        help="Words to filter by, separated by commas",
        default=[],
        longest=20,
        width=MAX_TAGS_LENGTH,
    ),
    JobField(
        name="schedule_type",
        kind=Kind.CHOICE,
        label="Schedule",
        help="How the job says when it runs",
        default=ScheduleType.MANUAL,
        choices={
            ScheduleType.CRON: "Cron expression",
            ScheduleType.INTERVAL: "Interval",
            ScheduleType.DAILY: "Daily",
            ScheduleType.WEEKLY: "Weekly",
            ScheduleType.MONTHLY: "Monthly",
            ScheduleType.MANUAL: "Manual",
        },
        **_SCHEDULE | {"readers": _SLOTS_AND_ENDINGS},
    ),
    JobField(
        name="cron_expression",
        kind=Kind.LINE,
        label="Cron expression",
        help="Five fields (minute, hour, day of the month, month, weekday) such as 30 2 * * 1-5, or @hourly, @daily, "
        "@weekly, @monthly, @yearly",
        width=200,
        **_SCHEDULE,
        asked_with=("schedule_type", (ScheduleType.CRON,)),
    ),
    JobField(
        name="interval_seconds",
        kind=Kind.NUMBER,
        label="Every",
        help="Time between two slots",
        unit=Unit.SECONDS,
        **_SCHEDULE,
        asked_with=("schedule_type", (ScheduleType.INTERVAL,)),
    ),
    JobField(
        name="interval_anchor",
        kind=Kind.CHOICE,
        group=Group.SCHEDULE,
        label="Counted from",
        help="What an interval is counted from",
        default=IntervalAnchor.SCHEDULE,
        choices={
            IntervalAnchor.SCHEDULE: "a fixed start (no drift)",
            IntervalAnchor.COMPLETION: "the end of the previous run",
        },
        replans=True,
        readers=_SLOTS_AND_ENDINGS,
        asked_with=("schedule_type", (ScheduleType.INTERVAL,)),
    ),
    JobField(
        name="time_of_day",
        kind=Kind.LINE,
        label="Time of day",
        help="HH:MM or HH:MM:SS, local time in the job's zone",
        width=8,
        **_SCHEDULE,
        asked_with=("schedule_type", (ScheduleType.DAILY, ScheduleType.WEEKLY, ScheduleType.MONTHLY)),
    ),
    JobField(
        name="day_of_week",
        kind=Kind.WEEKDAYS,
        label="Weekdays",
        help="0 (Sunday) to 6 (Saturday), one or several",
        longest=7,
        width=20,
        **_SCHEDULE,
        asked_with=("schedule_type", (ScheduleType.WEEKLY,)),
    ),
    JobField(
        name="day_of_month",
        kind=Kind.NUMBER,
        label="Day of the month",
        help="1 to 31; 29 to 31 fall back to the last day of a shorter month",
        **_SCHEDULE,
        asked_with=("schedule_type", (ScheduleType.MONTHLY,)),
    ),
    JobField(
        name="timezone",
        kind=Kind.LINE,
        label="Time zone",
        help="The zone that these times are read in, such as Europe/Berlin",
        default="UTC",
        longest=64,
        **_SCHEDULE,
        asked_with=(
            "schedule_type",
            (ScheduleType.CRON, ScheduleType.DAILY, ScheduleType.WEEKLY, ScheduleType.MONTHLY),
        ),
    ),
    JobField(
        name="starts_at",
        kind=Kind.MOMENT,
        group=Group.LIFE,
        label="Not before",
        help="No slot before this time",
        replans=True,
        readers=_SLOTS,
        rare=True,
    ),
    JobField(
        name="ends_at",
        kind=Kind.MOMENT,
        group=Group.LIFE,
        label="Not after",
        help="No slot after this time; then the job is disabled",
        replans=True,
        readers=_SLOTS,
        rare=True,
    ),
    JobField(
        name="max_runs",
        kind=Kind.NUMBER,
        group=Group.LIFE,
        label="Number of runs",
        help="The job is disabled after this many runs that its schedule or its parents started",
        least=1,
        most=1_000_000_000,
        readers=_SLOTS,
        rare=True,
    ),
    JobField(
        name="jitter_seconds",
        kind=Kind.NUMBER,
        group=Group.LIFE,
        label="Jitter",
        help="Runs start later by a fixed offset per job of at most this, so that many jobs do not start at once",
        default=0,
        unit=Unit.SECONDS,
        least=0,
        most=3600,
        readers=_SLOTS,
        rare=True,
    ),
    JobField(
        name="timeout_seconds",
        kind=Kind.NUMBER,
        group=Group.FAILURES,
        label="Time limit",
        help="Time that one attempt may take",
        default=300,
        unit=Unit.SECONDS,
        least=1,
        most=7 * DAY,
        readers=_CLAIMS,
    ),
    JobField(
        name="memory_limit_mb",
        kind=Kind.NUMBER,
        group=Group.LIMITS,
        label="Memory limit",
        help="Memory that one attempt may use",
        unit=Unit.MIB,
        least=32,
        most=1_048_576,
        readers=_CLAIMS,
        rare=True,
    ),
    JobField(
        name="cpu_limit_seconds",
        kind=Kind.NUMBER,
        group=Group.LIMITS,
        label="CPU limit",
        help="CPU time that one attempt may use",
        unit=Unit.SECONDS,
        least=1,
        most=7 * DAY,
        readers=_CLAIMS,
        rare=True,
    ),
    JobField(
        name="parameters",
        kind=Kind.OBJECT,
        group=Group.CODE,
        label="Parameters",
        help='A JSON object that the job finds in self.job.parameters, such as {"region": "eu"}',
        default={},
    ),
    JobField(
        name="priority",
        kind=Kind.NUMBER,
        group=Group.LIMITS,
        label="Priority",
        help="9 starts first, 0 last; waiting raises it",
        default=5,
        least=0,
        most=9,
        readers=_SLOTS,
        rare=True,
    ),
    JobField(
        name="worker_tag",
        kind=Kind.LINE,
        group=Group.LIMITS,
        label="Worker tag",
        help="Run only on workers with this tag",
        default="",
        longest=64,
        readers=_SLOTS,
        rare=True,
    ),
    JobField(
        name="overlap_policy",
        kind=Kind.CHOICE,
        group=Group.LIMITS,
        label="If the previous run is still going",
        help="What becomes of a slot while the previous run is still going",
        default=OverlapPolicy.SKIP,
        choices={
            OverlapPolicy.SKIP: "skip the slot",
            OverlapPolicy.QUEUE: "wait for it to end",
            OverlapPolicy.ALLOW: "run beside it",
            OverlapPolicy.REPLACE: "stop it and run instead",
        },
        readers=_SLOTS,
    ),
    JobField(
        name="queue_length",
        kind=Kind.NUMBER,
        group=Group.LIMITS,
        label="Queue length",
        help="How many runs may wait for the previous one to end (overlap_policy queue); more are skipped",
        default=1,
        least=1,
        most=1000,
        readers=_SLOTS,
        asked_with=("overlap_policy", (OverlapPolicy.QUEUE,)),
    ),
    JobField(
        name="misfire_policy",
        kind=Kind.CHOICE,
        group=Group.LIMITS,
        label="Missed slots",
        help="What becomes of slots that were missed",
        default=MisfirePolicy.RUN_ONCE,
        choices={
            MisfirePolicy.RUN_ONCE: "run the newest one",
            MisfirePolicy.SKIP: "skip them all",
            MisfirePolicy.RUN_ALL: "run all of them, oldest first",
        },
        readers=_SLOTS,
    ),
    JobField(
        name="misfire_grace_seconds",
        kind=Kind.NUMBER,
        group=Group.LIMITS,
        label="Count as missed after",
        help="A slot that is later than this counts as missed",
        default=60,
        unit=Unit.SECONDS,
        least=1,
        most=30 * DAY,
        readers=_SLOTS,
        rare=True,
    ),
    JobField(
        name="on_lost_contact",
        kind=Kind.CHOICE,
        group=Group.LIMITS,
        label="If the worker cannot reach the database",
        help="What becomes of a run whose worker cannot reach the database",
        default=LostContact.STOP,
        choices={
            LostContact.STOP: "stop the run (rather missed than run twice)",
            LostContact.CONTINUE: "let the run go on",
        },
        readers=_CLAIMS,
        rare=True,
    ),
    JobField(
        name="max_retries",
        kind=Kind.NUMBER,
        group=Group.FAILURES,
        label="Retries",
        help="How often a failed run is tried again before the job moves to the dead letter queue",
        default=3,
        least=0,
        most=100,
    ),
    JobField(
        name="retry_strategy",
        kind=Kind.CHOICE,
        group=Group.FAILURES,
        label="Delay between retries",
        help="How the delay between retries grows",
        default=RetryStrategy.EXPONENTIAL,
        choices={
            RetryStrategy.EXPONENTIAL: "doubles each time",
            RetryStrategy.FIXED: "always the same",
            RetryStrategy.IMMEDIATE: "none",
        },
    ),
    JobField(
        name="retry_delay_seconds",
        kind=Kind.NUMBER,
        group=Group.FAILURES,
        label="First delay",
        help="Delay before the first retry",
        default=60,
        unit=Unit.SECONDS,
        least=0,
        most=7 * DAY,
        asked_with=("retry_strategy", (RetryStrategy.EXPONENTIAL, RetryStrategy.FIXED)),
    ),
    JobField(
        name="retry_max_delay_seconds",
        kind=Kind.NUMBER,
        group=Group.FAILURES,
        label="Longest delay",
        help="The delay grows no further than this",
        default=3600,
        unit=Unit.SECONDS,
        least=0,
        most=30 * DAY,
        asked_with=("retry_strategy", (RetryStrategy.EXPONENTIAL,)),
    ),
    JobField(
        name="depends_on",
        kind=Kind.JOBS,
        group=Group.DEPENDENCIES,
        label="Parents",
        help="Jobs that this one depends on, by id; by name on the command line and in files",
        default=[],
        longest=MAX_PARENTS,
    ),
    JobField(
        name="dependency_mode",
        kind=Kind.CHOICE,
        group=Group.DEPENDENCIES,
        label="Starts",
        help="Whether a job keeps its own slots and waits for its parents at them, or is started by its parents",
        default=DependencyMode.GATE,
        choices={
            DependencyMode.GATE: "at its own slots, after its parents",
            DependencyMode.TRIGGER: "as soon as all parents completed",
        },
        readers=_SLOTS,
        rare=True,
    ),
    JobField(
        name="dependency_timeout_seconds",
        kind=Kind.NUMBER,
        group=Group.DEPENDENCIES,
        label="Give up waiting after",
        help="A slot whose parents have not ended by then is skipped",
        default=3600,
        unit=Unit.SECONDS,
        least=1,
        most=30 * DAY,
        readers=_SLOTS,
        rare=True,
    ),
    JobField(
        name="require_fresh",
        kind=Kind.FLAG,
        group=Group.DEPENDENCIES,
        label="Needs fresh results",
        help="Each parent must have completed since this job last did",
        default=False,
        rare=True,
    ),
    JobField(
        name="notify_on_failure",
        kind=Kind.FLAG,
        group=Group.NOTIFICATIONS,
        label="Notify on failure",
        help="Send a message when the last attempt at a slot has failed",
        default=True,
    ),
    JobField(
        name="notify_after_failures",
        kind=Kind.NUMBER,
        group=Group.NOTIFICATIONS,
        label="Failures in a row before notifying",
        help="A message about failures is sent after this many in a row",
        default=1,
        least=1,
        most=1000,
    ),
    JobField(
        name="notify_on_dead_letter",
        kind=Kind.FLAG,
        group=Group.NOTIFICATIONS,
        label="Notify on a dead letter",
        help="Send a message when the job moves to the dead letter queue",
        default=True,
    ),
    JobField(
        name="notify_on_recovery",
        kind=Kind.FLAG,
        group=Group.NOTIFICATIONS,
        label="Notify on recovery",
        help="Send a message when the job works again",
        default=True,
    ),
    JobField(
        name="slack_webhook",
        kind=Kind.LINE,
        group=Group.NOTIFICATIONS,
        label="Slack webhook",
        help="Address of an incoming webhook that messages are posted to",
        longest=500,
        secret=True,
    ),
    JobField(
        name="notification_email",
        kind=Kind.LINE,
        group=Group.NOTIFICATIONS,
        label="Email",
        help="Where messages are sent: one address, or several separated by commas",
        longest=500,
    ),
    JobField(
        name="enabled",
        kind=Kind.FLAG,
        group=Group.BASICS,
        label="Enabled",
        help="Whether its slots become runs",
        default=True,
        readers=_SLOTS,
    ),
)

FIELDS: dict[str, JobField] = {one.name: one for one in _ALL}
"""By name, in the order in which they are listed everywhere."""

CODE_LABELS = {"code": "Code", "message": "What changed in the code"}
"""What is sent with a job's fields and is none of them: its code has versions of its own."""
LABELS = {name: one.label for name, one in FIELDS.items()} | CODE_LABELS

DEFAULTS: dict[str, Any] = {name: one.a_default() for name, one in FIELDS.items() if not one.required}
SCHEDULE_FIELDS = tuple(name for name, one in FIELDS.items() if one.schedules)
REPLANNED_BY = frozenset(name for name, one in FIELDS.items() if one.replans)
PREVIEWED = tuple(name for name in FIELDS if name in REPLANNED_BY or name == "max_runs")
"""What says which slots come: a preview is asked for with these. `max_runs` ends them, and changes no next one."""
TARGETS = {Channel.SLACK: "slack_webhook", Channel.EMAIL: "notification_email"}
"""Where messages go by each channel: the field that holds the address."""
SECRET_FIELDS = frozenset(name for name, one in FIELDS.items() if one.secret)
COLUMNS = tuple(name for name, one in FIELDS.items() if one.kind is not Kind.JOBS)
"""The fields that are columns of the job's row; parents are edges of a graph."""


_BOUND = re.compile(r"must be at (?:least|most) (\d+)$")


def by_label(wrong: Mapping[str, str]) -> dict[str, str]:
    """Return the messages about wrong fields as pages tell them: with labels for names, and units behind bounds."""
    return {name: _by_label(name, text) for name, text in wrong.items()}


def _by_label(name: str, text: str) -> str:
    one = FIELDS.get(name)
    if one and one.unit and (bound := _BOUND.search(text)):
        text += f" {one.unit.removesuffix('s') if bound[1] == '1' else one.unit}"
    if name in LABELS:
        text = re.sub(
            rf"^(Invalid )?{re.escape(name)}\b", lambda found: f"{found[1] or ''}{LABELS[name]}", text
        )
    # Elsewhere in it only names that are no words of the language.
    return re.sub(r"\b[a-z]+(?:_[a-z]+)+\b", lambda found: LABELS.get(found[0], found[0]), text)


def in_group(group: Group) -> tuple[JobField, ...]:
    """Return the fields of a part of the form."""
    return tuple(one for one in FIELDS.values() if one.group is group)


@cache
def read_by(reader: Reader) -> tuple[str, ...]:
    """Return the names of the columns that `reader` reads."""
    return tuple(name for name, one in FIELDS.items() if reader in one.readers)

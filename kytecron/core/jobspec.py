"""A job's configuration: one model that validates Python calls, JSON and HTML forms alike.

Schedule fields are checked for type here and for meaning by `core.schedule`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)
from pydantic_core import ErrorDetails, core_schema

from .choices import (
    DependencyMode,
    IntervalAnchor,
    LostContact,
    MisfirePolicy,
    OverlapPolicy,
    RetryStrategy,
    ScheduleType,
)
from .errors import Invalid
from .untrusted import MAX_TOLD, name_problem, visible

Model = TypeVar("Model", bound=BaseModel)

MAX_PARAMETERS_BYTES = 64_000
MAX_TAGS_LENGTH = 500
MAX_PARENTS = 50
TAG = re.compile(r"[\w][\w.:/-]{0,63}")
EMAIL = re.compile(r"[^@\s,;<>\"]+@[^@\s,;<>\"]+")

DAY = 86_400


def _blank_is_none(value: Any) -> Any:
    # An empty form field means "not given".
    return None if isinstance(value, str) and not value.strip() else value


def _assume_utc(value: Any) -> Any:
    """Accept a time without zone, as forms and people write it, as UTC."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            return value
    if isinstance(value, datetime) and value.tzinfo is None:
        return value.replace(tzinfo=UTC)
    return value


def _in_utc(value: datetime | None) -> datetime | None:
    if value is None:
        return None
    # No zone's offset and no database's DATETIME ends near these.
    if not 1970 <= value.year <= 9000:
        raise ValueError("must lie between the years 1970 and 9000")
    return value.astimezone(UTC)


class OneOf:
    """Makes `Annotated[str, OneOf(Words)]` a word of an enum, kept and described as the word itself."""

    def __init__(self, words: Iterable[str]) -> None:
        self._words = [*map(str, words)]

    def __get_pydantic_core_schema__(self, _source: Any, _handler: Any) -> core_schema.CoreSchema:
        return core_schema.literal_schema(self._words)


Text = Annotated[str | None, BeforeValidator(_blank_is_none)]
Number = Annotated[int | None, BeforeValidator(_blank_is_none)]
Moment = Annotated[
    AwareDatetime | None,
    AfterValidator(_in_utc),
    BeforeValidator(_assume_utc),
    BeforeValidator(_blank_is_none),
]


class JobFields(BaseModel):
    """What a person may set on a job. The code is versioned apart from it."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    name: str = Field(min_length=1, max_length=200, description="Unique among the jobs that are not deleted")
    description: str = Field("", max_length=2000)
    tags: list[str] = Field(default_factory=list, max_length=20, description="Words to filter by")

    schedule_type: str = Field("manual", description="One of: " + ", ".join(ScheduleType))
    cron_expression: Text = Field(
        None, description="Five fields, or @hourly, @daily, @weekly, @monthly, @yearly"
    )
    interval_seconds: Number = Field(None, description="Seconds between two slots")
    interval_anchor: Annotated[str, OneOf(IntervalAnchor)] = Field(
        "schedule", description="Count from the schedule's beginning, or from the end of the last run"
    )
    time_of_day: Text = Field(None, description="HH:MM or HH:MM:SS, local time in the job's zone")
    day_of_week: int | str | Annotated[list[int], Field(max_length=7)] | None = Field(
        None, description="0=Sunday..6, one or several"
    )
    day_of_month: Number = Field(None, description="1..31; 29..31 fall back to the month's last day")
    timezone: str = Field("UTC", max_length=64, description="A name such as Europe/Berlin")
    starts_at: Moment = Field(None, description="No slot before this instant")
    ends_at: Moment = Field(None, description="No slot after this instant; then the job is disabled")
    max_runs: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = Field(
        None, description="Disabled after this many runs that its schedule or its parents started"
    )
    jitter_seconds: int = Field(
        0, ge=0, le=3600, description="A fixed offset per job of at most this many seconds"
    )

    timeout_seconds: int = Field(300, ge=1, le=7 * DAY, description="Time limit of one attempt, in seconds")
    memory_limit_mb: Annotated[int, Field(ge=32, le=1_048_576)] | None = Field(None, description="In MiB")
    cpu_limit_seconds: Annotated[int, Field(ge=1, le=7 * DAY)] | None = Field(
        None, description="CPU time of one attempt, in seconds"
    )
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="What the job finds in self.job.parameters"
    )
    priority: int = Field(5, ge=0, le=9, description="9 starts first, 0 last; age wins in the end")
    worker_tag: str = Field("", max_length=64, description="Run only on workers with this tag")
    overlap_policy: Annotated[str, OneOf(OverlapPolicy)] = Field(
        "skip", description="What to do with a slot while the previous run goes on"
    )
    queue_length: int = Field(
        1, ge=1, le=1000, description="How many runs may wait under overlap_policy queue; more are skipped"
    )
    misfire_policy: Annotated[str, OneOf(MisfirePolicy)] = Field(
        "run_once", description="What to do with slots that were missed"
    )
    misfire_grace_seconds: int = Field(60, ge=1, le=30 * DAY, description="A slot later than this was missed")
    on_lost_contact: Annotated[str, OneOf(LostContact)] = Field(
        "stop", description="What becomes of a run whose worker cannot reach the database"
    )

    max_retries: int = Field(3, ge=0, le=100)
    retry_strategy: Annotated[str, OneOf(RetryStrategy)] = "exponential"
    retry_delay_seconds: int = Field(60, ge=0, le=7 * DAY)
    retry_max_delay_seconds: int = Field(3600, ge=0, le=30 * DAY)

    depends_on: list[int] = Field(
        default_factory=list, max_length=MAX_PARENTS, description="Ids of the parent jobs"
    )
    dependency_mode: Annotated[str, OneOf(DependencyMode)] = Field(
        "gate", description="gate: own clock, waits for the parents. trigger: runs when the parents completed"
    )
    dependency_timeout_seconds: int = Field(3600, ge=1, le=30 * DAY)
    require_fresh: bool = Field(False, description="The parents' success must be newer than this job's own")

    notify_on_failure: bool = True
    notify_after_failures: int = Field(1, ge=1, le=1000, description="Tell after this many failures in a row")
    notify_on_dead_letter: bool = True
    notify_on_recovery: bool = True
    slack_webhook: Text = Field(None, max_length=500)
    notification_email: Text = Field(None, max_length=500, description="One address, or several with commas")

    enabled: bool = True

    @field_validator("tags", "depends_on", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return [] if value is None else value

    @field_validator("tags")
    @classmethod
    def _tags_are_words(cls, tags: list[str]) -> list[str]:
        for tag in tags:
            if not TAG.fullmatch(tag) or name_problem(tag):
                raise ValueError(f"{tag[:40]!r} is not a tag: use letters, digits and . : / _ - , at most 64")
        if sum(len(tag) + 1 for tag in set(tags)) >= MAX_TAGS_LENGTH:
            raise ValueError(f"together they must be shorter than {MAX_TAGS_LENGTH} characters")
        return sorted(set(tags))

    @field_validator("name", "worker_tag")
    @classmethod
    def _printable(cls, value: str) -> str:
        if problem := name_problem(value):
            raise ValueError(problem)
        return value

    @field_validator("description")
    @classmethod
    def _readable(cls, value: str) -> str:
        value = value.replace("\r\n", "\n")  # as forms send it
        if problem := name_problem(value, several_lines=True):
            raise ValueError(problem)
        return value

    @field_validator("parameters", mode="before")
    @classmethod
    def _parameters_from_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            try:
                return json.loads(value) if value.strip() else {}
            except (ValueError, RecursionError):
                raise ValueError('must be a JSON object, such as {"region": "eu"}') from None
        return {} if value is None else value

    @field_validator("parameters")
    @classmethod
    def _parameters_bounded(cls, value: dict[str, Any]) -> dict[str, Any]:
        return check_parameters(value)

    @field_validator("notification_email")
    @classmethod
    def _addresses(cls, value: str | None) -> str | None:
        for address in (value or "").split(","):
            if address.strip() and not EMAIL.fullmatch(address.strip()):
                raise ValueError(f"{address.strip()[:60]!r} is not an e-mail address")
        return value


def check_parameters(value: Any) -> dict[str, Any]:
    """`value` if it is a JSON object of bounded size; raises ValueError otherwise."""
    try:
        text = json.dumps(value, allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError):
        raise ValueError("must be plain JSON values") from None
    if not isinstance(value, dict):
        raise ValueError('must be a JSON object, such as {"region": "eu"}')
    if len(text) > MAX_PARAMETERS_BYTES:
        raise ValueError(f"must be at most {MAX_PARAMETERS_BYTES} bytes of JSON")
    for key in _keys(value):
        if problem := name_problem(key):
            raise ValueError(f"the key {visible(key[:40])!r} {problem}")
    return value


def _keys(value: Any) -> Iterator[str]:
    """The keys of objects at any depth, which json.dumps has bounded."""
    if isinstance(value, dict):
        yield from map(str, value)
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _keys(part)


SCHEDULE_FIELDS = (
    "schedule_type",
    "cron_expression",
    "interval_seconds",
    "time_of_day",
    "day_of_week",
    "day_of_month",
    "timezone",
)

DEFAULTS: dict[str, Any] = {
    name: info.get_default(call_default_factory=True)
    for name, info in JobFields.model_fields.items()
    if not info.is_required()
}


def normalise_aliases(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The seed's names for two fields: `allow_concurrent` and `depends_on_job`."""
    known = dict(fields)
    if "allow_concurrent" in known:
        concurrent = known.pop("allow_concurrent")
        known.setdefault("overlap_policy", "allow" if concurrent in (True, 1, "1", "true") else "skip")
    if "depends_on_job" in known:
        parent = known.pop("depends_on_job")
        known.setdefault("depends_on", [] if parent in (None, "") else [parent])
    return known


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question for who wrote a name that nothing has; empty where nothing is near."""
    close = get_close_matches(name[:100].lower(), list(known), n=1)
    return f". Did you mean {close[0]}?" if close else ""


def parse_job(fields: Mapping[str, Any]) -> JobFields:
    """A checked configuration. Raises Invalid with a message for each wrong field."""
    return validated(JobFields, normalise_aliases(fields))


def _nothing(_wrong: Container[str]) -> dict[str, str]:
    return {}


def validated(
    model: type[Model],
    given: Mapping[str, Any],
    further: Callable[[Container[str]], dict[str, str]] = _nothing,
) -> Model:
    """`given` as a model. Raises Invalid with a message for each wrong field, in time linear in their number.

    `further` says what else is wrong, besides the fields it is given.
    """
    known = {name for field, info in model.model_fields.items() for name in (field, info.alias)}
    # pydantic takes 30 µs and a kilobyte for each field that it does not know.
    unknown = [name for name in given if name not in known]
    surplus = set(unknown[MAX_TOLD:])
    told = {name: value for name, value in given.items() if name not in surplus} if surplus else given
    try:
        checked = model.model_validate(told)
    except ValidationError as error:
        more = {name[:100]: f"{name[:100]} {UNKNOWN}" for name in unknown[MAX_TOLD:]}
        wrong = with_nearest(field_messages(error) | more, filter(None, known))
        raise Invalid(further(wrong) | wrong) from None
    return checked


UNKNOWN = "is not a known field"
MOST_NEAREST = 20
"""Unknown names that are compared with the known ones."""


def with_nearest(messages: Mapping[str, str], known: Iterable[str]) -> dict[str, str]:
    """The messages, those of unknown fields with the nearest name that is known."""
    told, names = dict(messages), list(known)
    unknown = [name for name, text in messages.items() if text.endswith(UNKNOWN)]
    for name in unknown[:MOST_NEAREST]:
        told[name] += did_you_mean(name, names)
    return told


def field_messages(error: ValidationError) -> dict[str, str]:
    """One readable message for each wrong field: what is wrong and what to write instead."""
    messages: dict[str, str] = {}
    for item in error.errors(include_url=False, include_context=True):
        # The path ends in list indexes or union members; people need the field.
        name = str(item["loc"][0])[:100] if item["loc"] else "body"
        messages.setdefault(name, _message(name, item))
    return messages


MUST_BE = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "an object",
    "datetime_type": "a time such as 2026-03-01T12:00:00Z",
    "string_too_long": "at most {max_length} characters long",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
}
"""What to write instead, by pydantic's kind of error."""


def _message(name: str, item: ErrorDetails) -> str:
    context = item.get("ctx", {})
    kind = item["type"]
    if kind == "missing":
        return f"{name} is required"
    if kind == "extra_forbidden":
        return f"{name} {UNKNOWN}"
    if kind in ("literal_error", "enum"):
        return f"Invalid {name}. Must be one of: " + str(context.get("expected", "")).replace(
            "'", ""
        ).replace(" or ", ", ")
    if kind == "value_error":
        return f"{name}: {context.get('error', item['msg'])}"
    if kind == "string_too_short":
        return f"{name} must not be empty"
    if kind == "string_unicode":
        return f"{name} holds half a character, which cannot be stored"
    if kind in MUST_BE:
        return f"{name} must be {MUST_BE[kind].format(**context)}"
    return f"{name}: {item['msg'][0].lower()}{item['msg'][1:]}"

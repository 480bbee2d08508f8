"""A job's configuration: one model that validates Python calls, JSON and HTML forms alike.

Schedule fields are checked for type here and for meaning by `core.schedule`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, assert_never

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    field_validator,
)
from pydantic_core import ErrorDetails, core_schema

from .errors import Invalid
from .fields import FIELDS, MAX_TAGS_LENGTH, JobField, Kind
from .untrusted import MAX_DEPTH, MAX_TOLD, name_problem, unstorable, visible

Model = TypeVar("Model", bound=BaseModel)

MAX_PARAMETERS_BYTES = 64_000
TAG = re.compile(r"[\w][\w.:/-]{0,63}")
EMAIL = re.compile(r"[^@\s,;<>\"]+@[^@\s,;<>\"]+")


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


def _annotation(one: JobField) -> Any:
    """The type that pydantic checks a field by."""
    match one.kind:
        case Kind.LINE | Kind.PROSE:
            return Text if one.optional else str
        case Kind.NUMBER if one.optional and one.least is None:
            return Number  # its schedule bounds it
        case Kind.NUMBER if one.optional:
            return Annotated[int, Field(ge=one.least, le=one.most)] | None
        case Kind.NUMBER:
            return int
        case Kind.FLAG:
            return bool
        case Kind.CHOICE:
            return Annotated[str, OneOf(one.choices)]
        case Kind.MOMENT:
            return Moment
        case Kind.WEEKDAYS:
            return int | str | Annotated[list[int], Field(max_length=one.longest)] | None
        case Kind.WORDS:
            return list[str]
        case Kind.JOBS:
            return list[int]
        case Kind.OBJECT:
            return dict[str, Any]
        case never:
            assert_never(never)


def _info(one: JobField) -> Any:
    bounds: dict[str, Any] = {}
    if one.kind in (Kind.LINE, Kind.PROSE, Kind.WORDS, Kind.JOBS):
        bounds = {"max_length": one.longest} | ({"min_length": 1} if one.required else {})
    elif one.kind is Kind.NUMBER and not one.optional:
        bounds = {"ge": one.least, "le": one.most}
    if isinstance(one.default, list | dict):
        bounds["default_factory"] = one.a_default
    elif not one.required:
        bounds["default"] = one.a_default()
    return Field(**bounds, title=one.label, description=_described(one))


def _described(one: JobField) -> str:
    return f"{one.help} (in {one.unit})" if one.unit else one.help


class _Rules(BaseModel):
    """What is checked of a job's fields beyond their types and bounds."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    @field_validator("tags", "depends_on", mode="before", check_fields=False)
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return [] if value is None else value

    @field_validator("tags", check_fields=False)
    @classmethod
    def _tags_are_words(cls, tags: list[str]) -> list[str]:
        for tag in tags:
            if not TAG.fullmatch(tag) or name_problem(tag):
                raise ValueError(f"{tag[:40]!r} is not a tag: use letters, digits and . : / _ - , at most 64")
        if sum(len(tag) + 1 for tag in set(tags)) >= MAX_TAGS_LENGTH:
            raise ValueError(f"together they must be shorter than {MAX_TAGS_LENGTH} characters")
        return sorted(set(tags))

    @field_validator("name", "worker_tag", check_fields=False)
    @classmethod
    def _printable(cls, value: str) -> str:
        if problem := name_problem(value):
            raise ValueError(problem)
        return value

    @field_validator("description", check_fields=False)
    @classmethod
    def _readable(cls, value: str) -> str:
        value = value.replace("\r\n", "\n")  # as forms send it
        if problem := name_problem(value, several_lines=True):
            raise ValueError(problem)
        return value

    @field_validator("parameters", mode="before", check_fields=False)
    @classmethod
    def _parameters_from_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            return read_parameters(value) if value.strip() else {}
        return {} if value is None else value

    @field_validator("parameters", check_fields=False)
    @classmethod
    def _parameters_bounded(cls, value: dict[str, Any]) -> dict[str, Any]:
        return check_parameters(value)

    @field_validator("notification_email", check_fields=False)
    @classmethod
    def _addresses(cls, value: str | None) -> str | None:
        for address in (value or "").split(","):
            if address.strip() and not EMAIL.fullmatch(address.strip()):
                raise ValueError(f"{address.strip()[:60]!r} is not an e-mail address")
        return value


if TYPE_CHECKING:

    class JobFields(_Rules):
        """What a person may set on a job: see core.fields. The code is versioned apart from it."""

        def __getattr__(self, name: str) -> Any: ...

else:
    JobFields = create_model(
        "JobFields",
        __base__=_Rules,
        __module__=__name__,
        __doc__="What a person may set on a job: see core.fields. The code is versioned apart from it.",
        **{name: (_annotation(one), _info(one)) for name, one in FIELDS.items()},
    )


NO_OBJECT = 'must be a JSON object, such as {"region": "eu"}'


def read_parameters(text: str) -> dict[str, Any]:
    """Return the JSON object that somebody typed; raises ValueError for anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(NO_OBJECT) from None
    if not isinstance(value, dict):
        raise ValueError(NO_OBJECT)
    return value


def check_parameters(value: Any) -> dict[str, Any]:
    """`value` if it is a JSON object of bounded size that can be stored; raises ValueError otherwise."""
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise ValueError("must be plain JSON values") from None
    if not isinstance(value, dict):
        raise ValueError(NO_OBJECT)
    if len(text) > MAX_PARAMETERS_BYTES:
        raise ValueError(f"must be at most {MAX_PARAMETERS_BYTES} bytes of JSON")
    for key in _keys(value):
        if problem := name_problem(key):
            raise ValueError(f"the key {visible(key[:40])!r} {problem}")
    for key, part in value.items():
        if problem := unstorable(part, MAX_DEPTH - 1):
            raise ValueError(f"{key[:40]!r} holds {problem}, which cannot be stored: remove it")
    return value


def _keys(value: Any) -> Iterator[str]:
    """The keys of objects at any depth, which json.dumps has bounded."""
    if isinstance(value, dict):
        yield from map(str, value)
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _keys(part)


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

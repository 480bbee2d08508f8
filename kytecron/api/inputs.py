"""What the API takes: one model for each query and each body.

JSON bodies are strict: a number in quotes is not a number. What needs more than a field to judge (a schedule, a
job's code) is judged by the services, and answered in the same way.
"""

from __future__ import annotations

from datetime import UTC, datetime
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal

from flask import g
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from ..core.choices import ScheduleType, Source
from ..core.fields import FIELDS, PREVIEWED, Kind
from ..core.jobspec import JobFields, OneOf
from ..core.preview import MAX_PREVIEW
from ..core.source import EXAMPLE, MAX_BYTES
from ..core.states import Origin, Status
from ..core.untrusted import LARGEST, LARGEST_VERSION
from ..services import accounts, bulk, jobs, secrets, transfer
from ..store.queries import JOB_SORTS, JOB_STATUSES, MAX_LIMIT, NEVER_RAN
from .bodies import Judged


def _boolean(value: Any) -> Any:
    return {"true": True, "1": True, "false": False, "0": False}.get(value, value)


def _moment(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("write a time such as 2026-03-01T12:00:00Z") from None
    return value


def _in_utc(value: datetime) -> datetime:
    try:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError:
        raise ValueError("write a time between the years 1 and 9999") from None


Flag = Annotated[bool, BeforeValidator(_boolean)]
Moment = Annotated[datetime, BeforeValidator(_moment), AfterValidator(_in_utc)]
JobId = Annotated[int, Field(ge=1, le=LARGEST)]
VersionNumber = Annotated[int, Field(ge=1, le=LARGEST_VERSION)]
Word = Annotated[str, Field(min_length=1, max_length=200)]
OneScheduleType = Annotated[str, OneOf(ScheduleType)]


# -- queries -------------------------------------------------------------------------------------------------


class Query(BaseModel):
    """Base of queries: an unknown parameter is refused."""

    model_config = ConfigDict(extra="forbid")


class ListQuery(Query):
    """Which part of a list."""

    limit: int = Field(50, ge=1, le=MAX_LIMIT)
    cursor: str | None = Field(None, max_length=2000, description="`next_cursor` of the part before")


class JobsQuery(ListQuery):
    """Which jobs."""

    name: Word | None = Field(None, description="The whole name")
    q: Word | None = Field(None, description="Part of the name or the description")
    status: Literal[tuple(JOB_STATUSES)] | None = None  # type: ignore[valid-type]
    tag: Word | None = None
    schedule_type: OneScheduleType | None = None
    last_result: Literal[(*Status, NEVER_RAN)] | None = Field(  # type: ignore[valid-type]
        None, description="How the last run ended"
    )
    sort: Literal[tuple(JOB_SORTS)] = Field("name", description="`-` turns the order round")  # type: ignore[valid-type]


class ExecutionsQuery(ListQuery):
    """Which executions. A part may be short, even empty, and still have a `next_cursor`."""

    job: JobId | None = None
    status: list[Status] = Field(default_factory=list, max_length=8, description="One or several")
    origin: Origin | None = None
    slot_from: Moment | None = Field(None, alias="from", description="Scheduled then or later")
    slot_to: Moment | None = Field(None, alias="to", description="Scheduled before then")
    worker: Word | None = None
    version: VersionNumber | None = None
    text: Word | None = Field(None, description="Part of the output or the error")


class FailedQuery(ListQuery):
    """Which failures."""

    days: int = Field(7, ge=1, le=366)


class DaysQuery(Query):
    """How many UTC days, today included."""

    days: int = Field(30, ge=1, le=366)


class CountQuery(Query):
    """How many slots."""

    count: int = Field(10, ge=1, le=MAX_PREVIEW)


class LogQuery(Query):
    """From where on, and in which form."""

    after: str | None = Field(None, max_length=20, description="`cursor` of the piece before")
    follow: Flag = Field(False, description="Answer as plain text that grows until the run ends")


class ExportQuery(Query):
    """Which jobs, and in which form."""

    id: list[JobId] = Field(default_factory=list, max_length=MAX_LIMIT, description="All where left out")
    format: Literal["json", "yaml"] = "json"
    webhooks: Flag = Field(False, description="With the addresses of webhooks, which needs the role editor")


class ImportQuery(Query):
    """Whether to do it, and what to call new versions of code."""

    dry_run: Flag = False
    message: str = Field("", max_length=500)


class WaitQuery(Query):
    """Whether to wait for the end."""

    wait: int = Field(0, ge=0, le=60, description="Answer when the run has ended, or after so many seconds")


class CompareQuery(Query):
    """Which two versions."""

    from_version: VersionNumber = Field(alias="from")
    to_version: VersionNumber = Field(alias="to")
    context: Annotated[int, Field(ge=0, le=1000)] | None = Field(
        None, description="Equal lines kept around each change; all where left out"
    )


class ContentsQuery(Query):
    """Which contents."""

    hash: str = Field(pattern="^[0-9a-fA-F]{1,64}$", description="The first digits of the SHA-256")
    limit: int = Field(50, ge=1, le=MAX_LIMIT)


class WorkersQuery(Query):
    """Which workers."""

    hours: int = Field(24, ge=1, le=24 * 366, description="Heard of in the last so many hours")


class AuditQuery(ListQuery):
    """Which changes."""

    actor: Word | None = None
    action: Word | None = None
    source: Annotated[str, OneOf(Source)] | None = None
    subject_type: Word | None = None
    subject_id: Word | None = None
    at_from: Moment | None = Field(None, alias="from")
    at_to: Moment | None = Field(None, alias="to", description="Before then")


# -- bodies --------------------------------------------------------------------------------------------------


class Body(BaseModel):
    """Base of bodies: an unknown field is refused, types are those of JSON."""

    model_config = ConfigDict(extra="forbid", strict=True)


Code = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_BYTES,
        description="Python: a class that extends CronJobBase",
        examples=[EXAMPLE],
        json_schema_extra={"format": "job-code"},
    ),
]
Line = Annotated[str, Field(max_length=500)]

# What a form or a Python call may write in several ways has one way in JSON.
_KINDS_IN_JSON: dict[Kind, tuple[tuple[type, ...], str]] = {
    Kind.WORDS: ((list,), "a list of words"),
    Kind.JOBS: ((list,), "a list of job ids"),
    Kind.OBJECT: ((dict,), 'an object, such as {"region": "eu"}'),
    Kind.NUMBER: ((int, NoneType), "a whole number or null"),
}
JSON_TYPES = {
    name: _KINDS_IN_JSON[one.kind]
    for name, one in FIELDS.items()
    if one.kind in _KINDS_IN_JSON and (one.optional or one.kind is not Kind.NUMBER)
}


class _InJson(BaseModel):
    """Fields of a job as JSON."""

    model_config = ConfigDict(extra="forbid", strict=True, str_strip_whitespace=True)

    @field_validator(*JSON_TYPES, mode="before", check_fields=False)
    @classmethod
    def _types_of_json(cls, value: Any, info: ValidationInfo) -> Any:
        kinds, what = JSON_TYPES[info.field_name or ""]
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(f"must be {what}")
        return value


class JobInput(_InJson, JobFields, Judged):
    """A job's configuration as JSON."""

    message: Line = Field("", description="What is new in the code")
    allow_concurrent: bool = Field(False, deprecated=True, description="overlap_policy allow (true) or skip")
    depends_on_job: JobId | None = Field(None, deprecated=True, description="One id in depends_on")

    def given(self) -> dict[str, Any]:
        """What was sent, and nothing else."""
        return self.model_dump(exclude_unset=True)


class NewJob(JobInput):
    """A job to be made."""

    code: Code

    @classmethod
    def further_problems(cls, given: dict[str, Any]) -> dict[str, str]:
        return jobs.problems(g.actor, given)


def _drop_defaults(schema: dict[str, Any]) -> None:
    for described in schema["properties"].values():
        described.pop("default", None)


class JobChanges(JobInput):
    """What is to change of a job; the rest stays as it is."""

    # What is left out is not reset to a default.
    model_config = ConfigDict(json_schema_extra=_drop_defaults)

    name: str = Field("", min_length=1, max_length=200)
    code: Code = ""
    revision: int | None = Field(
        None, ge=1, le=LARGEST, description="`revision` of the job this change started from"
    )
    base_version: int | None = Field(
        None, ge=0, le=LARGEST, description="Version that the change of the code started from; 0 for none"
    )

    @classmethod
    def further_problems(cls, given: dict[str, Any]) -> dict[str, str]:
        return {name: text for name, text in jobs.problems(g.actor, given).items() if name in given}


class TriggerBody(Body):
    """How to run a job now."""

    parameters: dict[str, Any] = Field(default_factory=dict, description="Laid over the job's own parameters")
    note: Line = Field("", description="Why, for those who read the history")
    version: VersionNumber | None = Field(None, description="The current one where left out")


class ReasonBody(Body):
    """Why."""

    reason: Line = ""


class RollbackBody(Body):
    """Which version to make current."""

    version: VersionNumber


class CloneBody(Body):
    """How to name the copy."""

    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None


class BackfillBody(Body):
    """Which slots: `from` then on, before `to`. The older names `start` and `end` are taken, too."""

    slot_from: Moment = Field(alias="from")
    slot_to: Moment = Field(alias="to", description="Before then")
    dry_run: bool = Field(False, description="Only list the slots")

    @model_validator(mode="before")
    @classmethod
    def _older_names(cls, given: dict[str, Any]) -> dict[str, Any]:
        renamed = dict(given)
        for older, name in (("start", "from"), ("end", "to")):
            if older in renamed and name not in renamed:
                renamed[name] = renamed.pop(older)
        return renamed


class RerunBody(Body):
    """On which version to run again."""

    same_version: bool = Field(False, description="The version that ran then, instead of the current one")


class PruneBody(Body):
    """How many versions to keep besides the current one."""

    keep: int = Field(ge=1, le=1_000_000)


class CodeBody(Body):
    """Source code to be checked."""

    code: str = Field(max_length=MAX_BYTES)


class _Preview(_InJson):
    count: int = Field(10, ge=1, le=MAX_PREVIEW)
    job: JobId | None = Field(None, description="A job that this may become the schedule of")


if TYPE_CHECKING:

    class PreviewBody(_Preview):
        """A schedule: the fields of a job that say when it runs."""

else:
    PreviewBody = create_model(
        "PreviewBody",
        __base__=_Preview,
        __module__=__name__,
        __doc__="A schedule: the fields of a job that say when it runs.",
        **{
            name: (info.annotation, Field(title=info.title, description=info.description))
            if name == "schedule_type"
            else (info.annotation, info)
            for name in PREVIEWED
            if (info := JobFields.model_fields[name])
        },
    )


class ImportBody(Body):
    """A job file, as an export writes it."""

    kytecron: int = Field(transfer.FORMAT, description="The form of the file")
    jobs: Annotated[list[dict[str, Any]], Field(max_length=transfer.MAX_JOBS)]


class JobsFilter(Body):
    """Which jobs, as in the list of jobs."""

    name: Word | None = None
    q: Word | None = None
    status: Literal[tuple(JOB_STATUSES)] | None = None  # type: ignore[valid-type]
    tag: Word | None = None
    schedule_type: OneScheduleType | None = None
    last_result: Literal[(*Status, NEVER_RAN)] | None = None  # type: ignore[valid-type]


class BulkBody(Body):
    """What to do to several jobs: those of `ids`, or all that a `filter` finds."""

    action: Literal[tuple(bulk.ACTIONS)]  # type: ignore[valid-type]
    ids: Annotated[list[JobId], Field(min_length=1, max_length=bulk.MOST)] | None = None
    filter: JobsFilter | None = None
    tags: list[Word] = Field(default_factory=list, max_length=20, description="For the actions tag and untag")
    reason: Line = Field("", description="For the action disable, and the note of trigger")
    dry_run: bool = Field(False, description="Only tell what would be done")


# -- bodies about people -------------------------------------------------------------------------------------

Role = Annotated[str, OneOf(accounts.ROLES)]


class NewUser(Body, Judged):
    """Who may sign in from now on."""

    username: str = Field(min_length=1, max_length=accounts.MAX_USERNAME)
    role: Role
    password: Annotated[str, Field(max_length=accounts.MAX_PASSWORD)] | None = Field(
        None, description="null where they are to sign in by a link, and to choose one"
    )

    @classmethod
    def further_problems(cls, given: dict[str, Any]) -> dict[str, str]:
        found = accounts.user_problems(
            given.get("username", ""), given.get("password"), given.get("role", "")
        )
        return _of_given(found, given)


class UserChanges(Body):
    """What is to change of a user; the rest stays as it is."""

    role: Role | None = Field(None, description="Ends their sessions, and revokes tokens of theirs above it")
    enabled: bool | None = Field(None, description="false ends their sessions and revokes their tokens")


class NewTokenBody(Body, Judged):
    """What a token is for, and what it may do."""

    name: str = Field(min_length=1, max_length=100)
    role: Role
    expires_days: int | None = Field(
        None, ge=1, le=accounts.MAX_TOKEN_DAYS, description="It never ends where left out"
    )

    @classmethod
    def further_problems(cls, given: dict[str, Any]) -> dict[str, str]:
        found = accounts.token_problems(given.get("name", "").strip(), given.get("role", ""), None)
        return _of_given(found, given)


SecretValue = Annotated[str, Field(min_length=1, max_length=secrets.MAX_VALUE_BYTES)]


class NewSecret(Body, Judged):
    """A value for jobs, by its name."""

    name: str = Field(min_length=1, max_length=100, description="Such as API_KEY")
    value: SecretValue = Field(description="Never answered")

    @classmethod
    def further_problems(cls, given: dict[str, Any]) -> dict[str, str]:
        return _of_given(secrets.problems(given.get("name", ""), given.get("value", "")), given)


class SecretChange(Body):
    """Another value."""

    value: SecretValue = Field(description="Never answered")


def _of_given(found: dict[str, str], given: dict[str, Any]) -> dict[str, str]:
    return {name: text for name, text in found.items() if name in given}

"""What the API returns: one model for each shape, from which answers are written and described."""

from __future__ import annotations

from dataclasses import asdict
from datetime import date, datetime
from typing import Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from ..core import diff
from ..core.jobspec import JobFields
from ..core.states import Origin, Status
from ..core.workers import WorkerState
from ..services import transfer
from ..store import figures, queries
from ..store.models import CronJobExecution, KyteCronJobVersion, KyteCronJobVersionContent
from ..views import runs, versions
from ..views.audit import AuditView
from ..views.people import TokenView, UserView
from ..views.secrets import SecretView
from ..views.standing import Standing
from ..views.versions import VersionView
from ..views.workers import WorkerView

T = TypeVar("T")


class Shape(BaseModel):
    """Base of what is returned; every field is always there."""

    model_config = ConfigDict(extra="forbid", json_schema_serialization_defaults_required=True)


class Page(Shape, Generic[T]):
    """A part of a list; ask again with `cursor` set to `next_cursor` for the part after it."""

    items: list[T]
    next_cursor: str | None = Field(description="null at the end of the list")

    @classmethod
    def model_parametrized_name(cls, params: tuple[Any, ...]) -> str:
        """Its name in the OpenAPI document."""
        return f"{params[0].__name__}Page"


# -- jobs ----------------------------------------------------------------------------------------------------


class LastExecution(Shape):
    """The run of a job that ended last."""

    id: int
    status: Status
    started_at: datetime | None


class ExecutionSummary(Shape):
    """A job's chains since it exists, by how they ended; `attempts`, `recovered` and `skipped` stand beside."""

    total: int
    successful: int
    failed: int
    timeouts: int
    success_rate: float | None = Field(description="Per cent; null where nothing ran")
    attempts: int = Field(description="Runs, each attempt of a chain; skipped and cancelled ones left out")
    recovered: int = Field(description="Chains that completed after at least one failed attempt")
    skipped: int = Field(description="Slots that did not run; they stand outside of `total` and of the rate")
    avg_duration_ms: int | None
    last_execution: LastExecution | None


class Version(Shape):
    """One saved state of a job's code."""

    job_id: int
    version_number: int
    content_hash: str = Field(description="SHA-256 of the source")
    is_current: bool
    message: str
    lines_added: int
    lines_removed: int
    lines_changed: int
    lines_before: int
    lines_after: int
    created_at: datetime | None
    created_by: str | None

    @classmethod
    def of(cls, found: VersionView) -> Self:
        return cls(**found.for_programs())


class VersionDetail(Version):
    """One saved state of a job's code, with what it changed."""

    changes_from_previous: str | None = Field(description="The changed lines, shortened where they are many")

    @classmethod
    def of_detail(cls, row: KyteCronJobVersion) -> Self:
        return cls(**versions.detail_for_programs(row))


class _Known(Shape):
    """What comes first in a job."""

    id: int


class Job(JobFields, _Known):
    """A job: its configuration, and where it stands."""

    schedule: str = Field(description="The schedule in English")
    disabled_reason: str | None
    next_run_time: datetime | None
    in_dead_letter_queue: bool
    dead_letter_reason: str | None
    dead_letter_since: datetime | None
    consecutive_failures: int
    skipped_in_a_row: int = Field(description="Slots that were skipped since the last run")
    failing_since: datetime | None
    attempts_until: date | None = Field(
        description="Up to this UTC day attempts are counted, not chains: an upgrade found their runs gone"
    )
    current_version: int | None
    execution_summary: ExecutionSummary
    revision: int = Field(description="Send it with a change to have one that is out of date refused")
    created_at: datetime | None
    created_by: str | None
    updated_at: datetime | None
    updated_by: str | None


class JobDetail(Job):
    """A job with its current version."""

    version_info: Version | None
    warnings: list[str] = Field(description="What about the schedule may surprise; none for a disabled job")


class Upcoming(Shape):
    """The next slots of a job, in UTC. None for a job that is disabled."""

    schedule: str
    timezone: str
    slots: list[datetime]
    warnings: list[str] = Field(description="What about the schedule may surprise")


class Reason(Shape):
    """One fact about why a job has not run, or waits."""

    code: str = Field(
        description="Stable, for programs: disabled, running, retry, no_worker, next_slot and others"
    )
    text: str
    since: datetime | None


class Why(Shape):
    """Why a job has not run, or what it waits for."""

    verdict: str = Field(description="One sentence about the first reason")
    reasons: list[Reason] = Field(description="The weightiest first")


class Preview(Shape):
    """What a schedule will do."""

    schedule: str
    timezone: str
    slots: list[datetime]
    local_slots: list[str] = Field(description="The same in the schedule's time zone, with its offset")
    warnings: list[str]


class Problem(Shape):
    """Why code is refused; line and column count from 1."""

    line: int
    column: int
    message: str


class CodeCheck(Shape):
    """Whether code can be saved as a job."""

    valid: bool
    problems: list[Problem]


class Figures(Shape):
    """How chains ended, and how long runs took; `total` leaves out what was skipped or cancelled."""

    total: int
    completed: int
    failed: int
    timeout: int
    lost: int
    cancelled: int
    skipped: int
    attempts: int = Field(description="Runs, each attempt of a chain; skipped and cancelled ones left out")
    recovered: int = Field(description="Chains that completed after at least one failed attempt")
    success_rate: float | None
    avg_duration_ms: int | None
    p50_duration_ms: int | None
    p95_duration_ms: int | None
    counted_as: figures.CountedAs = Field(
        description="`attempts` where days are among it whose runs were gone when an upgrade began to count chains"
    )

    @classmethod
    def of(cls, found: figures.Figures, **more: Any) -> Self:
        return cls(**asdict(found), total=found.total, success_rate=found.success_rate, **more)


class DayFigures(Figures):
    """The chains that ended on one UTC day."""

    day: date


class Statistics(Shape):
    """How chains ended, by UTC day, oldest first, and together."""

    total: Figures
    by_day: list[DayFigures]

    @classmethod
    def of(cls, found: figures.Statistics) -> Self:
        return cls(
            total=Figures.of(found.total),
            by_day=[DayFigures.of(one, day=day) for day, one in found.days],
        )


class BackfillSlot(Shape):
    """A slot of a backfill: how its newest run ended, if it had one, and whether it will run (again)."""

    scheduled_time: datetime
    status: Status | None
    will_run: bool


class Backfill(Shape):
    """The slots of a range; those that `will_run` were made into executions, unless it was a dry run."""

    dry_run: bool
    runs: int
    slots: list[BackfillSlot]


class JobFile(Shape):
    """Jobs by name, each with what differs from the defaults."""

    kytecron: int = Field(description="The form of the file")
    jobs: list[dict[str, Any]]


class FieldChange(Shape):
    """A setting as it was, and as it is then."""

    before: Any
    after: Any


class ImportedJob(Shape):
    """What an import does to one job."""

    name: str
    job_id: int | None = Field(description="null for a job that is made")
    action: str = Field(description="create, update or unchanged")
    fields: dict[str, FieldChange]
    code_diff: str = Field(description="The changed lines; empty where the code stays")

    @classmethod
    def of(cls, change: transfer.Change) -> Self:
        fields = {
            name: FieldChange(before=both["from"], after=both["to"]) for name, both in change.fields().items()
        }
        return cls(
            name=change.name,
            job_id=change.job_id,
            action=change.action,
            fields=fields,
            code_diff=change.code_diff(),
        )


class Import(Shape):
    """What an import did, or would do, parents before children."""

    dry_run: bool
    jobs: list[ImportedJob]


class Outcome(Shape):
    """What became of one job in a bulk action."""

    id: int
    name: str
    message: str | None = Field(description="Why it was refused; null where it was done")


class Bulk(Shape):
    """What a bulk action did, or would do."""

    action: str
    dry_run: bool
    done: list[Outcome]
    refused: list[Outcome]


# -- executions ----------------------------------------------------------------------------------------------


class Execution(Shape):
    """One attempt to serve one slot of a job."""

    id: int
    job_id: int
    job_name: str
    status: Status
    origin: Origin
    scheduled_time: datetime = Field(description="The slot")
    due_time: datetime | None = Field(description="May start from then on; null while it waits")
    retry_count: int
    is_retry: bool
    parent_execution: int | None = Field(description="The attempt before this one")
    rerun: int = Field(description="How often this slot was asked for again")
    priority: int
    worker_tag: str
    waiting_for: str | None
    waiting_until: datetime | None
    parents_used: list[int] | None
    version: int | None
    parameters: dict[str, Any] | None
    note: str | None
    triggered_by: str | None
    cancel_reason: str | None
    release_reason: str | None = Field(
        description="Its worker was asked to stop it and to give it up as lost"
    )
    given_back: int = Field(description="How often a worker claimed it and could not start it")
    interruptions: int = Field(
        description="How many attempts before it the shutdown of a worker cut short: they use up no retries"
    )
    locked_by: str | None
    locked_at: datetime | None
    locked_until: datetime | None
    started_at: datetime | None
    completed_at: datetime | None
    duration_ms: int | None
    cpu_ms: int | None
    memory_peak_mb: float | None
    exit_code: int | None
    progress_percent: float | None
    progress_note: str | None
    output_bytes: int
    error: str | None
    skipped_reason: str | None
    slots_until: datetime | None = Field(
        description="Of a row that stands for many missed slots, from `scheduled_time` on: the last of them"
    )
    slots_count: int = Field(description="How many slots the row stands for")

    @classmethod
    def of(cls, row: CronJobExecution, job_name: str) -> Self:
        return cls.model_construct(**runs.for_programs(row, job_name))


class Attempt(Shape):
    """One attempt of a chain."""

    id: int
    retry_count: int
    status: Status
    due_time: datetime | None
    started_at: datetime | None
    completed_at: datetime | None
    error: str | None


class ExecutionDetail(Execution):
    """An execution with all it left but its output, and every attempt of its chain."""

    stack_trace: str | None
    result: Any = Field(description="What `execute` returned")
    attempts: list[Attempt]

    @classmethod
    def of_detail(cls, found: queries.ExecutionDetail) -> Self:
        values = runs.detail_for_programs(found)
        attempts = [Attempt.model_construct(**one) for one in values["attempts"]]
        return cls.model_construct(**values | {"attempts": attempts})


class Log(Shape):
    """A piece of a log; ask again with `after` set to `cursor` until it is finished."""

    text: str
    cursor: str
    finished: bool


class Lock(Shape):
    """A run under the lease of a worker."""

    execution_id: int
    job_id: int
    job_name: str
    locked_by: str | None
    locked_at: datetime | None
    locked_until: datetime | None
    stale: bool = Field(description="The lease has ended: the worker vanished")


# -- versions and contents -----------------------------------------------------------------------------------


class Segment(Shape):
    """A piece of a line; `marked` where it is what changed in the line."""

    text: str
    marked: bool


class DiffRow(Shape):
    """One row of a side-by-side view; a `gap` stands for `hidden` equal lines."""

    kind: str = Field(description="equal, changed, added, removed or gap")
    old_line: int | None
    old: list[Segment]
    new_line: int | None
    new: list[Segment]
    hidden: int


class DiffCounts(Shape):
    """How many lines changed, and how many each side has."""

    added: int
    removed: int
    changed: int
    before: int
    after: int


class Comparison(Shape):
    """Two versions of a job's code side by side."""

    from_version: int
    to_version: int
    counts: DiffCounts
    rows: list[DiffRow]

    @classmethod
    def of(cls, from_version: int, to_version: int, found: diff.Diff) -> Self:
        return cls(**versions.comparison_for_programs(from_version, to_version, found))


class Pruned(Shape):
    """How many versions were removed."""

    removed: int


class Content(Shape):
    """Source code as it is stored, once however many versions have it."""

    content_hash: str
    size_bytes: int
    compressed_bytes: int
    reference_count: int
    created_at: datetime | None

    @classmethod
    def of(cls, row: KyteCronJobVersionContent) -> Self:
        return cls(**_attributes(row, cls))


class Contents(Shape):
    """Stored sources."""

    items: list[Content]


class SharedContent(Shape):
    """A source that several versions have."""

    content_hash: str
    reference_count: int
    size_bytes: int
    compressed_bytes: int


class ContentStats(Shape):
    """What is stored, and what sharing and compression save, in per cent."""

    contents: int
    versions: int
    shared_contents: int
    orphaned_contents: int
    bytes_of_versions: int
    bytes_of_contents: int
    bytes_stored: int
    dedup_rate: float | None
    compression_rate: float | None
    saved_rate: float | None
    top_shared: list[SharedContent]


# -- people --------------------------------------------------------------------------------------------------


class User(Shape):
    """Somebody who may sign in, unless they are disabled."""

    id: int
    username: str
    role: str
    enabled: bool
    has_password: bool = Field(description="Without one they sign in by a link, and choose one")
    created_at: datetime
    last_login_at: datetime | None

    @classmethod
    def of(cls, found: UserView) -> Self:
        return cls.model_construct(**found.for_programs())


class SignInLink(Shape):
    """A link that signs somebody in once."""

    url: str = Field(description="Without `KYTECRON_PUBLIC_URL` the path alone")
    expires_in_seconds: int


class SignedOut(Shape):
    """What was ended."""

    sessions: int


class Token(Shape):
    """An API token, without the token itself."""

    id: int
    name: str
    role: str
    state: Literal["valid", "expired", "revoked"]
    created_at: datetime
    created_by: str | None
    expires_at: datetime | None = Field(description="null where it never ends")
    revoked_at: datetime | None
    last_used_at: datetime | None

    @classmethod
    def of(cls, found: TokenView, **more: Any) -> Self:
        return cls.model_construct(**found.for_programs(), **more)


class NewToken(Token):
    """An API token as it is shown once."""

    token: str


class GrantedJob(Shape):
    """A job that may read a secret."""

    id: int
    name: str


class Secret(Shape):
    """A value for jobs, without the value."""

    id: int
    name: str
    created_at: datetime
    updated_at: datetime
    updated_by: str | None
    jobs: list[GrantedJob] = Field(description="Those that may read it")

    @classmethod
    def of(cls, found: SecretView) -> Self:
        return cls(**found.for_programs())


class Setting(Shape):
    """A setting of the web application; of one that is secret only whether it is set."""

    variable: str
    value: str
    help: str
    secret: bool


class SettingsShown(Shape):
    """What the web application is set to. Workers have settings of their own."""

    items: list[Setting]


# -- system --------------------------------------------------------------------------------------------------


class Worker(Shape):
    """A worker process as it last reported."""

    worker_id: str
    state: WorkerState = Field(
        description="alive; draining: stops when its runs have ended; silent: has not reported for as long as its own "
        "lease; gone: its process has ended or its runs were taken over; stopped"
    )
    host: str
    pid: int
    version: str
    tags: list[str]
    slots: int
    running: int
    clock_skew_ms: float
    tzdata: str
    lease_seconds: float = Field(description="Its own: for so long after a report it counts as alive")
    renew_seconds: float = Field(description="It reports this often")
    started_at: datetime
    last_seen_at: datetime
    stopped_at: datetime | None
    gone_at: datetime | None = Field(description="When others found it gone; null while it may be alive")
    statistics: dict[str, Any] | None
    trouble: str | None = Field(description="What keeps it from starting runs; null where nothing does")
    trouble_since: datetime | None
    trouble_jobs: list[int] | None = Field(description="The jobs that it cannot start; null: all")

    @classmethod
    def of(cls, found: WorkerView) -> Self:
        return cls(**found.for_programs())


class Workers(Shape):
    """Worker processes."""

    items: list[Worker]


class AuditEntry(Shape):
    """A change: who, when, from where, what."""

    id: int
    at: datetime
    actor: str
    source: str
    ip: str
    action: str
    subject_type: str
    subject_id: str
    subject_name: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None

    @classmethod
    def of(cls, found: AuditView) -> Self:
        return cls(**found.for_programs())


class Verdict(Shape):
    """Whether anything needs a person, in a sentence."""

    tone: Literal["good", "warn", "bad"]
    text: str


class Stats(Shape):
    """How things stand now."""

    jobs: int
    enabled: int
    disabled: int
    dead: int
    running: int
    pending: int
    overdue: int = Field(description="Pending, and due more than a minute ago")
    stale_locks: int
    workers: int = Field(description="Alive and starting runs")
    failing: int = Field(description="Enabled jobs whose last chains failed")
    skipping: int = Field(description="Enabled jobs that have skipped several slots since their last run")
    today: Figures
    verdict: Verdict

    @classmethod
    def of(cls, found: Standing) -> Self:
        values = found.for_programs()
        return cls(**values | {"today": Figures.of(values["today"])})


def _without_details(schema: dict[str, Any]) -> None:
    schema["required"].remove("details")


class ErrorBody(Shape):
    """What is wrong."""

    model_config = ConfigDict(json_schema_extra=_without_details)

    code: str = Field(description="Stable, for programs")
    message: str = Field(description="For people")
    fields: dict[str, str] = Field(
        description="For each wrong field: what is wrong and what to write instead"
    )
    details: dict[str, Any] = Field({}, description="Only of a stale edit: both sides")


class Error(Shape):
    """Every error looks like this."""

    error: ErrorBody


def _attributes(row: object, shape: type[BaseModel], *leave_out: str) -> dict[str, Any]:
    return {name: getattr(row, name) for name in shape.model_fields if name not in leave_out}

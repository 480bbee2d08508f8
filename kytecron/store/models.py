"""Tables, constraints, indexes. No behaviour.

Names of tables and columns that the seed system has are kept. Times are UTC with microseconds. Every
configuration column has a server default, so that a row inserted by hand in SQL is a working job.
Names compare byte by byte on every database, so that one does not forbid what another allows.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any, assert_never

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from ..core.choices import MessageStatus, Role, Source, TokenKind
from ..core.fields import COLUMNS, FIELDS, JobField, Kind
from ..core.states import Origin, Status
from ..core.untrusted import storable
from . import dialects
from .dialects import Id, Rare


class Base(DeclarativeBase):
    """The one metadata that the web app, the worker and the migrations share."""

    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """An aware datetime in Python, naive UTC with microseconds in the table."""

    impl = sa.DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        return dialect.type_descriptor(dialects.of_type(dialect).moment())

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone; times are passed as aware datetimes")
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


class _Text(sa.types.TypeDecorator[str]):
    """What no database takes is made visible on its way in: see `storable`.

    So it is with what columns are compared with: whoever searches for a NUL finds the sign for it.
    """

    impl = sa.String
    cache_ok = True
    length: int | None

    @property
    def python_type(self) -> type[str]:
        return str

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        if not isinstance(value, str):
            return value
        kept = storable(value)
        # Half a character takes more room once it is seen.
        return kept[: self.length] if len(kept) > len(value) else kept


class ShortText(_Text):
    """Text of at most so many characters."""

    cache_ok = True


class LongText(_Text):
    """Text of any length."""

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        return dialect.type_descriptor(dialects.of_type(dialect).long_text())


class LongBlob(sa.types.TypeDecorator[bytes]):
    """Bytes of any length."""

    impl = sa.LargeBinary
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        return dialect.type_descriptor(dialects.of_type(dialect).long_bytes())


def _id() -> Mapped[int]:
    return mapped_column(Id, primary_key=True, autoincrement=True)


def _flag(default: bool) -> Mapped[bool]:
    return mapped_column(sa.Boolean, nullable=False, default=default, server_default="1" if default else "0")


def _number(default: int) -> Mapped[int]:
    return mapped_column(sa.Integer, nullable=False, default=default, server_default=str(default))


def _count() -> Mapped[int]:
    return mapped_column(sa.BigInteger, nullable=False, default=0, server_default="0")


def _word(default: str, length: int = 16) -> Mapped[str]:
    return mapped_column(ShortText(length), nullable=False, default=default, server_default=default)


def _column(one: JobField) -> Any:
    """The column of a job's field."""
    width = one.width or one.longest or 16
    match one.kind:
        case Kind.LINE | Kind.PROSE | Kind.CHOICE | Kind.WEEKDAYS if one.required or one.optional:
            return mapped_column(ShortText(width), nullable=one.optional)
        case Kind.LINE | Kind.PROSE | Kind.CHOICE | Kind.WEEKDAYS:
            return _word(one.a_default(), width)
        case Kind.WORDS:
            # With a comma at both ends (`,etl,nightly,`), so that LIKE '%,etl,%' finds one.
            return _word("", width)
        case Kind.NUMBER:
            return mapped_column(sa.Integer, nullable=True) if one.optional else _number(one.default)
        case Kind.FLAG:
            return _flag(one.default)
        case Kind.MOMENT:
            return mapped_column(UtcDateTime, nullable=True)
        case Kind.OBJECT:
            return mapped_column(sa.JSON(none_as_null=True), nullable=True)
        case Kind.JOBS:
            raise TypeError(f"{one.name} is kept as rows of a table of its own")
        case never:
            assert_never(never)


class Configuration:
    """A job's settings: a column for each of core.fields, which says what it holds. Here stand the types only."""

    name: Mapped[str]
    description: Mapped[str]
    tags: Mapped[str]
    schedule_type: Mapped[str]
    cron_expression: Mapped[str | None]
    interval_seconds: Mapped[int | None]
    interval_anchor: Mapped[str]
    time_of_day: Mapped[str | None]
    day_of_week: Mapped[str | None]
    day_of_month: Mapped[int | None]
    timezone: Mapped[str]
    starts_at: Mapped[datetime | None]
    ends_at: Mapped[datetime | None]
    max_runs: Mapped[int | None]
    jitter_seconds: Mapped[int]
    timeout_seconds: Mapped[int]
    memory_limit_mb: Mapped[int | None]
    cpu_limit_seconds: Mapped[int | None]
    parameters: Mapped[dict[str, Any] | None]
    priority: Mapped[int]
    worker_tag: Mapped[str]
    overlap_policy: Mapped[str]
    queue_length: Mapped[int]
    misfire_policy: Mapped[str]
    misfire_grace_seconds: Mapped[int]
    on_lost_contact: Mapped[str]
    max_retries: Mapped[int]
    retry_strategy: Mapped[str]
    retry_delay_seconds: Mapped[int]
    retry_max_delay_seconds: Mapped[int]
    dependency_mode: Mapped[str]
    dependency_timeout_seconds: Mapped[int]
    require_fresh: Mapped[bool]
    notify_on_failure: Mapped[bool]
    notify_after_failures: Mapped[int]
    notify_on_dead_letter: Mapped[bool]
    notify_on_recovery: Mapped[bool]
    slack_webhook: Mapped[str | None]
    notification_email: Mapped[str | None]
    enabled: Mapped[bool]


for _name in COLUMNS:
    setattr(Configuration, _name, _column(FIELDS[_name]))


class CronJob(Configuration, Base):
    """A job: its schedule, how it runs, whom it tells, and where it stands."""

    __tablename__ = "CronJob"

    id: Mapped[int] = _id()
    schedule_anchor: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """The first slot of an interval."""
    disabled_reason: Mapped[str | None] = mapped_column(ShortText(500))
    next_run_time: Mapped[datetime | None] = mapped_column(UtcDateTime)
    in_dead_letter_queue: Mapped[bool] = _flag(False)
    dead_letter_reason: Mapped[str | None] = mapped_column(ShortText(2000))
    dead_letter_since: Mapped[datetime | None] = mapped_column(UtcDateTime)
    consecutive_failures: Mapped[int] = _number(0)
    failing_since: Mapped[datetime | None] = mapped_column(UtcDateTime)

    # Rolled up as runs settle, never counted over history.
    runs_scheduled: Mapped[int] = _count()
    runs_total: Mapped[int] = _count()
    runs_completed: Mapped[int] = _count()
    runs_failed: Mapped[int] = _count()
    runs_timeout: Mapped[int] = _count()
    retried_failed: Mapped[int] = _count()
    """Of runs_failed and runs_timeout, those that another attempt followed: without them, chains are left."""
    retried_timeout: Mapped[int] = _count()
    runs_recovered: Mapped[int] = _count()
    """Chains that completed after at least one failed attempt."""
    runs_skipped: Mapped[int] = _count()
    skipped_in_a_row: Mapped[int] = _count()
    """Slots that were skipped since the last run started."""
    chains_counted: Mapped[bool] = mapped_column(sa.Boolean, nullable=False, default=True, server_default="0")
    """Whether the runs from before there were these columns have been counted into them."""
    attempts_until: Mapped[date | None] = mapped_column(sa.Date)
    """The last UTC day whose figures count attempts: its runs were gone when this release began to count chains."""
    pruned_until: Mapped[date | None] = mapped_column(sa.Date)
    """The last UTC day of which ended runs were removed; from the next day on the ledger is complete."""
    duration_total_ms: Mapped[int] = _count()
    recent_results: Mapped[str] = _word("", 30)
    """The last 30 chains that ran, oldest first, one letter each for how they ended: see `services.endings.LETTERS`."""
    last_execution: Mapped[int | None] = mapped_column(Id)
    last_status: Mapped[str | None] = mapped_column(ShortText(16))
    last_run_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_success_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_success_version: Mapped[int | None] = mapped_column(sa.Integer)

    current_version: Mapped[int | None] = mapped_column(sa.Integer)
    state: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON(none_as_null=True))
    revision: Mapped[int] = _number(1)
    """Grows with every edit of the configuration; an edit that started from an older one is refused."""
    created_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_by: Mapped[str | None] = mapped_column(ShortText(100))
    updated_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    updated_by: Mapped[str | None] = mapped_column(ShortText(100))
    deleted_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    deleted_id: Mapped[int] = mapped_column(Id, nullable=False, default=0, server_default="0")
    """0 while the job lives, its own id once deleted: a deleted job's name is free again."""

    __table_args__ = (
        sa.UniqueConstraint("name", "deleted_id"),
        sa.Index("ix_CronJob_due", "enabled", "next_run_time"),
    )


ENABLED: Any = CronJob.__table__.c.enabled == sa.true()
"""Conditions on jobs. Not `enabled.is_(True)`: for IS TRUE, MariaDB looks into no index."""
NOT_ENABLED: Any = CronJob.__table__.c.enabled == sa.false()
FAILING: Any = sa.and_(ENABLED, CronJob.__table__.c.consecutive_failures > 0)
SKIPPING: Any = sa.and_(ENABLED, CronJob.__table__.c.skipped_in_a_row >= 3)
"""One skipped slot now and then is what an overlap policy is for."""


class CronJobDependency(Base):
    """An edge of the graph: `cron_job` depends on `parent`."""

    __tablename__ = "CronJobDependency"

    cron_job: Mapped[int] = mapped_column(
        Id, sa.ForeignKey("CronJob.id"), primary_key=True, autoincrement=False
    )
    parent: Mapped[int] = mapped_column(
        Id, sa.ForeignKey("CronJob.id"), primary_key=True, autoincrement=False, index=True
    )


class CronJobExecution(Base):
    """One attempt to serve one slot: the ledger.

    No foreign keys: checking one takes a shared lock on the job's row in every insert, and jobs are never
    deleted for real.
    """

    __tablename__ = "CronJobExecution"

    id: Mapped[int] = _id()
    cron_job: Mapped[int] = mapped_column(Id)
    scheduled_time: Mapped[datetime] = mapped_column(UtcDateTime)
    """The slot."""
    rerun: Mapped[int] = _number(0)
    """How often a person asked for this slot again; 0 for what the schedule made."""
    retry_count: Mapped[int] = _number(0)
    is_retry: Mapped[bool] = _flag(False)
    parent_execution: Mapped[int | None] = mapped_column(Id)
    """The attempt before this one."""
    origin: Mapped[str] = _word(Origin.SCHEDULE)
    status: Mapped[str] = _word(Status.PENDING)

    due_time: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """May start from then on; NULL while it waits for something other than time (`waiting_for`)."""
    queue_time: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """Orders due rows: due_time plus a handicap for low priority, so that age wins in the end."""
    priority: Mapped[int] = _number(5)
    worker_tag: Mapped[str] = _word("", 64)
    waiting_for: Mapped[str | None] = mapped_column(ShortText(500))
    waiting_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    parents_used: Mapped[list[int] | None] = mapped_column(sa.JSON(none_as_null=True))

    version: Mapped[int | None] = mapped_column(sa.Integer)
    """The version that ran; NULL until it starts."""
    requested_version: Mapped[int | None] = mapped_column(sa.Integer)
    """A version that somebody asked for; NULL means the current one at the start, retries included."""
    parameters: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON(none_as_null=True))
    note: Mapped[str | None] = mapped_column(ShortText(500))
    triggered_by: Mapped[str | None] = mapped_column(ShortText(100))
    cancel_reason: Mapped[str | None] = mapped_column(ShortText(500))
    """Set: whoever runs this is asked to stop it."""

    release_reason: Mapped[str | None] = mapped_column(ShortText(500))
    """Set: whoever runs this is asked to stop it and to give it up as lost."""

    locked_by: Mapped[str | None] = mapped_column(ShortText(100))
    locked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    locked_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    token: Mapped[int | None] = mapped_column(sa.BigInteger)
    """Drawn by the worker for the claim that holds this row: see `core.states.Claim`."""
    given_back: Mapped[int] = _number(0)
    """How often a worker claimed this run and could not start it."""
    interruptions: Mapped[int] = _number(0)
    """How many attempts before this one a worker's own shutdown cut short: they use up no retries."""
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    completed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    duration_ms: Mapped[int | None] = mapped_column(sa.BigInteger)
    cpu_ms: Mapped[int | None] = mapped_column(sa.BigInteger)
    memory_peak_mb: Mapped[float | None] = mapped_column(sa.Float)
    exit_code: Mapped[int | None] = mapped_column(sa.Integer)
    progress_percent: Mapped[float | None] = mapped_column(sa.Float)
    progress_note: Mapped[str | None] = mapped_column(ShortText(500))

    output: Mapped[str | None] = mapped_column(LongText, deferred=True)
    """What was printed after the last row in CronJobOutput: all of it, for a short run."""
    output_bytes: Mapped[int] = _count()
    error: Mapped[str | None] = mapped_column(ShortText(2000))
    stack_trace: Mapped[str | None] = mapped_column(LongText, deferred=True)
    result: Mapped[Any | None] = mapped_column(sa.JSON(none_as_null=True), deferred=True)
    skipped_reason: Mapped[str | None] = mapped_column(ShortText(500))
    slots_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """Of a row that stands for many missed slots, from `scheduled_time` on: the last of them."""
    slots_count: Mapped[int] = _number(1)
    """How many slots this row stands for."""

    __table_args__ = (
        # A second run of a slot is impossible, whoever tries.
        sa.UniqueConstraint(
            "cron_job", "scheduled_time", "rerun", "retry_count", name="uq_CronJobExecution_slot"
        ),
        sa.Index("ix_CronJobExecution_queue", "status", "worker_tag", "queue_time"),
        # The tag, so that runs for other workers are passed over within the index.
        sa.Index("ix_CronJobExecution_due", "status", "due_time", "worker_tag"),
        # SQLite and MariaDB append the primary key, so these three also give pages of lists.
        sa.Index("ix_CronJobExecution_slots", "status", "scheduled_time"),
        sa.Index("ix_CronJobExecution_job_status", "cron_job", "status"),
        sa.Index("ix_CronJobExecution_job", "cron_job"),
        # Few rows have it; the index of SQLite and PostgreSQL holds only those (migrations 0007 and 0009).
        sa.Index("ix_CronJobExecution_slots_until", "slots_until"),
    )


_STATUS: Any = CronJobExecution.__table__.c.status
PENDING = Rare(_STATUS == Status.PENDING)
RUNNING = Rare(_STATUS == Status.RUNNING)
GOING_ON = Rare(_STATUS.in_([Status.PENDING, Status.RUNNING]))
"""Conditions on executions that have not ended: what is looked for by them is found in an index."""


def lease_ended(now: datetime) -> Any:
    """The condition on running executions that `core.workers.lease_has_ended` is: each of them has a lease."""
    return CronJobExecution.__table__.c.locked_until < now


class CronJobOutput(Base):
    """Output of a running or long-printing execution, in pieces; the rest stands in CronJobExecution.output."""

    __tablename__ = "CronJobOutput"

    execution: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=False)
    seq: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
    text: Mapped[str] = mapped_column(LongText)
    is_tail: Mapped[bool] = _flag(False)
    """Shown while the run goes on; replaced by the true last half when it ends."""


class CronJobDailyStat(Base):
    """Runs of one job that ended on one UTC day, rolled up by `settle`."""

    __tablename__ = "CronJobDailyStat"

    cron_job: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=False)
    day: Mapped[date] = mapped_column(sa.Date, primary_key=True)
    completed: Mapped[int] = _number(0)
    failed: Mapped[int] = _number(0)
    timeout: Mapped[int] = _number(0)
    lost: Mapped[int] = _number(0)
    cancelled: Mapped[int] = _number(0)
    skipped: Mapped[int] = _number(0)
    retried_failed: Mapped[int] = _number(0)
    """Of the failed ones, those that another attempt followed, as are the next two of theirs."""
    retried_timeout: Mapped[int] = _number(0)
    retried_lost: Mapped[int] = _number(0)
    recovered: Mapped[int] = _number(0)
    """Chains that completed after at least one failed attempt."""
    duration_ms: Mapped[int] = _count()
    duration_min_ms: Mapped[int | None] = mapped_column(sa.BigInteger)
    """The shortest and the longest; NULL where some are in the histogram alone."""
    duration_max_ms: Mapped[int | None] = mapped_column(sa.BigInteger)
    durations: Mapped[dict[str, int] | None] = mapped_column(sa.JSON(none_as_null=True))
    """Histogram on a log scale: bucket -> runs; see `core.statistics`."""

    __table_args__ = (
        # Holds what the sums over all jobs need, so that they read the index alone.
        sa.Index(
            "ix_CronJobDailyStat_day",
            *("day", "completed", "failed", "timeout", "lost", "cancelled", "skipped", "duration_ms"),
            *("retried_failed", "retried_timeout", "retried_lost", "recovered"),
        ),
    )


class KyteCronJobVersionContent(Base):
    """Source code, once per SHA-256, compressed with bzip2."""

    __tablename__ = "KyteCronJobVersionContent"

    content_hash: Mapped[str] = mapped_column(ShortText(64), primary_key=True)
    code: Mapped[bytes] = mapped_column(LongBlob, deferred=True)
    size_bytes: Mapped[int] = _number(0)
    compressed_bytes: Mapped[int] = _number(0)
    reference_count: Mapped[int] = _number(0)
    """Always the number of versions that point here."""
    created_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    __table_args__ = (sa.Index("ix_KyteCronJobVersionContent_references", "reference_count"),)


class KyteCronJobVersion(Base):
    """One saved state of a job's code."""

    __tablename__ = "KyteCronJobVersion"

    id: Mapped[int] = _id()
    cron_job: Mapped[int] = mapped_column(Id, sa.ForeignKey("CronJob.id"))
    version_number: Mapped[int] = mapped_column(sa.Integer)
    content_hash: Mapped[str] = mapped_column(
        ShortText(64), sa.ForeignKey("KyteCronJobVersionContent.content_hash"), index=True
    )
    is_current: Mapped[bool] = _flag(False)
    message: Mapped[str] = _word("", 500)
    changes_from_previous: Mapped[str | None] = mapped_column(LongText, deferred=True)
    lines_added: Mapped[int] = _number(0)
    lines_removed: Mapped[int] = _number(0)
    lines_changed: Mapped[int] = _number(0)
    lines_before: Mapped[int] = _number(0)
    lines_after: Mapped[int] = _number(0)
    created_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_by: Mapped[str | None] = mapped_column(ShortText(100))

    __table_args__ = (sa.UniqueConstraint("cron_job", "version_number"),)


IS_UNSENT = {
    MessageStatus.PENDING: True,
    MessageStatus.SENDING: True,
    MessageStatus.SENT: False,
    MessageStatus.DEAD: False,
}
UNSENT = tuple(status for status, unsent in IS_UNSENT.items() if unsent)
"""Messages that are still to be sent, and those whose sender may have died over it."""


class CronOutbox(Base):
    """A message to one channel, written in the transaction of its event and sent by any worker."""

    __tablename__ = "CronOutbox"

    id: Mapped[int] = _id()
    cause: Mapped[str] = mapped_column(ShortText(200))
    """One message per cause and channel, for example `job 5: failure, execution 17`."""
    kind: Mapped[str] = mapped_column(ShortText(32))
    channel: Mapped[str] = mapped_column(ShortText(16))
    target: Mapped[str] = mapped_column(ShortText(500))
    payload: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    cron_job: Mapped[int | None] = mapped_column(Id)
    execution: Mapped[int | None] = mapped_column(Id)
    status: Mapped[str] = _word(MessageStatus.PENDING)
    attempts: Mapped[int] = _number(0)
    due_time: Mapped[datetime] = mapped_column(UtcDateTime)
    locked_by: Mapped[str | None] = mapped_column(ShortText(100))
    last_error: Mapped[str | None] = mapped_column(ShortText(500))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    sent_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    __table_args__ = (
        sa.UniqueConstraint("cause", "channel"),
        sa.Index("ix_CronOutbox_due", "status", "due_time"),
    )


class CronWorkerRecord(Base):
    """A worker process as it last reported."""

    __tablename__ = "CronWorker"

    worker_id: Mapped[str] = mapped_column(ShortText(100), primary_key=True)
    host: Mapped[str] = mapped_column(ShortText(255))
    boot_id: Mapped[str] = mapped_column(ShortText(64))
    pid: Mapped[int] = mapped_column(sa.Integer)
    process_started: Mapped[str] = mapped_column(ShortText(32))
    """The kernel's start time of the process: with host, boot and pid it names one life of one process."""
    version: Mapped[str] = mapped_column(ShortText(32))
    tags: Mapped[str] = _word("", 500)
    slots: Mapped[int] = _number(1)
    running: Mapped[int] = _number(0)
    clock_skew_ms: Mapped[float] = mapped_column(sa.Float, default=0.0, server_default="0")
    tzdata: Mapped[str] = _word("", 32)
    draining: Mapped[bool] = _flag(False)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    last_seen_at: Mapped[datetime] = mapped_column(UtcDateTime)
    stopped_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    gone_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """Since when it is known that its process has ended, or that its runs were taken over."""
    lease_seconds: Mapped[float] = mapped_column(sa.Float, default=60.0, server_default="60")
    """Its own: for so long after a report it counts as alive."""
    renew_seconds: Mapped[float] = mapped_column(sa.Float, default=10.0, server_default="10")
    """Its own: it reports this often."""
    statistics: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON(none_as_null=True))
    trouble: Mapped[str | None] = mapped_column(ShortText(500))
    """What keeps this worker from starting runs, for people."""
    trouble_since: Mapped[datetime | None] = mapped_column(UtcDateTime)
    trouble_jobs: Mapped[list[int] | None] = mapped_column(sa.JSON(none_as_null=True))
    """The jobs that the trouble keeps from starting; NULL: all."""


class CronUser(Base):
    """A person who may sign in."""

    __tablename__ = "CronUser"

    id: Mapped[int] = _id()
    username: Mapped[str] = mapped_column(ShortText(100), unique=True)
    password_hash: Mapped[str | None] = mapped_column(ShortText(255))
    role: Mapped[str] = _word(Role.VIEWER)
    enabled: Mapped[bool] = _flag(True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    last_login_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class CronSession(Base):
    """A sign-in. The browser holds the token, the table its hash."""

    __tablename__ = "CronSession"

    token_hash: Mapped[str] = mapped_column(ShortText(64), primary_key=True)
    user: Mapped[int] = mapped_column(Id, sa.ForeignKey("CronUser.id"), index=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    last_seen_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    ip: Mapped[str] = _word("", 64)
    user_agent: Mapped[str] = _word("", 255)


class CronToken(Base):
    """A bearer token of the API, shown once, stored hashed; a sign-in link is one of the kind `sign-in`."""

    __tablename__ = "CronToken"

    id: Mapped[int] = _id()
    name: Mapped[str] = mapped_column(ShortText(100))
    token_hash: Mapped[str] = mapped_column(ShortText(64), unique=True)
    role: Mapped[str] = mapped_column(ShortText(16))
    kind: Mapped[str] = _word(TokenKind.API)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    created_by: Mapped[str | None] = mapped_column(ShortText(100))
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class CronThrottle(Base):
    """Attempts counted per key and time window: sign-ins, triggers."""

    __tablename__ = "CronThrottle"

    key: Mapped[str] = mapped_column(ShortText(200), primary_key=True)
    window: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True)
    count: Mapped[int] = _number(0)

    __table_args__ = (sa.Index("ix_CronThrottle_window", "window"),)


class CronIdempotencyKey(Base):
    """A request that carried an Idempotency-Key, and its answer: see `services.idempotency` for bound and retention."""

    __tablename__ = "CronIdempotencyKey"

    key_hash: Mapped[str] = mapped_column(ShortText(64), primary_key=True)
    """Of the caller and the key together: two callers never share one."""
    request_hash: Mapped[str] = mapped_column(ShortText(64))
    started_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    status: Mapped[int | None] = mapped_column(sa.Integer)
    """NULL until the request has been answered."""
    answer: Mapped[bytes | None] = mapped_column(LongBlob)
    """Encrypted; NULL for one that was too large to keep."""


class CronAudit(Base):
    """Who changed what, when, from where: before and after, secrets masked."""

    __tablename__ = "CronAudit"

    id: Mapped[int] = _id()
    at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    actor: Mapped[str] = mapped_column(ShortText(100))
    source: Mapped[str] = _word(Source.PYTHON)
    ip: Mapped[str] = _word("", 64)
    action: Mapped[str] = mapped_column(ShortText(64))
    subject_type: Mapped[str] = mapped_column(ShortText(32))
    subject_id: Mapped[str] = mapped_column(ShortText(64))
    subject_name: Mapped[str] = _word("", 200)
    before: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON(none_as_null=True))
    after: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON(none_as_null=True))

    __table_args__ = (sa.Index("ix_CronAudit_subject", "subject_type", "subject_id"),)


class CronSecret(Base):
    """A value jobs may be granted, encrypted with the keys of `secrets_keys`."""

    __tablename__ = "CronSecret"

    id: Mapped[int] = _id()
    name: Mapped[str] = mapped_column(ShortText(100), unique=True)
    ciphertext: Mapped[bytes] = mapped_column(LongBlob, deferred=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_by: Mapped[str | None] = mapped_column(ShortText(100))


class CronJobSecret(Base):
    """`cron_job` may read `secret`."""

    __tablename__ = "CronJobSecret"

    cron_job: Mapped[int] = mapped_column(
        Id, sa.ForeignKey("CronJob.id"), primary_key=True, autoincrement=False
    )
    secret: Mapped[int] = mapped_column(
        Id, sa.ForeignKey("CronSecret.id"), primary_key=True, autoincrement=False
    )

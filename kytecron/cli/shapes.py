"""What `--json` prints: the shapes of the JSON API, made of the columns of rows. A test compares the two."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..core import diff
from ..store.models import (
    CronJob,
    CronJobExecution,
    CronToken,
    CronUser,
    KyteCronJobVersion,
)
from ..store.queries import ExecutionDetail
from ..views import jobs
from ..views.standing import Standing

if TYPE_CHECKING:
    from ..services.transfer import Change

Shape = dict[str, Any]

ATTEMPT = ("id", "retry_count", "status", "due_time", "started_at", "completed_at", "error")
USER = ("id", "username", "role", "enabled", "created_at", "last_login_at")
TOKEN = ("id", "name", "role", "created_at", "created_by", "expires_at", "revoked_at", "last_used_at")


def job_detail(
    row: CronJob, parents: list[int], current: KyteCronJobVersion | None, warnings: list[str]
) -> Shape:
    """A job with its current version."""
    info = None if current is None else version(current)
    return jobs.for_programs(row, parents) | {"version_info": info, "warnings": warnings}


def execution(row: CronJobExecution, job_name: str) -> Shape:
    """One attempt to serve one slot of a job, without what it printed."""
    inner = {"cron_job", "queue_time", "token", "requested_version", "output", "stack_trace", "result"}
    return {"id": row.id, "job_id": row.cron_job, "job_name": job_name, **_columns(row, inner)}


def execution_detail(found: ExecutionDetail) -> Shape:
    """An execution with all it left but its output, and every attempt of its chain."""
    return execution(found.execution, found.job.name if found.job else "") | {
        "stack_trace": found.execution.stack_trace,
        "result": found.execution.result,
        "attempts": [_values(row, ATTEMPT) for row in found.attempts],
    }


def stats(found: Standing) -> Shape:
    """How everything stands."""
    today = found.numbers.today
    more = {"total": today.total, "success_rate": today.success_rate}
    return found.for_programs() | {"today": asdict(today) | more}


def version(row: KyteCronJobVersion) -> Shape:
    """One saved state of a job's code."""
    return {"job_id": row.cron_job, **_columns(row, {"id", "cron_job", "changes_from_previous"})}


def version_detail(row: KyteCronJobVersion) -> Shape:
    """One saved state of a job's code, with what it changed."""
    return version(row) | {"changes_from_previous": row.changes_from_previous}


def comparison(from_version: int, to_version: int, found: diff.Diff) -> Shape:
    """Two versions side by side."""
    return {
        "from_version": from_version,
        "to_version": to_version,
        "counts": asdict(found.counts),
        "rows": [
            row._asdict()
            | {side: [piece._asdict() for piece in getattr(row, side)] for side in ("old", "new")}
            for row in found.rows
        ],
    }


def user(row: CronUser) -> Shape:
    """A person who may sign in."""
    return _values(row, USER)


def token(row: CronToken) -> Shape:
    """An API token, without the token itself."""
    return _values(row, TOKEN)


def change(found: Change) -> Shape:
    """What an import does to one job."""
    return {
        "name": found.name,
        "job_id": found.job_id,
        "action": found.action,
        "fields": {
            name: {"before": both["from"], "after": both["to"]} for name, both in found.fields().items()
        },
        "code_diff": found.code_diff(),
    }


def _columns(row: Any, leave_out: Collection[str]) -> Shape:
    return _values(row, [column.key for column in row.__table__.columns if column.key not in leave_out])


def _values(row: Any, names: Collection[str]) -> Shape:
    return {name: getattr(row, name) for name in names}

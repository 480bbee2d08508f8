"""What a running job may ask for through `self.api`: answered by its worker, in the name of the job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.orm import Session, undefer

from ..core.choices import Source
from ..core.errors import Invalid, NotFound
from ..core.states import Origin, Status
from ..store.models import CronJob, CronJobExecution
from . import lifecycle, throttle
from .audit import Actor

RUNS_PER_MINUTE = 300
"""How many runs one job may trigger in a minute, all its own runs together."""


class Secrets(Protocol):
    """What knows the secrets that a run was given."""

    def text(self, text: str) -> str:
        """`text` with the secrets masked."""

    def reveals(self, value: Any) -> bool:
        """Whether a JSON value holds one of them."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The job whose run asks."""

    job_id: int
    job_name: str
    secrets: Secrets


def answer_call(session: Session, caller: Caller, method: str, arguments: Mapping[str, Any]) -> Any:
    """The result of one call, as plain JSON. Raises KytecronError with a message for the job's author."""
    if method == "find_job":
        job = _find(session, arguments.get("job"))
        return None if job is None else _job(job)
    if method == "trigger":
        return _trigger(session, caller, arguments)
    if method == "latest_result":
        return _latest_result(session, arguments.get("job"))
    raise Invalid({"method": f"self.api has no method {method!r}"})


def _find(session: Session, wanted: object) -> CronJob | None:
    if isinstance(wanted, bool) or not isinstance(wanted, (int, str)):
        raise Invalid({"job": "job must be an id or a name"})
    key = CronJob.id == wanted if isinstance(wanted, int) else CronJob.name == wanted
    return session.scalar(
        sa.select(CronJob).where(key, CronJob.deleted_at.is_(None)).execution_options(populate_existing=True)
    )


def _require(session: Session, wanted: object) -> CronJob:
    job = _find(session, wanted)
    if job is None:
        raise NotFound(f"Job {wanted!r} does not exist")
    return job


def _job(job: CronJob) -> dict[str, Any]:
    return {
        "id": job.id,
        "name": job.name,
        "enabled": job.enabled,
        "in_dead_letter_queue": job.in_dead_letter_queue,
        "last_status": job.last_status,
        "last_run_at": job.last_run_at.isoformat() if job.last_run_at else None,
        "next_run_time": job.next_run_time.isoformat() if job.next_run_time else None,
    }


def _trigger(session: Session, caller: Caller, arguments: Mapping[str, Any]) -> int:
    job = _require(session, arguments.get("job"))
    if caller.secrets.reveals(arguments.get("parameters")):
        # Masked, the other job would get stars and not be told; kept, every viewer would read it.
        raise Invalid(
            {
                "parameters": "parameters hold the value of a secret of this job, and every viewer reads parameters: "
                "leave it out and grant the secret to the other job, which then finds it in self.secrets"
            }
        )
    throttle.allow_trigger_by_job(session, caller.job_id, RUNS_PER_MINUTE)
    execution = lifecycle.trigger(
        session,
        job.id,
        parameters=arguments.get("parameters"),
        note=caller.secrets.text(str(arguments.get("note") or "")),
        actor=Actor(f"job {caller.job_name}"[:100], Source.WORKER),
        origin=Origin.TRIGGER,
    )
    return execution.id


def _latest_result(session: Session, wanted: object) -> dict[str, Any] | None:
    job = _require(session, wanted)
    run = session.scalar(
        sa.select(CronJobExecution)
        .where(CronJobExecution.cron_job == job.id, CronJobExecution.status == Status.COMPLETED)
        .order_by(CronJobExecution.id.desc())
        .options(undefer(CronJobExecution.result))
        .limit(1)
    )
    if run is None:
        return None
    return {
        "execution_id": run.id,
        "scheduled_time": run.scheduled_time.isoformat(),
        "completed_at": run.completed_at.isoformat() if run.completed_at else None,
        "version": run.version,
        "result": run.result,
    }

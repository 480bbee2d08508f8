"""One action on several jobs: what it would do can be shown first; then each job is a transaction of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ..core.choices import Role
from ..core.errors import Invalid, KytecronError
from ..store import queries
from ..store.models import CronJob
from ..store.queries import JobFilter
from . import deadletters
from .audit import Actor
from .jobs import CronJobManager

ACTIONS = {
    "enable": Role.OPERATOR,
    "disable": Role.OPERATOR,
    "trigger": Role.OPERATOR,
    "recover": Role.OPERATOR,
    "tag": Role.EDITOR,
    "untag": Role.EDITOR,
    "delete": Role.EDITOR,
}
"""Each action with the role that it needs, which is the one that it needs on a single job."""

MOST = 500
"""Jobs of one action."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an action did to a job, or would do: `refused` says why not."""

    id: int
    name: str
    refused: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bulk:
    """An action, and what it needs to know."""

    action: str
    tags: Sequence[str] = ()
    reason: str = ""


def choose(session: Session, ids: Collection[int] | None, wanted: JobFilter | None) -> list[CronJob | int]:
    """The jobs of `ids`, those without a job as they are, or all that `wanted` finds.

    Raises Invalid unless exactly one of the two is given, and for more than MOST jobs.
    """
    if (ids is None) == (wanted is None):
        raise Invalid({"ids": "Give either ids or filter"})
    if ids is None:
        page = queries.jobs(session, wanted, limit=MOST)
        if page.next is not None:
            raise Invalid(
                {"filter": f"filter finds more than {MOST} jobs, the most for one action: narrow it"}
            )
        return list(page.items)
    if len(ids) > MOST:
        raise Invalid({"ids": f"ids names more than {MOST} jobs, the most for one action"})
    found = {
        job.id: job
        for job in session.scalars(sa.select(CronJob).where(CronJob.id.in_(ids), CronJob.deleted_id == 0))
    }
    return [found.get(job_id, job_id) for job_id in dict.fromkeys(ids)]


def preview(bulk: Bulk, jobs: Sequence[CronJob | int]) -> list[Outcome]:
    """What the action would do, as far as it can be told beforehand. Raises Invalid."""
    _check(bulk)
    return [
        Outcome(job, "", f"Job {job} does not exist")
        if isinstance(job, int)
        else Outcome(job.id, job.name, _obstacle(bulk.action, job))
        for job in jobs
    ]


def run(session: Session, bulk: Bulk, jobs: Sequence[CronJob | int], actor: Actor) -> list[Outcome]:
    """Do it. A job that refuses does not keep the others from it. Raises Invalid."""
    outcomes = []
    for outcome in preview(bulk, jobs):
        if outcome.refused is None:
            try:
                _act(session, bulk, outcome.id, actor)
            except KytecronError as error:
                outcome = Outcome(outcome.id, outcome.name, error.message)
        outcomes.append(outcome)
    return outcomes


def _check(bulk: Bulk) -> None:
    if bulk.action not in ACTIONS:
        raise Invalid({"action": f"Invalid action. Must be one of: {', '.join(ACTIONS)}"})
    if bulk.action in ("tag", "untag") and not bulk.tags:
        raise Invalid({"tags": f"tags is required for the action {bulk.action}"})


def _obstacle(action: str, job: CronJob) -> str | None:
    if action == "recover":
        return None if job.in_dead_letter_queue else "Job is not in dead letter queue"
    if action in ("enable", "trigger") and job.in_dead_letter_queue:
        return "Job is in dead letter queue. Recover it first."
    if action == "enable" and job.enabled:
        return "Job is enabled already"
    if action == "disable" and not job.enabled:
        return "Job is disabled already"
    if action == "trigger" and not job.enabled:
        return "Job is disabled"
    return None


def _act(session: Session, bulk: Bulk, job_id: int, actor: Actor) -> None:
    manager = CronJobManager(session, actor)
    steps: dict[str, Callable[[], object]] = {
        "enable": lambda: manager.enable(job_id),
        "disable": lambda: manager.disable(job_id, bulk.reason),
        "trigger": lambda: manager.trigger(job_id, note=bulk.reason),
        "recover": lambda: deadletters.recover(session, job_id, actor),
        "tag": lambda: _retag(manager, job_id, add=bulk.tags),
        "untag": lambda: _retag(manager, job_id, remove=bulk.tags),
        "delete": lambda: manager.delete(job_id),
    }
    steps[bulk.action]()


def _retag(manager: CronJobManager, job_id: int, add: Sequence[str] = (), remove: Sequence[str] = ()) -> None:
    present = set(filter(None, manager.get(job_id).tags.split(",")))
    manager.update_job(job_id, tags=sorted(present - set(remove) | set(add)))

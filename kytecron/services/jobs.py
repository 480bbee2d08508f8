"""Jobs as people change them: create, edit, enable, disable, clone, delete.

Each change is one transaction that locks the job's row first, plans the next slot anew where the schedule
changed, and leaves an audit row with both sides.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ..config import default_settings
from ..core import preview as previews
from ..core import source
from ..core.choices import ScheduleType
from ..core.dependencies import find_cycle
from ..core.errors import Conflict, Invalid, NotFound, Stale
from ..core.fields import COLUMNS, FIELDS, MAX_NAME, REPLANNED_BY, SCHEDULE_FIELDS
from ..core.jobspec import JobFields, normalise_aliases, parse_job
from ..core.schedule import OFFSETS_MATTER, TZDATA_VERSION, Schedule, tzdata_order, unused_problems
from ..core.untrusted import LARGEST, visible
from ..store import claims, db
from ..store.db import transactional
from ..store.dialects import WRITING
from ..store.models import CronJob, CronJobDependency, CronJobExecution, KyteCronJobVersion
from . import audit, lifecycle, registry, slots, versions
from .audit import Actor
from .base import Service
from .versions import lock_job, read_job, touch
from .webhook import validate_webhook_url

DEPENDENCY: Any = CronJobDependency.__table__


class CronJobManager(Service):
    """Everything a person may do to a job.

        CronJobManager().create_job(name="My first job", schedule_type="interval", interval_seconds=60, code=...)

    Without a session it opens one of its own: see Service. Each writing method is one transaction, and audited.
    Methods that take a job's id raise NotFound for one that does not exist or was deleted.
    """

    def create_job(self, **fields: Any) -> CronJob:
        """Make a job of the fields of JobFields, its `code`, and a `message` for the first version.

        Raises Invalid with one message for each wrong field, those of the code under `code`.
        """
        code, message = fields.pop("code", None), fields.pop("message", "")
        code = "" if code is None else code  # which is refused, with an example
        try:
            values = checked(fields, versions.problems_of(self.actor, code, message))
        except Invalid as invalid:
            with self._reading() as session:
                raise Invalid({**_clashes(session, fields), **invalid.fields}) from None
        return _create(self.session, self.actor, values, source.normalise(code), message)

    def update_job(self, job_id: int, *, revision: int | None = None, **changes: Any) -> CronJob:
        """Change some fields of a job, and its code where `code` is given (with `message`, `base_version`).

        `revision` is the one of the job that the edit started from; so is `base_version` for the code. Changing
        nothing leaves no trace. Raises Invalid, and Conflict with `details` for an edit that started from an
        older state and would undo another one.
        """
        problems = versions.problems_of(self.actor, changes.get("code"), changes.get("message", ""))
        return _update(self.session, self.actor, job_id, revision, changes, problems)

    def update_code(
        self, job_id: int, code: str, *, message: str = "", base_version: int | None = None
    ) -> KyteCronJobVersion | None:
        """Save code as the current version and return that, or None where it is the current code already.

        Raises Invalid and Conflict as CronVersionControl.create_version does.
        """
        return versions.create_version(self.session, self.actor, job_id, code, message, base_version)

    def rollback(self, job_id: int, version_number: int) -> KyteCronJobVersion:
        """Make an old version current again. Raises NotFound, and Conflict where it is current already."""
        return versions.roll_back(self.session, self.actor, job_id, version_number)

    def enable(self, job_id: int) -> CronJob:
        """Let a job run again: its next slot counts from now, the time it was disabled owes nothing.

        Raises Conflict for a job in the dead letter queue, Invalid for one whose schedule has no slot left.
        """
        return _set_enabled(self.session, self.actor, job_id, True, "")

    def disable(self, job_id: int, reason: str = "") -> CronJob:
        """Stop a job: what is pending is cancelled, what runs goes on and is not retried."""
        return _set_enabled(self.session, self.actor, job_id, False, visible(reason))

    def delete(self, job_id: int) -> CronJob:
        """Delete a job softly: its history stays, its name is free again, its children skip with the reason."""
        return _delete(self.session, self.actor, job_id)

    def clone(self, job_id: int, name: str | None = None) -> CronJob:
        """Make a disabled copy of a job and its current code, as `name` or as "... (copy)"."""
        return _clone(self.session, self.actor, job_id, name)

    def get(self, job_id: int) -> CronJob:
        """A job by its id."""
        with self._reading() as session:
            return read_job(session, job_id)

    def find(self, name_or_id: str | int) -> CronJob:
        """A job by its name or, where no job has that name, by its id."""
        with self._reading() as session:
            return find(session, name_or_id)

    def trigger(
        self,
        job_id: int,
        parameters: Mapping[str, Any] | None = None,
        note: str = "",
        version: int | None = None,
    ) -> CronJobExecution:
        """Run a job now: see lifecycle.trigger."""
        return lifecycle.trigger(
            self.session, job_id, parameters=parameters, note=note, version=version, actor=self.actor
        )


# -- reading -------------------------------------------------------------------------------------------------


def find(session: Session, name_or_id: str | int) -> CronJob:
    """A living job by its name or, where no job has that name, by its id. Raises NotFound."""
    text = str(name_or_id).strip()
    if isinstance(name_or_id, str):
        job: CronJob | None = session.scalar(_named(text).execution_options(populate_existing=True))
        if job is not None:
            return job
    if text.isascii() and text.isdigit() and len(text) <= len(str(LARGEST)):
        return read_job(session, int(text))
    raise NotFound(f"No job has the name {text[:MAX_NAME]!r}")


def _named(name: str) -> Any:
    return sa.select(CronJob).where(CronJob.name == name, CronJob.deleted_id == 0)


def configuration(session: Session, job: CronJob) -> dict[str, Any]:
    """What a person may set on this job (the fields of JobFields), as its row has it."""
    return configuration_of(job, parents_of(session, job.id))


def configuration_of(job: CronJob, parents: list[int]) -> dict[str, Any]:
    """The same where the ids of its parents are known: lists read those of all their jobs at once."""
    values = {name: getattr(job, name) for name in COLUMNS}
    values["tags"] = sorted(filter(None, job.tags.split(",")))
    values["day_of_week"] = _weekdays_of(job.day_of_week)
    values["parameters"] = job.parameters or {}
    values["depends_on"] = parents
    return values


def _weekdays_of(text: str | None) -> Any:
    if not text:
        return None
    days = text.split(",")
    # A row written by hand may hold anything.
    return _weekdays([int(day) for day in days]) if all(day.strip().isdecimal() for day in days) else text


def _weekdays(days: Collection[int] | None) -> int | list[int] | None:
    """One day as a number, several as a list."""
    if not days:
        return None
    return next(iter(days)) if len(days) == 1 else sorted(days)


def parents_of(session: Session, job_id: int) -> list[int]:
    """The ids of the jobs that a job depends on, sorted."""
    return sorted(session.scalars(sa.select(DEPENDENCY.c.parent).where(DEPENDENCY.c.cron_job == job_id)))


def state_tag(job: Any) -> str:
    """A word for what people have set on a job: it differs as soon as a setting or the code does."""
    return f"{job.revision}-{job.current_version or 0}"


def require_state(session: Session, job_id: int, tags: Collection[str], changes: Mapping[str, Any]) -> None:
    """Lock a job where it is in one of the states of these tags.

    Raises NotFound, and Stale with both sides of what `changes` would have set.
    """
    job = lock_job(session, job_id) if session.info.get(WRITING) else read_job(session, job_id)
    if state_tag(job) in tags:
        return
    given, present = normalise_aliases(changes), configuration(session, job)
    theirs, yours = audit.changes(present, {**present, **{k: v for k, v in given.items() if k in present}})
    details = _both_sides(job, theirs, yours)
    if (code := given.get("code")) is not None:
        details["fields"]["code"] = {
            "theirs": versions.current_source(session, job),
            "yours": source.normalise(code),
        }
    raise Stale(
        f'{job.updated_by or "Somebody"} has changed this job: its ETag is "{state_tag(job)}" now. Read it again, '
        "look at what differs, and send that ETag",
        {"etag": f'"{state_tag(job)}"', "current_version": job.current_version, **details},
    )


@dataclass(frozen=True, slots=True)
class Preview:
    """What a schedule will do: a sentence, its next slots (UTC), and what about it may surprise."""

    sentence: str
    timezone: str
    slots: list[datetime]
    warnings: list[str]


def preview(
    fields: Mapping[str, Any],
    after: datetime,
    count: int = 5,
    usual_duration_seconds: float | None = None,
    runs_scheduled: int = 0,
) -> Preview:
    """What a schedule will do after an instant, of the fields of a form, of JSON, or of `configuration`.

    Fields that have nothing to do with the schedule are not looked at. An interval counts from `after`, as it
    would for a job that is created then. `runs_scheduled` are those that `max_runs` counts already. Raises Invalid.
    """
    known = {name: fields[name] for name in {*REPLANNED_BY, "max_runs"} if name in fields}
    parsed, wrong = _parse({**known, "name": "preview"})
    schedule = _schedule(parsed, wrong, anchor=after)
    if schedule is None:
        raise Invalid(wrong)
    left = count if parsed.max_runs is None else min(count, max(0, parsed.max_runs - runs_scheduled))
    return Preview(
        sentence=previews.describe(schedule),
        timezone=schedule.timezone,
        # From a moment before, because an interval's first slot is the instant of creation itself.
        slots=previews.preview(
            schedule, after - timedelta(microseconds=1), left, parsed.starts_at, parsed.ends_at
        ),
        warnings=previews.warnings(schedule, after, usual_duration_seconds, parsed.starts_at, parsed.ends_at),
    )


# -- checking ------------------------------------------------------------------------------------------------


def problems(actor: Actor, fields: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong with the fields of a new job, its `code` and `message` among them, as far as they tell.

    Raises Busy.
    """
    rest = {name: value for name, value in fields.items() if name not in ("code", "message")}
    try:
        checked(rest, versions.problems_of(actor, fields.get("code"), fields.get("message", "")))
    except Invalid as invalid:
        return invalid.fields
    return {}


def checked(
    fields: Mapping[str, Any], problems: Mapping[str, str], unasked: Collection[str] = ()
) -> dict[str, Any]:
    """A complete configuration in the form of `configuration`.

    Of fields that the schedule has no use for, those that are `unasked` (a row, written by hand, has them) are not
    looked at. Raises Invalid with every wrong field of all, those in `problems` (of the code) too.
    """
    parsed, wrong = _parse(fields)
    schedule = _schedule(parsed, wrong)
    asked = {name: getattr(parsed, name) for name in SCHEDULE_FIELDS if name not in unasked}
    unused = unused_problems(parsed.schedule_type, asked)
    wrong |= {**unused, **wrong, **_webhook_problem(parsed.slack_webhook), **problems}
    if wrong or schedule is None:
        raise Invalid(wrong)
    return parsed.model_dump() | {
        # A field that this type of schedule has no use for is not kept: nobody has checked it.
        "cron_expression": schedule.cron_expression,
        "interval_seconds": schedule.interval_seconds,
        "time_of_day": parsed.time_of_day if schedule.time_of_day is not None else None,
        "day_of_week": _weekdays(schedule.day_of_week),
        "day_of_month": schedule.day_of_month,
        "timezone": schedule.timezone,
        "depends_on": sorted(set(parsed.depends_on)),
    }


def _parse(fields: Mapping[str, Any]) -> tuple[JobFields, dict[str, str]]:
    """The fields, and what is wrong with them; the wrong ones have their defaults."""
    try:
        return parse_job(fields), {}
    except Invalid as invalid:
        rest = {
            name: value
            for name, value in normalise_aliases(fields).items()
            if name in FIELDS and name not in invalid.fields
        }
        return parse_job({"name": "?", **rest}), invalid.fields


def _webhook_problem(address: str | None) -> dict[str, str]:
    if address:
        try:
            validate_webhook_url(address, default_settings())
        except ValueError as error:
            return {"slack_webhook": f"slack_webhook: {error}"}
    return {}


def _clashes(session: Session, fields: Mapping[str, Any]) -> dict[str, str]:
    """What the database says against a new job: its name is taken, its parents are not there."""
    parsed, wrong = _parse(fields)
    found: dict[str, str] = {}
    if "name" not in wrong and (owner := _owner(session, parsed.name)) is not None:
        found["name"] = _taken(parsed.name, owner)
    known = [parent for parent in parsed.depends_on if 0 < parent <= LARGEST]
    query = sa.select(CronJob.id).where(CronJob.id.in_(known), CronJob.deleted_id == 0)
    if lost := sorted(set(parsed.depends_on) - set(session.scalars(query))):
        found["depends_on"] = f"depends_on: job {lost[0]} does not exist"
    return found


def _schedule(parsed: JobFields, wrong: dict[str, str], anchor: datetime | None = None) -> Schedule | None:
    """The schedule of these fields; None, with the messages added to `wrong`, where they make none."""
    try:
        schedule = Schedule.from_fields(
            **{name: getattr(parsed, name) for name in SCHEDULE_FIELDS}, anchor=anchor
        )
    except Invalid as invalid:
        wrong |= {name: text for name, text in invalid.fields.items() if name not in wrong}
        return None
    return None if wrong.keys() & REPLANNED_BY else schedule


def _check_parents(
    session: Session, parents: Collection[int], added: Collection[int], job: CronJob | None = None
) -> None:
    """Raises Invalid unless the `added` among the parents exist, and depending on all of them closes no cycle.

    `job` is the locked row that will depend on them, None for a job that is just being made.
    """
    if not parents:
        return
    edges, rows = _lock_upwards(session, parents, job)
    lost = [parent for parent in added if parent not in rows or rows[parent].deleted_id]
    if lost:
        raise Invalid({"depends_on": f"depends_on: job {lost[0]} does not exist"})
    cycle = find_cycle(edges, job.id, parents) if job is not None else None
    if cycle:
        path = " → ".join(rows[job_id].name for job_id in cycle)
        raise Invalid({"depends_on": f"depends_on makes a cycle: {path}"})


def _lock_upwards(
    session: Session, parents: Collection[int], job: CronJob | None
) -> tuple[dict[int, list[int]], dict[int, Any]]:
    """Lock the parents and all that they depend on; returns the edges of the whole graph and the locked rows.

    Whoever adds an edge holds the rows above it, so two edits that would close a cycle together come one after
    the other, and the second sees the first. Out of the usual order of locks: a deadlock repeats the edit.
    """
    rows: dict[int, Any] = {} if job is None else {job.id: job}
    asked = set(rows)
    while upwards := _with_ancestors(edges := _edges(session), parents) - asked:
        rows |= claims.lock_jobs(session, upwards)
        asked |= upwards
    return edges, rows


def _edges(session: Session) -> dict[int, list[int]]:
    edges: dict[int, list[int]] = {}
    for row in session.execute(sa.select(DEPENDENCY.c.cron_job, DEPENDENCY.c.parent)):
        edges.setdefault(row.cron_job, []).append(row.parent)
    return edges


def _with_ancestors(edges: Mapping[int, Collection[int]], jobs: Iterable[int]) -> set[int]:
    reached: set[int] = set()
    todo = [job for job in jobs if 0 < job <= LARGEST]
    while todo:
        job = todo.pop()
        if job not in reached:
            reached.add(job)
            todo += edges.get(job, ())
    return reached


# -- writing -------------------------------------------------------------------------------------------------


@transactional
def _create(session: Session, actor: Actor, values: Mapping[str, Any], text: str, message: str) -> CronJob:
    if wrong := _clashes(session, values):
        raise Invalid(wrong)
    _check_parents(session, values["depends_on"], added=values["depends_on"])
    return _insert(session, actor, "create", values, text, message)


@transactional
def _clone(session: Session, actor: Actor, job_id: int, name: str | None) -> CronJob:
    original = lock_job(session, job_id)
    chosen = name if name is not None else _free_name(session, original.name)
    values = checked(
        configuration(session, original) | {"name": chosen, "enabled": False}, {}, SCHEDULE_FIELDS
    )
    number = original.current_version
    text = versions.source_of(session, job_id, number) if number is not None else None
    message = f"Version {number} of job {job_id}, {original.name}"[: versions.MAX_MESSAGE]
    return _insert(session, actor, "clone", values, text, message)


def _insert(
    session: Session, actor: Actor, action: str, values: Mapping[str, Any], text: str | None, message: str
) -> CronJob:
    now = db.now(session)
    _require_free_name(session, values["name"])
    job = CronJob(**_columns(values), enabled=False, created_at=now, created_by=actor.name[:100])
    session.add(job)
    _flush_name(session, job)
    _set_parents(session, job, values["depends_on"])
    if values["enabled"]:
        switch_on(session, job, now)
    if text is not None:
        versions.add_version(session, actor, job, text, message)
    touch(session, actor, job)
    audit.record(session, actor, action, ("job", job.id), name=job.name, after=values)
    return job


@transactional
def _update(
    session: Session,
    actor: Actor,
    job_id: int,
    revision: int | None,
    changes: Mapping[str, Any],
    problems: Mapping[str, str],
) -> CronJob:
    given = normalise_aliases(changes)
    code, message, base = given.pop("code", None), given.pop("message", ""), given.pop("base_version", None)
    job = lock_job(session, job_id)
    present = configuration(session, job)
    before, after = audit.changes(present, checked(present | given, problems, present.keys() - given.keys()))
    if after:
        if revision is not None and revision != job.revision:
            raise _stale_edit(job, revision, before, after)
        _change(session, job, before, after)
        note_change(session, actor, job, _action(after), before, after)
    if code is not None:
        versions.save_code(session, actor, job, code, message, base)
    return job


def _action(after: Mapping[str, Any]) -> str:
    if after.keys() != {"enabled"}:
        return "update"
    return "enable" if after["enabled"] else "disable"


def _stale_edit(job: CronJob, revision: int, before: Mapping[str, Any], after: Mapping[str, Any]) -> Conflict:
    return Conflict(
        f"{job.updated_by or 'Somebody'} has changed this job since revision {revision}, which this edit started "
        f"from. Look at what differs ({', '.join(after)}) and save again from revision {job.revision}",
        {"base_revision": revision, **_both_sides(job, before, after)},
    )


def _both_sides(job: CronJob, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Who changed a job last, and what differs between what it is now and what an edit wanted."""
    theirs, yours = audit.plain(before), audit.plain(after)
    return {
        "revision": job.revision,
        "changed_by": job.updated_by,
        "changed_at": job.updated_at.isoformat() if job.updated_at else None,
        "fields": {name: {"theirs": theirs[name], "yours": yours[name]} for name in after},
    }


def _change(session: Session, job: CronJob, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Give a locked job other settings."""
    replanned = bool(after.keys() & REPLANNED_BY)
    if replanned or "enabled" in after:
        _enqueue_due(session, job)
    if "name" in after:
        _require_free_name(session, after["name"])
    if "depends_on" in after:
        parents = after["depends_on"]
        _check_parents(session, parents, set(parents) - set(before["depends_on"]), job)
        _set_parents(session, job, parents)
    for name, value in _columns(after).items():
        setattr(job, name, value)
    _flush_name(session, job)
    if after.keys() & {"priority", "worker_tag"}:
        lifecycle.reassign_pending(session, job)
    now = db.now(session)
    if "enabled" in after:
        if after["enabled"]:
            switch_on(session, job, now)
        else:
            _switch_off(session, job, "", "the job was disabled")
    elif replanned and job.enabled:
        if after.keys() & {"schedule_type", "interval_seconds"}:
            job.schedule_anchor = _anchor(job, now)
        # Of an interval that counts from completion, the end of what goes on sets it.
        waits = slots.counts_from_completion(job) and claims.active_runs(session, [job.id])
        job.next_run_time = None if waits else _planned(session, job, lifecycle.plan(job, now))


@transactional
def _set_enabled(session: Session, actor: Actor, job_id: int, enabled: bool, reason: str) -> CronJob:
    job = lock_job(session, job_id)
    if job.enabled == enabled:
        return job
    before = {"enabled": job.enabled, "disabled_reason": job.disabled_reason}
    if enabled:
        switch_on(session, job, db.now(session))
    else:
        _enqueue_due(session, job)
        _switch_off(session, job, reason, "the job was disabled")
    after = {"enabled": job.enabled, "disabled_reason": job.disabled_reason}
    note_change(session, actor, job, "enable" if enabled else "disable", before, after)
    return job


@transactional
def _delete(session: Session, actor: Actor, job_id: int) -> CronJob:
    job = lock_job(session, job_id)
    before = configuration(session, job)
    _enqueue_due(session, job)
    _switch_off(session, job, "deleted", "the job was deleted")
    _set_parents(session, job, [])  # it waits for nobody now, and so closes no cycle
    job.in_dead_letter_queue = False
    job.deleted_at = db.now(session)
    job.deleted_id = job.id
    note_change(session, actor, job, "delete", before, None)
    return job


def switch_on(session: Session, job: CronJob, now: datetime) -> None:
    """Let a locked job run from now on. Raises Conflict for one in the dead letter queue, and Invalid."""
    if job.in_dead_letter_queue:
        raise Conflict("Job is in dead letter queue. Recover it first.")
    if job.max_runs is not None and job.runs_scheduled >= job.max_runs:
        job.runs_scheduled = 0  # who enables a job that has had its runs wants as many again
    job.enabled = True
    job.disabled_reason = None
    job.schedule_anchor = _anchor(job, now)
    job.next_run_time = _planned(session, job, slots.first_slot(job, now))


def _planned(session: Session, job: CronJob, slot: datetime | None) -> datetime | None:
    """The next slot as it is written: none yet where a living worker has newer time zones, which then plans it."""
    slot = _require_slot(job, slot)
    if job.schedule_type not in OFFSETS_MATTER:
        return slot
    newest = registry.newest_tzdata_alive(session)
    return None if tzdata_order(newest) > tzdata_order(TZDATA_VERSION) else slot


def _switch_off(session: Session, job: CronJob, reason: str, why_cancelled: str) -> None:
    job.enabled = False
    job.disabled_reason = reason.strip()[:500] or None
    job.next_run_time = None
    session.flush()
    lifecycle.abandon_pending(session, job.id, why_cancelled)
    session.refresh(job)


def _enqueue_due(session: Session, job: CronJob) -> None:
    """Put what is due by now into the ledger, under the settings that it became due by: no slot gets lost."""
    session.flush()
    lifecycle.enqueue_due_of(session, job.id)
    session.refresh(job)


def _anchor(job: CronJob, now: datetime) -> datetime | None:
    return now if job.schedule_type == ScheduleType.INTERVAL else None


def _require_slot(job: CronJob, slot: datetime | None) -> datetime | None:
    """`slot`, which only a manual job may go without. Raises Invalid."""
    if slot is not None or job.schedule_type == ScheduleType.MANUAL:
        return slot
    if job.ends_at is not None:
        raise Invalid(
            {"ends_at": "ends_at: the schedule has no slot left until then. Choose a later end, or none"}
        )
    raise Invalid({"schedule_type": "This schedule has no slot in the next 50 years"})


def _columns(values: Mapping[str, Any]) -> dict[str, Any]:
    """Configuration as the columns of CronJob hold it, without what is not a column of its own to set."""
    columns = {name: value for name, value in values.items() if name not in ("depends_on", "enabled")}
    if "tags" in columns:
        columns["tags"] = f",{','.join(columns['tags'])}," if columns["tags"] else ""
    if isinstance(days := columns.get("day_of_week"), list | int):
        columns["day_of_week"] = str(days) if isinstance(days, int) else ",".join(map(str, days))
    return columns


def _set_parents(session: Session, job: CronJob, parents: Collection[int]) -> None:
    session.execute(sa.delete(DEPENDENCY).where(DEPENDENCY.c.cron_job == job.id))
    if parents:
        session.execute(sa.insert(DEPENDENCY), [{"cron_job": job.id, "parent": parent} for parent in parents])


def _require_free_name(session: Session, name: str) -> None:
    if (owner := _owner(session, name)) is not None:
        raise Invalid({"name": _taken(name, owner)})


def _owner(session: Session, name: str) -> int | None:
    owner: int | None = session.scalar(_named(name).with_only_columns(CronJob.id))
    return owner


def _taken(name: str, owner: int) -> str:
    return f"The name {name!r} is taken by job {owner}: choose another"


def _flush_name(session: Session, job: CronJob) -> None:
    """Write a job's row. Raises Invalid where another took its name after the look at the names."""
    name = job.name  # which cannot be read any more once the flush has failed
    try:
        session.flush()
    except IntegrityError:
        raise Invalid({"name": f"The name {name!r} has just been taken by another job"}) from None


def _free_name(session: Session, name: str) -> str:
    """`name (copy)`, or `name (copy 2)` and so on where that is taken."""
    number = 1
    while True:
        ending = " (copy)" if number == 1 else f" (copy {number})"
        candidate = name[: MAX_NAME - len(ending)] + ending
        if session.scalar(_named(candidate).with_only_columns(CronJob.id)) is None:
            return candidate
        number += 1


def note_change(
    session: Session,
    actor: Actor,
    job: CronJob,
    action: str,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
) -> None:
    """Count an edit of a job's configuration, and audit it."""
    job.revision += 1
    touch(session, actor, job)
    audit.record(session, actor, action, ("job", job.id), name=job.name, before=before, after=after)
    session.flush()

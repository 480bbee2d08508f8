"""Jobs: make, read, change, run, and what became of them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from flask import Response

from ..core import addresses
from ..core.choices import Role
from ..core.errors import Invalid, NotFound
from ..core.states import FINAL, Status
from ..core.zones import zone
from ..services import (
    accounts,
    bulk,
    checking,
    deadletters,
    lifecycle,
    transfer,
    upcoming,
    versions,
    why,
)
from ..services import jobs as services
from ..services.jobs import CronJobManager
from ..store import figures, queries
from ..store.models import CronJob
from ..store.queries import JobFilter
from ..views import jobs as views
from ..views import versions as version_views
from . import shapes
from .bodies import YAML
from .executions import execution_detail
from .inputs import (
    BackfillBody,
    BulkBody,
    CloneBody,
    CodeBody,
    CountQuery,
    DaysQuery,
    ExportQuery,
    ImportBody,
    ImportQuery,
    JobChanges,
    JobsQuery,
    ListQuery,
    NewJob,
    PreviewBody,
    ReasonBody,
    RollbackBody,
    TriggerBody,
    WaitQuery,
)
from .routing import Answer, Call, address, route
from .waiting import looks

WAIT_STEP = 0.1
MASKED_PATH = "/•••"


# -- the list and one job ------------------------------------------------------------------------------------


@route("GET /jobs", role=Role.VIEWER)
def list_jobs(call: Call, query: JobsQuery) -> shapes.Page[shapes.Job]:
    """List jobs."""
    wanted = JobFilter(
        name=query.name,
        q=query.q,
        status=query.status,
        tag=query.tag,
        schedule_type=query.schedule_type,
        last_result=query.last_result,
    )
    page = queries.jobs(call.session, wanted, sort=query.sort, cursor=query.cursor, limit=query.limit)
    return shapes.Page[shapes.Job].model_construct(items=_listed(call, page.items), next_cursor=page.next)


def _parse(call: Call, body: NewJob | JobChanges) -> None:
    if wrong := versions.problems_of(call.actor, body.code or None):
        raise Invalid(wrong)


@route("POST /jobs", role=Role.EDITOR, status=201, problems=(503,), beforehand=_parse)
def create_job(call: Call, body: NewJob) -> Answer[shapes.JobDetail]:
    """Create a job and the first version of its code.

    The code is parsed, never run. A schedule that makes no sense, a name that is taken and code that cannot be a
    job are told with the field they are in.
    """
    job = _manager(call).create_job(**body.given())
    return _created(call, job)


@route("GET /jobs/{job_id}", role=Role.VIEWER)
def read_job(call: Call, job_id: int) -> shapes.JobDetail:
    """Read a job."""
    return _detail(call, _manager(call).get(job_id))


@route("PATCH /jobs/{job_id}", role=Role.EDITOR, problems=(409, 503), beforehand=_parse)
def update_job(call: Call, job_id: int, body: JobChanges) -> shapes.JobDetail:
    """Change some fields of a job, or its code.

    With `If-Match` and the ETag that the change started from it is refused with 412 where the job has been changed
    since, and `error.details` shows both sides. `revision` (and `base_version` for the code) do the same with 409,
    for changes that would undo another one only.
    """
    changes = body.given()
    job = _manager(call).update_job(job_id, revision=changes.pop("revision", None), **changes)
    return _detail(call, job)


@route("DELETE /jobs/{job_id}", role=Role.EDITOR, status=204)
def delete_job(call: Call, job_id: int) -> None:
    """Delete a job. Its history stays, its name is free again."""
    _manager(call).delete(job_id)


@route("POST /jobs/{job_id}/clone", role=Role.EDITOR, status=201)
def clone_job(call: Call, job_id: int, body: CloneBody) -> Answer[shapes.JobDetail]:
    """Make a disabled copy of a job and its current code."""
    return _created(call, _manager(call).clone(job_id, body.name))


@route("GET /dead-letters", role=Role.VIEWER)
def list_dead_letters(call: Call, query: ListQuery) -> shapes.Page[shapes.Job]:
    """List the jobs in the dead letter queue, the newest first."""
    page = queries.jobs(
        call.session,
        JobFilter(status="dead"),
        sort="-dead_letter_since",
        cursor=query.cursor,
        limit=query.limit,
    )
    return shapes.Page[shapes.Job].model_construct(items=_listed(call, page.items), next_cursor=page.next)


# -- switching and running -----------------------------------------------------------------------------------


@route("POST /jobs/{job_id}/enable", role=Role.OPERATOR, problems=(409,))
def enable_job(call: Call, job_id: int) -> shapes.JobDetail:
    """Let a job run again. Its next slot counts from now."""
    return _detail(call, _manager(call).enable(job_id))


@route("POST /jobs/{job_id}/disable", role=Role.OPERATOR)
def disable_job(call: Call, job_id: int, body: ReasonBody) -> shapes.JobDetail:
    """Stop a job. What is pending is cancelled, what runs goes on."""
    return _detail(call, _manager(call).disable(job_id, body.reason))


@route("POST /jobs/{job_id}/recover", role=Role.OPERATOR, problems=(409,))
def recover_job(call: Call, job_id: int) -> shapes.JobDetail:
    """Take a job out of the dead letter queue and enable it."""
    return _detail(call, deadletters.recover(call.session, job_id, call.actor))


@route("POST /jobs/{job_id}/rollback", role=Role.EDITOR, problems=(409,))
def rollback_job(call: Call, job_id: int, body: RollbackBody) -> shapes.JobDetail:
    """Make an old version of a job's code current again."""
    manager = _manager(call)
    manager.get(job_id)
    try:
        manager.rollback(job_id, body.version)
    except NotFound as error:  # the job is there: it is the body that names what is not
        raise Invalid({"version": f"{error}. Its versions: GET /jobs/{job_id}/versions"}) from error
    return _detail(call, manager.get(job_id))


@route("POST /jobs/{job_id}/trigger", role=Role.OPERATOR, status=202, also=(200,), problems=(409, 429, 503))
def trigger_job(
    call: Call, job_id: int, query: WaitQuery, body: TriggerBody
) -> Answer[shapes.ExecutionDetail]:
    """Run a job now.

    Answers 202 with the new execution; with `wait` it answers 200 when that has ended, or 202 when it has not
    after so many seconds. A retry that follows is another execution: see `attempts`. When too many wait already, the
    answer is 503 and nothing was started.
    """
    if query.wait:
        call.hold_seat()  # first: whoever is refused one may ask again without starting a second run
    call.throttle_triggers()
    made = lifecycle.trigger(
        call.session,
        job_id,
        parameters=body.parameters,
        note=body.note,
        version=body.version,
        actor=call.actor,
    )
    headers = {"Location": address(f"/executions/{made.id}")}

    def ended() -> Answer[shapes.ExecutionDetail]:
        over = _wait(call, made.id, query.wait)
        return Answer(execution_detail(call, made.id), 200 if over else 202, headers)

    return Answer(execution_detail(call, made.id), 202, headers, later=ended if query.wait else None)


@route("POST /jobs/{job_id}/backfill", role=Role.OPERATOR, problems=(409, 429))
def backfill_job(call: Call, job_id: int, body: BackfillBody) -> shapes.Backfill:
    """Run the slots of a time range that no run has completed, one after another."""
    if not body.dry_run:
        call.throttle_triggers()
    found = lifecycle.backfill(
        call.session, job_id, body.slot_from, body.slot_to, call.actor, dry_run=body.dry_run
    )
    return shapes.Backfill(
        dry_run=body.dry_run,
        runs=sum(slot.will_run for slot in found),
        slots=[
            shapes.BackfillSlot(
                scheduled_time=slot.slot,
                status=Status(slot.status) if slot.status else None,
                will_run=slot.will_run,
            )
            for slot in found
        ],
    )


@route("POST /jobs/bulk", role=Role.OPERATOR, problems=(409, 429), steps=True)
def bulk_jobs(call: Call, body: BulkBody) -> shapes.Bulk:
    """Do one thing to several jobs.

    The actions tag, untag and delete need the role editor. Each job is done for itself: those that refuse are
    named with the reason, and the others go on.
    """
    call.require(bulk.ACTIONS[body.action])
    wanted = None if body.filter is None else JobFilter(**body.filter.model_dump())
    jobs = bulk.choose(call.session, body.ids, wanted)
    what = bulk.Bulk(action=body.action, tags=body.tags, reason=body.reason)
    if body.dry_run:
        outcomes = bulk.preview(what, jobs)
    else:
        if body.action == "trigger":
            call.throttle_triggers()
        outcomes = bulk.run(call.session, what, jobs, call.actor)
    done = [shapes.Outcome(id=one.id, name=one.name, message=None) for one in outcomes if one.refused is None]
    refused = [
        shapes.Outcome(id=one.id, name=one.name, message=one.refused) for one in outcomes if one.refused
    ]
    return shapes.Bulk(action=body.action, dry_run=body.dry_run, done=done, refused=refused)


# -- files ---------------------------------------------------------------------------------------------------


@route("GET /jobs/export", role=Role.VIEWER, text_too=YAML)
def export_jobs(call: Call, query: ExportQuery) -> shapes.JobFile | Response:
    """Write jobs as a file that can be kept in git and imported again.

    With `format=yaml` as YAML for people. Addresses of webhooks are left out unless an editor asks for them.
    """
    if query.webhooks:
        call.require(Role.EDITOR)
    document = transfer.export_jobs(call.session, query.id or None, webhooks=query.webhooks)
    if query.format == "yaml":
        return Response(transfer.to_yaml(document), mimetype=YAML)
    return shapes.JobFile.model_construct(**document)


@route("POST /jobs/import", role=Role.EDITOR, problems=(409, 503), yaml_too=True, steps=True)
def import_jobs(call: Call, query: ImportQuery, body: ImportBody) -> shapes.Import:
    """Make and change jobs until they are as a file has them; others stay as they are.

    Jobs are known by their names: importing a file twice changes nothing the second time. A file with a mistake
    changes nothing.
    """
    document = {"kytecron": body.kytecron, "jobs": body.jobs}
    changes = transfer.import_jobs(call.session, document, call.actor, query.dry_run, query.message)
    return shapes.Import(dry_run=query.dry_run, jobs=[shapes.ImportedJob.of(change) for change in changes])


# -- figures and schedules -----------------------------------------------------------------------------------


@route("GET /jobs/{job_id}/stats", role=Role.VIEWER)
def job_stats(call: Call, job_id: int, query: DaysQuery) -> shapes.Statistics:
    """Runs of a job by day, with durations."""
    _manager(call).get(job_id)
    return shapes.Statistics.of(figures.job_statistics(call.session, job_id, query.days, call.now.date()))


@route("GET /jobs/{job_id}/upcoming", role=Role.VIEWER)
def job_upcoming(call: Call, job_id: int, query: CountQuery) -> shapes.Upcoming:
    """The next slots of a job."""
    found = upcoming.upcoming(call.session, _manager(call).get(job_id), query.count, call.now)
    return shapes.Upcoming(**asdict(found))


@route("GET /jobs/{job_id}/why", role=Role.VIEWER)
def job_why(call: Call, job_id: int) -> shapes.Why:
    """Why a job has not run, or what it waits for.

    It answers for a deleted job, too.
    """
    found = why.explain(call.session, job_id, call.now)
    reasons = [shapes.Reason(code=one.code, text=one.text, since=one.since) for one in found.reasons]
    return shapes.Why(verdict=found.verdict, reasons=reasons)


@route("POST /schedules/preview", role=Role.VIEWER, reads=True)
def preview_schedule(call: Call, body: PreviewBody) -> shapes.Preview:
    """The next slots of a schedule that no job has yet.

    With `job` it is warned where these slots are closer together than that job usually takes.
    """
    fields = body.model_dump(exclude={"count", "job"})
    usual, scheduled = None, 0
    if body.job is not None:
        usual = upcoming.usual_seconds(call.session, body.job, call.now)
        scheduled = upcoming.runs_scheduled(call.session, body.job)
    found = services.preview(fields, call.now, body.count, usual, scheduled)
    return shapes.Preview(
        schedule=found.sentence,
        timezone=found.timezone,
        slots=found.slots,
        local_slots=[slot.astimezone(zone(found.timezone)).isoformat() for slot in found.slots],
        warnings=found.warnings,
    )


@route("POST /jobs/validate-code", role=Role.VIEWER, reads=True, problems=(503,))
def validate_code(call: Call, body: CodeBody) -> shapes.CodeCheck:
    """Whether code can be saved as a job. It is parsed, never run; code that costs too much to compile is 422."""
    found = checking.problems(body.code, call.actor)
    problems = [shapes.Problem(line=one.line, column=one.column, message=one.message) for one in found]
    return shapes.CodeCheck(valid=not problems, problems=problems)


# -- helpers -------------------------------------------------------------------------------------------------


def _manager(call: Call) -> CronJobManager:
    return CronJobManager(call.session, call.actor)


def _listed(call: Call, found: list[CronJob]) -> list[shapes.Job]:
    parents = queries.parents(call.session, [job.id for job in found])
    return [shapes.Job.model_construct(**_values(call, job, parents[job.id])) for job in found]


def _detail(call: Call, job: CronJob) -> shapes.JobDetail:
    values = _values(call, job, services.parents_of(call.session, job.id))
    version = job.current_version
    current = None if version is None else versions.get_version(call.session, job.id, version)
    info = current and shapes.Version.of(version_views.view(current))
    warnings = upcoming.warnings(call.session, job, call.now)
    return shapes.JobDetail.model_construct(**values, version_info=info, warnings=warnings)


def _values(call: Call, job: CronJob, parents: list[int]) -> dict[str, Any]:
    values = views.for_programs(job, parents)
    if values["slack_webhook"] and not accounts.allows(call.role, Role.EDITOR):
        # Whoever knows the address may post there.
        values["slack_webhook"] = _masked(values["slack_webhook"])
    return values


def _masked(address: str) -> str:
    found = addresses.read(address)  # a row written by hand may hold anything
    return f"{found.scheme}://{found.host}{MASKED_PATH}" if found else MASKED_PATH


def _created(call: Call, job: CronJob) -> Answer[shapes.JobDetail]:
    headers = {"Location": address(f"/jobs/{job.id}")}
    return Answer(_detail(call, job), 201, headers)


def _wait(call: Call, execution_id: int, seconds: int) -> bool:
    """Whether the execution has ended, waiting for it at most so long."""
    return any(
        queries.status(call.session, execution_id) in FINAL for _ in looks(call.session, WAIT_STEP, seconds)
    )

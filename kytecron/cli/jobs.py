"""`jobs`: make, look at, change, switch, run, carry from one installation to another."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from ..core.choices import ScheduleType
from ..core.errors import Invalid
from ..core.fields import DEFAULTS, FIELDS
from ..core.jobspec import read_parameters
from ..core.preview import MAX_PREVIEW
from ..core.states import FINAL, Status
from ..core.zones import zone
from ..services import audit, lifecycle, registry, upcoming, why
from ..services.jobs import CronJobManager, configuration, parents_of
from ..services.versions import get_version
from ..store import db as database
from ..store import queries
from ..store.keyset import Page
from ..store.models import CronJob, CronJobExecution
from ..store.queries import JOB_SORTS, JOB_STATUSES, NEVER_RAN, JobFilter
from ..views import jobs as views
from ..views import runs
from ..views.facts import SAID_WITH_ANOTHER
from . import console, shapes
from .console import MOMENT_HELP, VERSION, Group, Moment, json_option, page_options, say, yes_option
from .fields import code_options, given, job_options
from .shapes import Shape

if TYPE_CHECKING:
    from ..services.transfer import Change

WAIT_STEP = 0.1
GOOD_ENDS = (Status.COMPLETED, Status.SKIPPED)


@click.group(cls=Group)
def jobs() -> None:
    """Jobs: create, change, switch on and off, run, export and import.

    JOB is a job's name or its id.
    """


def manager() -> CronJobManager:
    """Jobs, as whoever sits at the keyboard changes them."""
    return CronJobManager(console.database(), console.actor())


# -- looking -------------------------------------------------------------------------------------------------


@jobs.command("list")
@click.option("--name", help="The whole name.")
@click.option("--q", help="Part of the name or the description.")
@click.option("--status", type=click.Choice(list(JOB_STATUSES)))
@click.option("--tag")
@click.option("--schedule-type", type=click.Choice([*map(str, ScheduleType)]))
@click.option(
    "--last-result", type=click.Choice([*map(str, Status), NEVER_RAN]), help="How the last run ended."
)
@click.option(
    "--sort", type=click.Choice(list(JOB_SORTS)), default="name", show_default=True, metavar="ORDER",
    help="name, next_run_time, last_run, dead_letter_since or id; - in front turns it round.",
)  # fmt: skip
@page_options
@json_option
def list_jobs(
    sort: str, limit: int, cursor: str | None, everything: bool, as_json: bool, **wanted: Any
) -> None:
    """List jobs."""
    session = console.database()
    page = console.read_pages(
        lambda after, most: queries.jobs(session, JobFilter(**wanted), sort=sort, cursor=after, limit=most),
        limit,
        cursor,
        everything,
    )
    console.print_page(job_page(page), as_json, lambda _: _show_jobs([*map(views.view, page.items)]))


def job_page(page: Page[CronJob]) -> Page[Shape]:
    """A part of a list of jobs as it is printed."""
    parents = queries.parents(console.database(), [job.id for job in page.items])
    return Page([views.for_programs(job, parents[job.id]) for job in page.items], page.next)


def _show_jobs(found: list[views.JobView]) -> None:
    rows = [
        (
            job.id,
            job.name,
            job.standing.word,
            job.schedule,
            job.next_run_time,
            job.last.text,
            job.rate,
            job.slots_text,
        )
        for job in found
    ]
    console.table(("ID", "NAME", "STATUS", "SCHEDULE", "NEXT RUN", "LAST", "SUCCESS %", "SLOTS"), rows)


@jobs.command()
@click.argument("job")
@json_option
def show(job: str, as_json: bool) -> None:
    """Show a job: where it stands, and what was set on it."""
    row = manager().find(job)
    found = detail(row)
    if as_json:
        console.print_json(found)
        return
    view = views.detail(console.database(), row)
    summary, version = found["execution_summary"], found["version_info"]
    console.facts(
        {
            "id": found["id"],
            "name": found["name"],
            "status": view.standing.word,
            "reason": view.standing.reason,
            "schedule": view.schedule,
            "next run": found["next_run_time"],
            "last result": view.last.text,
            "last run": _last_run(summary["last_execution"]),
            "slots": f"{summary['total']}, {summary['successful']} completed",
            "success %": view.rate,
            "attempts": summary["attempts"],
            "recovered": summary["recovered"],
            "skipped": summary["skipped"],
            "counted": view.counted,
            "duration": console.duration(summary["avg_duration_ms"]),
            "failing": view.failing,
            "version": version and f"{version['version_number']} by {version['created_by']}",
            "changed": found["updated_at"]
            and f"{console.moment(found['updated_at'])} by {found['updated_by']}",
        }
    )
    told = [fact for group in view.facts for fact in group.rows]
    say()
    console.facts({fact.label: fact.text for fact in told})
    say()
    left = FIELDS.keys() - {"name", *(fact.name for fact in told), *SAID_WITH_ANOTHER}
    console.facts(
        {name: found[name] for name in FIELDS if name in left and found[name] != DEFAULTS.get(name)}
    )
    _warn(found["warnings"])


def _last_run(last: Shape | None) -> str | None:
    if last is None:
        return None
    started = console.moment(last["started_at"]) if last["started_at"] else "never started"
    return f"execution {last['id']}, {last['status']}, {started}"


def detail(job: CronJob) -> Shape:
    """A job as it is printed."""
    session, number = console.database(), job.current_version
    current = None if number is None else get_version(session, job.id, number)
    warnings = upcoming.warnings(session, job, database.now(session))
    return shapes.job_detail(job, parents_of(session, job.id), current, warnings)


@jobs.command("why")
@click.argument("job")
@json_option
def why_not(job: str, as_json: bool) -> None:
    """Say why a job has not run, or what it waits for."""
    found = manager().find(job)
    answer = why.explain(console.database(), found.id)
    if as_json:
        console.print_json(asdict(answer))
        return
    say(answer.verdict)
    for reason in answer.reasons:
        say(f"- {reason.text}.")


@jobs.command("next-runs")
@click.argument("job")
@click.option("--count", type=click.IntRange(1, MAX_PREVIEW), default=10, show_default=True)
@json_option
def next_runs(job: str, count: int, as_json: bool) -> None:
    """Show when a job runs next, and what about its schedule may surprise."""
    found = manager().find(job)
    session = console.database()
    answer = upcoming.upcoming(session, found, count, database.now(session))
    if as_json:
        console.print_json(asdict(answer))
        return
    none = views.no_slots(found)
    say(f"{answer.schedule}{':' if answer.slots else f'. Next slots: {none[0].lower()}{none[1:]}'}")
    if answer.slots:
        told = views.slots(answer.slots, found.timezone)
        titles = ("UTC", found.timezone) if any(slot.offset for slot in told) else ("UTC",)
        console.table(titles, [[_on_clock(slot, name) for name in titles] for slot in answer.slots])
    _warn(answer.warnings)


def _warn(warnings: list[str]) -> None:
    for warning in warnings:
        say(f"Note: {warning}")


def _on_clock(slot: datetime, zone_name: str) -> str:
    return f"{slot.astimezone(zone(zone_name)):%a %Y-%m-%d %H:%M:%S %Z}"


# -- making and changing -------------------------------------------------------------------------------------


@jobs.command()
@job_options
@code_options
@json_option
def create(code_file: str | None, message: str, as_json: bool, **options: Any) -> None:
    """Create a job."""
    service = manager()
    job = service.create_job(**given(options, service, code_file), message=message)
    if as_json:
        console.print_json(detail(job))
        return
    say(f"Job {job.id} {job.name!r} created. {_next_run(job)}")
    _warn(detail(job)["warnings"])


@jobs.command()
@click.argument("job")
@job_options
@code_options
@click.option("--revision", type=int, help="Refuse where somebody has changed the job since this revision.")
@click.option("--base-version", type=int, help="Refuse where the code is at another version than this one.")
@json_option
def edit(
    job: str,
    code_file: str | None,
    message: str,
    revision: int | None,
    base_version: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Change fields of a job, or its code; what is not given stays as it is. An empty text takes a value away."""
    service, session = manager(), console.database()
    found = service.find(job)
    before, version = configuration(session, found), found.current_version
    changes = given(options, service, code_file)
    if code_file is not None:
        changes |= {"message": message, "base_version": base_version}
    found = service.update_job(found.id, revision=revision, **changes)
    if as_json:
        console.print_json(detail(found))
        return
    old, new = map(audit.plain, audit.changes(before, configuration(session, found)))
    lines = [f"  {name}: {console.plain(old[name])} -> {console.plain(value)}" for name, value in new.items()]
    if found.current_version != version:
        lines.append(f"  code: version {version or '-'} -> {found.current_version}")
    say(f"Job {found.id} {found.name!r} changed:" if lines else "Nothing to change.")
    for line in lines:
        say(line)
    if lines:
        say(_next_run(found))
        _warn(detail(found)["warnings"])


def _next_run(job: CronJob) -> str:
    return views.next_run(job, database.now(console.database()))


@jobs.command()
@click.argument("job")
@json_option
def enable(job: str, as_json: bool) -> None:
    """Let a job run again. Its next run counts from now."""
    service = manager()
    found = service.enable(service.find(job).id)
    _done(found, f"Job {found.id} {found.name!r} is enabled. {_next_run(found)}", as_json)
    if not as_json:
        _warn(detail(found)["warnings"])


@jobs.command()
@click.argument("job")
@click.option("--reason", default="", help="Why, for those who wonder.")
@json_option
def disable(job: str, reason: str, as_json: bool) -> None:
    """Stop a job: what is pending is cancelled, what runs goes on."""
    service = manager()
    found = service.disable(service.find(job).id, reason)
    _done(found, f"Job {found.id} {found.name!r} is disabled.", as_json)


def _done(job: CronJob, text: str, as_json: bool) -> None:
    if as_json:
        console.print_json(detail(job))
    else:
        say(text)


@jobs.command()
@click.argument("job")
@yes_option
def delete(job: str, yes: bool) -> None:
    """Delete a job. Its history stays, its name is free again."""
    service = manager()
    found = service.find(job)
    console.confirm(f"Delete job {found.id} {found.name!r}?", yes)
    service.delete(found.id)
    say(f"Job {found.id} {found.name!r} is deleted.")


# -- running -------------------------------------------------------------------------------------------------


@jobs.command()
@click.argument("job")
@click.option("--parameters", metavar="JSON", help="Laid over the job's own parameters.")
@click.option("--note", default="", help="Why, for those who read the history.")
@click.option("--version", type=VERSION, help="Run this version of the code.  [default: the current one]")
@click.option(
    "--wait", is_flag=True, help="Wait for the end; the exit status is 0 for completed or skipped, else 1."
)
@click.option(
    "--timeout", type=click.FloatRange(0), metavar="SECONDS", help="Give up waiting, with exit status 1."
)
@json_option
def trigger(
    job: str,
    parameters: str | None,
    note: str,
    version: int | None,
    wait: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Run a job now."""
    service, session = manager(), console.database()
    run = service.trigger(service.find(job).id, _parameters(parameters), note, version)
    if not as_json:
        say(
            f"Execution {run.id} was made."
            + ("" if wait else f" Follow it: kytecron executions log -f {run.id}")
        )
    ended = _wait(run, timeout) if wait else False
    found = queries.execution(session, run.id)
    if as_json:
        console.print_json(runs.detail_for_programs(found))
    elif ended:
        say(runs.ending(found.execution))
    view = runs.detail(found, database.now(session))
    if wait and not ended:
        raise console.Failed(f"Execution {view.id} is still {view.status} after {timeout:g} s")
    if ended and view.status not in GOOD_ENDS:
        _tell_retry(view.attempts)
        raise click.exceptions.Exit(1)


def _parameters(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        return read_parameters(text)
    except ValueError as error:
        raise Invalid({"parameters": f"parameters {error}"}) from None


def _wait(run: CronJobExecution, timeout: float | None) -> bool:
    """Whether the run has ended, waiting for it at most so long."""
    session, started = console.database(), time.monotonic()
    if not registry.living(session, database.now(session)):
        console.note("No worker is alive: the run starts when one does (python worker.py).")
    while queries.status(session, run.id) not in FINAL:
        # Ends the read transaction: the next look must see what others write meanwhile.
        session.rollback()
        if timeout is not None and time.monotonic() - started >= timeout:
            return False
        time.sleep(WAIT_STEP)
    return True


def _tell_retry(attempts: Sequence[runs.Attempt]) -> None:
    for attempt in attempts:
        if attempt.waits and attempt.due_time is not None:
            console.note(
                f"It is tried again at {console.moment(attempt.due_time)} as execution {attempt.id}."
            )


@jobs.command()
@click.argument("job")
@click.option("--from", "start", type=Moment(), required=True, help=f"First slot, {MOMENT_HELP}.")
@click.option("--to", "end", type=Moment(), required=True, help="The slots before then.")
@click.option("--dry-run", is_flag=True, help="Only list the slots.")
@json_option
def backfill(job: str, start: datetime, end: datetime, dry_run: bool, as_json: bool) -> None:
    """Run the slots of a time range that no run has completed, one after another."""
    found = lifecycle.backfill(
        console.database(), manager().find(job).id, start, end, console.actor(), dry_run=dry_run
    )
    number = sum(slot.will_run for slot in found)
    if as_json:
        shown = [
            {"scheduled_time": one.slot, "status": one.status, "will_run": one.will_run} for one in found
        ]
        console.print_json({"dry_run": dry_run, "runs": number, "slots": shown})
        return
    console.table(("SLOT", "STATUS", "RUNS"), [(one.slot, one.status, one.will_run) for one in found])
    say(f"{number} of {len(found)} slots {'would run' if dry_run else 'will run'}.")


# -- to a file and back --------------------------------------------------------------------------------------


@jobs.command("export")
@click.argument("names", nargs=-1, metavar="[JOB]...")
@click.option("--output", "-o", metavar="FILE", default="-", help="Write there instead of printing it.")
@click.option(
    "--with-webhooks", is_flag=True, help="Include the addresses of Slack webhooks, which are credentials."
)
@json_option
def export(names: tuple[str, ...], output: str, with_webhooks: bool, as_json: bool) -> None:
    """Write jobs to a YAML file, for git or another installation: these, or all."""
    from ..services import transfer

    service = manager()
    ids = [service.find(name).id for name in names] or None
    document = transfer.export_jobs(console.database(), ids, webhooks=with_webhooks)
    if as_json:
        console.print_json(document)
        return
    text = transfer.to_yaml(document)
    try:
        with click.open_file(output, "w", encoding="utf-8", atomic=output != "-") as file:
            file.write(text)
    except OSError as error:
        raise Invalid({"output": f"output: {output}: {error.strerror}"}) from None


@jobs.command("import")
@click.argument("file")
@click.option("--dry-run", is_flag=True, help="Only print what would change, like a diff.")
@click.option("--message", default="", help="What is new in the code, for its history.")
@json_option
def import_file(file: str, dry_run: bool, message: str, as_json: bool) -> None:
    """Make and change jobs until they are as FILE has them; - reads it from input. Other jobs stay as they are."""
    from ..services import transfer

    document = transfer.from_yaml(console.read_text(file, "file", transfer.MAX_BYTES))
    changes = transfer.import_jobs(console.database(), document, console.actor(), dry_run, message)
    if as_json:
        console.print_json({"dry_run": dry_run, "jobs": [shapes.change(one) for one in changes]})
        return
    for one in changes:
        if one.action != "unchanged":
            _show_change(one)
    counts = {
        action: sum(one.action == action for one in changes) for action in ("create", "update", "unchanged")
    }
    done = "to create, {update} to change" if dry_run else "created, {update} changed"
    say(f"{{create}} {done}, {{unchanged}} unchanged.".format(**counts))


def _show_change(change: Change) -> None:
    made = change.job_id is None
    lines = [f"+job {change.name!r}" if made else f" job {change.name!r} ({change.job_id})"]
    for name, sides in change.fields().items():
        lines += [] if made else [f"-  {name}: {console.plain(sides['from'])}"]
        lines.append(f"+  {name}: {console.plain(sides['to'])}")
    lines += [line for line in change.code_diff().split("\n") if line]
    console.print_diff("\n".join(lines))

"""`executions`: what ran, runs and waits, and its output."""

from __future__ import annotations

import time
from typing import Any

import click

from ..core.states import Origin, Status
from ..services import lifecycle
from ..store import queries
from ..store.keyset import Page
from ..store.queries import ExecutionDetail, ExecutionFilter
from . import console, shapes
from .console import ID, MOMENT_HELP, VERSION, Group, Moment, json_option, page_options, say
from .jobs import ending, manager
from .shapes import Shape

FOLLOW_STEP = 0.2


@click.group(cls=Group)
def executions() -> None:
    """Executions: list, show, read and follow logs, cancel, retry."""


@executions.command("list")
@click.option("--job", help="A job's name or its id.")
@click.option(
    "--status", "statuses", type=click.Choice([*map(str, Status)]), multiple=True, help="One, or several."
)
@click.option("--from", "slot_from", type=Moment(), help=f"Scheduled then or later, {MOMENT_HELP}.")
@click.option("--to", "slot_to", type=Moment(), help="Scheduled before then.")
@click.option("--origin", type=click.Choice([*map(str, Origin)]), help="Why it was made.")
@click.option("--worker", help="The id of the worker that ran it.")
@click.option("--version", type=VERSION, help="The version of the code that ran.")
@click.option("--text", help="Part of the output or the error.")
@page_options
@json_option
def list_executions(
    job: str | None, limit: int, cursor: str | None, everything: bool, as_json: bool, **wanted: Any
) -> None:
    """List executions, the newest first; with --from or --to the latest slot first."""
    session = console.database()
    chosen = ExecutionFilter(job=None if job is None else manager().find(job).id, **wanted)
    page = console.read_pages(
        lambda after, most: queries.executions(session, chosen, cursor=after, limit=most),
        limit,
        cursor,
        everything,
    )
    items = [shapes.execution(row.execution, row.job_name) for row in page.items]
    console.print_page(Page(items, page.next), as_json, _show_executions)


def _slots(count: int) -> str:
    return f"{count:,} slots. " if count > 1 else ""


def _show_executions(found: list[Shape]) -> None:
    rows = [
        (
            run["id"],
            run["job_name"],
            run["status"],
            run["scheduled_time"],
            run["started_at"],
            console.duration(run["duration_ms"]),
            run["retry_count"],
            run["locked_by"],
            _slots(run["slots_count"]) + (run["error"] or run["skipped_reason"] or run["waiting_for"] or ""),
        )
        for run in found
    ]
    titles = ("ID", "JOB", "STATUS", "SLOT", "STARTED", "TOOK", "RETRY", "WORKER", "WHY")
    console.table(titles, rows)


@executions.command()
@click.argument("execution", type=ID)
@json_option
def show(execution: int, as_json: bool) -> None:
    """Show an execution: all but its output, and every attempt of its chain."""
    found = queries.execution(console.database(), execution)
    if as_json:
        console.print_json(shapes.execution_detail(found))
        return
    run, job = found.execution, found.job
    console.facts(
        {
            "id": run.id,
            "job": f"{job.name} ({job.id})" if job else run.cron_job,
            "status": run.status,
            "why": run.error or run.skipped_reason or run.waiting_for,
            "slot": run.scheduled_time,
            **({"slots": run.slots_count, "last slot": run.slots_until} if run.slots_count > 1 else {}),
            "origin": run.origin + (f", by {run.triggered_by}" if run.triggered_by else ""),
            "note": run.note,
            "attempt": run.retry_count + 1,
            "due": run.due_time,
            "started": run.started_at,
            "completed": run.completed_at,
            "took": console.duration(run.duration_ms),
            "progress": _progress(run.progress_percent, run.progress_note),
            "memory": f"{run.memory_peak_mb:.0f} MiB" if run.memory_peak_mb else None,
            "exit code": run.exit_code,
            "version": run.version,
            "worker": run.locked_by,
            "parameters": run.parameters,
            "result": run.result,
            "output": f"{run.output_bytes:,} bytes",
        }
    )
    if run.stack_trace:
        say()
        console.print_output(run.stack_trace.rstrip("\n") + "\n")
    _show_attempts(found)


def _progress(percent: float | None, text: str | None) -> str | None:
    return None if percent is None else f"{percent:g} % {text or ''}".rstrip()


def _show_attempts(found: ExecutionDetail) -> None:
    if len(found.attempts) > 1:
        say()
        rows = [
            (run.id, run.retry_count + 1, run.status, run.due_time, run.started_at, run.error)
            for run in found.attempts
        ]
        console.table(("ID", "ATTEMPT", "STATUS", "DUE", "STARTED", "WHY"), rows)


@executions.command()
@click.argument("execution", type=ID)
@click.option("--follow", "-f", is_flag=True, help="Go on until it ends.")
def log(execution: int, follow: bool) -> None:
    """Print what an execution printed."""
    session = console.database()
    output = console.Output()
    part = queries.read_log(session, execution)
    output.add(part.text)
    while not part.finished and (part.text or follow):
        if not part.text:
            time.sleep(FOLLOW_STEP)
        # Ends the read transaction: the next look must see what was printed meanwhile.
        session.rollback()
        part = queries.read_log(session, execution, part.cursor)
        output.add(part.text)
    output.end()
    if follow:
        console.note(ending(queries.execution(session, execution).execution))


@executions.command()
@click.argument("execution", type=ID)
@click.option("--reason", default="", help="Why, for those who read the history.")
@json_option
def cancel(execution: int, reason: str, as_json: bool) -> None:
    """Call off a pending run at once, or ask the worker of a running one to stop it."""
    run = lifecycle.cancel(console.database(), execution, console.actor(), reason)
    asked = f"The worker of execution {run.id} stops it."
    _done(run.id, asked if run.status == Status.RUNNING else f"Execution {run.id} is {run.status}.", as_json)


@executions.command()
@click.argument("execution", type=ID)
@json_option
def retry(execution: int, as_json: bool) -> None:
    """Skip the delay of a waiting retry: of this execution, or of the one that follows it."""
    run = lifecycle.retry_now(console.database(), execution, console.actor())
    _done(run.id, f"Execution {run.id} is due now.", as_json)


@executions.command()
@click.argument("execution", type=ID)
@click.option("--same-version", is_flag=True, help="On the version that ran then, not on the current one.")
@json_option
def rerun(execution: int, same_version: bool, as_json: bool) -> None:
    """Run an ended execution's slot again, with its parameters."""
    run = lifecycle.rerun(console.database(), execution, console.actor(), same_version=same_version)
    _done(run.id, f"Execution {run.id} runs the slot of {execution} again.", as_json)


def _done(execution: int, text: str, as_json: bool) -> None:
    if as_json:
        console.print_json(shapes.execution_detail(queries.execution(console.database(), execution)))
    else:
        say(text)

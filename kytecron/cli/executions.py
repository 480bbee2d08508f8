"""`executions`: what ran, runs and waits, and its output."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import click

from ..core.states import Origin, Status
from ..services import lifecycle
from ..store import db as database
from ..store import queries
from ..store.keyset import Page
from ..store.queries import ExecutionFilter
from ..views import runs
from ..views.runs import Phase
from . import console
from .console import ID, MOMENT_HELP, VERSION, Group, Moment, json_option, page_options, say
from .jobs import manager

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
    items = [runs.for_programs(row.execution, row.job_name) for row in page.items]
    console.print_page(Page(items, page.next), as_json, lambda _: _show_executions(runs.views(page.items)))


def _show_executions(found: list[runs.RunView]) -> None:
    rows = [
        (
            *(
                run.id,
                run.job_name,
                run.status,
                run.scheduled_time,
                run.started_at,
                run.took,
                run.attempt - 1,
            ),
            *(run.worker, ". ".join(text for text in (run.slots, run.cause) if text)),
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
    session = console.database()
    found = queries.execution(session, execution)
    if as_json:
        console.print_json(runs.detail_for_programs(found))
        return
    run = runs.detail(found, database.now(session))
    console.facts(
        {
            "id": run.id,
            "job": f"{run.job.name} ({run.job.id})" if run.job else run.job_id,
            "status": f"{run.status}, being stopped" if run.phase is Phase.STOPPING else run.status,
            "why": run.cause,
            "slot": run.scheduled_time,
            **({"slots": run.slots, "last slot": run.slots_until} if run.slots else {}),
            "started by": run.origin,
            "attempt": run.attempt,
            "due": run.due_time,
            "started": run.started_at,
            "completed": run.completed_at,
            "took": run.took,
            "progress": run.progress,
            "memory": run.memory,
            "cpu time": run.cpu,
            "exit code": run.exit_code,
            "version": run.version_text,
            "worker": run.worker,
            "lease until": run.lease_until,
            "parameters": run.parameters,
            "result": run.result,
            "output": run.output,
        }
    )
    if run.stack_trace:
        say()
        console.print_output(run.stack_trace.rstrip("\n") + "\n")
    _show_attempts(run.attempts)


def _show_attempts(attempts: Sequence[runs.Attempt]) -> None:
    if len(attempts) > 1:
        say()
        rows = [(run.id, run.number, run.status, run.due_time, run.started_at, run.error) for run in attempts]
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
        console.note(runs.ending(queries.execution(session, execution).execution))


@executions.command()
@click.argument("execution", type=ID)
@click.option("--reason", default="", help="Why, for those who read the history.")
@json_option
def cancel(execution: int, reason: str, as_json: bool) -> None:
    """Call off a pending run at once, or ask the worker of a running one to stop it."""
    run = lifecycle.cancel(console.database(), execution, console.actor(), reason)
    _done(run.id, runs.after_cancel(run), as_json)


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
        console.print_json(runs.detail_for_programs(queries.execution(console.database(), execution)))
    else:
        say(text)

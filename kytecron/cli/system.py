"""`locks`, `dlq`, `workers`, `doctor`, `prune`: the machinery."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import click

from ..core import words
from ..core.errors import Conflict, Invalid
from ..core.states import Status
from ..services import deadletters, lifecycle, retention
from ..services import doctor as doctors
from ..store import db as database
from ..store import queries
from ..store.keyset import Page
from ..store.queries import ExecutionRow, JobFilter
from ..views import jobs as job_views
from ..views import runs
from ..views import workers as views
from ..views.standing import Standing, standing
from . import console, shapes
from .console import ID, Command, Group, json_option, page_options, say, yes_option
from .jobs import job_page, manager
from .shapes import Shape

# -- locks ---------------------------------------------------------------------------------------------------


@click.group(cls=Group)
def locks() -> None:
    """Locks: runs that workers hold under a lease."""


@locks.command("list")
@page_options
@json_option
def list_locks(limit: int, cursor: str | None, everything: bool, as_json: bool) -> None:
    """List the runs that workers hold."""
    _print_locks(_running(), limit, cursor, everything, as_json)


@locks.command()
@page_options
@json_option
def stale(limit: int, cursor: str | None, everything: bool, as_json: bool) -> None:
    """List the runs whose lease has ended: their workers vanished. Any living worker ends them within seconds."""
    _print_locks(_stale(), limit, cursor, everything, as_json)


Reader = Callable[[str | None, int], Page[ExecutionRow]]


def _running() -> Reader:
    session = console.database()
    return lambda after, most: queries.running(session, cursor=after, limit=most)


def _stale() -> Reader:
    session = console.database()
    now = database.now(session)
    return lambda after, most: queries.stale_locks(session, now, cursor=after, limit=most)


def _print_locks(read: Reader, limit: int, cursor: str | None, everything: bool, as_json: bool) -> None:
    page = console.read_pages(read, limit, cursor, everything)
    now = database.now(console.database())
    found = runs.locks(page.items, now)
    shown = Page([one.for_programs() for one in found], page.next)
    console.print_page(shown, as_json, lambda _: _show_locks(found))


def _show_locks(found: list[runs.LockView]) -> None:
    rows = [
        (one.execution_id, one.job_name, one.locked_by, one.locked_at, one.locked_until, _lock_notes(one))
        for one in found
    ]
    titles = ("EXECUTION", "JOB", "WORKER", "SINCE", "UNTIL", "")
    console.table(titles, rows)


def _lock_notes(one: runs.LockView) -> str:
    return "stale" if one.stale else "asked to stop" if one.asked_to_stop else ""


@locks.command()
@click.argument("execution", type=ID)
@yes_option
def clear(execution: int, yes: bool) -> None:
    """Take a run from its worker: it ends as lost and is retried, once a worker that lives has stopped it."""
    console.confirm(f"Take execution {execution} from its worker?", yes)
    run = lifecycle.release_lock(console.database(), execution, console.actor())
    say(runs.after_release(run))


@locks.command("clear-all")
@click.option("--stale", "only_stale", is_flag=True, help="Only those whose lease has ended.")
@yes_option
def clear_all(only_stale: bool, yes: bool) -> None:
    """Take all runs from their workers, those that live and work too."""
    read = _stale() if only_stale else _running()
    held = [row.execution.id for row in console.read_pages(read, 1, None, True).items]
    if not held:
        say("There is nothing to clear.")
        return
    console.confirm(f"Take {len(held)} runs from their workers? They end as lost and are retried.", yes)
    session, who, released = console.database(), console.actor(), Counter[str]()
    for execution in held:
        try:
            released[lifecycle.release_lock(session, execution, who).status] += 1
        except Conflict:  # it ended meanwhile
            continue
    asked, ended = released[Status.RUNNING], len(held) - released.total()
    say(
        f"{released.total() - asked} cleared."
        + (f" The workers of {asked} were asked to stop them, and they then end as lost." if asked else "")
        + (f" {ended} had ended." if ended else "")
    )


@locks.command("stats")
@click.option("--hours", type=click.IntRange(1, 24 * 366), default=24, show_default=True)
@json_option
def lock_stats(hours: int, as_json: bool) -> None:
    """Show who holds how much, and how workers got in each other's way."""
    session = console.database()
    now = database.now(session)
    running = console.read_pages(_running(), 1, None, True).items
    found = _lock_stats(runs.locks(running, now), queries.workers(session, now - timedelta(hours=hours)))
    if as_json:
        console.print_json(found)
        return
    holders = found.pop("by_worker")
    console.facts({name.replace("_", " "): value for name, value in found.items()})
    if holders:
        say()
        rows = [(one["worker_id"], one["locks"], one["stale"]) for one in holders]
        console.table(("WORKER", "LOCKS", "STALE"), rows)


def _lock_stats(held: list[runs.LockView], workers: Any) -> Shape:
    locks_of = Counter(one.locked_by for one in held)
    stale_of = Counter(one.locked_by for one in held if one.stale)
    told: Counter[str] = Counter()
    for worker in workers:
        for name in ("locks_acquired", "locks_missed", "leases_expired"):
            told[name] += (worker.statistics or {}).get(name, 0)
    tries = told["locks_acquired"] + told["locks_missed"]
    return {
        "locks": len(held),
        "stale": sum(stale_of.values()),
        "oldest": min((one.locked_at for one in held if one.locked_at), default=None),
        **{name: told[name] for name in ("locks_acquired", "locks_missed", "leases_expired")},
        "contention_rate": round(100 * told["locks_missed"] / tries, 1) if tries else None,
        "by_worker": [
            {"worker_id": name, "locks": number, "stale": stale_of[name]}
            for name, number in locks_of.most_common()
        ],
    }


# -- the dead letter queue -----------------------------------------------------------------------------------


@click.group(cls=Group)
def dlq() -> None:
    """The dead letter queue: jobs whose retries are exhausted."""


@dlq.command("list")
@page_options
@json_option
def list_dead(limit: int, cursor: str | None, everything: bool, as_json: bool) -> None:
    """List the jobs in the queue, the newest first."""
    session = console.database()
    page = console.read_pages(
        lambda after, most: queries.jobs(
            session, JobFilter(status="dead"), sort="-dead_letter_since", cursor=after, limit=most
        ),
        limit,
        cursor,
        everything,
    )
    console.print_page(job_page(page), as_json, lambda _: _show_dead(job_views.views(page.items)))


def _show_dead(found: list[job_views.JobView]) -> None:
    rows = [(one.id, one.name, one.standing.since, one.failing, one.standing.reason) for one in found]
    console.table(("ID", "NAME", "SINCE", "FAILING", "REASON"), rows)


@dlq.command()
@click.argument("names", nargs=-1, metavar="[JOB]...")
@click.option("--all", "everything", is_flag=True, help="All that are in the queue.")
@json_option
def recover(names: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Take jobs out of the queue and enable them: failures count from zero, the next run from now."""
    if bool(names) == everything:
        raise Invalid({"JOB": "JOB: name one job or several, or give --all"})
    service = manager()
    ids = None if everything else [service.find(name).id for name in names]
    done = deadletters.recover_many(console.database(), ids, console.actor())
    if as_json:
        refused = [{"id": job_id, "message": why} for job_id, why in done.refused.items()]
        console.print_json({"recovered": [job.id for job in done.recovered], "refused": refused})
    else:
        for job in done.recovered:
            planned = f", runs next at {console.moment(job.next_run_time)}" if job.next_run_time else ""
            say(f"Job {job.id} {job.name!r} is enabled{planned}.")
        if everything and not done.recovered and not done.refused:
            say("The queue is empty.")
    if done.refused:
        raise console.Failed("\nError: ".join(f"Job {job_id}: {why}" for job_id, why in done.refused.items()))


# -- workers -------------------------------------------------------------------------------------------------


@click.group(cls=Group)
def workers() -> None:
    """Workers: the processes that run jobs."""


@workers.command("list")
@click.option(
    "--hours", type=click.IntRange(1, 24 * 366), default=24, show_default=True, help="Heard of since."
)
@json_option
def list_workers(hours: int, as_json: bool) -> None:
    """List worker processes, those that run first."""
    session = console.database()
    now = database.now(session)
    found = views.workers(session, now, timedelta(hours=hours))
    if as_json:
        console.print_json({"items": [one.for_programs() for one in found]})
        return
    rows = [
        (
            one.worker_id,
            one.state,
            f"{one.running}/{one.capacity}",
            list(one.tags),
            f"{one.clock_skew_ms:+.0f} ms",
            one.tzdata,
            one.version,
            one.started_at,
            f"{words.duration(max(0.0, (now - one.seen_at).total_seconds() * 1000))} ago",
        )
        for one in found
    ]
    titles = ("WORKER", "STATE", "RUNNING", "TAGS", "CLOCK", "TZDATA", "VERSION", "STARTED", "SEEN")
    console.table(titles, rows)
    for one in found:
        for text in (f"{note.text}. {note.advice}".rstrip(". ") for note in one.notes):
            say(f"{one.worker_id} {text}.")


# -- how everything stands -----------------------------------------------------------------------------------


@click.command(cls=Command)
@json_option
def status(as_json: bool) -> None:
    """Say how everything stands, and whether it needs a person.

    The exit status is 1 where the verdict is bad: nothing starts, or runs are late or lost.
    """
    session = console.database()
    found = standing(session, database.now(session))
    if as_json:
        console.print_json(shapes.stats(found))
    else:
        _show_standing(found)
    if found.verdict.tone == "bad":
        raise click.exceptions.Exit(1)


def _show_standing(found: Standing) -> None:
    numbers, today, force = found.numbers, found.numbers.today, found.workforce
    say(found.verdict.text)
    console.facts(
        {
            "running": numbers.running,
            "pending": numbers.pending,
            "jobs": f"{numbers.enabled} enabled, {numbers.disabled} disabled",
            "failing": numbers.failing,
            "skipping": numbers.skipping,
            "dead letters": numbers.dead,
            "success today": f"{words.percent(today.success_rate)} of {today.total} (UTC day)",
            "workers": f"{force.alive} alive, {force.busy} of {force.capacity} capacity in use",
        }
    )


# -- upkeep --------------------------------------------------------------------------------------------------


@click.command(cls=Command)
@click.option("--fix", is_flag=True, help="Repair migrations, reference counts and ended leases.")
@json_option
def doctor(fix: bool, as_json: bool) -> None:
    """Check database, migrations, clocks, time zones, workers, leases and reference counts.

    The exit status is 1 where there is a problem; warnings are none.
    """
    found = doctors.examine(console.installation().engine, console.settings(), console.actor(), fix=fix)
    if as_json:
        shown = [
            {"check": one.check, "verdict": one.verdict, "detail": one.detail, "advice": one.advice}
            for one in found
        ]
        console.print_json({"healthy": doctors.healthy(found), "items": shown})
    else:
        rows = [(one.check, one.verdict, f"{one.detail}. {one.advice}".rstrip(" .")) for one in found]
        console.table(("CHECK", "VERDICT", "WHAT"), rows)
    if not doctors.healthy(found):
        raise click.exceptions.Exit(1)


@click.command(cls=Command)
@yes_option
@json_option
def prune(yes: bool, as_json: bool) -> None:
    """Remove what is older than the settings say, as workers do by themselves."""
    console.require_schema()
    chosen = console.settings()
    console.confirm(
        f"Remove executions older than {chosen.retention_days} days or beyond {chosen.retention_per_job:,} of a job, "
        f"versions beyond {chosen.retention_versions} of a job, and what else has had its time?",
        yes,
    )
    sessions, removed, more = database.make_sessions(console.installation().engine), Counter[str](), True
    while more:
        part = retention.prune(sessions, chosen, actor=console.actor())
        removed.update(part)
        more = retention.is_cut_short(part)
    if as_json:
        console.print_json(removed)
    else:
        console.table(("WHAT", "REMOVED"), list(removed.items()))

"""`versions`: the history of jobs' code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..core import diff
from ..services.versions import CronVersionControl
from ..store import queries
from ..store.keyset import Page
from ..views import versions as views
from . import console
from .console import VERSION, Group, json_option, page_options, say, yes_option
from .jobs import manager

SIDE_BY_SIDE = 100
"""Columns that a terminal must have for two texts beside each other."""


@click.group(cls=Group)
def versions() -> None:
    """Versions of jobs' code: history, comparison, rollback, pruning, storage.

    JOB is a job's name or its id, VERSION a number.
    """


def _control() -> CronVersionControl:
    return CronVersionControl(console.database(), console.actor())


@versions.command()
@click.argument("job")
@page_options
@json_option
def history(job: str, limit: int, cursor: str | None, everything: bool, as_json: bool) -> None:
    """List the versions of a job, the newest first."""
    session, job_id = console.database(), manager().find(job).id
    page = console.read_pages(
        lambda after, most: queries.versions(session, job_id, cursor=after, limit=most),
        limit,
        cursor,
        everything,
    )
    found = views.views(page.items)
    shown = Page([one.for_programs() for one in found], page.next)
    console.print_page(shown, as_json, lambda _: _show_history(found))


def _show_history(found: list[views.VersionView]) -> None:
    rows = [
        (
            one.version_number,
            one.is_current or None,
            one.created_at,
            one.by,
            f"+{one.lines_added} -{one.lines_removed} ~{one.lines_changed}",
            one.content_hash[:12],
            one.message,
        )
        for one in found
    ]
    titles = ("VERSION", "CURRENT", "CREATED", "BY", "LINES", "CONTENT", "MESSAGE")
    console.table(titles, rows)


@versions.command()
@click.argument("job")
@click.argument("version", type=VERSION, required=False)
@click.option("--code", is_flag=True, help="Print the code alone, as it is stored.")
@json_option
def show(job: str, version: int | None, code: bool, as_json: bool) -> None:
    """Show a version, by default the current one: who saved it, and the lines that it changed."""
    found, control = manager().find(job), _control()
    number = found.current_version if version is None else version
    if number is None:
        raise console.Failed(f"Job {found.id} has no code yet")
    if code:
        console.print_output(control.code(found.id, number))
        return
    row = control.get(found.id, number)
    if as_json:
        console.print_json(views.detail_for_programs(row))
        return
    view = views.view(row)
    console.facts(
        {
            "job": f"{found.name} ({found.id})",
            "version": view.version_number,
            "current": view.is_current,
            "created": view.created_at,
            "by": view.by,
            "message": view.message,
            "content": view.content_hash,
            "lines": view.lines,
        }
    )
    if row.changes_from_previous:
        say()
        console.print_diff(row.changes_from_previous)


@versions.command()
@click.argument("job")
@click.argument("from_version", metavar="FROM", type=VERSION)
@click.argument("to_version", metavar="TO", type=VERSION)
@click.option(
    "--context", type=click.IntRange(0, 1000), help="Equal lines around each change.  [default: all]"
)
@json_option
def compare(job: str, from_version: int, to_version: int, context: int | None, as_json: bool) -> None:
    """Compare two versions: side by side on a wide terminal, one below the other elsewhere."""
    found = _control().compare(manager().find(job).id, from_version, to_version, context)
    if as_json:
        console.print_json(views.comparison_for_programs(from_version, to_version, found))
        return
    if console.on_terminal() and (terminal := Console()).width >= SIDE_BY_SIDE:
        terminal.print(_side_by_side(found))
    else:
        _one_below_the_other(found)
    say(f"{views.in_words(found.counts)}.")


def _side_by_side(found: diff.Diff) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, expand=True)
    for ratio in (None, 1, None, 1):
        table.add_column(
            justify="left" if ratio else "right", ratio=ratio, overflow="fold", no_wrap=ratio is None
        )
    for row in found.rows:
        if row.kind == "gap":
            table.add_row("", Text(f"... {row.hidden} equal lines ...", style="dim"))
            continue
        table.add_row(
            str(row.old_line or ""),
            _marked(row.old, "red"),
            str(row.new_line or ""),
            _marked(row.new, "green"),
        )
        if row.kind in ("added", "removed"):
            table.rows[-1].style = "green" if row.kind == "added" else "red"
    return table


def _marked(segments: Sequence[diff.Segment], colour: str) -> Text:
    text = Text()
    for segment in segments:
        text.append(console.safe(segment.text), style=f"bold {colour}" if segment.marked else "")
    return text


def _one_below_the_other(found: diff.Diff) -> None:
    lines: list[str] = []
    for row in found.rows:
        old, new = _line(row.old), _line(row.new)
        if row.kind == "gap":
            lines.append(f"@@ {row.hidden} equal lines @@")
        elif row.kind == "equal":
            lines.append(f" {old}")
        else:
            lines += [f"-{old}"] if row.old_line is not None else []
            lines += [f"+{new}"] if row.new_line is not None else []
    console.print_diff("\n".join(lines))


def _line(segments: Sequence[diff.Segment]) -> str:
    return "".join(segment.text for segment in segments)


@versions.command()
@click.argument("job")
@click.argument("version", type=VERSION)
@yes_option
def rollback(job: str, version: int, yes: bool) -> None:
    """Make an old version current again."""
    found = manager().find(job)
    question = (
        f"Make version {version} of job {found.id} {found.name!r} current instead of {found.current_version}?"
    )
    console.confirm(question, yes)
    _control().rollback(found.id, version)
    say(f"Job {found.id} {found.name!r} is at version {version}.")


@versions.command()
@click.argument("job")
@click.option(
    "--keep",
    type=click.IntRange(max=1_000_000),
    required=True,
    help="Versions to keep besides the current one.",
)
@yes_option
@json_option
def prune(job: str, keep: int, yes: bool, as_json: bool) -> None:
    """Remove old versions for good: all but the newest, the current one and those that waiting runs ask for."""
    found = manager().find(job)
    console.confirm(f"Remove all but the {keep} newest versions of job {found.id} {found.name!r}?", yes)
    removed = _control().prune(found.id, keep)
    if as_json:
        console.print_json({"removed": removed})
    else:
        say(f"{removed} versions removed.")


@versions.command()
@json_option
def stats(as_json: bool) -> None:
    """Show what stored code takes up, and what sharing and compression save."""
    found: dict[str, Any] = _control().content_stats()
    if as_json:
        console.print_json(found)
        return
    shared = found.pop("top_shared")
    console.facts({name.replace("_", " "): value for name, value in found.items()})
    if shared:
        say()
        rows = [(one["content_hash"], one["reference_count"], one["size_bytes"]) for one in shared]
        console.table(("CONTENT", "VERSIONS", "BYTES"), rows)

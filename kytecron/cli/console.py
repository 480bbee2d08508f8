"""What all commands share: who acts, how answers are printed, how errors are told.

On a terminal people get tables as wide as it is; elsewhere plain columns that nothing is cut from, or `--json`.
Names, output and machine names are untrusted: nothing printed here can move the cursor or change the terminal.
"""

from __future__ import annotations

import getpass
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click
import pydantic_core
from rich.cells import cell_len
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from ..config import Settings
from ..core import ansi, diff, words
from ..core.choices import Source
from ..core.errors import Conflict, Invalid, KytecronError
from ..core.jobspec import JobFields
from ..core.states import Status
from ..core.untrusted import HIDDEN, LARGEST
from ..services.audit import Actor
from ..store.db import CommitUnknown, cause, is_outage, shown, trouble
from ..store.keyset import Page
from ..store.queries import MAX_LIMIT
from .installation import Installation

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])


# -- who and where -------------------------------------------------------------------------------------------


def installation() -> Installation:
    """What this command works on."""
    found = click.get_current_context().find_object(Installation)
    assert found is not None  # every door to the commands gives one
    return found


def database() -> Session:
    """The session of this command. Raises Conflict where the tables are not those of this version."""
    require_schema()
    return installation().session


def require_schema() -> None:
    """Raise Conflict, with what to do, where the tables are not those of this version."""
    if problem := installation().schema_problem:
        raise Conflict(problem)


def settings() -> Settings:
    """The settings of this installation."""
    return installation().settings


def actor() -> Actor:
    """Who sits at the keyboard, as the system knows them."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        name = f"uid {os.getuid()}"
    return Actor(name, Source.CLI)


# -- errors --------------------------------------------------------------------------------------------------


class Failed(click.ClickException):
    """Ends a command with exit status 1."""


class WrongInput(click.ClickException):
    """Ends a command with exit status 2."""

    exit_code = 2


class Command(click.Command):
    """A command that says which database it talks to, and whose errors end as messages, not as tracebacks."""

    def invoke(self, ctx: click.Context) -> Any:
        ctx.call_on_close(installation().close)
        with errors_told():
            say_which_database()
            return super().invoke(ctx)


def say_which_database() -> None:
    """Tell people, who may have forgotten to load the settings, where this goes."""
    note(f"Database: {shown(settings().url)}")


@contextmanager
def errors_told() -> Iterator[None]:
    """End the command with a message for every error that is not a fault of ours."""
    try:
        yield
    except Invalid as error:
        raise WrongInput("\nError: ".join(_named(*item) for item in error.fields.items())) from None
    except Conflict as error:
        raise Failed(_with_both_sides(error)) from None
    except KytecronError as error:
        raise Failed(safe(error.message)) from None
    except CommitUnknown as error:
        text = "The database was lost while saving: look whether it was done before doing it again"
        raise Failed(f"{text} ({safe(cause(error))})") from None
    except Exception as error:
        if not isinstance(error, SQLAlchemyError) and not is_outage(error):
            raise
        if isinstance(error, OSError):  # a file or a pipe, which is no matter of the database
            raise
        raise Failed(safe(trouble(error))) from error


class Group(click.Group):
    """A group of such commands."""

    command_class = Command


def _named(field: str, message: str) -> str:
    known = field.rpartition(".")[2]
    return safe(message if known in message else f"{field}: {message}")


def _with_both_sides(error: Conflict) -> str:
    lines = [safe(error.message)]
    for field, sides in error.details.get("fields", {}).items():
        lines.append(safe(f"  {field}: {plain(sides['theirs'])} is there, {plain(sides['yours'])} is yours"))
    if error.details.get("theirs") is not None:
        delta = diff.line_delta(error.details["theirs"], error.details["yours"])
        lines += ["  what is there (-) and yours (+):", *(f"  {safe(line)}" for line in delta.split("\n"))]
    return "\n".join(lines)


# -- printing ------------------------------------------------------------------------------------------------


def safe(text: str) -> str:
    """`text` without anything that a terminal would obey."""
    return "".join(piece for _, piece in ansi.segments(text))


def say(text: str = "") -> None:
    """Print a line for people."""
    click.echo(safe(text))


def note(text: str) -> None:
    """Print a line that is no part of the answer."""
    click.echo(safe(text), err=True)


def print_json(value: Any) -> None:
    """Print an answer for programs."""
    text = pydantic_core.to_json(value, indent=2).decode()
    click.echo(HIDDEN.sub(lambda found: json.dumps(found[0])[1:-1], text))


def plain(value: Any) -> str:
    """A value as a cell shows it, on one line."""
    if value is None or value in ("", [], {}):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return moment(value)
    if isinstance(value, list):
        return ", ".join(map(plain, value))
    if isinstance(value, dict):
        return pydantic_core.to_json(value).decode()
    if isinstance(value, float):
        return f"{value:g}"
    return safe(" ".join(str(value).split()))


def moment(value: datetime) -> str:
    """An instant in UTC, to the second."""
    return f"{value:%Y-%m-%d %H:%M:%SZ}"


def duration(milliseconds: float | None) -> str | None:
    """How long something took."""
    return None if milliseconds is None else words.duration(milliseconds)


def on_terminal() -> bool:
    """Whether people read along."""
    return sys.stdout.isatty()


def ask_unseen(field: str, option: str) -> str:
    """A text typed twice and not shown. Raises Invalid, with the `option` that does without, where nobody can type."""
    if not sys.stdin.isatty():
        raise Invalid({field: f"{field}: nobody can be asked here; give it with {option}"})
    text: str = click.prompt(field.capitalize(), hide_input=True, confirmation_prompt=True, err=True)
    return text


WRAPPED = frozenset({"NAME", "JOB", "SCHEDULE", "WHY", "REASON", "MESSAGE", "WHAT", "TAGS"})
"""Columns that a narrow terminal breaks into lines. The others, ids first, are never cut or broken."""


def table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows under titles."""
    cells = [[plain(value) for value in row] for row in rows]
    if not on_terminal():
        _plain_table(titles, cells)
        return
    from rich.console import Console
    from rich.table import Table

    drawn = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    needed = 0
    for place, title in enumerate(titles):
        width = max([cell_len(title), *(cell_len(row[place]) for row in cells)])
        least = min(width, 12) if title in WRAPPED else width
        drawn.add_column(title, no_wrap=title not in WRAPPED, min_width=least, overflow="fold")
        needed += least + 2
    for row in cells:
        drawn.add_row(*map(_coloured, row))
    # Told that there is less room than it needs, rich would leave columns out.
    Console(width=max(Console().width, needed)).print(drawn, crop=False)


def _plain_table(titles: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    lines = [list(titles), *cells]
    widths = [max(cell_len(line[place]) for line in lines) for place in range(len(titles))]
    for line in lines:
        padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


STATUS_COLOURS: dict[str, str] = {
    Status.PENDING: "yellow",
    Status.RUNNING: "yellow",
    Status.COMPLETED: "green",
    Status.FAILED: "red",
    Status.TIMEOUT: "red",
    Status.LOST: "red",
    Status.CANCELLED: "dim",
    Status.SKIPPED: "dim",
}
_COLOURS: dict[str, str] = {
    **STATUS_COLOURS,
    **dict.fromkeys(("enabled", "alive", "ok", "fixed"), "green"),
    **dict.fromkeys(("dead letter", "problem", "silent", "gone", "stale"), "red"),
    **dict.fromkeys(("warning", "draining"), "yellow"),
    **dict.fromkeys(("disabled", "stopped"), "dim"),
}


def _coloured(cell: str) -> Text:
    from rich.text import Text

    return Text(cell, style=_COLOURS.get(cell, ""))


def facts(values: Mapping[str, Any]) -> None:
    """Print names and values, one a line, without those that are None."""
    values = {name: value for name, value in values.items() if value is not None}
    width = max(map(cell_len, values), default=0)
    for name, value in values.items():
        click.echo(f"{click.style(name.ljust(width), bold=True)}  {plain(value)}")


class Output:
    """Prints what a job prints, piece by piece: with its colours on a terminal, elsewhere as it is stored."""

    def __init__(self) -> None:
        self._console = _terminal() if on_terminal() else None
        self._open = ""
        self._style = ""
        self._drawn = False

    def add(self, text: str) -> None:
        """Print the next piece. A line that is not complete yet is printed over by the next one."""
        if self._console is None:
            click.echo(text.encode("utf-8", "replace"), nl=False)
        elif text:
            shown = ansi.advance(self._open + text, self._style)
            self._open, self._style = (self._open + text)[shown.taken :], shown.style
            self._erase()
            self._print(_styled(shown.done))
            line = _styled(shown.open)
            line.truncate(max(1, self._console.width - 1))  # what is wrapped could not be printed over
            self._print(line)
            self._drawn = bool(line)

    def end(self) -> None:
        """No more comes: print in full what the last line holds."""
        if self._console is not None:
            self._erase()
            self._print(_styled(ansi.continued(self._open, self._style)[0]))
            self._open = ""

    def _erase(self) -> None:
        if self._drawn:
            click.echo("\r\x1b[K", nl=False, color=True)
            self._drawn = False

    def _print(self, text: Text) -> None:
        if self._console is not None and text:
            self._console.print(text, end="")


def _terminal() -> Console:
    from rich.console import Console

    return Console(soft_wrap=True)


def print_output(text: str) -> None:
    """Print what a job printed, as a whole."""
    output = Output()
    output.add(text)
    output.end()


def _styled(segments: list[ansi.Segment]) -> Text:
    from rich.text import Text

    shown = Text()
    for classes, piece in segments:
        shown.append(piece, style=" ".join(_style(name) for name in classes.split()))
    return shown


def print_diff(text: str) -> None:
    """Print changed lines, each behind its sign."""
    colours = {"+": "green", "-": "red", "@": "cyan"}
    for line in text.split("\n"):
        click.echo(click.style(safe(line), fg=colours.get(line[:1])))


def _style(class_name: str) -> str:
    """What rich calls a class of core.ansi."""
    name = class_name.removeprefix("ansi-")
    if name.startswith("bg-"):
        return f"on {name.removeprefix('bg-').replace('-', '_')}"
    return {"inverse": "reverse"}.get(name, name.replace("-", "_"))


# -- options that several commands have ----------------------------------------------------------------------

ID = click.IntRange(1, LARGEST)
VERSION = click.IntRange(1, 2**31 - 1)
MOMENT_HELP = "such as 2026-03-01T12:00, UTC unless it has an offset"


class Moment(click.ParamType[datetime]):
    """An instant, taken as UTC where it has no offset."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return JobFields.model_validate({"name": "?", "starts_at": value}).starts_at
        except ValueError:
            self.fail(f"{value!r} is not a time {MOMENT_HELP}", param, ctx)


def json_option(command: Function) -> Function:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(command)


def yes_option(command: Function) -> Function:
    """`--yes`."""
    return click.option("--yes", is_flag=True, help="Do not ask.")(command)


def confirm(question: str, yes: bool) -> None:
    """Ask, unless `--yes` was given; a no ends the command with exit status 1."""
    if not yes:
        click.confirm(safe(question), abort=True, err=True)


def page_options(command: Function) -> Function:
    """`--limit`, `--cursor` and `--all`."""
    command = click.option("--all", "everything", is_flag=True, help="Go on to the end of the list.")(command)
    command = click.option("--cursor", help="Go on from there: next_cursor of the part before.")(command)
    limit = click.IntRange(1, MAX_LIMIT)
    return click.option(
        "--limit", type=limit, default=50, show_default=True, help=f"Rows, at most {MAX_LIMIT}."
    )(command)


def read_pages(
    read: Callable[[str | None, int], Page[T]], limit: int, cursor: str | None, everything: bool
) -> Page[T]:
    """A part of a list, or all of it."""
    page = read(cursor, MAX_LIMIT if everything else limit)
    items = list(page.items)
    while everything and page.next is not None:
        page = read(page.next, MAX_LIMIT)
        items += page.items
    return Page(items, page.next)


def print_page(
    page: Page[dict[str, Any]], as_json: bool, show: Callable[[list[dict[str, Any]]], None]
) -> None:
    """Print a part of a list, as JSON in the API's form."""
    if as_json:
        print_json({"items": page.items, "next_cursor": page.next})
        return
    show(page.items)
    if page.next is not None:
        note(f"There is more: add --all, or --cursor {page.next}")


def read_text(file: str, field: str, most: int) -> str:
    """The text of a file, `-` for standard input. Raises Invalid, naming `field`."""
    try:
        with click.open_file(file, "rb") as stream:
            data: bytes = stream.read(most + 1)
    except OSError as error:
        raise Invalid({field: f"{field}: {file}: {error.strerror}"}) from None
    if len(data) > most:
        raise Invalid({field: f"{field}: {file} has more than {most:,} bytes"})
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Invalid({field: f"{field}: {file} is not UTF-8: byte {error.start}"}) from None

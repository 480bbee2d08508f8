"""The options of `jobs create` and `jobs edit`: one for each of core.fields, none written by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, assert_never

import click

from ..core.errors import Invalid, NotFound
from ..core.fields import FIELDS, JobField, Kind
from ..core.source import MAX_BYTES
from ..services.jobs import CronJobManager, problems
from . import console

Function = TypeVar("Function", bound=Callable[..., Any])


def job_options(command: Function) -> Function:
    """An option for each field of a job; what is not given is None, or empty for `--depends-on`."""
    for one in reversed(FIELDS.values()):
        command = _option(one)(command)
    return command


def code_options(command: Function) -> Function:
    """`--code` and `--message`."""
    message = click.option("--message", default="", help="What is new in the code, for its history.")
    code = click.option(
        "--code", "code_file", metavar="FILE", help="File with the job's class; - reads it from input."
    )
    return code(message(command))


def given(options: Mapping[str, Any], manager: CronJobManager, code_file: str | None) -> dict[str, Any]:
    """The fields that were given, and the code where there is a file of it.

    Values are checked where those of the other fronts are. Raises Invalid for a parent that does not exist and a file
    that cannot be read, with all that is wrong with the others.
    """
    fields = {name: value for name, value in options.items() if value not in (None, ())}
    wrong: dict[str, str] = {}
    try:
        fields |= read_code(code_file)
    except Invalid as invalid:
        wrong |= invalid.fields
    try:
        parents = [_parent(name, manager) for name in fields.pop("depends_on", ()) if name.strip()]
        fields |= {"depends_on": parents} if options.get("depends_on") else {}
    except Invalid as invalid:
        wrong |= invalid.fields
    if wrong:
        others = {name: text for name, text in problems(manager.actor, fields).items() if name in fields}
        raise Invalid({**others, **wrong})
    return fields


def read_code(file: str | None) -> dict[str, str]:
    """The code in `file`, as a field of its own. Raises Invalid."""
    # Twice what is allowed: how much that is, and how much this has, is told by the check of the code.
    return {} if file is None else {"code": console.read_text(file, "code", 2 * MAX_BYTES)}


def _parent(name: str, manager: CronJobManager) -> int:
    try:
        return manager.find(name).id
    except NotFound as error:
        raise Invalid({"depends_on": f"depends_on: {error}"}) from None


def _option(one: JobField) -> Callable[[Function], Function]:
    flag = f"--{one.name.replace('_', '-')}"
    text = _help(one)
    if one.kind is Kind.FLAG:
        return click.option(f"{flag}/--no-{flag.removeprefix('--')}", one.name, default=None, help=text)
    if one.kind is Kind.JOBS:
        text = 'A parent by name or id; give it again for several, once as "" for none.'
        return click.option(flag, one.name, multiple=True, metavar="JOB", help=text)
    return click.option(flag, one.name, metavar=_metavar(one), help=text)


def _help(one: JobField) -> str:
    text = f"{one.help}."
    if one.kind is Kind.CHOICE:
        text += f" {'; '.join(f'{word}: {said}' for word, said in one.choices.items())}."
    if one.required or one.default in (None, "", [], {}):
        return text
    shown = ("yes" if one.default else "no") if one.kind is Kind.FLAG else one.default
    return f"{text}  [default: {shown}]"


def _metavar(one: JobField) -> str:
    match one.kind:
        case Kind.CHOICE:
            return f"[{'|'.join(one.choices)}]"
        case Kind.NUMBER:
            return one.unit.upper() if one.unit else "NUMBER"
        case Kind.MOMENT:
            return "TIME"
        case Kind.OBJECT:
            return "JSON"
        case Kind.WORDS:
            return "A,B"
        case Kind.LINE | Kind.PROSE | Kind.WEEKDAYS | Kind.FLAG | Kind.JOBS:
            return "TEXT"
        case never:
            assert_never(never)

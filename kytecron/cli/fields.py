"""The options of `jobs create` and `jobs edit`: one for each field of core.jobspec.JobFields, none written by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from ..core.errors import Invalid, NotFound
from ..core.jobspec import DEFAULTS, JobFields
from ..core.source import MAX_BYTES
from ..services.jobs import CronJobManager, problems
from . import console

Function = TypeVar("Function", bound=Callable[..., Any])

WORDS = {int: "NUMBER", datetime: "TIME", dict: "JSON", list: "A,B"}


def job_options(command: Function) -> Function:
    """An option for each field of a job; what is not given is None, or empty for `--depends-on`."""
    for name, field in reversed(JobFields.model_fields.items()):
        command = _option(name, field)(command)
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
        others = {name: text for name, text in problems(console.actor(), fields).items() if name in fields}
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


def _option(name: str, field: FieldInfo) -> Callable[[Function], Function]:
    flag = f"--{name.replace('_', '-')}"
    text = _help(name, field)
    if field.annotation is bool:
        return click.option(f"{flag}/--no-{flag.removeprefix('--')}", name, default=None, help=text)
    if name == "depends_on":
        text = 'A parent by name or id; give it again for several, once as "" for none.'
        return click.option(flag, name, multiple=True, metavar="JOB", help=text)
    return click.option(flag, name, metavar=_metavar(field.annotation), help=text)


def _help(name: str, field: FieldInfo) -> str:
    text = field.description or name.replace("_", " ").capitalize()
    default = DEFAULTS.get(name)
    if default in (None, "", [], {}):
        return f"{text}."
    shown = ("yes" if default else "no") if isinstance(default, bool) else default
    return f"{text}.  [default: {shown}]"


def _metavar(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return f"[{'|'.join(get_args(annotation))}]"
    if origin in (Union, UnionType, Annotated):
        inner = [one for one in get_args(annotation) if one is not type(None)]
        return _metavar(inner[0]) if origin is Annotated or len(inner) == 1 else "TEXT"
    return WORDS.get(origin or annotation, "TEXT")

"""docs/cli.md names every command, and every example in it is one that would be understood."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from kytecron.cli import COMMANDS, load
from kytecron.config import ROOT
from kytecron.core.jobspec import JobFields
from kytecron.services.base import PYTHON
from kytecron.services.transfer import from_yaml, import_jobs

PROGRAM = "kytecron "
TEXT = (ROOT / "docs" / "cli.md").read_text()
EXAMPLES = [
    line.strip().removeprefix(PROGRAM) for line in TEXT.splitlines() if line.startswith(f"    {PROGRAM}")
]
KNOWN = {name: load(name) for name in COMMANDS}


def commands() -> Iterator[str]:
    for command in KNOWN.values():
        if isinstance(command, click.Group):
            yield from (f"{command.name} {name}" for name in command.commands)
        else:
            yield str(command.name)


@pytest.mark.parametrize("name", list(commands()))
def test_every_command_has_an_example(name: str):
    assert any(f"{line} ".startswith(f"{name} ") for line in EXAMPLES), (
        f"docs/cli.md has no example of {name}"
    )


@pytest.mark.parametrize("line", [line for line in EXAMPLES if not line.startswith(("<", "db "))])
def test_every_example_is_understood(line: str):
    name, *words = shlex.split(line.partition(" > ")[0])
    command = KNOWN[name]
    context = click.Context(command, info_name=name)
    if isinstance(command, click.Group):
        name, command, words = command.resolve_command(context, words)
    assert command is not None
    command.make_context(name, list(words), parent=context)  # which only reads the words


@pytest.mark.parametrize("name", list(commands()))
def test_every_command_and_option_says_what_it_does(name: str):
    group, _, rest = name.partition(" ")
    command = KNOWN[group]
    if isinstance(command, click.Group):
        assert command.help
        command = command.commands[rest]
    assert command.help, name
    obvious = {"tag", "status", "schedule_type", "role", "count", "hours", "workers"}
    silent = [
        one.name
        for one in command.params
        if isinstance(one, click.Option) and not one.help and one.name not in obvious
    ]
    assert silent == []


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_each_says_of_itself(name: str):
    command = KNOWN[name]
    assert command.name == name
    assert COMMANDS[name].help.rstrip(".") == command.get_short_help_str(limit=200).rstrip(".")


def test_the_list_of_commands_imports_none_of_them():
    script = "import sys; from kytecron.program import main; main(['--help'])"
    script = f"import atexit, sys; atexit.register(lambda: print(*sys.modules)); {script}"
    said = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "Commands:" in said.stdout
    assert not {"sqlalchemy", "flask", "pydantic", "rich"} & {*said.stdout.split()}


def test_the_example_of_a_file_can_be_imported(session):
    block = TEXT.partition("```yaml\n")[2].partition("```")[0]
    document = from_yaml(block)
    (job,) = document["jobs"]
    assert job.keys() - {"code"} <= JobFields.model_fields.keys()
    del job["depends_on"]
    assert [change.action for change in import_jobs(session, document, PYTHON, dry_run=True)] == ["create"]

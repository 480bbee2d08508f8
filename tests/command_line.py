"""The command line, as tests use it."""

from __future__ import annotations

import json
import shlex
from typing import Any

from click.testing import Result
from flask import Flask

CODE = """class Greeter(CronJobBase):
    def execute(self):
        self.log("hello")
"""


class CommandLine:
    """Runs commands in this process."""

    def __init__(self, app: Flask) -> None:
        self.app = app

    def __call__(self, line: str, *arguments: object, text: str | None = None, status: int = 0) -> Result:
        """Run `flask --app wsgi <line> <arguments>` with `text` as its input; its exit status must be `status`."""
        words = [*shlex.split(line), *map(str, arguments)]
        result = self.app.test_cli_runner().invoke(args=words, input=text)
        crash = result.exception if not isinstance(result.exception, SystemExit) else None
        assert crash is None, f"{words}: {crash!r}"
        assert result.exit_code == status, f"{words}: exit status {result.exit_code}\n{result.output}"
        return result

    def json(self, line: str, *arguments: object, **options: Any) -> Any:
        """What the command prints with `--json`."""
        return json.loads(self(line, *arguments, "--json", **options).stdout)

    def output(self, line: str, *arguments: object, **options: Any) -> str:
        """What the command prints for people who are not at a terminal."""
        return self(line, *arguments, **options).stdout

    def error(self, line: str, *arguments: object, status: int, **options: Any) -> str:
        """What the command says when it fails, after the line that names the database. Nothing else is printed."""
        result = self(line, *arguments, status=status, **options)
        assert result.stdout == ""
        return without_database(result.stderr)


def without_database(said: str) -> str:
    """What a command wrote to standard error after the line that names the database."""
    first, _, rest = said.partition("\n")
    return rest if first.startswith("Database: ") else said

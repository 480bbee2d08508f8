"""The commands of `kytecron <group> <command>`, listed with examples in docs/cli.md.

Exit status: 0 done, 1 refused or failed, 2 wrong usage or input. Errors go to standard error and name the field.
"""

from __future__ import annotations

import copy
import importlib
from typing import TYPE_CHECKING, NamedTuple

import click

from ..config import Settings
from .installation import Installation

if TYPE_CHECKING:
    from flask import Flask


class Entry(NamedTuple):
    """A command or a group of them, in `module` under its own name."""

    module: str
    help: str
    """Its first sentence, so that a list of commands imports none of them."""


COMMANDS = {
    "jobs": Entry("jobs", "Jobs: create, change, switch on and off, run, export and import."),
    "executions": Entry("executions", "Executions: list, show, read and follow logs, cancel, retry."),
    "versions": Entry("versions", "Versions of jobs' code: history, comparison, rollback, pruning, storage."),
    "locks": Entry("system", "Locks: runs that workers hold under a lease."),
    "dlq": Entry("system", "The dead letter queue: jobs whose retries are exhausted."),
    "workers": Entry("system", "Workers: the processes that run jobs."),
    "status": Entry("system", "Say how everything stands, and whether it needs a person."),
    "users": Entry("people", "Users: who may sign in to the pages, and what they may do there."),
    "tokens": Entry("people", "Tokens: who may use the JSON API, and for what."),
    "secrets": Entry("secrets", "Secrets: values that jobs read with self.secrets."),
    "doctor": Entry(
        "system", "Check database, migrations, clocks, time zones, workers, leases and reference counts."
    ),
    "db": Entry("database", "The database's tables: bring them to this version, say where they are."),
    "prune": Entry("system", "Remove what is older than the settings say, as workers do by themselves."),
    "stress": Entry("stress", "Let several workers run jobs every second, and count what really ran."),
}


def load(name: str) -> click.Command:
    """Import a command. Raises KeyError where there is none of this name."""
    command: click.Command = getattr(importlib.import_module(f"{__name__}.{COMMANDS[name].module}"), name)
    return command


def register(app: Flask, settings: Settings) -> None:
    """Add the commands to `app`, for those who call them through `flask`, for the installation of these settings."""
    from . import database

    installation = Installation(settings)
    database.guard_migrations(installation)
    for name in COMMANDS.keys() - {"db"}:  # Flask-Migrate's has more, for those who write migrations
        command = copy.copy(load(name))
        command.context_settings = {**command.context_settings, "obj": installation}
        app.cli.add_command(command)

"""The commands of `flask --app wsgi <group> <command>`, listed with examples in docs/cli.md.

Exit status: 0 done, 1 refused or failed, 2 wrong usage or input. Errors go to standard error and name the field.
"""

from __future__ import annotations

from flask import Flask

from . import database, executions, jobs, people, secrets, stress, system, versions

COMMANDS = (
    jobs.jobs,
    executions.executions,
    versions.versions,
    system.locks,
    system.dlq,
    system.workers,
    people.users,
    people.tokens,
    secrets.secrets,
    system.doctor,
    system.prune,
    stress.stress,
)


def register(app: Flask) -> None:
    """Add the commands to `app`."""
    database.guard_migrations()
    for command in COMMANDS:
        app.cli.add_command(command)

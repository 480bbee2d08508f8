"""`secrets`: values for jobs, set and granted, and encrypted anew after a change of keys."""

from __future__ import annotations

import sys

import click

from ..services import secrets as service
from ..views import secrets as views
from . import console
from .console import Group, json_option, say, yes_option
from .jobs import manager


@click.group(cls=Group)
def secrets() -> None:
    """Secrets: values that jobs read with self.secrets. They are encrypted, and never shown again.

    JOB is a job's name or its id.
    """


@secrets.command("list")
@json_option
def list_secrets(as_json: bool) -> None:
    """List the names of secrets, and the jobs that may read them."""
    session = console.database()
    found = views.secrets(service.list_secrets(session), service.granted_jobs(session))
    if as_json:
        console.print_json({"items": [one.for_programs() for one in found]})
        return
    rows = [(one.name, one.updated_at, one.updated_by, [job.name for job in one.jobs]) for one in found]
    console.table(("NAME", "SET", "BY", "JOBS"), rows)


@secrets.command("set")
@click.argument("name")
@click.option(
    "--stdin", "from_input", is_flag=True, help="Read the value from input instead of asking for it."
)
def set_secret(name: str, from_input: bool) -> None:
    """Store a value under NAME, or replace the one that it has. Runs that start from now on get it."""
    service.set_secret(console.database(), name, _value(from_input), console.actor(), console.settings())
    say(f"{name} is stored.")


def _value(from_input: bool) -> str:
    if from_input:
        # The last line end is the shell's. No more is read than shows that the value is too long.
        return sys.stdin.read(2 * service.MAX_VALUE_BYTES).removesuffix("\n")
    return console.ask_unseen("value", "--stdin")


@secrets.command()
@click.argument("name")
@yes_option
def delete(name: str, yes: bool) -> None:
    """Remove a secret, and take it from its jobs."""
    console.confirm(f"Delete the secret {name}?", yes)
    service.delete_secret(console.database(), name, console.actor())
    say(f"{name} is deleted.")


@secrets.command()
@click.argument("name")
@click.argument("job")
def grant(name: str, job: str) -> None:
    """Let a job read a secret."""
    found = manager().find(job)
    service.grant(console.database(), found.id, name, console.actor())
    say(f"Job {found.id} {found.name!r} may read {name}.")


@secrets.command()
@click.argument("name")
@click.argument("job")
def revoke(name: str, job: str) -> None:
    """Take a secret from a job. A run that goes on keeps what it was given."""
    found = manager().find(job)
    service.revoke(console.database(), found.id, name, console.actor())
    say(f"Job {found.id} {found.name!r} may no longer read {name}.")


@secrets.command()
def rotate() -> None:
    """Encrypt all secrets anew with the newest of KYTECRON_SECRETS_KEYS. Then the older keys can be dropped."""
    count = service.rotate(console.database(), console.actor(), console.settings())
    say(f"{count} encrypted with the newest key.")

"""`db`: the database's tables. The same guard stands before Flask-Migrate's commands of that name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from ..services import upgrading
from ..store import schema
from . import console
from .console import Group, say
from .installation import Installation

FORCE = "Although workers are alive: they let their runs end, and stop by themselves."
_GUARDED = "kytecron_guarded"


@click.group(cls=Group)
def db() -> None:
    """The database's tables: bring them to this version, say where they are."""


@db.command()
@click.option("--force", is_flag=True, help=FORCE)
def upgrade(force: bool) -> None:
    """Bring the tables to this version; refused while workers are alive that began with others."""
    upgrading.upgrade(console.installation().engine, console.settings(), force=force)
    say(f"The database is at migration {schema.newest()}.")


@db.command()
@click.argument("revision")
@click.option("--force", is_flag=True, help=FORCE)
def downgrade(revision: str, force: bool) -> None:
    """Take the tables back to an older migration, such as 0001: what only newer ones hold is lost."""
    installation = console.installation()
    schema.require_ours(installation.engine)
    if not force:
        upgrading.require_no_workers(installation.engine, console.settings(), revision)
    schema.downgrade(installation.engine, revision)
    say(f"The database is at migration {revision}.")


@db.command()
def current() -> None:
    """Say whether the tables are those of this version. The exit status is 1 where they are not."""
    console.require_schema()
    say(f"The database is at migration {schema.newest()}, which this version needs.")


@db.command()
def history() -> None:
    """List the migrations that this version knows, newest first, and say which one the database is at."""
    with console.installation().engine.connect() as connection:
        at = schema.revision(connection)
    rows = [(name, what, "here" if name == at else "") for name, what in schema.migrations()]
    console.table(["migration", "what it brings", "database"], rows)


def guard_migrations(installation: Installation) -> None:
    """Make Flask-Migrate's own commands ask about workers: Flask finds them before it looks for ours."""
    from flask.cli import with_appcontext
    from flask_migrate import cli as theirs

    for name in ("upgrade", "downgrade"):
        command = theirs.db.commands[name]
        unguarded = getattr(command, _GUARDED, command.callback)
        assert unguarded is not None
        if not hasattr(command, _GUARDED):
            command.params.append(click.Option(["--force"], is_flag=True, help=FORCE))
            setattr(command, _GUARDED, unguarded)
        command.callback = with_appcontext(_guarded(unguarded, installation))


def _guarded(migrate: Callable[..., Any], installation: Installation) -> Callable[..., Any]:
    def callback(force: bool, **options: Any) -> Any:
        click.get_current_context().obj = installation
        console.say_which_database()
        with console.errors_told():
            if not options["sql"]:
                schema.require_ours(installation.engine)
            if not force and not options["sql"]:
                upgrading.require_no_workers(installation.engine, installation.settings, options["revision"])
            return migrate(**options)

    return callback

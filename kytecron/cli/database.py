"""`db`: Flask-Migrate's commands, of which `upgrade` and `downgrade` look for living workers first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from flask.cli import ScriptInfo, with_appcontext
from flask_migrate import cli as theirs

from ..services import upgrading
from ..store import schema
from ..store.models import db
from . import console

FORCE = "Although workers are alive: they let their runs end, and stop by themselves."
_GUARDED = "kytecron_guarded"


def guard_migrations() -> None:
    """Make Flask-Migrate's own commands ask about workers: Flask finds them before it looks for ours."""
    for name in ("upgrade", "downgrade"):
        command = theirs.db.commands[name]
        if not getattr(command, _GUARDED, False):
            assert command.callback is not None
            command.callback = with_appcontext(_guarded(command.callback))
            command.params.append(click.Option(["--force"], is_flag=True, help=FORCE))
            setattr(command, _GUARDED, True)


def _guarded(migrate: Callable[..., Any]) -> Callable[..., Any]:
    def callback(force: bool, **options: Any) -> Any:
        console.say_which_database(click.get_current_context().ensure_object(ScriptInfo).load_app())
        with console.errors_told():
            if not options["sql"]:
                schema.require_ours(db.engine)
            if not force and not options["sql"]:
                upgrading.require_no_workers(db.engine, console.settings(), options["revision"])
            return migrate(**options)

    return callback

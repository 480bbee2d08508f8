"""`kytecron <command>`: one door to the commands, the worker and `up`.

What a command needs is imported when it is called: `kytecron --help` needs neither database nor web.
"""

from __future__ import annotations

import gc
import sys
from typing import Any

import click

from . import VERSION
from .cli import COMMANDS, load
from .cli.installation import Installation

PASSED_ON = {"ignore_unknown_options": True, "help_option_names": [], "allow_extra_args": True}


class Lazy(click.Group):
    """A group that imports its commands one at a time."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, in the order in which they are listed."""
        return [*super().list_commands(ctx), *COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One of them, imported now."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        gc.disable()  # all that is made here stays: looking through it for garbage is a fifth of the time
        try:
            return load(cmd_name)
        finally:
            gc.freeze()
            gc.enable()

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List what there is without importing any of it."""
        running = [(name, command.get_short_help_str(80)) for name, command in self.commands.items()]
        with formatter.section("Running"):
            formatter.write_dl(running)
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


@click.command(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="kytecron")
@click.pass_context
def program(ctx: click.Context) -> None:
    """Jobs written as Python classes, run on time on one of your servers."""
    ctx.obj = Installation()
    ctx.call_on_close(ctx.obj.close)


@program.command(context_settings=PASSED_ON, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def up(arguments: tuple[str, ...]) -> None:
    """Run everything on this machine: database, pages and a worker."""
    from . import standalone

    raise click.exceptions.Exit(standalone.main(arguments, prog="kytecron up"))


@program.command(context_settings=PASSED_ON, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def worker(arguments: tuple[str, ...]) -> None:
    """Run due jobs on this machine, as python worker.py does."""
    from .engine.main import main as work

    raise click.exceptions.Exit(work(list(arguments), prog="kytecron worker"))


def main(arguments: list[str] | None = None) -> Any:
    """Run a command and end the process. Exit status: 0 done, 1 refused or failed, 2 wrong usage or input."""
    return program(arguments, prog_name="kytecron")


if __name__ == "__main__":
    sys.exit(main())

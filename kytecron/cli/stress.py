"""`stress`: proof on this very database that workers neither double nor lose a slot."""

from __future__ import annotations

import click

from ..services import stress as stresses
from ..services.stress import Report
from . import console
from .console import Command, json_option, say

SHOWN = 10


@click.command(cls=Command)
@click.option("--workers", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option("--duration", type=click.IntRange(1, 3600), default=60, show_default=True, help="Seconds.")
@click.option(
    "--jobs", type=click.IntRange(1, 1000), help="Jobs that run every second. [default: 4 per worker]"
)
@json_option
def stress(workers: int, duration: int, jobs: int | None, as_json: bool) -> None:
    """Let several workers run jobs every second, and count what really ran.

    The workers are real ones on the configured database: they also take what else is due. The jobs are made for
    the purpose and deleted afterwards. The exit status is 1 if nothing ran, or anything twice or not at all.
    """
    console.require_schema()
    report = stresses.run(
        console.settings(),
        workers=workers,
        seconds=duration,
        jobs=jobs,
        actor=console.actor(),
        tell=lambda line: None if as_json else console.note(line),
    )
    if as_json:
        console.print_json(report.as_dict())
    else:
        _show(report)
    if not report.passed:
        raise click.exceptions.Exit(1)


def _show(report: Report) -> None:
    late = report.lateness_ms
    console.facts(
        {
            "slots": report.slots,
            "ran": report.ran,
            "completed": report.completed,
            "doubled": len(report.doubled),
            "lost": len(report.lost),
            "contention": None if report.contention_rate is None else _contention(report),
            "lateness": ", ".join(f"{name} {console.duration(value)}" for name, value in late.items())
            or None,
            "spread": "a worker ran nothing"
            if report.spread is None
            else f"{report.spread:g} (busiest / idlest)",
        }
    )
    say()
    console.table(("WORKER", "RUNS"), list(report.by_worker.items()))
    for title in ("doubled", "lost", "problems"):
        found = getattr(report, title)
        for line in found[:SHOWN]:
            say(f"{title}: {line}")
        if len(found) > SHOWN:
            say(f"{title}: {len(found) - SHOWN} more")
    say()
    say("PASSED: every slot ran exactly once." if report.passed else "FAILED")


def _contention(report: Report) -> str:
    tries = report.locks_acquired + report.locks_missed
    return f"{report.contention_rate:g} % ({report.locks_missed} of {tries} tries found nothing left)"

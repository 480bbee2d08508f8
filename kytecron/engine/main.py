"""Command line of the worker: arguments, checks before the start, statistics at the end."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time

from sqlalchemy.exc import SQLAlchemyError

from ..config import Settings, unknown_variables
from ..core.errors import Invalid
from ..logs import configure_logging
from ..store import db, schema
from .child import hide_memory
from .worker import CronWorker

log = logging.getLogger(__name__)

WAIT_FOR_DATABASE_SECONDS = 60


def main(arguments: list[str] | None = None, prog: str = "worker.py") -> int:
    """Run a worker until it is told to stop. Exit status: 0 after a clean stop, 2 for bad settings."""
    options = _parser(prog).parse_args(arguments)
    given = {
        "concurrency": options.concurrency,
        "poll_interval": options.poll_interval,
        "lease_seconds": options.lease,
        "renew_seconds": None if options.lease is None else min(10.0, options.lease / 6),
        "worker_tags": options.tags,
    }
    try:
        settings = Settings.load({name: value for name, value in given.items() if value is not None})
        configure_logging(settings)
        for sentence in unknown_variables():
            log.warning("%s", sentence)
        # Of all that this process knows, its jobs, which run as the same user, are to know nothing.
        hide_memory(True)
        if problem := _wait_for_schema(settings):
            print(problem, file=sys.stderr)
            return 2
        worker = CronWorker(settings, drain=options.drain)
    except Invalid as error:
        print("\n".join(error.fields.values()), file=sys.stderr)
        return 2
    worker.run()
    print(json.dumps(worker.statistics.as_dict()), flush=True)
    return 0


def _parser(prog: str = "worker.py") -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description="Run due kytecron jobs on this machine.")
    parser.add_argument(
        "--concurrency", type=int, metavar="N", help=f"runs at once (default: {(os.cpu_count() or 1) * 4})"
    )
    parser.add_argument(
        "--poll-interval", type=float, metavar="S", help="seconds between two looks for work made elsewhere"
    )
    parser.add_argument(
        "--lease", type=float, metavar="S", help="seconds a claim holds without renewal (default: 60)"
    )
    parser.add_argument("--tags", metavar="A,B", help="run jobs that ask for one of these tags, too")
    parser.add_argument("--drain", action="store_true", help="work off what is due now, then end")
    return parser


def _wait_for_schema(settings: Settings) -> str | None:
    """None once the database answers and has this version's tables; else what is wrong."""
    engine = db.make_engine(settings)
    deadline = time.monotonic() + WAIT_FOR_DATABASE_SECONDS
    try:
        while True:
            try:
                return schema.behind(engine)
            except SQLAlchemyError as error:
                if time.monotonic() > deadline:
                    return f"The database cannot be reached: {db.cause(error)}"
                log.warning("waiting for the database: %s", db.cause(error))
                time.sleep(1)
    finally:
        engine.dispose()

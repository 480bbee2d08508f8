"""Command line of the worker: arguments, checks before the start, statistics at the end."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from typing import NamedTuple

from ..config import Settings, unknown_variables
from ..core.errors import Invalid
from ..logs import always_log, configure_logging
from ..store import db, schema
from .child import hide_memory
from .telling import Rarely
from .worker import CronWorker

log = logging.getLogger(__name__)

WAIT_FOR_DATABASE_SECONDS = 60
NO_DATABASE, CANNOT_BEGIN, OTHER_SCHEMA = 1, 2, 3


class _Problem(NamedTuple):
    text: str
    status: int


def main(arguments: list[str] | None = None, prog: str = "worker.py") -> int:
    """Run a worker until it is told to stop, or the database's tables are another version's.

    Exit status: 0 after a clean stop, 1 without a database, 2 where it cannot begin with these settings or tables,
    3 when the tables have become another version's. Each but the first is worth another try, with the code that is
    there then.
    """
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
            print(problem.text, file=sys.stderr)
            return problem.status
        worker = CronWorker(settings, drain=options.drain)
        always_log(worker=worker.worker_id)
    except Invalid as error:
        print("\n".join(error.fields.values()), file=sys.stderr)
        return CANNOT_BEGIN
    worker.run()
    print(json.dumps(worker.statistics.as_dict()), flush=True)
    if worker.left_because:
        print(worker.left_because, file=sys.stderr)
        return OTHER_SCHEMA
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


def _wait_for_schema(settings: Settings) -> _Problem | None:
    """None once the database answers and has this version's tables; else what is wrong."""
    engine, told, begun = db.make_engine(settings), Rarely(), time.monotonic()
    try:
        while True:
            try:
                problem = schema.behind(engine)
            except Exception as error:
                now = time.monotonic()
                if not db.is_outage(error) or db.says_no(error) or now > begun + WAIT_FOR_DATABASE_SECONDS:
                    return _Problem(f"{db.trouble(error)} ({db.shown(engine.url)})", NO_DATABASE)
                if told.due("", now) is not None:
                    log.warning("waiting for the database: %s", db.cause(error))
                time.sleep(1)
            else:
                if told:
                    log.info("the database answers after %.1f s", time.monotonic() - begun)
                return _Problem(problem, CANNOT_BEGIN) if problem else None
    finally:
        engine.dispose()

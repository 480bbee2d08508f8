"""`make bench`, or `python -m benchmarks` with `--only P1,P2`, `--database sqlite`, `--runs N`, `--json FILE`.

Absolute figures wander on a busy machine; each is printed beside a yardstick measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from kytecron.config import Settings
from kytecron.store import db, schema
from tests import postgres
from tests.mariadb import MariaDB, find_mariadbd

from . import figures, reading, rq, scheduling
from .bench import Bench, Figure

Place = tuple[Settings, int | None]
"""A database, and the process id of its server."""
MEASURES: dict[str, Callable[[Bench], list[Figure]]] = {
    "P1": figures.lateness,
    "P2": figures.throughput,
    "P3": figures.startup,
    "P4": figures.contention,
    "P5": figures.idle,
    "P6": figures.recovery,
    "P7": reading.reads,
    "P9": figures.output,
    "P10": figures.trigger,
    "P12": figures.growth,
    "P13": scheduling.scheduling,
    "P17": figures.typing,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument(
        "--only", default=",".join(MEASURES), help="rows of docs/performance.md, such as P1,P2"
    )
    parser.add_argument("--database", choices=(*DATABASES, "all"), default="all")
    parser.add_argument("--runs", type=int, default=5_000_000, help="in the database that P7 reads")
    parser.add_argument("--json", type=Path, help="also write the figures into this file")
    options = parser.parse_args()
    if "P2" in options.only.split(",") and (left_out := rq.missing()):
        print(left_out)
    found: list[Figure] = []
    for name, connect in DATABASES.items():
        if options.database not in (name, "all"):
            continue
        if name == "mariadb" and find_mariadbd() is None:
            print("mariadb: no mariadbd on this machine (package mariadb-server), left out")
            continue
        if name == "postgresql" and postgres.find_binaries() is None:
            print("postgresql: no server on this machine (package postgresql), left out")
            continue
        for number in options.only.split(","):
            with (
                connect() as (settings, server),
                closing(Bench(name, settings, options.runs, server)) as bench,
            ):
                for figure in MEASURES[number](bench):
                    found.append(figure)
                    print(figure.line(), flush=True)
    if options.json:
        options.json.write_text(json.dumps([figure.as_dict() for figure in found], indent=2))
    return 0


@contextmanager
def _sqlite() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        yield _migrated(Settings(instance_path=Path(directory))), None


@contextmanager
def _mariadb() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        server = MariaDB(Path(directory), "--innodb-buffer-pool-size=1G")
        server.start()
        try:
            assert server.process
            settings = Settings(instance_path=Path(directory) / "instance", database_url=server.url)
            yield _migrated(settings), server.process.pid
        finally:
            server.stop()


@contextmanager
def _postgresql() -> Iterator[Place]:
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as instance,
        postgres.directory() as directory,
    ):
        server = postgres.PostgreSQL(directory)
        server.start()
        try:
            assert server.process
            settings = Settings(instance_path=Path(instance), database_url=server.url)
            yield _migrated(settings), server.process.pid
        finally:
            server.kill()


DATABASES = {"sqlite": _sqlite, "mariadb": _mariadb, "postgresql": _postgresql}


def _migrated(settings: Settings) -> Settings:
    engine = db.make_engine(settings)
    schema.upgrade(engine)
    engine.dispose()
    return settings


if __name__ == "__main__":
    sys.exit(main())

"""`python -m benchmarks.fill --jobs 5000 --runs 5000000`: an empty database becomes one with life in it.

Of any kind: `--database` takes an SQLAlchemy URL; without it, it is the one that the settings name. What is written
is a life that somebody could have lived (see `life`): figures agree with the rows, and `kytecron doctor` has nothing to
say but that no worker is alive. Start one, and it goes on.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from kytecron.config import Settings
from kytecron.core import diff
from kytecron.core.errors import KytecronError
from kytecron.services import accounts, slots
from kytecron.services.audit import Actor
from kytecron.services.versions import pack
from kytecron.store import db, dialects, schema
from kytecron.store.models import (
    Base,
    CronJob,
    CronJobDependency,
    CronWorkerRecord,
    KyteCronJobVersion,
    KyteCronJobVersionContent,
)

from .life import COLUMNS, OWNERS, WORKERS, Job, Life, code_of, moment

AT_ONCE = 1_000
FILL = Actor("fill")
STATEMENT_SECONDS = 600.0
DEFAULTS = {column.name: None for column in CronJob.__table__.c}


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.fill", description=__doc__)
    parser.add_argument("--jobs", type=int, default=5_000)
    parser.add_argument("--runs", type=int, default=5_000_000, help="about so many")
    parser.add_argument("--database", help="an SQLAlchemy URL; without it, the database of the settings")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.jobs < 1 or options.runs < 1:
        parser.error("--jobs and --runs must be at least 1")
    try:
        settings = Settings.load()
        if options.database:
            settings = replace(settings, database_url=options.database)
        engine = db.make_engine(settings, statement_seconds=STATEMENT_SECONDS)
        schema.upgrade(engine)
        begun = time.monotonic()
        written = fill(engine, options.jobs, options.runs, seed=options.seed, tell=True)
    except (KytecronError, sa.exc.SQLAlchemyError) as error:
        print(f"fill: {error}", file=sys.stderr)
        return 1
    print(f"{options.jobs:,} jobs and {written:,} runs in {time.monotonic() - begun:.0f} s")
    return 0


def fill(engine: sa.Engine, jobs: int, runs: int, *, seed: int = 1, tell: bool = False) -> int:
    """Fill a migrated database without jobs; returns how many runs it has. Raises SystemExit for one with jobs."""
    with db.make_sessions(engine)() as session:
        if session.scalar(sa.select(CronJob.id).limit(1)) is not None:
            raise SystemExit("fill: this database has jobs; give an empty one")
        life = Life(jobs, runs, db.now(session), seed)
    with engine.connect().execution_options(**{dialects.WRITING: True}) as connection:
        _hurry(connection)
        for _ in life.live():
            with connection.begin():
                for table, rows in life.rows.items():
                    _insert(connection, table, rows)
                    rows.clear()
            if tell:
                print(f"\r{life.written:,} runs", end="", flush=True, file=sys.stderr)
    if tell:
        print(file=sys.stderr)
    with db.make_sessions(engine)() as session:
        _write_jobs(session, life)
        _write_versions(session, life)
        session.commit()
        _write_people(session, life)
        session.commit()
        _go_on_counting(session)
    return life.written


def _hurry(connection: sa.Connection) -> None:
    """What is lost when the machine fails meanwhile is made again."""
    if connection.dialect.name == "sqlite":
        for pragma in ("synchronous=OFF", "cache_size=-1500000", "wal_autocheckpoint=100000"):
            connection.connection.cursor().execute(f"PRAGMA {pragma}")


def _insert(connection: sa.Connection, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """By the driver itself: SQLAlchemy would look at each of 170 million values."""
    if not rows:
        return
    driver = dialects.driver(connection)
    quote = driver.identifier_preparer.quote
    mark = "?" if driver.paramstyle == "qmark" else "%s"
    columns = COLUMNS[table]
    names, marks = ", ".join(map(quote, columns)), ", ".join([mark] * len(columns))
    text = f"INSERT INTO {quote(table)} ({names}) VALUES ({marks})"
    for start in range(0, len(rows), AT_ONCE):
        db.execute(connection, text, rows[start : start + AT_ONCE], many=True)


def _insert_many(session: Session, table: Any, rows: Iterable[dict[str, Any]]) -> None:
    wanted = list(rows)
    for start in range(0, len(wanted), AT_ONCE):
        session.execute(sa.insert(table), wanted[start : start + AT_ONCE])


# -- jobs ----------------------------------------------------------------------------------------------------


def _write_jobs(session: Session, life: Life) -> None:
    rows = [_row_of(life, job) for job in life.jobs]
    names = {name for row in rows for name in row}
    usual = {name: _default(name) for name in names}
    _insert_many(session, CronJob, (usual | row for row in rows))
    edges = [
        {"cron_job": job.id, "parent": job.id - 1}
        for job in life.jobs
        if job.number % 10 == 5 and not job.step
    ]
    _insert_many(session, CronJobDependency, edges)


def _default(name: str) -> Any:
    default = CronJob.__table__.c[name].default
    return default.arg if default is not None and default.is_scalar else None


def _row_of(life: Life, job: Job) -> dict[str, Any]:
    now = moment(life.until)
    row = {name: value for name, value in job.row.items() if not name.startswith("_")}
    gone, deleted = job.gone_at < life.until, job.number % 97 == 5
    row |= {
        "enabled": not (job.dead or gone),
        "recent_results": job.letters,
        "chains_counted": True,
        "current_version": len(job.versions),
        "revision": len(job.versions),
        "created_at": moment(job.versions[0]),
        "updated_at": moment(job.versions[-1]),
        "next_run_time": None,
    }
    if gone and deleted:
        row |= {"deleted_at": moment(job.gone_at), "deleted_id": job.id}
    if job.dead:
        row |= {"in_dead_letter_queue": True, "disabled_reason": "in the dead letter queue"}
    else:
        row |= {"dead_letter_reason": None, "dead_letter_since": None}
    if row["enabled"] and row["schedule_type"] != "manual":
        row["next_run_time"] = slots.plan(life.planned(job), now)
    return row


# -- versions ------------------------------------------------------------------------------------------------


def _write_versions(session: Session, life: Life) -> None:
    contents: dict[str, dict[str, Any]] = {}
    versions: list[dict[str, Any]] = []
    references: Counter[str] = Counter()
    changes: dict[tuple[str, str], dict[str, Any]] = {}
    for job in life.jobs:
        before = ""
        for number, saved in enumerate(job.versions, 1):
            code = code_of(job, number)
            packed = pack(code)
            references[packed.content_hash] += 1
            contents.setdefault(
                packed.content_hash,
                {
                    "content_hash": packed.content_hash,
                    "code": packed.data,
                    "size_bytes": packed.size_bytes,
                    "compressed_bytes": len(packed.data),
                    "created_at": moment(saved),
                },
            )
            if (before, code) not in changes:
                changes[before, code] = _changes(before, code)
            versions.append(
                {
                    "cron_job": job.id,
                    "version_number": number,
                    "content_hash": packed.content_hash,
                    "is_current": number == len(job.versions),
                    "message": "First version" if number == 1 else f"Read {100 * number} rows at once",
                    "created_at": moment(saved),
                    "created_by": job.row["created_by"],
                    **changes[before, code],
                }
            )
            before = code
    counted = ({**row, "reference_count": references[digest]} for digest, row in contents.items())
    _insert_many(session, KyteCronJobVersionContent, counted)
    _insert_many(session, KyteCronJobVersion, versions)


def _changes(before: str, code: str) -> dict[str, Any]:
    counts = diff.summary(before, code)
    return {
        "changes_from_previous": diff.line_delta(before, code),
        "lines_added": counts.added,
        "lines_removed": counts.removed,
        "lines_changed": counts.changed,
        "lines_before": counts.before,
        "lines_after": counts.after,
    }


# -- people and workers --------------------------------------------------------------------------------------


def _write_people(session: Session, life: Life) -> None:
    for name, role in OWNERS.items():
        accounts.create_user(session, name, None, role, FILL)
    accounts.create_token(session, "monitoring", "viewer", 365, FILL)
    now = moment(life.until)
    for name in WORKERS:
        session.add(
            CronWorkerRecord(
                worker_id=f"{name}:4711:{life.until // 86_400_000_000:x}",
                host=name,
                boot_id=name,
                pid=4711,
                process_started="1",
                version="0.1.0",
                slots=16,
                running=4,
                started_at=now - timedelta(days=3),
                last_seen_at=now - timedelta(minutes=5),
            )
        )


def _go_on_counting(session: Session) -> None:
    """Rows that were given their ids have not moved PostgreSQL's counters."""
    if session.get_bind().dialect.name != "postgresql":
        return
    for name in ("CronJob", "CronJobExecution"):
        table = Base.metadata.tables[name]
        most = sa.select(sa.func.max(table.c.id)).scalar_subquery()
        session.execute(sa.select(sa.func.setval(sa.func.pg_get_serial_sequence(f'"{name}"', "id"), most)))
    session.commit()


if __name__ == "__main__":
    sys.exit(main())

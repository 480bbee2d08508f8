"""What every worker asks several times a second is found in an index, on each database."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from kytecron.core.states import Status
from kytecron.store import claims, db, figures, queries
from kytecron.store.models import CronJob, CronJobExecution
from kytecron.store.queries import ExecutionFilter
from tests.rawsql import typed

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
JOBS = 500


@pytest.fixture
def jobs(session: Session) -> None:
    """Many jobs, few of them due, few disabled: enough for a database to prefer an index."""
    rows = [
        {
            "name": f"job {number}",
            "enabled": number > 9,
            "next_run_time": NOW + timedelta(minutes=number - 20),
        }
        for number in range(JOBS)
    ]
    session.execute(sa.insert(CronJob), rows)
    session.commit()
    count(session, "CronJob")


def count(session: Session, table: str) -> None:
    """Have the database count what there is in a table."""
    analyze = {"sqlite": "ANALYZE", "mysql": f"ANALYZE TABLE {table}", "postgresql": f"ANALYZE {table}"}
    session.execute(typed(session, analyze[_spoken(session)]))
    session.commit()


def _spoken(session: Session) -> str:
    return session.get_bind().dialect.name


def plan(session: Session, ask: Callable[[Session], Any]) -> list[str]:
    """How the database finds rows for what `ask` sends, a line for each table."""
    connection = session.connection()
    sent: list[tuple[str, Any]] = []
    execute = db.execute

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        sent.append((statement, parameters))

    def note_and_execute(on: sa.Connection, text: str, arguments: Any, many: bool = False) -> Any:
        sent.append((text, tuple(arguments)))
        return execute(on, text, arguments, many)

    sa.event.listen(connection, "before_cursor_execute", note)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(db, "execute", note_and_execute)
        ask(session)
    sa.event.remove(connection, "before_cursor_execute", note)
    how = "EXPLAIN QUERY PLAN " if _spoken(session) == "sqlite" else "EXPLAIN "
    rows = [row for text, values in sent for row in connection.exec_driver_sql(how + text, values)]
    match _spoken(session):
        case "sqlite":
            return [row.detail for row in rows]
        case "postgresql":
            return [row[0] for row in rows]
        case _:
            # Not the few rows that a part of the statement has found.
            tables = [row._mapping for row in rows if not str(row._mapping["table"]).startswith("<derived")]
            return [str(row["type"] or "") for row in tables]


@pytest.mark.usefixtures("jobs")
@pytest.mark.parametrize(
    "ask",
    [
        lambda session: claims.lock_due_jobs(session, NOW, 10),
        claims.next_instants,
        lambda session: claims.next_instants(session, 100, ("a",)),
        lambda session: claims.jobs_without_slot(session, 10),
        figures.dead_letters,
    ],
    ids=["due jobs", "next instants", "next instants and due runs", "jobs without a slot", "dead letters"],
)
def test_the_few_jobs_that_matter_are_looked_up_among_the_many(
    session: Session, ask: Callable[[Session], Any]
) -> None:
    lines = plan(session, ask)
    assert lines
    assert [line for line in lines if walks(line, "CronJob")] == []


def walks(line: str, table: str) -> bool:
    """Whether a line of a plan reads every row of a table (MariaDB: `ALL`) or of an index (`index`)."""
    return line in ("ALL", "index") or line.startswith(f"SCAN {table}") or f'Seq Scan on "{table}"' in line


def test_a_claim_takes_the_first_of_a_long_queue_without_sorting_it(session: Session) -> None:
    rows = [
        claims.new_run(
            cron_job=number,
            scheduled_time=NOW,
            origin="schedule",
            due_time=NOW,
            queue_time=NOW,
            priority=5,
            worker_tag="",
        )
        for number in range(JOBS)
    ]
    claims.insert_slots(session, rows)
    session.commit()
    lines = plan(session, lambda session: claims._lock_due(session, (), 8))
    assert lines
    assert not [
        line for line in lines if walks(line, "CronJobExecution") or "TEMP B-TREE" in line or "Sort" in line
    ]


RUNS = 12_000
HISTORIES = {
    "all completed": ["completed"],
    "all failed": ["failed"],
    "of every kind": ["completed", "failed", "timeout", "lost", "skipped", "cancelled"],
}
WHAT_GOES_ON: dict[str, Callable[[Session], Any]] = {
    "running": lambda session: queries.running(session),
    "running, next page": lambda session: queries.running(session, cursor=_cursor(session)),
    "stale locks": lambda session: queries.stale_locks(session, NOW),
    "pending": lambda session: queries.pending(session),
    "failed": lambda session: queries.failed(session, NOW + timedelta(days=1)),
    "list of running": lambda session: queries.executions(session, ExecutionFilter(statuses=["running"])),
    "list of active": lambda session: queries.executions(
        session, ExecutionFilter(statuses=["pending", "running"])
    ),
    "counters": lambda session: figures._running(session, NOW),
    "pending counters": lambda session: figures._pending(session, pending=sa.true()),
    "vitals": lambda session: figures._run_vitals(session, NOW),
    "expired": lambda session: claims.expired(session, NOW, 100),
    "held by": lambda session: claims.leased_by(session, ["a", "b"], 100),
    "runs held by": lambda session: claims.runs_leased_by(session, "a", 1),
    "stop requests": lambda session: claims.stop_requests(session, "a", []),
    "irregularities": lambda session: claims.irregularities(session),
    "held jobs": claims.waiting_job_ids,
    "active of some jobs": lambda session: claims.active_runs(session, [1, 2, 3]),
    "next instants": lambda session: claims.next_instants(session, 100, ("a",)),
    "claim": lambda session: claims._lock_due(session, ("a",), 8),
}


def _cursor(session: Session) -> str:
    return queries.NEWEST_FIRST.cursor(session.get(CronJobExecution, _newest(session)))


@pytest.fixture(params=[(name, counted) for name in HISTORIES for counted in (False, True)], ids=str)
def history(request: pytest.FixtureRequest, session: Session) -> None:
    """A ledger in which all has ended, with and without statistics: MariaDB counts by itself, a moment later."""
    name, counted = request.param
    statuses = HISTORIES[name]
    rows = [
        claims.new_run(
            cron_job=number % 20 + 1,
            scheduled_time=NOW - timedelta(seconds=RUNS - number),
            origin="schedule",
            status=statuses[number // 20 % len(statuses)],
            due_time=NOW - timedelta(seconds=RUNS - number),
            queue_time=NOW,
            priority=5,
            worker_tag="",
            completed_at=NOW,
        )
        for number in range(RUNS)
    ]
    claims.insert_slots(session, rows)
    session.commit()
    if counted or _spoken(session) != "sqlite":  # servers count by themselves, a moment later
        count(session, "CronJobExecution")


@pytest.mark.usefixtures("history")
def test_the_runs_that_go_on_are_looked_up_without_walking_the_ledger(session: Session) -> None:
    """Also where the database has counted, and thinks that every run has the status that is asked for."""
    walking = {name: lines for name, ask in WHAT_GOES_ON.items() if (lines := _walks(session, ask))}
    assert walking == {}


LATER = NOW - timedelta(seconds=RUNS // 10)
"""A tenth of the history is later."""
STEPS_A_ROW = 12
"""SQLite takes at least so many of its steps to look at a row that is none."""
READS: dict[str, Callable[[Session], Any]] = {
    "newest": lambda session: queries.executions(session),
    "newest, next page": lambda session: queries.executions(session, cursor=_cursor(session)),
    "of a job": lambda session: queries.executions(session, ExecutionFilter(job=7)),
    "latest slots": lambda session: queries.executions(session, ExecutionFilter(slot_from=LATER)),
    "slots until": lambda session: queries.executions(session, ExecutionFilter(slot_to=LATER)),
    "slots of a job": lambda session: queries.executions(session, ExecutionFilter(job=7, slot_from=LATER)),
    "unsuccessful": lambda session: queries.executions(
        session, ExecutionFilter(statuses=["failed", "lost", "timeout"])
    ),
    "failed chains": lambda session: queries.failed_chains(session, NOW - timedelta(days=1), limit=50),
    "one run": lambda session: queries.execution(session, _newest(session)),
    "last success": lambda session: queries.last_success_before(
        session, queries.execution(session, _newest(session)).execution
    ),
    "log": lambda session: queries.read_log(session, _newest(session)),
    "counters": lambda session: figures.counters(session, NOW),
    "vitals": lambda session: figures.vitals(session, NOW),
    "statistics of a job": lambda session: figures.job_statistics(session, 7, 30, NOW.date()),
    "statistics": lambda session: figures.global_statistics(session, 30, NOW.date()),
    **{
        f"{status}{', '.join(['', *fields])}": lambda session, status=status, fields=fields: (
            queries.executions(session, ExecutionFilter(statuses=[status], **fields))
        )
        for status in Status
        for fields in ({}, {"job": 7}, {"slot_from": LATER}, {"job": 7, "slot_from": LATER})
    },
}


@pytest.mark.usefixtures("history")
def test_no_list_looks_at_more_than_its_page(session: Session) -> None:
    """What is asked of the ledger costs the same however long it is: a page of each of nine parts at most."""
    looked = {name: examined(session, ask) for name, ask in READS.items()}
    assert {name: rows for name, rows in looked.items() if rows > RUNS // 4} == {}


def examined(session: Session, ask: Callable[[Session], Any]) -> int:
    """How many rows a database looks at for what `ask` sends, by its own account; of SQLite at most so many."""
    session.rollback()
    if _spoken(session) != "sqlite":
        before = _rows_read(session)
        ask(session)
        return _rows_read(session) - before
    steps = 0

    def note() -> None:
        nonlocal steps
        steps += 100

    connection: Any = session.connection().connection.dbapi_connection
    connection.set_progress_handler(note, 100)
    ask(session)
    connection.set_progress_handler(None, 0)
    return steps // STEPS_A_ROW


def _rows_read(session: Session) -> int:
    if _spoken(session) == "postgresql":
        read = "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_xact_user_tables"
        return int(session.scalar(sa.text(read)) or 0)
    counted = session.execute(sa.text("SHOW SESSION STATUS LIKE 'Handler_read%'"))
    return sum(int(row[1]) for row in counted if not row[0].endswith(("_deleted", "_retry")))


def _newest(session: Session) -> int:
    return session.scalar(sa.select(sa.func.max(CronJobExecution.id))) or 0


def _walks(session: Session, ask: Callable[[Session], Any]) -> list[str]:
    """Lines of the plan that go through the ledger instead of looking into an index."""
    return [
        line
        for line in plan(session, ask)
        if walks(line, "CronJobExecution")
        or "INTEGER PRIMARY KEY (rowid<" in line
        or 'Index Scan Backward using "pk_CronJobExecution"' in line
    ]

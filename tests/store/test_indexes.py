"""What every worker asks several times a second is found in an index, on each database."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from kytecron.store import claims, db, figures
from kytecron.store.models import CronJob

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
    session.execute(sa.text("ANALYZE TABLE CronJob" if _is_mariadb(session) else "ANALYZE"))
    session.commit()


def _is_mariadb(session: Session) -> bool:
    return session.get_bind().dialect.name != "sqlite"


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
    how = "EXPLAIN " if _is_mariadb(session) else "EXPLAIN QUERY PLAN "
    return [
        str(row._mapping.get("type") or "") if _is_mariadb(session) else row.detail
        for text, values in sent
        for row in connection.exec_driver_sql(how + text, values)
        # Not the few rows that a part of the statement has found.
        if not str(row._mapping.get("table")).startswith("<derived")
    ]


@pytest.mark.usefixtures("jobs")
@pytest.mark.parametrize(
    "ask",
    [
        lambda session: claims.lock_due_jobs(session, NOW, 10),
        claims.next_instants,
        lambda session: claims.next_instants(session, 100),
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
    # MariaDB: `ALL` reads every row of a table, `index` every row of an index.
    assert not [line for line in lines if line in ("ALL", "index") or line.startswith("SCAN CronJob")]


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
    assert not [line for line in lines if line == "ALL" or "SCAN" in line or "TEMP B-TREE" in line]

"""The schema that the migrations make is the one the models describe."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from kytecron.config import PARTS, Settings
from kytecron.store import db, schema
from kytecron.store.models import Base, CronJob
from tests.rawsql import typed


def test_models_and_migrations_agree(engine: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": False})
        assert compare_metadata(context, Base.metadata) == []


def test_the_migrations_that_are_known_are_those_that_alembic_runs() -> None:
    scripts = ScriptDirectory(str(PARTS / "migrations"))
    assert schema.newest() == scripts.get_current_head()
    assert schema._known() == {one.revision: one.down_revision for one in scripts.walk_revisions()}


def test_a_migrated_database_is_not_behind(engine: Engine) -> None:
    assert schema.behind(engine) is None


def test_a_row_inserted_by_hand_has_every_default(session: Session) -> None:
    session.execute(
        typed(
            session,
            "INSERT INTO CronJob (name, schedule_type, interval_seconds) VALUES ('by hand', 'interval', 60)",
        )
    )
    job = session.scalars(sa.select(CronJob)).one()
    assert (job.enabled, job.max_retries, job.timeout_seconds, job.retry_strategy) == (
        True,
        3,
        300,
        "exponential",
    )
    assert job.next_run_time is None


def test_a_new_file_that_another_process_writes_is_waited_for(tmp_path: Path) -> None:
    settings = Settings(instance_path=tmp_path)
    first = sqlite3.connect(tmp_path / "kytecron.db", isolation_level=None)
    first.execute("CREATE TABLE one (id INTEGER)")
    first.execute("BEGIN IMMEDIATE")
    engine = db.make_engine(settings)
    found: list[str] = []

    def connect() -> None:
        with engine.connect() as connection:
            found.append(connection.exec_driver_sql("PRAGMA journal_mode").scalar_one())

    second = threading.Thread(target=connect)
    second.start()
    second.join(0.3)
    assert second.is_alive(), "it neither fails nor has what it cannot have yet"
    first.execute("COMMIT")
    second.join(10)
    assert found == ["wal"]
    engine.dispose()
    first.close()

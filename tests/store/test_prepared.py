"""Statements that go past SQLAlchemy say and do the same as through it, on each database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from kytecron.store import claims, db, dialects
from kytecron.store.models import CronJob, CronJobDailyStat, CronJobExecution
from kytecron.store.prepared import FORMS, Prepared, UpdateEach
from tests.rawsql import typed

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
JOB: Any = CronJob.__table__
RUN: Any = CronJobExecution.__table__
STAT: Any = CronJobDailyStat.__table__
AWKWARD = ["it's", 'a "name"', "100 % of %s", "back\\slash", "naïve 🕰", "line\nbreak", "", "NULL"]


@pytest.fixture
def jobs(session: Session) -> list[int]:
    rows = [
        {
            "name": f"job {number}",
            "parameters": {"n": number},
            "next_run_time": NOW,
            "enabled": number % 2 == 0,
        }
        for number in range(8)
    ]
    session.execute(sa.insert(CronJob), rows)
    session.commit()
    return list(session.scalars(sa.select(CronJob.id).order_by(CronJob.id)))


def is_mariadb(engine: Engine) -> bool:
    return engine.dialect.name != "sqlite"


def kill_connections_of(engine: Engine, but: int = 0) -> None:
    """Every connection of this user, as an administrator would; except the one that does it."""
    with engine.connect() as connection:
        own = connection.exec_driver_sql("SELECT CONNECTION_ID()").scalar_one()
        for row in connection.exec_driver_sql("SHOW PROCESSLIST").all():
            if row[0] not in (own, but) and row[3] == engine.url.database:
                connection.exec_driver_sql(f"KILL {row[0]}")


@pytest.mark.parametrize("length", [1, 2, 3, 8])
def test_rows_are_those_that_sqlalchemy_reads(session: Session, jobs: list[int], length: int) -> None:
    query = sa.select(JOB).where(JOB.c.id.in_(claims.IDS)).order_by(JOB.c.id)
    chosen = {"ids": jobs[:length]}
    found = Prepared(query).rows(session, chosen)
    assert [row._asdict() for row in found] == [dict(row._mapping) for row in session.execute(query, chosen)]
    assert found[0].next_run_time == NOW
    assert found[0].enabled is True
    assert found[0].parameters == {"n": 0}


def test_as_many_forms_are_kept_as_are_bounded_and_each_finds_its_rows(
    session: Session, jobs: list[int]
) -> None:
    query = Prepared(sa.select(JOB.c.id).where(JOB.c.id.in_(claims.IDS)).order_by(JOB.c.id))
    for length in (*range(1, 2 * FORMS), 1):
        found = query.rows(session, {"ids": (jobs * length)[:length]})
        assert [row.id for row in found] == jobs[:length]
        assert query._form.cache_info().currsize <= FORMS
    assert query._form.cache_info().currsize == FORMS


class Named(NamedTuple):
    """A job as one statement reads it."""

    id: int
    name: str


def test_rows_of_a_type_have_its_fields_and_a_statement_with_other_columns_is_refused(
    session: Session, jobs: list[int]
) -> None:
    named = Prepared(sa.select(JOB.c.id, JOB.c.name).order_by(JOB.c.id).limit(1), Named)
    assert named.rows(session) == [Named(jobs[0], "job 0")]
    assert type(named.rows(session)[0]) is Named
    with pytest.raises(TypeError, match="Named has the fields"):
        Prepared(sa.select(JOB.c.name, JOB.c.id), Named).rows(session)


def test_what_is_written_is_what_sqlalchemy_reads(session: Session, jobs: list[int]) -> None:
    values = {
        "name": AWKWARD,
        "parameters": [{"text": text} for text in AWKWARD[:-1]] + [None],
        "next_run_time": [NOW + timedelta(microseconds=number) for number in range(7)] + [None],
        "enabled": [number % 3 == 0 for number in range(8)],
        "duration_total_ms": [number * 10**12 for number in range(8)],
    }
    rows = [
        {"job": job, **{name: several[number] for name, several in values.items()}}
        for number, job in enumerate(jobs)
    ]
    assert UpdateEach(JOB, {"job": JOB.c.id}, list(values)).run(session, rows) == len(rows)
    session.commit()
    read = session.execute(sa.select(*(JOB.c[name] for name in values)).order_by(JOB.c.id)).all()
    assert [list(row) for row in read] == [list(row) for row in zip(*values.values(), strict=True)]


@pytest.mark.parametrize("count", [1, 3])
def test_only_rows_that_meet_every_key_are_written_and_counted(
    session: Session, jobs: list[int], count: int
) -> None:
    """Also where nothing changes in them: a guarded update that found its row must not look like one that did not."""
    write = UpdateEach(JOB, {"job": JOB.c.id, "on": JOB.c.enabled}, ["description"])
    rows = [{"job": job, "on": True, "description": ""} for job in jobs[:count]]
    assert write.run(session, rows) == len([job for job in jobs[:count] if (job - jobs[0]) % 2 == 0])
    wrong = [{"job": job, "on": (job - jobs[0]) % 2 == 1, "description": "no"} for job in jobs[:count]]
    assert write.run(session, wrong) == 0
    assert set(session.scalars(sa.select(JOB.c.description))) == {""}


@pytest.mark.mariadb
def test_rows_that_somebody_else_has_locked_do_not_hold_up_the_others(mariadb_settings: Any) -> None:
    """In a table so small that to read it whole seems cheaper than to look up rows."""
    engine = db.make_engine(mariadb_settings)
    with engine.begin() as connection:
        connection.execute(sa.insert(JOB), [{"name": f"job {number}"} for number in range(3)])
    with db.make_sessions(engine)() as session, engine.begin() as other:
        first, second, third = session.scalars(sa.select(JOB.c.id).order_by(JOB.c.id))
        session.rollback()
        other.execute(sa.select(JOB.c.id).where(JOB.c.id == third).with_for_update())
        session.execute(sa.text("SET innodb_lock_wait_timeout = 0"))
        for keys in ({"job": JOB.c.id}, {"job": JOB.c.id, "on": JOB.c.enabled}):
            rows = [{"job": job, "on": True, "description": "mine"} for job in (first, second)]
            assert UpdateEach(JOB, keys, ["description"]).run(session, rows) == 2
        session.commit()
    engine.dispose()


def test_a_constant_in_a_list_and_a_limit_keep_their_places(session: Session, jobs: list[int]) -> None:
    rows = [
        claims.new_run(
            cron_job=jobs[0],
            scheduled_time=NOW + timedelta(seconds=number),
            origin="schedule",
            status=status,
            due_time=NOW,
            queue_time=NOW + timedelta(seconds=number),
            priority=5,
            worker_tag="",
        )
        for number, status in enumerate(["completed", "running", "pending", "pending"])
    ]
    claims.insert_slots(session, rows)
    claims.insert_slots(session, rows)
    found = claims.active_runs(session, jobs)
    assert [run.status for run in found] == ["running", "pending", "pending"], "and each slot once"
    claimed = claims.take(session, "w:1:a", (), 1, timedelta(seconds=60), token=7)
    assert [run.id for run in claimed] == [found[1].id]
    one = session.execute(sa.select(RUN).where(RUN.c.id == found[1].id)).one()
    assert (one.status, one.locked_by, one.token, one.locked_until - one.locked_at) == (
        *("running", "w:1:a", 7),
        timedelta(seconds=60),
    )


def test_errors_are_those_that_sqlalchemy_raises(session: Session, jobs: list[int]) -> None:
    twice = {"name": "job 1", "deleted_id": 0}
    rename = UpdateEach(JOB, {"job": JOB.c.id}, ["name", "deleted_id"])
    with pytest.raises(IntegrityError) as raised:
        rename.run(session, [{"job": jobs[0], **twice}])
    assert not raised.value.connection_invalidated
    session.rollback()
    with pytest.raises(IntegrityError):
        rename.run(session, [{"job": job, **twice} for job in jobs[:2]])
    session.rollback()
    with pytest.raises(DBAPIError):
        db.execute(session.connection(), "SELECT * FROM nowhere", ())
    session.rollback()
    assert len(claims.read_jobs(session, jobs)) == len(jobs)


@pytest.mark.mariadb
def test_a_lost_connection_is_known_to_be_lost(mariadb_settings: Any) -> None:
    engine = db.make_engine(mariadb_settings)
    session = db.make_sessions(engine)()
    assert claims.next_instants(session)
    kill_connections_of(engine)
    with pytest.raises(DBAPIError) as raised:
        claims.next_instants(session)
    assert raised.value.connection_invalidated
    session.rollback()
    assert claims.next_instants(session), "the next transaction has a new one"
    session.close()
    engine.dispose()


@pytest.mark.mariadb
def test_a_connection_that_died_while_nobody_used_it_is_replaced(
    mariadb_settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = db.make_engine(mariadb_settings)
    other = db.make_engine(mariadb_settings)
    for pause, alive in ((0.0, True), (3600.0, False)):
        monkeypatch.setattr(dialects, "SILENCE_SECONDS", pause)
        with engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1")
        kill_connections_of(other)
        with engine.connect() as connection:
            if alive:
                assert connection.exec_driver_sql("SELECT 1").scalar_one() == 1
            else:
                with pytest.raises(DBAPIError):
                    connection.exec_driver_sql("SELECT 1")
    engine.dispose()
    other.dispose()


# -- without a transaction -----------------------------------------------------------------------------------


def test_an_onlooker_sees_what_was_committed_and_holds_nothing_up(
    engine: Engine, session: Session, jobs: list[int]
) -> None:
    onlooker = db.Onlooker(engine)
    assert onlooker.ask(claims.next_instants).slot == NOW
    session.execute(sa.update(JOB).values(next_run_time=NOW + timedelta(hours=1)))
    session.commit()
    assert onlooker.ask(claims.next_instants).slot == NOW + timedelta(hours=1)
    # A transaction that had been left open would hold this up, until it fails.
    session.execute(typed(session, "ALTER TABLE CronJob ADD COLUMN one_more INTEGER"))
    session.execute(typed(session, "ALTER TABLE CronJob DROP COLUMN one_more"))
    session.commit()
    onlooker.close()
    assert onlooker.ask(claims.next_instants).slot == NOW + timedelta(hours=1)
    with pytest.raises(DBAPIError):
        onlooker.ask(db.execute, "SELECT * FROM nowhere", ())
    assert onlooker.ask(claims.next_instants).run is None
    onlooker.close()


def test_transactions_after_an_onlooker_are_transactions(engine: Engine, jobs: list[int]) -> None:
    """What it gives back to the pool must not commit by itself in other hands."""
    onlooker = db.Onlooker(engine)
    onlooker.ask(claims.next_instants)
    onlooker.close()
    with engine.connect() as connection:
        connection.execute(sa.update(JOB).values(description="half"))
        connection.rollback()
        assert set(connection.scalars(sa.select(JOB.c.description))) == {""}


@pytest.mark.mariadb
def test_an_onlooker_replaces_a_connection_that_was_lost(mariadb_settings: Any) -> None:
    engine = db.make_engine(mariadb_settings)
    other = db.make_engine(mariadb_settings)
    onlooker = db.Onlooker(engine)
    assert onlooker.ask(claims.next_instants)
    kill_connections_of(other)
    assert onlooker.ask(claims.next_instants)
    onlooker.close()
    engine.dispose()
    other.dispose()

"""Whatever text and JSON come in can be stored, found and read back, on every database."""

from __future__ import annotations

import logging
import math
from datetime import UTC, date, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from kytecron.config import Settings
from kytecron.core.states import Outcome, Status
from kytecron.core.untrusted import MAX_DEPTH, TOO_DEEP
from kytecron.services import lifecycle
from kytecron.services.audit import Actor
from kytecron.store import db
from kytecron.store.dialects import Id
from kytecron.store.models import Base, CronJob
from kytecron.store.prepared import Prepared
from tests.factories import add_job, claim_one, fresh, runs_of

ANNA = Actor("anna")
WILD = "a\0b\ud800c\udc80 é 🙂"
SEEN = "a␀b\\ud800c\\udc80 é 🙂"
WILD_JSON = {"k\0\ud800": [WILD, {"x": (math.nan, math.inf, -math.inf)}, 2**70, 1.5, None, True, "\\u0000"]}
SEEN_JSON = {"k␀\\ud800": [SEEN, {"x": ["NaN", "Infinity", "-Infinity"]}, 2**70, 1.5, None, True, "\\u0000"]}
ORDINARY = {sa.Integer: 1, sa.Float: 0.5, sa.Boolean: True, sa.DateTime: datetime(2026, 1, 1, tzinfo=UTC)}
ORDINARY |= {sa.Date: date(2026, 1, 1), sa.LargeBinary: b"\0\xff"}


def _wild(column: Any) -> Any:
    """A value for a column that no database would take as it is; as long as the column allows."""
    kind = column.type.impl_instance if isinstance(column.type, sa.types.TypeDecorator) else column.type
    if isinstance(kind, sa.JSON):
        return WILD_JSON
    if isinstance(kind, sa.String):
        return (WILD + "\ud800" * 3000)[: kind.length or 3000]
    return next(value for parent, value in ORDINARY.items() if isinstance(kind, parent))


def _as_seen(value: Any, column: Any) -> Any:
    if value is WILD_JSON:
        return SEEN_JSON
    if isinstance(value, str):
        shown = value.replace("\0", "␀").encode("utf-8", "backslashreplace").decode()
        return shown[: column.type.length]
    return value


@pytest.mark.parametrize("table", Base.metadata.sorted_tables, ids=lambda table: table.name)
def test_every_column_takes_any_text_and_any_json(session: Session, table: sa.Table) -> None:
    session.connection()  # whose transaction is not committed
    rows: dict[str, dict[str, Any]] = {}
    for each in Base.metadata.sorted_tables:
        values = {column.name: _wild(column) for column in each.c}
        for key in each.foreign_keys:
            values[key.parent.name] = rows[key.column.table.name][key.column.name]
        session.execute(each.insert().values(values))
        rows[each.name] = values
        if each is table:
            break
    kept = session.execute(sa.select(table)).one()
    for column in table.c:
        assert getattr(kept, column.name) == _as_seen(rows[table.name][column.name], column), column.name


def test_what_is_searched_for_may_be_any_text(session: Session) -> None:
    name, tags = CronJob.name, CronJob.tags
    job = add_job(session, name=WILD, tags=f",{WILD},")
    found = [
        name == WILD,
        name.in_([WILD, "\0"]),
        name.like(f"%{WILD[:2]}%"),
        name.contains(WILD, autoescape=True),
        tags.contains(f",{WILD},", autoescape=True),
        name.startswith(WILD[:4], autoescape=True),
        name + "\0" == WILD + "\0",
        name.icontains(WILD, autoescape=True),
    ]
    for condition in found:
        assert session.scalars(sa.select(CronJob.id).where(condition)).all() == [job.id], str(condition)
    for text in ("\0", "\ud800", "x\0", "a"):
        assert session.scalars(sa.select(CronJob.id).where(name == text)).all() == []


def test_prepared_statements_take_any_text(session: Session) -> None:
    job = add_job(session)
    table = CronJob.__table__
    update = (
        sa.update(table)
        .where(table.c.id == sa.bindparam("at", type_=Id))
        .values(description=sa.bindparam("said"), state=sa.bindparam("kept"))
    )
    assert Prepared(update).run_many(session, [{"at": job.id, "said": WILD, "kept": WILD_JSON}]) == 1
    session.commit()
    assert (fresh(session, job).description, job.state) == (SEEN, SEEN_JSON)


def test_one_ending_that_no_database_would_take_does_not_spoil_those_beside_it(
    session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "kytecron")  # pytest's workers could not pass such lines on
    jobs = [add_job(session, max_retries=0) for _ in range(3)]
    claims = []
    for job in jobs:
        lifecycle.trigger(session, job.id, actor=ANNA)
        claims.append(claim_one(session))
    good = Outcome(Status.COMPLETED, result="fine", output="fine", duration_ms=1)
    wild = Outcome(Status.FAILED, output=WILD, error="\ud800" * 2000, stack_trace=WILD, duration_ms=1)
    odd = Outcome(Status.COMPLETED, output=WILD, result=WILD_JSON, state=WILD_JSON, duration_ms=1)
    lifecycle.settle(session, list(zip(claims, (good, wild, odd), strict=True)))
    (first,), (second,), (third,) = (runs_of(session, job) for job in jobs)
    assert (first.status, first.result) == ("completed", "fine")
    assert (second.status, second.error, second.stack_trace) == ("failed", ("\\ud800" * 2000)[:2000], SEEN)
    assert (third.status, third.result, third.output) == ("completed", SEEN_JSON, SEEN)


def _nested(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = {"a": value} if level % 2 else [value]
    return value


def test_what_is_nested_deeper_than_every_database_keeps_is_cut_and_said_so(session: Session) -> None:
    kept, wide = _nested(MAX_DEPTH), [[n] for n in range(1000)]
    jobs = [add_job(session, parameters={"v": value}) for value in (_nested(MAX_DEPTH - 1), kept, wide)]
    jobs += [add_job(session, state=value) for value in (kept, _nested(900))]
    fitting, cut, broad, whole, deep = (fresh(session, job) for job in jobs)
    assert fitting.parameters == {"v": _nested(MAX_DEPTH - 1)}
    assert TOO_DEEP in str(cut.parameters)
    assert broad.parameters == {"v": wide}
    assert whole.state == kept
    assert str(deep.state).count("[") + str(deep.state).count("{") == MAX_DEPTH


def test_a_value_that_a_table_does_not_take_is_no_outage(session: Session) -> None:
    with pytest.raises(sa.exc.DBAPIError) as caught, session.begin():
        session.execute(sa.text("INSERT INTO CronUser (username, created_at) VALUES ('a', NULL)"))
    assert not db.is_outage(caught.value)


@pytest.mark.mariadb
def test_text_that_is_no_json_is_no_outage(mariadb_settings: Settings) -> None:
    engine = db.make_engine(mariadb_settings)
    with pytest.raises(sa.exc.DBAPIError) as caught, engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO CronJob (name, schedule_type, state) VALUES ('a', 'manual', '{')"
        )
    engine.dispose()
    assert not db.is_outage(caught.value)

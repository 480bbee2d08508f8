"""Who has locked a row, where the database can say so."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from . import dialects
from .models import CronJob, CronJobExecution

NAMED = 3


def job_is_locked(session: Session, job_id: int) -> bool | None:
    """Whether somebody has locked a job's row; None where that cannot be told."""
    return _is_locked(session, CronJob.__table__, job_id)


def run_is_locked(session: Session, execution_id: int) -> bool | None:
    """Whether somebody has locked an execution's row; None where that cannot be told."""
    return _is_locked(session, CronJobExecution.__table__, execution_id)


def _is_locked(session: Session, table: Any, row_id: int) -> bool | None:
    if not dialects.of(session).skip_locked:
        return None
    query = sa.select(table.c.id).where(table.c.id == row_id)
    # On a connection of its own: the lock that this takes for a moment must not outlast it.
    with _engine(session).connect() as connection:
        free = connection.execute(query.with_for_update(skip_locked=True)).first() is not None
        if free:
            return False
        there = connection.execute(query).first() is not None
        connection.rollback()
    return there


def holders(session: Session) -> list[str]:
    """Connections of others that hold locks, the longest first; none where the database does not say so."""
    engine = _engine(session)
    query = dialects.of(engine).lock_holders
    if query is None:
        return []
    try:
        with engine.connect() as connection:
            rows = connection.execute(query, {"most": NAMED}).all()
    except DBAPIError:
        return []  # no such privilege
    return [f"connection {row.id} of {row.user}@{row.host} (idle for {row.time} s)" for row in rows]


def _engine(session: Session) -> sa.Engine:
    bind = session.get_bind()
    return bind if isinstance(bind, sa.Engine) else bind.engine

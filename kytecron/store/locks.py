"""Who has locked a row, where the database can say so."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from . import db
from .models import CronJob, CronJobExecution

NAMED = 3

# The server tells of other people's transactions to those only who may see them (the privilege PROCESS).
_IN_TRANSACTIONS = sa.text(
    "SELECT p.id, p.user, p.host, p.time FROM information_schema.innodb_trx t "
    "JOIN information_schema.processlist p ON p.id = t.trx_mysql_thread_id "
    "WHERE t.trx_rows_locked > 0 AND p.id <> connection_id() ORDER BY t.trx_started LIMIT :most"
)


def job_is_locked(session: Session, job_id: int) -> bool | None:
    """Whether somebody has locked a job's row; None where that cannot be told."""
    return _is_locked(session, CronJob.__table__, job_id)


def run_is_locked(session: Session, execution_id: int) -> bool | None:
    """Whether somebody has locked an execution's row; None where that cannot be told."""
    return _is_locked(session, CronJobExecution.__table__, execution_id)


def _is_locked(session: Session, table: Any, row_id: int) -> bool | None:
    if not db.supports_skip_locked(session):
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
    if engine.dialect.name not in db.MYSQL_DIALECTS:
        return []
    try:
        with engine.connect() as connection:
            rows = connection.execute(_IN_TRANSACTIONS, {"most": NAMED}).all()
    except DBAPIError:
        return []  # no such privilege
    return [f"connection {row.id} of {row.user}@{row.host} (idle for {row.time} s)" for row in rows]


def _engine(session: Session) -> sa.Engine:
    bind = session.get_bind()
    return bind if isinstance(bind, sa.Engine) else bind.engine

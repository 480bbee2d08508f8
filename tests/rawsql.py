"""SQL as somebody types it, on every database: names of tables keep their capital letters."""

from __future__ import annotations

import re

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session

from kytecron.store.models import Base

_TABLES = re.compile(rf"\b({'|'.join(Base.metadata.tables)})\b")


def typed(at: Session | Connection | Engine, statement: str) -> sa.TextClause:
    """`statement` with the names of kytecron's tables quoted, as the database behind `at` wants that."""
    bind = at.get_bind() if isinstance(at, Session) else at
    quote = bind.dialect.identifier_preparer.quote
    return sa.text(_TABLES.sub(lambda match: quote(match[0]), statement))


def numbers_go_on(connection: Connection) -> None:
    """Have new rows get ids after those that were inserted with theirs, where the database does not see to it."""
    if connection.dialect.name != "postgresql":
        return
    for name in sa.inspect(connection).get_table_names():
        if (table := Base.metadata.tables.get(name)) is not None and "id" in table.c:
            newest = connection.scalar(sa.select(sa.func.max(table.c.id)))
            sequence = connection.scalar(sa.select(sa.func.pg_get_serial_sequence(f'"{name}"', "id")))
            connection.execute(sa.select(sa.func.setval(sequence, newest or 1, newest is not None)))

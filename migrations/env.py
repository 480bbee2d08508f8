"""Alembic's entry: reached through `flask db ...` and through kytecron.store.schema alike."""

from __future__ import annotations

from alembic import context
from alembic.util import CommandError
from flask import current_app, has_app_context
from sqlalchemy.exc import SQLAlchemyError

from kytecron.config import default_settings
from kytecron.store import db as database
from kytecron.store import schema
from kytecron.store.dialects import TABLE
from kytecron.store.models import Base, LongBlob, LongText, ShortText, UtcDateTime


def render_item(kind, item, autogen_context):
    """A migration names SQLAlchemy's types, so that it goes on making the same table; times alone are ours."""
    if kind == "type" and isinstance(item, UtcDateTime):
        autogen_context.imports.add("from kytecron.store.models import UtcDateTime")
        return "UtcDateTime()"
    if kind == "type" and isinstance(item, ShortText):
        length = item.impl_instance.length
        return f"sa.String({length}).with_variant(sa.String({length}, collation='C'), 'postgresql')"
    if kind == "type" and isinstance(item, LongText | LongBlob):
        autogen_context.imports.add("from sqlalchemy.dialects import mysql")
        if isinstance(item, LongBlob):
            return "sa.LargeBinary().with_variant(mysql.LONGBLOB(), 'mysql', 'mariadb')"
        long = "sa.Text().with_variant(mysql.LONGTEXT(), 'mysql', 'mariadb')"
        return f"{long}.with_variant(sa.Text(collation='C'), 'postgresql')"
    return False


def run() -> None:
    connection = context.config.attributes.get("connection")
    if connection is not None:
        migrate(connection)
        return
    settings = current_app.extensions["kytecron.settings"] if has_app_context() else default_settings()
    engine = database.make_engine(settings)
    try:
        with schema.migrating(engine) as connection:
            migrate(connection)
    except SQLAlchemyError as error:
        raise CommandError(database.trouble(error)) from error
    finally:
        engine.dispose()


def migrate(connection) -> None:
    for table in Base.metadata.tables.values():  # for migrations that are generated
        table.dialect_kwargs.update(TABLE)
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_item=render_item,
        compare_server_default=False,
    )
    with context.begin_transaction():
        context.run_migrations()


run()

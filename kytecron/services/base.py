"""What CronJobManager and CronVersionControl share: a session, and who works with it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from ..config import Settings, default_settings
from ..core.errors import Conflict
from ..store import db, dialects, schema
from .audit import Actor

log = logging.getLogger(__name__)

PYTHON = Actor("python")


class Service:
    """Works in the session it is given, or in one of its own on the database of the process's settings.

    Its own it closes at the end of a `with` block or in `close()`: read its rows before that.
    Raises Conflict, with the command to run, where the database's tables are not those of this version.
    """

    def __init__(self, session: Session | None = None, actor: Actor = PYTHON) -> None:
        self.actor = actor
        self._own_engine: Engine | None = None
        if session is None:
            self._own_engine = open_database(default_settings())
            session = db.make_sessions(self._own_engine)()
        self.session = session

    def close(self) -> None:
        """Close the session and its connections, unless they were somebody else's to begin with."""
        if self._own_engine is not None:
            self.session.close()
            self._own_engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        try:
            yield self.session
        except DBAPIError:
            self.session.rollback()
            raise
        finally:
            if self._own_engine is not None:
                # Nobody else ends this read transaction, and while it is open SQLite shows what was then.
                self.session.commit()


def open_database(settings: Settings) -> Engine:
    """An engine on an up-to-date database. A new file gets its tables here, so that a first program runs.

    Raises Conflict, with the command to run, for any other database whose tables are not those of this version.
    """
    engine = db.make_engine(settings)
    if _is_new_file(engine):
        if not settings.says_where:
            log.warning(
                "A new database: %s. Set KYTECRON_DATABASE_URL for another one", db.shown(settings.url)
            )
        schema.upgrade(engine)
    if problem := schema.behind(engine):
        engine.dispose()
        raise Conflict(problem)
    return engine


def _is_new_file(engine: Engine) -> bool:
    if dialects.of_address(engine.url).file(engine.url) is None:
        return False
    with engine.connect() as connection:
        # The revision is written last: a file that another process is just migrating counts as new, and upgrade waits.
        return schema.revision(connection) is None

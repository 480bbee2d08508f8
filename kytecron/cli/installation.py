"""The installation that a command works on: its settings and its database, each asked for when it is needed."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from ..config import Settings

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine
    from sqlalchemy.orm import Session


class Installation:
    """Settings, engine and session of one command. Nothing is read or opened before somebody asks for it."""

    def __init__(self, settings: Settings | None = None) -> None:
        if settings is not None:
            self.settings = settings

    @cached_property
    def settings(self) -> Settings:
        """Those of this process. Raises Invalid for settings that make no sense."""
        return Settings.load()

    @cached_property
    def engine(self) -> Engine:
        """An engine for the database that the settings name."""
        from ..store import db

        return db.make_engine(self.settings)

    @cached_property
    def session(self) -> Session:
        """The session of the command."""
        from ..store import db

        return db.make_sessions(self.engine)()

    @cached_property
    def schema_problem(self) -> str | None:
        """Why the tables are not those of this version; None where they are."""
        from ..store import schema

        return schema.behind(self.engine)

    def close(self) -> None:
        """End the session and the connections; whoever asks again gets new ones."""
        if "session" in self.__dict__:
            self.session.close()
            del self.session
        if "engine" in self.__dict__:
            self.engine.dispose()
            del self.engine
        self.__dict__.pop("schema_problem", None)

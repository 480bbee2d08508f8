"""Bringing the database to another version's tables while workers may be running."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy.engine import Engine

from ..config import Settings
from ..core.errors import Conflict
from ..core.words import in_words
from ..store import db, schema
from . import registry

NAMED = 10


def upgrade(engine: Engine, settings: Settings, *, force: bool = False) -> None:
    """Bring the database to this version's tables. Nothing happens where it has them.

    Raises Conflict, naming them, while workers are alive, unless forced: whatever they run, they began with other
    tables. And as `schema.upgrade` does.
    """
    if schema.behind(engine) is None:
        return
    if not force:
        require_no_workers(engine, settings)
    schema.upgrade(engine)


def require_no_workers(engine: Engine, settings: Settings, revision: str = "head") -> None:
    """Raise Conflict, naming them, while workers are alive, unless the database is at `revision` already."""
    with engine.connect() as connection:
        if schema.is_at(connection, revision):
            return
        alive = registry.still_alive(connection, settings)
        if not alive:
            return
        now = db.now(connection)
    named = "; ".join(_named(worker, now) for worker in alive[:NAMED])
    more = f"; and {len(alive) - NAMED} more" if len(alive) > NAMED else ""
    one = len(alive) == 1
    raise Conflict(
        f"{len(alive)} worker{' is' if one else 's are'} alive that began with other tables: {named}{more}. "
        f"Stop {'it' if one else 'them'} first; or give --force: workers then let their runs end and stop by "
        "themselves, except those of the first release (docs/upgrading.md)"
    )


def _named(worker: Any, now: datetime) -> str:
    seen = in_words(max(0.0, (now - worker.last_seen_at).total_seconds()))
    return f"{worker.worker_id} (version {worker.version}, host {worker.host}, pid {worker.pid}, seen {seen} ago)"

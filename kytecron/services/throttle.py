"""How often somebody may do something: uses of a key, counted in windows on the clock, between all processes."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ..core.errors import TooManyRequests
from ..core.words import in_words
from ..store import db
from ..store.db import hits, transactional
from ..store.models import CronThrottle

TRIGGERS_PER_MINUTE = 120
"""Runs that one person or one token may ask for; a bulk action and a backfill count once."""
LONGEST_WINDOW = timedelta(days=1)
"""`services.retention` forgets windows older than this."""


class Use(NamedTuple):
    """A use that was counted."""

    key: str
    window: datetime


@transactional
def allow(session: Session, key: str, limit: int, per_seconds: int) -> None:
    """Count one use of `key`. Raises TooManyRequests beyond `limit` in one window of `per_seconds`.

    Windows lie on the clock (a new one every `per_seconds`, at most a day), so that one guarded update decides,
    also between many processes.
    """
    take(session, key, limit, per_seconds, "Too many requests.")


def allow_trigger(session: Session, who: str) -> None:
    """Count one run that `who` asks for, such as `user:7`. Raises TooManyRequests beyond TRIGGERS_PER_MINUTE."""
    allow(session, f"trigger:{who}", TRIGGERS_PER_MINUTE, 60)


@transactional
def allow_trigger_by_job(session: Session, job_id: int, limit: int) -> None:
    """Count one run that a run of this job asks for. Raises TooManyRequests beyond `limit` in a minute."""
    take(session, f"trigger:job:{job_id}", limit, 60, f"A job may trigger {limit:,} runs in a minute.")


def take(session: Session, key: str, limit: int, per_seconds: int, said: str) -> Use:
    """`allow` within the caller's transaction; the error begins with `said`."""
    now = db.now(session)
    use = Use(key, _window(now, per_seconds))
    if not _add_one(session, use, limit):
        wait = max(1, math.ceil((use.window - now).total_seconds() + per_seconds))
        raise TooManyRequests(f"{said} Try again in {in_words(wait)}.", wait)
    return use


def give_back(session: Session, use: Use) -> None:
    """Forget one use that was counted."""
    session.execute(
        sa.update(CronThrottle)
        .where(*_row_of(use), CronThrottle.count > 0)
        .values(count=CronThrottle.count - 1)
    )


def _window(now: datetime, per_seconds: int) -> datetime:
    """Return its start on the clock. Tests hold it, since one may end between two requests."""
    return datetime.fromtimestamp(now.timestamp() // per_seconds * per_seconds, UTC)


def _row_of(use: Use) -> tuple[sa.ColumnElement[bool], ...]:
    return CronThrottle.key == use.key, CronThrottle.window == use.window


def _add_one(session: Session, use: Use, limit: int) -> bool:
    one_more = (
        sa.update(CronThrottle)
        .where(*_row_of(use), CronThrottle.count < limit)
        .values(count=CronThrottle.count + 1)
    )
    if hits(session, one_more):
        return True
    try:
        with session.begin_nested():
            session.execute(sa.insert(CronThrottle).values(key=use.key, window=use.window, count=1))
    except IntegrityError:  # the row is there: full, or made by another process a moment ago
        return hits(session, one_more) > 0
    return True

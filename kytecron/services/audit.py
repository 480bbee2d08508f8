"""Who did what: every change of a job, a version, an account or a lock leaves one row, in the change's transaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from ..core.choices import Source
from ..core.fields import SECRET_FIELDS
from ..store import db
from ..store.models import CronAudit

MASKED = SECRET_FIELDS | frozenset({"password", "password_hash", "token", "value"})
MASK = "•••"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, through which front (a `Source`), from which address."""

    name: str
    source: Source = Source.PYTHON
    ip: str = ""


WORKER = Actor("worker", Source.WORKER)


def record(
    session: Session,
    actor: Actor,
    action: str,
    subject: tuple[str, object],
    *,
    name: str = "",
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Add a row about `subject` (its type and id). Called inside the transaction of the change."""
    session.add(
        CronAudit(
            at=db.now(session),
            actor=actor.name[:100],
            source=actor.source,
            ip=actor.ip[:64],
            action=action,
            subject_type=subject[0],
            subject_id=str(subject[1]),
            subject_name=name[:200],
            before=None if before is None else plain(before),
            after=None if after is None else plain(after),
        )
    )


@db.transactional
def note_refusal(session: Session, actor: Actor, request: str) -> None:
    """Record that a user or a token asked for what its role does not allow. The caller bounds how often."""
    record(session, actor, "refused", ("request", ""), name=request)


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both sides reduced to the keys whose values differ."""
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return {key: before.get(key) for key in keys}, {key: after.get(key) for key in keys}


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as JSON can hold them and as anybody may see them: secrets masked."""
    return {key: _plain_value(key, value) for key, value in values.items()}


def _plain_value(key: str, value: Any) -> Any:
    if key in MASKED and value:
        return MASK
    return value.isoformat() if isinstance(value, datetime) else value

"""How often somebody may do something."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from kytecron.core.errors import TooManyRequests
from kytecron.services import throttle
from kytecron.store import db
from kytecron.store.models import CronThrottle


def test_a_throttle_allows_its_limit_and_says_how_long_to_wait(session: Session) -> None:
    for _ in range(3):
        throttle.allow(session, "trigger:5", 3, 86_400)
    throttle.allow(session, "trigger:6", 3, 86_400)
    with pytest.raises(TooManyRequests) as refused:
        throttle.allow(session, "trigger:5", 3, 86_400)
    assert 0 < refused.value.retry_after <= 86_400
    session.rollback()
    counts = {row.key: row.count for row in session.scalars(sa.select(CronThrottle))}
    assert counts == {"trigger:5": 3, "trigger:6": 1}


def test_a_throttle_opens_again_in_its_next_window(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = db.now(session)
    monkeypatch.setattr(db, "now", lambda _: moment)
    throttle.allow(session, "x", 1, 60)
    with pytest.raises(TooManyRequests) as refused:
        throttle.allow(session, "x", 1, 60)
    moment += timedelta(seconds=refused.value.retry_after)
    throttle.allow(session, "x", 1, 60)

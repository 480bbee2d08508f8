"""The statements that move a run ask `states.MOVES` where it may come from: another drawing, other statements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.orm import Session

from kytecron.core import states
from kytecron.core.states import Claim, Outcome, Status
from kytecron.services import lifecycle
from kytecron.services.audit import Actor
from kytecron.store import db
from kytecron.store.models import CronJob
from tests.factories import LEASE, WORKER, add_job, claim_one, runs_of

Move = Callable[[Session, Claim], object]


def due(session: Session) -> CronJob:
    job = add_job(session)
    lifecycle.enqueue_due(session)
    return job


def settled(outcome: Outcome) -> Move:
    return lambda session, claim: lifecycle.settle(session, [(claim, outcome)])


MOVES_OF_A_RUNNING_ONE: dict[Status, Outcome] = {
    Status.PENDING: Outcome(Status.PENDING),
    Status.COMPLETED: Outcome(Status.COMPLETED, duration_ms=1),
    Status.FAILED: Outcome(Status.FAILED, error="no"),
    Status.TIMEOUT: Outcome(Status.TIMEOUT, error="late"),
    Status.LOST: Outcome(Status.LOST, error="gone"),
    Status.CANCELLED: Outcome(Status.CANCELLED, error="stop"),
    Status.SKIPPED: Outcome(Status.SKIPPED, skipped_reason="nothing to do"),
}


def without(monkeypatch: pytest.MonkeyPatch, old: Status, new: Status) -> None:
    monkeypatch.setitem(states.MOVES, old, states.MOVES[old] - {new})


@pytest.mark.parametrize("new", MOVES_OF_A_RUNNING_ONE, ids=str)
def test_a_running_run_goes_only_where_the_moves_lead(
    session: Session, monkeypatch: pytest.MonkeyPatch, new: Status
) -> None:
    job = due(session)
    claim = claim_one(session)
    without(monkeypatch, Status.RUNNING, new)
    with pytest.raises(RuntimeError, match="a move that there is not"):
        lifecycle.settle(session, [(claim, MOVES_OF_A_RUNNING_ONE[new])])
    assert [run.status for run in runs_of(session, job)] == [Status.RUNNING]
    monkeypatch.undo()
    lifecycle.settle(session, [(claim, MOVES_OF_A_RUNNING_ONE[new])])
    assert runs_of(session, job)[0].status == new


def test_all_moves_of_a_running_run_are_tried() -> None:
    assert MOVES_OF_A_RUNNING_ONE.keys() == states.MOVES[Status.RUNNING]


def test_a_pending_run_is_claimed_only_if_it_may_start(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = due(session)
    without(monkeypatch, Status.PENDING, Status.RUNNING)
    with pytest.raises(RuntimeError, match="a move that there is not"):
        lifecycle.claim(session, WORKER, (), 5, LEASE)
    assert [run.status for run in runs_of(session, job)] == [Status.PENDING]
    monkeypatch.undo()
    assert len(lifecycle.claim(session, WORKER, (), 5, LEASE)) == 1


def test_a_pending_run_is_called_off_only_if_it_may_be(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = due(session)
    without(monkeypatch, Status.PENDING, Status.CANCELLED)
    with pytest.raises(RuntimeError, match="a move that there is not"):
        lifecycle.cancel(session, runs_of(session, job)[0].id, Actor("anna"))
    assert [run.status for run in runs_of(session, job)] == [Status.PENDING]


@pytest.mark.parametrize("several", [1, 3])
def test_another_drawing_makes_another_statement(
    session: Session, monkeypatch: pytest.MonkeyPatch, several: int
) -> None:
    """Also of several at once, which MariaDB gets as one UPDATE that joins a list."""
    sent: list[str] = []
    real = db.execute

    def noted(connection: Any, text: str, *rest: Any, **named: Any) -> Any:
        sent.append(text)
        return real(connection, text, *rest, **named)

    monkeypatch.setattr(db, "execute", noted)

    def statement_that_settles() -> str:
        for _ in range(several):
            due(session)
        claims = [run.claim for run in lifecycle.claim(session, WORKER, (), 10, LEASE)]
        assert len(claims) == several
        sent.clear()
        lifecycle.settle(session, [(claim, Outcome(Status.COMPLETED, duration_ms=1)) for claim in claims])
        (moving,) = [text for text in sent if text.startswith("UPDATE") and "completed_at" in text]
        return moving

    as_drawn = statement_that_settles()
    assert statement_that_settles() == as_drawn
    monkeypatch.setitem(states.MOVES, Status.PENDING, states.MOVES[Status.PENDING] | {Status.COMPLETED})
    assert statement_that_settles() != as_drawn

"""A request with a key is carried out once, however often and at whatever moment it comes."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from kytecron.config import Settings
from kytecron.core.errors import Conflict, Invalid, UnderWay
from kytecron.services import idempotency, lifecycle, retention, throttle
from kytecron.services.audit import Actor
from kytecron.services.idempotency import Answer, Asked, Given
from kytecron.store import db
from kytecron.store.models import CronIdempotencyKey, CronJob
from tests.factories import add_job, runs_of

ASKED = Asked("token:1", "one", "POST /jobs/1/trigger")
SECRET = "hunter2-hunter2"


def trigger(session: Session, job: CronJob) -> Callable[[], Answer]:
    def act() -> Answer:
        run = lifecycle.trigger(session, job.id, actor=Actor("test"))
        return Answer(202, str(run.id), {"Location": f"/executions/{run.id}"})

    return act


@pytest.fixture
def job(session: Session) -> CronJob:
    return add_job(session, schedule_type="manual", next_run_time=None, overlap_policy="allow")


def stored(session: Session) -> list[CronIdempotencyKey]:
    session.rollback()
    return list(session.scalars(sa.select(CronIdempotencyKey).execution_options(populate_existing=True)))


def test_a_repeated_request_gets_the_first_ones_answer(
    session: Session, settings: Settings, job: CronJob
) -> None:
    first = idempotency.once(session, settings, ASKED, trigger(session, job))
    again = idempotency.once(session, settings, ASKED, trigger(session, job))
    assert (first.replayed, again.replayed) == (False, True)
    assert first.answer == again.answer
    assert len(runs_of(session, job)) == 1


def test_a_key_belongs_to_its_caller_and_its_request(
    session: Session, settings: Settings, job: CronJob
) -> None:
    idempotency.once(session, settings, ASKED, trigger(session, job))
    other = Asked("token:2", ASKED.key, ASKED.request)
    assert not idempotency.once(session, settings, other, trigger(session, job)).replayed
    with pytest.raises(Invalid, match="another request"):
        idempotency.once(
            session, settings, Asked("token:1", "one", "POST /jobs/2/trigger"), trigger(session, job)
        )
    assert len(runs_of(session, job)) == 2


def test_two_at_once_are_carried_out_once(
    engine: Engine, session: Session, settings: Settings, job: CronJob
) -> None:
    together = threading.Barrier(6)

    def ask(_: int) -> Given:
        with db.make_sessions(engine)() as own:
            together.wait()
            return idempotency.once(own, settings, ASKED, trigger(own, job))

    with ThreadPoolExecutor(6) as pool:
        given = list(pool.map(ask, range(6)))
    assert sorted(one.replayed for one in given) == [False] + [True] * 5
    assert len({one.answer.body for one in given}) == 1
    assert len(runs_of(session, job)) == 1


def test_what_was_refused_leaves_its_key_free(session: Session, settings: Settings, job: CronJob) -> None:
    job.enabled = False
    session.commit()
    for carry_out in (idempotency.once, idempotency.stepwise):
        with pytest.raises(Conflict, match="disabled"):
            carry_out(session, settings, ASKED, trigger(session, job))
    assert stored(session) == []
    job.enabled = True
    session.commit()
    assert not idempotency.once(session, settings, ASKED, trigger(session, job)).replayed


def test_a_key_whose_transaction_failed_is_not_there(
    session: Session, settings: Settings, job: CronJob
) -> None:
    def fail() -> Answer:
        trigger(session, job)()
        raise RuntimeError("the process is killed here")

    with pytest.raises(RuntimeError):
        idempotency.once(session, settings, ASKED, fail)
    assert stored(session) == []
    assert runs_of(session, job) == []


def test_a_repetition_in_the_middle_of_several_steps_is_told_to_come_again(
    engine: Engine, session: Session, settings: Settings
) -> None:
    def act() -> Answer:
        with db.make_sessions(engine)() as own, pytest.raises(UnderWay) as busy:
            idempotency.stepwise(own, settings, ASKED, lambda: Answer(500))
        assert busy.value.retry_after > 0
        return Answer(200, "done")

    idempotency.stepwise(session, settings, ASKED, act)
    assert idempotency.stepwise(session, settings, ASKED, act) == Given(Answer(200, "done"), True)


def test_steps_that_were_cut_off_are_not_repeated_in_the_dark(session: Session, settings: Settings) -> None:
    def cut_off() -> Answer:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        idempotency.stepwise(session, settings, ASKED, cut_off)
    session.execute(sa.update(CronIdempotencyKey).values(started_at=db.now(session) - idempotency.STEPS_TAKE))
    session.commit()
    with pytest.raises(Conflict, match="cut off in the middle"):
        idempotency.stepwise(session, settings, ASKED, lambda: Answer(200))


def test_an_answer_too_large_to_keep_is_not_given_twice_but_neither_is_the_work(
    session: Session, settings: Settings
) -> None:
    noise = "".join(map(chr, random.Random(1).choices(range(33, 126), k=2 * idempotency.MAX_ANSWER)))
    assert idempotency.once(session, settings, ASKED, lambda: Answer(200, noise)).answer.body == noise
    with pytest.raises(Conflict, match="carried out"):
        idempotency.once(session, settings, ASKED, lambda: Answer(200, noise))
    (row,) = stored(session)
    assert row.answer is None


def test_the_table_shows_neither_requests_nor_answers(session: Session, settings: Settings) -> None:
    asked = Asked("token:1", SECRET, SECRET)
    idempotency.once(session, settings, asked, lambda: Answer(200, SECRET, {"Location": SECRET}))
    (row,) = stored(session)
    assert SECRET not in f"{row.key_hash} {row.request_hash} {row.answer!r}"


def test_after_a_day_a_key_is_new_again_and_its_row_goes(
    engine: Engine, session: Session, settings: Settings, job: CronJob
) -> None:
    idempotency.once(session, settings, ASKED, trigger(session, job))
    session.execute(sa.update(CronIdempotencyKey).values(started_at=db.now(session) - idempotency.KEPT))
    session.commit()
    assert not idempotency.once(session, settings, ASKED, trigger(session, job)).replayed
    sessions = db.make_sessions(engine)
    assert retention.prune(sessions, settings)["keys"] == 0
    later = db.now(session) + idempotency.KEPT + timedelta(minutes=1)
    assert retention.prune(sessions, settings, later)["keys"] == 1
    assert stored(session) == []


def test_the_keys_of_one_caller_are_bounded(
    session: Session, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "MOST_A_DAY", 2)
    monkeypatch.setattr(
        throttle, "_window", lambda now, seconds: db.now(session).replace(microsecond=0, second=0, minute=0)
    )
    for number in range(2):
        idempotency.once(session, settings, Asked("token:1", str(number), ""), lambda: Answer(200))
    with pytest.raises(throttle.TooManyRequests):
        idempotency.once(session, settings, Asked("token:1", "3", ""), lambda: Answer(200))

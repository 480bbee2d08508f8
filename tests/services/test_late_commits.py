"""A row with a lower id can appear after one with a higher id was read: nobody may take the lower one for seen.

SQLite has one writer at a time, so there it cannot happen.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from kytecron.config import Settings
from kytecron.core.states import Outcome, Status
from kytecron.services import lifecycle, notify, recount, retention
from kytecron.services.audit import Actor
from kytecron.store import db, queries
from kytecron.store.dialects import WRITING
from kytecron.store.models import CronAudit, CronJob, CronJobExecution, CronOutbox
from tests.factories import add_job, add_worker, ago, claim_one, fresh, runs_of
from tests.servers import WebhookReceiver
from tests.workers import wait_for, working

ANNA = Actor("anna")


@pytest.fixture(
    params=[
        pytest.param("mariadb", marks=pytest.mark.mariadb),
        pytest.param("postgresql", marks=pytest.mark.postgresql),
    ]
)
def settings(request: pytest.FixtureRequest) -> Settings:
    """Of the databases on which two connections write at the same time."""
    chosen: Settings = request.getfixturevalue(f"{request.param}_settings")
    return chosen


@pytest.fixture
def slow(sessions: sessionmaker[Session]) -> Iterator[Session]:
    """A connection whose transaction stays open until the test commits it."""
    with sessions() as session:
        yield session


def lower_then_higher(slow: Session, session: Session, make: Any) -> tuple[Any, Any]:
    """Two rows: the first of them has the lower id and is not committed yet."""
    lower, higher = make("lower"), make("higher")
    slow.add(lower)
    slow.flush()
    session.add(higher)
    session.commit()
    assert lower.id < higher.id
    return lower, higher


def unlike(name: str) -> str:
    """No row that another test removed had this name: inserting it anew would wait for its neighbours."""
    return f"{name} {time.monotonic_ns()}"


def test_a_message_that_appears_after_a_later_one_was_sent_is_sent(
    slow: Session, session: Session, sessions: sessionmaker[Session]
) -> None:
    settings = Settings(allow_local_webhooks=True)
    with WebhookReceiver() as slack:
        jobs = [add_job(session, slack_webhook=slack.url, max_retries=0) for _ in range(2)]
        lifecycle.enqueue_due(session)
        runs = lifecycle.claim(session, "w", (), 2, 60)
        claims = {run.claim.job_id: run.claim for run in runs}
        failed = Outcome(Status.FAILED, error="ValueError: no rows")
        slow.info[WRITING] = True  # the transaction is this test's
        lifecycle.settle(slow, [(claims[jobs[0].id], failed)])
        slow.flush()
        lifecycle.settle(session, [(claims[jobs[1].id], failed)])
        assert notify.deliver(sessions, settings, "w") == 1
        slow.commit()
        assert notify.deliver(sessions, settings, "w") == 1
    sent = session.execute(sa.select(CronOutbox.cron_job, CronOutbox.status).order_by(CronOutbox.id)).all()
    assert sent == [(job.id, "sent") for job in jobs]


def test_an_old_row_that_appears_after_a_later_one_was_removed_is_removed(
    slow: Session, session: Session, sessions: sessionmaker[Session], settings: Settings
) -> None:
    def change(name: str) -> CronAudit:
        subject = {"subject_type": "job", "subject_id": name}
        return CronAudit(at=ago(session, days=500), actor="anna", action="update", **subject)

    lower_then_higher(slow, session, change)
    assert retention.prune(sessions, settings)["audit"] == 1
    slow.commit()
    assert retention.prune(sessions, settings)["audit"] == 1


def test_a_job_that_appears_after_a_recount_is_recounted(
    slow: Session, session: Session, sessions: sessionmaker[Session]
) -> None:
    def job(name: str) -> CronJob:
        return CronJob(name=unlike(name), schedule_type="manual", chains_counted=False)

    lower_then_higher(slow, session, job)
    assert recount.recount(sessions) == 1
    slow.commit()
    assert recount.recount(sessions) == 1


def test_a_slot_of_a_job_that_appears_after_others_were_served_is_served(
    slow: Session, session: Session
) -> None:
    slot = ago(session, seconds=1)

    def job(name: str) -> CronJob:
        times = {"interval_seconds": 3600, "schedule_anchor": slot, "next_run_time": slot}
        return CronJob(name=unlike(name), schedule_type="interval", **times)

    lower, higher = lower_then_higher(slow, session, job)
    assert lifecycle.enqueue_due(session) == 1
    slow.commit()
    assert lifecycle.enqueue_due(session) == 1
    assert [len(runs_of(session, one)) for one in (lower, higher)] == [1, 1]


def test_a_run_that_appears_after_later_ones_were_claimed_is_claimed(slow: Session, session: Session) -> None:
    jobs = [add_job(session) for _ in range(2)]
    ids = [job.id for job in jobs]
    slow.execute(sa.select(CronJob.id).where(CronJob.id == ids[0]).with_for_update())
    assert lifecycle.enqueue_due(session) == 1
    assert [run.claim.job_id for run in lifecycle.claim(session, "w", (), 9, 60)] == ids[1:]
    slow.rollback()
    assert lifecycle.enqueue_due(session) == 1
    assert [run.claim.job_id for run in lifecycle.claim(session, "w", (), 9, 60)] == ids[:1]


def test_a_list_goes_on_where_its_cursor_says_whatever_appears_before_it(
    slow: Session, session: Session
) -> None:
    def change(name: str) -> CronAudit:
        subject = {"subject_type": "job", "subject_id": name}
        return CronAudit(at=db.now(session), actor="anna", action="update", **subject)

    session.add_all([change("1"), change("2"), change("3")])
    session.commit()
    lower_then_higher(slow, session, change)
    first = queries.audit_log(session, limit=2)
    slow.commit()
    session.rollback()
    second = queries.audit_log(session, limit=2, cursor=first.next)
    names = [row.subject_id for row in first.items + second.items]
    assert names == ["higher", "3", "2", "1"]
    assert queries.audit_log(session, limit=2).items[1].subject_id == "lower"


def test_a_later_piece_of_a_log_is_never_there_without_the_earlier_one(
    slow: Session, session: Session
) -> None:
    job = add_job(session)
    lifecycle.enqueue_due(session)
    claim = claim_one(session)
    slow.execute(sa.select(CronJobExecution.id).with_for_update())

    def store(*seqs: int) -> set[int]:
        pieces = [(seq, f"piece {seq}\n", False) for seq in seqs]
        return lifecycle.append_output(session, [lifecycle.Progress(claim, pieces)]).busy

    (run,) = runs_of(session, job)
    assert store(0) == {run.id}
    slow.rollback()
    # What was not stored comes again together with what followed.
    assert store(0, 1) == set()
    first = queries.read_log(session, run.id)
    assert first.text == "piece 0\npiece 1\n"
    lifecycle.settle(session, [(claim, Outcome(Status.COMPLETED, output="end"))])
    second = queries.read_log(session, run.id, first.cursor)
    assert (second.text, second.finished) == ("end", True)


def test_runs_of_one_job_appear_in_the_order_of_their_ids(
    slow: Session, session: Session, sessions: sessionmaker[Session]
) -> None:
    job = add_job(session, schedule_type="manual", next_run_time=None, overlap_policy="allow")

    def trigger(session: Session) -> int:
        return lifecycle.trigger(session, job.id, actor=ANNA).id

    slow.info[WRITING] = True  # the transaction is this test's
    first = trigger(slow)
    with sessions() as other, ThreadPoolExecutor() as pool:
        later = pool.submit(trigger, other)
        # MariaDB looks no sooner than 0.1 s after the last question.
        wait_for(lambda: waiting_for_locks(session) or later.done(), "the other to wait", pause=0.2)
        assert not later.done()
        assert runs_of(session, job) == []
        slow.commit()
        assert first < later.result()
    assert [run.id for run in runs_of(session, job)] == [first, later.result()]


def waiting_for_locks(session: Session) -> int:
    session.rollback()
    waiting = {
        "mysql": "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'",
        "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'",
    }
    return int(session.scalar(sa.text(waiting[session.get_bind().dialect.name])) or 0)


@pytest.mark.slow
def test_a_job_that_was_being_created_when_a_worker_with_newer_time_zones_came_is_planned_anew(
    slow: Session, session: Session, settings: Settings
) -> None:
    add_worker(session, "older:1:a", tzdata="2019a", stopped_at=db.now(session))
    now = db.now(session)
    right = now.replace(hour=12, minute=0, second=0, microsecond=0) + timedelta(days=now.hour >= 12)

    def job(name: str) -> CronJob:
        """As a process plans it that has older time zones and knows of no newer ones."""
        times = {"time_of_day": "12:00", "timezone": "UTC", "next_run_time": right + timedelta(hours=1)}
        return CronJob(name=unlike(name), schedule_type="daily", **times)

    lower, higher = lower_then_higher(slow, session, job)
    with working(settings):
        wait_for(lambda: fresh(session, higher).next_run_time == right, "the higher id to be planned anew")
        slow.commit()
        late = session.get_one(CronJob, lower.id)
        wait_for(lambda: fresh(session, late).next_run_time == right, "the lower id to be planned anew")

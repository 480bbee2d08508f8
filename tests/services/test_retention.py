"""What is forgotten, and above all what is not."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session, sessionmaker

from kytecron.config import Settings
from kytecron.core.errors import Invalid
from kytecron.core.states import Status
from kytecron.engine.upkeep import Upkeep
from kytecron.services import accounts, audit, retention, throttle
from kytecron.services.audit import Actor
from kytecron.services.versions import CronVersionControl
from kytecron.store import db
from kytecron.store.models import (
    CronAudit,
    CronJob,
    CronJobExecution,
    CronJobOutput,
    CronOutbox,
    CronSession,
    CronThrottle,
    CronToken,
)
from tests.factories import add_job

ANNA = Actor("anna")
CODE = "class Job(CronJobBase):\n    def execute(self):\n        self.log({})\n"


@pytest.fixture
def now(session: Session) -> datetime:
    moment = db.now(session)
    session.rollback()
    return moment


def add_runs(session: Session, job: CronJob, now: datetime, *runs: tuple[float, Status]) -> list[int]:
    """Executions, each given as its age in days and its status; each with a piece of output."""
    rows = []
    for number, (days, status) in enumerate(runs):
        at = now - timedelta(days=days)
        ended = None if status in (Status.PENDING, Status.RUNNING) else at
        rows.append(
            CronJobExecution(
                cron_job=job.id,
                scheduled_time=at + timedelta(microseconds=number),
                status=status,
                completed_at=ended,
            )
        )
    session.add_all(rows)
    session.flush()
    session.add_all(CronJobOutput(execution=row.id, seq=0, text="x") for row in rows)
    session.commit()
    return [row.id for row in rows]


def left(session: Session, column: Any = CronJobExecution.id) -> list[Any]:
    session.rollback()
    return list(session.scalars(sa.select(column).order_by(column)))


def test_old_runs_go_with_their_output_and_the_last_success_and_failure_stay(
    session: Session, sessions: sessionmaker[Session], settings: Settings, now: datetime
) -> None:
    job = add_job(session)
    ids = add_runs(
        session,
        job,
        now,
        (200, Status.COMPLETED),
        (199, Status.COMPLETED),  # the last success
        (198, Status.FAILED),
        (197, Status.TIMEOUT),  # the last failure
        (196, Status.PENDING),
        (195, Status.RUNNING),
        (194, Status.SKIPPED),
        (193, Status.CANCELLED),  # the job's last run, which its page shows
        (91, Status.SKIPPED),
        (89, Status.SKIPPED),
    )
    session.execute(sa.update(CronJob).values(last_execution=ids[7]))
    session.commit()
    counts = retention.prune(sessions, settings, now)
    assert counts["executions"] == 4
    kept = [ids[number] for number in (1, 3, 4, 5, 7, 9)]
    assert left(session) == kept
    assert left(session, CronJobOutput.execution) == kept
    assert retention.prune(sessions, settings, now)["executions"] == 0


def test_a_busy_job_keeps_its_newest_runs_and_the_others_keep_theirs(
    session: Session, sessions: sessionmaker[Session], settings: Settings, now: datetime
) -> None:
    busy, calm = add_job(session), add_job(session)
    kept = add_runs(session, calm, now, *[(2, Status.COMPLETED)] * 3)
    (failed,) = add_runs(session, busy, now, (2, Status.FAILED))
    ids = add_runs(session, busy, now, *[(1, Status.COMPLETED)] * 25)
    # Smaller batches than there is to remove, so that it takes several.
    counts = retention.prune(sessions, replace(settings, retention_per_job=10), now, batch=4)
    assert counts["executions"] == 15
    assert left(session) == [*kept, failed, *ids[15:]]


def test_many_runs_that_have_not_ended_do_not_hide_the_old_ones_behind_them(
    session: Session, sessions: sessionmaker[Session], settings: Settings, now: datetime
) -> None:
    job = add_job(session)
    active = add_runs(session, job, now, *[(200, Status.PENDING)] * 20)
    ids = add_runs(session, job, now, *[(150, Status.SKIPPED)] * 7, (1, Status.COMPLETED))
    assert retention.prune(sessions, settings, now, batch=3)["executions"] == 7
    assert left(session) == [*active, ids[-1]]


def test_one_call_ends_however_much_there_is_and_the_next_goes_on(
    session: Session,
    sessions: sessionmaker[Session],
    settings: Settings,
    now: datetime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retention, "MAX_BATCHES", 2)
    for job in (add_job(session), add_job(session)):
        add_runs(session, job, now, *[(100, Status.SKIPPED)] * 10)
    counts = [retention.prune(sessions, settings, now, batch=4)["executions"] for _ in range(4)]
    assert sum(counts) == 20
    assert max(counts) < 8 + 4  # the last batch may be a whole one


def test_one_call_sees_to_every_job_however_many_there_are_with_little_to_remove(
    session: Session,
    sessions: sessionmaker[Session],
    settings: Settings,
    now: datetime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retention, "MAX_BATCHES", 2)
    for _ in range(7):
        add_runs(session, add_job(session), now, (100, Status.SKIPPED))
    assert retention.prune(sessions, settings, now, batch=4)["executions"] == 7


def test_a_worker_goes_on_cleaning_until_nothing_old_is_left(
    session: Session, engine: Engine, settings: Settings, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MAX_BATCHES", 2)
    monkeypatch.setattr(retention, "BATCH", 4)
    add_runs(session, add_job(session), now, *[(100, Status.SKIPPED)] * 20)
    upkeep = Upkeep(engine, settings, "w")
    more = [upkeep.clean() for _ in range(4)]
    assert more == [True, True, False, False]
    assert left(session) == []


def add_message(session: Session, now: datetime, number: int, **fields: Any) -> int:
    values: dict[str, Any] = {
        "cause": f"cause {number}",
        "kind": "failure",
        "channel": "slack",
        "target": "https://hooks.example/x",
        "payload": {},
        "status": "sent",
        "due_time": now - timedelta(days=31),
        "created_at": now - timedelta(days=31),
    }
    row = CronOutbox(**(values | fields))
    session.add(row)
    session.commit()
    return row.id


def test_messages_go_a_month_after_they_were_sent_or_given_up(
    session: Session, sessions: sessionmaker[Session], settings: Settings, now: datetime
) -> None:
    failing = add_job(session, failing_since=now - timedelta(days=40))
    add_message(session, now, 1)
    add_message(session, now, 2, status="dead")
    kept = [
        add_message(session, now, 3, due_time=now - timedelta(days=29)),
        add_message(session, now, 4, status="pending"),
        add_message(session, now, 5, status="sending"),
        # Without it nobody would be told that the job works again.
        add_message(session, now, 6, cron_job=failing.id),
    ]
    assert retention.prune(sessions, settings, now)["messages"] == 2
    assert left(session, CronOutbox.id) == kept


def test_audit_rows_sessions_links_and_throttles_go_when_they_serve_nobody(
    session: Session, sessions: sessionmaker[Session], settings: Settings, now: datetime
) -> None:
    user = accounts.create_user(session, "ada", None, "admin", ANNA)
    link = accounts.create_sign_in_link(session, ANNA)
    token = accounts.use_sign_in_link(session, link, "", "", settings)
    accounts.create_token(session, "deploy", "viewer", 1, ANNA)
    throttle.allow(session, "x", 5, 60)
    audit_rows = len(left(session, CronAudit.id))
    assert set(retention.prune(sessions, settings, now).values()) == {0}

    later = retention.prune(sessions, settings, now + timedelta(days=2))
    assert {kind: count for kind, count in later.items() if count} == {
        "sessions": 1,
        "links": 1,
        "throttles": 1,
    }
    assert accounts.session_user(session, token, settings, now + timedelta(days=2)) is None
    # An API token stays to be seen: who made it, what it could do, when it was used last.
    assert left(session, CronToken.kind) == ["api"]
    assert left(session, CronSession.token_hash) == left(session, CronThrottle.key) == []

    assert retention.prune(sessions, settings, now + timedelta(days=399))["audit"] == 0
    assert retention.prune(sessions, settings, now + timedelta(days=401))["audit"] == audit_rows
    assert accounts.get_user(session, user.id).username == "ada"


def test_versions_beyond_the_newest_go_and_deleted_jobs_do_not_get_in_the_way(
    session: Session, sessions: sessionmaker[Session], settings: Settings, now: datetime
) -> None:
    jobs = [add_job(session) for _ in range(2)]
    versions = CronVersionControl(session, ANNA)
    for job in jobs:
        for number in range(4):
            versions.create_version(job.id, CODE.format(number))
    session.execute(
        sa.update(CronJob).where(CronJob.id == jobs[0].id).values(deleted_at=now, deleted_id=jobs[0].id)
    )
    session.commit()
    assert retention.prune(sessions, replace(settings, retention_versions=2), now)["versions"] == 2
    session.rollback()
    assert [row.version_number for row in versions.history(jobs[1].id)] == [4, 3]
    rows = session.scalars(sa.select(CronAudit).where(CronAudit.action == "prune_versions")).all()
    assert [row.actor for row in rows] == [audit.WORKER.name]


@pytest.mark.parametrize(
    "name", ["retention_days", "retention_per_job", "retention_versions", "session_hours"]
)
def test_keeping_nothing_is_refused_at_the_start(name: str) -> None:
    with pytest.raises(Invalid, match=f"{name.upper()} must be more than 0"):
        Settings.load({name: 0})


def test_chains_stay_or_go_as_a_whole(
    session: Session, sessions: sessionmaker[Session], settings: Settings, now: datetime
) -> None:
    job = add_job(session)

    def add_chain(*attempts: tuple[float, Status]) -> list[int]:
        ids = add_runs(session, job, now, *attempts)
        slot = now - timedelta(days=attempts[0][0])
        for number, run in enumerate(ids):
            of_chain = sa.update(CronJobExecution).where(CronJobExecution.id == run)
            session.execute(of_chain.values(scheduled_time=slot, retry_count=number))
        session.commit()
        return ids

    failed = Status.FAILED
    add_chain((210, failed), (209, failed))
    last_failure = add_chain((200, failed), (199, Status.TIMEOUT), (198, failed))
    add_chain((190, Status.COMPLETED))
    last_success = add_chain((180, failed), (179, Status.COMPLETED))  # no failure: a retry repaired it
    cancelled = add_chain((150, failed), (149, Status.CANCELLED))
    waiting = add_chain((140, failed), (139, failed), (0, Status.PENDING))
    half_old = add_chain((92, failed), (91, failed), (89, Status.CANCELLED))
    session.execute(sa.update(CronJob).values(last_execution=cancelled[-1]))
    session.commit()
    assert retention.prune(sessions, settings, now, batch=4)["executions"] == 3
    assert left(session) == [*last_failure, *last_success, *cancelled, *waiting, *half_old]
    assert retention.prune(sessions, settings, now)["executions"] == 0
    # Three days later the whole chain is old.
    assert retention.prune(sessions, settings, now + timedelta(days=3))["executions"] == 3

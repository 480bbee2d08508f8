"""What is told, to whom, exactly once; and channels that are slow, dead or hostile."""

from __future__ import annotations

import email
import email.policy
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy.orm import Session, sessionmaker

from kytecron.config import Settings
from kytecron.core.states import Outcome, Status
from kytecron.services import deadletters, lifecycle, notify, webhook
from kytecron.services.audit import Actor
from kytecron.services.jobs import CronJobManager
from kytecron.services.notify import SettledEvent, messages
from kytecron.store import db
from kytecron.store.models import CronJob, CronOutbox
from tests.factories import LEASE, WORKER, add_job, claim_one, runs_of
from tests.mariadb import free_port
from tests.rawsql import typed
from tests.servers import Answer, MailServer, WebhookReceiver

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
LOCAL = Settings(allow_local_webhooks=True, smtp_starttls=False, public_url="https://cron.example/")
STRICT = Settings()
ANNA = Actor("anna")
FAILED = Outcome(Status.FAILED, error="ValueError: no rows")
COMPLETED = Outcome(Status.COMPLETED)


def job(**fields: Any) -> Any:
    """A job's row, as far as messages are concerned."""
    values = {
        "id": 5,
        "name": "Nightly report",
        "max_retries": 3,
        "notify_on_failure": True,
        "notify_after_failures": 1,
        "notify_on_dead_letter": True,
        "notify_on_recovery": True,
        "slack_webhook": "https://hooks.example/x",
        "notification_email": None,
        "failing_since": None,
    }
    return SimpleNamespace(**(values | fields))


def failure(row: Any, **fields: Any) -> SettledEvent:
    values: dict[str, Any] = {
        "job": row,
        "execution_id": 17,
        "status": Status.FAILED,
        "error": "ValueError: no rows",
        "attempt": 0,
        "version": 3,
        "consecutive_failures": 1,
        "dead_letter_reason": None,
        "recovered_after": None,
        "ended_at": NOON,
        "output_tail": "line 1\nline 2",
    }
    return SettledEvent(**(values | fields))


def success(row: Any, after: timedelta | None) -> SettledEvent:
    return failure(row, status=Status.COMPLETED, error=None, consecutive_failures=0, recovered_after=after)


def kinds(event: SettledEvent, *, told: bool = False) -> list[str]:
    return [message.kind for message in messages(event, told=told)]


# -- the rules -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [Status.FAILED, Status.TIMEOUT, Status.LOST])
def test_the_nth_failure_in_a_row_is_told_and_the_ones_around_it_are_not(status: Status) -> None:
    row = job(notify_after_failures=3)
    known, seen = False, []
    for number in range(1, 6):
        found = kinds(failure(row, status=status, consecutive_failures=number), told=known)
        seen.append(found)
        known = known or bool(found)
    assert seen == [[], [], ["failure"], [], []]


def test_a_number_lowered_while_failing_counts_at_once() -> None:
    assert kinds(failure(job(notify_after_failures=2), consecutive_failures=7)) == ["failure"]


def test_a_job_that_asks_for_no_messages_gets_none() -> None:
    quiet = job(notify_on_failure=False, notify_on_dead_letter=False, notify_on_recovery=False)
    assert kinds(failure(quiet, dead_letter_reason="failed 4 times")) == []
    assert kinds(success(quiet, timedelta(hours=1)), told=True) == []


def test_the_dead_letter_queue_takes_the_place_of_a_failure_on_the_same_ending() -> None:
    assert kinds(failure(job(), dead_letter_reason="failed 4 times")) == ["dead_letter"]
    assert kinds(failure(job(), dead_letter_reason="failed 4 times"), told=True) == ["dead_letter"]
    assert kinds(failure(job(notify_on_dead_letter=False), dead_letter_reason="failed 4 times")) == [
        "failure"
    ]


def test_recovery_is_told_only_to_who_was_told_of_the_failure() -> None:
    assert kinds(success(job(), timedelta(hours=1)), told=True) == ["recovery"]
    assert kinds(success(job(), timedelta(hours=1)), told=False) == []
    assert kinds(success(job(), None), told=True) == []


@pytest.mark.parametrize("status", [Status.CANCELLED, Status.SKIPPED])
def test_what_was_called_off_is_not_news(status: Status) -> None:
    assert kinds(failure(job(), status=status)) == []


# -- the outbox ------------------------------------------------------------------------------------------------


def run(session: Session, row: CronJob, *outcomes: Outcome) -> None:
    """Trigger the job and let its attempts end like this."""
    lifecycle.trigger(session, row.id, actor=ANNA)
    for outcome in outcomes:
        session.rollback()
        lifecycle.settle(session, [(claim_one(session), outcome)])


def outbox(session: Session) -> list[CronOutbox]:
    session.rollback()
    query = sa.select(CronOutbox).order_by(CronOutbox.id).execution_options(populate_existing=True)
    return list(session.scalars(query))


def told(session: Session) -> list[tuple[str, str]]:
    return [(message.kind, message.channel) for message in outbox(session)]


def resting(session: Session, **fields: Any) -> CronJob:
    """A job that runs when it is asked to, with one channel."""
    values: dict[str, Any] = {"retry_strategy": "immediate", "notification_email": "a@example.org"}
    return add_job(session, schedule_type="manual", next_run_time=None, **(values | fields))


def test_a_failure_that_a_retry_repairs_tells_nobody(session: Session) -> None:
    row = resting(session)
    run(session, row, FAILED, FAILED, COMPLETED)
    assert told(session) == []


def test_a_success_after_a_dead_letter_and_its_recovery_says_how_long_the_job_was_down(
    session: Session,
) -> None:
    row = resting(session, max_retries=0, slack_webhook="https://hooks.example/x")
    run(session, row, FAILED)
    deadletters.recover(session, row.id, ANNA)
    run(session, row, FAILED)
    deadletters.recover(session, row.id, ANNA)
    run(session, row, COMPLETED)
    run(session, row, COMPLETED)
    kinds_told = ["dead_letter", "dead_letter", "recovery"]
    assert told(session) == [(kind, to) for kind in kinds_told for to in ("slack", "email")]
    first, last = outbox(session)[0], outbox(session)[-1]
    assert last.payload["down_seconds"] == (last.created_at - first.created_at).total_seconds()


def test_nobody_who_was_told_of_no_failure_is_told_that_it_works_again(session: Session) -> None:
    row = resting(session, max_retries=0, notify_on_dead_letter=False, notify_after_failures=3)
    for _ in range(2):
        run(session, row, FAILED)
        deadletters.recover(session, row.id, ANNA)
    run(session, row, COMPLETED)
    assert told(session) == []


def fail_while_disabled(session: Session, row: CronJob, outcome: Outcome = FAILED) -> None:
    """A slot that fails for good without a dead letter: nobody wants its retries."""
    lifecycle.trigger(session, row.id, actor=ANNA)
    session.rollback()
    claim = claim_one(session)
    CronJobManager(session, ANNA).disable(row.id)
    lifecycle.settle(session, [(claim, outcome)])
    CronJobManager(session, ANNA).enable(row.id)


def cancel(session: Session, row: CronJob) -> None:
    """Cancel the newest run of a job, which may be running."""
    newest = runs_of(session, row)[-1]
    lifecycle.cancel(session, newest.id, ANNA)


def test_a_failure_is_over_with_the_next_success_whatever_was_called_off_between(session: Session) -> None:
    row = resting(session)
    fail_while_disabled(session, row)
    lifecycle.trigger(session, row.id, actor=ANNA)
    cancel(session, row)  # while it is pending
    run(session, row, Outcome(Status.CANCELLED, error="no need"))
    run(session, row, Outcome(Status.SKIPPED, skipped_reason="nothing new"))
    run(session, row, FAILED)
    cancel(session, row)  # its retry: this chain counts as nothing
    assert told(session) == [("failure", "email")]
    run(session, row, FAILED, COMPLETED)
    assert told(session) == [("failure", "email"), ("recovery", "email")]
    first, last = outbox(session)
    assert last.payload["down_seconds"] == (last.created_at - first.created_at).total_seconds()


def test_a_threshold_counts_slots_and_not_their_retries(session: Session) -> None:
    row = resting(session, max_retries=2, notify_after_failures=3, notify_on_dead_letter=False)
    run(session, row, FAILED, FAILED, FAILED)
    assert told(session) == []
    deadletters.recover(session, row.id, ANNA)
    run(session, row, FAILED, FAILED, COMPLETED)
    assert told(session) == []
    for slot in (1, 2, 3, 4):
        fail_while_disabled(session, row)
        assert told(session) == [("failure", "email")] * (slot >= 3)
    assert outbox(session)[0].payload["failures"] == 3
    run(session, row, FAILED, FAILED, COMPLETED)
    assert [kind for kind, _ in told(session)] == ["failure", "recovery"]


def test_chains_that_overlap_reach_the_threshold_although_the_first_fills_the_dead_letter_queue(
    session: Session,
) -> None:
    row = resting(
        session, max_retries=0, notify_after_failures=3, notify_on_dead_letter=False, overlap_policy="allow"
    )
    for _ in range(4):
        lifecycle.trigger(session, row.id, actor=ANNA)
    session.rollback()
    claims = [run.claim for run in lifecycle.claim(session, WORKER, (), 4, LEASE)]
    for number, claim in enumerate(claims, start=1):
        lifecycle.settle(session, [(claim, FAILED)])
        assert [kind for kind, _ in told(session)] == ["failure"] * (number >= 3)
    assert outbox(session)[0].payload["failures"] == 3
    deadletters.recover(session, row.id, ANNA)
    run(session, row, COMPLETED)
    assert [kind for kind, _ in told(session)] == ["failure", "recovery"]


def test_a_dead_letter_is_told_however_many_failures_a_message_waits_for(session: Session) -> None:
    row = resting(session, max_retries=1, notify_after_failures=5)
    run(session, row, FAILED, FAILED)
    assert [kind for kind, _ in told(session)] == ["dead_letter"]


def test_who_wants_no_failures_is_told_of_the_recovery_from_a_dead_letter_alone(session: Session) -> None:
    row = resting(session, max_retries=1, notify_on_failure=False)
    fail_while_disabled(session, row)
    run(session, row, COMPLETED)
    assert told(session) == []
    run(session, row, FAILED, FAILED)
    deadletters.recover(session, row.id, ANNA)
    run(session, row, FAILED, COMPLETED)
    assert [kind for kind, _ in told(session)] == ["dead_letter", "recovery"]


def test_a_job_that_was_disabled_since_its_failure_works_again_with_its_next_success(
    session: Session,
) -> None:
    row = resting(session, max_retries=0)
    run(session, row, FAILED)
    deadletters.recover(session, row.id, ANNA)
    CronJobManager(session, ANNA).disable(row.id, "holiday")
    CronJobManager(session, ANNA).enable(row.id)
    run(session, row, COMPLETED)
    assert [kind for kind, _ in told(session)] == ["dead_letter", "recovery"]


def test_a_job_that_fails_again_after_its_recovery_was_down_all_the_time(session: Session) -> None:
    row = resting(session, max_retries=1)
    run(session, row, FAILED, FAILED)
    deadletters.recover(session, row.id, ANNA)
    fail_while_disabled(session, row)  # told already
    run(session, row, FAILED, FAILED)
    deadletters.recover(session, row.id, ANNA)
    run(session, row, FAILED, COMPLETED)
    assert [kind for kind, _ in told(session)] == ["dead_letter", "dead_letter", "recovery"]
    first, _, last = outbox(session)
    assert last.payload["down_seconds"] == (last.created_at - first.created_at).total_seconds()
    # What comes later is a row of failures of its own.
    run(session, row, FAILED, FAILED)
    deadletters.recover(session, row.id, ANNA)
    run(session, row, COMPLETED)
    assert [kind for kind, _ in told(session)][3:] == ["dead_letter", "recovery"]


def test_a_shutdown_of_workers_tells_nobody(session: Session) -> None:
    row = resting(session)
    interrupted = Outcome(Status.LOST, error="the worker was shut down", interrupted=True)
    fail_while_disabled(session, row, interrupted)
    run(session, row, interrupted, COMPLETED)
    assert told(session) == []


def test_a_cause_that_was_told_before_does_not_undo_the_ending(session: Session) -> None:
    for _ in range(2):
        db.transactional(notify.on_settled)(session, failure(job()))
    assert len(outbox(session)) == 1


def test_a_job_without_channels_writes_nothing(session: Session) -> None:
    db.transactional(notify.on_settled)(session, failure(job(slack_webhook="  ", notification_email=None)))
    assert outbox(session) == []


def test_whatever_a_job_printed_can_be_stored_and_sent(session: Session) -> None:
    wild = "\x1b[31mred\x1b[0m \x00 \ud800 \u202e\r\n🙂 \x85"
    event = failure(job(name="a\nb"), error=wild, output_tail=wild)
    db.transactional(notify.on_settled)(session, event)
    (row,) = outbox(session)
    assert (row.payload["job"], row.payload["error"]) == ("a b", "red ? 🙂")


# -- delivery ----------------------------------------------------------------------------------------------------


def put(session: Session, channel: str, target: str, number: int = 1, **fields: Any) -> CronOutbox:
    """A due message in the outbox."""
    (message,) = messages(failure(job(), execution_id=number))
    now = db.now(session)
    values: dict[str, Any] = {
        "cause": message.cause,
        "kind": message.kind,
        "channel": channel,
        "target": target,
        "payload": message.facts,
        "due_time": now - timedelta(seconds=1),
        "created_at": now,
    }
    row = CronOutbox(**(values | fields))
    session.add(row)
    session.commit()
    return row


def make_due(session: Session) -> None:
    session.execute(sa.update(CronOutbox).values(due_time=db.now(session) - timedelta(seconds=1)))
    session.commit()


def state(session: Session, row: CronOutbox) -> tuple[str, int, str | None]:
    session.rollback()
    session.refresh(row)
    return row.status, row.attempts, row.last_error


@pytest.fixture
def deliver(sessions: sessionmaker[Session]) -> Callable[..., int]:
    def run(settings: Settings = LOCAL, worker: str = "w1", limit: int = 20) -> int:
        return notify.deliver(sessions, settings, worker, limit)

    return run


def test_a_message_reaches_its_webhook_once(session: Session, deliver: Callable[..., int]) -> None:
    with WebhookReceiver() as slack:
        row = put(session, "slack", slack.url)
        assert deliver() == 1
        assert deliver() == 0
    assert state(session, row) == ("sent", 1, None)
    assert row.sent_at is not None
    (body,) = slack.received
    assert "Nightly report failed" in body["text"]
    assert "<https://cron.example/executions/1|Open in kytecron>" in body["text"]
    assert body["blocks"][1]["text"]["text"] == "```line 1\nline 2```"
    assert slack.headers[0]["Host"] == f"127.0.0.1:{slack.port}"


def test_a_failing_webhook_is_tried_again_later_each_time_and_then_given_up(
    session: Session, deliver: Callable[..., int]
) -> None:
    waits = []
    with WebhookReceiver(*[Answer(500, body=b"internal\nerror")] * 10) as slack:
        row = put(session, "slack", slack.url)
        for attempt in range(1, notify.MAX_TRIES):
            before = db.now(session)
            assert deliver() == 1
            assert deliver() == 0  # not before its time
            status, attempts, error = state(session, row)
            assert (status, attempts) == ("pending", attempt)
            assert error == "127.0.0.1 answered 500 internal error"
            waits.append(round((row.due_time - before).total_seconds()))
            make_due(session)
        deliver()
    assert waits == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]
    assert state(session, row)[:2] == ("dead", 10)


def test_a_webhook_that_comes_back_gets_its_message(session: Session, deliver: Callable[..., int]) -> None:
    with WebhookReceiver(Answer(500)) as slack:
        row = put(session, "slack", slack.url)
        deliver()
        make_due(session)
        deliver()
    assert state(session, row) == ("sent", 2, None)
    assert len(slack.received) == 2


@pytest.mark.parametrize("status", [400, 403, 404, 410])
def test_a_webhook_that_will_never_take_it_is_not_asked_again(
    session: Session, deliver: Callable[..., int], status: int
) -> None:
    with WebhookReceiver(Answer(status, body=b"no_service")) as slack:
        row = put(session, "slack", slack.url)
        deliver()
    assert state(session, row) == ("dead", 1, f"127.0.0.1 answered {status} no_service")


def test_a_webhook_says_itself_when_to_come_back(session: Session, deliver: Callable[..., int]) -> None:
    with WebhookReceiver(Answer(429, {"Retry-After": "600"})) as slack:
        row, other = (put(session, "slack", slack.url, number) for number in (1, 2))
        before = db.now(session)
        deliver()
    for message, tries in ((row, 1), (other, 0)):
        assert state(session, message)[:2] == ("pending", tries)
        assert timedelta(seconds=599) < message.due_time - before < timedelta(seconds=660)


def test_a_dead_channel_delays_no_other_and_is_tried_once_not_once_for_each_message(
    session: Session, deliver: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        webhook, "MAX_SECONDS", 5.0
    )  # the living one must answer in time, however busy the machine
    with socket.create_server(("127.0.0.1", 0)) as silent, WebhookReceiver() as slack, MailServer() as mail:
        dead = [
            put(session, "slack", f"http://127.0.0.1:{silent.getsockname()[1]}/", n) for n in range(1, 51)
        ]
        alive = [put(session, "slack", slack.url, 51), put(session, "email", "a@example.org", 52)]
        settings = replace(LOCAL, smtp_host="127.0.0.1", smtp_port=mail.port)
        assert deliver(settings) == 3
        assert [state(session, row)[0] for row in alive] == ["sent", "sent"]
        assert deliver(settings) == 0
    assert state(session, dead[0]) == ("pending", 1, "no complete answer from 127.0.0.1 within 5 s")
    assert {state(session, row)[:2] for row in dead[1:]} == {("pending", 0)}


def test_two_workers_send_each_message_once(
    session: Session, sessions: sessionmaker[Session], deliver: Callable[..., int]
) -> None:
    with WebhookReceiver() as slack:
        rows = [put(session, "slack", f"{slack.url}/{number}", number) for number in range(30)]
        barrier = threading.Barrier(4)

        def work(name: str) -> None:
            barrier.wait(10)
            while deliver(LOCAL, name, 5):
                pass

        threads = [threading.Thread(target=work, args=(f"w{number}",)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        # A worker that lost every race of a round stops early; what is left is for the next round.
        while deliver():
            pass
    assert sorted(slack.paths) == sorted(f"/hook/{number}" for number in range(30))
    assert {state(session, row)[:2] for row in rows} == {("sent", 1)}


def test_a_message_that_a_dead_worker_held_is_taken_after_five_minutes(
    session: Session, deliver: Callable[..., int]
) -> None:
    now = db.now(session)
    with WebhookReceiver() as slack:
        held = {"status": "sending", "locked_by": "dead", "attempts": 1}
        row = put(session, "slack", slack.url, due_time=now + timedelta(minutes=4), **held)
        assert deliver() == 0
        make_due(session)
        assert deliver() == 1
    assert state(session, row) == ("sent", 2, None)


def test_a_worker_that_comes_too_late_changes_nothing(
    session: Session, sessions: sessionmaker[Session]
) -> None:
    with WebhookReceiver() as slack:
        row = put(session, "slack", slack.url)
        (late,) = notify._claim(session, "late", 20)
        make_due(session)
        notify.deliver(sessions, LOCAL, "w1")
        notify._note(session, late, "late", webhook.DeliveryFailed("late"))
    assert state(session, row) == ("sent", 2, None)


def test_rows_that_make_no_sense_fail_alone(session: Session, deliver: Callable[..., int]) -> None:
    with WebhookReceiver() as slack:
        good = put(session, "slack", slack.url, 1)
        empty = put(session, "slack", slack.url + "/2", 2, payload={})
        strange = put(session, "pigeon", "north", 3)
        nowhere = put(session, "email", " , ", 4)
        assert deliver(replace(LOCAL, smtp_host="127.0.0.1")) == 4
    assert state(session, good)[0] == "sent"
    assert state(session, empty)[0] == "pending"
    assert state(session, strange) == ("dead", 1, "unknown channel 'pigeon'")
    assert state(session, nowhere) == ("dead", 1, "no e-mail address")


def test_a_payload_that_is_no_json_fails_alone(
    sqlite_settings: Settings,
) -> None:
    sessions = db.make_sessions(db.make_engine(sqlite_settings))
    with sessions() as session, WebhookReceiver() as slack:
        bad, good = put(session, "slack", slack.url + "/1", 1), put(session, "slack", slack.url + "/2", 2)
        session.execute(typed(session, "UPDATE CronOutbox SET payload = '{' WHERE id = :id"), {"id": bad.id})
        session.commit()
        assert notify.deliver(sessions, LOCAL, "w1") == 2
        statuses = session.execute(typed(session, "SELECT id, status FROM CronOutbox")).all()
    assert dict(tuple(row) for row in statuses) == {bad.id: "pending", good.id: "sent"}


# -- webhooks that are not what they seem ------------------------------------------------------------------------


def post(url: str, settings: Settings = LOCAL) -> webhook.DeliveryFailed:
    with pytest.raises(webhook.DeliveryFailed) as failed:
        webhook.post_json(url, {"text": "hi"}, settings)
    return failed.value


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_refused_and_not_followed(status: int) -> None:
    with WebhookReceiver() as inside, WebhookReceiver(Answer(status, {"Location": inside.url})) as outside:
        failed = post(outside.url)
    assert failed.permanent
    assert str(failed) == f"127.0.0.1 answered {status}: redirects are not followed"
    assert inside.paths == []


def test_a_server_that_sends_a_byte_now_and_then_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "MAX_SECONDS", 0.5)
    with WebhookReceiver(Answer(200, drip_seconds=0.02)) as slow:
        began = time.monotonic()
        failed = post(slow.url)
        assert time.monotonic() - began < 20
    assert (failed.permanent, str(failed)) == (False, "no complete answer from 127.0.0.1 within 0.5 s")


def test_an_answer_without_end_is_cut_off() -> None:
    endless = {f"X-{number}": "x" * 60_000 for number in range(3)}
    with WebhookReceiver(Answer(200, endless)) as server:
        assert str(post(server.url)) == "the answer was longer than 64 KB"


def test_what_is_no_http_at_all_is_a_failure_like_others() -> None:
    with MailServer() as mail:
        assert "no answer from 127.0.0.1" in str(post(f"http://127.0.0.1:{mail.port}/"))
    assert "no answer from 127.0.0.1" in str(post(f"http://127.0.0.1:{free_port()}/"))


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example/x",
        "https://",
        "hooks.example/x",
        "ftp://hooks.example/x",
        "file:///etc/passwd",
        "https://user:secret@hooks.example/x",
        "https://hooks.example:99999/x",
        "https://[::1/x",
        "https://hooks.example/a b",
        "https://hooks.example/x\r\nHost: other",
        "https://hööks.example/",
        "https://hooks.example/" + "x" * 500,
        "https://localhost/",
        "https://a.localhost/",
        "https://127.0.0.1/",
        "https://10.1.2.3/",
        "https://172.16.0.1/",
        "https://192.168.1.1/",
        "https://169.254.169.254/latest/meta-data",
        "https://100.64.0.1/",
        "https://0.0.0.0/",
        "https://224.0.0.1/",
        "https://240.0.0.1/",
        "https://255.255.255.255/",
        "https://[::]/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://[::127.0.0.1]/",
        "https://[fe80::1]/",
        "https://[fe80::1%25eth0]/",
        "https://[fec0::1]/",
        "https://[fd00::1]/",
        "https://[ff02::1]/",
        "https://[64:ff9b::10.0.0.1]/",
        "https://[64:ff9b:1::1]/",
        "https://[2002:a00:1::1]/",
        "https://[2001:0:1::1]/",
    ],
)
def test_an_address_that_leads_inside_is_refused_when_it_is_saved(url: str) -> None:
    with pytest.raises(ValueError):
        notify.validate_webhook_url(url, STRICT)


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.slack.com/services/T0/B0/x",
        "https://chat.example:8443/hooks/x?y=1",
        "https://8.8.8.8/",
        "https://[2606:4700::1111]/",
        "https://[64:ff9b::8.8.8.8]/",
    ],
)
def test_a_public_https_address_is_accepted(url: str) -> None:
    notify.validate_webhook_url(url, STRICT)


def test_local_webhooks_are_this_machine_and_nothing_else() -> None:
    for url in ("http://127.0.0.1:8000/", "http://localhost:8000/", "http://[::1]/", "https://127.0.0.1/"):
        notify.validate_webhook_url(url, LOCAL)
    for url in ("http://10.0.0.1/", "https://10.0.0.1/", "http://8.8.8.8/", "http://hooks.example/"):
        with pytest.raises(ValueError):
            notify.validate_webhook_url(url, LOCAL)


def names_lead_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Let every name resolve to these; returns the names that were asked for."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def answer(host: str, port: int, *arguments: Any, **options: Any) -> list[Any]:
        if host.replace(".", "").replace(":", "").isalnum() and host[0].isdigit():
            return real(host, port, *arguments, **options)
        asked.append(host)
        family = {True: socket.AF_INET6, False: socket.AF_INET}
        return [(family[":" in address], socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(webhook.socket, "getaddrinfo", answer)
    return asked


@pytest.mark.parametrize(
    "addresses",
    [
        ["10.0.0.1"],
        ["127.0.0.1"],
        ["169.254.169.254"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::a00:1"],
        ["8.8.8.8", "192.168.0.1"],  # one good address does not excuse a bad one
    ],
)
def test_a_name_that_leads_inside_is_refused_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str]
) -> None:
    names_lead_to(monkeypatch, *addresses)
    monkeypatch.setattr(webhook.socket, "create_connection", lambda *_, **__: pytest.fail("connected"))
    failed = post("https://innocent.example/", STRICT)
    assert failed.permanent
    assert "is not a public address" in str(failed)


def test_numbers_that_mean_an_address_are_resolved_and_refused() -> None:
    for host in ("2130706433", "0x7f000001", "127.1", "0177.0.0.1"):
        failed = post(f"https://{host}/", STRICT)
        assert failed.permanent, host


def test_a_name_that_cannot_be_looked_up_is_worth_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: Any, **__: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(webhook.socket, "getaddrinfo", nobody)
    failed = post("https://gone.example/", STRICT)
    assert not failed.permanent
    assert "could not be looked up" in str(failed)


def test_a_look_up_that_hangs_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "MAX_SECONDS", 0.2)
    monkeypatch.setattr(webhook.socket, "getaddrinfo", lambda *_, **__: time.sleep(30) or [])
    began = time.monotonic()
    assert "in time" in str(post("https://slow.example/", STRICT))
    assert time.monotonic() - began < 20


@pytest.fixture
def certified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's TLS with a certificate for hooks.example, which webhooks trust for this test."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hooks.example")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("hooks.example")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "hooks.pem"
    pem.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    trusting = ssl.create_default_context(cafile=str(pem))
    monkeypatch.setattr(webhook, "_tls", lambda: trusting)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(pem)
    return serving


def test_the_connection_goes_to_the_checked_address_with_the_name_kept(
    certified: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = names_lead_to(monkeypatch, "127.0.0.1")
    with WebhookReceiver(tls=certified) as server:
        webhook.post_json(f"https://hooks.example:{server.port}/a?b=c", {"text": "hi"}, LOCAL)
    assert asked == ["hooks.example"]  # once: a second answer could be another one
    assert server.paths == ["/a?b=c"]
    assert server.headers[0]["Host"] == f"hooks.example:{server.port}"
    assert server.received == [{"text": "hi"}]


def test_a_certificate_for_another_name_is_refused(
    certified: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    names_lead_to(monkeypatch, "127.0.0.1")
    with WebhookReceiver(tls=certified) as server:
        failed = post(f"https://other.example:{server.port}/")
    assert "the certificate of other.example is not valid" in str(failed)
    assert server.received == []


def test_a_second_address_is_tried_when_the_first_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    names_lead_to(monkeypatch, "127.0.0.2", "127.0.0.1")
    with WebhookReceiver() as server:
        webhook.post_json(f"http://localhost:{server.port}/", {"text": "hi"}, LOCAL)
    assert len(server.received) == 1


# -- what the texts can and cannot do ----------------------------------------------------------------------------


def slack_body(event: SettledEvent, settings: Settings = LOCAL, *, told: bool = False) -> dict[str, Any]:
    (message,) = messages(event, told=told)
    return notify._slack(notify._content(json.loads(json.dumps(message.facts)), settings))


def test_no_text_of_a_job_becomes_a_link_or_calls_a_channel() -> None:
    wild = "<!channel> <https://evil.example|click> & ``` *bold*"
    body = slack_body(failure(job(name=wild), error=wild, output_tail=wild))
    for text in (body["text"], body["blocks"][1]["text"]["text"]):
        assert "<!channel>" not in text
        assert "<https://evil" not in text
        assert "&lt;!channel&gt;" in text
    assert body["blocks"][1]["text"]["text"].count("```") == 2


def test_every_block_keeps_within_what_slack_takes() -> None:
    body = slack_body(
        failure(
            job(name="&" * 200, max_retries=100),
            error="&" * 2000,
            dead_letter_reason="<" * 2000,
            output_tail=">" * 2000,
        )
    )
    assert all(len(block["text"]["text"]) <= 3000 for block in body["blocks"])
    for block in body["blocks"]:
        for piece in block["text"]["text"].replace("&amp;", "").replace("&lt;", "").replace("&gt;", ""):
            assert piece not in "&"


def test_the_words_say_what_happened_and_what_to_do() -> None:
    assert (
        "*Nightly report ran into its time limit*"
        in slack_body(failure(job(), status=Status.TIMEOUT))["text"]
    )
    assert (
        "*Nightly report was lost with its worker*" in slack_body(failure(job(), status=Status.LOST))["text"]
    )
    failed = slack_body(failure(job(notify_after_failures=2), attempt=1, consecutive_failures=2))["text"]
    for part in (
        "*Nightly report failed*",
        "Error: ValueError: no rows",
        "Attempt: 2 of 4",
        "2 failures",
        "Version: 3",
    ):
        assert part in failed
    dead = slack_body(failure(job(), dead_letter_reason="failed 4 times, the last: ValueError: no rows"))[
        "text"
    ]
    assert "it will not run until somebody recovers it" in dead
    assert dead.count("ValueError: no rows") == 1
    back = slack_body(success(job(), timedelta(hours=26, minutes=5)), told=True)
    assert "*Nightly report works again, after 1 day 2 hours 5 minutes*" in back["text"]
    assert len(back["blocks"]) == 1


def test_without_a_public_address_there_is_no_link() -> None:
    assert "Open in" not in slack_body(failure(job()), replace(LOCAL, public_url=""))["text"]


# -- mail --------------------------------------------------------------------------------------------------------


@pytest.fixture
def mail() -> Iterator[MailServer]:
    with MailServer() as server:
        yield server


def mailing(server: MailServer, **fields: Any) -> Settings:
    return replace(
        LOCAL, smtp_host="127.0.0.1", smtp_port=server.port, mail_from="cron@example.org", **fields
    )


def test_a_mail_reaches_all_its_addresses_as_text_and_html(
    session: Session, deliver: Callable[..., int], mail: MailServer
) -> None:
    row = put(session, "email", "ada@example.org, bob@example.org")
    assert deliver(mailing(mail)) == 1
    assert state(session, row) == ("sent", 1, None)
    assert mail.recipients == ["ada@example.org", "bob@example.org"]
    parsed = email.message_from_string(mail.mails[0], policy=email.policy.default)
    assert parsed["Subject"] == "[kytecron] Nightly report failed"
    assert (parsed["To"], parsed["From"]) == ("ada@example.org, bob@example.org", "cron@example.org")
    assert parsed["Auto-Submitted"] == "auto-generated"
    text = parsed.get_body(("plain",)).get_content()
    assert "Error: ValueError: no rows" in text
    assert "https://cron.example/executions/1" in text
    assert "line 1\nline 2" in text
    assert '<a href="https://cron.example/executions/1">' in parsed.get_body(("html",)).get_content()


def send_mail(event: SettledEvent, settings: Settings, target: str = "ada@example.org") -> Any:
    (message,) = messages(event)
    return notify._send(settings, "email", target, message.facts)


def test_no_text_of_a_job_becomes_a_header_or_markup(mail: MailServer) -> None:
    wild = "x\r\nBcc: eve@example.org\r\n\r\n<script>alert(1)</script>"
    assert send_mail(failure(job(name=wild), error=wild, output_tail=wild), mailing(mail)) == ""
    parsed = email.message_from_string(mail.mails[0], policy=email.policy.default)
    assert parsed["Bcc"] is None
    assert mail.recipients == ["ada@example.org"]
    assert "<script>" not in parsed.get_body(("html",)).get_content()


@pytest.mark.parametrize(
    "target",
    ["ada@example.org\r\nBcc: eve@example.org", "no address", "a@b@c", "ada@example.org>\r\nDATA", "<a@b>"],
)
def test_an_address_that_is_none_is_refused_without_a_connection(target: str) -> None:
    result = send_mail(failure(job()), replace(LOCAL, smtp_host="127.0.0.1", smtp_port=1), target)
    assert isinstance(result, webhook.DeliveryFailed)
    assert result.permanent


@pytest.mark.parametrize(
    ("replies", "permanent", "said"),
    [
        ({"RCPT": "550 no such user"}, True, "ada@example.org refused: 550 no such user"),
        ({"RCPT": "450 try later"}, False, "ada@example.org refused: 450 try later"),
        ({"MAIL": "553 not you"}, True, "the mail server answered 553 not you"),
        ({"DATA": "554 looks like spam"}, True, "the mail server answered 554 looks like spam"),
        ({"DATA": "451 busy"}, False, "the mail server answered 451 busy"),
        ({"EHLO": "421 going down", "HELO": "421 going down"}, False, "421"),
    ],
)
def test_a_mail_server_that_refuses_for_good_is_not_asked_again(
    replies: dict[str, str], permanent: bool, said: str
) -> None:
    with MailServer(replies) as server:
        result = send_mail(failure(job()), mailing(server))
    assert isinstance(result, webhook.DeliveryFailed)
    assert (result.permanent, said in str(result)) == (permanent, True), str(result)


def test_one_refused_address_does_not_send_the_mail_to_the_others_twice(
    session: Session, deliver: Callable[..., int]
) -> None:
    with MailServer(unknown=["gone@example.org"]) as server:
        row = put(session, "email", "gone@example.org, ada@example.org")
        deliver(mailing(server))
    assert state(session, row) == ("sent", 1, "gone@example.org refused: 550 no such user")
    assert len(server.mails) == 1


def test_a_failing_goodbye_does_not_send_a_mail_twice() -> None:
    with MailServer({"QUIT": "500 what"}) as server:
        assert send_mail(failure(job()), mailing(server)) == ""


def test_a_password_never_goes_over_an_unencrypted_connection(mail: MailServer) -> None:
    settings = mailing(mail, smtp_user="cron", smtp_password="hunter2 hunter2")
    result = send_mail(failure(job()), replace(settings, smtp_starttls=True))
    assert isinstance(result, webhook.DeliveryFailed)
    assert not result.permanent
    assert "STARTTLS" in str(result)
    assert mail.mails == []


def test_a_mail_server_that_is_away_is_tried_again_and_none_at_all_is_not() -> None:
    away = send_mail(failure(job()), replace(LOCAL, smtp_host="127.0.0.1", smtp_port=free_port()))
    none = send_mail(failure(job()), LOCAL)
    assert isinstance(away, webhook.DeliveryFailed)
    assert isinstance(none, webhook.DeliveryFailed)
    assert (away.permanent, none.permanent) == (False, True)
    assert "KYTECRON_SMTP_HOST" in str(none)


def test_a_channel_can_be_tried_out(mail: MailServer) -> None:
    with WebhookReceiver(Answer(), Answer(404, body=b"no_service")) as slack:
        assert notify.test_channel(LOCAL, "slack", slack.url) is None
        assert notify.test_channel(LOCAL, "slack", slack.url) == "127.0.0.1 answered 404 no_service"
    assert "Test message from kytecron" in slack.received[0]["text"]
    assert notify.test_channel(mailing(mail), "email", "ada@example.org") is None
    assert "is not a public address" in (notify.test_channel(STRICT, "slack", "https://10.0.0.1/") or "")


def test_an_error_never_repeats_a_webhook_s_address_which_is_a_secret() -> None:
    with WebhookReceiver(Answer(500)) as slack:
        for url in (
            slack.url + "/T0/SECRET",
            "http://127.0.0.1:1/SECRET",
            "https://10.0.0.1/SECRET",
            "SECRET",
        ):
            assert "SECRET" not in (notify.test_channel(LOCAL, "slack", url) or "")

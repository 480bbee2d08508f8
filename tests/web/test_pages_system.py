"""Dead letters, workers and locks, people, the audit log, storage."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from flask import Flask

from kytecron.config import Settings
from kytecron.core.schedule import TZDATA_VERSION
from kytecron.core.states import Outcome, Status
from kytecron.services import accounts, lifecycle, registry
from kytecron.services.audit import Actor
from kytecron.store import db, queries
from kytecron.store.models import CronJob, CronJobExecution, CronWorkerRecord
from tests.factories import claim_one
from tests.pages import PASSWORD, Visitor, database, make_job, text_of, toast


def give_up(app: Flask, name: str) -> CronJob:
    """A job in the dead letter queue."""
    job = make_job(app, name, schedule_type="interval", interval_seconds=60, max_retries=0)
    with database(app) as session:
        lifecycle.trigger(session, job.id, actor=Actor("test"))
        lifecycle.settle(session, [(claim_one(session), Outcome(Status.FAILED, error="no disk"))])
    return job


# -- dead letters --------------------------------------------------------------------------------------------


def test_dead_letters_are_recovered_one_by_one_several_or_all(app: Flask, operator: Visitor) -> None:
    assert "No dead letters" in operator.get("/dead-letters").text
    jobs = [give_up(app, f"dead-{number}") for number in range(4)]
    text = text_of(operator.get("/dead-letters").text)
    assert "dead-3" in text
    assert "no disk" in text
    assert text_of(operator.get("/jobs").text).startswith("Jobs"), "and the navigation counts them"
    assert re.search(r'Dead letters</span><span\s+class="nav-count">4<', operator.get("/jobs").text)
    nothing = operator.post("/dead-letters/recover", {"which": "chosen"}, part=True)
    assert toast(nothing) == "Choose the jobs to recover first."
    answer = operator.post(
        "/dead-letters/recover",
        {"which": "chosen", "ids": [str(jobs[0].id), str(jobs[1].id), "999"]},
        part=True,
    )
    assert toast(answer) == "2 jobs recovered. Not recovered: job 999: Job 999 does not exist"
    answer = operator.post("/dead-letters/recover", {"which": "all"})
    assert answer.location == "/dead-letters"
    assert "2 jobs recovered." in text_of(operator.get("/dead-letters").text)


# -- workers and locks ---------------------------------------------------------------------------------------


def test_a_worker_with_other_time_zones_or_another_version_stands_out(app: Flask, viewer: Visitor) -> None:
    with database(app) as session:
        registry.report(session, "w1", Settings(), running=0, draining=False, clock_skew_ms=0, statistics={})
        assert "tzdata" not in viewer.get("/workers").text
        worker = session.get_one(CronWorkerRecord, "w1")
        worker.tzdata, worker.version = "2019a", "0.0.9"
        session.commit()
    text = text_of(viewer.get("/workers").text)
    assert f"tzdata 2019a, here {TZDATA_VERSION}" in text
    assert f"version 0.0.9, here {registry.VERSION}" in text


def test_workers_are_shown_with_their_state_and_what_they_hold(app: Flask, operator: Visitor) -> None:
    assert "No worker has reported yet" in operator.get("/workers").text
    job = make_job(app, "busy")
    with database(app) as session:
        registry.report(
            session,
            "w1",
            Settings(worker_tags="gpu"),
            running=1,
            draining=False,
            clock_skew_ms=1500,
            statistics={},
        )
        lifecycle.trigger(session, job.id, actor=Actor("test"))
        claim_one(session, "w1")
    text = text_of(operator.get("/workers").text)
    for said in ("Alive", "gpu", "+1500 ms", "busy #1", "w1"):
        assert said in text
    with database(app) as session:
        session.get_one(CronWorkerRecord, "w1").last_seen_at = db.now(session) - timedelta(minutes=5)
        session.commit()
    assert "Silent" in operator.get("/workers", part=True).text
    answer = operator.post("/locks/1/release", part=True)
    assert toast(answer) == "Worker w1 was asked to stop execution 1, which then ends as lost."
    assert "asked to stop" in operator.get("/workers", part=True).text
    with database(app) as session:
        registry.sign_off(session, "w1", {})
    answer = operator.post("/locks/1/release", part=True)
    assert toast(answer) == "Execution 1 was taken from its worker and is lost."
    with database(app) as session:
        assert session.get_one(CronJobExecution, 1).status == Status.LOST


# -- people --------------------------------------------------------------------------------------------------


def test_a_user_without_a_password_gets_a_link_that_works(app: Flask, admin: Visitor) -> None:
    answer = admin.post("/users", {"username": "olga", "role": "operator"})
    assert answer.status_code == 200
    link = re.search(r'id="one-time-link">(/sign-in/[\w-]+)<', answer.text)
    assert link
    olga = Visitor(app)
    assert olga.post(link[1]).location == "/account"
    assert "Role: operator" in text_of(olga.get("/account").text)
    assert link[1] not in admin.get("/users").text, "shown once"


def test_a_user_with_a_password_may_sign_in(app: Flask, admin: Visitor) -> None:
    assert admin.post("/users", {"username": "ed", "role": "editor", "password": PASSWORD}).status_code == 303
    assert Visitor(app).post("/sign-in", {"username": "ed", "password": PASSWORD}).status_code == 303


def test_wrong_users_and_tokens_come_back_with_what_is_wrong(admin: Visitor) -> None:
    user = admin.post("/users", {"username": "no spaces", "role": "king", "password": "short"})
    assert user.status_code == 422
    for name in ("username", "role", "password"):
        assert f'id="f-{name}-error"' in user.text
    assert 'value="no spaces"' in user.text
    for form in (
        {"name": "", "token_role": "viewer"},
        {"name": "x", "token_role": "viewer", "expires_days": "soon"},
    ):
        assert admin.post("/tokens", form).status_code == 422


def test_roles_change_and_the_last_administrator_stays(app: Flask, admin: Visitor, viewer: Visitor) -> None:
    with database(app) as session:
        one, other = accounts.find_user(session, "the-viewer"), accounts.find_user(session, "the-admin")
    assert admin.post(f"/users/{one.id}/role", {"role": "editor"}).status_code == 303
    assert viewer.get("/").status_code == 303, "a changed role signs out"
    assert "Role: editor" in text_of(viewer.sign_in_as("the-viewer").get("/account").text)
    refused = admin.post(f"/users/{other.id}/role", {"role": "viewer"})
    assert refused.status_code == 409
    assert "last enabled administrator" in refused.text
    admin.post(f"/users/{one.id}/disable")
    assert "Disabled" in admin.get("/users").text
    admin.post(f"/users/{one.id}/enable")
    admin.post(f"/users/{one.id}/delete")
    assert "the-viewer" not in admin.get("/users").text


def test_a_token_is_shown_once_works_and_can_be_revoked(app: Flask, admin: Visitor) -> None:
    answer = admin.post("/tokens", {"name": "ci <b>", "token_role": "viewer", "expires_days": "30"})
    token = re.search(r'id="new-token">(kyt_[\w-]+)<', answer.text)
    assert token
    headers = {"Authorization": f"Bearer {token[1]}"}
    assert app.test_client().get("/api/v1/jobs", headers=headers).status_code == 200
    page = admin.get("/users").text
    assert token[1] not in page
    assert "ci &lt;b&gt;" in page
    revoke = re.search(r'action="(/tokens/\d+/revoke)"', page)
    assert revoke
    assert admin.post(revoke[1]).status_code == 303
    assert app.test_client().get("/api/v1/jobs", headers=headers).status_code == 401
    assert "Revoked" in admin.get("/users").text


# -- audit and storage ---------------------------------------------------------------------------------------


def test_the_audit_log_tells_both_sides_and_masks_secrets(app: Flask, admin: Visitor) -> None:
    job = make_job(app, slack_webhook="https://hooks.slack.com/services/T/B/hunter2")
    admin.post(f"/jobs/{job.id}/disable", {"reason": "maintenance"})
    page = admin.get("/audit")
    assert "hunter2" not in page.text
    text = text_of(page.text)
    assert "the-admin web, 127.0.0.1 Disable job 1 : hello" in text
    assert "maintenance" in text
    assert "create" not in text_of(admin.get("/audit?action=disable", part=True).text)
    assert "No change matches" in admin.get("/audit?actor=nobody").text
    with database(app) as session:
        assert queries.audit_log(session).items[0].action == "disable"


@pytest.mark.parametrize(
    "query", ["", "?cursor=", "?subject_type=job&subject_id=1", "?action=sign+in+by+link"]
)
def test_the_audit_log_filters(app: Flask, admin: Visitor, query: str) -> None:
    make_job(app)
    assert admin.get(f"/audit{query}").text.count("<tr id=") > 0


def test_storage_tells_what_sharing_saves(app: Flask, viewer: Visitor) -> None:
    assert "Nothing is shared yet" in viewer.get("/storage").text
    for number in range(3):
        make_job(app, f"same {number}")
    text = text_of(viewer.get("/storage").text)
    assert "Versions 3" in text
    assert "Sources 1" in text
    assert "Saved by sharing 66.7%" in text

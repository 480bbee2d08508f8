"""Who may do what: every route is tried by everybody, against a table written by hand."""

from __future__ import annotations

import re

import pytest
from flask import Flask

from kytecron.api.routing import PREFIX, ROUTES
from kytecron.core.choices import PUBLIC
from kytecron.requestdb import db
from kytecron.services import accounts
from kytecron.services.audit import Actor

from .conftest import Caller

PEOPLE = ("anonymous", *accounts.ROLES)

# The first of PEOPLE who may; those after them may, too.
TABLE = {
    "GET /jobs": "viewer",
    "POST /jobs": "editor",
    "GET /jobs/{job_id}": "viewer",
    "PATCH /jobs/{job_id}": "editor",
    "DELETE /jobs/{job_id}": "editor",
    "POST /jobs/{job_id}/clone": "editor",
    "POST /jobs/{job_id}/enable": "operator",
    "POST /jobs/{job_id}/disable": "operator",
    "POST /jobs/{job_id}/recover": "operator",
    "POST /jobs/{job_id}/trigger": "operator",
    "POST /jobs/{job_id}/backfill": "operator",
    "POST /jobs/{job_id}/rollback": "editor",
    "POST /jobs/bulk": "operator",
    "GET /jobs/export": "viewer",
    "POST /jobs/import": "editor",
    "GET /jobs/{job_id}/stats": "viewer",
    "GET /jobs/{job_id}/upcoming": "viewer",
    "GET /jobs/{job_id}/why": "viewer",
    "GET /jobs/{job_id}/versions": "viewer",
    "GET /jobs/{job_id}/versions/{version}": "viewer",
    "GET /jobs/{job_id}/versions/{version}/code": "viewer",
    "GET /jobs/{job_id}/versions/compare": "viewer",
    "POST /jobs/{job_id}/versions/prune": "editor",
    "POST /jobs/validate-code": "viewer",
    "POST /schedules/preview": "viewer",
    "GET /dead-letters": "viewer",
    "GET /executions": "viewer",
    "GET /executions/running": "viewer",
    "GET /executions/pending": "viewer",
    "GET /executions/failed": "viewer",
    "GET /executions/statistics": "viewer",
    "GET /executions/{execution_id}": "viewer",
    "GET /executions/{execution_id}/log": "viewer",
    "POST /executions/{execution_id}/cancel": "operator",
    "POST /executions/{execution_id}/retry": "operator",
    "POST /executions/{execution_id}/rerun": "operator",
    "GET /contents": "viewer",
    "GET /contents/stats": "viewer",
    "GET /contents/orphaned": "viewer",
    "GET /workers": "viewer",
    "GET /locks": "viewer",
    "GET /locks/stale": "viewer",
    "POST /locks/{execution_id}/release": "operator",
    "GET /users": "admin",
    "POST /users": "admin",
    "GET /users/{user_id}": "admin",
    "PATCH /users/{user_id}": "admin",
    "DELETE /users/{user_id}": "admin",
    "POST /users/{user_id}/sign-in-link": "admin",
    "POST /users/{user_id}/sign-out": "admin",
    "GET /tokens": "admin",
    "POST /tokens": "admin",
    "GET /tokens/{token_id}": "admin",
    "POST /tokens/{token_id}/revoke": "admin",
    "GET /secrets": "admin",
    "POST /secrets": "admin",
    "GET /secrets/{secret_id}": "admin",
    "PUT /secrets/{secret_id}": "admin",
    "DELETE /secrets/{secret_id}": "admin",
    "PUT /secrets/{secret_id}/jobs/{job_id}": "admin",
    "DELETE /secrets/{secret_id}/jobs/{job_id}": "admin",
    "GET /settings": "admin",
    "GET /audit": "admin",
    "GET /stats": "viewer",
    "GET /openapi.json": "anonymous",
    "GET /docs": "anonymous",
}


def test_the_table_names_every_route_of_the_api(app: Flask) -> None:
    served = set()
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith(PREFIX):
            path = re.sub("<int:(.+?)>", r"{\1}", rule.rule.removeprefix(PREFIX))
            served |= {f"{method} {path}" for method in (rule.methods or set()) - {"HEAD"}}
    assert served == TABLE.keys()


def test_every_route_declares_a_role() -> None:
    assert {route.role for route in ROUTES} <= {PUBLIC, *accounts.ROLES}


@pytest.mark.parametrize("person", PEOPLE)
def test_everybody_may_do_what_the_table_says_and_nothing_else(
    callers: dict[str, Caller], person: str
) -> None:
    for rule, first in TABLE.items():
        # Of an id that nothing has, and with a body that is no JSON: refused before either is looked at.
        answer = callers[person](re.sub("{.+?}", "4711", rule), data="?", content_type="application/json")
        allowed = PEOPLE.index(person) >= PEOPLE.index(first)
        refusal = 401 if person == "anonymous" else 403
        assert (answer.status_code != refusal) == allowed, f"{person}: {rule}: {answer.text}"


@pytest.mark.parametrize(
    ("action", "first"), [("enable", "operator"), ("tag", "editor"), ("delete", "editor")]
)
@pytest.mark.parametrize("person", PEOPLE[1:])
def test_a_bulk_action_needs_the_role_that_its_single_one_needs(
    callers: dict[str, Caller], person: str, action: str, first: str
) -> None:
    answer = callers[person]("POST /jobs/bulk", json={"action": action, "ids": [1], "tags": ["x"]})
    allowed = PEOPLE.index(person) >= PEOPLE.index(first)
    assert answer.status_code == (200 if allowed else 403)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic YTpi",
        "Bearer wrong",
        "bearer kyt_x",
        "Bearer é",
        "Bearer " + "a" * 5000,
    ],
)
def test_no_token_and_a_wrong_one_are_401_and_say_how(callers: dict[str, Caller], header: str) -> None:
    answer = callers["anonymous"]("GET /jobs", headers={"Authorization": header})
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith('Bearer realm="kytecron"')
    assert answer.json["error"]["code"] == "unauthorized"


def test_a_revoked_token_is_no_token(app: Flask, callers: dict[str, Caller]) -> None:
    with app.app_context():
        row, token = accounts.create_token(db.session(), "short", "viewer", 1, Actor("test"))
        caller = Caller(app.test_client(), token)
        assert caller("GET /jobs").status_code == 200
        accounts.revoke_token(db.session(), row.id, Actor("test"))
    answer = caller("GET /jobs")
    assert answer.status_code == 401
    assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]


def test_a_signed_in_browser_has_no_way_into_the_api(app: Flask, callers: dict[str, Caller]) -> None:
    client = app.test_client()
    with client.session_transaction() as session:
        session["token"] = callers["admin"].token
    assert client.get("/api/v1/jobs").status_code == 401


def test_a_webhook_address_is_shown_to_those_who_may_edit_it_only(callers: dict[str, Caller]) -> None:
    address = "https://hooks.slack.com/services/T0/B0/secret"
    job = callers["editor"].job(slack_webhook=address)
    for person, seen in (
        ("editor", address),
        ("admin", address),
        ("operator", "https://hooks.slack.com/•••"),
        ("viewer", "https://hooks.slack.com/•••"),
    ):
        assert callers[person](f"GET /jobs/{job['id']}").json["slack_webhook"] == seen
        assert callers[person]("GET /jobs").json["items"][0]["slack_webhook"] == seen


def test_an_export_has_no_webhook_address_unless_an_editor_asks_for_it(callers: dict[str, Caller]) -> None:
    callers["editor"].job(slack_webhook="https://hooks.slack.com/services/T0/B0/secret")
    for person in ("viewer", "editor"):
        assert "hooks.slack.com" not in callers[person]("GET /jobs/export").text
    assert callers["operator"]("GET /jobs/export?webhooks=true").status_code == 403
    assert "hooks.slack.com" in callers["editor"]("GET /jobs/export?webhooks=true&format=yaml").text

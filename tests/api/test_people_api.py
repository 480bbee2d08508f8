"""Users, tokens, secrets and settings by the API: what administrators do, and what nobody is shown."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.orm import Session

from kytecron.api.routing import ROUTES
from kytecron.config import Settings
from kytecron.requestdb import db
from kytecron.services import accounts, secrets
from kytecron.services.audit import Actor
from kytecron.store import queries
from kytecron.store.models import CronAudit, CronToken
from tests.pages import Visitor

from .conftest import Caller

PASSWORD = "a very secret pass phrase"
VALUE = "hunter2-Zq8-in-nobody's-answer"
NOBODY = 4711


def made(api: Caller, rule: str, **body: Any) -> dict[str, Any]:
    answer = api(rule, json=body)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json
    return found


def user(api: Caller, username: str = "maria", role: str = "editor", **more: Any) -> dict[str, Any]:
    return made(api, "POST /users", username=username, role=role, **more)


def secret(api: Caller, name: str = "API_KEY") -> dict[str, Any]:
    return made(api, "POST /secrets", name=name, value=VALUE)


# -- users ---------------------------------------------------------------------------------------------------


def test_a_user_is_made_read_changed_and_removed(everywhere: Caller) -> None:
    api = everywhere
    answer = api("POST /users", json={"username": "maria", "role": "editor", "password": PASSWORD})
    assert answer.status_code == 201
    maria = answer.json
    assert answer.headers["Location"].endswith(f"/api/v1/users/{maria['id']}")
    assert (maria["username"], maria["role"], maria["enabled"]) == ("maria", "editor", True)
    assert api(f"GET /users/{maria['id']}").json == maria
    assert api("GET /users").json == {"items": [maria], "next_cursor": None}
    changed = api(f"PATCH /users/{maria['id']}", json={"role": "viewer", "enabled": False}).json
    assert changed == maria | {"role": "viewer", "enabled": False}
    assert api(f"PATCH /users/{maria['id']}", json={}).json == changed
    assert api(f"PATCH /users/{maria['id']}", json={"enabled": True}).json["enabled"]
    assert api(f"DELETE /users/{maria['id']}").status_code == 204
    assert api(f"GET /users/{maria['id']}").status_code == 404


def test_whoever_is_made_with_a_password_signs_in_and_is_signed_out(app: Flask, api: Caller) -> None:
    maria = user(api, password=PASSWORD)
    browser = Visitor(app)
    assert browser.post("/sign-in", {"username": "maria", "password": PASSWORD}).status_code == 303
    assert browser.get("/jobs").status_code == 200
    assert api(f"POST /users/{maria['id']}/sign-out").json == {"sessions": 1}
    assert browser.get("/jobs").status_code != 200
    assert api(f"POST /users/{maria['id']}/sign-out").json == {"sessions": 0}


def test_a_sign_in_link_works_once(app: Flask, api: Caller) -> None:
    maria = user(api)
    answer = api(f"POST /users/{maria['id']}/sign-in-link")
    assert answer.status_code == 201
    assert answer.json["expires_in_seconds"] == 900
    path = answer.json["url"]
    assert path.startswith("/sign-in/")
    browser = Visitor(app)
    assert browser.post(path).status_code == 303
    assert browser.get("/jobs").status_code == 200
    assert Visitor(app).post(path).status_code == 403


def test_what_is_wrong_with_a_user_is_told_at_once(api: Caller) -> None:
    user(api)
    answer = api("POST /users", json={"username": "-", "role": "king", "password": "short", "colour": "red"})
    assert answer.status_code == 422
    assert answer.json["error"]["fields"].keys() == {"username", "role", "password", "colour"}
    taken = api("POST /users", json={"username": "maria", "role": "viewer"})
    assert (taken.status_code, taken.json["error"]["fields"].keys()) == (422, {"username"})
    assert api("PATCH /users/1", json={"role": "king", "enabled": "yes"}).json["error"]["fields"].keys() == {
        "role",
        "enabled",
    }


@pytest.mark.parametrize("change", [{"role": "viewer"}, {"enabled": False}, None])
def test_the_last_administrator_is_not_removed_by_the_api(
    everywhere: Caller, change: dict[str, Any] | None
) -> None:
    boss = user(everywhere, "boss", "admin")
    user(everywhere, "maria", "editor")
    rule = f"/users/{boss['id']}"
    answer = everywhere(f"DELETE {rule}") if change is None else everywhere(f"PATCH {rule}", json=change)
    assert answer.status_code == 409
    assert "last enabled administrator" in answer.json["error"]["message"]
    assert everywhere(f"GET {rule}").json == boss


def test_a_change_of_role_and_state_is_made_whole_or_not_at_all(api: Caller) -> None:
    boss, other = user(api, "boss", "admin"), user(api, "other", "admin")
    assert api(f"PATCH /users/{other['id']}", json={"enabled": False}).status_code == 200
    # Enabling would be allowed, the lower role is not.
    answer = api(f"PATCH /users/{boss['id']}", json={"role": "viewer", "enabled": True})
    assert answer.status_code == 409
    assert api(f"GET /users/{boss['id']}").json == boss


# -- tokens --------------------------------------------------------------------------------------------------


def test_a_token_is_shown_once_works_and_is_revoked(app: Flask, everywhere: Caller) -> None:
    api = everywhere
    token = made(api, "POST /tokens", name="ci", role="viewer", expires_days=2)
    plain = token.pop("token")
    assert api(f"GET /tokens/{token['id']}").json == token
    listed = api("GET /tokens?limit=1")
    assert listed.json["items"] == [token]
    assert plain not in listed.text
    other = Caller(api.client, plain)
    assert other("GET /jobs").status_code == 200
    assert other("GET /tokens").status_code == 403
    revoked = [api(f"POST /tokens/{token['id']}/revoke").json["revoked_at"] for _ in range(2)]
    assert revoked[0] == revoked[1] is not None
    assert other("GET /jobs").status_code == 401


def test_what_is_wrong_with_a_token_is_told_at_once(api: Caller) -> None:
    answer = api("POST /tokens", json={"name": " ", "role": "king", "expires_days": 0})
    assert answer.json["error"]["fields"].keys() == {"name", "role", "expires_days"}


def test_a_sign_in_link_is_no_token_of_the_list(api: Caller, rows: Session) -> None:
    maria = user(api)
    api(f"POST /users/{maria['id']}/sign-in-link")
    link = rows.scalars(sa.select(CronToken.id).where(CronToken.kind == "sign-in")).one()
    assert api(f"GET /tokens/{link}").status_code == 404
    assert api(f"POST /tokens/{link}/revoke").status_code == 404
    assert link not in [one["id"] for one in api("GET /tokens").json["items"]]


def test_what_a_token_makes_ends_with_the_person_it_belongs_to(app: Flask, api: Caller) -> None:
    maria = user(api, "maria", "admin")
    user(api, "boss", "admin")
    with app.app_context():
        _, plain = accounts.create_token(db.session(), "maria's", "admin", 1, Actor("maria", "web"))
    first = Caller(app.test_client(), plain)
    child = Caller(app.test_client(), made(first, "POST /tokens", name="a", role="admin")["token"])
    grandchild = made(child, "POST /tokens", name="b", role="viewer")
    assert grandchild["created_by"] == "maria"
    mine = made(api, "POST /tokens", name="c", role="viewer")
    assert mine["created_by"] == "api:token:test admin"
    api(f"PATCH /users/{maria['id']}", json={"enabled": False})
    assert first("GET /jobs").status_code == child("GET /jobs").status_code == 401
    assert Caller(app.test_client(), grandchild["token"])("GET /jobs").status_code == 401
    assert Caller(app.test_client(), mine["token"])("GET /jobs").status_code == 200


# -- secrets -------------------------------------------------------------------------------------------------


def test_a_secret_is_made_granted_replaced_taken_and_deleted(everywhere: Caller) -> None:
    api = everywhere
    job = api.job()["id"]
    row = secret(api)
    path = f"/secrets/{row['id']}"
    assert (row["name"], row["updated_by"], row["jobs"]) == ("API_KEY", "token:test admin", [])
    assert api(f"GET {path}").json == row
    for _ in range(2):
        granted = api(f"PUT {path}/jobs/{job}")
        assert granted.json["jobs"] == [{"id": job, "name": "greeter"}]
    assert api("GET /secrets").json["items"] == [granted.json]
    assert api(f"PUT {path}", json={"value": "another"}).json["jobs"] == granted.json["jobs"]
    assert api(f"DELETE {path}/jobs/{job}").json["jobs"] == []
    assert api(f"DELETE {path}/jobs/{job}").status_code == 404
    assert api(f"DELETE {path}").status_code == 204
    assert api(f"GET {path}").status_code == 404


def test_a_job_gets_the_value_that_was_put_last(
    app: Flask, api: Caller, rows: Session, sqlite_settings: Settings
) -> None:
    job, row = api.job()["id"], secret(api)
    api(f"PUT /secrets/{row['id']}/jobs/{job}")
    api(f"PUT /secrets/{row['id']}", json={"value": "the new one"})
    assert secrets.granted_to_jobs(rows, sqlite_settings, [job]) == {job: {"API_KEY": "the new one"}}


def test_a_name_that_is_taken_keeps_its_value(api: Caller, rows: Session, sqlite_settings: Settings) -> None:
    job, row = api.job()["id"], secret(api)
    api(f"PUT /secrets/{row['id']}/jobs/{job}")
    answer = api("POST /secrets", json={"name": "API_KEY", "value": "another"})
    assert (answer.status_code, answer.json["error"]["fields"].keys()) == (422, {"name"})
    assert secrets.granted_to_jobs(rows, sqlite_settings, [job]) == {job: {"API_KEY": VALUE}}


def test_what_there_is_not_is_404(api: Caller) -> None:
    row, job = secret(api)["id"], api.job()["id"]
    for rule, body in (
        (f"GET /users/{NOBODY}", None),
        (f"PATCH /users/{NOBODY}", {"enabled": True}),
        (f"DELETE /users/{NOBODY}", None),
        (f"POST /users/{NOBODY}/sign-in-link", None),
        (f"POST /users/{NOBODY}/sign-out", None),
        (f"GET /tokens/{NOBODY}", None),
        (f"POST /tokens/{NOBODY}/revoke", None),
        (f"GET /secrets/{NOBODY}", None),
        (f"PUT /secrets/{NOBODY}", {"value": "x"}),
        (f"DELETE /secrets/{NOBODY}", None),
        (f"PUT /secrets/{NOBODY}/jobs/{job}", None),
        (f"PUT /secrets/{row}/jobs/{NOBODY}", None),
        (f"DELETE /secrets/{row}/jobs/{job}", None),
    ):
        answer = api(rule) if body is None else api(rule, json=body)
        assert answer.status_code == 404, f"{rule}: {answer.text}"


def test_lists_of_people_and_secrets_go_from_part_to_part(everywhere: Caller) -> None:
    names = ["ada", "Bob", "carl", "dora", "eve"]
    for name in names:
        user(everywhere, name)
        secret(everywhere, name.upper())
    for rule, field, wanted in (
        ("users", "username", names),
        ("secrets", "name", [n.upper() for n in names]),
    ):
        found, cursor = [], ""
        while cursor is not None:
            part = everywhere(f"GET /{rule}?limit=2" + (f"&cursor={cursor}" if cursor else "")).json
            found += [one[field] for one in part["items"]]
            cursor = part["next_cursor"]
        assert sorted(found) == sorted(wanted)


# -- settings, and what is secret ----------------------------------------------------------------------------


def test_settings_say_what_is_set_and_of_secrets_only_whether(app: Flask, api: Caller) -> None:
    shown = {one["variable"]: one for one in api("GET /settings").json["items"]}
    assert shown["KYTECRON_LEASE_SECONDS"]["value"] == "60 seconds"
    assert {one["value"] for one in shown.values() if one["secret"]} <= {"set", "not set"}
    assert shown["KYTECRON_SECRET_KEY"]["secret"]


def test_nothing_secret_is_answered_or_logged(
    app: Flask, api: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    maria, row, job = user(api, password=PASSWORD), secret(api), api.job()["id"]
    api(f"PUT /secrets/{row['id']}/jobs/{job}")
    api(f"PUT /secrets/{row['id']}", json={"value": VALUE + "2"})
    token = made(api, "POST /tokens", name="ci", role="viewer")["token"]
    link = api(f"POST /users/{maria['id']}/sign-in-link").json["url"].rpartition("/")[2]
    told = [
        api("POST /secrets", json={"name": "lower", "value": VALUE}),
        api("POST /secrets", json={"name": "A", "vlaue": VALUE}),
        api("POST /secrets", json={"name": "A", "value": [VALUE]}),
        api("POST /secrets", json={"name": "A", "value": VALUE + "\0"}),
        api("POST /secrets", data=f'{{"name": "A", "value": "{VALUE}", "value": "{VALUE}"}}'),
        api("POST /secrets", data=f'{{"value": "{VALUE}', content_type="application/json"),
        api("POST /users", json={"username": "-", "role": PASSWORD, "password": PASSWORD}),
        api("POST /users", json={"username": "olga", "role": "viewer", "password": [PASSWORD]}),
        api(f"PUT /secrets/{row['id']}", json={"value": {"a": VALUE}}),
    ]
    assert {answer.status_code // 100 for answer in told} == {4}
    for rule in ROUTES:
        if rule.method == "GET" and not rule.numbers:
            told.append(api(f"GET {rule.path}"))
    told += [
        api(f"GET {path}") for path in (f"/users/{maria['id']}", f"/secrets/{row['id']}", f"/jobs/{job}")
    ]
    for hidden in (VALUE, PASSWORD, token, link, "scrypt:"):
        for answer in told:
            assert hidden not in answer.text, answer.request.path
        assert hidden not in caplog.text


def test_what_holds_a_secret_takes_no_idempotency_key(api: Caller) -> None:
    maria, row = user(api), secret(api)
    for rule, body in (
        ("POST /users", {"username": "olga", "role": "viewer", "password": PASSWORD}),
        ("POST /tokens", {"name": "ci", "role": "viewer"}),
        ("POST /secrets", {"name": "NEW", "value": VALUE}),
        (f"PUT /secrets/{row['id']}", {"value": VALUE}),
        (f"POST /users/{maria['id']}/sign-in-link", None),
    ):
        headers = {"Idempotency-Key": "one"}
        answer = api(rule, headers=headers) if body is None else api(rule, headers=headers, json=body)
        assert answer.status_code == 422, rule
        assert answer.json["error"]["fields"].keys() == {"Idempotency-Key"}
    assert [one["username"] for one in api("GET /users").json["items"]] == ["maria"]


def test_the_rest_takes_one(api: Caller, rows: Session) -> None:
    maria = user(api)
    answers = [
        api(f"PATCH /users/{maria['id']}", headers={"Idempotency-Key": "one"}, json={"role": "viewer"})
        for _ in range(2)
    ]
    assert answers[0].json == answers[1].json
    assert answers[1].headers["Idempotent-Replayed"] == "true"
    changes = queries.audit_log(rows, queries.AuditFilter(action="set_role")).items
    assert [(row.actor, row.source) for row in changes] == [("token:test admin", "api")]
    assert rows.scalars(sa.select(CronAudit).where(CronAudit.action == "set_role")).one().after == {
        "role": "viewer"
    }

"""Role by route, for every address of the app: written by hand here and in tests/api, tried by everybody."""

from __future__ import annotations

import re

import pytest
from flask import Flask

from kytecron.api.routing import PREFIX
from kytecron.services import accounts
from tests.api.test_access import TABLE as API_TABLE
from tests.pages import Visitor

PEOPLE = ("anonymous", *accounts.ROLES)

# The first of PEOPLE who may; those after them may, too. JSON API: tests/api/test_access.py.
PAGES = {
    "GET /": "viewer",
    "GET /sign-in": "anonymous",
    "POST /sign-in": "anonymous",
    "GET /sign-in/{token}": "anonymous",
    "POST /sign-in/{token}": "anonymous",
    "POST /sign-out": "anonymous",
    "GET /account": "viewer",
    "POST /account/password": "viewer",
    "POST /account/sessions/{token_hash}/end": "viewer",
    "GET /jobs": "viewer",
    "GET /jobs/new": "editor",
    "POST /jobs/new": "editor",
    "GET /jobs/preview": "viewer",
    "GET /jobs/parents": "editor",
    "POST /jobs/check-code": "editor",
    "GET /jobs/{job_id}": "viewer",
    "GET /jobs/{job_id}/code": "viewer",
    "GET /jobs/{job_id}/edit": "editor",
    "POST /jobs/{job_id}/edit": "editor",
    "GET /jobs/{job_id}/trigger": "operator",
    "POST /jobs/{job_id}/trigger": "operator",
    "POST /jobs/{job_id}/enable": "operator",
    "POST /jobs/{job_id}/disable": "operator",
    "POST /jobs/{job_id}/recover": "operator",
    "POST /jobs/{job_id}/clone": "editor",
    "POST /jobs/{job_id}/delete": "editor",
    "POST /jobs/{job_id}/rollback": "editor",
    "GET /jobs/{job_id}/executions": "viewer",
    "GET /jobs/{job_id}/versions": "viewer",
    "GET /jobs/{job_id}/versions/{number}": "viewer",
    "GET /jobs/{job_id}/versions/{number}/code": "viewer",
    "GET /jobs/{job_id}/versions/compare": "viewer",
    "GET /executions": "viewer",
    "GET /executions/{execution_id}": "viewer",
    "GET /executions/{execution_id}/log": "viewer",
    "POST /executions/{execution_id}/cancel": "operator",
    "POST /executions/{execution_id}/retry": "operator",
    "POST /executions/{execution_id}/rerun": "operator",
    "GET /dead-letters": "viewer",
    "POST /dead-letters/recover": "operator",
    "GET /workers": "viewer",
    "POST /locks/{execution_id}/release": "operator",
    "GET /storage": "viewer",
    "GET /docs": "viewer",
    "GET /docs/{title}": "viewer",
    "GET /audit": "admin",
    "GET /users": "admin",
    "POST /users": "admin",
    "POST /users/{user_id}/link": "admin",
    "POST /users/{user_id}/role": "admin",
    "POST /users/{user_id}/enable": "admin",
    "POST /users/{user_id}/disable": "admin",
    "POST /users/{user_id}/end-sessions": "admin",
    "POST /users/{user_id}/delete": "admin",
    "POST /tokens": "admin",
    "POST /tokens/{token_id}/revoke": "admin",
    "GET /secrets": "admin",
    "POST /secrets": "admin",
    "POST /secrets/{name}/delete": "admin",
    "POST /secrets/{name}/grant": "admin",
    "POST /secrets/{name}/revoke/{job_id}": "admin",
    "GET /settings": "admin",
    "POST /settings/test-message": "admin",
}
# With an API token, and what it says in its errors: tests/api/test_metrics.py tries everybody.
BY_TOKEN = {"GET /metrics"}
# For machines of the house, without data in them.
OPEN = {"GET /healthz", "GET /readyz", "GET /static/{filename}"}


def routes(app: Flask) -> set[str]:
    """Every method and address that the app serves."""
    found = set()
    for rule in app.url_map.iter_rules():
        path = re.sub("<(?:[^<>]+:)?([^<>]+)>", r"{\1}", rule.rule)
        found |= {f"{method} {path}" for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}}
    return found


def test_the_tables_name_every_route_of_the_app(app: Flask) -> None:
    of_the_api = {rule.replace(" ", f" {PREFIX}", 1) for rule in API_TABLE}
    assert routes(app) == PAGES.keys() | OPEN | BY_TOKEN | of_the_api


@pytest.mark.parametrize("person", PEOPLE)
def test_everybody_reaches_what_the_table_says_and_nothing_else(
    visitors: dict[str, Visitor], person: str
) -> None:
    visitor = visitors[person]
    token = visitor.token()
    wrong = []
    for rule, first in PAGES.items():
        if first == "anonymous":
            continue
        # Of things that nothing is: who may is told so, who may not is told nothing.
        method, path = re.sub("{.+?}", "4711", rule).split(" ")
        answer = visitor.client.open(path, method=method, headers={"X-CSRFToken": token}, buffered=True)
        if person == "anonymous":
            right = answer.status_code == 303 and answer.location.startswith("/sign-in")
        elif PEOPLE.index(person) >= PEOPLE.index(first):
            right = answer.status_code in (200, 303, 404, 422)
        else:
            right = answer.status_code == 403
        if not right:
            wrong.append(f"{rule}: {answer.status_code}")
    assert not wrong


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "PROPFIND"])
def test_other_methods_lead_nowhere(visitors: dict[str, Visitor], method: str) -> None:
    visitor = visitors["admin"]
    token = visitor.token()
    for rule in PAGES:
        path = re.sub("{.+?}", "4711", rule).split(" ")[1]
        answer = visitor.client.open(path, method=method, headers={"X-CSRFToken": token})
        assert answer.status_code == 405, f"{method} {path}"


@pytest.mark.parametrize("trick", ["X-HTTP-Method-Override", "X-Original-URL", "X-Rewrite-URL"])
def test_no_header_turns_a_request_into_another(visitors: dict[str, Visitor], trick: str) -> None:
    value = "POST" if "Method" in trick else "/users"
    answer = visitors["viewer"].get("/jobs", headers={trick: value})
    assert answer.status_code == 200
    assert "Add a user" not in answer.text

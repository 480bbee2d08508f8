"""Who gets in, who may do what, and that nothing happens without a form of ours."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import pytest
from flask import Flask

from kytecron.core.addresses import path_on_this_site
from kytecron.core.choices import PUBLIC
from kytecron.core.errors import Forbidden
from kytecron.core.states import Status
from kytecron.services import accounts, lifecycle, throttle
from kytecron.services.audit import Actor
from kytecron.store import queries
from kytecron.store.models import CronSession
from kytecron.views import people
from kytecron.web import access
from tests.pages import PASSWORD, Visitor, database, make_job, text_of, toast

OURS = {
    "auth",
    "home",
    "jobs",
    "jobform",
    "executions",
    "versions",
    "system",
    "people",
    "secrets",
    "settings",
    "docs",
}
OTHERS = {"static", "healthz", "readyz", "metrics"}


def rules(app: Flask) -> list[tuple[str, str, str]]:
    """(method, address with example numbers, role it needs) of every page and action."""
    example: dict[str, Any] = {
        "job_id": 1, "execution_id": 1, "number": 1, "user_id": 1, "token_id": 1,
        "token": "x", "token_hash": "x", "name": "X", "title": "jobs",
    }  # fmt: skip
    found = []
    with app.test_request_context():
        for rule in app.url_map.iter_rules():
            if rule.endpoint.partition(".")[0] in OURS:
                address = app.url_map.bind("localhost").build(
                    rule.endpoint, {name: example[name] for name in rule.arguments}
                )
                view = app.view_functions[rule.endpoint]
                found += [
                    (method, address, getattr(view, "needs", "nothing"))
                    for method in sorted((rule.methods or set()) & {"GET", "POST"})
                ]
    return found


def test_every_route_says_who_may_use_it(app: Flask) -> None:
    assert {role for _, _, role in rules(app)} <= {*accounts.ROLES, PUBLIC}


def test_no_route_is_outside_of_what_is_guarded(app: Flask) -> None:
    owners = {rule.endpoint.partition(".")[0] for rule in app.url_map.iter_rules()}
    assert owners <= OURS | OTHERS | {"api"}


def test_a_page_that_forgets_to_say_it_is_refused() -> None:
    app = Flask(__name__)
    app.secret_key = "k" * 32
    area = access.area("forgetful", __name__)
    area.add_url_rule("/", view_func=lambda: "secret")
    app.register_blueprint(area)
    app.register_error_handler(Forbidden, lambda error: (error.message, 403))
    answer = app.test_client().get("/")
    assert (answer.status_code, answer.text) == (403, "This page does not say who may see it")


def test_each_role_reaches_what_it_may_and_nothing_else(app: Flask, visitors: dict[str, Visitor]) -> None:
    job = make_job(app)
    with database(app) as session:
        lifecycle.trigger(session, job.id, actor=Actor("test"))
    tokens = {role: visitor.token() for role, visitor in visitors.items() if role != "nobody"}
    wrong = []
    for method, path, needed in rules(app):
        for role, visitor in visitors.items():
            if needed == PUBLIC or (method == "POST" and accounts.allows(role, needed)):
                continue  # what actions do has its own tests
            answer = visitor.client.open(
                path,
                method=method,
                headers={"X-CSRFToken": tokens.get(role) or visitor.token()},
                buffered=True,
            )
            if role == "nobody":
                right = answer.status_code == 303 and answer.location.startswith("/sign-in")
            elif accounts.allows(role, needed):
                right = answer.status_code in (200, 303, 422)
            else:
                right = answer.status_code == 403
            if not right:
                wrong.append(f"{method} {path} as {role}: {answer.status_code}")
    assert not wrong


def test_nothing_changes_without_the_token_of_a_form(app: Flask, admin: Visitor) -> None:
    make_job(app)
    refused = {
        path: admin.client.post(path).status_code for method, path, _ in rules(app) if method == "POST"
    }
    assert len(refused) > 20
    assert set(refused.values()) == {400}, refused


def test_a_form_that_is_out_of_date_is_told_what_to_do(admin: Visitor) -> None:
    answer = admin.client.post("/jobs/new", data={"csrf_token": "stale"})
    assert answer.status_code == 400
    assert "reload the page" in text_of(answer.text)


# -- signing in ----------------------------------------------------------------------------------------------


@pytest.fixture
def maria(app: Flask) -> Visitor:
    with database(app) as session:
        accounts.create_user(session, "maria", PASSWORD, "admin", Actor("test"))
    return Visitor(app)


def test_signing_in_leads_to_the_page_that_was_asked_for(maria: Visitor) -> None:
    asked = maria.get("/jobs?q=a&status=dead")
    assert asked.location == "/sign-in?next=/jobs?q%3Da%26status%3Ddead"
    form = maria.get(asked.location)
    assert 'value="/jobs?q=a&amp;status=dead"' in form.text
    answer = maria.post(
        "/sign-in", {"username": "maria", "password": PASSWORD, "next": "/jobs?q=a&status=dead"}
    )
    assert (answer.status_code, answer.location) == (303, "/jobs?q=a&status=dead")
    assert maria.get("/").status_code == 200


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.example/",
        "//evil.example",
        "/\\evil.example",
        "\\\\evil",
        "javascript:alert(1)",
        "evil",
        "/a\nb",
        "",
    ],
)
def test_nobody_is_sent_to_another_site(maria: Visitor, target: str) -> None:
    assert path_on_this_site(target) is None
    answer = maria.post("/sign-in", {"username": "maria", "password": PASSWORD, "next": target})
    assert answer.location == "/"


def test_a_refusal_keeps_the_name_and_does_not_say_what_was_wrong(maria: Visitor) -> None:
    known = maria.post("/sign-in", {"username": "maria", "password": "wrong"})
    unknown = maria.post("/sign-in", {"username": "nobody", "password": "wrong"})
    assert (known.status_code, unknown.status_code) == (422, 422)
    assert 'value="maria"' in known.text
    assert "wrong" not in re.findall(r'value="(\w+)"', known.text)
    assert "The user name or the password is wrong" in known.text
    assert "The user name or the password is wrong" in unknown.text


def test_guessing_is_slowed_down_and_told_until_when(maria: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    # Windows lie on the clock, and one may end between two requests.
    moment = datetime.now(UTC)
    monkeypatch.setattr(throttle, "_window", lambda *_: moment)
    for _ in range(accounts.FAILURES_PER_NAME):
        maria.post("/sign-in", {"username": "maria", "password": "wrong"})
    answer = maria.post("/sign-in", {"username": "maria", "password": PASSWORD})
    assert answer.status_code == 429
    assert int(answer.headers["Retry-After"]) > 0
    assert "Try again in" in answer.text


def test_the_cookie_is_a_new_one_after_signing_in_and_out_of_reach_of_scripts(maria: Visitor) -> None:
    before = maria.token()
    answer = maria.post("/sign-in", {"username": "maria", "password": PASSWORD})
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert maria.client.post("/sign-out", headers={"X-CSRFToken": before}).status_code == 400


def test_signing_out_ends_the_session_in_the_database(app: Flask, admin: Visitor) -> None:
    assert admin.post("/sign-out").location == "/sign-in"
    assert admin.get("/").status_code == 303
    with database(app) as session:
        assert session.query(CronSession).count() == 0


def test_an_expired_session_of_a_polling_page_leads_to_the_form(admin: Visitor) -> None:
    admin.post("/sign-out")
    answer = admin.get(
        "/jobs?status=dead", part=True, headers={"HX-Current-URL": "http://localhost/jobs?q=x"}
    )
    assert answer.status_code == 401
    assert answer.headers["HX-Redirect"] == "/sign-in?next=/jobs?q%3Dx"
    assert answer.text == ""


def test_a_user_who_is_locked_out_is_out_at_once(app: Flask, admin: Visitor, viewer: Visitor) -> None:
    with database(app) as session:
        user = accounts.find_user(session, "the-viewer")
    admin.post(f"/users/{user.id}/disable")
    assert viewer.get("/").status_code == 303


# -- one-time links ------------------------------------------------------------------------------------------


def test_looking_at_a_link_does_not_spend_it_and_using_it_asks_for_a_password(app: Flask) -> None:
    with database(app) as session:
        link = accounts.first_start_link(session)
    visitor = Visitor(app)
    for _ in range(3):  # mail scanners and previews
        assert visitor.get(f"/sign-in/{link}").status_code == 200
    answer = visitor.post(f"/sign-in/{link}")
    assert answer.location == "/account"
    page = visitor.get("/account")
    assert "Set a password" in page.text
    assert 'name="current"' not in page.text
    saved = visitor.post("/account/password", {"password": PASSWORD, "repeat": PASSWORD})
    assert (saved.status_code, saved.location) == (303, "/")
    assert visitor.get("/").status_code == 200
    again = Visitor(app).post("/sign-in", {"username": "admin", "password": PASSWORD})
    assert again.location == "/"


def test_a_spent_link_says_so(app: Flask, admin: Visitor) -> None:
    with database(app) as session:
        link = accounts.create_sign_in_link(session, Actor("test"), "the-admin")
    Visitor(app).post(f"/sign-in/{link}")
    answer = Visitor(app).post(f"/sign-in/{link}")
    assert answer.status_code == 403
    assert "has been used or has expired" in answer.text


def test_a_password_is_changed_with_the_old_one_only_and_errors_stand_by_their_fields(maria: Visitor) -> None:
    maria.post("/sign-in", {"username": "maria", "password": PASSWORD})
    for form, said in (
        (
            {"current": "wrong", "password": PASSWORD + "2", "repeat": PASSWORD + "2"},
            "The current password is wrong",
        ),
        ({"current": PASSWORD, "password": "short", "repeat": "short"}, "at least 12 characters"),
        ({"current": PASSWORD, "password": PASSWORD + "2", "repeat": "other"}, "The two passwords differ"),
    ):
        answer = maria.post("/account/password", form)
        assert answer.status_code == 422
        assert said in text_of(answer.text)
    form = {"current": PASSWORD, "password": PASSWORD + "2", "repeat": PASSWORD + "2"}
    assert maria.post("/account/password", form).status_code == 303
    assert maria.get("/").status_code == 200, "the session that changed it goes on"


def test_one_can_end_another_session_of_ones_own(app: Flask, admin: Visitor) -> None:
    other = Visitor(app).sign_in_as("the-admin")
    action = re.search(r'action="(/account/sessions/\w+/end)"', admin.get("/account").text)
    assert action
    assert admin.post(action[1]).status_code == 303
    assert other.get("/").status_code == 303
    assert admin.get("/").status_code == 200


# -- errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/jobs/999",
        "/executions/999",
        "/jobs/1/versions/9",
        f"/executions/{10**30}",
        f"/jobs/{10**30}/edit",
    ],
)
def test_what_is_not_there_is_a_404_inside_the_frame(editor: Visitor, path: str) -> None:
    answer = editor.get(path)
    assert answer.status_code == 404
    assert 'aria-label="Main"' in answer.text, "with the navigation"
    assert "Traceback" not in answer.text


def test_visitors_who_are_not_signed_in_see_errors_without_the_frame(app: Flask) -> None:
    answer = Visitor(app).get("/nothing")
    assert answer.status_code == 404
    assert 'aria-label="Main"' not in answer.text


def test_htmx_is_told_of_errors_in_a_message_and_its_page_stays(
    app: Flask, viewer: Visitor, operator: Visitor
) -> None:
    job = make_job(app, enabled=False)
    forbidden = viewer.post(f"/jobs/{job.id}/trigger", part=True)
    assert forbidden.status_code == 403
    assert toast(forbidden) == "This needs the role operator; yours is viewer."
    refused = operator.post(f"/jobs/{job.id}/trigger", part=True)
    assert (refused.status_code, refused.text) == (409, "")
    assert toast(refused) == "Job is disabled"
    missing = operator.post("/jobs/999/trigger", part=True)
    assert missing.status_code == 404
    assert toast(missing) == "Job 999 does not exist"


def test_something_too_large_is_told_as_such(admin: Visitor) -> None:
    answer = admin.post("/jobs/new", {"code": "x" * 5_000_000})
    assert answer.status_code == 413
    assert "at most 4 MB" in answer.text


def test_a_fault_of_ours_shows_no_insides(
    app: Flask, admin: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the secret inside")

    monkeypatch.setattr("kytecron.store.figures.counters", fail)
    answer = admin.get("/")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "Something went wrong" in answer.text
    monkeypatch.undo()
    assert admin.get("/").status_code == 200


def test_pages_offer_only_what_a_role_may_do(app: Flask, visitors: dict[str, Visitor]) -> None:
    job = make_job(app)
    with database(app) as session:
        run = lifecycle.trigger(session, job.id, actor=Actor("test"))
    assert run.status == Status.PENDING
    forms = {
        role: set(re.findall(r'method="post" action="(/\w+/\d+/\w+)"', visitor.get(f"/jobs/{job.id}").text))
        | set(re.findall(r'method="post" action="(/\w+/\d+/\w+)"', visitor.get(f"/executions/{run.id}").text))
        for role, visitor in visitors.items()
        if role != "nobody"
    }
    assert forms["viewer"] == set()
    assert f"/jobs/{job.id}/trigger" in forms["operator"]
    assert f"/executions/{run.id}/cancel" in forms["operator"]
    assert f"/jobs/{job.id}/delete" not in forms["operator"]
    assert f"/jobs/{job.id}/delete" in forms["editor"]
    assert "Users and tokens" not in visitors["editor"].get("/").text
    assert "Users and tokens" in visitors["admin"].get("/").text


def test_the_audit_log_names_who_used_a_page(app: Flask, operator: Visitor) -> None:
    job = make_job(app)
    operator.post(f"/jobs/{job.id}/disable")
    with database(app) as session:
        entry = queries.audit_log(session, limit=1).items[0]
        assert (entry.actor, entry.source, entry.ip, entry.action) == (
            "the-operator",
            "web",
            "127.0.0.1",
            "disable",
        )


@pytest.mark.parametrize(
    ("user_agent", "said"),
    [
        ("Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0", "Firefox on Linux"),
        (
            "Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 Chrome/130.0 Safari/537.36 Edg/130.0",
            "Edge on Windows",
        ),
        (
            "Mozilla/5.0 (Linux; Android 14) AppleWebKit/537.36 Chrome/130.0 Mobile Safari/537.36",
            "Chrome on Android",
        ),
        ("curl/8.5.0", "curl/8.5.0"),
        ("", "Unknown browser"),
    ],
)
def test_a_session_names_its_browser(user_agent: str, said: str) -> None:
    assert people.browser(user_agent) == said

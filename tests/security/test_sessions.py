"""Forms, cookies, sessions and headers: what a browser is told, and when a sign-in ends."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from flask import Flask
from flask.testing import FlaskClient

from kytecron.app import HEADERS, create_app
from kytecron.config import Settings
from kytecron.core.errors import Invalid
from kytecron.requestdb import db
from kytecron.services import accounts, lifecycle, throttle
from kytecron.services.audit import Actor
from tests.pages import PASSWORD, Visitor, database, make_job, make_visitor

from .test_access_table import PAGES, routes

KEY = "0123456789abcdef" * 4
API = "/api/v1"


@pytest.fixture
def maria(app: Flask) -> Visitor:
    """Somebody with a password, not signed in."""
    with database(app) as session:
        accounts.create_user(session, "maria", PASSWORD, "admin", Actor("test"))
    return Visitor(app)


def sign_in(visitor: Visitor) -> None:
    assert visitor.post("/sign-in", {"username": "maria", "password": PASSWORD}).status_code == 303


def user_id(app: Flask, name: str) -> int:
    with database(app) as session:
        return accounts.find_user(session, name).id


# -- forms ---------------------------------------------------------------------------------------------------


def posts(app: Flask) -> list[str]:
    """The addresses of every form, with example numbers."""
    found = [rule.split(" ")[1] for rule in routes(app) if rule.startswith("POST ") and API not in rule]
    return sorted(re.sub("{.+?}", "1", path) for path in found)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-CSRFToken": "x"},
        {"X-CSRFToken": ""},
        {"HX-Request": "true"},
        {"Content-Type": "application/json"},
    ],
)
def test_no_form_is_taken_without_its_token(app: Flask, admin: Visitor, headers: dict[str, str]) -> None:
    make_job(app)
    refused = {path: admin.client.post(path, headers=headers).status_code for path in posts(app)}
    assert len(refused) == sum(rule.startswith("POST ") for rule in PAGES)
    assert set(refused.values()) == {400}, refused


def test_the_token_of_another_session_is_none(app: Flask, admin: Visitor, editor: Visitor) -> None:
    token = editor.token()
    assert admin.client.post("/jobs/new", headers={"X-CSRFToken": token}).status_code == 400
    assert admin.client.post("/jobs/new", data={"csrf_token": token}).status_code == 400


def test_over_tls_a_form_of_another_site_is_refused_whatever_it_holds(settings: Settings) -> None:
    client = create_app(replace(settings, environment="production", secret_key=KEY)).test_client()
    base = "https://cron.example"
    page = client.get("/sign-in", base_url=base).text
    found = re.search(r'name="csrf-token" content="([^"]+)"', page)
    assert found
    form = {"csrf_token": found[1], "username": "a", "password": "b"}
    for referrer in (
        "https://evil.example/",
        "https://cron.example.evil.example/",
        "http://cron.example/",
        "",
    ):
        headers = {"Referer": referrer} if referrer else {}
        assert client.post("/sign-in", data=form, base_url=base, headers=headers).status_code == 400
    good = client.post("/sign-in", data=form, base_url=base, headers={"Referer": f"{base}/sign-in"})
    assert good.status_code == 422


def test_reading_changes_nothing(app: Flask, admin: Visitor) -> None:
    """No link, image or prefetch of another site can make a signed-in browser change anything."""
    job = make_job(app)
    with database(app) as session:
        link = accounts.create_sign_in_link(session, Actor("test"), "the-admin")
        before = _everything(session)
    for rule in PAGES:
        method, path = rule.split(" ")
        if method == "GET":
            path = path.replace("{job_id}", str(job.id)).replace("{number}", "1").replace("{token}", link)
            admin.get(re.sub("{.+?}", "1", path))
    with database(app) as session:
        assert _everything(session) == before


def _everything(session: object) -> dict[str, list[tuple[object, ...]]]:
    tables = db.metadata.sorted_tables
    return {table.name: [tuple(row) for row in session.execute(table.select())] for table in tables}  # type: ignore[attr-defined]


# -- cookies -------------------------------------------------------------------------------------------------


def test_the_cookie_is_for_this_site_and_no_script(maria: Visitor) -> None:
    cookie = maria.client.get("/sign-in").headers["Set-Cookie"]
    for flag in ("HttpOnly", "SameSite=Lax", "Path=/"):
        assert flag in cookie
    assert "Domain" not in cookie


def test_in_production_the_cookie_goes_over_tls_only(settings: Settings) -> None:
    app = create_app(replace(settings, environment="production", secret_key=KEY))
    for base in ("https://cron.example", "http://cron.example"):
        assert "Secure" in app.test_client().get("/sign-in", base_url=base).headers["Set-Cookie"]


def test_the_cookie_tells_nothing_but_a_token_and_cannot_be_made_up(app: Flask, maria: Visitor) -> None:
    sign_in(maria)
    cookie = maria.client.get_cookie("kytecron")
    assert cookie
    for part in ("maria", "admin", PASSWORD):
        assert part not in cookie.value
    forger = Visitor(app)
    for value in (
        # Not the last character: two of its bits belong to nothing.
        cookie.value[:-2] + ("A" if cookie.value[-2] != "A" else "B") + cookie.value[-1],
        cookie.value.rpartition(".")[0],
        "eyJ0b2tlbiI6IngifQ.aaaaaa." + "A" * 27,
        "",
        "x" * 3000,
    ):
        forger.client.set_cookie("kytecron", value)
        assert forger.get("/").status_code == 303


def test_a_cookie_signed_with_another_key_is_none(app: Flask, settings: Settings, maria: Visitor) -> None:
    sign_in(maria)
    cookie = maria.client.get_cookie("kytecron")
    other = create_app(replace(settings, secret_key=KEY)).test_client()
    assert cookie
    other.set_cookie("kytecron", cookie.value)
    assert other.get("/").status_code == 303


# -- sessions ------------------------------------------------------------------------------------------------


def test_a_session_that_somebody_else_prepared_is_not_signed_in(app: Flask, maria: Visitor) -> None:
    """Fixation: the attacker knows the cookie that the victim signs in with."""
    attacker = Visitor(app)
    attacker.token()
    planted = attacker.client.get_cookie("kytecron")
    assert planted
    maria.client.set_cookie("kytecron", planted.value)
    sign_in(maria)
    assert maria.get("/").status_code == 200
    assert attacker.get("/").status_code == 303
    own = maria.client.get_cookie("kytecron")
    assert own
    assert own.value != planted.value


def test_each_sign_in_has_a_token_of_its_own(app: Flask, maria: Visitor) -> None:
    tokens = set()
    for _ in range(3):
        sign_in(maria)
        with maria.client.session_transaction() as cookie:
            tokens.add(cookie["token"])
            assert len(cookie["token"]) >= 43
    assert len(tokens) == 3


def test_a_cookie_kept_from_before_signing_out_is_worth_nothing(app: Flask, maria: Visitor) -> None:
    sign_in(maria)
    kept = maria.client.get_cookie("kytecron")
    assert kept
    maria.post("/sign-out")
    thief = Visitor(app)
    thief.client.set_cookie("kytecron", kept.value)
    assert thief.get("/").status_code == 303


def change_own_password(app: Flask, maria: Visitor, admin: Visitor) -> None:
    form = {"current": PASSWORD, "password": PASSWORD + "2", "repeat": PASSWORD + "2"}
    assert maria.post("/account/password", form).status_code == 303


def change_role(app: Flask, maria: Visitor, admin: Visitor) -> None:
    assert admin.post(f"/users/{user_id(app, 'maria')}/role", {"role": "viewer"}).status_code == 303


def lock_out(app: Flask, maria: Visitor, admin: Visitor) -> None:
    assert admin.post(f"/users/{user_id(app, 'maria')}/disable").status_code == 303


def remove(app: Flask, maria: Visitor, admin: Visitor) -> None:
    assert admin.post(f"/users/{user_id(app, 'maria')}/delete").status_code == 303


@pytest.mark.parametrize("event", [change_own_password, change_role, lock_out, remove])
def test_a_stolen_session_ends_with_what_should_end_it(
    app: Flask, maria: Visitor, admin: Visitor, event: Callable[[Flask, Visitor, Visitor], None]
) -> None:
    thief = Visitor(app).sign_in_as("maria")
    sign_in(maria)
    with database(app) as session:
        spare = accounts.create_sign_in_link(session, Actor("test"), "maria")
    assert thief.get("/users").status_code == 200
    event(app, maria, admin)
    assert thief.get("/").status_code == 303
    assert maria.get("/").status_code == (200 if event is change_own_password else 303)
    late = Visitor(app).post(f"/sign-in/{spare}")
    assert late.status_code == 403, "links made before end, too"


def test_a_token_made_in_the_pages_ends_with_its_maker(app: Flask, maria: Visitor, admin: Visitor) -> None:
    sign_in(maria)
    made = maria.post("/tokens", {"name": "ci", "token_role": "admin"})
    token = re.search(r'id="new-token">(kyt_[\w-]+)<', made.text)
    assert token
    headers = {"Authorization": f"Bearer {token[1]}"}
    assert app.test_client().get(f"{API}/audit", headers=headers).status_code == 200
    lock_out(app, maria, admin)
    assert app.test_client().get(f"{API}/audit", headers=headers).status_code == 401


def test_nobody_ends_the_session_of_another(app: Flask, admin: Visitor) -> None:
    viewer = make_visitor(app, "viewer")
    with admin.client.session_transaction() as cookie:
        of_admin = accounts.session_id(cookie["token"])
    assert viewer.post(f"/account/sessions/{of_admin}/end").status_code == 404
    assert admin.get("/").status_code == 200


def test_what_the_account_page_shows_of_sessions_opens_none(app: Flask, admin: Visitor) -> None:
    page = admin.get("/account").text
    with admin.client.session_transaction() as cookie:
        assert cookie["token"] not in page
        hashed = accounts.session_id(cookie["token"])
    forger = Visitor(app)
    with forger.client.session_transaction() as cookie:
        cookie["token"] = hashed
    assert forger.get("/").status_code == 303


def test_guessing_is_stopped_for_a_name_and_for_an_address(app: Flask, maria: Visitor) -> None:
    form = {"username": "maria", "password": "wrong"}
    answers = [maria.post("/sign-in", form).status_code for _ in range(accounts.FAILURES_PER_NAME + 1)]
    assert answers == [422] * accounts.FAILURES_PER_NAME + [429]
    # Another browser, and headers that only a declared proxy may set, change nothing.
    other = Visitor(app)
    right = {"username": "maria", "password": PASSWORD}
    for headers in (
        {},
        {"X-Forwarded-For": "192.0.2.1"},
        {"X-Real-IP": "192.0.2.1"},
        {"Forwarded": "for=1.1.1.1"},
    ):
        assert other.post("/sign-in", right, headers=headers).status_code == 429
    other.sign_in_as("maria")
    assert other.get("/").status_code == 200, (
        "a one-time link is the way in for someone throttled because of a guesser"
    )


def one_window(*_: object) -> datetime:
    """Windows lie on the clock, and one may end between two requests."""
    return datetime(2026, 1, 1, tzinfo=UTC)


def test_runs_by_hand_are_throttled_for_a_person_and_for_a_token(
    app: Flask, visitors: dict[str, Visitor], api: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(app, overlap_policy="allow")
    with database(app) as session:
        ended = lifecycle.trigger(session, job.id, actor=Actor("test"))
        lifecycle.cancel(session, ended.id, Actor("test"))
    monkeypatch.setattr(throttle, "TRIGGERS_PER_MINUTE", 2)
    monkeypatch.setattr(throttle, "_window", one_window)
    operator, another = visitors["operator"], visitors["editor"]
    run, again = f"/jobs/{job.id}/trigger", f"/executions/{ended.id}/rerun"
    assert [operator.post(path).status_code for path in (run, again, run, again)] == [303, 303, 429, 429]
    refused = operator.post(run, part=True)
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) >= 1
    assert another.post(run).status_code == 303, "everybody has a count of their own"
    codes = [api.post(f"{API}{path}", json={}).status_code for path in (run, again, run, again)]
    assert codes == [202, 201, 429, 429]
    backfill = {"start": "2026-01-01T00:00:00Z", "end": "2026-01-02T00:00:00Z"}
    bulk = {"action": "trigger", "ids": [job.id]}
    assert api.post(f"{API}/jobs/{job.id}/backfill", json=backfill).status_code == 429
    assert api.post(f"{API}/jobs/bulk", json=bulk).status_code == 429


# -- what every answer says ----------------------------------------------------------------------------------

KINDS = [
    ("GET", "/", 303),
    ("GET", "/sign-in", 200),
    ("GET", "/nothing", 404),
    ("POST", "/sign-in", 400),
    ("DELETE", "/sign-in", 405),
    ("OPTIONS", "/sign-in", 200),
    ("HEAD", "/sign-in", 200),
    ("GET", "/static/app.css", 200),
    ("GET", "/static/nothing.css", 404),
    ("GET", "/healthz", 200),
    ("GET", "/readyz", 200),
    ("GET", f"{API}/jobs", 401),
    ("GET", f"{API}/nothing", 404),
    ("PUT", f"{API}/jobs", 405),
    ("GET", f"{API}/docs", 200),
    ("GET", f"{API}/openapi.json", 200),
    ("GET", "/healthz", 500),
    ("GET", "/readyz", 503),
]


@pytest.mark.parametrize(("method", "path", "status"), KINDS)
def test_every_answer_tells_the_browser_what_it_may_do(
    app: Flask, monkeypatch: pytest.MonkeyPatch, method: str, path: str, status: int
) -> None:
    def fail() -> None:
        raise RuntimeError("inside")

    if status == 500:
        monkeypatch.setitem(app.view_functions, "healthz", fail)
    if status == 503:
        monkeypatch.setattr("kytecron.store.schema.behind", lambda _: "tables are old")
    answer = app.test_client().open(path, method=method)
    assert answer.status_code == status
    for name, value in HEADERS.items():
        assert answer.headers.getlist(name) == [value], name
    assert "X-Powered-By" not in answer.headers
    if not path.startswith("/static/app"):
        assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("status", [409, 413, 415, 422, 429, 500])
def test_refusals_say_it_too(
    app: Flask, admin: Visitor, api: FlaskClient, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    job = make_job(app, enabled=False)
    page, path = f"/jobs/{job.id}", f"{API}/jobs/{job.id}"
    body = {"data": b"{}", "content_type": "application/json"}
    form: dict[str, str] = {}
    match status:
        case 409:
            page, path = page + "/trigger", path + "/trigger"
        case 429:
            page, path = page + "/trigger", path + "/trigger"
            monkeypatch.setattr(throttle, "TRIGGERS_PER_MINUTE", 1)
            monkeypatch.setattr(throttle, "_window", one_window)
            admin.post(page)
            api.post(path, **body)
        case 413:
            page, path = page + "/edit", f"{API}/jobs"
            form, body["data"] = {"code": "x" * 5_000_000}, b"x" * 5_000_000
        case 415:
            page, path, body = "", f"{API}/jobs", {"data": b"x", "content_type": "text/plain"}
        case 422:
            page, path = "/jobs/new", f"{API}/jobs"
        case 500:
            page, path = page + "/disable", path + "/disable"
            monkeypatch.setattr("kytecron.services.jobs._set_enabled", lambda *_: 1 / 0)
    answers = [api.post(path, **body)]
    if page:
        answers += [admin.post(page, form), admin.post(page, form, part=True)]
    for answer in answers:
        assert answer.status_code == status, answer.text
        for name, value in HEADERS.items():
            assert answer.headers.getlist(name) == [value], name
        assert answer.headers["Cache-Control"] == "no-store"


def test_pages_behind_the_door_are_not_kept_by_caches(app: Flask, admin: Visitor) -> None:
    for path in ("/", "/jobs", "/users", "/secrets", "/account", "/audit"):
        assert admin.get(path).headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "key",
    [
        "",
        "hunter2",
        "changeme" * 4,
        "secret" * 10,
        "a" * 64,
        "development" * 3,
        "0" * 31,
        "KyteCron" * 5,
        "abc" * 20,
    ],
)
def test_production_refuses_to_start_with_a_weak_key(settings: Settings, key: str) -> None:
    with pytest.raises(Invalid) as refused:
        create_app(replace(settings, environment="production", secret_key=key))
    message = refused.value.fields["KYTECRON_SECRET_KEY"]
    assert "32 random characters" in message
    assert not key or key not in message

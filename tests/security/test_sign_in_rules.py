"""Which passwords are taken, how long a sign-in lasts, who ends it, and what trace a refusal leaves."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from kytecron import door
from kytecron.app import create_app
from kytecron.config import Settings
from kytecron.core.errors import Invalid
from kytecron.services import accounts, passwords, throttle
from kytecron.services.audit import Actor
from kytecron.store import db as database_tools
from kytecron.store.models import CronAudit, CronSession
from tests.command_line import CommandLine
from tests.pages import PASSWORD, Visitor, database, make_visitor

from .test_sessions import KEY, one_window, user_id

TESTER = Actor("test")

# -- passwords -----------------------------------------------------------------------------------------------

GUESSED_FIRST = [
    *("password1234", "Password123!", "P@ssw0rd1234", "passwordpassword", "123456789012", "000000000000"),
    *("aaaaaaaaaaaa", "ab" * 30, "abcabcabcabc", "x7k" * 20, "abcdefghijkl", "zyxwvutsrqpo", "qwertyuiop12"),
    *("qwertyuiop[]", "zxcvbnm,./12", "1q2w3e4r5t6y", "1qaz2wsx3edc", "q1w2e3r4t5y6", "qwerty123456"),
    *("asdfghjkl123", "administrator", "Admin@123456", "letmein12345", "iloveyou1234", "Welcome12345"),
    *("changeme1234", "football1234", "Summer2024!!", "winter2025winter", "passwort1234", "trustno1trustno1"),
    *("manchesterunited", "liverpoolfc1", "111222333444", "!!!!!!!!!!!!", "3141592653589"),
    *(
        "ｐａｓｓｗｏｒｄ1234",
        "pássword1234",
        "p a s s w o r d 1 2",
        "!@#$%^&*()_+",
        "contraseña12",
        "пароль123456",
    ),
    *("kytecron-2026-x7Q", "KyteCron!!!!", "maria-x7kq2mv9p", "M4ria-x7kq2mv9", "ümaria" * 3),
]
GOOD = [
    *("correct horse battery staple", "correcthorsebatterystaple", "x7kq2mv9plt3", "Gf9#kd0-2LmQ"),
    *(
        "sunny-otter-flies-1923",
        "tr0ub4dor&3xyz",
        "my dog ate the homework",
        "naïve Größe überall",
        "1f8b9c2e77d01f8b",
    ),
]
REFUSED = r"password (is too easy|must not contain)"


@pytest.mark.parametrize("password", GUESSED_FIRST)
def test_a_password_that_is_guessed_first_is_refused_wherever_one_is_set(app: Flask, password: str) -> None:
    with database(app) as session:
        with pytest.raises(Invalid, match=REFUSED):
            accounts.create_user(session, "maria", password, "viewer", TESTER)
        user = accounts.create_user(session, "maria", PASSWORD, "viewer", TESTER)
        with pytest.raises(Invalid, match=REFUSED):
            accounts.set_password(session, user.id, password, TESTER)
        with pytest.raises(Invalid, match=REFUSED):
            accounts.change_password(session, user.id, PASSWORD, password, TESTER, keep="")


@pytest.mark.parametrize("password", GOOD)
def test_a_password_of_unrelated_words_or_characters_is_taken(password: str) -> None:
    assert passwords.problem(password, "maria") is None


def test_looking_at_a_password_takes_no_time_however_long_it_is() -> None:
    assert passwords.problem("a" * passwords.MAX_LENGTH, "maria") is not None
    assert passwords.problem("ß\u0130" * 500, "maria") is not None


# -- how long a sign-in lasts, and who ends it ---------------------------------------------------------------


def test_a_sign_in_ends_after_the_days_of_the_setting_however_much_it_is_used(
    app: Flask, settings: Settings
) -> None:
    with database(app) as session:
        user = accounts.create_user(session, "maria", None, "viewer", TESTER)
        link = accounts.create_sign_in_link(session, TESTER, user.username)
        token = accounts.use_sign_in_link(session, link, "", "", settings)
        began = database_tools.now(session)
        moment, step = began, timedelta(hours=settings.session_hours - 1)
        while moment + step < began + timedelta(days=settings.session_days):
            moment += step
            assert accounts.session_user(session, token, settings, moment) is not None
            (end,) = session.scalars(sa.select(CronSession.expires_at))
            assert end <= began + timedelta(days=settings.session_days)
        assert (
            accounts.session_user(session, token, settings, began + timedelta(days=settings.session_days))
            is None
        )
        shorter = replace(settings, session_days=1)
        assert accounts.session_user(session, token, shorter, began + timedelta(days=2)) is None


def test_an_administrator_ends_the_sessions_of_one_user(app: Flask, admin: Visitor) -> None:
    maria, other = make_visitor(app, "viewer", "maria"), make_visitor(app, "viewer", "olga")
    with database(app) as session:
        spare = accounts.create_sign_in_link(session, TESTER, "maria")
    answer = admin.post(f"/users/{user_id(app, 'maria')}/end-sessions")
    assert answer.status_code == 303
    assert "maria is signed out: 1 session has ended." in admin.get(answer.location).text
    assert maria.get("/").status_code == 303
    assert other.get("/").status_code == 200
    assert Visitor(app).post(f"/sign-in/{spare}").status_code == 403
    with database(app) as session:
        row = session.scalars(sa.select(CronAudit).where(CronAudit.action == "end_sessions")).one()
        assert (row.actor, row.subject_name, row.after) == ("the-admin", "maria", {"sessions": 1})


def test_the_command_ends_them_too(app: Flask) -> None:
    maria = make_visitor(app, "viewer", "maria")
    assert "Sessions ended: 1" in CommandLine(app).output("users sign-out maria")
    assert maria.get("/").status_code == 303


# -- the cookie and TLS --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "base", "name"),
    [
        ("development", "http://cron.example", "kytecron"),
        ("development", "https://cron.example", "__Host-kytecron"),
        ("production", "https://cron.example", "__Host-kytecron"),
        ("production", "https://cron.example/below", "__Host-kytecron"),
    ],
)
def test_over_tls_the_cookie_belongs_to_this_host_alone(
    settings: Settings, environment: str, base: str, name: str
) -> None:
    app = create_app(replace(settings, environment=environment, secret_key=KEY))
    cookie = app.test_client().get("/sign-in", base_url=base).headers["Set-Cookie"]
    assert cookie.startswith(f"{name}=")
    parts = cookie.split("; ")
    assert "Path=/" in parts
    assert ("Secure" in parts) == name.startswith("__Host-")
    assert "Domain" not in cookie


@pytest.mark.parametrize("below", [False, True])
def test_names_below_this_one_are_kept_to_tls_if_the_setting_says_so(settings: Settings, below: bool) -> None:
    client = create_app(replace(settings, hsts_subdomains=below)).test_client()
    told = client.get("/healthz", base_url="https://cron.example").headers["Strict-Transport-Security"]
    assert told == "max-age=31536000" + ("; includeSubDomains" if below else "")


# -- the trace of a refusal ----------------------------------------------------------------------------------


def refusals(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    keys = ("status", "method", "path", "actor", "ip")
    return [{key: getattr(one, key) for key in keys} for one in caplog.records if one.name == door.__name__]


def test_who_is_refused_leaves_a_line_in_the_log(
    app: Flask, api: FlaskClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "LINES_PER_MINUTE", 10**6)
    caplog.set_level(logging.WARNING)
    viewer = make_visitor(app, "viewer")
    caplog.clear()
    viewer.get("/users")
    viewer.client.post("/sign-out", data={"csrf_token": "x"})
    app.test_client().get("/api/v1/jobs")
    app.test_client().get("/api/v1/jobs", headers={"Authorization": "Bearer made-up"})
    monkeypatch.setattr(accounts, "FAILURES_PER_NAME", 1)
    monkeypatch.setattr(throttle, "_window", one_window)
    stranger = Visitor(app)
    for _ in range(2):
        stranger.post("/sign-in", {"username": "maria", "password": "x"})
    here = {"ip": "127.0.0.1"}
    assert refusals(caplog) == [
        here | {"status": 403, "method": "GET", "path": "/users", "actor": "the-viewer"},
        here | {"status": 400, "method": "POST", "path": "/sign-out", "actor": "the-viewer"},
        here | {"status": 401, "method": "GET", "path": "/api/v1/jobs", "actor": ""},
        here | {"status": 401, "method": "GET", "path": "/api/v1/jobs", "actor": ""},
        here | {"status": 429, "method": "POST", "path": "/sign-in", "actor": ""},
    ]
    assert "made-up" not in caplog.text


def test_a_refusal_shows_no_link_for_signing_in(
    app: Flask, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "LINES_PER_MINUTE", 10**6)
    app.test_client().post("/sign-in/a-link-that-still-works", data={"csrf_token": "x"})
    assert [one["path"] for one in refusals(caplog)] == ["/sign-in/***"]
    assert "still-works" not in caplog.text


def test_a_line_holds_no_line_breaks_of_whoever_was_refused(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    app.test_client().get("/api/v1/jobs", environ_overrides={"PATH_INFO": "/metrics"})
    app.test_client().post(
        "/", environ_overrides={"PATH_INFO": "/sign-in/a\nrefused 'GET /' by\n" + "x" * 1000}
    )
    assert all("\n" not in one.getMessage() and len(one.getMessage()) < 500 for one in caplog.records)


def test_a_role_that_is_too_low_is_in_the_audit_log_for_users_and_tokens(
    app: Flask, caller: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By names of their own: the app counts what other tests had refused in this hour, too.
    viewer, token = make_visitor(app, "viewer", "a-snooper"), caller("viewer", "a snoop")  # type: ignore[operator]
    for _ in range(door.ROWS_PER_HOUR + 5):
        assert viewer.get("/users").status_code == 403
        assert token.get("/api/v1/audit").status_code == 403
    with database(app) as session:
        rows = session.execute(
            sa.select(CronAudit.actor, CronAudit.source, CronAudit.subject_name, sa.func.count())
            .where(CronAudit.action == "refused")
            .group_by(CronAudit.actor, CronAudit.source, CronAudit.subject_name)
            .order_by(CronAudit.source)
        ).all()
    assert [tuple(row)[:3] for row in rows] == [
        ("token:a snoop", "api", "GET /api/v1/audit"),
        ("a-snooper", "web", "GET /users"),
    ]
    assert all(1 <= row[3] <= door.ROWS_PER_HOUR for row in rows)


def test_many_refusals_are_counted_and_not_all_written(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    clock = [1000.0]
    refused = door.Refusals(clock=lambda: clock[0])
    for _ in range(door.LINES_PER_MINUTE + 7):
        refused.may_write("maria")
    assert refused.may_write("maria") == (False, False, 0)
    clock[0] += 60
    assert refused.may_write("maria") == (True, False, 8)
    clock[0] += 3600
    assert refused.may_write("maria") == (True, True, 0)

"""What holds for every answer of the web application, whichever front gave it."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import pytest
from flask import Flask, request

from kytecron.app import CONTENT_SECURITY_POLICY, HEADERS, create_app
from kytecron.config import Settings
from kytecron.core.errors import Invalid
from kytecron.requestdb import db

KEY = "0123456789abcdef" * 4


@pytest.fixture
def production(sqlite_settings: Settings) -> Settings:
    return replace(sqlite_settings, environment="production", secret_key=KEY)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/sign-in",
        "/healthz",
        "/readyz",
        "/metrics",
        "/nothing",
        "/api/v1/jobs",
        "/api/v1/nothing",
        "/api/v1/docs",
    ],
)
def test_every_answer_has_the_security_headers_and_is_not_kept(app: Flask, path: str) -> None:
    answer = app.test_client().get(path)
    for name, value in HEADERS.items():
        assert answer.headers.getlist(name) == [value]
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Strict-Transport-Security" not in answer.headers


def test_the_policy_lets_nothing_in_from_elsewhere_and_nothing_inline() -> None:
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert "http" not in CONTENT_SECURITY_POLICY
    assert "*" not in CONTENT_SECURITY_POLICY
    for rule in ("default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'"):
        assert rule in CONTENT_SECURITY_POLICY


def test_an_unforeseen_error_has_them_too(sqlite_settings: Settings) -> None:
    app = create_app(sqlite_settings)

    def fail() -> str:
        raise RuntimeError("hunter2")

    app.add_url_rule("/fails", view_func=fail)
    answer = app.test_client().get("/fails")
    assert answer.status_code == 500
    assert "hunter2" not in answer.text
    assert answer.headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY


def test_static_files_are_kept_for_their_address_carries_their_version(app: Flask) -> None:
    answer = app.test_client().get("/static/app.css?v=1")
    assert answer.status_code == 200
    assert "max-age=31536000" in answer.headers["Cache-Control"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_alive_needs_no_database_and_ready_does(tmp_path: Path) -> None:
    app = create_app(Settings(instance_path=tmp_path / "new"))
    client = app.test_client()
    assert client.get("/healthz").json == {"status": "alive"}
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert "Run: kytecron db upgrade" in answer.json["reason"]
    with app.app_context():
        db.engine.dispose()


def test_a_database_that_does_not_answer_is_not_ready(tmp_path: Path) -> None:
    url = "mysql+pymysql://nobody:hunter2@127.0.0.1:9/none"
    app = create_app(Settings(instance_path=tmp_path, database_url=url))
    answer = app.test_client().get("/readyz")
    assert (answer.status_code, answer.json["reason"]) == (503, "The database does not answer")
    assert app.test_client().get("/healthz").status_code == 200


def test_a_migrated_database_is_ready(app: Flask) -> None:
    answer = app.test_client().get("/readyz")
    assert (answer.status_code, answer.json) == (200, {"status": "ready"})


def test_cookies_are_out_of_reach_of_scripts_and_other_sites(production: Settings, app: Flask) -> None:
    cookie = app.test_client().get("/sign-in").headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "Secure" not in cookie
    client = create_app(production).test_client()
    assert "Secure" in client.get("/sign-in", base_url="https://cron.example").headers["Set-Cookie"]


def test_under_tls_browsers_are_told_to_stay_there(production: Settings) -> None:
    client = create_app(production).test_client()
    answer = client.get("/healthz", base_url="https://cron.example")
    assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"


@pytest.mark.parametrize("key", ["", "short", "changeme" * 3])
def test_production_refuses_a_weak_key(production: Settings, key: str) -> None:
    with pytest.raises(Invalid) as refused:
        create_app(replace(production, secret_key=key))
    assert list(refused.value.fields) == ["KYTECRON_SECRET_KEY"]


@pytest.mark.parametrize(
    ("proxies", "address", "scheme"),
    [(0, "127.0.0.1", "http"), (1, "198.51.100.7", "https"), (2, "203.0.113.9", "https")],
)
def test_only_declared_proxies_are_believed(
    sqlite_settings: Settings, proxies: int, address: str, scheme: str
) -> None:
    app = create_app(replace(sqlite_settings, trusted_proxies=proxies))
    app.add_url_rule("/seen", view_func=lambda: {"ip": request.remote_addr, "scheme": request.scheme})
    headers = {
        "X-Forwarded-For": "192.0.2.66, 203.0.113.9, 198.51.100.7",
        "X-Forwarded-Proto": "http, https, https",
    }
    assert app.test_client().get("/seen", headers=headers).json == {"ip": address, "scheme": scheme}


def test_forms_need_the_csrf_token_and_the_api_does_not(app: Flask) -> None:
    client = app.test_client()
    assert client.post("/sign-in", data={"username": "a", "password": "b"}).status_code == 400
    assert client.post("/api/v1/jobs", json={}).status_code == 401


def test_a_form_that_is_too_large_is_refused(app: Flask) -> None:
    answer = app.test_client().post("/sign-in", data={"username": "x" * 5_000_000})
    assert answer.status_code == 413


@pytest.mark.parametrize("name", ["app.css", "app.js", "htmx.min.js", "icons.svg"])
def test_static_text_is_compressed_for_browsers_that_take_it(app: Flask, name: str) -> None:
    client = app.test_client()
    plain = client.get(f"/static/{name}")
    small = client.get(f"/static/{name}", headers={"Accept-Encoding": "gzip, deflate"})
    assert "Content-Encoding" not in plain.headers
    assert small.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(small.data) == plain.data
    assert small.content_length < plain.content_length / 2
    assert "Accept-Encoding" in small.vary
    assert "Accept-Encoding" in plain.vary
    assert small.headers["ETag"] != plain.headers["ETag"]


def test_what_is_compressed_already_and_pages_stay_as_they_are(app: Flask) -> None:
    for path in ("/static/inter.woff2", "/sign-in"):
        answer = app.test_client().get(path, headers={"Accept-Encoding": "gzip"})
        assert "Content-Encoding" not in answer.headers

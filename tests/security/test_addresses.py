"""Addresses and other odd bytes from outside: nobody gets a fault out of them, and nobody is sent elsewhere."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kytecron.app import create_app
from kytecron.config import Settings
from kytecron.core import addresses
from kytecron.core.errors import Invalid
from kytecron.services import accounts, webhook
from kytecron.services.audit import Actor
from kytecron.store import db as database_tools
from tests.pages import PASSWORD, Visitor, database

from .test_access_table import routes
from .test_sessions import KEY

ODD = [
    *(
        "//[",
        "https://[",
        "http://[::",
        "//[::1%25]:80/",
        "http://h:x/",
        "http://h:99999999/",
        "http://user:pass@[/",
    ),
    *("//evil.example", "/\\evil.example", "\\\\evil.example", "/\t/evil.example", "/\n/evil.example"),
    *(
        "https:evil.example",
        "///evil.example",
        "javascript:alert(1)",
        "/%2F%2Fevil.example",
        "[",
        "]",
        "@",
        ":",
        "\x00",
    ),
    *("\x80\xff", "\ud800", "a..b", "..", ".", "*", "a b", "h:", ":80", "x" * 5000, "9" * 5000, "xn--\xff"),
    *("\u3002\u3002", "http://\u2100.a/"),
]
PIECES = [
    "/",
    "//",
    "\\",
    ":",
    "[",
    "]",
    "@",
    "?",
    "%2f",
    "%5c",
    "http:",
    "https://",
    "evil.example",
    "\t",
    "\x00",
]
LIKE_ADDRESSES = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=8).map(
    "".join
) | st.sampled_from(ODD)
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
HEADERS = [
    *(
        "HOST",
        "REFERER",
        "ORIGIN",
        "HX_CURRENT_URL",
        "COOKIE",
        "AUTHORIZATION",
        "X_FORWARDED_FOR",
        "X_FORWARDED_PROTO",
    ),
    *(
        "X_FORWARDED_HOST",
        "X_FORWARDED_PREFIX",
        "USER_AGENT",
        "ACCEPT",
        "ACCEPT_ENCODING",
        "ACCEPT_LANGUAGE",
        "RANGE",
    ),
    *("IF_NONE_MATCH", "IF_MODIFIED_SINCE", "CONTENT_ENCODING", "X_CSRFTOKEN", "HX_REQUEST", "IF_MATCH"),
]
OPEN_PAGES = [
    "/",
    "/sign-in",
    "/sign-in/x",
    "/healthz",
    "/nothing",
    "/api/v1/jobs",
    "/api/v1/openapi.json",
    "/metrics",
]


def as_header(text: str) -> str:
    """As a server hands it over: bytes as Latin-1."""
    return text.encode("utf-8", "surrogatepass").decode("latin-1")


@given(LIKE_ADDRESSES)
@settings(max_examples=500, deadline=None)
def test_reading_an_address_never_raises(text: str) -> None:
    addresses.read(text)
    addresses.is_host(text)
    path = addresses.path_on_this_site(text)
    assert path is None or re.fullmatch(r"/(?![/\\\\])[!-~]*", path)


@given(LIKE_ADDRESSES)
@FEW
def test_a_webhook_s_address_is_taken_or_refused_in_words(text: str) -> None:
    try:
        webhook.validate_webhook_url(text, Settings())
        said = "nothing"
    except ValueError as error:
        said = str(error)
    assert said


@pytest.mark.parametrize("url", ["mysql+pymysql://a:b@host:port/x", "mysql://[", "sqlite//", "[", "nothing"])
def test_a_database_s_address_that_is_none_is_told_as_a_setting(url: str) -> None:
    with pytest.raises(Invalid, match="KYTECRON_DATABASE_URL"):
        database_tools.engine_options(url)


@given(LIKE_ADDRESSES)
@FEW
def test_signing_in_with_any_next_page_leads_to_a_page_of_ours(app: Flask, text: str) -> None:
    visitor = Visitor(app)
    shown = visitor.get(f"/sign-in?next={quote(text, errors='replace')}")
    assert shown.status_code in (200, 422), "the second for NUL"
    assert "evil.example" not in "".join(
        re.findall(r'name="next" value="(?:https?:|//|/\\\\)[^"]*"', shown.text)
    )
    assert visitor.client.post("/sign-in", data={"next": text.encode("utf-8", "replace")}).status_code == 400


@pytest.mark.parametrize("target", ODD)
def test_nobody_who_signs_in_is_sent_elsewhere(app: Flask, target: str) -> None:
    with database(app) as session:
        accounts.create_user(session, "maria", PASSWORD, "viewer", Actor("test"))
    form = {"username": "maria", "password": PASSWORD, "next": target.encode("utf-8", "replace")}
    answer = Visitor(app).post("/sign-in", form)
    if target == "\x00":
        assert answer.status_code == 422
    else:
        # Browsers take what is encoded for a path.
        assert (answer.status_code, answer.location) == (303, target if target.startswith("/%2F") else "/")


@pytest.fixture(scope="module", params=[0, 1], ids=["alone", "behind a proxy"])
def strict(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, sqlite_template: Any
) -> Flask:
    """In production, where forms compare the referrer."""
    instance = tmp_path_factory.mktemp("strict")
    (instance / "kytecron.db").write_bytes(sqlite_template.read_bytes())
    return create_app(
        Settings(
            instance_path=instance, environment="production", secret_key=KEY, trusted_proxies=request.param
        )
    )


@pytest.mark.parametrize("header", HEADERS)
def test_no_header_is_a_fault_of_the_server(strict: Flask, header: str) -> None:
    faults = []
    for value in map(as_header, ODD):
        for path in OPEN_PAGES:
            for method in ("GET", "POST"):
                environ = {"HTTP_HX_REQUEST": "true"} if header == "HX_CURRENT_URL" else {}
                environ |= {f"HTTP_{header}": value, "wsgi.url_scheme": "https"}
                answer = strict.test_client().open(
                    path, method=method, environ_overrides=environ, buffered=True
                )
                if answer.status_code >= 500:
                    faults.append((path, method, value, answer.status_code))
                assert "evil" not in answer.headers.get("Location", "").partition("?")[0]
    assert faults == []


@pytest.mark.parametrize("referrer", ODD)
def test_a_form_with_any_referrer_is_refused_and_no_fault(strict: Flask, referrer: str) -> None:
    client, base = strict.test_client(), "https://cron.example"
    page = client.get("/sign-in", base_url=base).text
    found = re.search(r'name="csrf-token" content="([^"]+)"', page)
    assert found
    answer = client.post(
        "/sign-in",
        data={"csrf_token": found[1]},
        base_url=base,
        environ_overrides={"HTTP_REFERER": as_header(referrer), "HTTP_COOKIE": _cookie(client)},
    )
    assert answer.status_code == 400


def _cookie(client: Any) -> str:
    cookie = client.get_cookie("__Host-kytecron", domain="cron.example")
    return f"__Host-kytecron={cookie.value}"


@pytest.mark.parametrize(
    "query",
    ["\xff\xfe", "next=\xff", "next=%00", "next=%ed%a0%80", "%", "a=%", "&" * 5000, "next=" + "9" * 5000],
)
def test_no_query_is_a_fault_of_the_server(strict: Flask, query: str) -> None:
    for path in OPEN_PAGES:
        for method in ("GET", "POST"):
            answer = strict.test_client().open(path, method=method, environ_overrides={"QUERY_STRING": query})
            assert answer.status_code < 500, (path, method)


@pytest.mark.parametrize(
    "part", ["9" * 30, "9" * 5000, "-1", "0", "\xff", "a\x00b", "\xed\xa0\x80", "..", "a b", "x" * 5000]
)
@pytest.mark.parametrize("person", ["anonymous", "admin"])
def test_no_part_of_a_path_is_a_fault_of_the_server(
    visitors: dict[str, Visitor], part: str, person: str
) -> None:
    visitor = visitors[person]
    faults = []
    for rule in sorted(routes(visitor.app)):
        method, path = re.sub("{.+?}", lambda _: part, rule).split(" ", 1)
        answer = visitor.client.open("/", method=method, environ_overrides={"PATH_INFO": path}, buffered=True)
        if answer.status_code >= 500:
            faults.append(rule)
    assert faults == []


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b""),
        ("multipart/form-data; boundary=", b"--"),
        ("multipart/form-data; boundary=x", b"--x\r\n"),
        ("multipart/form-data; boundary=\xff", b"--\xff"),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\nContent-Disposition: form-data; name*=u''%ff\r\n\r\nx\r\n--x--",
        ),
        ("application/x-www-form-urlencoded", b"username=%ff&password=%ed%a0%80&csrf_token=\xff"),
        ("application/x-www-form-urlencoded; charset=nope", b"username=a"),
        ("\xff/\xff; charset", b"\x00"),
    ],
)
@pytest.mark.parametrize("length", ["", "x", "-1", "9" * 30, "\xb2"])
def test_no_body_is_a_fault_of_the_server(strict: Flask, kind: str, body: bytes, length: str) -> None:
    environ = {"CONTENT_TYPE": kind} | ({"CONTENT_LENGTH": length} if length else {})
    for path in ("/sign-in", "/sign-out", "/api/v1/jobs", "/nothing"):
        answer = strict.test_client().open(path, method="POST", data=body, environ_overrides=environ)
        assert answer.status_code < 500, path

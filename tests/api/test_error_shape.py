"""Whatever goes wrong is told in one shape, with the security headers, and never as a 500."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from flask import Flask
from sqlalchemy.exc import OperationalError
from werkzeug.test import TestResponse

from kytecron.app import HEADERS
from kytecron.requestdb import db
from kytecron.services import throttle
from kytecron.store import queries

from .conftest import CODE, Caller


def told(answer: TestResponse, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.mimetype == "application/json"
    assert answer.json.keys() == {"error"}
    error: dict[str, Any] = answer.json["error"]
    assert error.keys() - {"details"} == {"code", "message", "fields"}
    assert error["code"] == code
    assert isinstance(error["message"], str)
    assert error["message"]
    assert all(isinstance(text, str) for text in error["fields"].values())
    for name in HEADERS:
        assert name in answer.headers
    assert answer.headers["Cache-Control"] == "no-store"
    return error


def test_an_address_that_is_none(callers: dict[str, Caller]) -> None:
    for path in ("/nothing", "/jobs/abc", "/jobs/-1", "/jobs/1.5", "/jobs/1/", "", "/"):
        told(callers["admin"](f"GET {path}"), 404, "not_found")
        told(callers["anonymous"](f"GET {path}"), 404, "not_found")


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_a_method_that_an_address_does_not_take(api: Caller, method: str) -> None:
    answer = api(f"{method} /jobs")
    told(answer, 405, "method_not_allowed")
    assert "GET" in answer.headers["Allow"]
    assert "POST" in answer.headers["Allow"]


def test_pages_have_no_part_in_it(app: Flask) -> None:
    client = app.test_client()
    for path in ("/nothing", "/apiary", "/api.html"):
        assert client.get(path).mimetype == "text/html"
    # Whoever mistakes the version is a program all the same.
    for path in ("/api", "/api/", "/api/jobs", "/api/v10/jobs"):
        assert "/api/v1/docs" in told(client.get(path), 404, "not_found")["message"]


def test_ids_that_nothing_has(api: Caller) -> None:
    for number in (0, 4711, 2**63 - 1, 2**63, 10**30):
        for rule in (
            "GET /jobs/{}",
            "PATCH /jobs/{}",
            "DELETE /jobs/{}",
            "POST /jobs/{}/trigger",
            "POST /jobs/{}/enable",
            "POST /jobs/{}/recover",
            "GET /jobs/{}/stats",
            "GET /jobs/{}/upcoming",
            "GET /jobs/{}/versions",
            "GET /jobs/{}/versions/1/code",
            "GET /jobs/{}/versions/compare?from=1&to=2",
            "GET /executions/{}",
            "GET /executions/{}/log",
            "POST /executions/{}/cancel",
            "POST /executions/{}/retry",
            "POST /executions/{}/rerun",
            "POST /locks/{}/release",
        ):
            told(api(rule.format(number)), 404, "not_found")
    job = api.job()["id"]
    for number in (0, 2, 2**31, 2**63, 10**30):
        told(api(f"GET /jobs/{job}/versions/{number}"), 404, "not_found")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b"\xff\xfe",
        '{"name": "naïve"}'.encode("latin-1"),
        b'{"name": NaN}',
        b'{"name": -Infinity}',
        b'{"name": "a", "name": "b"}',
        b'{"parameters": {"a": 1, "a": 2}}',
        b'{"parameters": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"parameters": ' + b'{"a":' * 40 + b"1" + b"}" * 41,
        b'{"priority": ' + b"9" * 5000 + b"}",
        b"\xef\xbb\xbf{}",
        b"{} {}",
        b"{'name': 'a'}",
    ],
)
def test_a_body_that_is_not_a_json_object(api: Caller, body: bytes) -> None:
    told(api("POST /jobs", data=body, content_type="application/json"), 400, "malformed")


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_a_body_that_is_not_declared_as_json(api: Caller, kind: str) -> None:
    told(api("POST /jobs", data=b'{"name": "a"}', content_type=kind), 415, "unsupported_media_type")


@pytest.mark.parametrize("packing", ["gzip", "deflate", "br", "identity, gzip"])
def test_a_body_that_is_packed(api: Caller, packing: str) -> None:
    data = gzip.compress(b"{}") if "gzip" in packing else b"{}"
    answer = api(
        "POST /jobs", data=data, headers={"Content-Encoding": packing}, content_type="application/json"
    )
    assert "Content-Encoding" in told(answer, 415, "unsupported_media_type")["message"]


@pytest.mark.parametrize("query", ["q=%ff", "%c3=1", "q=a&tag=%ed%a0%80"])
def test_a_query_that_is_not_utf_8(api: Caller, query: str) -> None:
    assert told(api(f"GET /jobs?{query}"), 400, "malformed")["message"] == "The query is not UTF-8"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"timeout_seconds": "60"}, "timeout_seconds must be a whole number"),
        ({"timeout_seconds": 1.5}, "timeout_seconds must be a whole number"),
        ({"timeout_seconds": 0}, "timeout_seconds must be at least 1"),
        ({"timeout_seconds": 10**9}, "timeout_seconds must be at most 604800"),
        ({"enabled": "yes"}, "enabled must be true or false"),
        ({"name": 5}, "name must be text"),
        ({"name": "x" * 201}, "name must be at most 200 characters long"),
        ({"code": "\ud800"}, "code holds half a character, which cannot be stored"),
        ({"k" * 300: 1}, "k" * 100 + " is not a known field"),
        ({"retry_strategy": "hope"}, "Invalid retry_strategy. Must be one of: exponential, fixed, immediate"),
    ],
)
def test_it_is_said_what_to_write_instead(api: Caller, fields: dict[str, object], said: str) -> None:
    answer = api("POST /jobs", json={"name": "a", "code": CODE, **fields})
    assert list(told(answer, 422, "invalid")["fields"].values()) == [said]


def test_a_body_that_is_too_large(api: Caller) -> None:
    body = json.dumps({"name": "a", "code": "#" * (4 * 1024 * 1024)})
    told(api("POST /jobs", data=body, content_type="application/json"), 413, "too_large")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "x" * 201),
        ("name", None),
        ("name", 7),
        ("name", "a\0b"),
        ("name", "\ud800"),
        ("description", "\udfff"),
        ("description", ["\0"]),
        ("code", ""),
        ("code", "x = "),
        ("code", "a\0"),
        ("code", "\ud800"),
        ("code", "x = 1\n" * 300_000),
        ("tags", "a,b"),
        ("tags", ["a b"]),
        ("tags", None),
        ("schedule_type", "hourly"),
        ("schedule_type", "cron"),
        ("interval_seconds", "60"),
        ("interval_seconds", True),
        ("timezone", "Mars/Olympus"),
        ("time_of_day", 5),
        ("priority", 10),
        ("priority", "5"),
        ("priority", 5.5),
        ("priority", 2**63),
        ("parameters", {"a": [-(10**20)]}),
        ("depends_on", [10**30]),
        ("enabled", 1),
        ("enabled", "true"),
        ("parameters", "{}"),
        ("parameters", {"a": "\0"}),
        ("parameters", {"\ud800": 1}),
        ("parameters", {"a": "x" * 65_000}),
        ("depends_on", [4711]),
        ("depends_on", ["1"]),
        ("starts_at", "soon"),
        ("max_runs", 0),
        ("notification_email", "nobody"),
        ("message", "x" * 501),
        ("next_run_time", "2026-01-01T00:00:00Z"),
        ("id", 1),
        ("in_dead_letter_queue", False),
    ],
)
def test_a_wrong_field_is_named(api: Caller, field: str, value: object) -> None:
    body = json.dumps({"name": "a", "code": CODE} | {field: value})
    error = told(api("POST /jobs", data=body, content_type="application/json"), 422, "invalid")
    if field == "schedule_type" and value == "cron":
        field = "cron_expression"
    assert list(error["fields"]) == [field]
    if field != "code":
        job = api.job()["id"]
        answer = api(f"PATCH /jobs/{job}", data=json.dumps({field: value}), content_type="application/json")
        if field not in ("time_of_day", "cron_expression"):  # which a job of this kind has no use for
            assert list(told(answer, 422, "invalid")["fields"]) == [field]


@pytest.mark.parametrize(
    ("address", "field"),
    [
        ("/jobs?limit=0", "limit"),
        ("/jobs?limit=201", "limit"),
        ("/jobs?limit=x", "limit"),
        ("/jobs?limit=", "limit"),
        ("/jobs?limit=1&limit=2", "limit"),
        ("/jobs?limit=99999999999999999999999999", "limit"),
        ("/jobs?status=asleep", "status"),
        ("/jobs?sort=color", "sort"),
        ("/jobs?cursor=abc", "cursor"),
        ("/jobs?q=%00", "q"),
        ("/jobs?q=" + "x" * 201, "q"),
        ("/jobs?nonsense=1", "nonsense"),
        ("/executions?status=completed,asleep", "status"),
        ("/executions?from=yesterday", "from"),
        ("/executions?to=2026-13-01T00:00:00Z", "to"),
        ("/executions?job=0", "job"),
        ("/executions?job=9223372036854775808", "job"),
        ("/executions?version=2147483648", "version"),
        ("/executions?cursor=%F0%9F%98%80", "cursor"),
        ("/executions/failed?days=0", "days"),
        ("/executions/statistics?days=367", "days"),
        ("/executions/1/log?after=x&follow=maybe", "follow"),
        ("/contents", "hash"),
        ("/contents?hash=xyz", "hash"),
        ("/contents?hash=%25", "hash"),
        ("/audit?source=elsewhere", "source"),
        ("/stats?days=1", "days"),
    ],
)
def test_a_wrong_parameter_is_named(api: Caller, address: str, field: str) -> None:
    assert list(told(api(f"GET {address}"), 422, "invalid")["fields"]) == [field]


def test_a_cursor_that_was_changed_or_is_of_another_list(api: Caller) -> None:
    for number in range(3):
        api.job(f"job {number}")
    cursor = api("GET /jobs?limit=1").json["next_cursor"]
    assert api(f"GET /jobs?cursor={cursor}").status_code == 200
    for address in (
        f"/jobs?cursor={cursor[:-1]}",
        f"/jobs?cursor={cursor}A",
        f"/jobs?cursor={cursor[1:]}",
        f"/jobs?sort=id&cursor={cursor}",
        f"/executions?cursor={cursor}",
    ):
        assert list(told(api(f"GET {address}"), 422, "invalid")["fields"]) == ["cursor"]


def test_what_the_present_state_forbids(api: Caller) -> None:
    job = api.job()
    api(f"POST /jobs/{job['id']}/disable")
    error = told(api(f"POST /jobs/{job['id']}/trigger"), 409, "conflict")
    assert error["message"] == "Job is disabled"
    told(api(f"POST /jobs/{job['id']}/recover"), 409, "conflict")
    told(api(f"POST /jobs/{job['id']}/rollback", json={"version": 1}), 409, "conflict")


def test_numbers_too_large_for_anything(api: Caller) -> None:
    for number in (b"1e999", b"-1e999", b"1e300"):
        answer = api("POST /jobs", data=b'{"priority": ' + number + b"}", content_type="application/json")
        assert list(told(answer, 422, "invalid")["fields"]) == ["priority"]


def test_a_whole_number_may_be_written_with_a_point(api: Caller) -> None:
    assert api.job(priority=7.0)["priority"] == 7
    assert api.job("as it is", parameters={"a": 7.0})["parameters"] == {"a": 7.0}


def test_a_stale_edit_shows_both_sides(api: Caller) -> None:
    job = api.job()
    address = f"PATCH /jobs/{job['id']}"
    assert api(address, json={"priority": 7, "revision": job["revision"]}).status_code == 200
    error = told(api(address, json={"priority": 8, "revision": job["revision"]}), 409, "conflict")
    assert error["details"]["fields"] == {"priority": {"theirs": 7, "yours": 8}}
    newer = CODE.replace("hello", "hello, world")
    assert api(address, json={"code": newer, "base_version": 1}).status_code == 200
    error = told(api(address, json={"code": CODE + "# mine\n", "base_version": 1}), 409, "conflict")
    assert "hello, world" in error["details"]["theirs"]
    assert "# mine" in error["details"]["yours"]


def test_too_many_triggers(api: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "TRIGGERS_PER_MINUTE", 1)
    job = api.job(overlap_policy="allow")["id"]
    # Windows lie on the clock, and one may end between two of these.
    answers = [api(f"POST /jobs/{job}/trigger") for _ in range(3)]
    refused = [answer for answer in answers if answer.status_code != 202]
    told(refused[0], 429, "too_many_requests")
    assert 1 <= int(refused[0].headers["Retry-After"]) <= 60


def test_what_nobody_foresaw_says_nothing_of_the_inside(
    api: Caller, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("the password is hunter2")

    monkeypatch.setattr(queries, "jobs", fail)
    answer = api("GET /jobs")
    told(answer, 500, "internal")
    assert "hunter2" not in answer.text
    assert "hunter2" in caplog.text


def test_a_database_that_is_away_is_503(
    api: Caller, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OperationalError("SELECT secret", {}, Exception("server has gone away"))

    monkeypatch.setattr(queries, "jobs", fail)
    answer = api("GET /jobs")
    told(answer, 503, "unavailable")
    assert "SELECT" not in answer.text


def test_a_failed_request_leaves_no_transaction_behind(app: Flask, api: Caller) -> None:
    told(api("POST /jobs", json={"name": "a", "code": "no"}), 422, "invalid")
    with app.app_context():
        assert not db.session().in_transaction()
    assert api.job("a")["id"]


def test_an_address_that_is_none_is_told_as_json_however_large_the_body(api: Caller) -> None:
    told(api("PUT /secrets/none", data="x" * 1_000_000, content_type="application/json"), 404, "not_found")

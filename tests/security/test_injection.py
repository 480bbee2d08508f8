"""What comes in as data is data: in SQL, in headers, in addresses, in paths, in files and in bodies."""

from __future__ import annotations

import base64
import bz2
import gzip
import http.client
import io
import json
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.serving import WSGIRequestHandler, make_server

from kytecron.app import create_app
from kytecron.config import Settings
from kytecron.core.errors import Invalid, Unreadable
from kytecron.core.states import Outcome, Status
from kytecron.services import accounts, lifecycle, notify, transfer, versions
from kytecron.services.audit import Actor
from kytecron.store.db import make_sessions
from kytecron.store.models import CronJob, CronJobExecution, KyteCronJobVersionContent
from tests.factories import claim_one
from tests.pages import HELLO, PASSWORD, Visitor, database, make_job
from tests.servers import MailServer

SQL = [
    "'",
    "' OR '1'='1",
    "' OR 1=1 -- ",
    '" OR ""="',
    "'; DROP TABLE CronJob; --",
    "1) UNION SELECT password_hash FROM CronUser --",
    "\\' OR 1=1 #",
    "%",
    "_",
    "%' ESCAPE '/",
    "/%",
    "\0",
    "\ud800",
    "💥" * 300,
]
CRLF = ["a\r\nSet-Cookie: evil=1", "a\nX-Evil: 1", "a\rX-Evil: 1", "a\u2028X-Evil: 1", "a\x85X-Evil: 1"]


# -- SQL -----------------------------------------------------------------------------------------------------


@pytest.fixture
def furnished(app: Flask) -> CronJob:
    job = make_job(app, "payroll", tags="money", description="nightly")
    with database(app) as session:
        lifecycle.trigger(session, job.id, actor=Actor("test"))
    return job


API_LISTS = {
    "/jobs": ("q", "tag", "status", "schedule_type", "last_result", "sort", "cursor", "limit"),
    "/executions": ("job", "status", "origin", "from", "to", "worker", "version", "text", "cursor", "limit"),
    "/executions/failed": ("days", "cursor"),
    "/executions/running": ("cursor",),
    "/audit": ("actor", "action", "source", "subject_type", "subject_id", "from", "to", "cursor"),
    "/contents": ("hash",),
    "/dead-letters": ("cursor",),
    "/workers": ("hours",),
    "/jobs/1/versions": ("cursor", "limit"),
}
PAGE_LISTS = {
    "/jobs": ("q", "tag", "status", "type", "result", "sort", "cursor"),
    "/executions": ("job", "status", "from", "to", "worker", "text", "cursor"),
    "/audit": ("actor", "action", "subject_type", "subject_id", "cursor"),
    "/jobs/1/versions": ("before",),
    "/jobs/parents": ("parent_q", "depends_on", "job"),
    "/jobs/preview": ("schedule_type", "cron_expression", "timezone", "job"),
}


@pytest.mark.parametrize("text", SQL)
def test_no_filter_of_the_api_is_sql(furnished: CronJob, api: FlaskClient, text: str) -> None:
    for path, names in API_LISTS.items():
        for name in names:
            answer = api.get(f"/api/v1{path}", query_string={name: text.encode("utf-8", "surrogatepass")})
            assert answer.status_code in (200, 400, 422), f"{path} {name}: {answer.text}"
            if answer.status_code == 200:
                assert answer.json["items"] == [], f"{path} {name} found something"
    assert api.get("/api/v1/jobs").json["items"][0]["name"] == "payroll"


@pytest.mark.parametrize("text", SQL)
def test_no_filter_of_a_page_is_sql(furnished: CronJob, admin: Visitor, text: str) -> None:
    for path, names in PAGE_LISTS.items():
        for name in names:
            answer = admin.get(path, query_string={name: text.encode("utf-8", "surrogatepass")})
            assert answer.status_code in (200, 422), f"{path} {name}: {answer.status_code}"
            if name in ("q", "tag", "text", "worker", "actor", "parent_q"):
                assert "payroll" not in answer.text, f"{path} {name} found something"
    assert "payroll" in admin.get("/jobs").text


def test_a_forged_cursor_shows_nothing_that_the_list_would_not(
    app: Flask, furnished: CronJob, api: FlaskClient
) -> None:
    make_job(app, "second")
    cursor = api.get("/api/v1/jobs?limit=1").json["next_cursor"]
    raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    forged = [
        raw[:6] + b'["x\' OR 1=1 --",0]',
        raw[:6] + b'[{"$gt":""},0]',
        raw[:6] + b"[" * 5000,
        b"\x80\x04." + raw,  # a pickle
        raw[:-1] + b"9",
    ]
    for data in forged:
        answer = api.get("/api/v1/jobs", query_string={"cursor": base64.urlsafe_b64encode(data).rstrip(b"=")})
        assert answer.status_code == 422
        assert list(answer.json["error"]["fields"]) == ["cursor"]


def test_signing_in_is_not_sql(app: Flask) -> None:
    with database(app) as session:
        accounts.create_user(session, "maria", PASSWORD, "admin", Actor("test"))
    for text in SQL[:5]:  # each takes a hash
        name = text.encode("utf-8", "replace").decode()
        for form in (
            {"username": f"maria{name}", "password": PASSWORD},
            {"username": "maria", "password": name},
        ):
            assert Visitor(app).post("/sign-in", form).status_code in (422, 429)


# -- headers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", CRLF)
def test_no_name_becomes_a_header(
    app: Flask, furnished: CronJob, admin: Visitor, api: FlaskClient, text: str
) -> None:
    with database(app) as session:  # as nobody can save it
        session.get_one(CronJob, furnished.id).name = text
        session.commit()
    job = f"/jobs/{furnished.id}"
    answers = [
        admin.post(f"{job}/trigger", part=True),
        admin.post(f"{job}/disable", part=True),
        admin.post(f"{job}/enable"),
        admin.post(f"{job}/clone"),
        admin.get("/executions/1/log"),
        admin.get(f"{job}/versions/1/code"),
        admin.get("/sign-out", query_string={"next": text}),
        admin.get("/jobs", query_string={"q": text}),
        admin.client.get(
            "/account", headers={"Referer": f"http://localhost/{text}".replace("\r", "").replace("\n", "")}
        ),
        admin.post("/secrets", {"name": text, "value": "x"}),
        admin.post("/tokens", {"name": text, "token_role": "viewer"}),
        Visitor(app).get("/jobs", query_string={"q": text}),
        api.post(f"/api/v1{job}/trigger", json={}),
        api.post(f"/api/v1{job}/clone", json={"name": text}),
    ]
    for answer in answers:
        for name, value in answer.headers:
            assert name.lower() not in ("x-evil",)
            assert "\r" not in value
            assert "\n" not in value
            assert name != "Set-Cookie" or value.startswith("kytecron=")


@pytest.mark.parametrize("text", CRLF)
def test_names_are_one_line_wherever_they_are_given(admin: Visitor, api: FlaskClient, text: str) -> None:
    answer = api.post("/api/v1/jobs", json={"name": text, "code": HELLO})
    assert answer.status_code == 422
    assert "name" in answer.json["error"]["fields"]
    assert (
        admin.post("/jobs/new", {"name": text, "schedule_type": "manual", "code": HELLO}).status_code == 422
    )


def test_no_name_becomes_a_header_of_a_mail(app: Flask, settings: Settings) -> None:
    job = make_job(app, "mailed", notification_email="ops@example.com", max_retries=0)
    with database(app) as session:
        session.get_one(CronJob, job.id).name = "x\r\nBcc: evil@example.net\r\n\r\n<script>evil()</script>"
        session.commit()
        lifecycle.trigger(session, job.id, actor=Actor("test"))
        lifecycle.settle(
            session, [(claim_one(session), Outcome(Status.FAILED, error="a\r\nBcc: evil@example.net"))]
        )
        with MailServer() as server:
            mailing = replace(settings, smtp_host="127.0.0.1", smtp_port=server.port, smtp_starttls=False)
            assert notify.deliver(make_sessions(session.get_bind()), mailing, "w") == 1  # type: ignore[arg-type]
        assert server.recipients == ["ops@example.com"]
        head, _, body = server.mails[0].partition("\n\n")
        assert "bcc" not in {line.partition(":")[0].lower() for line in head.splitlines()}
        assert "<script>" not in body.partition("text/html")[2]


# -- where answers and mails lead ----------------------------------------------------------------------------

ELSEWHERE = [
    "https://evil.example/",
    "//evil.example",
    "///evil.example",
    "/\\evil.example",
    "/\t/evil.example",
    "\\/evil.example",
    "https:evil.example",
    "http:///evil.example",
    "javascript:evil()",
    "@evil.example",
    "/%0d%0aLocation:%20https://evil.example",
]


@pytest.mark.parametrize("target", ELSEWHERE)
def test_nobody_is_sent_to_another_site(app: Flask, admin: Visitor, target: str) -> None:
    job = make_job(app)
    plain = target.replace("\t", "%09")
    answers = [
        Visitor(app).sign_in_as("the-admin").get("/sign-in", query_string={"next": target}),
        admin.post(f"/jobs/{job.id}/enable", headers={"Referer": plain}),
        admin.post(f"/jobs/{job.id}/enable", headers={"Referer": f"http://localhost{plain}"}),
        admin.post("/sign-out", headers={"Referer": plain}),
        admin.post(f"/jobs/{job.id}/enable", headers={"Referer": plain}),
        admin.get("/jobs", part=True, headers={"HX-Current-URL": plain}),
    ]
    for answer in answers:
        _stays_here(answer.headers)


def _stays_here(headers: Any) -> None:
    for header in ("Location", "HX-Redirect", "HX-Location", "Refresh"):
        to = headers.get(header, "/")
        assert to.startswith("/"), to
        assert not to.startswith(("//", "/\\")), to


FORGED = [
    {"Host": "evil.example"},
    {"X-Forwarded-Host": "evil.example"},
    {"X-Forwarded-Server": "evil.example"},
    {"Forwarded": "host=evil.example"},
]


@pytest.mark.parametrize("forged", FORGED, ids=lambda forged: next(iter(forged)))
def test_no_address_is_made_from_who_we_are_said_to_be(
    app: Flask, admin: Visitor, live: Callable[..., Any], forged: dict[str, str]
) -> None:
    job = make_job(app)
    token = admin.token()
    cookie = admin.client.get_cookie("kytecron")
    assert cookie
    # As behind a proxy that passes any name on, so that the cookie comes along.
    forged = forged | {"Cookie": f"kytecron={cookie.value}"}
    form = forged | {"X-CSRFToken": token, "Content-Type": "application/x-www-form-urlencoded"}
    paths = ["/", "/users", "//jobs", "//evil.example/%2f..", "/jobs/", f"/jobs//{job.id}", "/nothing"]
    paths += ["/api/v1/openapi.json", "/api/v1//jobs", "/api//v1/jobs", "/static//app.css", "/sign-in/"]
    answers = [live("GET", path, None, forged) for path in paths]
    olga = live("POST", "/users", "username=olga&role=viewer", form)
    answers += [olga, live("POST", f"/jobs/{job.id}/enable", "", form), live("POST", "/sign-out", "", form)]
    for status, headers, body in answers:
        assert status < 500
        assert b"evil.example" not in body.replace(b"%2f%2fevil.example", b"")
        _stays_here(headers)
    assert b"https://cron.example/sign-in/" in olga[2], "absolute addresses come from KYTECRON_PUBLIC_URL"


def test_mails_link_to_the_set_address(settings: Settings) -> None:
    with MailServer() as server:
        mailing = replace(settings, smtp_host="127.0.0.1", smtp_port=server.port, smtp_starttls=False)
        assert notify.test_channel(mailing, "email", "ops@example.com") is None
    assert "https://cron.example" in server.mails[0]


# -- paths ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/static/..%5capp.py",
        "/static/....//app.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/licences/../../config.py",
        "/static/app.css%00.py",
        "/static/",
        "/static/licences",
        "/static/../../instance/secret-key",
        "/executions/../../etc/passwd/log",
        "/executions/%2e%2e%2f1/log",
        "/jobs/1/versions/..%2f1/code",
        "/jobs/1/versions/-1/code",
    ],
)
def test_no_path_leads_out_of_what_is_served(live: Callable[..., Any], path: str) -> None:
    status, _, body = live("GET", path)
    assert status in (303, 404), body[:200]
    assert b"create_app" not in body
    assert b"root:" not in body


# -- fields that are not theirs to set -----------------------------------------------------------------------

NOT_THEIRS: dict[str, Any] = {
    "id": 77,
    "created_by": "somebody else",
    "updated_by": "somebody else",
    "created_at": "2001-01-01T00:00:00Z",
    "runs_total": 1000,
    "runs_completed": 1000,
    "in_dead_letter_queue": True,
    "dead_letter_reason": "because",
    "consecutive_failures": 99,
    "current_version": 7,
    "next_run_time": "2001-01-01T00:00:00Z",
    "state": {"x": 1},
    "deleted_id": 5,
    "deleted_at": "2001-01-01T00:00:00Z",
    "recent_results": "cccc",
    "last_status": "completed",
    "__class__": "x",
    "metadata": {},
    "registry": {},
}


def test_json_sets_what_people_may_set_and_names_the_rest(app: Flask, api: FlaskClient) -> None:
    job = make_job(app)
    for name, value in NOT_THEIRS.items():
        for answer in (
            api.post("/api/v1/jobs", json={"name": "new", "code": HELLO, name: value}),
            api.patch(f"/api/v1/jobs/{job.id}", json={name: value}),
            api.post(f"/api/v1/jobs/{job.id}/clone", json={name: value}),
            api.post(f"/api/v1/jobs/{job.id}/trigger", json={name: value}),
        ):
            assert answer.status_code == 422, name
            assert list(answer.json["error"]["fields"]) == [name]
    assert len(api.get("/api/v1/jobs").json["items"]) == 1


def test_forms_set_what_people_may_set_and_nothing_else(app: Flask, admin: Visitor) -> None:
    form = {name: str(value) for name, value in NOT_THEIRS.items()}
    made = admin.post("/jobs/new", {"name": "new", "schedule_type": "manual", "code": HELLO, **form})
    assert made.status_code == 303
    job_id = int(made.location.rpartition("/")[2])
    with database(app) as session:
        before = _row(session.get_one(CronJob, job_id))
    assert before["id"] != 77
    assert (before["created_by"], before["runs_total"], before["current_version"]) == ("the-admin", 0, 1)
    assert (before["in_dead_letter_queue"], before["deleted_id"], before["state"]) == (False, 0, None)
    for path in ("edit", "trigger", "enable", "clone"):
        admin.post(
            f"/jobs/{job_id}/{path}", {"name": "new", "code": HELLO, "schedule_type": "manual", **form}
        )
    with database(app) as session:
        after = _row(session.get_one(CronJob, job_id))
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {"updated_at", "updated_by", "revision", "enabled"}
    assert after["updated_by"] == "the-admin"


def test_nobody_gives_themselves_a_role(app: Flask, editor: Visitor) -> None:
    form = {
        "role": "admin",
        "enabled": "1",
        "id": "1",
        "user_id": "1",
        "username": "root",
        "password_hash": "x",
    }
    editor.post("/account/password", {"password": PASSWORD, "repeat": PASSWORD, **form})
    with database(app) as session:
        assert [(user.username, user.role) for user in accounts.list_users(session)] == [
            ("the-editor", "editor")
        ]


def _row(row: Any) -> dict[str, Any]:
    return {column.key: getattr(row, column.key) for column in row.__table__.columns}


# -- bodies --------------------------------------------------------------------------------------------------


DEEP = b'{"name": "x", "parameters": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}"
BODIES = {
    "deep": DEEP,
    "deep list": b'{"tags": ' + b"[" * 200_000,
    "deep within the limit of JSON": b'{"parameters": {"a": ' + b"[" * 40 + b"]" * 40 + b"}}",
    "huge number": b'{"timeout_seconds": ' + b"9" * 100_000 + b"}",
    "huge exponent": b'{"timeout_seconds": 1e999999}',
    "tiny exponent": b'{"parameters": {"a": 1e-999999999}, "timeout_seconds": 0.5}',
    "not a number": b'{"timeout_seconds": NaN}',
    "infinity": b'{"parameters": {"a": Infinity}}',
    "double key": b'{"name": "a", "name": "b"}',
    "double key inside": b'{"parameters": {"a": 1, "a": 2}}',
    "NUL": b'{"name": "a\\u0000b"}',
    "NUL in a key": b'{"a\\u0000b": 1}',
    "half a character": b'{"description": "\\ud800"}',
    "half a character inside": b'{"parameters": {"a": ["\\udfff"]}}',
    "half a character in a key": b'{"parameters": {"\\ud800": 1}}',
    "not UTF-8": b'{"name": "\xff"}',
    "UTF-16": '{"name": "a"}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"name": "a"}',
    "trailing": b'{"name": "a"} {"name": "b"}',
    "a list": b'[{"name": "a"}]',
    "null": b"null",
    "nothing": b"",
    "prototype": b'{"__proto__": {"role": "admin"}, "constructor": 1}',
}


@pytest.mark.parametrize("what", BODIES)
def test_a_hostile_body_is_refused_quickly_and_names_what_is_wrong(api: FlaskClient, what: str) -> None:
    began = time.process_time()
    for path in ("/jobs", "/jobs/1/trigger", "/schedules/preview", "/jobs/bulk"):
        answer = api.post(f"/api/v1{path}", data=BODIES[what], content_type="application/json")
        may_be_empty = what == "nothing" and path.endswith("/trigger")
        assert answer.status_code in ((404,) if may_be_empty else (400, 422)), (path, answer.text)
        assert answer.json["error"]["message"]
        assert len(answer.data) < 5_000
    assert time.process_time() - began < 5


def test_deep_json_in_a_form_is_refused(app: Flask, admin: Visitor) -> None:
    job = make_job(app)
    deep = '{"a":' * 50_000 + "1" + "}" * 50_000
    assert admin.post(f"/jobs/{job.id}/trigger", {"parameters": deep}).status_code == 422
    form = {"name": "x", "schedule_type": "manual", "code": HELLO, "parameters": deep}
    assert admin.post("/jobs/new", form).status_code == 422
    code = admin.client.post(
        "/jobs/check-code",
        data=b"[" * 500_000,
        content_type="application/json",
        headers={"X-CSRFToken": admin.token()},
    )
    assert code.status_code == 422


@pytest.mark.parametrize("where", ["name", "description", "note", "code", "parameters"])
@pytest.mark.parametrize("text", ["\0", "\ud800", "\x1b[31m"])
def test_text_that_no_database_takes_is_refused_in_forms(
    app: Flask, admin: Visitor, where: str, text: str
) -> None:
    job = make_job(app)
    given = f"a{text}b".encode("utf-8", "surrogatepass")
    form = {"name": b"x", "schedule_type": b"manual", "code": HELLO.encode(), where: given}
    answers = [admin.post("/jobs/new", form), admin.post(f"/jobs/{job.id}/trigger", {where: given})]
    assert all(answer.status_code < 500 for answer in answers)
    with database(app) as session:
        kept = [row.note or "" for row in session.scalars(sa.select(CronJobExecution))]
        kept += [row.name + row.description for row in session.scalars(sa.select(CronJob))]
    assert not any("\0" in one or "\ud800" in one for one in kept)


@pytest.mark.parametrize(
    "expression",
    [
        "* * * * *" + " " * 5000,
        "0-59/1," * 5000 + " * * * *",
        "*/0 * * * *",
        "99999999999999999999 * * * *",
        "0 0 30 2 *",
        "0 0 31 2,4,6,9,11 *",
        "@reboot",
        "0 0 * * 0#6",
        "$(id) * * * *",
        "\u0660 * * * *",
    ],
)
def test_a_hostile_schedule_is_refused_quickly(admin: Visitor, api: FlaskClient, expression: str) -> None:
    began = time.process_time()
    body = {"schedule_type": "cron", "cron_expression": expression.strip()}
    if expression.strip() != "* * * * *":
        assert api.post("/api/v1/schedules/preview", json=body).status_code == 422
    assert admin.get("/jobs/preview", query_string=body).status_code == 200
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    "code",
    [
        "class A(CronJobBase):\n    def execute(self): return " + "(" * 5000 + ")" * 5000,
        "class A(CronJobBase):\n    x = " + "-" * 50_000 + "1\n    def execute(self): pass",
        "class A(CronJobBase):\n    x = " + "9" * 100_000 + "\n    def execute(self): pass",
        "x = " + "[" * 100_000,
        "if 1:\n" + "".join(" " * n + "if 1:\n" for n in range(1, 150)),
        "\0",
        "# coding: rot13\n",
        "lambda " * 20_000,
    ],
)
def test_hostile_code_is_refused_without_running_it(admin: Visitor, api: FlaskClient, code: str) -> None:
    began = time.process_time()
    assert api.post("/api/v1/jobs", json={"name": "x", "code": code}).status_code == 422
    assert api.post("/api/v1/jobs/validate-code", json={"code": code}).json["valid"] is False
    form = {"name": "x", "schedule_type": "manual", "code": code}
    assert admin.post("/jobs/new", form).status_code == 422
    assert time.process_time() - began < 5


def test_saving_code_never_runs_it(api: FlaskClient, app: Flask) -> None:
    mark = f"{app.instance_path}/ran"
    code = f"open({mark!r}, 'w')\n" + HELLO + f"    x = open({mark!r}, 'w')\n"
    assert api.post("/api/v1/jobs", json={"name": "x", "code": code}).status_code == 201
    assert api.post("/api/v1/jobs/validate-code", json={"code": code}).json["valid"]
    with pytest.raises(FileNotFoundError):
        open(mark).close()


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch /tmp/evil']",
        "jobs: !!python/object/new:subprocess.Popen [[id]]",
        "kytecron: 1\njobs: [!!python/name:os.system ]",
        "jobs: !<tag:evil> x",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\njobs: [*c, *c]",
        "jobs: &x [*x]",
        "jobs:\n- <<: {name: a}\n  name: b",
        "jobs: " + "[" * 50_000,
        "jobs: " + "{a: " * 20_000,
        "jobs: [" + "a," * 300_000 + "]",
        "\0",
        "%YAML 9.9\n--- x",
        "--- a\n--- b",
        "jobs: [{name: a, code: !!binary Y2xhc3M=}]",
        "jobs: [{name: .nan, code: .inf}]",
        "jobs: [{name: a, ? [complex, key] : x}]",
    ],
)
def test_a_hostile_job_file_is_refused_quickly(app: Flask, api: FlaskClient, text: str) -> None:
    began = time.process_time()
    with database(app) as session, pytest.raises(Invalid):
        transfer.import_jobs(session, transfer.from_yaml(text), Actor("test"))
    answer = api.post("/api/v1/jobs/import", data=text.encode(), content_type="application/yaml")
    assert answer.status_code in (400, 422), answer.text
    assert len(answer.data) < 50_000
    assert time.process_time() - began < 5
    with database(app) as session:
        assert session.scalars(sa.select(CronJob)).all() == []


@pytest.mark.parametrize("kind", ["gzip", "deflate", "br", "identity, gzip"])
def test_packed_bodies_are_not_unpacked(api: FlaskClient, kind: str) -> None:
    bomb = (
        gzip.compress(b'{"name": "' + b"a" * 50_000_000)
        if "gzip" in kind
        else zlib.compress(b"a" * 50_000_000)
    )
    answer = api.post(
        "/api/v1/jobs", data=bomb, content_type="application/json", headers={"Content-Encoding": kind}
    )
    assert answer.status_code in (400, 415)


def test_stored_code_that_unpacks_without_end_is_not_unpacked(app: Flask, admin: Visitor) -> None:
    job = make_job(app)
    with database(app) as session:
        content = session.scalars(sa.select(KyteCronJobVersionContent)).one()
        content.code = bz2.compress(b"a" * 30_000_000)
        session.commit()
        with pytest.raises(Unreadable):
            versions.source_of(session, job.id, 1)
    answer = admin.get(f"/jobs/{job.id}/code")
    assert answer.status_code == 500
    assert "aaaa" not in answer.text


# -- a real connection, for what the test client tidies up ---------------------------------------------------


class _Quiet(WSGIRequestHandler):
    def log_request(self, *_: object) -> None:
        pass


@pytest.fixture
def live(app: Flask) -> Iterator[Callable[..., Any]]:
    """Sends a request, its path as it is, to the app behind a real socket: (status, headers, body)."""
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    serving.start()

    def send(method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    yield send
    server.shutdown()
    serving.join()
    server.server_close()


def test_a_body_is_refused_for_its_size_before_it_is_read(live: Callable[..., Any], api: FlaskClient) -> None:
    token = api.environ_base["HTTP_AUTHORIZATION"]
    headers = {"Authorization": token, "Content-Type": "application/json", "Content-Length": str(10**12)}
    status, _, body = live("POST", "/api/v1/jobs", b"{}", headers)
    assert status == 413
    assert json.loads(body)["error"]["code"] == "too_large"


def test_a_body_without_a_length_is_bounded_too(live: Callable[..., Any], api: FlaskClient) -> None:
    token = api.environ_base["HTTP_AUTHORIZATION"]
    headers = {"Authorization": token, "Content-Type": "application/json", "Transfer-Encoding": "chunked"}
    body = io.BytesIO(b"a" * 6_000_000)
    try:
        status, _, _ = live("POST", "/api/v1/jobs", iter(lambda: _chunk(body), b""), headers)
    except (BrokenPipeError, ConnectionResetError):
        return  # refused while it was being sent
    assert status in (400, 411, 413)


def _chunk(body: io.BytesIO) -> bytes:
    part = body.read(65536)
    return b"%x\r\n%s\r\n" % (len(part), part) if part else b""


def test_too_many_fields_are_refused(admin: Visitor) -> None:
    answer = admin.post("/jobs/new", {f"field{number}": "x" for number in range(5000)})
    assert answer.status_code in (413, 422)
    big = admin.client.post(
        "/jobs/new",
        data={"file": (io.BytesIO(b"x" * 5_000_000), "x.txt")},
        headers={"X-CSRFToken": admin.token()},
    )
    assert big.status_code == 413


def test_the_app_starts_without_a_key_of_its_own_in_development_only(settings: Settings) -> None:
    with pytest.raises(Invalid):
        create_app(replace(settings, environment="production", secret_key=""))

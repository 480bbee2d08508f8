"""Whatever anybody sends costs bounded time and memory, before and after it is known who they are."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from urllib.parse import urlencode

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from kytecron.core.errors import Invalid
from kytecron.services import checking, transfer
from kytecron.services.audit import Actor
from kytecron.services.jobs import CronJobManager
from kytecron.services.versions import CronVersionControl
from tests.command_line import CommandLine
from tests.pages import HELLO, Visitor, database, make_job

SLOW = f"{HELLO}f({','.join(f'a{n}=1' for n in range(50_000))})\n"
"""CPython compiles it in half a minute, holding the interpreter's lock."""


@contextmanager
def costing_at_most(seconds: float) -> Iterator[None]:
    """CPU time of this process, which serves everybody else, too."""
    before = time.process_time()
    yield
    assert time.process_time() - before < seconds


# --- code


Ask = Callable[[FlaskClient, Visitor, int], TestResponse]
SAVING: dict[str, Ask] = {
    "validate-code": lambda api, _, __: api.post("/api/v1/jobs/validate-code", json={"code": SLOW}),
    "create": lambda api, _, __: api.post("/api/v1/jobs", json={"name": "x", "code": SLOW}),
    "change": lambda api, _, job: api.patch(f"/api/v1/jobs/{job}", json={"code": SLOW}),
    "import": lambda api, _, __: api.post(
        "/api/v1/jobs/import?dry_run=1", json={"jobs": [{"name": f"job {n}", "code": SLOW} for n in range(2)]}
    ),
    "the form": lambda _, admin, __: admin.post(
        "/jobs/new", {"name": "x", "schedule_type": "manual", "code": SLOW}
    ),
    "the edit form": lambda _, admin, job: admin.post(f"/jobs/{job}/edit", {"name": "x", "code": SLOW}),
    "check-code": lambda _, admin, __: admin.post("/jobs/check-code", json={"code": SLOW}),
}


@pytest.mark.parametrize("ask", SAVING.values(), ids=list(SAVING))
def test_code_that_the_compiler_cannot_finish_is_refused_wherever_code_comes_in(
    app: Flask, api: FlaskClient, admin: Visitor, ask: Ask
) -> None:
    job = make_job(app).id
    with costing_at_most(1.5):
        answer = ask(api, admin, job)
    assert answer.status_code == 422
    assert checking.TOO_LONG in answer.text


def test_commands_and_programs_refuse_it_too(app: Flask) -> None:
    job = make_job(app).id
    with database(app) as session:
        with pytest.raises(Invalid, match=checking.TOO_LONG):
            CronJobManager(session).create_job(name="x", code=SLOW)
        with pytest.raises(Invalid, match=checking.TOO_LONG):
            CronVersionControl(session).create_version(job, SLOW)
    command = CommandLine(app)
    assert checking.TOO_LONG in command.error("jobs create --name x --code -", text=SLOW, status=2)


def test_the_code_of_a_file_takes_bounded_time_together(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "CHECK_SECONDS", 0.0)
    jobs = [{"name": f"job {n}", "code": HELLO} for n in range(3)]
    with database(app) as session, pytest.raises(Invalid, match="import fewer at once"):
        transfer.import_jobs(session, {"jobs": jobs}, Actor("test"))


# --- before anybody is known


def test_who_is_not_signed_in_may_send_little(app: Flask) -> None:
    visitor = Visitor(app)
    token = visitor.token()
    for path in ("/sign-in", "/sign-in/some-token", "/sign-out", "/jobs/new", "/jobs/check-code", "/nowhere"):
        with costing_at_most(0.5):
            answer = visitor.client.post(path, data={"username": "x" * 4_000_000, "csrf_token": token})
        assert answer.status_code == 413, path
        assert len(answer.data) < 20_000
    assert "at most 64 KB" in visitor.client.post("/sign-in", data={"username": "x" * 70_000}).text


def test_many_fields_are_refused_before_they_are_read(app: Flask, admin: Visitor) -> None:
    visitor = Visitor(app)
    fields = "&".join(["a=1"] * 15_000)
    form = {"content_type": "application/x-www-form-urlencoded", "headers": {"X-CSRFToken": visitor.token()}}
    with costing_at_most(0.5):
        answer = visitor.client.post("/sign-in", data=fields, **form)
        assert answer.status_code == 413
        assert "at most 1000 fields" in answer.text
        assert visitor.client.get("/sign-in", data=fields, **form).status_code == 413
    with costing_at_most(1):
        assert (
            admin.post(
                "/jobs/new", "&".join(["a=1"] * 900_000), content_type=form["content_type"]
            ).status_code
            == 413
        )


def test_a_body_of_unknown_length_is_read_up_to_the_same_bound(app: Flask) -> None:
    visitor = Visitor(app)
    sent = {"csrf_token": visitor.token(), "username": "x" * 200_000}
    answer = visitor.client.post(
        "/sign-in",
        input_stream=BytesIO(urlencode(sent).encode()),
        content_type="application/x-www-form-urlencoded",
        environ_overrides={"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"},
    )
    assert answer.status_code == 413


def test_a_name_that_nobody_can_have_is_not_sent_back(app: Flask) -> None:
    answer = Visitor(app).post("/sign-in", {"username": "x" * 60_000, "password": "y"})
    assert answer.status_code == 422
    assert len(answer.data) < 20_000


def test_the_api_reads_nothing_of_those_whom_it_does_not_know(app: Flask) -> None:
    with costing_at_most(0.2):
        answer = app.test_client().post(
            "/api/v1/jobs", data=b"[" * 4_000_000, content_type="application/json"
        )
    assert answer.status_code == 401


def test_forms_take_what_their_fields_may_hold(app: Flask, admin: Visitor) -> None:
    code = HELLO + "#" + "é" * 450_000 + "\n"
    parameters = json.dumps({"k": "é" * 10_000})
    form = {
        "name": "long",
        "schedule_type": "manual",
        "enabled": "1",
        "code": code,
        "parameters": parameters,
    }
    assert admin.post("/jobs/new", form).status_code == 303
    with database(app) as session:
        job = CronJobManager(session).find("long").id
    assert admin.post(f"/jobs/{job}/trigger", {"parameters": parameters}).status_code == 303
    assert admin.post("/secrets", {"name": "LONG", "value": "ä" * 32_000}).status_code == 303


# --- JSON, YAML, and what is said about them


def doubled(count: int) -> str:
    return "{" + ",".join(f'"key{n}":1' for n in range(count)) + ',"last":1,"last":2}'


def job_with(fields: dict[str, object]) -> str:
    return json.dumps({"name": "x", "code": HELLO, **fields})


BODIES = {
    "a key twice": doubled(300_000),
    "a key twice further in": f'{{"name": "x", "parameters": {doubled(300_000)}}}',
    "unknown keys": "{" + ",".join(f'"key{n}":1' for n in range(300_000)) + "}",
    "keys that cannot be stored": "{" + ",".join(f'"\\u0000{n}":1' for n in range(200_000)) + "}",
    "tags": job_with({"tags": ["?"] * 600_000}),
    "parents": job_with({"depends_on": ["?"] * 600_000}),
    "weekdays": job_with({"day_of_week": ["?"] * 600_000}),
    "weekdays as text": json.dumps(
        {"name": "x", "code": HELLO, "schedule_type": "weekly", "day_of_week": "1," * 1_500_000}
    ),
    "a cron expression": json.dumps(
        {"name": "x", "code": HELLO, "schedule_type": "cron", "cron_expression": "1," * 1_500_000}
    ),
    "a name": job_with({"name": "x" * 4_000_000}),
    "a time": job_with({"starts_at": "2" * 4_000_000}),
    "a time of day": json.dumps(
        {"name": "x", "code": HELLO, "schedule_type": "daily", "time_of_day": "1" * 4_000_000}
    ),
    "a time zone": job_with({"timezone": "x" * 4_000_000}),
    "an address": job_with({"notification_email": "a@b," * 800_000}),
    "a webhook": job_with({"slack_webhook": "https://" + "a." * 1_900_000}),
    "parameters": json.dumps(
        {"name": "x", "code": HELLO, "parameters": {f"k{n}": n for n in range(230_000)}}
    ),
    "depth": '{"name": "x", "parameters": ' + '{"a":' * 500_000 + "1" + "}" * 500_000 + "}",
    "digits": '{"name": "x", "priority": ' + "9" * 3_000_000 + "}",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=list(BODIES))
def test_json_costs_time_linear_in_its_size_and_its_answer_is_short(api: FlaskClient, body: str) -> None:
    with costing_at_most(3):
        answer = api.post("/api/v1/jobs", data=body, content_type="application/json")
    assert answer.status_code in (400, 422)
    assert len(answer.data) < 20_000


def test_of_very_many_wrong_fields_the_first_are_told_and_how_many_more_there_are(api: FlaskClient) -> None:
    body = {f"key{n}": 1 for n in range(1000)} | {"name": "", "priority": 12}
    fields = api.post("/api/v1/jobs", json=body).json["error"]["fields"]
    assert {"name", "priority", "code", "key0"} <= fields.keys()
    assert "more" in list(fields.values())[-1]
    assert len(fields) <= 51


LISTS = {
    "ids": ("jobs/bulk", {"action": "enable", "ids": [1] * 1_000_000}),
    "wrong ids": ("jobs/bulk", {"action": "enable", "ids": ["?"] * 600_000}),
    "tags of a bulk action": ("jobs/bulk", {"action": "tag", "ids": [1], "tags": ["?"] * 600_000}),
    "weekdays of a preview": (
        "schedules/preview",
        {"schedule_type": "weekly", "day_of_week": ["?"] * 600_000},
    ),
    "jobs of a file": ("jobs/import", {"jobs": [{}] * 1_000_000}),
    "fields of a job": ("jobs/import", {"jobs": [{f"key{n}": 1 for n in range(200_000)}]}),
    "parents of a job": (
        "jobs/import",
        {"jobs": [{"name": "x", "depends_on": [f"j{n}" for n in range(200_000)]}]},
    ),
    "wrong jobs": ("jobs/import", {"jobs": [{"name": "x", "code": "x = ("} for _ in range(2_000)]}),
}


@pytest.mark.parametrize(("path", "body"), LISTS.values(), ids=list(LISTS))
def test_long_lists_cost_little_and_are_answered_shortly(api: FlaskClient, path: str, body: object) -> None:
    text = json.dumps(body)
    with costing_at_most(4):
        answer = api.post(f"/api/v1/{path}", data=text, content_type="application/json")
    assert answer.status_code == 422
    assert len(answer.data) < 20_000


def test_yaml_with_a_key_twice_costs_one_pass() -> None:
    text = (
        "kytecron: 1\njobs:\n- " + "  ".join(f"key{n}: 1\n" for n in range(90_000)) + "  last: 1\n  last: 2\n"
    )
    with costing_at_most(6), pytest.raises(Invalid, match="'last' is here twice"):
        transfer.from_yaml(text)

"""Every wrong field is named at once, whichever way a job comes in; unknown names are answered with the nearest one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from sqlalchemy.orm import Session

from kytecron.core.errors import Invalid
from kytecron.services import transfer
from kytecron.services.audit import Actor
from kytecron.services.jobs import CronJobManager
from tests.command_line import CommandLine
from tests.pages import make_visitor, text_of

from .conftest import CODE, Caller

TESTER = Actor("tester")
WRONG: dict[str, Any] = {"name": "", "interval_seconds": -1, "timezone": "Berlin", "code": "x=("}


def by_python(app: Flask, api: Caller, rows: Session, fields: dict[str, Any]) -> set[str]:
    with pytest.raises(Invalid) as caught:
        CronJobManager(rows, TESTER).create_job(**fields)
    return set(caught.value.fields)


def by_api(app: Flask, api: Caller, rows: Session, fields: dict[str, Any]) -> set[str]:
    answer = api("POST /jobs", json=fields)
    assert answer.status_code == 422
    return set(answer.json["error"]["fields"])


def by_change(app: Flask, api: Caller, rows: Session, fields: dict[str, Any]) -> set[str]:
    answer = api(f"PATCH /jobs/{api.job('present')['id']}", json=fields)
    assert answer.status_code == 422
    return set(answer.json["error"]["fields"])


def by_import(app: Flask, api: Caller, rows: Session, fields: dict[str, Any]) -> set[str]:
    with pytest.raises(Invalid) as caught:
        transfer.import_jobs(rows, {"kytecron": 1, "jobs": [fields]}, TESTER)
    return {name.rpartition(".")[2] for name in caught.value.fields}


def by_command(app: Flask, api: Caller, rows: Session, fields: dict[str, Any]) -> set[str]:
    words: list[str] = []
    for name, value in fields.items():
        text = json.dumps(value) if isinstance(value, dict) else str(value)
        words += ["--code", "-"] if name == "code" else [f"--{name.replace('_', '-')}={text}"]
    said = CommandLine(app).error("jobs create", *words, text=fields.get("code"), status=2)
    return {name for name in fields if name in said or (name == "code" and "line 1" in said)}


def by_form(app: Flask, api: Caller, rows: Session, fields: dict[str, Any]) -> set[str]:
    page = make_visitor(app, "editor").post("/jobs/new", fields)
    assert page.status_code == 422
    return {name for name in fields if f'href="#f-{name}"' in page.text}


WAYS = (by_python, by_api, by_change, by_import, by_command, by_form)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "wrong",
    [
        WRONG,
        WRONG | {"schedule_type": "interval"},
        WRONG | {"schedule_type": "cron", "cron_expression": "0 5 * * * /x"},
        {"name": "ok", "priority": 77, "day_of_month": 40, "schedule_type": "monthly", "time_of_day": "25:00"},
        {"name": "", "slack_webhook": "http://10.0.0.1/", "queue_length": 0, "timezone": "Mars/Base"},
    ],
)  # fmt: skip
def test_all_wrong_fields_are_named_at_once(
    app: Flask, api: Caller, rows: Session, way: Callable[..., set[str]], wrong: dict[str, Any]
) -> None:
    expected = {name for name in wrong if wrong[name] not in ("ok", "cron", "interval", "monthly")}
    given = wrong if "code" in wrong else wrong | {"code": CODE}
    assert way(app, api, rows, given) == expected


def test_what_only_the_database_knows_is_told_with_the_rest(api: Caller, rows: Session) -> None:
    api.job("taken")
    manager = CronJobManager(rows, TESTER)
    with pytest.raises(Invalid) as caught:
        manager.create_job(name="taken", depends_on=[4711], timezone="Berlin", code=CODE)
    assert set(caught.value.fields) == {"name", "depends_on", "timezone"}
    answer = api("POST /jobs", json={"name": "taken", "depends_on": [4711], "code": CODE})
    assert set(answer.json["error"]["fields"]) == {"name", "depends_on"}


@pytest.mark.parametrize(
    ("rule", "body", "name", "nearest"),
    [
        ("POST /jobs", {"name": "a", "code": CODE, "cron_expresion": "x"}, "cron_expresion", "cron_expression"),
        ("POST /jobs", {"name": "a", "code": CODE, "Timeout": 5}, "Timeout", "timezone"),
        ("GET /executions?form=2026-01-01", None, "form", "from"),
        ("GET /jobs?stauts=enabled", None, "stauts", "status"),
        ("POST /jobs/bulk", {"action": "enable", "id": [1]}, "id", "ids"),
        ("GET /stats?limit=1", None, "limit", ""),
    ],
)  # fmt: skip
def test_an_unknown_name_is_answered_with_the_nearest(
    api: Caller, rule: str, body: object, name: str, nearest: str
) -> None:
    answer = api(rule, json=body) if body is not None else api(rule)
    assert answer.status_code == 422
    said = answer.json["error"]["fields"][name]
    assert said == f"{name} is not a known field" + (f". Did you mean {nearest}?" if nearest else "")


def test_a_job_is_found_by_its_exact_name(api: Caller) -> None:
    for name in ("report", "report 2", "Report"):
        api.job(name)
    assert [job["name"] for job in api("GET /jobs?name=report").json["items"]] == ["report"]
    assert api("GET /jobs?name=repor").json["items"] == []


def test_a_range_has_one_pair_of_names_and_the_older_one_is_taken(api: Caller, app: Flask) -> None:
    job = api.job(schedule_type="cron", cron_expression="0 * * * *")["id"]
    newer = {"from": "2026-01-01T00:00:00Z", "to": "2026-01-01T03:00:00Z", "dry_run": True}
    older = {"start": newer["from"], "end": newer["to"], "dry_run": True}
    answers = [api(f"POST /jobs/{job}/backfill", json=body).json for body in (newer, older)]
    assert answers[0] == answers[1]
    assert answers[0]["runs"] == 3
    both = api(f"POST /jobs/{job}/backfill", json=newer | older)
    assert both.status_code == 422
    late = {"from": newer["to"], "to": newer["from"]}
    assert "to" in api(f"POST /jobs/{job}/backfill", json=late).json["error"]["fields"]
    query = f"from={newer['to']}&to={newer['from']}"
    for path in ("/executions", "/audit"):
        assert "to" in api(f"GET {path}?{query}").json["error"]["fields"]
    line = CommandLine(app)
    said = line.error("executions list --from 2026-01-02 --to 2026-01-01", status=2)
    assert "to must not be earlier than from" in said
    page = make_visitor(app, "viewer").get("/executions?from=2026-01-05&to=2026-01-01")
    assert page.status_code == 200
    assert "to must not be earlier than from" in text_of(page.text)

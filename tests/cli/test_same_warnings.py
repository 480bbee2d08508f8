"""What about a schedule may surprise is told alike in the form, by the API and on the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from sqlalchemy.orm import Session

from kytecron.core.states import Status
from kytecron.services import accounts, endings
from kytecron.services.audit import Actor
from kytecron.services.jobs import CronJobManager
from kytecron.store import db
from kytecron.store.db import transactional
from tests.command_line import CODE, CommandLine
from tests.pages import make_visitor, text_of

TESTER = Actor("tester")
CLOSE = "A run usually takes"


@pytest.fixture
def call(app: Flask, rows: Session) -> Callable[..., Any]:
    _, token = accounts.create_token(rows, "test", "admin", 1, TESTER)

    def call(rule: str, body: Any = None) -> Any:
        method, path = rule.split()
        headers = {"Authorization": f"Bearer {token}"}
        answer = app.test_client().open(f"/api/v1{path}", method=method, headers=headers, json=body)
        assert answer.status_code < 300, answer.text
        return answer.json

    return call


@pytest.fixture
def slow(rows: Session) -> int:
    """A job of every minute whose runs take about 90 seconds."""
    job = CronJobManager(rows, TESTER).create_job(
        name="slow", code=CODE, schedule_type="cron", cron_expression="* * * * *"
    )
    ran = {job.id: ({Status.COMPLETED: 20}, [90_000] * 20)}
    transactional(lambda session: endings.roll_up(session, db.now(session), ran))(rows)
    return job.id


def test_slots_closer_together_than_a_run_takes_are_told_everywhere(
    app: Flask, call: Callable[..., Any], cli: CommandLine, slow: int
) -> None:
    every_minute = {"schedule_type": "cron", "cron_expression": "* * * * *"}
    told = {
        "read": call(f"GET /jobs/{slow}")["warnings"],
        "upcoming": call(f"GET /jobs/{slow}/upcoming")["warnings"],
        "change": call(f"PATCH /jobs/{slow}", {"description": "x"})["warnings"],
        "preview": call("POST /schedules/preview", every_minute | {"job": slow})["warnings"],
        "next-runs": cli.json("jobs next-runs slow")["warnings"],
        "show": cli.json("jobs show slow")["warnings"],
        "edit": cli.json("jobs edit slow --description y")["warnings"],
    }
    for where, warnings in told.items():
        assert [text.startswith(CLOSE) for text in warnings] == [True], where
    for line in (
        "jobs next-runs slow",
        "jobs show slow",
        "jobs edit slow --description z",
        "jobs enable slow",
    ):
        assert f"Note: {CLOSE}" in cli.output(line)
    form = make_visitor(app, "editor").get(
        f"/jobs/preview?job={slow}&schedule_type=cron&cron_expression=*+*+*+*+*&timezone=UTC"
    )
    assert CLOSE in text_of(form.text)
    # Of a schedule that no job has, nobody knows how long a run takes.
    assert call("POST /schedules/preview", every_minute)["warnings"] == []


def test_a_new_job_is_answered_with_its_warnings(call: Callable[..., Any], cli: CommandLine) -> None:
    odd = {"schedule_type": "cron", "cron_expression": "0 0 */7 * *"}
    (api_says,) = call("POST /jobs", {"name": "a", "code": CODE, **odd})["warnings"]
    (preview_says,) = call("POST /schedules/preview", odd)["warnings"]
    assert api_says == preview_says
    words = ("--schedule-type", "cron", "--cron-expression", "0 0 */7 * *")
    made = cli.json("jobs create --name b --code -", *words, text=CODE)
    assert made["warnings"] == [api_says]
    assert f"Note: {api_says}" in cli.output("jobs create --name c --code -", *words, text=CODE)

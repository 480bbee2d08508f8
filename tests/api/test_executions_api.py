"""Executions through the API: found, followed, stopped, run again."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy.orm import Session

from kytecron.api import executions
from kytecron.core.states import Outcome, Status
from kytecron.requestdb import db
from kytecron.services import lifecycle
from kytecron.store.models import CronJobExecution

from .conftest import Caller

Finish = Callable[..., None]


def ids(answer: Any) -> list[int]:
    assert answer.status_code == 200, answer.text
    return [item["id"] for item in answer.json["items"]]


def test_executions_are_filtered(api: Caller, finish: Finish) -> None:
    one = api.job("one", max_retries=0)["id"]
    two = api.job("two")["id"]
    failed = api(f"POST /jobs/{one}/trigger").json["id"]
    finish(Status.FAILED, error="No route to host")
    fine = api(f"POST /jobs/{two}/trigger").json["id"]
    finish(output="42 rows\n")
    assert ids(api("GET /executions")) == [fine, failed]
    assert ids(api(f"GET /executions?job={two}")) == [fine]
    assert ids(api("GET /executions?status=failed&status=lost")) == [failed]
    assert ids(api("GET /executions?status=failed,completed")) == [fine, failed]
    assert ids(api("GET /executions?text=no+route")) == [failed]
    assert ids(api("GET /executions?text=42")) == [fine]
    assert ids(api("GET /executions?worker=tester:1:a")) == [fine, failed]
    assert ids(api("GET /executions?origin=schedule")) == []
    assert ids(api("GET /executions?version=1")) == [fine, failed]
    hour = timedelta(hours=1)
    now = datetime.now(UTC)
    assert ids(api(f"GET /executions?from={(now - hour):%Y-%m-%dT%H:%M:%SZ}")) == [fine, failed]
    assert ids(api(f"GET /executions?to={(now - hour):%Y-%m-%dT%H:%M:%SZ}")) == []
    assert ids(api("GET /executions/failed")) == [failed]
    assert ids(api("GET /executions/running")) == []


def test_pages_of_executions_have_no_gaps_and_no_doubles_while_runs_come_in(everywhere: Caller) -> None:
    api = everywhere
    job = api.job(overlap_policy="allow")["id"]
    before = {api(f"POST /jobs/{job}/trigger").json["id"] for _ in range(10)}
    for address in ("/executions", f"/executions?job={job}&status=pending,failed", "/executions/pending"):
        seen: list[int] = []
        cursor = ""
        joint = "&" if "?" in address else "?"
        while cursor is not None:
            answer = api(f"GET {address}{joint}limit=4{cursor and '&cursor='}{cursor}")
            seen += ids(answer)
            cursor = answer.json["next_cursor"]
            if len(seen) < 20:
                api(f"POST /jobs/{job}/trigger")
        assert len(seen) == len(set(seen))
        assert before <= set(seen)


def test_a_failed_chain_tells_its_attempts_and_the_trace(api: Caller, finish: Finish) -> None:
    job = api.job(max_retries=2, retry_delay_seconds=3600, retry_strategy="fixed")["id"]
    first = api(f"POST /jobs/{job}/trigger").json["id"]
    finish(Status.FAILED, error="ValueError: no", stack_trace="Traceback ...", exit_code=1)
    detail = api(f"GET /executions/{first}").json
    assert (detail["error"], detail["stack_trace"], detail["exit_code"]) == (
        "ValueError: no",
        "Traceback ...",
        1,
    )
    assert [attempt["status"] for attempt in detail["attempts"]] == ["failed", "pending"]
    second = detail["attempts"][1]["id"]
    now = api(f"POST /executions/{first}/retry")
    assert now.status_code == 200
    assert now.json["id"] == second
    assert datetime.fromisoformat(now.json["due_time"]) <= datetime.now(UTC)
    finish(result={"rows": 42})
    assert api(f"GET /executions/{second}").json["result"] == {"rows": 42}
    assert api(f"POST /executions/{second}/retry").status_code == 409


def test_a_run_is_cancelled_and_run_again(api: Caller, finish: Finish) -> None:
    job = api.job()["id"]
    run = api(f"POST /jobs/{job}/trigger", json={"parameters": {"day": 1}}).json["id"]
    assert api(f"POST /executions/{run}/rerun").status_code == 409
    cancelled = api(f"POST /executions/{run}/cancel", json={"reason": "not today"}).json
    assert (cancelled["status"], cancelled["error"]) == (
        "cancelled",
        "cancelled by token:test admin: not today",
    )
    assert api(f"POST /executions/{run}/cancel").status_code == 409
    again = api(f"POST /executions/{run}/rerun")
    assert again.status_code == 201
    assert (again.json["origin"], again.json["parameters"]) == ("rerun", {"day": 1})
    assert again.headers["Location"].endswith(f"/executions/{again.json['id']}")
    finish()
    assert api(f"GET /executions/{again.json['id']}").json["status"] == "completed"


@pytest.fixture
def talking(app: Flask, api: Caller) -> tuple[int, Callable[..., None], Callable[[str], None]]:
    """A running execution, a way to print in it, and one to end it."""
    job = api.job()["id"]
    run = api(f"POST /jobs/{job}/trigger").json["id"]
    with app.app_context():
        (claimed,) = lifecycle.claim(db.session(), "tester:1:a", (), 1, 60.0)

    def say(*pieces: str, first: int = 0) -> None:
        with app.app_context():
            report = lifecycle.Progress(
                claimed.claim, pieces=[(first + n, text, False) for n, text in enumerate(pieces)]
            )
            lifecycle.append_output(db.session(), [report])

    def end(rest: str) -> None:
        with app.app_context():
            lifecycle.settle(db.session(), [(claimed.claim, Outcome(Status.COMPLETED, output=rest))])

    return run, say, end


def test_a_log_is_read_piece_by_piece(api: Caller, talking: Any) -> None:
    run, say, end = talking
    say("one\n")
    part = api(f"GET /executions/{run}/log").json
    assert (part["text"], part["finished"]) == ("one\n", False)
    say("two\n", first=1)
    part = api(f"GET /executions/{run}/log?after={part['cursor']}").json
    assert (part["text"], part["finished"]) == ("two\n", False)
    end("three\n")
    part = api(f"GET /executions/{run}/log?after={part['cursor']}").json
    assert (part["text"], part["finished"]) == ("three\n", True)
    assert list(api(f"GET /executions/{run}/log?after=never").json["error"]["fields"]) == ["after"]


def test_a_log_as_text_is_whole_at_once(api: Caller, talking: Any) -> None:
    run, say, end = talking
    say("one\n", "<script>\n")
    as_text = api(f"GET /executions/{run}/log", headers={"Accept": "text/plain"})
    assert (as_text.mimetype, as_text.text) == ("text/plain", "one\n<script>\n")
    end("three\n")
    assert (
        api(f"GET /executions/{run}/log", headers={"Accept": "text/plain"}).text == "one\n<script>\nthree\n"
    )


def test_a_followed_log_grows_until_the_run_ends(
    api: Caller, talking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executions, "FOLLOW_STEP", 0.01)
    run, say, end = talking
    say("one\n")
    answer = api(f"GET /executions/{run}/log?follow=true", buffered=False)
    assert answer.mimetype == "text/plain"
    text = answer.iter_encoded()
    assert next(text) == b"one\n"
    say("two\n", first=1)
    while not (piece := next(text)):
        pass
    assert piece == b"two\n"
    ending = threading.Thread(target=end, args=("three\n",))
    ending.start()
    assert b"".join(text) == b"three\n"
    ending.join()


def test_a_stream_does_not_last_for_ever(api: Caller, talking: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executions, "FOLLOW_SECONDS", 0)
    run, say, _ = talking
    say("one\n")
    assert api(f"GET /executions/{run}/log?follow=1").text == "one\n"


def test_a_stream_leaves_no_transaction_behind(
    app: Flask, api: Caller, talking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It would keep the tables from being changed, by a migration, for as long as the process lives.
    monkeypatch.setattr(executions, "FOLLOW_STEP", 0.01)
    run, say, end = talking
    say("one\n")
    gc.disable()  # which ends it by chance
    try:
        api(f"GET /executions/{run}/log?follow=true", buffered=False).close()  # the reader went away
        end("two\n")
        assert api(f"GET /executions/{run}/log?follow=true", buffered=True).text == "one\ntwo\n"
        with app.app_context():
            assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    finally:
        gc.enable()


def test_rows_of_a_job_that_is_gone_are_still_read(api: Caller, rows: Session) -> None:
    now = datetime.now(UTC)
    rows.add(CronJobExecution(cron_job=4711, scheduled_time=now, due_time=now, status="completed"))
    rows.commit()
    (run,) = api("GET /executions").json["items"]
    assert run["job_name"] == ""
    assert api(f"GET /executions/{run['id']}").json["job_id"] == 4711

"""A form that is sent twice starts one run: a double click, a page that is sent again, two at once."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from werkzeug.datastructures import MultiDict

from kytecron.core.states import Outcome, Status
from kytecron.services import lifecycle
from kytecron.store.models import CronJob, CronJobExecution
from tests.pages import Visitor, database, form_of, make_job, make_visitor, toast


def run_ids(app: Flask) -> list[int]:
    with database(app) as session:
        return list(session.scalars(sa.select(CronJobExecution.id).order_by(CronJobExecution.id)))


def form(visitor: Visitor, page: str, action: str) -> MultiDict[str, str]:
    found = form_of(visitor.get(page).text, action)
    assert found["once"]
    return found


@pytest.fixture(params=["allow", "queue", "skip"])
def job(app: Flask, request: pytest.FixtureRequest) -> CronJob:
    return make_job(app, enabled=True, overlap_policy=request.param)


def test_a_double_click_on_run_now_starts_one_run(app: Flask, operator: Visitor, job: CronJob) -> None:
    action = f"/jobs/{job.id}/trigger"
    sent = form(operator, f"/jobs/{job.id}", action)
    first, second = (operator.post(action, sent) for _ in range(2))
    (run,) = run_ids(app)
    assert first.status_code == second.status_code == 303
    assert first.location == second.location == f"/executions/{run}"
    assert operator.get(f"/executions/{run}").text.count(f"Queued as run #{run}.") == 1


def test_two_that_come_at_once_start_one_run(app: Flask, operator: Visitor, job: CronJob) -> None:
    action = f"/jobs/{job.id}/trigger"
    sent, token = form(operator, f"/jobs/{job.id}", action), operator.token()
    barrier, answers = threading.Barrier(4), []

    def click() -> None:
        again = Visitor(app)
        again.client = app.test_client()
        cookie = operator.client.get_cookie("kytecron")
        assert cookie
        again.client.set_cookie("kytecron", cookie.value)
        barrier.wait()
        answers.append(again.client.post(action, data=sent, headers={"X-CSRFToken": token}).status_code)

    clicks = [threading.Thread(target=click) for _ in range(4)]
    for thread in clicks:
        thread.start()
    for thread in clicks:
        thread.join()
    assert len(run_ids(app)) == 1
    assert set(answers) <= {303, 409}
    assert 303 in answers


def test_in_the_list_too_and_both_clicks_say_the_same(app: Flask, operator: Visitor) -> None:
    job = make_job(app, enabled=True, overlap_policy="allow")
    other = make_job(app, "other", enabled=True, overlap_policy="allow")
    page = operator.get("/jobs").text
    sent = form_of(page, "")
    assert sent["once"]
    answers = [operator.post(f"/jobs/{job.id}/trigger", sent, part=True) for _ in range(2)]
    (run,) = run_ids(app)
    # The same toast: the page shows it once.
    assert [toast(answer) for answer in answers] == [f"Queued as run #{run}."] * 2
    # The same form has a button for each job, and the list that follows has another key.
    operator.post(f"/jobs/{other.id}/trigger", sent, part=True)
    assert form_of(operator.get("/jobs", part=True).text, "")["once"] != sent["once"]
    assert len(run_ids(app)) == 2


def test_another_copy_of_the_form_other_parameters_and_another_person_start_another_run(
    app: Flask, operator: Visitor
) -> None:
    job = make_job(app, enabled=True, overlap_policy="allow")
    page, action = f"/jobs/{job.id}/trigger", f"/jobs/{job.id}/trigger"
    sent: Any = form(operator, page, action)
    operator.post(action, sent)
    operator.post(action, form(operator, page, action))
    operator.post(action, {**sent, "parameters": '{"region": "eu"}'})
    make_visitor(app, "operator", "somebody").post(action, {"once": sent["once"]})
    assert len(run_ids(app)) == 4


def test_what_was_refused_may_be_sent_again(app: Flask, operator: Visitor) -> None:
    job = make_job(app, enabled=False)
    action = f"/jobs/{job.id}/trigger"
    sent = form(operator, action, action)
    assert operator.post(action, sent).status_code == 409
    operator.post(f"/jobs/{job.id}/enable")
    assert operator.post(action, sent).status_code == 303
    assert len(run_ids(app)) == 1


def test_a_double_click_on_run_again_and_on_duplicate_makes_one(app: Flask, editor: Visitor) -> None:
    job = make_job(app, enabled=True, overlap_policy="allow")
    editor.post(f"/jobs/{job.id}/trigger")
    with database(app) as session:
        (run,) = lifecycle.claim(session, "tester:1:a", (), 1, 60.0)
        lifecycle.settle(session, [(run.claim, Outcome(Status.COMPLETED))])
    for page, action in (
        (f"/executions/{run_ids(app)[0]}", f"/executions/{run_ids(app)[0]}/rerun"),
        (f"/jobs/{job.id}", f"/jobs/{job.id}/clone"),
    ):
        sent = form(editor, page, action)
        assert editor.post(action, sent).location == editor.post(action, sent).location
    assert len(run_ids(app)) == 2
    with database(app) as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(CronJob)) == 2

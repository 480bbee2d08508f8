"""What monitoring reads at /metrics: true, the same from every process, and however many jobs there are."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta

import pytest
import yaml
from flask import Flask
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from werkzeug.test import TestResponse

from kytecron.app import create_app
from kytecron.config import Settings
from kytecron.core.schedule import TZDATA_VERSION
from kytecron.core.states import Status
from kytecron.requestdb import db
from kytecron.services import accounts, lifecycle
from kytecron.services.registry import VERSION
from kytecron.store import db as database
from kytecron.store import figures
from kytecron.store.models import CronJob, CronOutbox, CronWorkerRecord

from .conftest import Caller
from .test_access import PEOPLE
from .test_api_docs import PAGE

Finish = Callable[..., None]


def scrape(caller: Caller, **headers: str) -> TestResponse:
    return caller.client.get("/metrics", headers={"Authorization": f"Bearer {caller.token}", **headers})


def numbers(caller: Caller) -> dict[str, float]:
    """Each figure by its name and labels, as one writes it in a query."""
    answer = scrape(caller)
    assert answer.status_code == 200, answer.text
    return {
        one.name + "".join(f"{{{label}={value}}}" for label, value in one.labels.items()): one.value
        for family in parse(answer.text)
        if family.name != "kytecron_info"
        for one in family.samples
    }


def worker(name: str, **values: object) -> CronWorkerRecord:
    given = {"host": "h", "boot_id": "b", "pid": 1, "process_started": "1", "version": "1", **values}
    return CronWorkerRecord(worker_id=name, **given)


def test_figures_tell_how_things_stand(everywhere: Caller) -> None:
    assert set(numbers(everywhere).values()) == {0.0}
    everywhere.job("waits", schedule_type="daily", time_of_day="02:30")
    everywhere.job("off", enabled=False)
    runs = everywhere.job("runs")["id"]
    everywhere(f"POST /jobs/{runs}/trigger")
    found = numbers(everywhere)
    assert found["kytecron_jobs{state=enabled}"] == 2
    assert found["kytecron_jobs{state=disabled}"] == 1
    assert found["kytecron_jobs{state=dead_letter}"] == 0
    assert found["kytecron_executions_pending{state=due}"] == 1
    assert 0 < found["kytecron_oldest_due_execution_seconds"] < 60
    assert found["kytecron_oldest_due_slot_seconds"] == 0


def test_executions_are_counted_by_how_they_ended_and_stay_counted(api: Caller, finish: Finish) -> None:
    job = api.job("good")["id"]
    for _ in range(2):
        api(f"POST /jobs/{job}/trigger")
        finish()
    bad = api.job("bad", max_retries=5, retry_delay_seconds=600)["id"]
    api(f"POST /jobs/{bad}/trigger")
    finish(Status.TIMEOUT)
    last = api.job("last", max_retries=0)["id"]
    api(f"POST /jobs/{last}/trigger")
    finish(Status.LOST)
    before = numbers(api)
    assert before["kytecron_executions_total{status=completed}"] == 2
    assert before["kytecron_executions_total{status=timeout}"] == 1
    assert before["kytecron_executions_total{status=failed}"] == 1
    assert before["kytecron_executions_today{status=lost}"] == 1
    assert before["kytecron_execution_seconds_total"] == 0.02
    assert before["kytecron_jobs_failing"] == 0, "a retry may still repair it"
    assert before["kytecron_chains_total{status=failed}"] == 1
    assert before["kytecron_chains_total{status=timeout}"] == 0
    assert before["kytecron_jobs{state=dead_letter}"] == 1
    assert before["kytecron_executions_pending{state=later}"] == 1
    # A counter that falls looks like a restart, and what it was before would be counted twice.
    api(f"DELETE /jobs/{job}")
    assert numbers(api)["kytecron_executions_total{status=completed}"] == 2


def test_work_that_nobody_does_shows_as_late(api: Caller, rows: Session) -> None:
    now = database.now(rows)
    minute = timedelta(minutes=1)
    rows.add_all(
        [
            CronJob(name="slot", schedule_type="interval", interval_seconds=60, next_run_time=now - minute),
            CronJob(name="off", enabled=False, next_run_time=now - 5 * minute),
        ]
    )
    rows.add_all(
        CronOutbox(
            cause=f"{status} {ago}",
            kind="failure",
            channel="slack",
            target="t",
            payload={},
            status=status,
            due_time=now - ago * minute,
            created_at=now,
        )
        for status, ago in (("pending", 2), ("sending", 3), ("pending", -1), ("sent", 9), ("dead", 9))
    )
    rows.commit()
    found = numbers(api)
    assert 60 <= found["kytecron_oldest_due_slot_seconds"] < 90
    assert 180 <= found["kytecron_oldest_due_message_seconds"] < 210
    assert found["kytecron_messages{state=waiting}"] == 3
    assert found["kytecron_messages{state=given_up}"] == 1


def test_workers_their_slots_and_their_clocks_are_told(api: Caller, rows: Session, app: Flask) -> None:
    now = database.now(rows)
    here = {"started_at": now, "last_seen_at": now, "tzdata": TZDATA_VERSION}
    ago = {"started_at": now, "last_seen_at": now - timedelta(minutes=5)}
    rows.add_all(
        [
            worker("a", slots=4, running=3, clock_skew_ms=-1500, **here),
            worker("b", slots=2, running=0, clock_skew_ms=20, **(here | {"tzdata": "2001.1"})),
            worker("c", slots=8, running=1, draining=True, **here),
            worker("d", slots=8, running=8, **ago),
            worker("e", slots=8, stopped_at=now, **here),
        ]
    )
    rows.commit()
    job = api.job()["id"]
    api(f"POST /jobs/{job}/trigger")
    with app.app_context():
        lifecycle.claim(db.session(), "d", (), 1, -60.0)
    found = numbers(api)
    states = ("alive", "draining", "silent")
    assert [found[f"kytecron_workers{{state={state}}}"] for state in states] == [2, 1, 1]
    assert (found["kytecron_worker_slots"], found["kytecron_worker_slots_busy"]) == (6, 3)
    assert found["kytecron_worker_clock_skew_seconds"] == 1.5
    assert found["kytecron_workers_with_other_tzdata"] == 1
    assert (found["kytecron_executions_running"], found["kytecron_leases_stale"]) == (1, 1)


def test_it_says_what_answers(api: Caller) -> None:
    (info,) = (one for one in parse(scrape(api).text) if one.name == "kytecron_info")
    assert info.samples[0].labels == {"version": VERSION, "tzdata": TZDATA_VERSION, "database": "sqlite"}


def test_every_process_tells_the_same(api: Caller, finish: Finish, sqlite_settings: Settings) -> None:
    other = Caller(create_app(sqlite_settings).test_client(), api.token)
    api(f"POST /jobs/{api.job()['id']}/trigger")
    finish()
    assert numbers(other) == numbers(api)
    with other.client.application.app_context():
        db.engine.dispose()


def test_there_are_as_many_figures_with_many_jobs_as_with_none(api: Caller, finish: Finish) -> None:
    before = numbers(api).keys()
    for number in range(5):
        api(f"POST /jobs/{api.job(f'job {number}')['id']}/trigger")
    finish()
    assert numbers(api).keys() == before


def test_prometheus_may_ask_for_openmetrics(api: Caller) -> None:
    plain = scrape(api)
    assert plain.content_type.startswith("text/plain; version=0.0.4")
    answer = scrape(api, Accept="application/openmetrics-text; version=1.0.0")
    assert answer.content_type.startswith("application/openmetrics-text; version=1.0.0")
    strict = {family.name for family in parse_openmetrics(answer.text)}
    assert strict == {family.name.removesuffix("_info") for family in parse(plain.text)}


@pytest.mark.parametrize("person", PEOPLE)
def test_it_is_for_viewers_and_for_nobody_without_a_token(callers: dict[str, Caller], person: str) -> None:
    answer = scrape(callers[person]) if person in accounts.ROLES else callers[person].client.get("/metrics")
    if person == "anonymous":
        assert (answer.status_code, answer.json["error"]["code"]) == (401, "unauthorized")
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    else:
        assert answer.status_code == 200


def test_its_errors_are_those_of_the_api(api: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    for method, status in (("POST", 405), ("DELETE", 405), ("OPTIONS", 405)):
        answer = api.client.open("/metrics", method=method)
        assert (answer.status_code, answer.json["error"]["code"]) == (status, "method_not_allowed")
    headers = {"Authorization": f"Bearer {api.token}"}
    answer = api.client.get("/metrics?name[]=up", headers=headers)
    assert (answer.status_code, list(answer.json["error"]["fields"])) == (422, ["name[]"])

    def fail(*_: object) -> None:
        raise OperationalError("SELECT 1", {}, Exception("gone"))

    monkeypatch.setattr(figures, "vitals", fail)
    answer = scrape(api)
    assert (answer.status_code, answer.json["error"]["code"]) == (503, "unavailable")


def test_the_page_names_every_figure_and_no_other(api: Caller) -> None:
    text = PAGE.read_text().partition("## Monitoring")[2]
    assert set(re.findall(r"kytecron_\w+", text)) == {
        one.name for family in parse(scrape(api).text) for one in family.samples
    }
    scraping, alerting = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", text, re.DOTALL))
    assert scraping["scrape_configs"][0]["job_name"] == "kytecron"
    assert all({"alert", "expr"} <= rule.keys() for rule in alerting["groups"][0]["rules"])

"""What `--json` prints is what the JSON API answers, byte for byte in meaning."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from sqlalchemy.orm import Session

from kytecron.config import Settings
from kytecron.core.states import Outcome, Status
from kytecron.services import accounts, lifecycle, registry, secrets
from kytecron.services.audit import Actor
from kytecron.services.jobs import CronJobManager
from tests.command_line import CODE, CommandLine

TESTER = Actor("tester")


@pytest.fixture
def lived_in(rows: Session, sqlite_settings: Settings) -> None:
    """Something of everything."""
    manager = CronJobManager(rows, TESTER)
    daily = manager.create_job(
        name="daily",
        code=CODE,
        schedule_type="weekly",
        time_of_day="12:30",
        day_of_week=[1, 3],
        timezone="Europe/Berlin",
        starts_at="2026-01-01T00:00:00Z",
        parameters={"region": "eu"},
        tags=["etl"],
        retry_strategy="immediate",
    )
    hourly = {"schedule_type": "interval", "interval_seconds": 3600, "max_runs": 3}
    manager.create_job(name="child", code=CODE, depends_on=[daily.id], **hourly)
    manager.update_code(daily.id, CODE.replace("hello", "good day"), message="politer")
    dead = manager.create_job(name="dead", code=CODE)
    registry.report(
        rows,
        "host:1:a",
        sqlite_settings,
        running=1,
        draining=False,
        clock_skew_ms=1.5,
        statistics={"cycles": 3},
    )
    for job, outcome in (
        (dead, Outcome(Status.FAILED, error="hopeless", permanent=True)),
        (daily, Outcome(Status.FAILED, error="no answer", stack_trace="Traceback", duration_ms=5)),
    ):
        lifecycle.trigger(rows, job.id, actor=TESTER, note="by a test", parameters={"a": 1})
        (run,) = lifecycle.claim(rows, "host:1:a", (), 1, 60.0)
        lifecycle.settle(rows, [(run.claim, outcome)])
    lifecycle.claim(rows, "host:1:a", (), 1, 60.0)  # the retry of the first


@pytest.fixture
def api(app: Flask, rows: Session) -> Callable[..., Any]:
    """Calls the JSON API as an administrator."""
    _, token = accounts.create_token(rows, "test", "admin", 1, TESTER)

    def call(path: str, method: str = "GET", **options: Any) -> Any:
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        answer = app.test_client().open(f"/api/v1{path}", method=method, headers=headers, **options)
        assert answer.status_code == 200, answer.text
        return answer.json

    return call


@pytest.mark.usefixtures("lived_in")
@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("jobs list", "/jobs"),
        ("jobs list --limit 1", "/jobs?limit=1"),
        ("jobs list --sort=-id --tag etl", "/jobs?sort=-id&tag=etl"),
        ("jobs show daily", "/jobs/1"),
        ("jobs show dead", "/jobs/3"),
        ("jobs next-runs daily --count 5", "/jobs/1/upcoming?count=5"),
        ("jobs next-runs child --count 5", "/jobs/2/upcoming?count=5"),
        ("jobs next-runs dead", "/jobs/3/upcoming"),
        ("jobs why child", "/jobs/2/why"),
        ("jobs why dead", "/jobs/3/why"),
        ("jobs export", "/jobs/export"),
        ("jobs export daily", "/jobs/export?id=1"),
        ("executions list", "/executions"),
        ("executions list --limit 1", "/executions?limit=1"),
        ("executions list --status failed --job dead", "/executions?status=failed&job=3"),
        ("executions show 1", "/executions/1"),
        ("executions show 2", "/executions/2"),
        ("versions history daily", "/jobs/1/versions"),
        ("versions history daily --limit 1", "/jobs/1/versions?limit=1"),
        ("versions show daily 2", "/jobs/1/versions/2"),
        ("versions compare daily 1 2", "/jobs/1/versions/compare?from=1&to=2"),
        ("versions compare daily 1 2 --context 0", "/jobs/1/versions/compare?from=1&to=2&context=0"),
        ("versions stats", "/contents/stats"),
        ("dlq list", "/dead-letters"),
        ("workers list", "/workers"),
        ("locks list", "/locks"),
        ("locks stale", "/locks/stale"),
    ],
)
def test_json_is_that_of_the_api(cli: CommandLine, api: Callable[..., Any], line: str, path: str):
    printed, answered = cli.json(line), api(path)
    assert printed == answered
    if "items" in answered and line != "locks stale":
        assert answered["items"], "nothing was compared"


@pytest.mark.usefixtures("lived_in")
@pytest.mark.parametrize("what", ["users", "tokens", "secrets"])
def test_lists_of_people_and_secrets_are_those_of_the_api(
    cli: CommandLine, api: Callable[..., Any], rows: Session, sqlite_settings: Settings, what: str
) -> None:
    accounts.create_user(rows, "anna", None, "viewer", TESTER)
    secrets.set_secret(rows, "API_KEY", "hidden", TESTER, sqlite_settings)
    secrets.grant(rows, 1, "API_KEY", TESTER)
    printed, answered = cli.json(f"{what} list")["items"], api(f"/{what}")["items"]
    for one in (*printed, *answered):
        one.pop("last_used_at", None)  # asking is a use of the token
    assert printed == answered
    assert printed, "nothing was compared"


@pytest.mark.usefixtures("lived_in")
def test_what_changes_is_told_as_by_the_api(cli: CommandLine, api: Callable[..., Any]):
    new = {"name": "new", "code": CODE}
    document = {"kytecron": 1, "jobs": [{"name": "dead", "priority": 7, "code": CODE + "# more\n"}, new]}
    printed = cli.json("jobs import --dry-run -", text=json.dumps(document))
    assert printed == api("/jobs/import?dry_run=true", "POST", json=document)
    days = {"start": "2026-03-02T00:00:00Z", "end": "2026-03-09T00:00:00Z", "dry_run": True}
    printed = cli.json("jobs backfill daily --dry-run --from", days["start"], "--to", days["end"])
    assert printed == api("/jobs/1/backfill", "POST", json=days)
    assert printed["runs"] == 2

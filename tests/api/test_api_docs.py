"""docs/api.md and the OpenAPI document say what is so."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flask import Flask

from kytecron.api import errors, openapi
from kytecron.api.routing import PUBLIC, ROUTES
from kytecron.core.states import Status
from kytecron.services.throttle import TRIGGERS_PER_MINUTE

from .conftest import Caller

PAGE = Path(__file__).parents[2] / "docs" / "api.md"


@pytest.fixture
def dead_job(callers: dict[str, Caller], finish: Callable[..., None]) -> None:
    job = callers["editor"].job("dead", max_retries=0)["id"]
    callers["operator"](f"POST /jobs/{job}/trigger")
    finish(Status.FAILED, error="no luck")


@pytest.fixture
def runs_end(finish: Callable[..., None]) -> Iterator[None]:
    """What is triggered from now on runs and ends."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(0.05):
            finish(output="for us\n")

    worker = threading.Thread(target=work)
    worker.start()
    yield
    over.set()
    worker.join()


@pytest.mark.usefixtures("dead_job", "runs_end")
def test_the_flows_of_the_page_run_as_they_are_printed(live: str, callers: dict[str, Caller]) -> None:
    script = "set -eu -o pipefail\n" + "\n".join(
        re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    )
    done = subprocess.run(
        ["bash", "-c", script],
        env={"PATH": "/usr/bin:/bin", "KYTECRON": live, "TOKEN": callers["editor"].token or ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "for us" in done.stdout
    assert "completed" in done.stdout
    assert '"kind":"changed"' in done.stdout
    job = callers["viewer"]("GET /jobs?q=nightly-report").json["items"][0]
    assert (job["enabled"], job["current_version"]) == (True, 1)
    assert callers["viewer"]("GET /dead-letters").json["items"] == []


def test_the_page_names_every_status_and_the_throttle() -> None:
    text = PAGE.read_text()
    for status in {*errors.HTTP_ERRORS, *errors.STATUSES.values(), 500, 503}:
        assert f"| {status} |" in text
    for code, _ in errors.HTTP_ERRORS.values():
        assert f"`{code}`" in text
    assert f"over {TRIGGERS_PER_MINUTE} triggers" in text


def test_the_document_describes_every_route_but_itself(callers: dict[str, Caller]) -> None:
    document = callers["anonymous"]("GET /openapi.json").json
    assert document["openapi"] == "3.1.0"
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == {(one.method, f"/api/v1{one.path}") for one in ROUTES if one.role != PUBLIC}
    operations = [one for methods in document["paths"].values() for one in methods.values()]
    assert len({one["operationId"] for one in operations}) == len(operations)
    for one in operations:
        assert one["summary"]
        assert "Role: " in one["description"]


def test_every_reference_of_the_document_leads_somewhere() -> None:
    document = openapi.document()
    schemas = document["components"]["schemas"]
    used = set(re.findall(r"'#/components/schemas/(\w+)'", str(document)))
    assert used <= schemas.keys()
    assert schemas.keys() <= used


def test_the_page_made_of_the_document_shows_every_operation_and_loads_nothing_from_elsewhere(
    app: Flask,
) -> None:
    answer = app.test_client().get("/api/v1/docs")
    assert answer.mimetype == "text/html"
    for one in ROUTES:
        if one.role != PUBLIC:
            assert f'id="{one.name}"' in answer.text
    for anchor in set(re.findall(r'href="#(\w+)"', answer.text)):
        assert f'id="{anchor}"' in answer.text
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', answer.text)
    assert "<style" not in answer.text
    assert 'style="' not in answer.text


def test_the_page_tells_choices_limits_and_defaults(app: Flask) -> None:
    def panel(name: str) -> str:
        return (
            app.test_client().get("/api/v1/docs").text.partition(f'id="{name}"')[2].partition("</section>")[0]
        )

    assert "list of pending, running, completed, failed, timeout, lost, cancelled, skipped" in panel(
        "list_executions"
    )
    assert "integer 1..200, default 50" in panel("list_executions")
    assert "integer 0..100, default 3" in panel("create_job")
    assert "string, at most 500 characters" in panel("trigger_job")
    for said in ("POST", "/api/v1/jobs/{job_id}/trigger", "operator", "wait", "ExecutionDetail", "429"):
        assert said in panel("trigger_job")

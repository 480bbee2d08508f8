"""docs/api.md and the OpenAPI document say what is so."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask

from kytecron.api import errors, openapi
from kytecron.api.routing import ROUTES
from kytecron.config import ROOT, Settings
from kytecron.core.choices import PUBLIC
from kytecron.core.errors import KytecronError
from kytecron.services.throttle import TRIGGERS_PER_MINUTE
from tests.servers import serving
from tests.workers import working

from .conftest import Caller

PAGE = ROOT / "docs" / "api.md"
PATIENCE = 300


CHECKS = """set -eu -o pipefail
expect() {
    local said; said=$(cat); printf '%s\\n' "$said"
    case "$said" in $1) ;; *) echo "The page says: $1" >&2; return 1 ;; esac
}
"""


def script(page: str) -> str:
    """Return the page's examples as a script that fails where a command fails, or does not print what `# →` says."""

    def check(line: re.Match[str]) -> str:
        pattern = re.sub(r"([\[\]*?\\])", r"\\\1", line["said"]).replace("...", "*")
        return f"{line['command']} | expect {shlex.quote(pattern)}"

    examples = "\n".join(re.findall(r"```bash\n(.*?)```", page, re.DOTALL))
    return CHECKS + re.sub(r"^(?P<command>.*\S) +# → (?P<said>.*)$", check, examples, flags=re.MULTILINE)


def run(examples: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", script(examples)], env=variables, capture_output=True, text=True, timeout=PATIENCE
    )


@pytest.fixture
def variables(sqlite_settings: Settings, tmp_path: Path) -> Iterator[dict[str, str]]:
    """What a shell on the machine of a running installation has: its address, and the `kytecron` command."""
    command = tmp_path / "bin" / "kytecron"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\ncd {shlex.quote(str(ROOT))} && exec {sys.executable} -m kytecron "$@"\n')
    command.chmod(0o755)
    with serving(sqlite_settings) as port, working(sqlite_settings):
        yield {
            "PATH": f"{command.parent}:{Path(sys.executable).parent}:/usr/bin:/bin",
            "KYTECRON": f"http://127.0.0.1:{port}",
            "KYTECRON_INSTANCE_PATH": str(sqlite_settings.instance_path),
        }


def test_the_flows_of_the_page_run_as_they_are_printed(variables: dict[str, str]) -> None:
    page = PAGE.read_text()
    done = run(page, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert page.count("# →") > 30


@pytest.mark.parametrize(
    "lie", ["echo one   # → two", "echo 'o*e'   # → one", "false | cat   # → ...", "false"]
)
def test_an_example_that_lies_would_be_noticed(lie: str) -> None:
    assert run(f"```bash\ntrue\n{lie}\ntrue\n```", PATH="/usr/bin:/bin").returncode != 0


def test_every_address_that_the_page_names_is_a_route() -> None:
    known = {(one.method, re.sub(r"\{.*?\}", "{}", one.path)) for one in ROUTES}
    named = re.findall(r"`(GET|POST|PUT|PATCH|DELETE) (/[^`? ]*)", PAGE.read_text())
    assert len(named) > 20
    assert [one for one in named if (one[0], re.sub(r"\{.*?\}", "{}", one[1])) not in known] == []


def test_the_page_names_every_status_and_the_throttle() -> None:
    text = PAGE.read_text()
    for status in {*errors.HTTP_ERRORS, *(kind.http_status for kind in kinds(KytecronError)), 503}:
        assert f"| {status} |" in text
    for code, _ in errors.HTTP_ERRORS.values():
        assert f"`{code}`" in text
    assert f"over {TRIGGERS_PER_MINUTE} triggers" in text


def kinds(error: type[KytecronError]) -> Iterator[type[KytecronError]]:
    """The errors below `error`, and it."""
    yield error
    for below in error.__subclasses__():
        yield from kinds(below)


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

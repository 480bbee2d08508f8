"""Whatever anybody sends costs bounded time and memory, before and after it is known who they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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

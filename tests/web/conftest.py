"""The real app on a real database, and visitors of every role."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from playwright.sync_api import Browser, sync_playwright

from kytecron.app import create_app
from kytecron.config import Settings
from kytecron.core.states import Outcome, Status
from kytecron.requestdb import db
from kytecron.services import accounts, lifecycle, secrets
from kytecron.services.audit import Actor
from kytecron.services.jobs import CronJobManager
from tests.factories import add_worker
from tests.pages import HELLO, Visitor, database, make_visitor

TESTER = Actor("tester")


@pytest.fixture(scope="session")
def one_app(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Flask:
    """Made once: compiling its templates takes longer than most tests."""
    instance = tmp_path_factory.mktemp("web")
    shutil.copy(sqlite_template, instance / "kytecron.db")
    return create_app(Settings(instance_path=instance))


@pytest.fixture
def app(one_app: Flask, sqlite_template: Path) -> Flask:
    """The app on an empty database."""
    with one_app.app_context():
        db.engine.dispose()
    for left in Path(one_app.instance_path).glob("kytecron.db*"):
        left.unlink()
    shutil.copy(sqlite_template, Path(one_app.instance_path) / "kytecron.db")
    return one_app


@pytest.fixture
def admin(app: Flask) -> Visitor:
    return make_visitor(app, "admin")


@pytest.fixture
def editor(app: Flask) -> Visitor:
    return make_visitor(app, "editor")


@pytest.fixture
def operator(app: Flask) -> Visitor:
    return make_visitor(app, "operator")


@pytest.fixture
def viewer(app: Flask) -> Visitor:
    return make_visitor(app, "viewer")


@pytest.fixture
def visitors(app: Flask) -> dict[str, Visitor]:
    """One of each role, and `nobody`, who is not signed in."""
    return {"nobody": Visitor(app)} | {role: make_visitor(app, role) for role in accounts.ROLES}


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's chromium, once for all tests."""
    chromium = shutil.which("chromium")
    if chromium is None:
        if os.environ.get("KYTECRON_TEST_REQUIRE_ALL"):
            pytest.fail("chromium is required here (package chromium)")
        pytest.skip("no chromium on this machine (package chromium)")
    quiet = [
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
    ]
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-sync", *quiet]
        )
        yield running
        running.close()


@pytest.fixture
def lived_in(app: Flask) -> dict[str, object]:
    """Something of everything, and what the addresses of its pages name."""
    settings = app.extensions["kytecron.settings"]
    with database(app) as session:
        add_worker(session)
        manager = CronJobManager(session, TESTER)
        job = manager.create_job(
            name="hello",
            code=HELLO,
            schedule_type="interval",
            interval_seconds=3600,
            max_retries=1,
            overlap_policy="allow",
        )
        manager.create_job(name="child", code=HELLO, depends_on=[job.id], dependency_mode="trigger")
        manager.create_job(name="twin", code=HELLO)
        dead = manager.create_job(name="dead", code=HELLO)
        manager.update_code(job.id, HELLO.replace("Hello World", "Good day"), message="politer")
        lifecycle.trigger(session, dead.id, actor=TESTER)
        _end(session, Outcome(Status.FAILED, error="hopeless", permanent=True))
        lifecycle.trigger(session, job.id, actor=TESTER, version=1)
        _end(session, Outcome(Status.COMPLETED, duration_ms=5))
        failed = lifecycle.trigger(session, job.id, actor=TESTER)
        trace = f'Traceback (most recent call last):\n  File "<job {job.id} v2>", line 3, in execute\nValueError: no'
        _end(session, Outcome(Status.FAILED, error="no answer", stack_trace=trace, duration_ms=5))
        lifecycle.trigger(session, job.id, actor=TESTER)
        lifecycle.claim(session, "tester:1:a", (), 1, 60.0)
        accounts.create_token(session, "reader", "viewer", 1, TESTER)
        accounts.create_user(session, "somebody", None, "viewer", TESTER)
        secrets.set_secret(session, "API_KEY", "hidden", TESTER, settings)
        secrets.grant(session, job.id, "API_KEY", TESTER)
        return {
            "job_id": job.id,
            "execution_id": failed.id,
            "number": 2,
            "token": "none",
            "title": "schedules",
        }


def _end(session: object, outcome: Outcome) -> None:
    (run,) = lifecycle.claim(session, "tester:1:a", (), 1, 60.0)  # type: ignore[arg-type]
    lifecycle.settle(session, [(run.claim, outcome)])  # type: ignore[arg-type]

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
from kytecron.requestdb import db
from kytecron.services import accounts
from tests.pages import Visitor, make_visitor


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

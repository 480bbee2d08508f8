"""The real app on a real database, and callers of every role."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy.orm import Session
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.test import TestResponse

from kytecron.app import create_app
from kytecron.config import Settings
from kytecron.requestdb import db
from kytecron.services import accounts
from kytecron.services.audit import Actor
from kytecron.store import db as database
from tests.conftest import DATABASES

CODE = """
class Greeter(CronJobBase):
    def execute(self):
        self.log("hello")
"""


@dataclass
class Caller:
    """Calls the API with one token, or without."""

    client: FlaskClient
    token: str | None

    def __call__(self, rule: str, **options: Any) -> TestResponse:
        """`rule` is a method and a path below /api/v1."""
        method, path = rule.split(" ", 1)
        headers = dict(options.pop("headers", {}))
        if self.token is not None:
            headers.setdefault("Authorization", f"Bearer {self.token}")
        return self.client.open(f"/api/v1{path}", method=method, headers=headers, **options)

    def job(self, name: str = "greeter", **fields: Any) -> dict[str, Any]:
        """A new job."""
        answer = self("POST /jobs", json={"name": name, "code": CODE, **fields})
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json
        return made


@pytest.fixture
def app(sqlite_settings: Settings) -> Iterator[Flask]:
    app = create_app(sqlite_settings)
    yield app
    with app.app_context():
        db.engine.dispose()


@pytest.fixture
def callers(app: Flask) -> dict[str, Caller]:
    """One caller of each role, and `anonymous`."""
    return make_callers(app)


def make_callers(app: Flask) -> dict[str, Caller]:
    made = {"anonymous": Caller(app.test_client(), None)}
    with app.app_context():
        for role in accounts.ROLES:
            _, token = accounts.create_token(db.session(), f"test {role}", role, 1, Actor("test"))
            made[role] = Caller(app.test_client(), token)
    return made


@pytest.fixture
def api(callers: dict[str, Caller]) -> Caller:
    """A caller who may do everything."""
    return callers["admin"]


@pytest.fixture
def rows(app: Flask, sqlite_settings: Settings) -> Iterator[Session]:
    """The app's database, to put rows in that no call makes."""
    engine = database.make_engine(sqlite_settings)
    with database.make_sessions(engine)() as session:
        yield session
    engine.dispose()


@pytest.fixture(params=DATABASES)
def everywhere(request: pytest.FixtureRequest) -> Iterator[Caller]:
    """The `api` caller on each database."""
    app = create_app(request.getfixturevalue(f"{request.param}_settings"))
    yield make_callers(app)["admin"]
    with app.app_context():
        db.engine.dispose()


@pytest.fixture
def finish(app: Flask) -> Callable[..., None]:
    """Runs what is due and lets it end, as a worker would."""
    from kytecron.core.states import Outcome, Status
    from kytecron.services import lifecycle

    def run(status: Status = Status.COMPLETED, **outcome: Any) -> None:
        with app.app_context():
            claimed = lifecycle.claim(db.session(), "tester:1:a", (), 10, 60.0)
            endings = [(run.claim, Outcome(status, duration_ms=5, **outcome)) for run in claimed]
            lifecycle.settle(db.session(), endings)

    return run


@pytest.fixture
def live(app: Flask) -> Iterator[str]:
    """The app's address while it is served by threads of this process."""
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    serving.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    serving.join()
    server.server_close()


class _Quiet(WSGIRequestHandler):
    def log_request(self, *_: object) -> None:
        pass

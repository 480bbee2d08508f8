"""The logs of a real worker and of a real gunicorn, read as programs read them; the tables that gunicorn serves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from kytecron.config import ROOT, Settings
from kytecron.services import lifecycle
from kytecron.services.audit import Actor
from kytecron.store import db
from tests.mariadb import free_port
from tests.workers import make_job, wait_for, wait_for_statuses, working

ANNA = Actor("anna")
BAD = "class Job(CronJobBase):\n    def execute(self):\n        raise ValueError('broken')\n"


def lines(log: str) -> list[dict[str, Any]]:
    """Every line of a log; each has to be JSON."""
    return [json.loads(line) for line in log.splitlines()]


def test_each_line_of_a_worker_is_json_and_what_is_about_a_run_carries_its_keys(
    settings: Settings, session: Session
) -> None:
    job = make_job(session, BAD, max_retries=0)
    run = lifecycle.trigger(session, job.id, actor=ANNA)
    with working(settings, log_format="json") as worker:
        wait_for_statuses(session, job, "failed")
        wait_for(lambda: "broken" in worker.log())
        worker.stop()
        written = lines(worker.log())
    (failed,) = [line for line in written if "broken" in line["event"] and "execution" in line]
    assert (failed["execution"], failed["job"], failed["level"]) == (run.id, job.id, "warning")
    assert len({line["worker"] for line in written}) == 1


def test_no_text_keeps_a_line_for_people_from_being_written() -> None:
    code = (
        "import logging; from kytecron import config, logs; logs.configure_logging(config.Settings()); "
        "logging.warning('odd \\0 \\ud800')"
    )
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert "odd ␀ \\ud800" in told.stderr
    assert "Traceback" not in told.stderr


@contextmanager
def gunicorn(settings: Settings, log: Path, **variables: str) -> Iterator[str]:
    """The pages as an installation serves them; the address."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KYTECRON_")}
    environment |= {"KYTECRON_INSTANCE_PATH": str(settings.instance_path), "KYTECRON_LOG_FORMAT": "json"}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", f"--bind=127.0.0.1:{port}", "--workers=1", "--threads=2",
             "--worker-class=gthread", "--no-control-socket", "wsgi:app"],
            cwd=ROOT, env=environment | variables, stderr=stream,
        )  # fmt: skip
        try:
            wait_for(lambda: get(f"http://127.0.0.1:{port}/healthz")[0] == 200, "gunicorn to answer", 60)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def get(address: str, **headers: str) -> tuple[int, dict[str, str], str]:
    """Status, headers and text of an answer; status 0 where nobody answers."""
    request = urllib.request.Request(address, headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as answer:
            return answer.status, dict(answer.headers), answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read().decode()
    except OSError:
        return 0, {}, ""


def test_each_line_of_gunicorn_is_json_each_request_has_an_id_and_no_secret_is_written(
    sqlite_settings: Settings, tmp_path: Path
) -> None:
    with gunicorn(sqlite_settings, tmp_path / "log", KYTECRON_TRUSTED_PROXIES="1") as address:
        own = get(f"{address}/api/v1/jobs/7?token=hidden", **{"X-Request-Id": "from-the-proxy.1"})
        made = get(f"{address}/sign-in/hidden", **{"X-Request-Id": "no good\tat all"})
    log = (tmp_path / "log").read_text()
    assert "hidden" not in log
    written = {line["request"]: line for line in lines(log) if "request" in line}
    assert [line["logger"] for line in lines(log) if line.get("request") == "from-the-proxy.1"] == [
        "kytecron.door",
        "kytecron.access",
    ]
    assert own[1]["X-Request-Id"] == "from-the-proxy.1"
    about = written["from-the-proxy.1"]
    assert (about["method"], about["path"], about["status"], about["job"]) == (
        "GET",
        "/api/v1/jobs/7",
        401,
        7,
    )
    assert written[made[1]["X-Request-Id"]]["path"] == "/sign-in/***"


def test_an_id_from_anybody_is_not_taken_and_the_level_holds_under_gunicorn(
    sqlite_settings: Settings, tmp_path: Path
) -> None:
    with gunicorn(sqlite_settings, tmp_path / "log", KYTECRON_LOG_LEVEL="WARNING") as address:
        assert get(f"{address}/sign-in", **{"X-Request-Id": "mine"})[1]["X-Request-Id"] != "mine"
    assert (tmp_path / "log").read_text() == ""


def test_pages_and_api_refuse_tables_of_another_version_and_serve_again_without_a_restart(
    sqlite_settings: Settings, session: Session, tmp_path: Path
) -> None:
    with gunicorn(sqlite_settings, tmp_path / "log") as address:
        assert get(f"{address}/readyz")[0] == 200
        right = session.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one()
        for other, says in (
            ("9999", "a newer version of kytecron made it"),
            (None, "no record of its migration"),
        ):
            session.execute(sa.text("DELETE FROM alembic_version"))
            if other:
                session.execute(sa.text("INSERT INTO alembic_version VALUES (:it)"), {"it": other})
            session.commit()
            wait_for(lambda says=says: says in get(f"{address}/sign-in")[2], "the page to say so")
            status, _, text = get(f"{address}/api/v1/jobs")
            assert (status, json.loads(text)["error"]["code"], says in text) == (503, "unavailable", True)
            assert get(f"{address}/readyz")[0] == 503
            assert get(f"{address}/healthz")[0] == 200
        session.execute(sa.text("DELETE FROM alembic_version"))
        session.execute(sa.text("INSERT INTO alembic_version VALUES (:it)"), {"it": right})
        session.commit()
        wait_for(lambda: get(f"{address}/sign-in")[0] == 200, "the page to be back")
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.fixture
def settings(sqlite_settings: Settings) -> Settings:
    return sqlite_settings


@pytest.fixture
def session(sqlite_settings: Settings) -> Iterator[Session]:
    engine = db.make_engine(sqlite_settings)
    with db.make_sessions(engine)() as session:
        yield session
    engine.dispose()

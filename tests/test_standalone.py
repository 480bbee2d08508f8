"""`make run` as it is started: its address, its ends, and what it says when it cannot start."""

from __future__ import annotations

import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from kytecron.config import ROOT, Settings
from kytecron.core.states import Status
from kytecron.standalone import SAME_SIGNAL_SECONDS
from kytecron.store import db
from tests.mariadb import free_port
from tests.workers import executions, make_job, wait_for, wait_for_statuses

PATIENCE = 90
SLEEPER = """import time


class Sleeper(CronJobBase):
    def execute(self):
        time.sleep(300)
"""
Start = Callable[..., "subprocess.Popen[str]"]
Log = Callable[[], str]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts it in an instance directory of its own; whatever is left of it at the end is killed."""
    processes: list[subprocess.Popen[str]] = []
    log = (tmp_path / "log").open("w")

    def run(*arguments: object, **variables: str) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KYTECRON_")}
        environment |= {"KYTECRON_INSTANCE_PATH": str(tmp_path / "instance"), **variables}
        process = subprocess.Popen(
            [sys.executable, "-m", "kytecron.standalone", *map(str, arguments)],
            cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=log,
        )  # fmt: skip
        processes.append(process)
        return process

    yield run
    for process in processes:
        for each in [*family(process), process]:
            each.kill()
        process.communicate()
    log.close()


@pytest.fixture
def log(start: Start, tmp_path: Path) -> Log:
    """What was written to standard error so far."""
    return (tmp_path / "log").read_text


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Every process that it started, and theirs."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def welcome(process: subprocess.Popen[str]) -> str:
    """What it says once it is ready."""
    assert process.stdout is not None
    said = ""
    while not re.search(r"/sign-in/\S|Sign in with", said):
        line = process.stdout.readline()
        assert line, f"it ended: {said}"
        said += line
    return said


def test_it_prints_a_link_that_answers_whatever_the_address_and_the_proxies_are(start: Start, log: Log):
    port = free_port()
    nowhere = f"http://127.0.0.1:{free_port()}"
    process = start("--host", "127.0.0.2", "--port", port, http_proxy=nowhere, HTTP_PROXY=nowhere)
    link = re.findall(rf"http://127\.0\.0\.2:{port}/sign-in/\S+", welcome(process))
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    assert direct.open(link[0], timeout=30).status == 200
    parts = family(process)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 0
    assert "Traceback" not in log()
    assert psutil.wait_procs(parts, timeout=5)[1] == []


def test_the_link_is_the_last_line_whatever_the_first_runs_do_and_no_statistics_follow(
    start: Start, log: Log
) -> None:
    process = start("--port", free_port())
    said = welcome(process)
    assert log() == "", "the first runs come after it"
    assert "/sign-in/" in said.splitlines()[-1]
    wait_for(lambda: "fails and is retried' failed: " in log(), "the example's warning", PATIENCE)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=PATIENCE)
    assert rest.strip() == "Stopping: running jobs have 30 s to end. Ctrl-C again ends them at once."


def test_it_logs_what_goes_wrong_and_no_request_unless_the_log_level_is_set(start: Start, log: Log):
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for variables in ({}, {"KYTECRON_LOG_LEVEL": "INFO"}):
        port = free_port()
        process = start("--port", port, **variables)
        welcome(process)
        assert direct.open(f"http://127.0.0.1:{port}/sign-in", timeout=30).status == 200
        wait_for(lambda: "fails and is retried' failed: " in log(), "the example's warning", PATIENCE)
        assert ("GET /sign-in 200" in log()) == bool(variables)
        assert ("[info" in log()) == bool(variables)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=PATIENCE)
        assert "Stopping: running jobs have 30 s to end." in said
        assert process.returncode == 0


def test_a_port_that_is_taken_is_told_before_anything_is_started(start: Start, log: Log, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert start("--port", port).wait(PATIENCE) == 2
    assert log() == (
        f"Cannot listen on 127.0.0.1 port {port}: Address already in use. Choose another port, such as 8123\n"
    )
    assert not (tmp_path / "instance" / "kytecron.db").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_it_starts_leaves_nothing_running(start: Start, number: signal.Signals):
    process = start("--port", free_port())
    parts = wait_for(lambda: (found := family(process))[1:] and found, "both parts to start", PATIENCE)
    process.send_signal(number)
    assert process.wait(PATIENCE) == 0
    assert psutil.wait_procs(parts, timeout=5)[1] == []


def test_a_second_ctrl_c_ends_the_jobs_that_still_run(start: Start, log: Log, sqlite_settings: Settings):
    engine = db.make_engine(sqlite_settings)
    with db.make_sessions(engine)() as session:
        job = make_job(session, SLEEPER, schedule_type="interval", interval_seconds=3600)
        process = start("--port", free_port(), KYTECRON_LOG_LEVEL="INFO")
        welcome(process)
        wait_for_statuses(session, job, "running")
        process.send_signal(signal.SIGINT)
        wait_for(lambda: "stopping: " in log(), "the worker to be told")
        time.sleep(SAME_SIGNAL_SECONDS)  # nobody presses it faster
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
        assert executions(session, job)[0].status == Status.LOST
    engine.dispose()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nonsense", "KYTECRON_DATABASE_URL cannot be used: "),
        ("nosuch://host/kytecron", "KYTECRON_DATABASE_URL cannot be used: "),
        ("mysql+pymysql://a:hidden@127.0.0.1:1/kytecron", "The database does not answer: "),
    ],
)
def test_a_database_that_cannot_be_used_is_told_in_one_line(start: Start, log: Log, url: str, says: str):
    assert start("--port", free_port(), KYTECRON_DATABASE_URL=url).wait(PATIENCE) in (1, 2)
    assert log().startswith(says)
    assert log().count("\n") == 1
    assert "hidden" not in log()


def test_a_database_of_a_newer_version_is_left_alone(start: Start, log: Log, sqlite_settings: Settings):
    with closing(sqlite3.connect(sqlite_settings.instance_path / "kytecron.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    assert start("--port", free_port()).wait(PATIENCE) == 1
    assert log() == (
        "The database is at migration 9999, which this version does not know: "
        "a newer version of kytecron made it. Run that version, or restore a backup\n"
    )


def test_an_instance_directory_that_cannot_be_made_is_told_with_its_setting(
    start: Start, log: Log, tmp_path: Path
):
    (tmp_path / "instance").write_text("in the way")
    assert start("--port", free_port()).wait(PATIENCE) == 2
    assert log().startswith(f"KYTECRON_INSTANCE_PATH={tmp_path / 'instance'} cannot be used: ")

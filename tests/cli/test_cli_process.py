"""The program as it is started: streams, exit statuses, terminals, and real workers."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from kytecron.config import ROOT, Settings
from kytecron.services import lifecycle
from kytecron.services.audit import Actor
from kytecron.services.jobs import CronJobManager
from kytecron.store import db
from kytecron.store.models import CronJob
from tests.command_line import CODE, without_database
from tests.workers import executions, make_job, wait_for_statuses, working

TESTER = Actor("tester")
Start = Callable[..., "subprocess.Popen[str]"]
PATIENCE = 60


@pytest.fixture
def start(sqlite_settings: Settings) -> Start:
    """Starts `flask --app wsgi ...`, on the SQLite database unless told otherwise."""

    def run(
        *words: object, settings: Settings = sqlite_settings, terminal: int | None = None, **variables: str
    ) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KYTECRON_")}
        environment |= {
            "KYTECRON_INSTANCE_PATH": str(settings.instance_path),
            "KYTECRON_DATABASE_URL": settings.database_url,
            **variables,
        }
        return subprocess.Popen(
            [sys.executable, "-m", "flask", "--app", "wsgi", *map(str, words)],
            cwd=ROOT,
            env=environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if terminal is None else terminal,
            stderr=subprocess.PIPE,
        )

    return run


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Its exit status, and what it wrote to each stream, without the line that names the database."""
    out, error = process.communicate(timeout=PATIENCE)
    return process.returncode, out, without_database(error)


def test_answers_go_to_one_stream_and_errors_to_the_other(start: Start, job: CronJob):
    runs = [start("jobs", "show", job.id, "--json"), start("jobs", "show", "nobody"), start("jobs", "create")]
    (good, answer, quiet), (refused, nothing, why), (wrong, nothing_too, fields) = map(ended, runs)
    assert (good, json.loads(answer)["name"], quiet) == (0, "greeter", "")
    assert (refused, nothing, why) == (1, "", "Error: No job has the name 'nobody'\n")
    assert (wrong, nothing_too) == (2, "")
    assert "Error: name is required\n" in fields


def test_a_trigger_that_waits_ends_with_the_runs_result(
    start: Start, rows: Session, sqlite_settings: Settings
):
    make_job(rows, CODE, name="good")
    make_job(
        rows, CODE.replace("self.log", "raise OSError"), name="bad", max_retries=1, retry_delay_seconds=3600
    )
    make_job(rows, CODE.replace("self.log", "raise SkipRun"), name="skips")
    with working(sqlite_settings):
        waiting = [start("jobs", "trigger", name, "--wait") for name in ("good", "bad", "skips")]
        good, bad, skips = map(ended, waiting)
    assert good[0] == 0
    assert "completed after" in good[1]
    assert bad[0] == 1
    assert "failed after" in bad[1]
    assert "It is tried again at" in bad[2]
    assert skips[0] == 0
    assert skips[1].rstrip().endswith(": hello")


def test_following_a_log_shows_what_is_printed_while_it_runs(
    start: Start, rows: Session, sqlite_settings: Settings, tmp_path: Path
):
    gate = tmp_path / "gate"
    body = (
        f"print('before'); import os, time\n        while not os.path.exists({str(gate)!r}): time.sleep(0.02)"
    )
    job = make_job(rows, CODE.replace('self.log("hello")', f"{body}\n        print('after')"))
    run = lifecycle.trigger(rows, job.id, actor=TESTER)
    with working(sqlite_settings):
        following = start("executions", "log", "--follow", run.id)
        assert following.stdout is not None
        assert following.stdout.readline() == "before\n"
        gate.touch()
        status, rest, said = ended(following)
    assert (status, rest) == (0, "after\n")
    assert said.startswith(f"Execution {run.id} completed after")


def test_a_running_job_can_be_cancelled(start: Start, rows: Session, sqlite_settings: Settings):
    job = make_job(rows, CODE.replace('self.log("hello")', "import time; time.sleep(600)"))
    run = lifecycle.trigger(rows, job.id, actor=TESTER)
    with working(sqlite_settings):
        wait_for_statuses(rows, job, "running")
        assert ended(start("executions", "cancel", run.id))[0] == 0
        wait_for_statuses(rows, job, "cancelled")


def test_an_interrupt_ends_the_waiting_and_not_the_run(start: Start, job: CronJob, rows: Session):
    waiting = start("jobs", "trigger", "greeter", "--wait")
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == "Execution 1 was made.\n"
    waiting.send_signal(signal.SIGINT)
    status, _, said = ended(waiting)
    assert status == 1
    assert "Aborted!" in said
    assert "Traceback" not in said
    assert [run.status for run in executions(rows)] == ["pending"]


def test_a_reader_that_leaves_early_is_no_error(start: Start, rows: Session):
    for number in range(50):
        CronJobManager(rows).create_job(name=f"job {number}", code=CODE, description="x" * 2000)
    listing = start("jobs", "list", "--json")
    assert listing.stdout is not None
    listing.stdout.readline()
    listing.stdout.close()
    assert listing.stderr is not None
    said = listing.stderr.read()
    listing.wait(PATIENCE)
    assert "Traceback" not in said


@pytest.mark.parametrize("columns", ["30", "200"])
def test_a_terminal_never_loses_an_id(start: Start, rows: Session, columns: str):
    worker = "a-machine-with-a-long-name.example:123456:abcdef"
    job = CronJobManager(rows).create_job(name="a name of many words " * 5, code=CODE)
    run = lifecycle.trigger(rows, job.id, actor=TESTER)
    lifecycle.claim(rows, worker, (), 1, 60.0)
    ours, theirs = pty.openpty()
    listing = start("locks", "list", terminal=theirs, COLUMNS=columns, TERM="xterm")
    os.close(theirs)
    printed = _everything(ours)
    assert ended(listing)[0] == 0
    assert worker in printed
    assert re.search(rf"^{run.id} ", printed, re.MULTILINE)
    assert "\x1b[1m" in printed  # it was taken for a terminal


def _everything(descriptor: int) -> str:
    pieces = []
    try:
        while piece := os.read(descriptor, 65536):
            pieces.append(piece)
    except OSError:  # how a terminal says that nobody writes to it any more
        pass
    finally:
        os.close(descriptor)
    return b"".join(pieces).decode().replace("\r\n", "\n")


def test_several_migrations_at_once_wait_for_each_other(start: Start, tmp_path: Path):
    new = Settings(instance_path=tmp_path / "new")
    results = [ended(one) for one in [start("db", "upgrade", settings=new) for _ in range(3)]]
    assert [status for status, _, _ in results] == [0, 0, 0], results
    assert ended(start("jobs", "list", settings=new))[0] == 0


@pytest.mark.mariadb
def test_the_commands_run_on_a_server(start: Start, mariadb_settings: Settings, code_file: Path):
    made = start("jobs", "create", "--name", "é", "--code", code_file, "--json", settings=mariadb_settings)
    upgraded = start("db", "upgrade", settings=mariadb_settings)
    assert ended(upgraded)[0] == 0
    assert ended(made)[0] == 0
    status, answer, _ = ended(start("doctor", "--json", settings=mariadb_settings))
    assert (status, json.loads(answer)["healthy"]) == (0, True)


def test_a_wrong_setting_is_told_by_name_instead_of_a_traceback(start: Start):
    wrong = {
        "KYTECRON_CONCURRENCY": "many",
        "KYTECRON_DATABASE_URL": "nonsense",
        "KYTECRON_INSTANCE_PATH": "/proc/nothing",
    }
    runs = {name: start("jobs", "list", **{name: value}) for name, value in wrong.items()}
    for name, process in runs.items():
        status, out, error = ended(process)
        assert (status, out) == (2, "")
        assert error.startswith(f"Error: {name}")
        assert error.count("\n") == 1


def test_the_tables_are_brought_to_this_version_and_back_by_the_program_itself(tmp_path: Path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KYTECRON_")}
    environment["KYTECRON_INSTANCE_PATH"] = str(tmp_path / "new")

    def db(*words: str) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "kytecron", "db", *words]
        return ended(
            subprocess.Popen(
                command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        )

    status, _, said = db("current")
    assert (status, "has no tables yet" in said) == (1, True)
    assert db("upgrade")[0] == 0
    assert db("current")[0] == 0
    assert db("downgrade", "0001")[0] == 0
    status, _, said = db("current")
    assert (status, "is at migration 0001" in said) == (1, True)
    status, _, said = db("downgrade", "0000")
    assert (status, "There is no migration 0000" in said) == (1, True)


HEAVY = {
    *("alembic", "mako", "flask", "jinja2", "pygments", "yaml", "cron_descriptor"),
    *("rich.console", "rich.table", "kytecron.services.transfer"),
}
LOADED = (
    "import atexit, sys; from kytecron.program import main; "
    "atexit.register(lambda: print(*sys.modules, file=sys.stderr)); main()"
)


def test_a_list_loads_no_more_than_it_needs(settings: Settings):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KYTECRON_")}
    environment |= {
        "KYTECRON_INSTANCE_PATH": str(settings.instance_path),
        "KYTECRON_DATABASE_URL": settings.database_url,
    }
    command = [sys.executable, "-c", LOADED, "jobs", "list"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=PATIENCE
    )
    loaded = {*done.stderr.split()}
    assert (done.returncode, "kytecron.cli.jobs" in loaded) == (0, True)
    assert loaded & HEAVY == set()
    known = {"sqlalchemy.dialects.sqlite", "sqlalchemy.dialects.mysql", "sqlalchemy.dialects.postgresql"}
    spoken = db.address(settings.url).get_backend_name()
    assert loaded & known == {f"sqlalchemy.dialects.{spoken}"}

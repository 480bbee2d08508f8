"""What the documents say is so: links lead somewhere, tables are what the code computes, what is named exists."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from sqlalchemy.orm import Session

from kytecron.config import ROOT, Settings
from kytecron.core import retry
from kytecron.core.choices import MisfirePolicy, RetryStrategy, ScheduleType
from kytecron.core.errors import Invalid
from kytecron.core.fields import DEFAULTS
from kytecron.core.schedule import Schedule
from kytecron.engine.main import _parser
from kytecron.engine.server import KEPT_VARIABLES
from kytecron.services.jobs import CronJobManager, parents_of
from kytecron.store import db

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
DEPLOY = sorted(path for path in (ROOT / "deploy").iterdir() if path.is_file())
SCHEDULES = (ROOT / "docs" / "schedules.md").read_text()
WRITTEN = (".py", ".html", ".js", ".md", ".service", ".conf", ".yaml", ".env")
NAMES = {f"KYTECRON_{item.name.upper()}" for item in fields(Settings)}
OF_THE_TESTS = {"KYTECRON_TEST_REQUIRE_ALL"}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_every_link_leads_to_a_file(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text())
    lost = [
        target
        for target in targets
        if not re.match(r"[a-z]+:", target) and not (document.parent / target).exists()
    ]
    assert lost == []


@pytest.mark.parametrize("document", [*DOCUMENTS, *DEPLOY], ids=named)
def test_every_file_that_is_named_exists(document: Path) -> None:
    names = re.findall(r"(?<![\w/.])(?:docs|deploy|tests|kytecron)/[\w./-]*\.\w+", document.read_text())
    assert [name for name in names if not (ROOT / name).exists() and name != "deploy/.env"] == []


def test_every_test_that_is_named_exists() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    known = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    names = re.findall(r"`(test_\w+)`", text)
    assert names
    assert [name for name in names if f"def {name}(" not in known] == []


def test_pages_messages_and_documents_call_the_command_by_its_name() -> None:
    places = [ROOT / "README.md", *DEPLOY, *(ROOT / "docs").iterdir(), *(ROOT / "kytecron").rglob("*")]
    texts = {
        named(path): path.read_text() for path in places if path.suffix in ("", *WRITTEN) and path.is_file()
    }
    lines = [
        (name, line) for name, text in texts.items() for line in text.splitlines() if "flask --app" in line
    ]
    assert [name for name, _ in lines] == ["docs/cli.md"], lines
    assert "`flask --app wsgi <group> <command>` in the checkout does the same" in lines[0][1]


# -- the command of a checkout -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a command needs, in a directory with a space in its name, after `make install`."""
    place = tmp_path_factory.mktemp("a") / "check out"
    for name in ("kytecron", "migrations", "deploy"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml", "requirements.txt"):
        shutil.copy(ROOT / name, place)
    programs = place / ".venv" / "bin"
    programs.mkdir(parents=True)
    # Everything is installed already: in the environment that runs this test.
    python = programs / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    (place / ".venv" / "run.stamp").touch()
    subprocess.run(["make", "install"], cwd=place, check=True, timeout=60)
    return place


@pytest.mark.parametrize("how", ["its path", "a link to it", "PATH"])
def test_the_command_of_a_checkout_works_in_any_directory_on_its_own_installation(
    checkout: Path, tmp_path: Path, how: str
) -> None:
    command = checkout / ".venv" / "bin" / "kytecron"
    link = tmp_path / "kytecron"
    link.symlink_to(command)
    called = {"its path": str(command), "a link to it": str(link), "PATH": "kytecron"}[how]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("KYTECRON_")}
    variables["PATH"] = f"{command.parent}:{variables['PATH']}"
    for words in (("db", "upgrade"), ("jobs", "list", "--json")):
        done = subprocess.run(
            [called, *words], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert f"{checkout}/instance/kytecron.db" in done.stderr
    assert json.loads(done.stdout)["items"] == []


def test_running_and_testing_make_the_command(checkout: Path) -> None:
    shutil.copy(ROOT / "requirements-dev.txt", checkout)
    for target in ("run", "test"):
        planned = ["make", "--dry-run", "--always-make", target]
        done = subprocess.run(planned, cwd=checkout, capture_output=True, text=True, check=True, timeout=60)
        assert "install -m 755 deploy/kytecron .venv/bin/kytecron" in done.stdout


# -- deploy/ -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*DOCUMENTS, *DEPLOY], ids=named)
def test_only_settings_that_exist_are_named(path: Path) -> None:
    variables = set(re.findall(r"\bKYTECRON_[A-Z_]+[A-Z]\b", path.read_text()))
    assert variables <= NAMES | OF_THE_TESTS


def test_the_example_settings_are_understood_once_the_keys_are_filled_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = (ROOT / "deploy" / "kytecron.env").read_text().splitlines()
    for line in lines:
        if line and not line.startswith("#"):
            name, _, value = line.partition("=")
            monkeypatch.setenv(name, "".join(shlex.split(value)))
    with pytest.raises(Invalid, match="at least 32 random characters"):
        Settings.load().require_secret_key()
    monkeypatch.setenv("KYTECRON_SECRET_KEY", "0123456789abcdef" * 4)
    assert Settings.load().require_secret_key()


WORKERS = ("kytecron-worker.service", "kytecron-worker@.service")


@pytest.mark.parametrize("name", WORKERS)
def test_a_stopping_worker_is_given_the_time_that_it_may_take(name: str) -> None:
    defaults = Settings()
    longest = timedelta(seconds=defaults.grace_seconds + defaults.lease_seconds)
    unit = (ROOT / "deploy" / name).read_text()
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.M)
    assert timedelta(seconds=int(seconds)) > longest
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    assert compose["services"]["worker"]["stop_grace_period"] == "2m"
    assert timedelta(minutes=2) > longest


def test_a_service_s_stop_signals_the_worker_alone() -> None:
    # To all processes, it would end the jobs at once instead of after the grace.
    for name in (*WORKERS, "kytecron-web.service"):
        assert "\nKillMode=mixed\n" in (ROOT / "deploy" / name).read_text()


def test_one_of_several_workers_is_run_as_a_single_one_is_but_for_its_own_directory_and_settings() -> None:
    one, several = (
        [line for line in (ROOT / "deploy" / name).read_text().splitlines() if not line.startswith("#")]
        for name in WORKERS
    )
    own = "EnvironmentFile=-/etc/kytecron/worker-%i.env"
    several.remove(own)
    assert [line.replace(" %i", "").replace("/%i", "") for line in several] == one


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze")
@pytest.mark.parametrize("name", [*WORKERS, "kytecron-web.service"])
def test_systemd_understands_every_line_of_a_unit(name: str, tmp_path: Path) -> None:
    unit = tmp_path / name.replace("@", "@gpu")
    text = (ROOT / "deploy" / name).read_text()
    unit.write_text(re.sub(r"/opt/kytecron/\.venv/bin/\w+", "/bin/sh", text))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_as_a_service_imports_nothing_that_a_job_can_plant_and_has_no_key_of_the_pages(
    name: str,
) -> None:
    unit = (ROOT / "deploy" / name).read_text()
    assert "bin/python -s -P worker.py\n" in unit
    assert "\nEnvironment=PYTHONNOUSERSITE=1\n" in unit
    assert "\nUnsetEnvironment=KYTECRON_SECRET_KEY\n" in unit
    home = re.findall(r"^Environment=HOME=/var/lib/(.+)$", unit, re.M)
    assert home[0] in re.findall(r"^StateDirectory=(.+)$", unit, re.M)[0].split()


def test_every_variable_that_jobs_see_is_documented() -> None:
    text = (ROOT / "docs" / "jobs.md").read_text()
    seen = {name for name in KEPT_VARIABLES if name.isupper()}
    assert [name for name in sorted(seen) if f"`{name}`" not in text] == []


def test_the_parts_of_the_compose_example_fit_together() -> None:
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    services = compose["services"]
    for service in services.values():
        assert set(service.get("depends_on", ())) <= services.keys()
    databases = {name for name, service in services.items() if service.get("profiles") == [name]}
    assert databases == {"mariadb", "postgresql"}
    assert {
        name for name, how in services["migrate"]["depends_on"].items() if not how["required"]
    } == databases
    address = services["web"]["environment"]["KYTECRON_DATABASE_URL"]
    for name in databases:
        chosen = re.sub(r"\$\{COMPOSE_PROFILES[^}]*\}", name, address).replace(
            "${DATABASE_PASSWORD}", "Sesame1"
        )
        url = db.make_engine(Settings(database_url=chosen)).url
        assert (url.get_backend_name(), url.host, url.password) == (name, name, "Sesame1")
    words = shlex.split(services["worker"]["command"])
    assert words[:4] == ["python", "-s", "-P", "worker.py"]
    _parser().parse_args(words[4:])
    assert services["worker"]["environment"]["KYTECRON_SECRET_KEY"] == ""
    assert all(services[name]["read_only"] for name in ("web", "worker", "migrate"))
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "deploy" / "Dockerfile").read_text(), re.M)
    assert all((ROOT / name).exists() for line in copied for name in line.split())


# -- docs/schedules.md ---------------------------------------------------------------------------------------


def table(first_column: str) -> Iterator[list[str]]:
    """The rows of the table of docs/schedules.md whose heading begins with this."""
    lines = SCHEDULES.partition(f"\n| {first_column} |")[2].partition("\n\n")[0].splitlines()[2:]
    assert lines, first_column
    for line in lines:
        yield [cell.strip() for cell in line.strip("|").split("|")]


def code(cell: str) -> str:
    return re.findall("`([^`]+)`", cell)[0]


def tables_of_expressions() -> tuple[list[list[str]], list[list[str]]]:
    """Those that are accepted, and those that are refused."""
    accepted, refused = re.findall(r"\n\| expression \|.*\n\|---.*\n((?:\|.*\n)+)", SCHEDULES)
    return tuple(  # type: ignore[return-value]
        [[cell.strip() for cell in line.strip("|").split(" | ")] for line in rows.splitlines()]
        for rows in (accepted, refused)
    )


ACCEPTED, REFUSED = tables_of_expressions()


def slots_of(schedule: Schedule, after: datetime) -> Iterator[datetime]:
    slot = schedule.next_after(after)
    while slot is not None:
        yield slot
        slot = schedule.next_after(slot)


@pytest.mark.parametrize("row", ACCEPTED, ids=lambda row: code(row[0]))
def test_an_expression_has_the_slots_of_the_table(row: list[str]) -> None:
    shown = row[1].split(", ")
    schedule = Schedule.from_fields(schedule_type="cron", cron_expression=code(row[0]))
    slots = slots_of(schedule, datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC))
    assert [f"{next(slots):%m-%d %H:%M}" for _ in shown] == shown


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: code(row[0]))
def test_an_expression_is_refused_with_the_words_of_the_table(row: list[str]) -> None:
    with pytest.raises(Invalid) as caught:
        Schedule.from_fields(schedule_type="cron", cron_expression=code(row[0]))
    assert caught.value.fields == {"cron_expression": row[1]}


@pytest.mark.parametrize("row", list(table("zone")), ids=lambda row: f"{row[1][:10]} {row[2]}")
def test_a_date_has_the_slots_of_the_table(row: list[str]) -> None:
    zone, when, what, shown = row
    kind, text = what.split()[0], code(what)
    definition = {"cron": "cron_expression", "daily": "time_of_day"}[kind]
    schedule = Schedule.from_fields(schedule_type=kind, timezone=zone, **{definition: text})
    day = date.fromisoformat(when[:10])
    slots = []
    for slot in slots_of(schedule, datetime(day.year, day.month, day.day, tzinfo=UTC) - timedelta(days=1)):
        local = slot.astimezone(schedule.zone)
        if local.date() > day:
            break
        if local.date() == day:
            slots.append(f"{local:%H:%M%z}"[:-2])
    assert (", ".join(slots) or "none") == shown
    if change := re.search(r"(\d\d:\d\d) becomes (\d\d:\d\d)", when):
        assert change.groups() == clock_change(schedule, day)


def clock_change(schedule: Schedule, day: date) -> tuple[str, str]:
    """What the clock would have shown at the change on that date, and what it showed."""
    start = datetime(day.year, day.month, day.day, tzinfo=UTC) - timedelta(days=1)
    minutes = [start + timedelta(minutes=number) for number in range(3 * 24 * 60)]
    for before, after in pairwise(local.astimezone(schedule.zone) for local in minutes):
        if before.utcoffset() != after.utcoffset():
            return f"{before.replace(tzinfo=None) + timedelta(minutes=1):%H:%M}", f"{after:%H:%M}"
    raise AssertionError(f"no change around {day}")


@pytest.mark.parametrize("row", list(table("`retry_strategy`")), ids=lambda row: row[0])
def test_a_strategy_waits_as_the_table_says(row: list[str]) -> None:
    policy = retry.Policy(
        code(row[0]),
        delay_seconds=DEFAULTS["retry_delay_seconds"],
        max_delay_seconds=DEFAULTS["retry_max_delay_seconds"],
    )
    waits = [int(retry.delay(policy, attempt).total_seconds()) for attempt in range(8)]
    assert ", ".join(map(str, waits)) == row[1]


def test_the_defaults_are_those_of_the_table() -> None:
    rows = [[code(cell) for cell in row] for row in table("field")]
    told = {row[at]: row[at + 1] for row in rows for at in (0, 2)}
    assert told == {name: str(DEFAULTS[name]) for name in told}


def test_every_type_and_policy_has_its_row() -> None:
    assert [code(row[0]) for row in table("`schedule_type`")] == list(ScheduleType)
    assert [code(row[0]) for row in table("`misfire_policy`")] == list(MisfirePolicy)
    assert [code(row[0]) for row in table("`overlap_policy`")] == ["skip", "queue", "allow", "replace"]
    assert [code(row[0]) for row in table("`retry_strategy`")] == list(RetryStrategy)


def test_the_other_messages_are_as_they_are_printed() -> None:
    text = " ".join(SCHEDULES.split())
    for given in (
        {"schedule_type": "daily"},
        {"schedule_type": "daily", "time_of_day": "1:00", "timezone": "Berlin"},
    ):
        with pytest.raises(Invalid) as caught:
            Schedule.from_fields(**given)
        (message,) = caught.value.fields.values()
        assert f"`{message}`" in text


def test_the_example_of_dependencies_runs(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = CronJobManager(session)
    monkeypatch.setattr("kytecron.CronJobManager", lambda: manager)
    (example,) = re.findall(r"```python\n(.*?)```", SCHEDULES, re.S)
    exec(example, {})
    parents = {name: parents_of(session, manager.find(name).id) for name in ("Load", "Report", "Check")}
    load = manager.find("Load").id
    assert parents == {"Load": [], "Report": [load], "Check": [load]}

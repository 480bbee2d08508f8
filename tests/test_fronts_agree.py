"""Pages, API and command line say the same of the same rows."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

import pytest
from flask import Flask
from sqlalchemy.orm import Session

from kytecron.app import create_app
from kytecron.config import Settings
from kytecron.requestdb import db
from kytecron.services import accounts, lifecycle, registry
from kytecron.services.audit import Actor
from kytecron.services.doctor import examine
from kytecron.store import db as database
from kytecron.store import queries
from kytecron.store.models import CronWorkerRecord
from tests.command_line import CommandLine
from tests.factories import add_job, add_worker, ago, claim_one
from tests.pages import Visitor, make_visitor, text_of

TESTER = Actor("test")


@dataclass(frozen=True)
class Fronts:
    """The three of them, on one database."""

    settings: Settings
    app: Flask
    rows: Session
    visitor: Visitor
    cli: CommandLine
    token: str

    def page(self, path: str) -> str:
        """A page's HTML."""
        answer = self.visitor.get(path)
        assert answer.status_code == 200, answer.text
        return answer.text

    def cells(self, path: str) -> dict[str, list[str]]:
        """What stands in each row of a page's tables that has an id, cell by cell."""
        return _Rows(self.page(path)).rows

    def api(self, path: str) -> Any:
        """What the API answers."""
        answer = self._get(f"/api/v1{path}")
        return answer.json

    def metrics(self) -> dict[str, float]:
        """Each figure for Prometheus, by its name and labels."""
        lines = (line for line in self._get("/metrics").text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def table(self, line: str) -> dict[str, list[str]]:
        """What a command prints as a table, by the first column."""
        lines = self.cli.output(line).splitlines()
        starts = [found.start() for found in re.finditer(r"(?<!\S)\S+(?: \S+)*", lines[0])]
        ends = [*starts[1:], None]
        cut = [[text[a:b].strip() for a, b in zip(starts, ends, strict=True)] for text in lines[1:]]
        return {row[0]: row for row in cut}

    def _get(self, path: str) -> Any:
        answer = self.app.test_client().get(path, headers={"Authorization": f"Bearer {self.token}"})
        assert answer.status_code == 200, answer.text
        return answer


@pytest.fixture
def fronts(sqlite_settings: Settings) -> Iterator[Fronts]:
    app = create_app(sqlite_settings)
    engine = database.make_engine(sqlite_settings)
    with database.make_sessions(engine)() as rows:
        _, token = accounts.create_token(rows, "test", "admin", 1, TESTER)
        add_job(
            rows, schedule_type="manual", interval_seconds=None, next_run_time=None
        )  # or nothing is counted
        yield Fronts(sqlite_settings, app, rows, make_visitor(app, "admin"), CommandLine(app), token)
    with app.app_context():
        db.engine.dispose()
    engine.dispose()


class _Rows(HTMLParser):
    """The cells of table rows with an id."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: dict[str, list[str]] = {}
        self._row: str | None = None
        self._cell: list[str] | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self._row = dict(attrs).get("id")
        elif tag == "td" and self._row:
            self._cell = []

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "td" and self._cell is not None and self._row:
            self.rows.setdefault(self._row, []).append(" ".join(" ".join(self._cell).split()))
            self._cell = None


# -- workers ---------------------------------------------------------------------------------------------------


def worker_states(fronts: Fronts) -> dict[str, set[str]]:
    """Of each worker the words by which the fronts call its state."""
    page = {
        cells[0].split(" · ")[0].split()[-1]: cells[1].split()[0].lower()
        for row, cells in fronts.cells("/workers").items()
        if row.startswith("worker-")
    }
    api = {one["worker_id"]: one["state"] for one in fronts.api("/workers")["items"]}
    cli = {one["worker_id"]: one["state"] for one in fronts.cli.json("workers list")["items"]}
    table = {row[0]: row[1] for row in fronts.table("workers list").values() if row[0] in api}
    assert page.keys() == api.keys() == cli.keys() == table.keys()
    return {name: {page[name], api[name], cli[name], table[name]} for name in page}


def alive_by(fronts: Fronts) -> set[int]:
    """How many workers are alive, by whoever tells a number."""
    stat = re.search(r"Workers (\d+) ", text_of(fronts.page("/")))
    assert stat
    figures = fronts.metrics()
    return {int(stat[1]), fronts.api("/stats")["workers"], int(figures['kytecron_workers{state="alive"}'])}


def no_worker_by(fronts: Fronts) -> set[bool]:
    """Whether no worker lives, by those who say so in words."""
    job = add_job(fronts.rows, schedule_type="manual", interval_seconds=None)
    lifecycle.trigger(fronts.rows, job.id, actor=TESTER)
    codes = {reason["code"] for reason in fronts.api(f"/jobs/{job.id}/why")["reasons"]}
    told = {one.detail for one in examine(fronts.rows.get_bind(), fronts.settings, TESTER)}
    said = "none is alive" in fronts.cli.output(f"jobs why {job.id}")
    dashboard = "No worker is running" in fronts.page("/")
    doctor = any(detail.startswith("No worker is alive") for detail in told)
    with fronts.rows.get_bind().connect() as connection:
        upgrading = not registry.still_alive(connection, fronts.settings)
    return {"no_worker" in codes, said, dashboard, doctor, upgrading}


@pytest.mark.parametrize(
    ("fields", "seen_ago", "state"),
    [
        ({}, 5, "alive"),
        ({}, 45, "alive"),
        ({}, 75, "silent"),
        ({"lease_seconds": 300, "renew_seconds": 100}, 40, "alive"),
        ({"lease_seconds": 300, "renew_seconds": 100}, 250, "alive"),
        ({"lease_seconds": 300, "renew_seconds": 100}, 310, "silent"),
        ({"lease_seconds": 3, "renew_seconds": 1}, 5, "silent"),
        ({"draining": True}, 5, "draining"),
    ],
)
def test_everybody_goes_by_a_workers_own_lease(
    fronts: Fronts, fields: dict[str, Any], seen_ago: float, state: str
) -> None:
    add_worker(fronts.rows, "one:1:a", last_seen_at=ago(fronts.rows, seconds=seen_ago), **fields)
    assert worker_states(fronts) == {"one:1:a": {state}}
    assert alive_by(fronts) == {1 if state == "alive" else 0}
    if state != "draining":  # it lives, and says what it does
        assert no_worker_by(fronts) == {state != "alive"}


def test_a_worker_whose_run_was_taken_over_is_gone_at_once(fronts: Fronts) -> None:
    add_worker(fronts.rows, "one:1:a", last_seen_at=ago(fronts.rows, seconds=2))
    add_worker(fronts.rows, "stopped:1:a", stopped_at=ago(fronts.rows, seconds=2))
    add_job(fronts.rows)
    lifecycle.enqueue_due(fronts.rows)
    claim_one(fronts.rows, "one:1:a", lease=-10)
    assert worker_states(fronts)["one:1:a"] == {"alive"}
    assert len(lifecycle.reap(fronts.rows)) == 1
    assert worker_states(fronts)["one:1:a"] == {"alive"}, "it has reported since that lease ended"
    fronts.rows.rollback()
    (retry,) = [
        row.execution for row in queries.executions(fronts.rows).items if row.execution.status == "pending"
    ]
    lifecycle.retry_now(fronts.rows, retry.id, TESTER)
    claim_one(fronts.rows, "one:1:a")
    assert len(lifecycle.reap(fronts.rows, {"one:1:a"})) == 1
    assert worker_states(fronts) == {"one:1:a": {"gone"}, "stopped:1:a": {"stopped"}}
    assert alive_by(fronts) == {0}
    assert no_worker_by(fronts) == {True}


def test_a_worker_that_was_killed_is_gone_before_anybody_has_taken_its_runs(fronts: Fronts) -> None:
    here = registry.this_process()
    process = subprocess.Popen(["sleep", "60"])
    try:
        started = registry._start_time(process.pid)
        assert started
        add_worker(
            fronts.rows,
            "one:1:a",
            host=here.host,
            boot_id=here.boot_id,
            pid=process.pid,
            process_started=started,
        )
        assert worker_states(fronts) == {"one:1:a": {"alive"}}
    finally:
        process.kill()
        process.wait()
    assert worker_states(fronts) == {"one:1:a": {"gone"}}
    assert alive_by(fronts) == {0}
    assert no_worker_by(fronts) == {True}


def test_a_worker_that_reports_again_lives(fronts: Fronts) -> None:
    registry.report(fronts.rows, "one", Settings(), running=0, draining=False, clock_skew_ms=0, statistics={})
    lifecycle.reap(fronts.rows, {"one"})
    assert worker_states(fronts) == {"one": {"gone"}}
    registry.report(fronts.rows, "one", Settings(), running=0, draining=False, clock_skew_ms=0, statistics={})
    assert worker_states(fronts) == {"one": {"alive"}}


def test_what_wants_a_look_about_a_worker_is_told_alike(fronts: Fronts) -> None:
    add_worker(
        fronts.rows, "one:1:a", tzdata="2019a", version="0.0.1", trouble="no descriptors", slots=4, running=3
    )
    page, cli = text_of(fronts.page("/workers")), fronts.cli.output("workers list")
    for said in ("is in trouble: no descriptors", "has tzdata 2019a, here ", "runs version 0.0.1, here "):
        assert said in page
        assert f"one:1:a {said}" in cli
    assert "3 of 4" in page
    assert "3/4" in cli
    assert "3 of 4 capacity in use" in text_of(fronts.page("/"))
    (told,) = fronts.api("/workers")["items"]
    assert (told["running"], told["slots"], told["trouble"]) == (3, 4, "no descriptors")
    assert fronts.rows.get_one(CronWorkerRecord, "one:1:a").lease_seconds == told["lease_seconds"]

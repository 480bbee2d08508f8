"""Pages, API and command line say the same of the same rows."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from html.parser import HTMLParser
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.orm import Session

from kytecron.app import create_app
from kytecron.config import Settings
from kytecron.core import words
from kytecron.core.states import Outcome, Status
from kytecron.requestdb import db
from kytecron.services import accounts, deadletters, lifecycle, registry
from kytecron.services.audit import Actor
from kytecron.services.doctor import examine
from kytecron.services.jobs import CronJobManager
from kytecron.store import db as database
from kytecron.store import queries
from kytecron.store.models import CronJob, CronJobDailyStat, CronJobExecution, CronWorkerRecord
from tests.command_line import CODE, CommandLine
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


# -- jobs ------------------------------------------------------------------------------------------------------


def end_run(fronts: Fronts, job: CronJob, outcome: Outcome | None = None, *, cancel: bool = False) -> None:
    """Let a job run to an ending, or cancel it while it runs."""
    run = lifecycle.trigger(fronts.rows, job.id, actor=TESTER)
    claim = claim_one(fronts.rows)
    if cancel:
        lifecycle.cancel(fronts.rows, run.id, TESTER)
        outcome = Outcome(Status.CANCELLED, error="cancelled")
    lifecycle.settle(fronts.rows, [(claim, outcome or Outcome(Status.COMPLETED, duration_ms=1200))])


def rates(fronts: Fronts, job: CronJob) -> set[str]:
    """A job's success rate as each of them writes it."""
    page = re.search(r"Success (\S+)", text_of(fronts.page(f"/jobs/{job.id}")))
    assert page
    summary = fronts.api(f"/jobs/{job.id}")["execution_summary"]["success_rate"]
    days = fronts.api(f"/jobs/{job.id}/stats")["total"]["success_rate"]
    table = fronts.table("jobs list")[str(job.id)][6]
    shown = re.search(r"success % +(\S+)", fronts.cli.output(f"jobs show {job.id}")) or ("", "")
    return {
        fronts.cells("/jobs")[f"job-{job.id}"][4],
        page[1],
        *(words.percent(one) for one in (summary, days)),
        *(f"{one}%" if one[:1].isdigit() else "–" for one in (table, shown[1])),
    }


@pytest.mark.parametrize(
    ("endings", "rate"),
    [
        ("", "–"),
        ("c", "100%"),
        ("cx", "100%"),
        ("x", "–"),
        ("fx", "0%"),
        ("cccccccf", "87.5%"),
        ("ccf", "66.7%"),
    ],
)
def test_a_success_rate_has_one_divisor_and_one_rounding(fronts: Fronts, endings: str, rate: str) -> None:
    job = add_job(fronts.rows, max_retries=0, next_run_time=ago(fronts.rows, hours=-1))
    for letter in endings:
        end_run(
            fronts, job, Outcome(Status.FAILED, error="no") if letter == "f" else None, cancel=letter == "x"
        )
        if letter == "f":
            deadletters.recover(fronts.rows, job.id, TESTER)
    assert rates(fronts, job) == {rate}


def test_nearly_all_is_not_all_anywhere(fronts: Fronts) -> None:
    job = add_job(
        fronts.rows,
        runs_total=1000,
        runs_completed=999,
        runs_failed=1,
        last_execution=1,
        last_status="completed",
    )
    fronts.rows.add(
        CronJobDailyStat(cron_job=job.id, day=database.now(fronts.rows).date(), completed=999, failed=1)
    )
    fronts.rows.commit()
    assert rates(fronts, job) == {"99.9%"}


def last_results(fronts: Fronts, job: CronJob) -> set[str]:
    """What a job's last slots came to, as each of them writes it."""
    fronts.rows.rollback()
    fronts.rows.refresh(job)
    cell = fronts.cells("/jobs")[f"job-{job.id}"][2]
    shown = re.search(r"last result +(.+)", fronts.cli.output(f"jobs show {job.id}"))
    assert shown
    table = fronts.table("jobs list")[str(job.id)][5]
    assert shown[1] == table
    return {
        re.sub(r" \d{4}-\S+ \S+ UTC", ";", cell).replace("Skipped ", "skipped, ").lower().rstrip(";"),
        table,
    }


def found_by(fronts: Fronts, result: str) -> set[int]:
    """The jobs that each of them finds by a last result: the same."""
    page = {int(row.removeprefix("job-")) for row in fronts.cells(f"/jobs?result={result}")}
    api = {one["id"] for one in fronts.api(f"/jobs?last_result={result}")["items"]}
    cli = {one["id"] for one in fronts.cli.json(f"jobs list --last-result {result}")["items"]}
    assert page == api == cli
    return page


def skip_slots(fronts: Fronts, job: CronJob, number: int) -> None:
    """Let slots of an enabled job come while it has no code to run: each is skipped."""
    for _ in range(number):
        fronts.rows.execute(
            sa.update(CronJob).where(CronJob.id == job.id).values(next_run_time=ago(fronts.rows, seconds=1))
        )
        fronts.rows.commit()
        lifecycle.enqueue_due(fronts.rows)


def test_a_job_whose_only_run_was_called_off_has_not_never_run(fronts: Fronts) -> None:
    add_worker(fronts.rows)
    job = add_job(fronts.rows, name="called off", next_run_time=ago(fronts.rows, hours=-1))
    lifecycle.trigger(fronts.rows, job.id, actor=TESTER)
    claim = claim_one(fronts.rows)
    lifecycle.settle(fronts.rows, [(claim, Outcome(Status.CANCELLED, error="cancelled by anna"))])
    assert last_results(fronts, job) == {"cancelled"}
    assert job.id in found_by(fronts, "cancelled")
    assert job.id not in found_by(fronts, "never")


def test_slots_that_are_skipped_in_a_row_are_seen_everywhere(fronts: Fronts) -> None:
    add_worker(fronts.rows)
    first = next(iter(found_by(fronts, "never")))
    busy = add_job(fronts.rows, name="busy", next_run_time=ago(fronts.rows, hours=-1), max_retries=0)
    assert last_results(fronts, busy) == {"never ran"}
    lifecycle.trigger(fronts.rows, busy.id, actor=TESTER)
    claim = claim_one(fronts.rows)
    skip_slots(fronts, busy, 17)
    assert last_results(fronts, busy) == {"skipped, 17 slots in a row"}
    assert found_by(fronts, "skipped") == {busy.id}
    assert found_by(fronts, "never") == {first}
    said = {fronts.api("/stats")["verdict"]["text"], fronts.cli.output("status").splitlines()[0]}
    assert said == {"1 job skips its slots."}
    assert "1 job skips its slots." in text_of(fronts.page("/"))
    assert list(fronts.cells("/jobs?status=skipping")) == [f"job-{busy.id}"]
    lifecycle.settle(fronts.rows, [(claim, Outcome(Status.COMPLETED))])
    assert last_results(fronts, busy) == {"completed"}
    lifecycle.trigger(fronts.rows, busy.id, actor=TESTER)
    skip_slots(fronts, busy, 2)
    assert last_results(fronts, busy) == {"completed; 2 slots skipped since"}
    assert found_by(fronts, "skipped") == found_by(fronts, "completed") == {busy.id}
    assert fronts.api("/stats")["verdict"] == {"tone": "good", "text": "All jobs are on time."}


def test_one_verdict_for_all(fronts: Fronts) -> None:
    def said() -> set[str]:
        page = re.search(r'class="verdict verdict-(\w+)">.*?<span>([^<]+)', fronts.page("/"), re.S)
        assert page
        api = fronts.api("/stats")["verdict"]
        status = 1 if api["tone"] == "bad" else 0
        shell = fronts.cli.output("status", status=status).splitlines()[0]
        assert fronts.cli.json("status", status=status) == fronts.api("/stats")
        assert page[1] == api["tone"]
        return {page[2], api["text"], shell}

    assert said() == {"No worker is running, so nothing starts. Start one with: python worker.py"}
    worker = add_worker(fronts.rows, draining=True)
    assert said() == {"All workers are shutting down, so nothing starts."}
    worker.draining = False
    fronts.rows.commit()
    assert said() == {"All jobs are on time."}
    job = add_job(
        fronts.rows, next_run_time=ago(fronts.rows, hours=-1), max_retries=0, consecutive_failures=2
    )
    assert said() == {"1 job fails."}
    assert list(fronts.cells("/jobs?status=failing")) == [f"job-{job.id}"]
    end_run(fronts, job, Outcome(Status.FAILED, error="no"))
    assert said() == {"1 job is in the dead letter queue."}


# -- what is to come -------------------------------------------------------------------------------------------


def upcoming_by(fronts: Fronts, job: CronJob) -> set[tuple[str, ...]]:
    """The next slots as each of them lists them."""
    page = fronts.page(f"/jobs/{job.id}").split("Next slots")[1].split("</section>")[0]
    api = fronts.api(f"/jobs/{job.id}/upcoming?count=5")["slots"]
    cli = fronts.cli.json(f"jobs next-runs {job.id} --count 5")["slots"]
    countdowns = re.findall(r'datetime="([^"]+)"\s+data-countdown', page)
    return {tuple(one[:19] for one in found) for found in (countdowns, api, cli)}


def test_all_list_the_same_next_slots(fronts: Fronts) -> None:
    now = database.now(fronts.rows)
    manager = CronJobManager(fronts.rows, TESTER)
    hourly = {"code": CODE, "schedule_type": "interval", "interval_seconds": 3600}
    for number, (fields, most) in enumerate(
        [
            ({}, 5),
            ({"max_runs": 2}, 2),
            ({"ends_at": (now + timedelta(hours=3)).isoformat()}, 3),
            ({"interval_anchor": "completion"}, 1),
            ({"enabled": False}, 0),
        ]
    ):
        job = manager.create_job(name=f"job of {number}", **hourly | fields)
        (slots,) = upcoming_by(fronts, job)
        assert len(slots) in (most, max(0, most - 1) if "ends_at" in fields else most), fields


def test_slots_closer_than_the_usual_duration_are_warned_of_everywhere(fronts: Fronts) -> None:
    job = CronJobManager(fronts.rows, TESTER).create_job(
        name="slow", code=CODE, schedule_type="interval", interval_seconds=60
    )
    end_run(fronts, job, Outcome(Status.COMPLETED, duration_ms=100_000))
    said = "but slots are as little as"
    form = fronts.page(f"/jobs/preview?schedule_type=interval&interval_seconds=60&job={job.id}")
    api = fronts.api(f"/jobs/{job.id}")["warnings"]
    assert api == fronts.api(f"/jobs/{job.id}/upcoming")["warnings"]
    assert len(api) == 1
    for text in (text_of(form), text_of(fronts.page(f"/jobs/{job.id}")), api[0]):
        assert said in text
    assert said in fronts.cli.output(f"jobs show {job.id}")
    assert said in fronts.cli.output(f"jobs next-runs {job.id}")


# -- runs ------------------------------------------------------------------------------------------------------


def test_a_run_is_told_alike(fronts: Fronts) -> None:
    job = add_job(fronts.rows, name="job of all", max_retries=0, next_run_time=ago(fronts.rows, hours=-1))
    run = lifecycle.trigger(fronts.rows, job.id, actor=TESTER, note="by hand")
    claim = claim_one(fronts.rows)
    ended = Outcome(
        Status.TIMEOUT,
        error="ran longer than 1 minute",
        duration_ms=64_200,
        cpu_ms=2_345,
        memory_peak_mb=12.34,
        exit_code=143,
        output="x",
        output_bytes=1_234_567,
    )
    lifecycle.settle(fronts.rows, [(claim, ended)])
    told = ["ran longer than 1 minute", "1 min 04 s", "2.3 s", "12.3 MiB at its peak", "143", "1.2 MB"]
    told.append("a person (test): by hand")
    page, shell = (
        text_of(fronts.page(f"/executions/{run.id}")),
        fronts.cli.output(f"executions show {run.id}"),
    )
    for said in told:
        assert said in page
        assert said in shell
    answer = fronts.api(f"/executions/{run.id}")
    assert (answer["error"], answer["duration_ms"], answer["status"]) == (told[0], 64_200, "timeout")
    cells, row = (
        fronts.cells("/executions")[f"execution-{run.id}"],
        fronts.table("executions list")[str(run.id)],
    )
    assert cells[2] == "Timed out ran longer than 1 minute"
    assert (row[2], row[-1]) == ("timeout", told[0])
    assert cells[4] == row[5] == told[1]
    assert ("Timed out" in page, words.status(answer["status"])) == (True, "Timed out")


def test_a_row_that_stands_for_many_slots_says_how_many(fronts: Fronts) -> None:
    job = add_job(fronts.rows, next_run_time=ago(fronts.rows, hours=-1))
    first, last = ago(fronts.rows, hours=30), ago(fronts.rows, hours=2)
    fronts.rows.add(
        CronJobExecution(
            cron_job=job.id,
            scheduled_time=first,
            slots_until=last,
            slots_count=1234,
            status="skipped",
            skipped_reason="missed",
            completed_at=last,
        )
    )
    fronts.rows.commit()
    (cells,) = fronts.cells("/executions").values()
    (row,) = fronts.table("executions list").values()
    assert "1,234 slots" in cells[3]
    assert row[-1] == "1,234 slots. missed"
    assert "1,234 slots" in fronts.cli.output(f"executions show {row[0]}")
    assert "Last of 1,234 slots" in text_of(fronts.page(f"/executions/{row[0]}"))
    assert fronts.api(f"/executions/{row[0]}")["slots_count"] == 1234


def test_a_lock_whose_lease_has_ended_is_stale_everywhere(fronts: Fronts) -> None:
    add_job(fronts.rows, name="kept")
    add_job(fronts.rows, name="left")
    lifecycle.enqueue_due(fronts.rows)
    claim_one(fronts.rows, "one:1:a")
    left = claim_one(fronts.rows, "one:1:a", lease=-5).execution_id
    api = {one["execution_id"] for one in fronts.api("/locks")["items"] if one["stale"]}
    page = {
        int(row.removeprefix("lock-"))
        for row, cells in fronts.cells("/workers").items()
        if cells[3] == "ended"
    }
    table = {int(row[0]) for row in fronts.table("locks list").values() if row[-1].endswith("stale")}
    figures = {fronts.metrics()["kytecron_leases_stale"], float(fronts.api("/stats")["stale_locks"])}
    assert (api, page, table, figures) == ({left}, {left}, {left}, {1.0})
    assert fronts.cli.json("locks list")["items"] == fronts.api("/locks")["items"]

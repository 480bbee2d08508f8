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
from kytecron.core.errors import Conflict
from kytecron.core.states import Outcome, Status
from kytecron.requestdb import db
from kytecron.services import accounts, deadletters, lifecycle, registry, secrets
from kytecron.services.audit import Actor
from kytecron.services.doctor import examine
from kytecron.services.jobs import CronJobManager
from kytecron.store import db as database
from kytecron.store import queries
from kytecron.store.models import CronJob, CronJobDailyStat, CronJobExecution, CronWorkerRecord
from kytecron.views import people, runs
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


# -- what a person looks after -----------------------------------------------------------------------------------


def test_a_dead_letter_is_told_alike(fronts: Fronts) -> None:
    job = add_job(fronts.rows, name="gone wrong", max_retries=0, next_run_time=ago(fronts.rows, hours=-1))
    end_run(fronts, job, Outcome(Status.FAILED, error="no disk", permanent=True))
    (api,) = fronts.api("/dead-letters")["items"]
    reason, since = api["dead_letter_reason"], api["dead_letter_since"][:19].replace("T", " ")
    assert "no disk" in reason
    (row,) = fronts.table("dlq list").values()
    assert row == [str(job.id), "gone wrong", f"{since}Z", "1 failure in a row", reason]
    assert fronts.cells("/dead-letters")[f"dead-{job.id}"][1:] == [
        "gone wrong " + api["schedule"],
        reason,
        f"{since} UTC",
        f"#{api['execution_summary']['last_execution']['id']}",
    ]
    page, dashboard = text_of(fronts.page(f"/jobs/{job.id}")), text_of(fronts.page("/"))
    shown = fronts.cli.output(f"jobs show {job.id}")
    for said in (page, dashboard, shown):
        assert reason in said
    assert "In the dead letter queue since" in page
    assert "1 failure in a row" in page
    assert re.search(r"^failing +1 failure in a row$", shown, re.M)
    assert re.search(r"^status +dead letter$", shown, re.M)


def test_versions_are_told_alike(fronts: Fronts) -> None:
    manager = CronJobManager(fronts.rows, TESTER)
    job = manager.create_job(name="grown", code=CODE, schedule_type="manual")
    manager.create_job(name="twin", code=CODE, schedule_type="manual")
    manager.update_code(job.id, CODE.replace("hello", "good day") + "# more\n", message="politer")
    cells, table = fronts.cells(f"/jobs/{job.id}/versions"), fronts.table(f"versions history {job.id}")
    told = fronts.api(f"/jobs/{job.id}/versions")["items"]
    assert [one["version_number"] for one in told] == [2, 1]
    for one in told:
        number = one["version_number"]
        page, row = cells[f"version-{number}"], table[str(number)]
        assert page[0] == f"Version {number}" + (" Current" if one["is_current"] else "")
        assert row[1] == ("yes" if one["is_current"] else "-")
        added, removed, changed = one["lines_added"], one["lines_removed"], one["lines_changed"]
        assert page[3] == f"+{added} −{removed} ~{changed} of {one['lines_after']}"
        assert row[4] == f"+{added} -{removed} ~{changed}"
        assert (page[2], row[6]) == (one["message"] or "–", one["message"] or "-")
        assert page[4].split()[0] == row[3] == one["created_by"]
        assert page[5].split()[0] == row[5][:10] == one["content_hash"][:10]
        assert ("shared by 2 versions" in page[5]) == (number == 1)
    counts = fronts.api(f"/jobs/{job.id}/versions/compare?from=1&to=2")["counts"]
    assert (counts["added"], counts["removed"], counts["changed"]) == (1, 0, 1)
    assert "1 added 0 removed 1 changed" in text_of(
        fronts.page(f"/jobs/{job.id}/versions/compare?from=1&to=2")
    )
    shell = fronts.cli.output(f"versions compare {job.id} 1 2")
    assert shell.endswith("1 lines added, 0 removed, 1 changed.\n")
    same = fronts.cli.output(f"versions compare {job.id} 1 1")
    assert same.endswith("0 lines added, 0 removed, 0 changed.\n")


def test_a_users_state_is_told_alike(fronts: Fronts) -> None:
    accounts.create_user(fronts.rows, "with", "correct horse battery staple", "viewer", TESTER)
    accounts.create_user(fronts.rows, "without", None, "viewer", TESTER)
    off = accounts.create_user(fronts.rows, "off", None, "operator", TESTER)
    accounts.set_enabled(fronts.rows, off.id, False, TESTER)
    cells, table = fronts.cells("/users"), fronts.table("users list")
    states = {}
    for one in fronts.api("/users")["items"]:
        page, row = cells[f"user-{one['id']}"], table[str(one["id"])]
        assert page[0].split()[0] == row[1] == one["username"]
        assert page[2].lower() == row[3]
        states[one["username"]] = row[3]
        assert one["enabled"] == (row[3] != "disabled")
        assert one["has_password"] or row[3] != "enabled"
        assert (page[3] == "never") == (one["last_login_at"] is None) == (row[5] == "never")
    assert states == {
        "the-admin": "no password yet",
        "with": "enabled",
        "without": "no password yet",
        "off": "disabled",
    }
    assert fronts.cli.json("users list")["items"] == fronts.api("/users")["items"]


def test_a_tokens_state_is_told_alike_up_to_the_moment_it_ends(fronts: Fronts) -> None:
    now = database.now(fronts.rows)
    for name, ends in (("for ever", None), ("until later", 5), ("ended", -1), ("taken", 5)):
        made, _ = accounts.create_token(fronts.rows, name, "viewer", None if ends is None else 9, TESTER)
        if ends is not None:
            made.expires_at = now + timedelta(minutes=ends)
            fronts.rows.commit()
    accounts.revoke_token(fronts.rows, made.id, TESTER)
    cells, table = fronts.cells("/users"), fronts.table("tokens list")
    states = {}
    for one in fronts.api("/tokens")["items"]:
        page, row = cells[f"token-{one['id']}"], table[str(one["id"])]
        states[one["name"]] = one["state"]
        assert page[2].split(" until ")[0].lower() == row[3] == one["state"]
        assert ("Revoke" in page[5]) == (one["state"] != "revoked")
    assert states.pop("test") == "valid"
    assert states == {"for ever": "valid", "until later": "valid", "ended": "expired", "taken": "revoked"}
    assert (
        [one["id"] for one in fronts.cli.json("tokens list")["items"]]
        == [one["id"] for one in fronts.api("/tokens")["items"]]
    )  # fmt: skip


def test_a_token_is_valid_for_as_long_as_it_lets_a_program_in(fronts: Fronts) -> None:
    made, plain = accounts.create_token(fronts.rows, "short", "viewer", 1, TESTER)
    ends = made.expires_at
    assert ends
    for moment in (ends - timedelta(microseconds=1), ends, ends + timedelta(seconds=1)):
        let_in = accounts.find_token(fronts.rows, plain, moment) is not None
        assert (people.token(made, moment).state == "valid") == let_in


def test_secrets_are_told_alike(fronts: Fronts) -> None:
    job = add_job(fronts.rows, name="reader")
    for name in ("API_KEY", "UNUSED"):
        secrets.set_secret(fronts.rows, name, "hidden value", TESTER, fronts.settings)
    secrets.grant(fronts.rows, job.id, "API_KEY", TESTER)
    told = fronts.api("/secrets")["items"]
    assert fronts.cli.json("secrets list")["items"] == told
    cells, table = fronts.cells("/secrets"), fronts.table("secrets list")
    for one in told:
        page, row = cells[f"secret-{one['id']}"], table[one["name"]]
        names = [granted["name"] for granted in one["jobs"]]
        assert page[0] == row[0] == one["name"]
        assert page[1].endswith(f"by {one['updated_by']}")
        assert row[2] == one["updated_by"]
        assert row[3] == (", ".join(names) or "-")
        assert page[2] == (" ".join(names) or "none yet")
    assert [len(one["jobs"]) for one in told] == [1, 0]


def test_a_change_is_told_alike(fronts: Fronts) -> None:
    job = CronJobManager(fronts.rows, TESTER).create_job(name="changed", code=CODE, schedule_type="manual")
    CronJobManager(fronts.rows, TESTER).update_job(job.id, description="new", tags=["a", "b"])
    told = fronts.api("/audit?subject_type=job")["items"]
    cells = fronts.cells("/audit?subject_type=job")
    assert len(told) == len(cells) > 1
    for one in told:
        page = cells[f"audit-{one['id']}"]
        assert page[1].split() == ["test", one["source"]]
        assert page[2] == f"{one['action'].capitalize()} job {one['subject_id']} : changed"
    update = next(one for one in told if one["action"] == "update")
    assert (update["before"]["description"], update["after"]["tags"]) == ("", ["a", "b"])
    page = cells[f"audit-{update['id']}"]
    assert "description nothing new" in page[3]
    assert "tags nothing a, b" in page[3]


def facts_by(fronts: Fronts, job: CronJob) -> tuple[dict[str, str], dict[str, str]]:
    """What a job is set to, as its page and as `jobs show` tell it."""
    html = "".join(
        re.findall(
            r'<dl class="panel-body facts facts-narrow">(.*?)</dl>', fronts.page(f"/jobs/{job.id}"), re.S
        )
    )
    page = {
        text_of(label): text_of(text)
        for label, text in re.findall(r"<dt>(.*?)</dt>\s*<dd>(.*?)</dd>", html, re.S)
    }
    lines = fronts.cli.output(f"jobs show {job.id}").splitlines()
    return page, {
        label: line[len(label) :].strip()
        for label in page
        for line in lines
        if re.match(rf"{re.escape(label)}  +", line)
    }


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"max_retries": 0, "timeout_seconds": 90, "memory_limit_mb": 64, "overlap_policy": "queue", "queue_length": 3},
        {"retry_strategy": "fixed", "max_retries": 2, "notification_email": "a@b.org", "notify_after_failures": 2},
        {"max_runs": 5, "misfire_policy": "run_all", "priority": 7, "worker_tag": "gpu", "parameters": {"a": 1}},
    ],
)  # fmt: skip
def test_what_a_job_is_set_to_is_told_alike(fronts: Fronts, fields: dict[str, Any]) -> None:
    hourly = {"schedule_type": "interval", "interval_seconds": 3600}
    job = CronJobManager(fronts.rows, TESTER).create_job(name="set", code=CODE, **hourly | fields)
    page, shell = facts_by(fronts, job)
    assert page == shell
    assert page["Retries"]
    told = fronts.api(f"/jobs/{job.id}")
    assert {name: told[name] for name in fields} == fields
    assert page["Time limit"] == words.in_words(told["timeout_seconds"])
    left = fronts.cli.output(f"jobs show {job.id}")
    assert ("parameters" in left) == ("parameters" in fields)


# -- what goes on ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", ["cancel", "release"])
def test_a_run_that_is_asked_to_stop_is_being_stopped_everywhere(fronts: Fronts, ask: str) -> None:
    add_worker(fronts.rows)
    job = add_job(fronts.rows, name="long", next_run_time=ago(fronts.rows, hours=-1))
    run = lifecycle.trigger(fronts.rows, job.id, actor=TESTER)
    claim = claim_one(fronts.rows)
    assert "being stopped" not in fronts.page(f"/executions/{run.id}")
    assert fronts.table("locks list")[str(run.id)][-1].endswith("-")
    if ask == "cancel":
        lifecycle.cancel(fronts.rows, run.id, TESTER)
    else:
        lifecycle.release_lock(fronts.rows, run.id, TESTER)
    fronts.rows.expire_all()
    assert fronts.rows.get_one(CronJobExecution, run.id).status == "running", claim
    assert "being stopped" in text_of(fronts.page(f"/executions/{run.id}"))
    assert "running, being stopped" in fronts.cli.output(f"executions show {run.id}")
    assert fronts.cells("/workers")[f"lock-{run.id}"][3].endswith("asked to stop")
    assert fronts.table("locks list")[str(run.id)][-1].endswith("asked to stop")
    told = fronts.api(f"/executions/{run.id}")
    assert bool(told["cancel_reason"]) != bool(told["release_reason"])


def test_what_runs_and_what_failed_is_the_same_on_the_dashboard(fronts: Fronts) -> None:
    job = add_job(fronts.rows, name="runs", next_run_time=ago(fronts.rows, hours=-1), overlap_policy="allow")
    other = add_job(fronts.rows, name="fails", next_run_time=ago(fronts.rows, hours=-1), max_retries=0)
    for _ in range(2):
        end_run(fronts, other, Outcome(Status.LOST, error="its machine went away"))
        deadletters.recover(fronts.rows, other.id, TESTER)
    lifecycle.trigger(fronts.rows, job.id, actor=TESTER)
    claim_one(fronts.rows)
    (running,) = fronts.api("/executions/running")["items"]
    failed = fronts.api("/executions/failed")["items"]
    html = fronts.page("/")
    assert re.findall(r'id="run-(\d+)"', html) == [str(running["id"])]
    assert re.findall(r'id="failed-(\d+)"', html) == [str(max(one["id"] for one in failed))]
    assert "Lost fails 2 times" in text_of(html)
    assert "its machine went away" in text_of(html)
    table = fronts.table("executions list --status running")
    assert list(table) == [str(running["id"])]


def test_a_retry_is_offered_where_it_can_be_started(fronts: Fronts) -> None:
    job = add_job(
        fronts.rows,
        name="tries",
        next_run_time=ago(fronts.rows, hours=-1),
        max_retries=3,
        retry_delay_seconds=600,
    )
    first = lifecycle.trigger(fronts.rows, job.id, actor=TESTER)
    for attempt in range(2):
        lifecycle.settle(fronts.rows, [(claim_one(fronts.rows), Outcome(Status.FAILED, error="no"))])
        if not attempt:
            lifecycle.retry_now(fronts.rows, first.id, TESTER)
    ids = [one["id"] for one in fronts.api(f"/executions/{first.id}")["attempts"]]
    assert [one["status"] for one in fronts.api(f"/executions/{first.id}")["attempts"]] == [
        "failed",
        "failed",
        "pending",
    ]
    for execution in ids:
        html, table = (
            fronts.page(f"/executions/{execution}"),
            fronts.cli.output(f"executions show {execution}"),
        )
        for number, one in enumerate(ids, 1):
            assert f"Attempt {number}" in text_of(html)
            assert re.search(rf"^{one} +{number} ", table, re.M)
        offered = f"/executions/{execution}/retry" in html
        detail = runs.detail(queries.execution(fronts.rows, execution), database.now(fronts.rows))
        assert offered == detail.may_retry_now == (execution != ids[0])
    with pytest.raises(Conflict):
        lifecycle.retry_now(fronts.rows, ids[0], TESTER)


def test_why_no_slot_is_to_come_is_told_alike(fronts: Fronts) -> None:
    manager = CronJobManager(fronts.rows, TESTER)
    off = manager.create_job(
        name="off", code=CODE, schedule_type="interval", interval_seconds=60, enabled=False
    )
    by_hand = manager.create_job(name="by hand", code=CODE, schedule_type="manual")
    for job, said in ((off, "one while it is disabled."), (by_hand, "one. It runs when a person, a program")):
        assert f"N{said}" in text_of(fronts.page(f"/jobs/{job.id}"))
        assert f"Next slots: n{said}" in fronts.cli.output(f"jobs next-runs {job.id}")
        assert fronts.api(f"/jobs/{job.id}/upcoming")["slots"] == []


@pytest.mark.parametrize(
    ("zone", "differs"),
    [("UTC", False), ("Etc/UTC", False), ("Atlantic/Reykjavik", False), ("Asia/Tokyo", True)],
)
def test_a_slot_is_written_once_where_the_zone_agrees_with_utc(
    fronts: Fronts, zone: str, differs: bool
) -> None:
    daily = {"schedule_type": "daily", "time_of_day": "02:30", "timezone": zone}
    job = CronJobManager(fronts.rows, TESTER).create_job(name="daily", code=CODE, **daily)
    titles = fronts.cli.output(f"jobs next-runs {job.id}").splitlines()[1].split()
    assert titles == (["UTC", zone] if differs else ["UTC"])
    form = fronts.page("/jobs/preview?" + "&".join(f"{name}={value}" for name, value in daily.items()))
    slots = fronts.page(f"/jobs/{job.id}").split("Next slots")[1].split("</section>")[0]
    said = [item.split("data-countdown")[0] for item in form.split("<li>")[1:]]
    assert len(said) == 5
    assert all(len(re.findall(r"\d\d:30 ", item)) == 1 + differs for item in said), said
    assert slots.count("data-beside") == 5
    assert slots.count(" hidden>") == (0 if differs else 5)

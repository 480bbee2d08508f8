"""`jobs`: every field can be set, wrong input is told by field, and what is printed says what was done."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from kytecron.core.fields import DEFAULTS, FIELDS
from kytecron.services import lifecycle
from kytecron.services.audit import Actor
from kytecron.services.jobs import CronJobManager
from kytecron.store.models import CronAudit, CronJob
from tests.command_line import CODE, CommandLine
from tests.factories import add_job

ANYTHING = {
    "name": "everything set",
    "description": "all fields differ from their defaults",
    "tags": "etl,nightly",
    "schedule_type": "daily",
    "time_of_day": "12:30",
    "timezone": "Europe/Berlin",
    "starts_at": "2026-01-01T00:00:00Z",
    "ends_at": "2999-01-01",
    "max_runs": "7",
    "jitter_seconds": "5",
    "timeout_seconds": "10",
    "memory_limit_mb": "64",
    "cpu_limit_seconds": "9",
    "parameters": '{"region": "eu"}',
    "priority": "9",
    "worker_tag": "gpu",
    "overlap_policy": "queue",
    "queue_length": "3",
    "misfire_policy": "run_all",
    "misfire_grace_seconds": "61",
    "on_lost_contact": "continue",
    "max_retries": "0",
    "retry_strategy": "fixed",
    "retry_delay_seconds": "0",
    "retry_max_delay_seconds": "10",
    "depends_on": "greeter",
    "dependency_mode": "trigger",
    "dependency_timeout_seconds": "60",
    "require_fresh": True,
    "notify_on_failure": False,
    "notify_after_failures": "3",
    "notify_on_dead_letter": False,
    "notify_on_recovery": False,
    "slack_webhook": "https://hooks.example.com/x",
    "notification_email": "ops@example.com",
    "enabled": False,
}
OTHER_SCHEDULES = {"cron_expression", "interval_seconds", "interval_anchor", "day_of_week", "day_of_month"}


def as_options(fields: dict[str, object]) -> list[str]:
    words: list[str] = []
    for name, value in fields.items():
        flag = name.replace("_", "-")
        words += (
            [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
        )
    return words


def test_every_field_of_a_job_has_an_option(cli: CommandLine):
    for command in ("create", "edit"):
        text = cli.output(f"jobs {command} --help")
        missing = [name for name in FIELDS if f"--{name.replace('_', '-')}" not in text]
        assert missing == []


def test_a_job_is_created_with_all_that_was_given(cli: CommandLine, job: CronJob, code_file: Path):
    made = cli.json("jobs create", *as_options(ANYTHING), "--code", code_file, "--message", "first")
    assert {*ANYTHING, *OTHER_SCHEDULES} == FIELDS.keys()
    unchanged = {name for name in ANYTHING if made[name] == DEFAULTS.get(name)}
    assert unchanged == set()
    assert made["tags"] == ["etl", "nightly"]
    assert made["parameters"] == {"region": "eu"}
    assert made["depends_on"] == [job.id]
    assert made["ends_at"] == "2999-01-01T00:00:00Z"
    assert made["version_info"]["message"] == "first"
    assert cli.output("versions show", made["id"], "--code") == CODE


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"schedule_type": "interval", "interval_seconds": "60", "interval_anchor": "completion"}, 60),
        ({"schedule_type": "cron", "cron_expression": "*/5 * * * *"}, "*/5 * * * *"),
        ({"schedule_type": "weekly", "day_of_week": "1,3", "time_of_day": "02:30"}, [1, 3]),
        ({"schedule_type": "monthly", "day_of_month": "31", "time_of_day": "02:30"}, 31),
    ],
)
def test_each_schedule_type_can_be_created(cli: CommandLine, code_file: Path, fields: dict, expected: object):
    made = cli.json("jobs create --name x", *as_options(fields), "--code", code_file)
    assert expected in [made[name] for name in OTHER_SCHEDULES]


def test_every_wrong_field_is_told_at_once_on_standard_error(cli: CommandLine):
    said = cli.error(
        "jobs create --schedule-type daly --max-retries many --tags '/' --code -", text="x =", status=2
    )
    assert "Error: name is required" in said
    assert "Error: max_retries must be a whole number" in said
    assert "Error: Invalid schedule_type. Must be one of: cron, interval" in said
    assert "Error: tags: '/' is not a tag" in said
    assert "Error: code: line 1, column 4" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--depends-on nobody", "depends_on: No job has the name 'nobody'"),
        ("--parameters nope", 'parameters: must be a JSON object, such as {"region": "eu"}'),
        ("--code /nowhere/job.py", "code: /nowhere/job.py: No such file or directory"),
        ("--name greeter", "The name 'greeter' is taken by job 1"),
    ],
)
def test_what_cannot_be_accepted_is_told_by_field(
    cli: CommandLine, job: CronJob, code_file: Path, options: str, said: str
):
    words = "" if "--code" in options else f"--code {code_file}"
    assert said in cli.error(f"jobs create --name other {words} {options}", status=2)


def test_code_that_is_not_text_is_told(cli: CommandLine, tmp_path: Path):
    (tmp_path / "job.py").write_bytes(b"\xff\xfe")
    said = cli.error("jobs create --name x --code", tmp_path / "job.py", status=2)
    assert "is not UTF-8: byte 0" in said


def test_an_edit_changes_what_was_given_and_nothing_else(cli: CommandLine, job: CronJob):
    before = cli.json("jobs show greeter")
    said = cli.output(
        "jobs edit greeter --schedule-type interval --interval-seconds 60 --tags a,b --no-enabled"
    )
    assert "interval_seconds: - -> 60" in said
    assert "tags: - -> a, b" in said
    after = cli.json("jobs show greeter")
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {
        *("schedule_type", "interval_seconds", "tags", "enabled"),
        *("schedule", "next_run_time", "revision", "updated_at", "updated_by"),
    } - {"next_run_time"}


def test_an_empty_option_takes_a_value_away(cli: CommandLine, job: CronJob, code_file: Path):
    cli("jobs create --name child --depends-on greeter --tags a --notification-email a@b.c --code", code_file)
    after = cli.json('jobs edit child --depends-on "" --tags "" --notification-email ""')
    assert (after["depends_on"], after["tags"], after["notification_email"]) == ([], [], None)


def test_an_edit_that_changes_nothing_says_so(cli: CommandLine, job: CronJob, code_file: Path):
    assert cli.output("jobs edit greeter --priority 5 --code", code_file) == "Nothing to change.\n"


def test_an_edit_may_rename_and_bring_code_from_input(cli: CommandLine, job: CronJob):
    said = cli.output(
        "jobs edit greeter --name waver --code - --message waves", text=CODE.replace("hello", "bye")
    )
    assert "name: greeter -> waver" in said
    assert "code: version 1 -> 2" in said
    assert [one["message"] for one in cli.json("versions history waver")["items"]] == ["waves", ""]


def test_a_stale_edit_is_refused_with_both_sides(cli: CommandLine, job: CronJob):
    cli("jobs edit greeter --priority 7")
    said = cli.error("jobs edit greeter --priority 2 --revision 1", status=1)
    assert "priority: 7 is there, 2 is yours" in said
    cli("jobs edit greeter --code -", text=CODE.replace("hello", "theirs"))
    said = cli.error(
        "jobs edit greeter --base-version 1 --code -", text=CODE.replace("hello", "mine"), status=1
    )
    assert '-        self.log("theirs")' in said
    assert '+        self.log("mine")' in said


def test_a_job_is_named_or_numbered(cli: CommandLine, job: CronJob):
    assert cli.json("jobs show greeter") == cli.json("jobs show", job.id)
    assert cli.error("jobs show nobody", status=1) == "Error: No job has the name 'nobody'\n"
    assert cli.error("jobs show 99", status=1) == "Error: Job 99 does not exist\n"


def test_lists_filter_sort_and_go_on_where_a_part_ended(cli: CommandLine, rows: Session):
    for number in range(5):
        CronJobManager(rows).create_job(name=f"job {number}", code=CODE, tags=["odd"] if number % 2 else [])
    first = cli.json("jobs list --limit 2 --sort=-name")
    assert [one["name"] for one in first["items"]] == ["job 4", "job 3"]
    rest = cli.json("jobs list --all --sort=-name --cursor", first["next_cursor"])
    assert [one["name"] for one in rest["items"]] == ["job 2", "job 1", "job 0"]
    assert rest["next_cursor"] is None
    assert len(cli.json("jobs list --tag odd")["items"]) == 2
    part = cli("jobs list --limit 2")
    assert part.stdout.count("\n") == 3
    assert "There is more: add --all" in part.stderr


def test_lists_for_people_hold_whole_cells_where_nobody_sits_at_a_terminal(cli: CommandLine, rows: Session):
    name = "a name that is far longer than any column of any terminal " * 3
    CronJobManager(rows).create_job(name=name, code=CODE)
    header, line = cli.output("jobs list").splitlines()
    assert header.split()[:2] == ["ID", "NAME"]
    assert " ".join(name.split()) in line


def test_attempts_recovered_and_skipped_stand_beside_the_rate(cli: CommandLine, rows: Session):
    add_job(
        rows,
        runs_total=5,
        runs_completed=1,
        runs_failed=4,
        retried_failed=3,
        runs_recovered=1,
        runs_skipped=7,
    )
    job = add_job(rows, runs_total=1, runs_completed=1, attempts_until=date(2026, 3, 1))
    header, first, second = cli.output("jobs list").splitlines()
    assert header.split()[-3:] == ["SUCCESS", "%", "SLOTS"]
    assert " 50 2 (5 attempts, 1 recovered, 7 skipped)" in " ".join(first.split())
    assert second.split()[-2:] == ["100", "1"]
    assert "in attempts up to 2026-03-01, in slots since" in cli.output("jobs show", str(job.id))


def test_next_runs_are_shown_on_the_jobs_own_clock(cli: CommandLine, code_file: Path):
    cli(
        "jobs create --name daily --schedule-type daily --time-of-day 02:30 --timezone Europe/Berlin --code",
        code_file,
    )
    found = cli.json("jobs next-runs daily --count 3")
    assert found["schedule"] == "At 02:30 every day, Europe/Berlin time"
    assert len(found["slots"]) == 3
    lines = cli.output("jobs next-runs daily --count 3").splitlines()
    assert all("02:30:00 CE" in line or "03:00:00 CEST" in line for line in lines[2:5])


def test_a_job_without_a_next_run_says_so(cli: CommandLine, job: CronJob):
    said = cli.output("jobs next-runs greeter")
    assert said.endswith("Next slots: none. It runs when a person, a program or its parents start it.\n")


def test_enabling_and_disabling(cli: CommandLine, job: CronJob):
    assert cli.output("jobs disable greeter --reason holiday") == "Job 1 'greeter' is disabled.\n"
    assert cli.json("jobs show greeter")["disabled_reason"] == "holiday"
    assert cli.error("jobs trigger greeter", status=1) == "Error: Job is disabled\n"
    assert "is enabled" in cli.output("jobs enable greeter")


def test_deleting_asks_first(cli: CommandLine, job: CronJob):
    cli("jobs delete greeter", text="n\n", status=1)
    assert cli.json("jobs show greeter")["id"] == job.id
    cli("jobs delete greeter", text="y\n")
    cli("jobs show greeter", status=1)


def test_deleting_without_a_question(cli: CommandLine, job: CronJob):
    assert cli.output("jobs delete greeter --yes") == "Job 1 'greeter' is deleted.\n"


def test_a_trigger_takes_parameters_a_note_and_a_version(cli: CommandLine, job: CronJob):
    made = cli.json("jobs trigger greeter --note why --version 1 --parameters", '{"a": [1]}')
    assert (made["parameters"], made["note"], made["origin"]) == ({"a": [1]}, "why", "manual")
    assert "version" in cli.error("jobs trigger greeter --version 9", status=2)


@pytest.mark.parametrize("text", ["nope", "[1]", "{", "NaN", "[" * 100_000])
def test_parameters_that_are_no_object_are_refused(cli: CommandLine, job: CronJob, text: str):
    assert "parameters must be a JSON object" in cli.error(
        "jobs trigger greeter --parameters", text, status=2
    )


def test_waiting_ends_with_the_time_limit(cli: CommandLine, job: CronJob):
    result = cli("jobs trigger greeter --wait --timeout 0", status=1)
    assert "No worker is alive" in result.stderr
    assert "Execution 1 is still pending after 0 s" in result.stderr


def test_a_backfill_lists_the_slots_before_it_runs_them(cli: CommandLine, code_file: Path):
    cli("jobs create --name daily --schedule-type daily --time-of-day 02:30 --code", code_file)
    dry = cli.json("jobs backfill daily --from 2026-01-01 --to 2026-01-04 --dry-run")
    assert [slot["scheduled_time"] for slot in dry["slots"]] == [
        f"2026-01-0{day}T02:30:00Z" for day in (1, 2, 3)
    ]
    assert cli.json("executions list")["items"] == []
    assert "3 of 3 slots will run" in cli.output("jobs backfill daily --from 2026-01-01 --to 2026-01-04")
    assert len(cli.json("executions list")["items"]) == 3
    assert "to must be later" in cli.error("jobs backfill daily --from 2026-01-04 --to 2026-01-01", status=2)
    cli("jobs backfill daily --from yesterday --to 2026-01-01", status=2)


def test_who_did_it_stands_in_the_audit_log(cli: CommandLine, job: CronJob, rows: Session, monkeypatch):
    monkeypatch.setenv("LOGNAME", "ada")
    cli("jobs disable greeter")
    row = rows.scalars(sa.select(CronAudit).order_by(CronAudit.id.desc())).first()
    assert row is not None
    assert (row.actor, row.source, row.action) == ("ada", "cli", "disable")


def test_nothing_printed_can_take_over_the_terminal(cli: CommandLine, job: CronJob, rows: Session):
    hostile = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202edone"
    run = lifecycle.trigger(rows, job.id, note=hostile, actor=Actor("x\x1b[2J"))
    rows.execute(sa.update(CronJob).values(name=hostile, description=hostile))
    rows.commit()
    for line in (
        "jobs list",
        "jobs show 1",
        "executions list",
        f"executions show {run.id}",
        "jobs list --json",
    ):
        printed = cli.output(line)
        assert not set(printed) & set("\x1b\x07\x9b\u202e"), line
        assert "done" in printed


def test_commands_work_on_each_database(everywhere: CommandLine, code_file: Path):
    made = everywhere.json(
        "jobs create --name each --schedule-type interval --interval-seconds 60 --code", code_file
    )
    everywhere("jobs edit each --priority 7 --code -", text=CODE.replace("hello", "bye"))
    everywhere("jobs trigger each")
    (run,) = everywhere.json("executions list --job each")["items"]
    everywhere("executions cancel", run["id"])
    everywhere("versions rollback each 1 --yes")
    document = everywhere.output("jobs export")
    everywhere("jobs delete each --yes")
    assert "1 created" in everywhere.output("jobs import -", text=document)
    again = everywhere.json("jobs show each")
    assert again["id"] != made["id"]
    assert again["priority"] == 7
    assert everywhere.json("doctor")["healthy"] is True
    assert everywhere.json("prune --yes")["executions"] == 0


def test_why_says_what_a_job_waits_for(cli: CommandLine, job: CronJob) -> None:
    said = cli.output("jobs why greeter").splitlines()
    assert said[0] == f'Job {job.id} "greeter" has no schedule: it runs when somebody or something starts it.'
    assert said[1] == "- It has no schedule: a person, a program or a parent starts it."
    cli("jobs disable greeter --reason holidays")
    answer = cli.json("jobs why greeter")
    assert answer["reasons"][0]["code"] == "disabled"
    assert "(cli)" in answer["reasons"][0]["text"]

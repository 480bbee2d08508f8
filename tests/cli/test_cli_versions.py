"""`versions`: history, code, comparison, rollback, pruning, storage."""

from __future__ import annotations

import pytest
from sqlalchemy.orm import Session

from kytecron.services.jobs import CronJobManager
from kytecron.store.models import CronJob
from tests.command_line import CODE, CommandLine


@pytest.fixture
def edited(job: CronJob, rows: Session) -> CronJob:
    """A job with three versions."""
    manager = CronJobManager(rows)
    manager.update_code(job.id, CODE.replace("hello", "good day"), message="politer")
    manager.update_code(job.id, CODE + "\n\n# the end\n", message="ends")
    return job


def test_the_history_is_listed_newest_first(cli: CommandLine, edited: CronJob):
    found = cli.json("versions history greeter --limit 2")
    assert [one["version_number"] for one in found["items"]] == [3, 2]
    rest = cli.json("versions history greeter --cursor", found["next_cursor"])
    assert [one["version_number"] for one in rest["items"]] == [1]
    lines = cli.output("versions history greeter").splitlines()
    assert lines[1].split()[:2] == ["3", "yes"]
    assert lines[2].endswith("politer")


def test_a_version_shows_what_it_changed(cli: CommandLine, edited: CronJob):
    shown = cli.output("versions show greeter 2")
    assert "message  politer\n" in shown
    assert '-        self.log("hello")' in shown
    assert '+        self.log("good day")' in shown
    assert cli.json("versions show greeter")["version_number"] == 3


def test_the_code_is_printed_as_it_is_stored(cli: CommandLine, edited: CronJob):
    assert cli.output("versions show greeter 1 --code") == CODE
    assert cli.output("versions show greeter --code") == CODE + "\n\n# the end\n"
    assert "Version 9 not found for job 1" in cli.error("versions show greeter 9 --code", status=1)


def test_two_versions_are_compared(cli: CommandLine, edited: CronJob):
    assert cli.output("versions compare greeter 1 2").splitlines() == [
        " class Greeter(CronJobBase):",
        "     def execute(self):",
        '-        self.log("hello")',
        '+        self.log("good day")',
        "0 lines added, 0 removed, 1 changed.",
    ]
    assert "@@ 2 equal lines @@" in cli.output("versions compare greeter 1 2 --context 0")


def test_a_rollback_asks_first(cli: CommandLine, edited: CronJob):
    cli("versions rollback greeter 1", text="n\n", status=1)
    assert cli.output("versions rollback greeter 1 --yes") == "Job 1 'greeter' is at version 1.\n"
    assert cli.json("jobs show greeter")["current_version"] == 1
    assert cli.error("versions rollback greeter 1 --yes", status=1) == "Error: Already at version 1\n"


def test_pruning_keeps_the_newest_and_the_current(cli: CommandLine, edited: CronJob):
    cli("versions rollback greeter 1 --yes")
    cli("versions prune greeter --keep 1", text="n\n", status=1)
    assert cli.json("versions prune greeter --keep 1 --yes") == {"removed": 1}
    assert [one["version_number"] for one in cli.json("versions history greeter")["items"]] == [3, 1]
    assert "keep must be 1 or more" in cli.error("versions prune greeter --keep 0 --yes", status=2)


def test_storage_is_added_up(cli: CommandLine, edited: CronJob, rows: Session):
    CronJobManager(rows).clone(edited.id)
    found = cli.json("versions stats")
    assert (found["contents"], found["versions"], found["shared_contents"]) == (3, 4, 1)
    assert found["top_shared"][0]["content_hash"] in cli.output("versions stats")

"""`executions`: filters, details, logs, and what can be done to a run."""

from __future__ import annotations

import pytest
from sqlalchemy.orm import Session

from kytecron.cli import console
from kytecron.core import ansi
from kytecron.core.states import Claim, Outcome, Status
from kytecron.services import lifecycle
from kytecron.services.audit import Actor
from kytecron.services.jobs import CronJobManager
from kytecron.services.lifecycle import Progress
from kytecron.store.models import CronJob
from tests.command_line import CODE, CommandLine, without_database

TESTER = Actor("tester")
WORKER = "host:1:a"


def start(rows: Session, job: CronJob) -> Claim:
    """A run that a worker holds."""
    lifecycle.trigger(rows, job.id, actor=TESTER)
    (run,) = lifecycle.claim(rows, WORKER, (), 1, 60.0)
    return run.claim


def end(rows: Session, claim: Claim, status: Status = Status.COMPLETED, **outcome: object) -> int:
    lifecycle.settle(rows, [(claim, Outcome(status, duration_ms=1234, **outcome))])  # type: ignore[arg-type]
    return claim.execution_id


def test_lists_filter(cli: CommandLine, job: CronJob, rows: Session):
    done = end(rows, start(rows, job), output="all is well\n")
    broken = end(rows, start(rows, job), Status.FAILED, error="out of paper", permanent=True)

    def found(options: str) -> list[int]:
        return [one["id"] for one in cli.json(f"executions list {options}")["items"]]

    assert found("") == [broken, done]
    assert found("--status completed") == [done]
    assert found("--status failed --status completed") == [broken, done]
    assert found("--job greeter") == [broken, done]
    assert found(f"--worker {WORKER}") == [broken, done]
    assert found("--worker nobody") == []
    assert found("--text paper") == [broken]
    assert found("--text well") == [done]
    assert found("--version 1") == [broken, done]
    assert found("--origin schedule") == []
    assert found("--from 2999-01-01") == []
    assert found("--to 2999-01-01T12:00+02:00") == [broken, done]
    assert "out of paper" in cli.output("executions list")
    assert "No job has the name" in cli.error("executions list --job nobody", status=1)
    cli("executions list --status done", status=2)
    cli("executions list --from noon", status=2)


def test_an_execution_shows_how_it_ended_and_every_attempt(cli: CommandLine, rows: Session):
    job = CronJobManager(rows).create_job(name="flaky", code=CODE, retry_strategy="immediate")
    first = end(
        rows, start(rows, job), Status.FAILED, error="no answer", stack_trace="Traceback ...\nOSError\n"
    )
    (retry,) = lifecycle.claim(rows, WORKER, (), 1, 60.0)
    end(rows, retry.claim, result={"rows": 3})
    shown = cli.output("executions show", first)
    assert "why         no answer" in shown
    assert "OSError" in shown
    assert [line.split()[1:3] for line in shown.splitlines()[-2:]] == [["1", "failed"], ["2", "completed"]]
    assert cli.json("executions show", retry.claim.execution_id)["result"] == {"rows": 3}
    assert cli.error("executions show 99", status=1) == "Error: Execution 99 does not exist\n"


def test_a_log_is_printed_as_it_is_stored(cli: CommandLine, job: CronJob, rows: Session):
    text = "\x1b[31mred\x1b[0m line\nsecond 50%\r100%\n"
    claim = start(rows, job)
    lifecycle.append_output(rows, [Progress(claim, [(0, text[:10], False)])])
    assert cli.output("executions log", claim.execution_id) == text[:10]
    end(rows, claim, output=text[10:])
    assert cli.output("executions log", claim.execution_id) == text


def test_on_a_terminal_a_line_that_is_being_written_is_printed_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(console, "on_terminal", lambda: True)
    output = console.Output()
    pieces = [
        "one\n10%",
        "\r20%",
        "\r\x1b[3",
        "2m30%",
        "\r40%\x1b[0m\r",
        "\ntwo\r",
        "\nlong " + "x" * 500,
        "!",
    ]
    shown = whole = ""
    for number, piece in enumerate(pieces, start=1):
        output.add(piece)
        shown = drawn(capsys.readouterr().out, shown)
        whole = "".join(text for _, text in ansi.segments("".join(pieces[:number])))
        assert [line[:79] for line in shown.split("\n")] == [line[:79] for line in whole.split("\n")]
    output.end()
    assert drawn(capsys.readouterr().out, shown) == whole


def drawn(printed: str, before: str) -> str:
    """What a terminal that showed `before` shows then."""
    first, *others = printed.split("\r\x1b[K")
    shown = before + first
    for part in others:
        shown = shown[: shown.rfind("\n") + 1] + part
    return shown


def test_following_a_run_that_has_ended_ends_at_once_and_says_how(
    cli: CommandLine, job: CronJob, rows: Session
):
    execution = end(rows, start(rows, job), output="hello\n")
    result = cli("executions log --follow", execution)
    assert result.stdout == "hello\n"
    assert without_database(result.stderr) == f"Execution {execution} completed after 1.2 s\n"


def test_a_pending_run_is_cancelled_at_once_and_a_running_one_is_asked_to_stop(
    cli: CommandLine, job: CronJob, rows: Session
):
    claim = start(rows, job)
    said = cli.output("executions cancel --reason lunch", claim.execution_id)
    assert said == f"Execution {claim.execution_id} is being stopped.\n"
    shown = cli.json("executions show", claim.execution_id)
    assert shown["status"] == "running"
    assert shown["cancel_reason"].endswith(": lunch")
    end(rows, claim, Status.CANCELLED)
    pending = lifecycle.trigger(rows, job.id, actor=TESTER)
    assert cli.output("executions cancel", pending.id) == f"Execution {pending.id} is cancelled.\n"
    assert "has ended already: cancelled" in cli.error("executions cancel", pending.id, status=1)


def test_a_waiting_retry_can_be_made_due_by_either_attempt(cli: CommandLine, job: CronJob, rows: Session):
    first = end(rows, start(rows, job), Status.FAILED, error="no answer")
    said = cli.output("executions retry", first)
    retry = cli.json("executions list --status pending")["items"][0]
    assert said == f"Execution {retry['id']} is due now.\n"
    assert retry["parent_execution"] == first
    (run,) = lifecycle.claim(rows, WORKER, (), 1, 60.0)
    assert run.claim.execution_id == retry["id"]
    end(rows, run.claim)
    assert "has no retry waiting" in cli.error("executions retry", first, status=1)


def test_an_ended_run_can_run_again(cli: CommandLine, job: CronJob, rows: Session):
    first = end(rows, start(rows, job))
    again = cli.json("executions rerun --same-version", first)
    assert (again["origin"], again["rerun"]) == ("rerun", 1)
    assert "only an ended one can run again" in cli.error("executions rerun", again["id"], status=1)


def test_lists_go_on_to_the_end(cli: CommandLine, job: CronJob, rows: Session):
    made = [end(rows, start(rows, job)) for _ in range(3)]
    page = cli.json("executions list --limit 1")
    assert len(page["items"]) == 1
    rest = cli.json("executions list --all --cursor", page["next_cursor"])
    assert [one["id"] for one in page["items"] + rest["items"]] == sorted(made, reverse=True)
    assert "cursor" in cli.error("executions list --cursor nonsense", status=2)


@pytest.mark.parametrize("command", ["show", "log", "cancel", "retry", "rerun"])
def test_executions_that_do_not_exist(cli: CommandLine, command: str):
    assert cli.error(f"executions {command} 99", status=1) == "Error: Execution 99 does not exist\n"
    for number in (0, 2**70, "x"):
        cli(f"executions {command} {number}", status=2)

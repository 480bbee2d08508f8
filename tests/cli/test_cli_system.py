"""`locks`, `dlq`, `workers`, `prune`, `users`, `tokens`, `secrets`, `db`."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from cryptography.fernet import Fernet
from sqlalchemy.orm import Session

from kytecron.app import create_app
from kytecron.cli import load
from kytecron.cli.installation import Installation
from kytecron.config import Settings
from kytecron.core.states import Claim, Outcome, Status
from kytecron.requestdb import db
from kytecron.services import accounts, lifecycle, registry, secrets
from kytecron.services.audit import Actor
from kytecron.services.jobs import CronJobManager
from kytecron.store import db as database
from kytecron.store import schema
from kytecron.store.models import CronJob, CronJobExecution, CronUser, CronWorkerRecord
from tests.command_line import CODE, CommandLine, without_database

TESTER = Actor("tester")
PASSWORD = "correct horse battery"


def hold(rows: Session, name: str, worker: str = "host:1:a", lease: float = 60.0) -> Claim:
    """A job whose run that worker holds."""
    job = CronJobManager(rows).create_job(name=name, code=CODE)
    lifecycle.trigger(rows, job.id, actor=TESTER)
    (run,) = lifecycle.claim(rows, worker, (), 1, lease)
    return run.claim


def let_go(rows: Session, claim: Claim) -> None:
    """The lease has ended a minute ago."""
    past = database.now(rows) - timedelta(minutes=1)
    rows.execute(
        sa.update(CronJobExecution).where(CronJobExecution.id == claim.execution_id).values(locked_until=past)
    )
    rows.commit()


# --- locks


def test_locks_tell_who_holds_what_and_which_are_stale(cli: CommandLine, rows: Session):
    kept, gone = hold(rows, "kept"), hold(rows, "gone", "host:2:b")
    let_go(rows, gone)
    assert {one["execution_id"]: one["stale"] for one in cli.json("locks list")["items"]} == {
        kept.execution_id: False,
        gone.execution_id: True,
    }
    assert [one["job_name"] for one in cli.json("locks stale")["items"]] == ["gone"]
    stats = cli.json("locks stats")
    assert (stats["locks"], stats["stale"], stats["contention_rate"]) == (2, 1, None)
    assert stats["by_worker"][0].keys() == {"worker_id", "locks", "stale"}
    assert "host:2:b" in cli.output("locks stats")


def test_lock_statistics_add_up_what_workers_reported(
    cli: CommandLine, rows: Session, sqlite_settings: Settings
):
    for name in ("a", "b"):
        report(rows, name, sqlite_settings, locks_acquired=30, locks_missed=10, leases_expired=1)
    stats = cli.json("locks stats")
    told = (stats["locks_acquired"], stats["locks_missed"], stats["leases_expired"], stats["contention_rate"])
    assert told == (60, 20, 2, 25.0)


def test_clearing_a_lock_asks_first_and_ends_the_run_as_lost(cli: CommandLine, rows: Session):
    claim = hold(rows, "held")
    cli("locks clear", claim.execution_id, text="n\n", status=1)
    said = cli.output("locks clear --yes", claim.execution_id)
    assert said == f"Execution {claim.execution_id} was taken from its worker and is lost.\n"
    assert "only a running one is locked" in cli.error("locks clear --yes", claim.execution_id, status=1)


def test_clearing_stale_locks_leaves_the_others(cli: CommandLine, rows: Session):
    kept, gone = hold(rows, "kept"), hold(rows, "gone", "host:2:b")
    let_go(rows, gone)
    assert cli.output("locks clear-all --stale --yes") == "1 cleared.\n"
    assert [one["execution_id"] for one in cli.json("locks list")["items"]] == [kept.execution_id]
    cli("locks clear-all", text="n\n", status=1)
    assert cli.output("locks clear-all --yes") == "1 cleared.\n"
    assert cli.output("locks clear-all") == "There is nothing to clear.\n"


# --- the dead letter queue


def bury(rows: Session, name: str) -> CronJob:
    """A job in the dead letter queue."""
    claim = hold(rows, name)
    lifecycle.settle(rows, [(claim, Outcome(Status.FAILED, error="hopeless", permanent=True))])
    return CronJobManager(rows).get(claim.job_id)


def test_dead_letters_are_listed_with_their_reason(cli: CommandLine, rows: Session):
    bury(rows, "older"), bury(rows, "newer")
    assert [one["name"] for one in cli.json("dlq list")["items"]] == ["newer", "older"]
    assert "hopeless" in cli.output("dlq list")
    assert "dead letter" in cli.output("jobs list")
    assert "Recover it first" in cli.error("jobs trigger older", status=1)


def test_one_several_or_all_are_recovered(cli: CommandLine, rows: Session):
    for name in "abcd":
        bury(rows, name)
    assert cli.output("dlq recover a") == "Job 1 'a' is enabled.\n"
    assert cli.json("dlq recover b c") == {"recovered": [2, 3], "refused": []}
    assert cli.output("dlq recover --all") == "Job 4 'd' is enabled.\n"
    assert cli.output("dlq recover --all") == "The queue is empty.\n"


def test_one_that_cannot_be_recovered_does_not_keep_the_others_down(cli: CommandLine, rows: Session):
    bury(rows, "dead")
    CronJobManager(rows).create_job(name="well", code=CODE)
    result = cli("dlq recover dead well", status=1)
    assert result.stdout == "Job 1 'dead' is enabled.\n"
    assert without_database(result.stderr) == "Error: Job 2: Job is not in dead letter queue\n"


def test_recovering_needs_a_job_or_all(cli: CommandLine):
    assert "name one job" in cli.error("dlq recover", status=2)
    assert "name one job" in cli.error("dlq recover x --all", status=2)


# --- workers


def report(rows: Session, name: str, settings: Settings, **statistics: float) -> None:
    registry.report(
        rows, name, settings, running=1, draining=False, clock_skew_ms=12.0, statistics=dict(statistics)
    )


def test_workers_are_listed_with_how_they_are(cli: CommandLine, rows: Session, sqlite_settings: Settings):
    report(rows, "host:1:a", replace(sqlite_settings, worker_tags="gpu,eu", concurrency=4))
    report(rows, "host:2:b", sqlite_settings)
    registry.sign_off(rows, "host:2:b", {})
    rows.execute(
        sa.update(CronWorkerRecord)
        .where(CronWorkerRecord.worker_id == "host:1:a")
        .values(clock_skew_ms=-1500)
    )
    rows.commit()
    found = cli.json("workers list")["items"]
    assert [(one["worker_id"], one["state"]) for one in found] == [
        ("host:1:a", "alive"),
        ("host:2:b", "stopped"),
    ]
    assert found[0]["tags"] == ["eu", "gpu"]
    line = cli.output("workers list").splitlines()[1]
    assert re.match(r"host:1:a  alive +1/4 +eu, gpu +-1500 ms", line)


def test_a_worker_with_other_time_zones_is_named(cli: CommandLine, rows: Session, sqlite_settings: Settings):
    report(rows, "host:1:a", sqlite_settings)
    assert "plan slots" not in cli.output("workers list")
    rows.execute(sa.update(CronWorkerRecord).values(tzdata="2019a"))
    rows.commit()
    assert "host:1:a has tzdata 2019a" in cli.output("workers list").splitlines()[-1]


# --- upkeep


def test_pruning_asks_first(cli: CommandLine):
    assert "older than 90 days" in cli("prune", text="n\n", status=1).stderr
    removed = cli.json("prune --yes")
    assert set(removed.values()) == {0}
    assert "executions" in cli.output("prune --yes")


def test_pruning_removes_what_has_had_its_time(cli: CommandLine, rows: Session):
    for name in ("first", "second"):
        lifecycle.settle(rows, [(hold(rows, name), Outcome(Status.COMPLETED))])
    job = CronJobManager(rows).find("first")
    lifecycle.trigger(rows, job.id, actor=TESTER)
    (run,) = lifecycle.claim(rows, "host:1:a", (), 1, 60.0)
    lifecycle.settle(rows, [(run.claim, Outcome(Status.COMPLETED))])
    past = database.now(rows) - timedelta(days=100)
    rows.execute(
        sa.update(CronJobExecution).values(completed_at=past, scheduled_time=CronJobExecution.scheduled_time)
    )
    rows.commit()
    assert cli.json("prune --yes")["executions"] == 1


# --- users


def test_a_user_is_created_with_a_password_from_input(
    cli: CommandLine, rows: Session, sqlite_settings: Settings
):
    cli("users create anna --role admin --password-stdin", text=PASSWORD + "\n")
    assert accounts.sign_in(rows, "anna", PASSWORD, "127.0.0.1", "", sqlite_settings)
    (anna,) = cli.json("users list")["items"]
    assert (anna["username"], anna["role"], anna["enabled"]) == ("anna", "admin", True)
    assert PASSWORD not in cli.output("users list")


def test_a_user_without_a_password_gets_a_link_that_works_once(
    cli: CommandLine, rows: Session, sqlite_settings: Settings
):
    result = cli("users create anna --role admin --no-password")
    link = result.stdout.splitlines()[-1]
    assert link.startswith("/sign-in/")
    token = link.removeprefix("/sign-in/")
    assert accounts.use_sign_in_link(rows, token, "127.0.0.1", "", sqlite_settings)
    again = cli.output("users sign-in-link anna").splitlines()[-1]
    assert again != link
    assert "does not exist" in cli.error("users sign-in-link nobody", status=1)


def test_links_begin_with_the_public_address(sqlite_settings: Settings):
    app = create_app(replace(sqlite_settings, public_url="https://cron.example/"))
    link = CommandLine(app).output("users create anna --role admin --no-password").splitlines()[-1]
    assert link.startswith("https://cron.example/sign-in/")
    with app.app_context():
        db.engine.dispose()


@pytest.mark.parametrize(
    ("line", "text", "said"),
    [
        ("users create anna --role admin --password-stdin", "short\n", "password must have at least 12"),
        ("users create anna --role admin", "", "password: nobody can be asked here"),
        ("users create 'an na' --role admin --no-password", "", "username must be 1 to 100 characters"),
    ],
)
def test_wrong_users_are_refused_by_field(cli: CommandLine, line: str, text: str, said: str):
    assert said in cli.error(line, text=text, status=2)
    cli("users create anna --role chief --no-password", status=2)


def test_roles_passwords_and_locking_out(cli: CommandLine, rows: Session, sqlite_settings: Settings):
    for name, role in (("anna", "admin"), ("bob", "viewer")):
        cli(f"users create {name} --role {role} --no-password")
    cli("users set-role bob editor")
    cli("users set-password bob --password-stdin", text=PASSWORD)
    assert accounts.sign_in(rows, "bob", PASSWORD, "127.0.0.1", "", sqlite_settings)
    cli("users disable bob", text="n\n", status=1)
    cli("users disable bob --yes")
    found = {one["username"]: (one["role"], one["enabled"]) for one in cli.json("users list")["items"]}
    assert found == {"anna": ("admin", True), "bob": ("editor", False)}
    cli("users enable bob")
    assert rows.scalar(sa.select(CronUser.enabled).where(CronUser.username == "bob"))
    assert "last enabled administrator" in cli.error("users disable anna --yes", status=1)
    assert "last enabled administrator" in cli.error("users set-role anna viewer", status=1)


# --- tokens


def test_a_token_is_printed_once_and_works(cli: CommandLine, rows: Session):
    made = cli.json("tokens create --name ci --role operator --expires 30")
    row = accounts.find_token(rows, made["token"])
    assert row is not None
    assert (row.id, row.role, row.name) == (made["id"], "operator", "ci")
    assert row.expires_at is not None
    assert made["token"] not in cli.output("tokens list") + cli.output("tokens list --json")


def test_a_token_alone_is_on_standard_output(cli: CommandLine, rows: Session):
    result = cli("tokens create --name ci --role viewer")
    assert accounts.find_token(rows, result.stdout.strip()) is not None
    assert "never shown again" in result.stderr


def test_a_token_is_revoked_by_its_id(cli: CommandLine, rows: Session):
    made = cli.json("tokens create --name ci --role viewer")
    cli("tokens revoke", made["id"], text="n\n", status=1)
    cli("tokens revoke --yes", made["id"])
    assert accounts.find_token(rows, made["token"]) is None
    assert cli.json("tokens list")["items"][0]["revoked_at"] is not None
    assert "does not exist" in cli.error("tokens revoke --yes 99", status=1)
    assert "expires_days" in cli.error("tokens create --name x --role viewer --expires 0", status=2)


# --- secrets


def test_a_secret_is_set_granted_and_taken_and_never_printed(
    cli: CommandLine, rows: Session, job: CronJob, sqlite_settings: Settings
):
    said = cli("secrets set API_KEY --stdin", text="line one\nline two\n").output
    said += cli.output("secrets grant API_KEY greeter")
    granted = secrets.granted_to_jobs(rows, sqlite_settings, [job.id])
    assert granted == {job.id: {"API_KEY": "line one\nline two"}}
    said += cli.output("secrets list")
    (listed,) = cli.json("secrets list")["items"]
    assert (listed["name"], listed["jobs"]) == ("API_KEY", [{"id": job.id, "name": "greeter"}])
    said += cli.output("secrets revoke API_KEY", job.id)
    assert "has no secret" in cli.error("secrets revoke API_KEY greeter", status=1)
    cli("secrets delete API_KEY", text="n\n", status=1)
    said += cli.output("secrets delete API_KEY --yes")
    assert cli.json("secrets list")["items"] == []
    assert "line" not in said


def test_a_value_is_not_taken_where_nobody_can_be_asked(cli: CommandLine):
    assert "--stdin" in cli.error("secrets set API_KEY", status=2)
    assert "65536 bytes" in cli.error("secrets set API_KEY --stdin", text="x" * 70_000, status=2)


def test_after_rotating_the_older_key_can_be_dropped(sqlite_settings: Settings, rows: Session, job: CronJob):
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    CommandLine(create_app(replace(sqlite_settings, secrets_keys=old)))(
        "secrets set API_KEY --stdin", text="value"
    )
    both = CommandLine(create_app(replace(sqlite_settings, secrets_keys=f"{new},{old}")))
    both("secrets grant API_KEY greeter")
    assert both.output("secrets rotate") == "1 encrypted with the newest key.\n"
    alone = replace(sqlite_settings, secrets_keys=new)
    assert secrets.granted_to_jobs(rows, alone, [job.id]) == {job.id: {"API_KEY": "value"}}
    lost = CommandLine(create_app(replace(sqlite_settings, secrets_keys=old)))
    assert "KYTECRON_SECRETS_KEYS" in lost.error("secrets rotate", status=1)


# --- the database


def test_a_database_without_tables_is_told_with_the_command_to_run(tmp_path):
    app = create_app(Settings(instance_path=tmp_path / "new"))
    empty = CommandLine(app)
    said = empty.error("jobs list", status=1)
    assert "has no tables yet" in said
    assert "Run: kytecron db upgrade" in said
    empty("db upgrade")
    assert empty.json("jobs list")["items"] == []
    with app.app_context():
        db.engine.dispose()


def test_a_database_that_does_not_answer_is_told(tmp_path):
    url = "mysql+pymysql://nobody:secret@127.0.0.1:1/none"
    dead = CommandLine(create_app(Settings(instance_path=tmp_path, database_url=url)))
    said = dead.error("jobs list", status=1)
    assert said.startswith("Error: The database does not answer: ")
    assert "secret" not in said


def test_the_history_of_the_database_says_which_migration_it_is_at(sqlite_settings: Settings):
    installation = Installation(sqlite_settings)
    said = CliRunner().invoke(load("db"), ["history"], obj=installation).stdout
    installation.close()
    _, *migrations = said.splitlines()
    assert [line.split()[0] for line in migrations] == [name for name, _ in schema.migrations()]
    assert [line.split()[0] for line in migrations if line.endswith(" here")] == [schema.newest()]

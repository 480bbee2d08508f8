"""Every change leaves a row in the audit log: each route, command and worker's action that makes one is tried here."""

from __future__ import annotations

import getpass
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy.orm import Session

from kytecron.cli import COMMANDS, load
from kytecron.config import Settings
from kytecron.core.states import Outcome, Status
from kytecron.engine.output import Mask
from kytecron.requestdb import db
from kytecron.services import accounts, jobapi, lifecycle, retention, secrets
from kytecron.services.audit import Actor
from kytecron.services.jobs import CronJobManager
from kytecron.store import db as database_tools
from kytecron.store.models import CronAudit, CronJobExecution, KyteCronJobVersionContent
from tests.api.test_access import TABLE as API_TABLE
from tests.command_line import CommandLine
from tests.factories import claim_one
from tests.pages import HELLO, PASSWORD, Visitor, database, make_visitor

from .conftest import use_database
from .test_access_table import PAGES

TESTER = Actor("test")
OTHER_CODE = HELLO.replace("World", "everybody")
FORM = {"name": "subject", "schedule_type": "manual", "code": HELLO}

# -- what changes something: a route, what is sent to it, and the actions that the log then tells of ------------

PAGE_CHANGES: dict[str, tuple[str, dict[str, str], list[str]]] = {
    "POST /sign-in": ("/sign-in", {"username": "maria", "password": "wrong"}, ["sign_in_failed"]),
    "POST /sign-in/{token}": ("/sign-in/{link}", {}, ["sign_in_by_link"]),
    "POST /sign-out": ("/sign-out", {}, ["sign_out"]),
    "POST /account/password": (
        "/account/password",
        {"password": PASSWORD, "repeat": PASSWORD},
        ["set_password"],
    ),
    "POST /account/sessions/{token_hash}/end": ("/account/sessions/{session}/end", {}, ["end_session"]),
    "POST /jobs/new": ("/jobs/new", FORM | {"name": "new"}, ["create"]),
    "POST /jobs/{job_id}/edit": (
        "/jobs/{job}/edit",
        FORM | {"description": "better", "code": OTHER_CODE + "# new\n"},
        ["update", "new_version"],
    ),
    "POST /jobs/{job_id}/trigger": ("/jobs/{job}/trigger", {}, ["trigger"]),
    "POST /jobs/{job_id}/enable": ("/jobs/{off}/enable", {}, ["enable"]),
    "POST /jobs/{job_id}/disable": ("/jobs/{job}/disable", {}, ["disable"]),
    "POST /jobs/{job_id}/recover": ("/jobs/{dead}/recover", {}, ["recover"]),
    "POST /jobs/{job_id}/clone": ("/jobs/{job}/clone", {}, ["clone"]),
    "POST /jobs/{job_id}/delete": ("/jobs/{job}/delete", {}, ["delete"]),
    "POST /jobs/{job_id}/rollback": ("/jobs/{job}/rollback", {"version": "1"}, ["rollback"]),
    "POST /executions/{execution_id}/cancel": ("/executions/{pending}/cancel", {}, ["cancel"]),
    "POST /executions/{execution_id}/retry": ("/executions/{failed}/retry", {}, ["retry_now"]),
    "POST /executions/{execution_id}/rerun": ("/executions/{failed}/rerun", {}, ["rerun"]),
    "POST /dead-letters/recover": ("/dead-letters/recover", {"ids": "{dead}"}, ["recover"]),
    "POST /locks/{execution_id}/release": ("/locks/{running}/release", {}, ["release_lock"]),
    "POST /users": ("/users", {"username": "olga", "role": "viewer"}, ["create", "create_sign_in_link"]),
    "POST /users/{user_id}/link": ("/users/{maria}/link", {}, ["create_sign_in_link"]),
    "POST /users/{user_id}/role": ("/users/{maria}/role", {"role": "viewer"}, ["set_role", "revoke_token"]),
    "POST /users/{user_id}/enable": ("/users/{gone}/enable", {}, ["enable"]),
    "POST /users/{user_id}/disable": ("/users/{maria}/disable", {}, ["disable", "revoke_token"]),
    "POST /users/{user_id}/end-sessions": ("/users/{maria}/end-sessions", {}, ["end_sessions"]),
    "POST /users/{user_id}/delete": ("/users/{maria}/delete", {}, ["delete", "revoke_token"]),
    "POST /tokens": ("/tokens", {"name": "ci", "token_role": "viewer"}, ["create_token"]),
    "POST /tokens/{token_id}/revoke": ("/tokens/{token}/revoke", {}, ["revoke_token"]),
    "POST /secrets": ("/secrets", {"name": "NEW", "value": "x"}, ["create"]),
    "POST /secrets/{name}/delete": ("/secrets/SPARE/delete", {}, ["delete"]),
    "POST /secrets/{name}/grant": ("/secrets/SPARE/grant", {"job": "subject"}, ["grant_secret"]),
    "POST /secrets/{name}/revoke/{job_id}": ("/secrets/GRANTED/revoke/{job}", {}, ["revoke_secret"]),
    "POST /settings/test-message": (
        "/settings/test-message",
        {"channel": "slack", "target": "https://127.0.0.1/"},
        ["test_message"],
    ),
}
PAGES_THAT_ONLY_ANSWER = {"POST /jobs/check-code"}

API_CHANGES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "POST /jobs": ("/jobs", {"name": "new", "code": HELLO}, ["create"]),
    "PATCH /jobs/{job_id}": ("/jobs/{job}", {"priority": 9}, ["update"]),
    "DELETE /jobs/{job_id}": ("/jobs/{job}", {}, ["delete"]),
    "POST /jobs/{job_id}/clone": ("/jobs/{job}/clone", {}, ["clone"]),
    "POST /jobs/{job_id}/enable": ("/jobs/{off}/enable", {}, ["enable"]),
    "POST /jobs/{job_id}/disable": ("/jobs/{job}/disable", {}, ["disable"]),
    "POST /jobs/{job_id}/recover": ("/jobs/{dead}/recover", {}, ["recover"]),
    "POST /jobs/{job_id}/trigger": ("/jobs/{job}/trigger", {}, ["trigger"]),
    "POST /jobs/{job_id}/backfill": (
        "/jobs/{hourly}/backfill",
        {"start": "{yesterday}T00:00:00Z", "end": "{yesterday}T03:00:00Z"},
        ["backfill"],
    ),
    "POST /jobs/{job_id}/rollback": ("/jobs/{job}/rollback", {"version": 1}, ["rollback"]),
    "POST /jobs/bulk": ("/jobs/bulk", {"action": "tag", "tags": ["x"], "filter": {}}, ["update"]),
    "POST /jobs/import": ("/jobs/import", {"jobs": [{"name": "subject", "priority": 9}]}, ["update"]),
    "POST /jobs/{job_id}/versions/prune": ("/jobs/{job}/versions/prune", {"keep": 1}, ["prune_versions"]),
    "POST /executions/{execution_id}/cancel": ("/executions/{running}/cancel", {}, ["cancel"]),
    "POST /executions/{execution_id}/retry": ("/executions/{failed}/retry", {}, ["retry_now"]),
    "POST /executions/{execution_id}/rerun": ("/executions/{failed}/rerun", {}, ["rerun"]),
    "POST /locks/{execution_id}/release": ("/locks/{running}/release", {}, ["release_lock"]),
    "POST /users": ("/users", {"username": "olga", "role": "viewer", "password": PASSWORD}, ["create"]),
    "PATCH /users/{user_id}": (
        "/users/{maria}",
        {"role": "viewer", "enabled": False},
        ["set_role", "disable", "revoke_token"],
    ),
    "DELETE /users/{user_id}": ("/users/{maria}", {}, ["delete", "revoke_token"]),
    "POST /users/{user_id}/sign-in-link": ("/users/{maria}/sign-in-link", {}, ["create_sign_in_link"]),
    "POST /users/{user_id}/sign-out": ("/users/{maria}/sign-out", {}, ["end_sessions"]),
    "POST /tokens": ("/tokens", {"name": "ci", "role": "viewer"}, ["create_token"]),
    "POST /tokens/{token_id}/revoke": ("/tokens/{token}/revoke", {}, ["revoke_token"]),
    "POST /secrets": ("/secrets", {"name": "NEW", "value": "another"}, ["create"]),
    "PUT /secrets/{secret_id}": ("/secrets/{spare}", {"value": "another"}, ["replace"]),
    "DELETE /secrets/{secret_id}": ("/secrets/{spare}", {}, ["delete"]),
    "PUT /secrets/{secret_id}/jobs/{job_id}": ("/secrets/{spare}/jobs/{job}", {}, ["grant_secret"]),
    "DELETE /secrets/{secret_id}/jobs/{job_id}": ("/secrets/{granted}/jobs/{job}", {}, ["revoke_secret"]),
}
API_THAT_ONLY_ANSWERS = {"POST /jobs/validate-code", "POST /schedules/preview"}

COMMAND_CHANGES: dict[str, tuple[str, str, list[str]]] = {
    "jobs create": ("--name new --code {file}", "", ["create"]),
    "jobs edit": ("{job} --priority 9", "", ["update"]),
    "jobs enable": ("{off}", "", ["enable"]),
    "jobs disable": ("{job}", "", ["disable"]),
    "jobs delete": ("{job} --yes", "", ["delete"]),
    "jobs trigger": ("{job}", "", ["trigger"]),
    "jobs backfill": ("{hourly} --from {yesterday} --to {yesterday}T03:00", "", ["backfill"]),
    "jobs import": ("-", "jobs: [{name: subject, priority: 9}]", ["update"]),
    "executions cancel": ("{pending}", "", ["cancel"]),
    "executions retry": ("{failed}", "", ["retry_now"]),
    "executions rerun": ("{failed}", "", ["rerun"]),
    "versions rollback": ("{job} 1 --yes", "", ["rollback"]),
    "versions prune": ("{job} --keep 1 --yes", "", ["prune_versions"]),
    "locks clear": ("{running} --yes", "", ["release_lock"]),
    "locks clear-all": ("--yes", "", ["release_lock"]),
    "dlq recover": ("{dead}", "", ["recover"]),
    "users create": ("olga --role viewer --no-password", "", ["create", "create_sign_in_link"]),
    "users set-role": ("maria viewer", "", ["set_role", "revoke_token"]),
    "users set-password": ("maria --password-stdin", PASSWORD, ["set_password"]),
    "users sign-out": ("maria", "", ["end_sessions"]),
    "users sign-in-link": ("maria", "", ["create_sign_in_link"]),
    "users disable": ("maria --yes", "", ["disable", "revoke_token"]),
    "users enable": ("gone", "", ["enable"]),
    "tokens create": ("--name ci --role viewer", "", ["create_token"]),
    "tokens revoke": ("{token} --yes", "", ["revoke_token"]),
    "secrets set": ("SPARE --stdin", "another", ["replace"]),
    "secrets delete": ("SPARE --yes", "", ["delete"]),
    "secrets grant": ("SPARE {job}", "", ["grant_secret"]),
    "secrets revoke": ("GRANTED {job}", "", ["revoke_secret"]),
    "secrets rotate": ("", "", ["rotate_secrets"]),
    "doctor": ("--fix", "", ["repair_references"]),
    "prune": ("--yes", "", ["prune"]),
}
COMMANDS_THAT_ONLY_ANSWER = {
    *("jobs list", "jobs show", "jobs why", "jobs next-runs", "jobs export"),
    *("executions list", "executions show", "executions log"),
    *("versions history", "versions show", "versions compare", "versions stats"),
    *("locks list", "locks stale", "locks stats", "dlq list", "workers list"),
    *("users list", "tokens list", "secrets list"),
    *("status", "stress"),  # the second in a database of its own
    *("db upgrade", "db downgrade", "db current", "db history"),  # the log is one of the tables
}
SAY_ALL = {
    *("sign_in_failed", "sign_in_by_link", "sign_out", "end_session", "create_sign_in_link"),
    *("set_password", "create secret", "replace secret", "delete secret"),
}
"""What has no state that may be shown: a session, a link, a password, the value of a secret."""


# -- the scene -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Scene:
    """Something of each kind that can be changed, by the names that stand in the tables above."""

    app: Flask
    names: dict[str, Any]
    seen: int = 0

    def fill(self, text: str) -> str:
        for name, value in self.names.items():
            text = text.replace(f"{{{name}}}", str(value))
        return text

    def begin(self) -> None:
        """Forget what the log says until now."""
        with database(self.app) as session:
            self.seen = session.scalars(sa.select(sa.func.max(CronAudit.id))).one()

    def rows(self) -> list[CronAudit]:
        """What the log says since it began."""
        with database(self.app) as session:
            query = sa.select(CronAudit).where(CronAudit.id > self.seen).order_by(CronAudit.id)
            return list(session.scalars(query))


@pytest.fixture(scope="session")
def set_scene(
    one_app: Flask, sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """Made once: a database with the scene in it, and its names."""
    names: dict[str, Any] = {}
    kept = tmp_path_factory.mktemp("scene")
    use_database(one_app, sqlite_template)
    with database(one_app) as session:
        _set_jobs(session, names)
        _set_people(session, names, one_app.extensions["kytecron.settings"])
        names["link"] = accounts.create_sign_in_link(session, TESTER, "maria")
        session.close()
        db.engine.dispose()  # the last connection brings the write-ahead log home
    shutil.copy(Path(one_app.instance_path) / "kytecron.db", kept / "kytecron.db")
    names["file"] = kept / "code.py"
    names["file"].write_text(HELLO)
    names["yesterday"] = (datetime.now(UTC) - timedelta(days=1)).date()
    return kept / "kytecron.db", names


@pytest.fixture
def scene(app: Flask, set_scene: tuple[Path, dict[str, Any]]) -> Scene:
    file, names = set_scene
    use_database(app, file)
    found = Scene(app, dict(names))
    found.begin()
    return found


@pytest.fixture
def admin(scene: Scene) -> Visitor:
    """Signed in twice; `{session}` is the other of their sessions."""
    visitor = make_visitor(scene.app, "admin")
    other = Visitor(scene.app).sign_in_as("the-admin")
    with other.client.session_transaction() as cookie:
        scene.names["session"] = accounts.session_id(cookie["token"])
    scene.begin()
    return visitor


def _set_jobs(session: Session, names: dict[str, Any]) -> None:
    manager = CronJobManager(session, TESTER)
    dead = manager.create_job(name="dead", schedule_type="manual", code=HELLO)
    lifecycle.trigger(session, dead.id, actor=TESTER)
    hopeless = Outcome(Status.FAILED, error="hopeless", permanent=True)
    lifecycle.settle(session, [(claim_one(session), hopeless)])
    job = manager.create_job(name="subject", schedule_type="manual", code=HELLO, overlap_policy="allow")
    for number in range(3):
        manager.update_code(job.id, OTHER_CODE + f"# {number}\n")
    failed = lifecycle.trigger(session, job.id, actor=TESTER)
    lifecycle.settle(session, [(claim_one(session), Outcome(Status.FAILED, error="no answer"))])
    running = lifecycle.trigger(session, job.id, actor=TESTER)
    claim_one(session)
    pending = lifecycle.trigger(session, job.id, actor=TESTER)
    off = manager.create_job(name="off", schedule_type="manual", code=HELLO, enabled=False)
    hourly = manager.create_job(
        name="hourly", schedule_type="cron", cron_expression="0 * * * *", code=HELLO, overlap_policy="allow"
    )
    found = {"dead": dead, "job": job, "failed": failed, "running": running, "pending": pending}
    names |= {name: row.id for name, row in (found | {"off": off, "hourly": hourly}).items()}
    # For `doctor --fix` and `prune`: a count that is wrong, and a run that has had its time.
    session.execute(sa.update(KyteCronJobVersionContent).values(reference_count=99))
    old = datetime.now(UTC) - timedelta(days=400)
    for number in range(3):
        session.add(
            CronJobExecution(
                cron_job=off.id,
                scheduled_time=old + timedelta(seconds=number),
                status="completed",
                origin="manual",
                completed_at=old,
            )
        )
    session.commit()


def _set_people(session: Session, names: dict[str, Any], settings: Settings) -> None:
    maria = accounts.create_user(session, "maria", None, "editor", TESTER)
    gone = accounts.create_user(session, "gone", None, "viewer", TESTER)
    accounts.set_enabled(session, gone.id, False, TESTER)
    token, _ = accounts.create_token(session, "of maria", "editor", 1, Actor("maria", "web"))
    names |= {"maria": maria.id, "gone": gone.id, "token": token.id}
    for name in ("SPARE", "GRANTED"):
        row = secrets.set_secret(session, name, "hidden-value", TESTER, settings)
        names[name.lower()] = row.id
    secrets.grant(session, names["job"], "GRANTED", TESTER)


def check(rows: list[CronAudit], actions: list[str], who: Collection[str], source: str, ip: str) -> None:
    assert set(actions) <= {row.action for row in rows}, [row.action for row in rows]
    for row in rows:
        assert row.actor in who
        assert (row.source, row.ip) == (source, ip)
        assert "hidden-value" not in f"{row.before}{row.after}"
        if not {row.action, f"{row.action} {row.subject_type}"} & SAY_ALL:
            assert row.before or row.after, f"{row.action}: neither before nor after"


# -- the three fronts ----------------------------------------------------------------------------------------


def test_the_tables_name_every_route_and_command_that_is_not_for_reading() -> None:
    assert PAGE_CHANGES.keys() | PAGES_THAT_ONLY_ANSWER == _not_for_reading(PAGES)
    assert API_CHANGES.keys() | API_THAT_ONLY_ANSWERS == _not_for_reading(API_TABLE)
    assert COMMAND_CHANGES.keys() | COMMANDS_THAT_ONLY_ANSWER == set(_commands())


def _not_for_reading(table: dict[str, str]) -> set[str]:
    return {rule for rule in table if not rule.startswith("GET ")}


def _commands() -> Iterator[str]:
    for command in map(load, COMMANDS):
        if isinstance(command, click.Group):
            yield from (f"{command.name} {name}" for name in command.commands)
        else:
            yield str(command.name)


@pytest.mark.parametrize("rule", PAGE_CHANGES)
def test_every_change_by_a_page_is_in_the_audit_log(scene: Scene, admin: Visitor, rule: str) -> None:
    path, form, actions = PAGE_CHANGES[rule]
    visitor = Visitor(scene.app) if path.startswith("/sign-in") else admin
    data = {name: scene.fill(value) for name, value in form.items()}
    if rule.endswith("/edit"):
        with database(scene.app) as session:
            job = CronJobManager(session).get(scene.names["job"])
            data |= {"revision": str(job.revision), "base_version": str(job.current_version)}
    answer = visitor.post(scene.fill(path), data)
    assert answer.status_code in (200, 303) or rule in ("POST /sign-in", "POST /settings/test-message")
    who = {"maria"} if visitor is not admin else {"the-admin"}
    check(scene.rows(), actions, who, "web", "127.0.0.1")


@pytest.mark.parametrize("rule", API_CHANGES)
def test_every_change_by_the_api_is_in_the_audit_log(scene: Scene, api: FlaskClient, rule: str) -> None:
    path, body, actions = API_CHANGES[rule]
    given = {key: scene.fill(one) if isinstance(one, str) else one for key, one in body.items()}
    method = rule.split(" ")[0]
    scene.begin()
    answer = api.open(f"/api/v1{scene.fill(path)}", method=method, json=given)
    assert answer.status_code < 300, answer.text
    check(scene.rows(), actions, {"token:a admin"}, "api", "127.0.0.1")


@pytest.mark.parametrize("command", COMMAND_CHANGES)
def test_every_change_by_a_command_is_in_the_audit_log(scene: Scene, command: str) -> None:
    words, text, actions = COMMAND_CHANGES[command]
    if command == "doctor":  # no worker is alive here, which it calls a problem
        scene.app.test_cli_runner().invoke(args=["doctor", "--fix"])
    else:
        CommandLine(scene.app)(f"{command} {scene.fill(words)}", text=text or None)
    check(scene.rows(), actions, {getpass.getuser()}, "cli", "")


@pytest.mark.parametrize("rule", sorted(PAGES_THAT_ONLY_ANSWER))
def test_what_only_answers_leaves_no_row(scene: Scene, admin: Visitor, rule: str) -> None:
    admin.post(rule.split(" ")[1], {"code": HELLO})
    assert scene.rows() == []


# -- what workers do -----------------------------------------------------------------------------------------


def test_what_workers_change_by_themselves_is_in_the_audit_log(
    app: Flask, scene: Scene, settings: Settings
) -> None:
    with database(app) as session:
        query = sa.select(CronAudit).where(CronAudit.action == "dead_letter")
        given_up = session.scalars(query).one()
        assert (given_up.actor, given_up.source, given_up.subject_name) == ("worker", "worker", "dead")
        assert "hopeless" in str(given_up.after)
        jobapi.answer_call(session, jobapi.Caller(1, "subject", Mask()), "trigger", {"job": "hourly"})
        removed = retention.prune(database_tools.make_sessions(db.engine), settings)
    asked, pruned = scene.rows()
    assert (asked.action, asked.actor, asked.source) == ("trigger", "job subject", "worker")
    assert (pruned.action, pruned.actor, pruned.source) == ("prune", "worker", "worker")
    assert pruned.after is not None
    assert pruned.after["executions"] == removed["executions"] > 0


def test_a_clean_up_that_removes_nothing_is_not_written_down(app: Flask, settings: Settings) -> None:
    make_visitor(app, "viewer")
    with database(app) as session:
        retention.prune(database_tools.make_sessions(db.engine), settings)
        assert session.scalars(sa.select(CronAudit).where(CronAudit.action == "prune")).all() == []


def test_the_tokens_that_a_lower_role_ends_are_named(app: Flask, scene: Scene) -> None:
    with database(app) as session:
        accounts.set_role(session, scene.names["maria"], "operator", TESTER)
    role, token = scene.rows()
    assert (role.action, role.before, role.after) == (
        "set_role",
        {"role": "editor"},
        {"role": "operator"},
    )
    assert (token.action, token.subject_name, token.before) == (
        "revoke_token",
        "of maria",
        {"revoked_at": None},
    )

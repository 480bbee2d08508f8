"""What must stay hidden: passwords, tokens, links and the values of secrets, in the database and in every answer."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from kytecron.app import create_app
from kytecron.config import ROOT, Settings, environment
from kytecron.engine.worker import CronWorker
from kytecron.services import jobs, secrets
from kytecron.store import queries
from kytecron.store.models import CronJob
from tests.mariadb import MariaDB
from tests.pages import Visitor, database, form_of, make_job, text_of
from tests.servers import MailServer, WebhookReceiver
from tests.workers import printed, wait_for_statuses, working

from .test_access_table import PAGES
from .test_stored_markup import pages

VALUE = "hunter2-Zq8\n'tail\""
PASSWORD = "a very secret pass phrase"
WEBHOOK = "https://hooks.slack.com/services/T0/B0/token-in-the-path"
CODE = """
class Leaky(CronJobBase):
    def execute(self):
        value = self.secrets["API_KEY"]
        print(value, repr(value), flush=True)
        self.progress(10, value)
        raise ValueError(f"could not sign in with {value}")
"""


def files(app: Flask) -> bytes:
    """Everything that the database has written to disk."""
    return b"".join(path.read_bytes() for path in Path(app.instance_path).glob("kytecron.db*"))


def hidden(text: str | bytes) -> list[str]:
    """Which parts of the secret's value are in `text`."""
    plain = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return [part for part in ("hunter2-Zq8", "'tail\"") if part in plain]


@pytest.fixture
def leaky(app: Flask, admin: Visitor) -> CronJob:
    """A job that may read a secret, set and granted through the pages."""
    job = make_job(app, "leaky", code=CODE, max_retries=0)
    assert admin.post("/secrets", {"name": "API_KEY", "value": VALUE}).status_code == 303
    assert admin.post("/secrets/API_KEY/grant", {"job": "leaky"}).status_code == 303
    return job


# -- this machine ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("maker", ["the pages", "a worker", "a key"])
def test_the_instance_directory_is_for_its_owner_alone(tmp_path: Path, maker: str, mariadb: MariaDB) -> None:
    """It holds hashes of passwords, encrypted secrets and, in development, their keys."""
    settings = Settings(instance_path=tmp_path / "new" / "instance")
    match maker:
        case "the pages":
            create_app(settings)
        case "a worker":  # which keeps nothing but its jobs' files there if the database is elsewhere
            CronWorker(replace(settings, database_url=mariadb.url))
        case "a key":
            settings.secrets_key_list()
    assert stat.S_IMODE(settings.instance_path.stat().st_mode) == 0o700


def test_a_directory_that_somebody_opened_to_others_stays_open(tmp_path: Path) -> None:
    settings = Settings(instance_path=tmp_path / "shared")
    settings.instance_path.mkdir(mode=0o750)
    create_app(settings)
    assert stat.S_IMODE(settings.instance_path.stat().st_mode) == 0o750


@pytest.mark.skipif(sys.platform != "linux", reason="there is no such switch")
def test_a_worker_s_memory_and_environment_are_closed_to_its_jobs(settings: Settings) -> None:
    """As root, who reads everything, only the switch itself can be seen."""
    program = (
        "import ctypes, sys\n"
        "from kytecron.engine.main import main\n"
        "status = main(['--drain'])\n"
        "print('readable:', ctypes.CDLL(None).prctl(3), 'status:', status)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(settings), cwd=ROOT, capture_output=True, text=True
    )
    assert "readable: 0 status: 0" in done.stdout, done.stderr


# -- the secrets page ----------------------------------------------------------------------------------------


def test_a_secret_is_set_granted_taken_and_deleted_and_only_its_name_is_shown(
    app: Flask, admin: Visitor, leaky: CronJob
) -> None:
    page = admin.get("/secrets")
    text = text_of(page.text)
    assert "API_KEY" in text
    assert "leaky" in text
    assert "by the-admin" in text
    assert not hidden(page.text)
    assert form_of(page.text, "/secrets")["value"] == "", "the form to replace it comes empty"
    assert admin.post(f"/secrets/API_KEY/revoke/{leaky.id}").status_code == 303
    assert "none yet" in text_of(admin.get("/secrets").text)
    assert admin.post("/secrets/API_KEY/delete").status_code == 303
    assert "No secrets yet" in text_of(admin.get("/secrets").text)
    for path in ("/secrets/API_KEY/delete", "/secrets/API_KEY/grant", f"/secrets/API_KEY/revoke/{leaky.id}"):
        assert admin.post(path, {"job": "leaky"}).status_code == 404


def test_a_refused_value_is_not_shown_again(admin: Visitor) -> None:
    answer = admin.post("/secrets", {"name": "lower", "value": VALUE})
    assert answer.status_code == 422
    assert 'id="f-name-error"' in answer.text
    assert 'value="lower"' in answer.text
    assert not hidden(answer.text)


def test_a_secret_goes_to_the_job_of_that_name_and_not_to_the_one_of_that_number(
    app: Flask, admin: Visitor, leaky: CronJob
) -> None:
    assert admin.post("/secrets/API_KEY/grant", {"job": str(leaky.id)}).status_code == 404
    impostor = make_job(app, str(leaky.id))
    assert admin.post("/secrets/API_KEY/grant", {"job": str(leaky.id)}).status_code == 303
    assert f'/secrets/API_KEY/revoke/{impostor.id}"' in admin.get("/secrets").text


def test_a_copy_of_a_job_and_a_job_of_a_deleted_one_s_name_get_no_secret(
    app: Flask, admin: Visitor, leaky: CronJob
) -> None:
    with database(app) as session:
        copy = jobs.CronJobManager(session).clone(leaky.id)
        jobs.CronJobManager(session).delete(leaky.id)
        again = jobs.CronJobManager(session).create_job(name="leaky", schedule_type="manual", code=CODE)
    page = admin.get("/secrets").text
    for job in (leaky, copy, again):
        assert f"/revoke/{job.id}" not in page


def test_line_ends_of_a_form_become_those_of_the_value(
    app: Flask, admin: Visitor, settings: Settings
) -> None:
    job = make_job(app, "lines")
    admin.post("/secrets", {"name": "PEM", "value": "a\r\nb\r\n"})
    admin.post("/secrets/PEM/grant", {"job": "lines"})
    with database(app) as session:
        assert secrets.granted_to_jobs(session, settings, [job.id])[job.id] == {"PEM": "a\nb\n"}


# -- nowhere else --------------------------------------------------------------------------------------------


def test_a_value_is_nowhere_but_in_the_process_of_its_job(
    app: Flask, admin: Visitor, api: FlaskClient, settings: Settings, leaky: CronJob
) -> None:
    admin.post(f"/jobs/{leaky.id}/trigger")
    with working(settings) as worker, database(app) as session:
        (run,) = wait_for_statuses(session, leaky, "failed")
        log = worker.log()
        found = queries.execution(session, run.id).execution
        output = printed(session, run)
    assert "***" in output, "it ran, and what it printed was masked"
    assert "could not sign in with" in (found.error or "")
    told = [output, found.error, found.stack_trace, found.progress_note, log]
    for told_text in told:
        assert not hidden(told_text or ""), told_text
    assert not hidden(files(app))
    for path, answer in pages(admin):
        assert not hidden(answer.text), path
    for path in (
        "/audit",
        "/jobs",
        f"/jobs/{leaky.id}",
        f"/executions/{run.id}",
        f"/executions/{run.id}/log",
    ):
        assert not hidden(api.get(f"/api/v1{path}").text), path


def test_the_files_of_the_database_hold_no_password_token_or_link(app: Flask, admin: Visitor) -> None:
    admin.post("/users", {"username": "maria", "role": "editor", "password": PASSWORD})
    link = re.search(
        r"/sign-in/([\w-]{40,})", admin.post("/users", {"username": "olga", "role": "viewer"}).text
    )
    token = re.search(
        r'id="new-token">(kyt_[\w-]+)<', admin.post("/tokens", {"name": "t", "token_role": "viewer"}).text
    )
    maria = Visitor(app)
    maria.post("/sign-in", {"username": "maria", "password": "wrong " + PASSWORD})
    maria.post("/sign-in", {"username": PASSWORD, "password": "typed into the wrong field"})
    assert maria.post("/sign-in", {"username": "maria", "password": PASSWORD}).status_code == 303
    with maria.client.session_transaction() as cookie:
        session_token = cookie["token"]
    assert link
    assert token
    stored = files(app)
    assert b"maria" in stored, "the probe reads the right files"
    for plain in (PASSWORD, link[1], token[1], session_token):
        assert plain.encode() not in stored


def test_a_token_and_a_link_are_shown_once(app: Flask, admin: Visitor) -> None:
    made = admin.post("/tokens", {"name": "t", "token_role": "viewer"})
    token = re.search(r'id="new-token">(kyt_[\w-]+)<', made.text)
    link = re.search(
        r"/sign-in/([\w-]{40,})", admin.post("/users", {"username": "olga", "role": "viewer"}).text
    )
    assert token
    assert link
    for path, answer in pages(admin):
        assert token[1] not in answer.text, path
        assert link[1] not in answer.text, path
        assert "scrypt:" not in answer.text, path


def test_a_webhook_s_address_is_for_those_who_may_edit_it(
    app: Flask, visitors: dict[str, Visitor], settings: Settings
) -> None:
    job = make_job(app, "told", slack_webhook=WEBHOOK)
    visitors["editor"].post(f"/jobs/{job.id}/disable", {"reason": "x"})
    for role in ("viewer", "operator"):
        for path, answer in pages(visitors[role]):
            assert "token-in-the-path" not in answer.text, f"{path} as {role}"
    assert "token-in-the-path" in visitors["editor"].get(f"/jobs/{job.id}/edit").text
    assert "token-in-the-path" not in visitors["admin"].get("/audit").text


# -- settings ------------------------------------------------------------------------------------------------


def test_the_settings_page_names_every_setting_and_shows_no_secret(app: Flask, admin: Visitor) -> None:
    secret = {item.name: f"hidden-{item.name}" for item in fields(Settings) if item.metadata["secret"]}
    app.extensions["kytecron.settings"] = replace(app.extensions["kytecron.settings"], **secret)
    page = admin.get("/settings").text
    app.extensions["kytecron.settings"] = replace(
        app.extensions["kytecron.settings"], **dict.fromkeys(secret, "")
    )
    assert "hidden-" not in page
    for item in fields(Settings):
        assert f"KYTECRON_{item.name.upper()}" in page
    assert {"database_url", "secret_key", "secrets_keys", "smtp_password"} <= secret.keys()


def test_a_test_message_arrives_and_is_written_down(app: Flask, admin: Visitor, settings: Settings) -> None:
    with MailServer() as server, WebhookReceiver() as hook:
        app.extensions["kytecron.settings"] = replace(
            settings,
            smtp_host="127.0.0.1",
            smtp_port=server.port,
            smtp_starttls=False,
            allow_local_webhooks=True,
        )
        for form in (
            {"channel": "email", "target": "ops@example.com"},
            {"channel": "slack", "target": hook.url},
        ):
            assert admin.post("/settings/test-message", form).status_code == 303
        app.extensions["kytecron.settings"] = settings
        assert server.recipients == ["ops@example.com"]
        assert hook.paths == ["/hook"]
    with database(app) as session:
        hooked, mailed = queries.audit_log(session).items[:2]
    assert (mailed.action, mailed.subject_id, mailed.after) == (
        "test_message",
        "email",
        {"notification_email": "ops@example.com"},
    )
    assert (hooked.subject_id, hooked.after) == ("slack", {"slack_webhook": "•••"})


INSIDE = [
    "http://127.0.0.1/",
    "https://127.0.0.1/",
    "https://localhost/",
    "https://x.localhost/",
    "https://[::1]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[64:ff9b::7f00:1]/",
    "https://[2002:7f00:1::]/",
    "https://[fe80::1%25lo]/",
    "https://[fd00::1]/",
    "https://0.0.0.0/",
    "https://0/",
    "https://127.1/",
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0177.0.0.1/",
    "https://10.0.0.1/",
    "https://172.16.0.1/",
    "https://192.168.1.1/",
    "https://169.254.169.254/latest/meta-data/",
    "https://100.64.0.1/",
    "https://224.0.0.1/",
    "https://255.255.255.255/",
    "https://hooks.slack.com@127.0.0.1/",
    "https://127.0.0.1#@hooks.slack.com/",
    "https://127.0.0.1\\@hooks.slack.com/",
    "https://\u2460\u2461\u2466.0.0.1/",
    "ftp://hooks.slack.com/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:25/_HELO",
    "https:///etc/passwd",
    "https://",
    "https://hooks.slack.com:99999/",
    "//hooks.slack.com/",
]


@pytest.mark.parametrize("url", INSIDE)
def test_no_webhook_leads_inside(admin: Visitor, url: str) -> None:
    answer = admin.post("/settings/test-message", {"channel": "slack", "target": url})
    assert answer.status_code == 422
    assert "Not sent: " in answer.text
    for told in ("Connection refused", "answered", "within"):
        assert told not in text_of(answer.text), "it was refused, not tried"


def test_test_messages_are_throttled(app: Flask, admin: Visitor) -> None:
    form = {"channel": "slack", "target": "https://127.0.0.1/"}
    answers = [admin.post("/settings/test-message", form).status_code for _ in range(11)]
    assert answers == [422] * 10 + [429]


def test_people_who_administrate_nothing_are_not_even_offered_it(visitors: dict[str, Visitor]) -> None:
    for role in ("viewer", "operator", "editor"):
        page = visitors[role].get("/").text
        assert not {
            rule for rule, first in PAGES.items() if first == "admin" and f'"{rule.split()[1]}"' in page
        }

"""Names and texts of other people mislead nobody, wherever they come in and wherever they are shown."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from kytecron.config import Settings
from kytecron.core.errors import Invalid
from kytecron.services import accounts, transfer
from kytecron.services.audit import Actor
from kytecron.services.jobs import CronJobManager
from kytecron.store.models import CronJob
from tests.command_line import CommandLine
from tests.factories import add_worker
from tests.pages import HELLO, Visitor, database, make_job

TURNED = "pay\u202egpj.exe"
HIDDEN = ["\u202e", "\u200b", "\u2066", "\ufeff", "\U000e0041", "\u2028", "\ue000", "\x85"]


@pytest.mark.parametrize("char", HIDDEN)
def test_no_name_is_taken_that_would_not_show_what_it_is(
    app: Flask, api: FlaskClient, admin: Visitor, char: str
) -> None:
    job, name = make_job(app).id, f"a{char}b"
    for fields in (
        {"name": name},
        {"description": name},
        {"tags": [name]},
        {"worker_tag": name},
        {"parameters": {"deep": [{name: 1}]}},
        {"message": name, "code": HELLO + "# more\n"},
    ):
        answer = api.patch(f"/api/v1/jobs/{job}", json=fields)
        assert answer.status_code == 422, fields
        assert next(iter(fields)) in answer.json["error"]["fields"]
        assert char not in answer.text
    form = {"name": name, "schedule_type": "manual", "code": HELLO}
    assert admin.post("/jobs/new", form).status_code == 422
    assert admin.post("/tokens", {"name": name, "token_role": "viewer"}).status_code == 422
    assert admin.post("/users", {"username": name, "role": "viewer"}).status_code == 422
    with database(app) as session:
        with pytest.raises(Invalid):
            CronJobManager(session).create_job(name=name, code=HELLO)
        with pytest.raises(Invalid):
            transfer.import_jobs(session, {"jobs": [{"name": name, "code": HELLO}]}, Actor("test"))
        with pytest.raises(Invalid):
            accounts.create_token(session, name, "viewer", 1, Actor("test"))
    assert "name" in CommandLine(app).error(f"jobs create --name 'a{char}b' --code -", text=HELLO, status=2)
    assert "KYTECRON_WORKER_TAGS" in Settings(worker_tags=name)._problems()


def test_a_note_shows_what_it_holds(app: Flask, api: FlaskClient) -> None:
    job = make_job(app, enabled=True).id
    run = api.post(f"/api/v1/jobs/{job}/trigger", json={"note": TURNED}).json
    assert run["note"] == "pay⟨U+202E⟩gpj.exe"
    assert api.post(f"/api/v1/jobs/{job}/disable", json={"reason": TURNED}).status_code == 200
    assert "\u202e" not in api.get(f"/api/v1/jobs/{job}").text


def test_pages_show_what_stands_in_the_database_already(app: Flask, admin: Visitor) -> None:
    """Rows written by hand, machine names, code: nothing reorders the page around it."""
    job = make_job(app, code=HELLO + "# \u202e} turned\n").id
    with database(app) as session:
        session.execute(sa.update(CronJob).values(description=TURNED))
        session.execute(sa.update(CronJob).values(name=TURNED))
        session.commit()
        add_worker(session, host=TURNED)
    for path in ("/jobs", f"/jobs/{job}", f"/jobs/{job}/code", f"/jobs/{job}/versions", "/workers", "/"):
        answer = admin.get(path)
        assert answer.status_code == 200, path
        assert "\u202e" not in answer.text.replace("data-copy", "", 1) or path.endswith("/code"), path
    assert "⟨U+202E⟩" in admin.get("/workers").text
    listing = admin.get(f"/jobs/{job}/code").text.split("data-copy")
    assert "⟨U+202E⟩" in admin.get(f"/jobs/{job}/code").text
    # Who edits or copies code gets it as it is.
    assert len(listing) > 1
    assert "\u202e} turned" in admin.get(f"/jobs/{job}/edit").text

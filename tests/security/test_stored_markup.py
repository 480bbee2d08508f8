"""Text that people, jobs and machines write is text on every page and in every answer that shows it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy.orm import Session

from kytecron.config import Settings
from kytecron.services import accounts, audit, lifecycle, registry, secrets
from kytecron.services.audit import Actor
from kytecron.services.jobs import CronJobManager
from kytecron.store import db
from kytecron.store.models import Base, CronJob, CronJobExecution, CronJobOutput, CronUser, ShortText
from tests.pages import HELLO, Visitor, database, make_job, text_of

# Leaves a text, an attribute in either kind of quotes, a comment, a script, and a template.
EVIL = "\"'></title></textarea></script><evil pwned=1 onerror=evil()>--><script>evil()</script>{{7*191}}"
SHORT = "\"'><evil pwned=1 onerror=evil()>"
LINK = "javascript:evil()"
SHOWN = "<evil pwned=1 onerror=evil()>"
"""How every planted text reads where it is shown."""
ANSI = (
    f"\x1b[31m{EVIL}\x1b[0m \x1b]8;;{LINK}\x07link\x1b]8;;\x07 \x1b]0;{EVIL}\x07 \x1b[38;5;<evil>m\r{EVIL}\n"
)
TRACE = f"""Traceback (most recent call last):
  File "<job 1 v1>", line 2, in {EVIL}
    {EVIL}
  File "{SHORT}", line 3, in run
    {EVIL}
ValueError: {EVIL}
"""
CODE = f"# {EVIL}\n" + HELLO.replace('"Hello World"', repr(EVIL))
PLACES_THAT_RUN_TEXT = {
    "href",
    "src",
    "action",
    "formaction",
    "hx-get",
    "hx-post",
    "hx-vals",
    "hx-on",
    "style",
}


class Markup(HTMLParser):
    """What in a page could only come from planted text; and where the page leads."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.foreign: list[str] = []
        self.links: list[tuple[str, bool]] = []
        self._script = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "evil" or (tag == "script" and "src" not in given):
            self.foreign.append(f"<{tag}>")
        for name, value in attrs:
            if name == "pwned" or name.startswith("on") or name == "style":
                self.foreign.append(f"{tag} {name}")
            if name in PLACES_THAT_RUN_TEXT and re.match(
                r"\s*(javascript|data|vbscript):", value or "", re.I
            ):
                self.foreign.append(f"{tag} {name}={value}")
        if tag == "a" and given.get("href"):
            self.links.append((str(given["href"]), False))
        if given.get("hx-get"):
            self.links.append((str(given["hx-get"]), True))


@pytest.fixture
def planted(app: Flask, settings: Settings) -> int:
    """Text of this kind in every place that takes some; returns the id of the job that was made through services."""
    job = make_job(
        app,
        EVIL[:200],
        description=EVIL,
        code=CODE,
        message=EVIL,
        worker_tag=SHORT[:64],
        parameters={EVIL: {EVIL: [EVIL]}},
        slack_webhook="https://hooks.example/" + "a" * 20,
    )
    evil = Actor(EVIL, "web", SHORT)
    with database(app) as session:
        # So that the deepest part of a job's life is there: versions, a failed run with its retry, dead letters.
        CronJobManager(session, evil).update_code(job.id, CODE.replace("Hello", "Other"), message=EVIL)
        run = lifecycle.trigger(session, job.id, parameters={EVIL: EVIL}, note=EVIL, actor=evil)
        _finish(session, run.id)
        lifecycle.rerun(session, run.id, evil)
        raw = make_job(app, f"raw {SHORT}").id
        session.add(CronUser(username=SHORT, role=SHORT[:16], enabled=True, created_at=db.now(session)))
        audit.record(
            session, evil, SHORT, (SHORT, SHORT), name=EVIL, before={EVIL: EVIL}, after={EVIL: [EVIL]}
        )
        accounts.create_token(session, EVIL[:100], "viewer", None, evil)
        secrets.set_secret(session, "API_KEY", "x", evil, settings)
        secrets.grant(session, job.id, "API_KEY", evil)
        for number in range(2):
            registry.report(
                session,
                f"worker {number} {SHORT}",
                Settings(worker_tags=f"{SHORT},x"),
                running=1,
                draining=False,
                clock_skew_ms=0,
                statistics={EVIL: EVIL},
            )
        _plant_by_hand(session, raw)
        session.commit()
    return job.id


def _finish(session: Session, execution_id: int) -> None:
    run = session.get_one(CronJobExecution, execution_id)
    now = db.now(session)
    values = {
        "status": "failed",
        "version": 2,
        "started_at": now,
        "completed_at": now,
        "locked_by": SHORT,
        "error": EVIL,
        "output": ANSI,
        "stack_trace": TRACE,
        "result": {EVIL: EVIL},
        "progress_percent": 50,
        "progress_note": EVIL,
        "cancel_reason": EVIL,
        "waiting_for": EVIL,
        "skipped_reason": EVIL,
    }
    for name, value in values.items():
        setattr(run, name, value)
    session.add(CronJobOutput(execution=run.id, seq=1, text=ANSI))
    session.commit()


def _plant_by_hand(session: Session, job_id: int) -> None:
    """Rows as somebody writes them who has the database's password, or a fault: nothing checked them."""
    job = session.get_one(CronJob, job_id)
    keep = {"name", "schedule_type", "tags", "last_status", "recent_results", "slack_webhook"}
    for column in CronJob.__table__.columns:
        if isinstance(column.type, ShortText) and column.key not in keep:
            setattr(job, column.key, SHORT[: column.type.length])
    job.schedule_type, job.tags = "cron", f",{SHORT},"
    job.slack_webhook = LINK
    job.in_dead_letter_queue, job.enabled, job.dead_letter_since = True, False, db.now(session)
    for status in ("running", "pending", "skipped", "lost", SHORT[:16]):
        now = db.now(session)
        session.add(
            CronJobExecution(
                cron_job=job_id,
                scheduled_time=now + timedelta(seconds=len(status)),
                due_time=now,
                status=status,
                origin=SHORT[:16],
                started_at=now,
                locked_by=SHORT,
                locked_until=now,
                triggered_by=SHORT,
                worker_tag=SHORT,
                error=EVIL,
                note=EVIL,
                progress_note=EVIL,
                progress_percent=10,
                waiting_for=EVIL,
                skipped_reason=EVIL,
                cancel_reason=EVIL,
                output=ANSI,
                parameters={EVIL: EVIL},
            )
        )


def pages(visitor: Visitor, *more: str) -> Iterator[tuple[str, Any]]:
    """Every page that links lead to from the first one, and every part that a page asks for."""
    waiting, seen = [("/", False), *((path, False) for path in more)], set()
    while waiting:
        path, part = waiting.pop()
        address = urlsplit(urljoin("http://localhost/", path))
        key = (address.path, address.query, part)
        if key in seen or address.netloc != "localhost" or address.path.startswith("/static"):
            continue
        seen.add(key)
        assert len(seen) < 600, "the pages lead round in circles"
        path = address.path + (f"?{address.query}" if address.query else "")
        answer = visitor.get(path, part=part)
        yield f"{path}{' (part)' if part else ''}", answer
        if answer.mimetype == "text/html" and answer.status_code == 200:
            links = Markup(answer.text).links
            waiting += [(urljoin(path, link), is_part) for link, is_part in links]


def test_planted_text_is_text_on_every_page(app: Flask, planted: int, admin: Visitor) -> None:
    admin.post("/jobs/1/disable", {"reason": EVIL})
    visited, wrong, shown = set(), [], set()
    more = (
        f"/jobs?q={SHOWN}&status={SHOWN}&tag={SHOWN}&sort={SHOWN}",
        f"/executions?job={SHOWN}&status={SHOWN}&from={SHOWN}&to={SHOWN}&worker={SHOWN}&text={SHOWN}",
        f"/audit?actor={SHOWN}&action={SHOWN}&subject_type={SHOWN}&subject_id={SHOWN}",
        f"/jobs/{planted}/versions/compare?from=1&to=2",
        f"/jobs/parents?parent_q={SHOWN}&depends_on=1",
        f"/jobs/preview?schedule_type={SHOWN}&timezone={SHOWN}",
        f"/jobs/{planted}/trigger",
        f"/sign-in/{SHOWN}",
        f"/{SHOWN}",
    )
    for path, answer in pages(admin, *more):
        visited.add(re.sub(r"\d+", "N", path.split("?")[0].removesuffix(" (part)")))
        assert answer.status_code < 500, path
        if answer.mimetype == "text/html":
            wrong += [f"{path}: {what}" for what in Markup(answer.text).foreign]
            if SHOWN in text_of(answer.text) or "&lt;evil pwned" in answer.text:
                shown.add(re.sub(r"\d+", "N", path.split("?")[0].removesuffix(" (part)")))
            assert "1337" not in answer.text, f"{path}: a template in a text was filled in"
    assert not wrong
    places = {
        "/",
        "/jobs",
        "/jobs/N",
        "/jobs/N/edit",
        "/jobs/N/code",
        "/jobs/N/trigger",
        "/jobs/N/executions",
        "/jobs/N/versions",
        "/jobs/N/versions/N",
        "/jobs/N/versions/compare",
        "/executions",
        "/executions/N",
        "/dead-letters",
        "/workers",
        "/users",
        "/audit",
        "/secrets",
    }
    assert places <= shown, places - shown
    assert {"/account", "/settings", "/storage", "/jobs/new", "/jobs/preview"} <= visited


def test_planted_text_is_text_in_forms_that_come_back(app: Flask, planted: int, admin: Visitor) -> None:
    for path, form in (
        ("/sign-in", {"username": EVIL, "password": EVIL, "next": f"/{EVIL}"}),
        ("/jobs/new", dict.fromkeys(("name", "description", "tags", "code", "message", "timezone"), EVIL)),
        ("/jobs/1/trigger", {"parameters": EVIL, "note": EVIL, "version": EVIL}),
        ("/users", {"username": EVIL, "role": EVIL}),
        ("/tokens", {"name": EVIL, "token_role": EVIL, "expires_days": EVIL}),
        ("/secrets", {"name": EVIL, "value": "x"}),
        ("/settings/test-message", {"channel": EVIL, "target": EVIL}),
        ("/settings/test-message", {"channel": "email", "target": EVIL}),
        (
            "/jobs/1/edit",
            {"name": EVIL, "code": CODE, "revision": "0", "base_version": "1", "slack_webhook": LINK},
        ),
    ):
        answer = admin.post(path, form)
        assert answer.status_code in (409, 422), path
        assert Markup(answer.text).foreign == [], path


def test_planted_text_is_data_in_what_is_no_page(
    app: Flask, planted: int, admin: Visitor, api: FlaskClient
) -> None:
    with database(app) as session:
        run = session.scalars(
            sa.select(CronJobExecution.id).where(CronJobExecution.cron_job == planted)
        ).first()
    for path, kind in (
        ("/jobs", "application/json"),
        (f"/jobs/{planted}", "application/json"),
        (f"/jobs/{planted}/versions/1/code", "text/plain"),
        (f"/jobs/{planted}/versions/compare?from=1&to=2", "application/json"),
        ("/executions", "application/json"),
        (f"/executions/{run}", "application/json"),
        (f"/executions/{run}/log", "application/json"),
        ("/workers", "application/json"),
        ("/locks", "application/json"),
        ("/dead-letters", "application/json"),
        ("/audit", "application/json"),
        (f"/{SHOWN}", "application/json"),
        (f"/jobs?sort={SHOWN}", "application/json"),
    ):
        answer = api.get(f"/api/v1{path}")
        assert answer.status_code < 500, (path, answer.text)
        assert answer.mimetype == kind, path
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "evil()" in api.get(f"/api/v1/executions/{run}/log").json["text"]
    text = api.get(f"/api/v1/executions/{run}/log", headers={"Accept": "text/plain"}, buffered=True)
    assert text.mimetype == "text/plain"
    for path in (f"/executions/{run}/log", f"/jobs/{planted}/versions/1/code"):
        answer = admin.get(path)
        assert answer.mimetype in ("text/plain", "text/x-python")
        assert answer.headers["Content-Disposition"].startswith("attachment; ")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_what_a_browser_says_of_itself_is_text(app: Flask, admin: Visitor) -> None:
    with database(app) as session:
        link = accounts.create_sign_in_link(session, Actor("test"), "the-admin")
    other = Visitor(app)
    other.post(f"/sign-in/{link}", headers={"User-Agent": EVIL})
    page = other.get("/account").text
    assert SHOWN in text_of(page)
    assert Markup(page).foreign == []


def test_the_probe_finds_what_it_is_for() -> None:
    assert Markup(f"<p>{EVIL}</p>").foreign
    assert Markup(f'<p title="{SHORT}">').foreign
    assert Markup(f'<a href="{LINK}">').foreign


def test_no_column_of_a_table_was_forgotten() -> None:
    """A new table with text in it needs its place in this file."""
    known = {"CronJob", "CronJobDependency", "CronJobExecution", "CronJobOutput", "CronJobDailyStat"}
    known |= {"KyteCronJobVersion", "KyteCronJobVersionContent", "CronWorker", "CronUser", "CronToken"}
    known |= {"CronSession", "CronAudit", "CronSecret", "CronJobSecret"}
    never_shown = {"CronOutbox", "CronThrottle", "CronIdempotencyKey"}
    assert {table.name for table in Base.metadata.sorted_tables} == known | never_shown

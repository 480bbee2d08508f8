"""Visitors of the pages: signed in with a role, sending forms as a browser without scripts would."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy.orm import Session
from werkzeug.datastructures import MultiDict
from werkzeug.test import TestResponse

from kytecron.requestdb import db
from kytecron.services import accounts
from kytecron.services.audit import Actor
from kytecron.services.jobs import CronJobManager
from kytecron.store.models import CronJob

HELLO = """class Hello(CronJobBase):
    def execute(self):
        self.log("Hello World")
"""
PART = {"HX-Request": "true", "HX-Request-Type": "partial"}
ASKED = {
    "/jobs/{job_id}/versions/compare": "?from=1&to=2",
    "/jobs/preview": "?schedule_type=daily&time_of_day=02:30",
}
"""What addresses of pages are asked with."""
PASSWORD = "correct horse battery staple"


class Visitor:
    """A browser session."""

    def __init__(self, app: Flask) -> None:
        self.app = app
        self.client: FlaskClient = app.test_client()

    def get(self, path: str, *, part: bool = False, **options: Any) -> TestResponse:
        """Ask for a page, or as htmx for a part of one."""
        headers = (PART if part else {}) | options.pop("headers", {})
        return self.client.get(path, headers=headers, buffered=True, **options)

    def post(self, path: str, data: Any = None, *, part: bool = False, **options: Any) -> TestResponse:
        """Send a form with its CSRF token; as htmx with the header that app.js adds."""
        headers = {"X-CSRFToken": self.token(), **(PART if part else {})} | options.pop("headers", {})
        return self.client.post(path, data=data, headers=headers, buffered=True, **options)

    def token(self) -> str:
        """The CSRF token of this session, from the head of a page."""
        found = re.search(r'name="csrf-token" content="([^"]+)"', self.client.get("/account").text)
        if found is None:  # not signed in
            found = re.search(r'name="csrf-token" content="([^"]+)"', self.client.get("/sign-in").text)
        assert found
        return found[1]

    def sign_in_as(self, username: str) -> Visitor:
        """By a one-time link, which takes no time for hashing."""
        with self.app.app_context():
            link = accounts.create_sign_in_link(db.session(), Actor("test"), username)
        assert self.post(f"/sign-in/{link}").status_code == 303
        return self


def make_visitor(app: Flask, role: str, name: str = "") -> Visitor:
    """Somebody new with this role."""
    username = name or f"the-{role}"
    with app.app_context():
        accounts.create_user(db.session(), username, None, role, Actor("test"))
    return Visitor(app).sign_in_as(username)


@contextmanager
def database(app: Flask) -> Iterator[Session]:
    """The app's database as it is now."""
    with app.app_context():
        db.session.rollback()
        yield db.session()


def make_job(app: Flask, name: str = "hello", **fields: Any) -> CronJob:
    """A job as people make them; by default it is started by hand."""
    values = {"schedule_type": "manual", "code": HELLO} | fields
    with database(app) as session:
        return CronJobManager(session, Actor("test")).create_job(name=name, **values)


def toast(response: TestResponse) -> str:
    """What an answer to htmx tells the person."""
    said: str = json.loads(response.headers["HX-Trigger"])["kytecron:toast"]["message"]
    return said


def text_of(html: str) -> str:
    """What a person reads: no tags, entities resolved, blanks joined."""
    return " ".join(" ".join(_Text(html).parts).split())


class _Text(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.feed(html)

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def form_of(html: str, action: str) -> MultiDict[str, str]:
    """What a browser would send of the form with this action if nothing was typed into it."""
    return _Forms(html).forms[action]


class _Forms(HTMLParser):
    """Reads forms as browsers do: unchecked boxes, disabled controls and buttons are not sent."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.forms: dict[str, MultiDict[str, str]] = {}
        self._form: MultiDict[str, str] | None = None
        self._select: str | None = None
        self._first = True
        self._area: tuple[str, list[str]] | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "form":
            self._form = self.forms.setdefault(given.get("action") or "", MultiDict())
            return
        name = given.get("name")
        if self._form is None or "disabled" in given:
            return
        if tag == "input" and name:
            if given.get("type") not in ("checkbox", "radio") or "checked" in given:
                self._form.add(name, given.get("value") or "")
        elif tag == "textarea" and name:
            self._area = (name, [])
        elif tag == "select":
            self._select, self._first = name, True
        elif tag == "option" and self._select:
            if self._first or "selected" in given:
                self._form[self._select] = given.get("value") or ""
            self._first = False

    def handle_data(self, data: str) -> None:
        if self._area:
            self._area[1].append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea" and self._area and self._form is not None:
            name, parts = self._area
            # The first line break after the tag is not part of the text, and browsers send CRLF.
            self._form.add(name, "".join(parts).removeprefix("\n").replace("\n", "\r\n"))
            self._area = None
        elif tag == "select":
            self._select = None
        elif tag == "form":
            self._form = None

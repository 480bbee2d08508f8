"""What every request passes on its way in and out: how it came, its cookie, its form, and the trace of a refusal."""

from __future__ import annotations

import logging
import re
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import unquote_to_bytes

from flask import Flask, Response, g, has_request_context, request
from flask.sessions import SecureCookieSessionInterface
from flask_wtf import CSRFProtect
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.middleware.proxy_fix import ProxyFix

from . import accesslog
from .config import path_prefix
from .core.addresses import is_host
from .core.choices import Source
from .requestdb import db
from .services import audit
from .services.audit import Actor

log = logging.getLogger(__name__)

COOKIE = "kytecron"
REFUSED = frozenset({401, 403, 429})
LINES_PER_MINUTE = 60
"""Refusals that a process writes to its log; the next line tells of how many it did not."""
ROWS_PER_HOUR = 10
"""Rows in the audit log that a process writes about refusals of one user or token."""
FORWARDED_PREFIX = "HTTP_X_FORWARDED_PREFIX"
SHOWN_OF_PATH = 200
RAW = re.compile(r"[^!-~]")
PREFIX = re.compile(r"(/[\w.~-]+)*/?", re.ASCII)


def outer(inside: Any, proxies: int) -> Any:
    """The WSGI application around Flask's: requests as they came, by way of so many proxies."""
    inside = _well_formed(inside)
    if proxies:
        inside = ProxyFix(inside, x_for=proxies, x_proto=proxies, x_host=proxies, x_prefix=proxies)
    return _as_connected(inside)


def _as_connected(inside: Any) -> Any:
    """What a request says about how it came, put back to how it came; who is to be believed stands in the settings.

    gunicorn itself, without our `gunicorn_conf`, believes the X-Forwarded-Proto and SCRIPT_NAME of whoever connects
    from this machine or over a Unix socket.
    """

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        if not all(PREFIX.fullmatch(one.strip()) for one in environ.get(FORWARDED_PREFIX, "").split(",")):
            del environ[FORWARDED_PREFIX]  # no address can be made with it
        connection = environ.get("gunicorn.socket")
        if connection is not None:
            environ["wsgi.url_scheme"] = "https" if isinstance(connection, ssl.SSLSocket) else "http"
            if "HTTP_SCRIPT_NAME" in environ:
                prefix = path_prefix()
                path = _as_wsgi(environ["SCRIPT_NAME"]) + environ["PATH_INFO"]
                environ["SCRIPT_NAME"], environ["PATH_INFO"] = prefix, path.removeprefix(_as_wsgi(prefix))
        return inside(environ, start_response)

    return application


def _well_formed(inside: Any) -> Any:
    """What Flask cannot read in a request, so that it could not even make an error page, in a form that it can.

    A Host that names no host counts as not sent, and raw bytes of a query are written as %XX.
    """

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        if not is_host(environ.get("HTTP_HOST", "")):
            environ.pop("HTTP_HOST", None)
        if not is_host(environ.get("SERVER_NAME", "")):  # ProxyFix takes it from X-Forwarded-Host
            environ["SERVER_NAME"] = "localhost"
        environ["QUERY_STRING"] = RAW.sub(_escaped, environ.get("QUERY_STRING", ""))
        return inside(environ, start_response)

    return application


def _escaped(found: re.Match[str]) -> str:
    return f"%{ord(found[0]):02X}"


def _as_wsgi(path: str) -> str:
    return unquote_to_bytes(path).decode("latin-1")


class Cookies(SecureCookieSessionInterface):
    """Flask's signed cookie; over TLS one that browsers take from this very host only.

    That asks for the path /, below a prefix too: a cookie with a path is no protection from others on the same host.
    """

    def get_cookie_secure(self, app: Flask) -> bool:
        """Always in production; elsewhere where the request came over TLS."""
        return super().get_cookie_secure(app) or (has_request_context() and request.is_secure)

    def get_cookie_name(self, app: Flask) -> str:
        """With the prefix that no other site and no plain http can set."""
        return f"__Host-{COOKIE}" if self.get_cookie_secure(app) else COOKIE


class Forms(CSRFProtect):
    """Flask-WTF's check, which raises ValueError for a referrer that is no address."""

    def protect(self, apply_exemptions: bool = False) -> None:
        """Refuse a form that is none of ours."""
        try:
            super().protect(apply_exemptions)
        except ValueError:
            self._error_response("The referrer is not an address.")


class Refusals:
    """Whoever is refused leaves a trace: a line in the log, and a row in the audit log if we know who it was."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._minute = self._hour = 0
        self._lines = self._unwritten = 0
        self._rows: Counter[str] = Counter()

    def note(self, response: Response) -> Response:
        """Note an answer that refuses. Registered to run after every request."""
        if response.status_code in REFUSED or g.get("refused"):
            actor = _who()
            line, row, unwritten = self.may_write(actor.name)
            if unwritten:
                log.warning("%d more requests were refused", unwritten, extra={"refused": unwritten})
            if line:
                _write_line(actor, response.status_code)
            if row and response.status_code == 403 and actor.name:
                # The answer stands, whatever becomes of the row.
                with suppress(SQLAlchemyError):
                    audit.note_refusal(db.session(), actor, _what())
        return response

    def may_write(self, name: str) -> tuple[bool, bool, int]:
        """Whether a line, and whether a row about `name`, and how many lines were left out before it."""
        now = self._clock()
        with self._lock:
            unwritten = 0
            if int(now // 60) != self._minute:
                self._minute, self._lines = int(now // 60), 0
                unwritten, self._unwritten = self._unwritten, 0
            if int(now // 3600) != self._hour:
                self._hour = int(now // 3600)
                self._rows.clear()
            self._lines += 1
            self._unwritten += self._lines > LINES_PER_MINUTE
            self._rows[name] += bool(name)
            return self._lines <= LINES_PER_MINUTE, self._rows[name] <= ROWS_PER_HOUR, unwritten


def _who() -> Actor:
    """Who was refused; without a name where that is not known."""
    address = request.remote_addr or ""
    known: Actor | None = g.get("actor")
    if known is None and g.get("user") is not None:
        known = Actor(g.user.username, Source.WEB, address)
    return known or Actor("", Source.WEB, address)


def _what() -> str:
    return f"{request.method} {accesslog.shown_path()}"[:SHOWN_OF_PATH]


def _write_line(actor: Actor, status: int) -> None:
    # `request` is the id of the request, here as in every line about it.
    facts = {"method": request.method, "path": accesslog.shown_path()}
    keys = {"status": status, "actor": actor.name, "ip": actor.ip, **facts}
    log.warning(
        "refused %r with %d: %s from %s%s",
        _what(),
        status,
        actor.name or "nobody known",
        actor.ip,
        f", {g.refused}" if g.get("refused") else "",
        extra=keys,
    )

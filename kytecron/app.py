"""The composition root: settings, database, pages, API and command line become one Flask app here.

Besides tests and wsgi.py nothing imports this module; it alone knows all fronts.
"""

from __future__ import annotations

import gzip
import logging
import threading
import time
from functools import lru_cache
from typing import Any

from flask import Flask, Response, current_app, request
from flask_migrate import Migrate
from sqlalchemy.exc import SQLAlchemyError

from . import accesslog, api, cli, door, web
from .config import PARTS, Settings
from .core.errors import Unavailable
from .requestdb import db
from .services import probes
from .services.seats import waiting_seats
from .store import db as database
from .store import schema

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 4 * 1024 * 1024
WRITES_SECONDS = 0.5
WITHOUT_DATABASE = {"healthz", "readyz", "static"}
YEAR = 365 * 24 * 3600
COMPRESSED = {"text/css", "text/javascript", "application/javascript", "image/svg+xml"}

# Templates hold no inline script or style (docs/pages.md), so nothing needs a nonce. The data: images are the
# stylesheet's own.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    # Not `no-referrer`: under TLS the CSRF check compares the referrer.
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def create_app(settings: Settings | None = None) -> Flask:
    """The web application: pages, JSON API and the `flask` commands.

    Raises Invalid for settings that must not go into production.
    """
    settings = settings or Settings.load()
    app = Flask("kytecron", instance_path=str(settings.instance_path.resolve()))
    # Joining the slashes of //jobs is a redirect to an absolute address, made from the Host header.
    app.url_map.merge_slashes = False
    app.session_interface = door.Cookies()
    app.extensions["kytecron.settings"] = settings
    app.extensions["kytecron.writes"] = _Writes()
    app.extensions["kytecron.seats"] = waiting_seats(settings.web_threads)
    app.config.update(_configuration(settings))
    _connect_database(app, settings)
    app.wsgi_app = door.outer(app.wsgi_app, settings.trusted_proxies)  # type: ignore[method-assign]
    accesslog.register(app, trust_header=settings.trusted_proxies > 0)
    _refuse_other_schemas(app)
    app.after_request(_compress)
    app.after_request(_secure)
    app.after_request(door.Refusals().note)
    app.add_url_rule("/healthz", view_func=healthz)
    app.add_url_rule("/readyz", view_func=readyz)
    # First: it answers, as JSON, whatever is asked of addresses below its own that are none.
    routes = api.register(app)
    web.bound(app)
    # The API knows its callers by bearer tokens, which no browser sends by itself.
    door.Forms(app).exempt(routes)
    web.register(app)
    cli.register(app, settings)
    return app


def _configuration(settings: Settings) -> dict[str, Any]:
    return {
        "SECRET_KEY": settings.require_secret_key(),
        "SESSION_COOKIE_NAME": door.COOKIE,
        "SESSION_COOKIE_HTTPONLY": True,
        "SESSION_COOKIE_SAMESITE": "Lax",
        "SESSION_COOKIE_SECURE": settings.environment
        == "production",  # else by the request: see door.Cookies
        "SESSION_COOKIE_PATH": "/",
        "MAX_CONTENT_LENGTH": MAX_BODY_BYTES,
        "MAX_FORM_MEMORY_SIZE": MAX_BODY_BYTES,  # a job's code is one form field
        "SEND_FILE_MAX_AGE_DEFAULT": YEAR,  # addresses of static files carry their version
        "WTF_CSRF_TIME_LIMIT": None,  # a form may stay open for as long as the sign-in lasts
        "SQLALCHEMY_DATABASE_URI": database.address(settings.url),
        "SQLALCHEMY_ENGINE_OPTIONS": database.engine_options(settings.url),
    }


def _connect_database(app: Flask, settings: Settings) -> None:
    settings.make_instance_directory()
    db.init_app(app)
    with app.app_context():
        database.configure(db.engine)
    Migrate(app, db, directory=str(PARTS / "migrations"))


def _refuse_other_schemas(app: Flask) -> None:
    """Answer nothing that needs the database while its tables are another version's."""
    with app.app_context():
        watch = schema.Watch(db.engine)

    def refuse() -> None:
        if request.endpoint not in WITHOUT_DATABASE and (problem := watch.problem()):
            raise Unavailable(problem)

    app.before_request(refuse)


def _compress(response: Response) -> Response:
    """Static text compressed for browsers that take it. Pages are not: they hold secrets beside what visitors type."""
    if request.endpoint != "static" or response.status_code != 200 or request.range is not None:
        return response
    if response.mimetype not in COMPRESSED:
        return response
    response.vary.add("Accept-Encoding")
    if request.accept_encodings["gzip"] > 0:
        response.direct_passthrough = False
        response.set_data(_gzip(response.get_data()))
        response.headers["Content-Encoding"] = "gzip"
        response.headers.pop("Accept-Ranges", None)
        etag, _ = response.get_etag()
        response.set_etag(f"{etag}-gzip")
    return response


@lru_cache(maxsize=32)
def _gzip(content: bytes) -> bytes:
    return gzip.compress(content, 9, mtime=0)


def _secure(response: Response) -> Response:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    if request.endpoint != "static" or response.status_code >= 400:
        response.headers.setdefault("Cache-Control", "no-store")
    if request.is_secure:
        settings: Settings = current_app.extensions["kytecron.settings"]
        below = "; includeSubDomains" if settings.hsts_subdomains else ""
        response.headers["Strict-Transport-Security"] = f"max-age={YEAR}{below}"
    return response


class _Writes:
    """What the last try to write came to: anybody may ask, and each try costs a write."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.problem = ""
        self.until = 0.0


def _unwritable() -> str:
    last: _Writes = current_app.extensions["kytecron.writes"]
    with last.lock:
        if time.monotonic() >= last.until:
            settings = current_app.extensions["kytecron.settings"]
            last.problem = "; ".join(probes.unwritable(db.engine, settings))
            last.until = time.monotonic() + WRITES_SECONDS
        return last.problem


def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "alive"}


def readyz() -> tuple[dict[str, str], int]:
    """The database answers, its tables are those of this version, and what is written to takes writes."""
    try:
        problem = schema.behind(db.engine) or _unwritable()
    except Exception as error:
        if not isinstance(error, SQLAlchemyError) and not database.is_outage(error):
            raise
        log.warning("not ready: %s", database.cause(error))
        problem = "The database does not answer"
    if problem:
        return {"status": "unavailable", "reason": problem}, 503
    return {"status": "ready"}, 200

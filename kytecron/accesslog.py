"""A line in the log for each request, and an id that every line written meanwhile carries."""

from __future__ import annotations

import logging
import re
import secrets
import time

import structlog
from flask import Flask, Response, g, request

log = logging.getLogger("kytecron.access")

HEADER = "X-Request-Id"
ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
QUIET = {"healthz", "readyz", "static"}
"""Asked for every few seconds, or a dozen at a time: told at level DEBUG."""
LONGEST_PATH = 200
HIDDEN = re.compile(r"(/sign-in/).+")
"""A link for signing in is a password."""


def register(app: Flask, *, trust_header: bool) -> None:
    """Log the requests of `app`; a proxy's own id for one is taken if it is to be trusted."""

    def begin() -> None:
        given = request.headers.get(HEADER, "") if trust_header else ""
        g.request_id = given if ID.fullmatch(given) else secrets.token_hex(8)
        g.request_begun = time.monotonic()
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request=g.request_id)

    def end(response: Response) -> Response:
        if "request_id" not in g:  # what comes before all views has failed
            begin()
        response.headers[HEADER] = g.request_id
        level = logging.DEBUG if request.endpoint in QUIET and response.status_code < 400 else logging.INFO
        log.log(level, "%s %s %d", request.method, shown_path(), response.status_code, extra=_facts(response))
        return response

    app.before_request(begin)
    app.after_request(end)
    app.teardown_request(lambda _error: structlog.contextvars.clear_contextvars())


def shown_path() -> str:
    """The address without what may be secret: queries and links for signing in."""
    path = HIDDEN.sub(r"\1***", request.path)
    return path if len(path) <= LONGEST_PATH else f"{path[:LONGEST_PATH]}..."


def _facts(response: Response) -> dict[str, object]:
    facts: dict[str, object] = {
        "method": request.method,
        "path": shown_path(),
        "status": response.status_code,
        "duration_ms": round((time.monotonic() - g.request_begun) * 1000, 1),
        "ip": request.remote_addr,
    }
    views = request.view_args or {}
    names = {"job_id": "job", "execution_id": "execution"}
    return facts | {key: views[name] for name, key in names.items() if name in views}

"""Every error a person can meet, said once: as a page, or as a toast where htmx asked."""

from __future__ import annotations

import logging

from flask import Flask, Response, g, make_response, render_template
from flask_wtf.csrf import CSRFError
from sqlalchemy.exc import InterfaceError, OperationalError
from werkzeug.exceptions import HTTPException

from ..core.errors import (
    Busy,
    KytecronError,
    TryLater,
    Unavailable,
)
from ..requestdb import db
from ..store.db import CommitUnknown, cause, give_up, is_outage
from . import access
from .render import back, is_htmx, tell

log = logging.getLogger(__name__)

SAID_OF: dict[type[KytecronError], str] = {Unavailable: "Not available", Busy: "Too many at once"}
TITLES = {
    400: "The form is out of date",
    403: "Your role does not allow this",
    404: "Page not found",
    405: "This address takes no such request",
    409: "This cannot be done right now",
    413: "That is too large",
    422: "Some input is not valid",
    429: "Too many requests",
    500: "Something went wrong",
    503: "The database does not answer",
}
TEXTS = {
    400: "Go back, reload the page and send it again.",
    404: "The address is wrong, or what was here has been deleted.",
    405: "Follow a link or a button instead of typing the address.",
    500: "It is written to the log. What you were doing has not been saved; everything else goes on.",
    503: "Jobs that are running go on. Try again in a moment.",
}


def register(app: Flask) -> None:
    """Answer every error of the pages. Areas with answers of their own, such as the API, handle theirs."""
    app.register_error_handler(KytecronError, _on_purpose)
    app.register_error_handler(CSRFError, _out_of_date)
    app.register_error_handler(HTTPException, _http)
    app.register_error_handler(OperationalError, _database)
    app.register_error_handler(InterfaceError, _database)
    app.register_error_handler(CommitUnknown, _unknown_outcome)
    app.register_error_handler(Exception, _unexpected)


def _on_purpose(error: KytecronError) -> Response:
    if error.http_status == 500:
        log.error("%s: %s", error.code, error.message)
    response = show(error.http_status, error.message, SAID_OF.get(type(error), ""))
    if isinstance(error, TryLater):
        response.headers["Retry-After"] = str(error.retry_after)
    return response


def _out_of_date(error: CSRFError) -> Response:
    g.refused = error.description
    return show(400)


def _http(error: HTTPException) -> Response:
    if error.response is not None:  # a redirect, or an answer that a view aborted with
        return make_response(error.get_response())
    response = show(error.code or 500, error.description or "" if error.code == 413 else "")
    for name, value in error.get_headers():
        if name in ("Allow", "Retry-After"):
            response.headers[name] = value
    return response


def _unknown_outcome(error: CommitUnknown) -> Response:
    log.error("the database was lost while saving: %s", error)
    return show(503, "The database was lost while saving. Look whether it was done before doing it again.")


def _database(error: OperationalError | InterfaceError) -> Response:
    log.error("the database does not answer: %s", cause(error))
    return show(503)


def _unexpected(error: Exception) -> Response:
    if is_outage(error) and not isinstance(error, OSError):
        log.error("the database does not answer: %s", cause(error))
        return show(503)
    log.exception("the request failed")
    return show(500)


def show(status: int, text: str = "", title: str = "") -> Response:
    """The answer for `status`; `text` says what is the matter in this case."""
    give_up(db.session())
    text = text or TEXTS.get(status, "")
    title = title or TITLES.get(status, "This did not work")
    if is_htmx():
        # The page stays as it is. 400s say what to do; for the others the reason is what counts.
        return tell(Response(status=status), text or title, "error")
    bare = status >= 500 or access.identify() is None
    html = render_template("errors/error.html", code=status, title=title, text=text, bare=bare, back=back(""))
    return make_response(html, status)

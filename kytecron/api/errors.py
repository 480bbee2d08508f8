"""Every error of the API in one shape: `{"error": {"code", "message", "fields"}}`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from flask import Blueprint, Response, json, request
from sqlalchemy.exc import OperationalError
from werkzeug.exceptions import HTTPException
from werkzeug.routing.exceptions import RoutingException

from ..core.errors import (
    Conflict,
    Invalid,
    KytecronError,
    TryLater,
)
from ..requestdb import db
from ..store.db import CommitUnknown, cause, give_up, is_outage

log = logging.getLogger(__name__)

HTTP_ERRORS = {
    400: ("malformed", "The request is malformed"),
    401: ("unauthorized", "A valid API token is needed: Authorization: Bearer <token>"),
    404: ("not_found", "This address does not exist. /api/v1/docs lists those that do"),
    405: ("method_not_allowed", "This address does not take that method; see the Allow header"),
    413: ("too_large", "A request may carry at most 4 MB"),
    415: ("unsupported_media_type", "Send the body as JSON, with Content-Type: application/json"),
}
KEPT_HEADERS = ("Allow", "Retry-After", "WWW-Authenticate")


class Malformed(Exception):
    """The body is not the JSON that it should be; the message says where."""


class Unauthorized(Exception):
    """No token, or none that is valid; the text is the value of WWW-Authenticate."""


class UnsupportedMediaType(Exception):
    """The body is not declared as JSON, or is packed; the message says what to send."""


def register(blueprint: Blueprint, prefix: str) -> None:
    """Answer errors of the API's views, and of addresses under `prefix` that are none."""
    blueprint.register_error_handler(Exception, answer)
    blueprint.before_app_request(lambda: _routing_error(prefix))


def _routing_error(prefix: str) -> Response | None:
    """Flask would let the pages answer these: an address that no route matches belongs to no blueprint."""
    error = request.routing_exception
    inside = request.path == prefix or request.path.startswith(f"{prefix}/")
    if not inside or error is None or isinstance(error, RoutingException):
        return None
    return answer(error)


def answer(error: Exception) -> Response:
    """The answer to `error`. What was not raised on purpose is logged, and its text stays here."""
    give_up(db.session())
    match error:
        case Invalid():
            return _on_purpose(error, fields=error.fields)
        case TryLater():
            return _on_purpose(error, headers={"Retry-After": str(error.retry_after)})
        case Conflict():
            return _on_purpose(error, details=error.details)
        case KytecronError():
            return _on_purpose(error)
        case Malformed():
            return shape(400, "malformed", str(error))
        case Unauthorized():
            return shape(401, *HTTP_ERRORS[401], headers={"WWW-Authenticate": str(error)})
        case UnsupportedMediaType():
            return shape(415, HTTP_ERRORS[415][0], str(error))
        case HTTPException():
            return _http(error)
        case CommitUnknown():
            log.error("the database was lost while saving: %s", error)
            return shape(
                503, "unknown_outcome", "The database was lost while saving: look whether it was done"
            )
        case _ if _database_is_away(error):
            log.error("the database does not answer: %s", cause(error))
            return shape(503, "unavailable", "The database does not answer. Try again in a moment")
    log.error("the request failed", exc_info=error)
    return shape(500, "internal", "Something went wrong on the server; it is written to its log")


def _on_purpose(error: KytecronError, **more: Mapping[str, Any]) -> Response:
    if error.http_status == 500:
        log.error("%s: %s", error.code, error.message)
    return shape(error.http_status, error.code, error.message, **more)


def _http(error: HTTPException) -> Response:
    status = error.code or 500
    code, message = HTTP_ERRORS.get(status, ("error", error.description or error.name))
    headers = {name: value for name, value in error.get_headers() if name in KEPT_HEADERS}
    return shape(status, code, message, headers=headers)


def _database_is_away(error: Exception) -> bool:
    # A locked SQLite file and a lock wait that took too long are passing, too.
    return (is_outage(error) and not isinstance(error, OSError)) or isinstance(error, OperationalError)


def shape(
    status: int,
    code: str,
    message: str,
    *,
    fields: Mapping[str, str] | None = None,
    details: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An error as JSON. `details` is there only where there are any: both sides of a stale edit."""
    error: dict[str, Any] = {"code": code, "message": message, "fields": dict(fields or {})}
    if details:
        error["details"] = dict(details)
    return Response(
        json.dumps({"error": error}), status, headers=dict(headers or {}), mimetype="application/json"
    )

"""The errors that kytecron raises on purpose. Each front (pages, API, command line) maps them once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .untrusted import cut


class KytecronError(Exception):
    """Base of every error below. `code` is stable and machine-readable, `str(error)` is for people.

    `http_status` is what pages and API answer with.
    """

    code = "error"
    http_status = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class NotFound(KytecronError):
    """The named thing does not exist."""

    code = "not_found"
    http_status = 404


class Invalid(KytecronError):
    """Input that cannot be accepted. `fields` maps each field's name to what is wrong and what to write.

    Of very many wrong fields the first are told.
    """

    code = "invalid"
    http_status = 422

    def __init__(self, fields: Mapping[str, str]) -> None:
        self.fields = cut(fields)
        super().__init__("; ".join(self.fields.values()))


class Conflict(KytecronError):
    """The request is well-formed but the present state forbids it (a disabled job, a stale edit).

    `details` is for programs: of a stale edit, both sides and who changed what (plain JSON values).
    """

    code = "conflict"
    http_status = 409

    def __init__(self, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.details = dict(details or {})


class Stale(Conflict):
    """What the caller believes the present state to be (`If-Match`) is not what it is; `details` has both sides."""

    code = "precondition_failed"
    http_status = 412


class TryLater(KytecronError):
    """Base of what passes by itself; `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UnderWay(TryLater, Conflict):
    """The same request is being carried out just now."""

    code = "in_progress"


class Unreadable(KytecronError):
    """Something stored here cannot be read back: a damaged row, or one that no longer fits its key."""

    code = "unreadable"


class Forbidden(KytecronError):
    """The actor's role does not allow this."""

    code = "forbidden"
    http_status = 403


class Unavailable(KytecronError):
    """Nothing can be done now, whatever is asked: the database's tables are not those of this version."""

    code = "unavailable"
    http_status = 503


class TooManyRequests(TryLater):
    """A throttle said no."""

    code = "too_many_requests"
    http_status = 429


class Busy(TryLater):
    """As many of these are under way as may be at once."""

    code = "busy"
    http_status = 503

"""The headers that say under which condition a request is to be carried out: If-Match and Idempotency-Key."""

from __future__ import annotations

import re

from flask import Response, request

from ..core.errors import Stale
from ..services.idempotency import FIELD, Answer
from .errors import Malformed

ANYTHING = "*"
MAX_KEY = 255
REPLAYED = "Idempotent-Replayed"
_TAG = r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"'
_TAGS = re.compile(rf"[ \t,]*{_TAG}(?:[ \t]*,[ \t,]*{_TAG})*[ \t,]*")
_ONE_TAG = re.compile(_TAG)
KEY = rf"[\x21-\x7e]{{1,{MAX_KEY}}}"
_KEPT_HEADERS = ("Content-Type", "Location", "ETag")


def wanted_tags() -> frozenset[str] | None:
    """The states of which If-Match wants one; None where it says nothing, or wants any (`*`).

    A weak tag never matches, and an empty list names no state at all (RFC 9110, 13.1.1). Raises Malformed.
    """
    header = request.headers.get("If-Match")
    if header is None or header.strip() == ANYTHING:
        return None
    if header.strip(" \t,") and not _TAGS.fullmatch(header):
        raise Malformed('If-Match must be *, or the ETag of an earlier answer in its quotes, such as "3-1"')
    return frozenset(tag for weak, tag in _ONE_TAG.findall(header) if not weak)


def refuse_tags_without_state() -> None:
    """For an address whose answers carry no ETag. Raises Stale unless If-Match is absent or `*`, and Malformed."""
    if wanted_tags() is not None:
        raise Stale("Answers of this address carry no ETag that If-Match could name: leave the header out")


def refuse_other_conditions() -> None:
    """Raise Malformed for a change under a condition that nobody here looks at."""
    for name in ("If-None-Match", "If-Unmodified-Since"):
        if name in request.headers:
            raise Malformed(f"{name} is not read here: write the ETag of an earlier answer into If-Match")


def key() -> str | None:
    """The request's Idempotency-Key, with or without the quotes of the draft standard. Raises Malformed."""
    header = request.headers.get(FIELD)
    if header is None:
        return None
    text = header.strip()
    if len(text) > 2 and text[0] == text[-1] == '"':
        text = text[1:-1]
    if not re.fullmatch(KEY, text):
        raise Malformed(
            f"{FIELD} must be 1 to {MAX_KEY} printable ASCII characters without spaces, such as a UUID"
        )
    return text


def packed(response: Response) -> Answer:
    """A response as it is kept under a key."""
    headers = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
    return Answer(response.status_code, response.get_data(as_text=True), headers)


def unpacked(answer: Answer, replayed: bool) -> Response:
    """The response that was kept."""
    response = Response(answer.body, answer.status, dict(answer.headers))
    if replayed:
        response.headers[REPLAYED] = "true"
    return response

"""How much a request to the pages may carry. It is refused by its size before anything of it is read."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any, TypeVar

from flask import Flask, Request, current_app, request
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.formparser import FormDataParser

from . import access

SMALL = 64 * 1024
"""What anybody may send, and what most forms need."""
LONG = 1024 * 1024
"""A secret, or parameters: 64 KB, of which a browser may send each character as twelve; and room to be told so."""
CODE = 4 * 1024 * 1024
"""The same of a megabyte of code, and the rest of its job."""
MAX_FIELDS = 1000
"""In a form: the one with most has some sixty, and a list of parents or weekdays."""

View = TypeVar("View", bound=Callable[..., object])


def takes(size: int) -> Callable[[View], View]:
    """Declare that a view takes so many bytes of people who are signed in. Inside `needs`, which reads nothing."""

    def declare(view: View) -> View:
        view.takes = size  # type: ignore[attr-defined]
        return view

    return declare


def register(app: Flask) -> None:
    """Before whatever reads a request, such as the check of CSRF tokens."""
    app.request_class = _Request
    app.before_request(_bound)


def _bound() -> None:
    if request.blueprint == "api":
        return  # which reads nothing before it knows its caller
    view = current_app.view_functions.get(request.endpoint or "")
    size: int = getattr(view, "takes", SMALL)
    # Who it is takes a look into the database: only for what is larger than anybody may send.
    if size > SMALL and (request.content_length or size) > SMALL and access.identify() is None:
        size = SMALL
    request.max_content_length = size
    if (request.content_length or 0) > size:
        raise RequestEntityTooLarge(f"This request may carry at most {_in_words(size)}.")


def _in_words(size: int) -> str:
    return f"{size // 2**20} MB" if size >= 2**20 else f"{size // 2**10} KB"


class _Fields(FormDataParser):
    """werkzeug bounds the number of fields for uploads only."""

    def _parse_urlencoded(self, stream: Any, mimetype: Any, content_length: Any, options: Any) -> Any:
        # A bounded stream of unknown length says only when it is asked again that there was more.
        text = stream.read() + stream.read(1)
        if text.count(b"&") >= MAX_FIELDS:
            raise RequestEntityTooLarge(f"A form may have at most {MAX_FIELDS} fields.")
        return super()._parse_urlencoded(BytesIO(text), mimetype, content_length, options)


class _Request(Request):
    form_data_parser_class = _Fields

"""How a view answers: a page or the part of it that htmx asked for, and what follows a change."""

from __future__ import annotations

import json
from typing import Any

from flask import Response, flash, make_response, redirect, render_template, request, session
from werkzeug.wrappers import Response as AnyResponse

from ..core import addresses

REFRESH = "kytecron:refresh"
"""Regions listen to this event and fetch themselves again: what a change touched is shown at once."""
MAX_TOAST = 300


def is_htmx() -> bool:
    """Whether htmx sent this request."""
    return request.headers.get("HX-Request") == "true"


def wants_part() -> bool:
    """Whether only a part of the page is wanted."""
    return is_htmx() and request.headers.get("HX-Request-Type", "partial") == "partial"


def page(template: str, region: str | None = None, *, status: int = 200, **context: Any) -> Response:
    """The page `template`, or its `region` (a partial that the page includes) alone where htmx asks for a part."""
    chosen = region if region and wants_part() else template
    response = make_response(render_template(chosen, **context), status)
    if region:
        response.vary.update(("HX-Request", "HX-Request-Type"))
    return response


def done(message: str, to: str, *, tone: str = "success", leave: bool = False) -> AnyResponse:
    """After a change: tell, and show what it changed.

    htmx stays on its page, whose regions refresh themselves, unless `leave` says to go to `to`; a plain form
    always goes there.
    """
    if is_htmx() and not leave:
        return tell(Response(status=204), message, tone, refresh=True)
    if (tone, message) not in session.get("_flashes", []):  # a form that came twice is answered alike
        flash(message, tone)
    return go(to)


def go(to: str) -> AnyResponse:
    """Send the browser to the page at `to`, whoever asked."""
    if is_htmx():
        return Response(status=204, headers={"HX-Redirect": to})
    return redirect(to, 303)


def tell(response: Response, message: str, tone: str, *, refresh: bool = False) -> Response:
    """Add a toast to an answer to htmx."""
    text = message if len(message) <= MAX_TOAST else message[: MAX_TOAST - 1] + "…"
    events: dict[str, Any] = {"kytecron:toast": {"message": text, "tone": tone}}
    if refresh:
        events[REFRESH] = {}
    response.headers["HX-Trigger"] = json.dumps(events)  # ASCII, as header values must be
    return response


def back(default: str) -> str:
    """The page of this site that the form was on, else `default`."""
    came_from = addresses.read(request.referrer)
    if came_from is None or came_from.netloc != request.host:
        return default
    return addresses.path_on_this_site(came_from.local) or default

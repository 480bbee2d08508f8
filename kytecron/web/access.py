"""Who asks, and what they may do. Every view says the role it needs; one that says nothing is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from flask import Blueprint, Response, current_app, g, redirect, request, session, url_for
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response as AnyResponse

from ..config import Settings
from ..core import addresses
from ..core.choices import PUBLIC, Needed, Role, Source
from ..core.errors import Forbidden, Invalid
from ..requestdb import db
from ..services import accounts, throttle
from ..services.audit import Actor
from ..services.seats import Seat, Seats
from ..store.models import CronUser
from .render import is_htmx

TOKEN = "token"
"""Where the signed cookie keeps the session's token; the table of sessions keeps its hash."""

View = TypeVar("View", bound=Callable[..., object])


def needs(role: Needed) -> Callable[[View], View]:
    """Declare the role that a view needs, or PUBLIC."""

    def declare(view: View) -> View:
        view.needs = role  # type: ignore[attr-defined]
        return view

    return declare


def area(name: str, import_name: str, url_prefix: str | None = None) -> Blueprint:
    """A blueprint of pages behind the gate."""
    blueprint = Blueprint(name, import_name, url_prefix=url_prefix)
    blueprint.before_request(_gate)
    return blueprint


def _gate() -> AnyResponse | None:
    _refuse_nul()
    view = current_app.view_functions[request.endpoint or ""]
    needed: Needed | None = getattr(view, "needs", None)
    identify()
    if needed is None:
        raise Forbidden("This page does not say who may see it")
    if needed == PUBLIC:
        return None
    if g.user is None:
        return _to_sign_in()
    if not accounts.allows(g.user.role, needed):
        raise Forbidden(f"This needs the role {needed}; yours is {g.user.role}.")
    return None


def _refuse_nul() -> None:
    """No browser sends one; some databases cannot store it, and SQLite's LIKE ends at it."""
    for name, values in (*request.args.lists(), *request.form.lists()):
        if any("\0" in value for value in values):
            raise Invalid({name: f"{name} holds a NUL character, which cannot be stored"})


def identify() -> CronUser | None:
    """Who is signed in, if anybody: looked up once for a request."""
    if "user" not in g:
        token = session.get(TOKEN)
        g.user = accounts.session_user(database(), token, settings()) if token else None
    person: CronUser | None = g.user
    return person


def _to_sign_in() -> AnyResponse:
    shown = request.headers.get("HX-Current-URL") if is_htmx() else request.full_path
    # What was POSTed is gone after signing in, so the form's own page is where to go on.
    if request.method not in ("GET", "HEAD") and not is_htmx():
        shown = request.referrer
    found = addresses.read(shown)
    wanted = addresses.path_on_this_site(found.local) if found else None
    to = url_for("auth.sign_in", next=None if wanted == "/" else wanted)
    if is_htmx():
        return Response(status=401, headers={"HX-Redirect": to})
    return redirect(to, 303)


def user() -> CronUser:
    """Who is signed in. Only for views that need a role."""
    person: CronUser = g.user
    return person


def may(role: str) -> bool:
    """Whether whoever asks has at least this role; templates use it to offer only what will work."""
    person: CronUser | None = g.get("user")
    return person is not None and accounts.allows(person.role, Role(role))


def actor() -> Actor:
    """Who asks, as the audit log writes it."""
    return Actor(user().username, Source.WEB, address())


def throttle_triggers() -> None:
    """Count a run that whoever is signed in asks for. Raises TooManyRequests."""
    throttle.allow_trigger(database(), f"user:{user().id}")


def seat() -> Seat:
    """A seat for an answer that waits or streams, to be left when it has ended. Raises Busy."""
    seats: Seats = current_app.extensions["kytecron.seats"]
    return seats.take(f"user:{user().id}")


def address() -> str:
    """The address the request came from (through `trusted_proxies`)."""
    return request.remote_addr or ""


def settings() -> Settings:
    """The settings of this app."""
    value: Settings = current_app.extensions["kytecron.settings"]
    return value


def database() -> Session:
    """The request's database session."""
    return db.session()

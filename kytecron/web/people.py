"""Users and API tokens, for administrators."""

from __future__ import annotations

from typing import Any

from flask import render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from ..core.choices import Role
from ..core.errors import Invalid
from ..services import accounts
from ..store import db
from ..views import people
from . import access
from .access import needs
from .render import done

area = access.area("people", __name__)


@area.get("/users")
@needs(Role.ADMIN)
def index() -> str:
    """Who may sign in, and which programs may."""
    return _page()


def _page(**more: Any) -> str:
    session = access.database()
    context: dict[str, Any] = {
        "users": people.users(accounts.list_users(session)),
        "tokens": people.tokens(accounts.list_tokens(session), db.now(session)),
        "roles": accounts.ROLES,
        "user_errors": {},
        "token_errors": {},
        "typed": {},
    }
    return render_template("people/page.html", **context | more)


@area.post("/users")
@needs(Role.ADMIN)
def create() -> AnyResponse | tuple[str, int]:
    """A new user: with a password, or with a link that lets them choose one."""
    typed = {name: request.form.get(name, "").strip() for name in ("username", "role")}
    password = request.form.get("password", "")
    session = access.database()
    try:
        user = accounts.create_user(
            session, typed["username"], password or None, typed["role"], access.actor()
        )
    except Invalid as invalid:
        return _page(user_errors=invalid.fields, typed=typed), 422
    if password:
        return done(f"{user.username} may sign in now.", url_for("people.index"), leave=True)
    return _link_for(user.username), 200


@area.post("/users/<int:user_id>/link")
@needs(Role.ADMIN)
def link(user_id: int) -> str:
    """A one-time link for somebody without a password, or throttled."""
    return _link_for(accounts.get_user(access.database(), user_id).username)


def _link_for(username: str) -> str:
    token = accounts.create_sign_in_link(access.database(), access.actor(), username)
    minutes = int(accounts.LINK_LIFETIME.total_seconds() // 60)
    link = accounts.sign_in_address(token, access.settings(), request.script_root)
    return _page(link=link, link_user=username, minutes=minutes)


@area.post("/users/<int:user_id>/role")
@needs(Role.ADMIN)
def set_role(user_id: int) -> AnyResponse:
    """Give a user another role."""
    user = accounts.set_role(access.database(), user_id, request.form.get("role", ""), access.actor())
    return done(f"{user.username} is {user.role} now.", url_for("people.index"), leave=True)


@area.post("/users/<int:user_id>/enable")
@needs(Role.ADMIN)
def enable(user_id: int) -> AnyResponse:
    """Let a user in again."""
    user = accounts.set_enabled(access.database(), user_id, True, access.actor())
    return done(f"{user.username} may sign in again.", url_for("people.index"), leave=True)


@area.post("/users/<int:user_id>/disable")
@needs(Role.ADMIN)
def disable(user_id: int) -> AnyResponse:
    """Lock a user out."""
    user = accounts.set_enabled(access.database(), user_id, False, access.actor())
    return done(
        f"{user.username} is disabled; sessions and tokens have ended.", url_for("people.index"), leave=True
    )


@area.post("/users/<int:user_id>/end-sessions")
@needs(Role.ADMIN)
def end_sessions(user_id: int) -> AnyResponse:
    """Sign a user out everywhere."""
    session = access.database()
    ended = accounts.end_sessions(session, user_id, access.actor())
    name = accounts.get_user(session, user_id).username
    count = "1 session has" if ended == 1 else f"{ended} sessions have"
    return done(f"{name} is signed out: {count} ended.", url_for("people.index"), leave=True)


@area.post("/users/<int:user_id>/delete")
@needs(Role.ADMIN)
def delete(user_id: int) -> AnyResponse:
    """Remove a user."""
    accounts.delete_user(access.database(), user_id, access.actor())
    return done("The user is removed.", url_for("people.index"), leave=True)


@area.post("/tokens")
@needs(Role.ADMIN)
def create_token() -> tuple[str, int]:
    """A new API token, shown this once."""
    typed = {name: request.form.get(name, "").strip() for name in ("name", "token_role", "expires_days")}
    try:
        days = _days(typed["expires_days"])
        token, plain = accounts.create_token(
            access.database(),
            typed["name"],
            typed["token_role"],
            days,
            access.actor(),
            creator_role=access.user().role,
        )
    except Invalid as invalid:
        return _page(token_errors=invalid.fields, typed=typed), 422
    return _page(token=plain, token_name=token.name), 200


def _days(text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise Invalid({"expires_days": "expires_days must be a whole number of days, or nothing for no end"})
    return int(text)


@area.post("/tokens/<int:token_id>/revoke")
@needs(Role.ADMIN)
def revoke_token(token_id: int) -> AnyResponse:
    """End a token."""
    token = accounts.revoke_token(access.database(), token_id, access.actor())
    return done(f"The token {token.name} is revoked.", url_for("people.index"), leave=True)

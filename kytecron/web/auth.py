"""Signing in and out, one-time links, and one's own account."""

from __future__ import annotations

from flask import g, redirect, render_template, request, session, url_for
from werkzeug.wrappers import Response

from ..core.addresses import path_on_this_site
from ..core.choices import PUBLIC, Role
from ..core.errors import Forbidden, Invalid, TooManyRequests
from ..services import accounts
from ..views import people
from . import access
from .access import TOKEN, needs
from .render import done, go

area = access.area("auth", __name__)


@area.get("/sign-in")
@needs(PUBLIC)
def sign_in() -> Response | str:
    """The form."""
    if g.user is not None:
        return redirect(_wanted(), 303)
    return render_template("auth/sign_in.html", wanted=path_on_this_site(request.args.get("next")))


@area.post("/sign-in")
@needs(PUBLIC)
def sign_in_send() -> Response | tuple[str, int] | tuple[str, int, dict[str, str]]:
    """Check name and password. A refusal keeps the name and says nothing about which of the two was wrong."""
    name = request.form.get("username", "").strip()
    try:
        token = accounts.sign_in(
            access.database(),
            name,
            request.form.get("password", ""),
            access.address(),
            request.user_agent.string,
            access.settings(),
        )
    except Invalid as invalid:
        return _refused(name, invalid.message), 422
    except TooManyRequests as error:
        return _refused(name, error.message), 429, {"Retry-After": str(error.retry_after)}
    _remember(token)
    return redirect(_wanted(), 303)


def _refused(name: str, message: str) -> str:
    wanted = path_on_this_site(request.form.get("next"))
    shown = name if len(name) <= accounts.MAX_USERNAME else ""
    return render_template("auth/sign_in.html", wanted=wanted, username=shown, error=message)


def _wanted() -> str:
    return path_on_this_site(request.values.get("next")) or url_for("home.index")


def _remember(token: str) -> None:
    # A new cookie: nothing that was set before signing in, by whoever, goes on being valid.
    session.clear()
    session[TOKEN] = token


@area.get("/sign-in/<token>")
@needs(PUBLIC)
def link(token: str) -> str:
    """A one-time link. Looking at it does not spend it: mail scanners and chat previews look too."""
    return render_template("auth/link.html", token=token)


@area.post("/sign-in/<token>")
@needs(PUBLIC)
def link_use(token: str) -> Response | tuple[str, int]:
    """Spend the link, then ask for a password where there is none."""
    try:
        opened = accounts.use_sign_in_link(
            access.database(), token, access.address(), request.user_agent.string, access.settings()
        )
    except Forbidden as error:
        return render_template("auth/link.html", token=None, error=error.message), 403
    _remember(opened)
    who = accounts.session_user(access.database(), opened, access.settings())
    return redirect(url_for("home.index" if who and who.password_hash else "auth.account"), 303)


@area.post("/sign-out")
@needs(PUBLIC)
def sign_out() -> Response:
    """End the session, here and in the database."""
    if token := session.get(TOKEN):
        accounts.sign_out(access.database(), token, access.address())
    session.clear()
    return go(url_for("auth.sign_in"))


@area.get("/account")
@needs(Role.VIEWER)
def account() -> str:
    """One's own password and sessions."""
    return _account()


@area.post("/account/password")
@needs(Role.VIEWER)
def change_password() -> Response | tuple[str, int]:
    """Set one's own password; every other session of this account ends."""
    new = request.form.get("password", "")
    try:
        if new != request.form.get("repeat", ""):
            raise Invalid({"repeat": "The two passwords differ"})
        accounts.change_password(
            access.database(),
            access.user().id,
            request.form.get("current", ""),
            new,
            access.actor(),
            keep=session[TOKEN],
        )
    except Invalid as invalid:
        return _account(invalid.fields), 422
    return done("Your password is set. Other sessions of yours have ended.", url_for("home.index"))


@area.post("/account/sessions/<token_hash>/end")
@needs(Role.VIEWER)
def end_session(token_hash: str) -> Response:
    """End another session of one's own."""
    accounts.end_session(access.database(), access.user().id, token_hash, access.actor())
    return done("The session has ended.", url_for("auth.account"), leave=True)


def _account(errors: dict[str, str] | None = None) -> str:
    return render_template(
        "auth/account.html",
        person=people.user(access.user()),
        errors=errors or {},
        sessions=people.sessions(
            accounts.list_sessions(access.database(), access.user().id), accounts.session_id(session[TOKEN])
        ),
        shortest=accounts.MIN_PASSWORD,
    )

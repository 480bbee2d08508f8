"""Who may sign in, where they are signed in, and which programs may use the API."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from ..store.models import CronSession, CronToken, CronUser
from .programs import names

BROWSERS = {"Edg": "Edge", "OPR": "Opera", "Firefox": "Firefox", "Chrome": "Chrome", "Safari": "Safari"}
"""By what their user agent says; the first that is found counts, as most claim to be others too."""
SYSTEMS = ["iPhone", "iPad", "Android", "Windows", "Macintosh", "Linux"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UserView:
    """Somebody who may sign in, unless they are disabled."""

    id: int
    username: str
    role: str
    enabled: bool
    has_password: bool
    created_at: datetime
    last_login_at: datetime | None

    def for_programs(self) -> dict[str, Any]:
        """Return what programs are told, by the names that the JSON API has for it."""
        return {name: getattr(self, name) for name in USER}

    @property
    def state(self) -> Literal["enabled", "disabled", "no password yet"]:
        """Whether they may sign in, and whether by a link alone."""
        if not self.enabled:
            return "disabled"
        return "enabled" if self.has_password else "no password yet"


USER = names(UserView)


def users(rows: Iterable[CronUser]) -> list[UserView]:
    """Return what is told of users, in their order."""
    return [user(row) for row in rows]


def user(row: CronUser) -> UserView:
    """Return what is told of a user."""
    return UserView(
        id=row.id,
        username=row.username,
        role=row.role,
        enabled=row.enabled,
        has_password=bool(row.password_hash),
        created_at=row.created_at,
        last_login_at=row.last_login_at,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenView:
    """An API token, without the token itself."""

    id: int
    name: str
    role: str
    state: Literal["valid", "expired", "revoked"]
    created_at: datetime
    created_by: str | None
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None

    def for_programs(self) -> dict[str, Any]:
        """Return what programs are told, by the names that the JSON API has for it."""
        return {name: getattr(self, name) for name in TOKEN}


TOKEN = names(TokenView)


def tokens(rows: Iterable[CronToken], now: datetime) -> list[TokenView]:
    """Return what is told of tokens, in their order."""
    return [token(row, now) for row in rows]


def token(row: CronToken, now: datetime) -> TokenView:
    """Return what is told of a token."""
    values = {name: getattr(row, name) for name in TOKEN if name != "state"}
    return TokenView(state=_state(row, now), **values)


def _state(row: CronToken, now: datetime) -> Literal["valid", "expired", "revoked"]:
    if row.revoked_at is not None:
        return "revoked"
    # As `accounts.find_token` lets one in: until it ends, and not at that instant.
    return "valid" if row.expires_at is None or row.expires_at > now else "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionView:
    """A browser in which somebody is signed in."""

    token_hash: str
    browser: str
    """As a person would say it: `Firefox on Linux`."""
    user_agent: str
    ip: str
    created_at: datetime
    last_seen_at: datetime
    this_one: bool
    """It is the one that asks."""


def sessions(rows: Iterable[CronSession], this_one: str) -> list[SessionView]:
    """Return what is told of somebody's sessions, in their order; `this_one` names the one that asks."""
    return [
        SessionView(
            token_hash=row.token_hash,
            browser=browser(row.user_agent),
            user_agent=row.user_agent,
            ip=row.ip,
            created_at=row.created_at,
            last_seen_at=row.last_seen_at,
            this_one=row.token_hash == this_one,
        )
        for row in rows
    ]


def browser(user_agent: str) -> str:
    """Return a user agent as a person would say it: `Firefox on Linux`; one that is not a known browser's as it is."""
    name = next((said for mark, said in BROWSERS.items() if f"{mark}/" in user_agent), None)
    system = next((one for one in SYSTEMS if one in user_agent), None)
    if name is None:
        return user_agent or "Unknown browser"
    return f"{name} on {system}" if system else name

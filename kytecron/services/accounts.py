"""Who may sign in, with what, and what they may do: users, sessions, API tokens, sign-in links.

The tables hold hashes only: scrypt of passwords, SHA-256 of session tokens, API tokens and links. Those are
256 random bits, which nobody guesses, so that a slow hash would add nothing but cost to every request.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from werkzeug.security import check_password_hash, generate_password_hash

from ..config import Settings
from ..core.choices import Role, Source, TokenKind
from ..core.errors import Conflict, Forbidden, Invalid, NotFound
from ..core.untrusted import name_problem
from ..store import db
from ..store.db import hits, transactional
from ..store.models import CronSession, CronToken, CronUser
from . import audit, passwords, throttle
from .audit import Actor

ROLES = tuple(Role)

MAX_USERNAME = 100
USERNAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._@+-]{{0,{MAX_USERNAME - 1}}}")
MIN_PASSWORD = passwords.MIN_LENGTH
MAX_PASSWORD = passwords.MAX_LENGTH
PASSWORD_METHOD = "scrypt:32768:8:1"

SIGN_IN_WINDOW_SECONDS = 900
FAILURES_PER_NAME = 10
FAILURES_PER_ADDRESS = 30
"""More than for a name: an office, or a proxy that was not declared, is one address."""

SEEN_EVERY = timedelta(minutes=1)
"""Reading is not writing: when a session or a token was last used is noted at most this often."""
LINK_LIFETIME = timedelta(minutes=15)
FIRST_LINK_LIFETIME = timedelta(hours=24)
MAX_TOKEN_DAYS = 3650


def allows(role: str, needed: Role) -> bool:
    """Whether somebody with `role` may do what needs `needed`. An unknown role may do nothing."""
    return role in ROLES and ROLES.index(Role(role)) >= ROLES.index(needed)


# -- users ---------------------------------------------------------------------------------------------------


def list_users(session: Session) -> Sequence[CronUser]:
    """All users by name."""
    return session.scalars(sa.select(CronUser).order_by(CronUser.username)).all()


def get_user(session: Session, user_id: int) -> CronUser:
    """Raises NotFound."""
    user = session.get(CronUser, user_id)
    if user is None:
        raise NotFound(f"User {user_id} does not exist")
    return user


def find_user(session: Session, username: str) -> CronUser:
    """Raises NotFound."""
    user = _by_name(session, username)
    if user is None:
        raise NotFound(f"User {username[:100]!r} does not exist")
    return user


def create_user(session: Session, username: str, password: str | None, role: str, actor: Actor) -> CronUser:
    """A new, enabled user. Without a password they can sign in by link only, until they set one.

    Raises Invalid naming `username`, `password` or `role`.
    """
    if wrong := user_problems(username, password, role):
        raise Invalid(wrong)
    # Hashing takes a tenth of a second: never while a transaction holds locks.
    return _insert_user(session, username, None if password is None else _hash(password), role, actor)


def user_problems(username: str, password: str | None, role: str) -> dict[str, str]:
    """What is wrong with a new user, by field."""
    wrong: dict[str, str] = {}
    if not USERNAME.fullmatch(username):
        wrong["username"] = (
            "username must be 1 to 100 characters: letters, digits and . _ @ + - , beginning with a letter or digit"
        )
    if password is not None and (problem := passwords.problem(password, username)):
        wrong["password"] = problem
    if role not in ROLES:
        wrong["role"] = _role_problem()
    return wrong


@transactional
def _insert_user(
    session: Session, username: str, password_hash: str | None, role: str, actor: Actor
) -> CronUser:
    user = CronUser(
        username=username, password_hash=password_hash, role=role, enabled=True, created_at=db.now(session)
    )
    try:
        with session.begin_nested():
            session.add(user)
    except IntegrityError:
        raise Invalid({"username": f"The user name {username!r} is taken"}) from None
    audit.record(session, actor, "create", ("user", user.id), name=username, after={"role": role})
    return user


@transactional
def set_role(session: Session, user_id: int, role: str, actor: Actor) -> CronUser:
    """Give a user another role: their sessions end, and tokens of theirs that reach above it are revoked.

    Raises NotFound, Invalid, and Conflict for the last enabled administrator.
    """
    if role not in ROLES:
        raise Invalid({"role": _role_problem()})
    user = _locked(session, user_id)
    if role == user.role:
        return user
    _keep_an_admin(session, user)
    before = {"role": user.role}
    user.role = role
    audit.record(
        session, actor, "set_role", ("user", user.id), name=user.username, before=before, after={"role": role}
    )
    _end_sessions(session, user.id)
    _revoke_tokens_of(session, user, actor, left_with=role)
    return user


@transactional
def set_enabled(session: Session, user_id: int, enabled: bool, actor: Actor) -> CronUser:
    """Let a user in, or lock them out: their sessions end, their links and API tokens are revoked for good.

    Raises NotFound, and Conflict for the last enabled administrator.
    """
    user = _locked(session, user_id)
    if user.enabled == enabled:
        return user
    if not enabled:
        _keep_an_admin(session, user)
    audit.record(
        session,
        actor,
        "enable" if enabled else "disable",
        ("user", user.id),
        name=user.username,
        before={"enabled": user.enabled},
        after={"enabled": enabled},
    )
    user.enabled = enabled
    if not enabled:
        _end_sessions(session, user.id)
        _revoke_tokens_of(session, user, actor, left_with=None)
    return user


@transactional
def delete_user(session: Session, user_id: int, actor: Actor) -> None:
    """Remove a user, their sessions, links and API tokens. What they did stays in the audit log.

    Raises NotFound, and Conflict for the last enabled administrator.
    """
    user = _locked(session, user_id)
    _keep_an_admin(session, user)
    before = {"role": user.role, "enabled": user.enabled}
    audit.record(session, actor, "delete", ("user", user.id), name=user.username, before=before)
    _end_sessions(session, user.id)
    _revoke_tokens_of(session, user, actor, left_with=None)
    session.delete(user)


def set_password(
    session: Session, user_id: int, password: str, actor: Actor, *, keep: str | None = None
) -> None:
    """Set anybody's password. Their sessions end, save the one whose token is `keep`; open links are revoked.

    Raises NotFound and Invalid.
    """
    if problem := passwords.problem(password, get_user(session, user_id).username):
        raise Invalid({"password": problem})
    _store_password(session, user_id, _hash(password), actor, keep)


def change_password(
    session: Session, user_id: int, current: str, password: str, actor: Actor, *, keep: str
) -> None:
    """Set one's own password, knowing the present one (anything will do while there is none).

    Wrong guesses count like failed sign-ins: a stolen session must not be worth a password.

    Raises NotFound, TooManyRequests, and Invalid naming `current` or `password`.
    """
    user = get_user(session, user_id)
    known_hash = user.password_hash
    if problem := passwords.problem(password, user.username):
        raise Invalid({"password": problem})
    if known_hash is not None:
        tries = _count_tries(session, [(_name_key(user.username), FAILURES_PER_NAME)])
        if not _matches(known_hash, current):
            raise Invalid({"current": "The current password is wrong"})
        _forget_tries(session, tries)
    _store_password(session, user_id, _hash(password), actor, keep)


@transactional
def _store_password(
    session: Session, user_id: int, password_hash: str, actor: Actor, keep: str | None
) -> None:
    user = _locked(session, user_id)
    user.password_hash = password_hash
    _end_sessions(session, user.id, keep=keep)
    _revoke_links_for(session, user)
    audit.record(session, actor, "set_password", ("user", user.id), name=user.username)


def _by_name(session: Session, username: str) -> CronUser | None:
    # MariaDB ignores trailing spaces when it compares, so only names that could exist are looked for.
    if not USERNAME.fullmatch(username):
        return None
    return session.scalar(sa.select(CronUser).where(CronUser.username == username))


def _locked(session: Session, user_id: int) -> CronUser:
    """The user, with all users locked in one order: accounts are few, and the last-administrator rule spans them."""
    query = (
        sa.select(CronUser).order_by(CronUser.id).with_for_update().execution_options(populate_existing=True)
    )
    for user in session.scalars(query).all():
        if user.id == user_id:
            return user
    raise NotFound(f"User {user_id} does not exist")


def _keep_an_admin(session: Session, leaving: CronUser) -> None:
    """Raises Conflict if no enabled administrator would be left. The caller holds the lock of `_locked`."""
    if leaving.role != Role.ADMIN or not leaving.enabled:
        return
    others = sa.select(CronUser.id).where(
        CronUser.role == Role.ADMIN, CronUser.enabled.is_(True), CronUser.id != leaving.id
    )
    if session.scalar(others.limit(1)) is None:
        raise Conflict(f"{leaving.username} is the last enabled administrator. Make another one first.")


def _role_problem() -> str:
    return "Invalid role. Must be one of: " + ", ".join(ROLES)


# -- passwords -----------------------------------------------------------------------------------------------


def _hash(password: str) -> str:
    return generate_password_hash(password, method=PASSWORD_METHOD)


def _matches(known_hash: str | None, password: str) -> bool:
    """Whether the password is right; as slow when there is none to compare with, so that nobody can ask who exists."""
    if len(password) > MAX_PASSWORD or not passwords.is_text(password):
        return False
    if known_hash is None:
        check_password_hash(f"{PASSWORD_METHOD}$nobody$" + "0" * 128, password)
        return False
    return check_password_hash(known_hash, password)


# -- signing in and out --------------------------------------------------------------------------------------


def sign_in(
    session: Session, username: str, password: str, ip: str, user_agent: str, settings: Settings
) -> str:
    """A new session's token, for the browser to keep; the table keeps its hash.

    Raises TooManyRequests after too many failures for the name or from the address, and Invalid naming `password`
    otherwise: the same words whether the name, the password or the account's state is the reason.
    """
    # Counted before the password is looked at and taken back when it was right: counted afterwards, any
    # number of guesses made at once would pass.
    tries = _count_tries(
        session, [(_name_key(username), FAILURES_PER_NAME), (_address_key(ip), FAILURES_PER_ADDRESS)]
    )
    user = _by_name(session, username)
    known = (user.id, user.password_hash) if user is not None and user.enabled else None
    if not _matches(known[1] if known else None, password) or known is None:
        _note_failed_sign_in(session, username, ip)
        raise _wrong_password()
    return _open_by_password(session, *known, tries, ip, user_agent, settings)


@transactional
def _open_by_password(
    session: Session,
    user_id: int,
    known_hash: str | None,
    tries: list[throttle.Use],
    ip: str,
    user_agent: str,
    settings: Settings,
) -> str:
    user = session.get(CronUser, user_id, with_for_update=True, populate_existing=True)
    # It took a while to compare: what was compared with must still be true.
    if user is None or not user.enabled or user.password_hash != known_hash:
        raise _wrong_password()
    _forget_tries(session, tries)
    return _open_session(session, user, "sign_in", ip, user_agent, settings)


def _open_session(
    session: Session, user: CronUser, how: str, ip: str, user_agent: str, settings: Settings
) -> str:
    token, now = secrets.token_urlsafe(32), db.now(session)
    session.add(
        CronSession(
            token_hash=_digest(token),
            user=user.id,
            created_at=now,
            last_seen_at=now,
            expires_at=_session_end(now, now, settings),
            ip=ip[:64],
            user_agent=user_agent[:255],
        )
    )
    user.last_login_at = now
    audit.record(session, Actor(user.username, Source.WEB, ip), how, ("user", user.id), name=user.username)
    return token


@transactional
def _note_failed_sign_in(session: Session, username: str, ip: str) -> None:
    user = _by_name(session, username)
    # A name that nobody has is often a password typed into the wrong field: it is not written down.
    name = user.username if user else "unknown user"
    audit.record(
        session, Actor(name, Source.WEB, ip), "sign_in_failed", ("user", user.id if user else ""), name=name
    )


def _wrong_password() -> Invalid:
    return Invalid({"password": "The user name or the password is wrong"})


def session_user(
    session: Session, token: str, settings: Settings, now: datetime | None = None
) -> CronUser | None:
    """Who holds this session, or None if it has ended.

    Using it moves its end to `session_hours` from now, but not beyond `session_days` after the sign-in.
    """
    now = now or db.now(session)
    found = session.execute(
        sa.select(CronSession.created_at, CronSession.last_seen_at, CronUser)
        .join(CronUser, CronUser.id == CronSession.user)
        .where(
            CronSession.token_hash == _digest(token),
            CronSession.expires_at > now,
            CronSession.created_at > now - timedelta(days=settings.session_days),
            CronUser.enabled.is_(True),
        )
    ).one_or_none()
    if found is None:
        return None
    created_at, last_seen_at, user = found
    if now - last_seen_at >= SEEN_EVERY:
        _extend_session(session, _digest(token), now, _session_end(created_at, now, settings))
    return user


def _session_end(created_at: datetime, now: datetime, settings: Settings) -> datetime:
    return min(
        now + timedelta(hours=settings.session_hours), created_at + timedelta(days=settings.session_days)
    )


@transactional
def _extend_session(session: Session, token_hash: str, now: datetime, until: datetime) -> None:
    session.execute(
        sa.update(CronSession)
        .where(CronSession.token_hash == token_hash, CronSession.last_seen_at <= now - SEEN_EVERY)
        .values(last_seen_at=now, expires_at=until)
    )


@transactional
def sign_out(session: Session, token: str, ip: str = "") -> None:
    """End a session. One that has ended already is no error."""
    row = session.get(CronSession, _digest(token), populate_existing=True)
    if row is None:
        return
    user = get_user(session, row.user)
    session.delete(row)
    audit.record(
        session, Actor(user.username, Source.WEB, ip), "sign_out", ("user", user.id), name=user.username
    )


def list_sessions(session: Session, user_id: int) -> Sequence[CronSession]:
    """A user's open sessions, the last used first."""
    return session.scalars(
        sa.select(CronSession)
        .where(CronSession.user == user_id, CronSession.expires_at > db.now(session))
        .order_by(CronSession.last_seen_at.desc())
    ).all()


@transactional
def end_session(session: Session, user_id: int, token_hash: str, actor: Actor) -> None:
    """End one session of a user, named by its hash. Raises NotFound."""
    user = get_user(session, user_id)
    ended = sa.delete(CronSession).where(CronSession.user == user_id, CronSession.token_hash == token_hash)
    if not hits(session, ended):
        raise NotFound("This session has ended already")
    audit.record(session, actor, "end_session", ("user", user_id), name=user.username)


@transactional
def end_sessions(session: Session, user_id: int, actor: Actor) -> int:
    """End all sessions of a user, and the open links that would sign them in; returns how many sessions there were.

    Raises NotFound.
    """
    user = get_user(session, user_id)
    ended = hits(session, sa.delete(CronSession).where(CronSession.user == user_id))
    _revoke_links_for(session, user)
    audit.record(
        session, actor, "end_sessions", ("user", user_id), name=user.username, after={"sessions": ended}
    )
    return ended


def session_id(token: str) -> str:
    """The hash by which `list_sessions` and `end_session` know the session of `token`."""
    return _digest(token)


def _end_sessions(session: Session, user_id: int, *, keep: str | None = None) -> None:
    ended = sa.delete(CronSession).where(CronSession.user == user_id)
    if keep is not None:
        ended = ended.where(CronSession.token_hash != _digest(keep))
    session.execute(ended)


# -- API tokens ----------------------------------------------------------------------------------------------


@transactional
def create_token(
    session: Session,
    name: str,
    role: str,
    expires_days: int | None,
    actor: Actor,
    *,
    creator_role: str = ROLES[-1],
    creator_token: int | None = None,
) -> tuple[CronToken, str]:
    """A new API token: its row, and the token itself, which is never shown again.

    `creator_role` is the role of whoever asks (the command line may do everything). A token made in the pages
    ends with its maker: disabling or deleting them revokes it, a lower role revokes what reaches above it. The
    same holds for a token made with a token of theirs, `creator_token`.

    Raises Invalid naming `name`, `role` or `expires_days`, and Forbidden for a role above the creator's.
    """
    name = name.strip()
    if wrong := token_problems(name, role, expires_days):
        raise Invalid(wrong)
    if not allows(creator_role, Role(role)):
        raise Forbidden(f"A token cannot have a higher role than its maker's: {creator_role}")
    plain, now = "kyt_" + secrets.token_urlsafe(32), db.now(session)
    token = CronToken(
        name=name,
        token_hash=_digest(plain),
        role=role,
        kind=TokenKind.API,
        created_at=now,
        created_by=_maker(actor) if creator_token is None else _maker_by_token(session, creator_token, actor),
        expires_at=None if expires_days is None else now + timedelta(days=expires_days),
    )
    session.add(token)
    session.flush()
    audit.record(
        session,
        actor,
        "create_token",
        ("token", token.id),
        name=name,
        after={"role": role, "expires_at": token.expires_at},
    )
    return token, plain


def token_problems(name: str, role: str, expires_days: int | None) -> dict[str, str]:
    """What is wrong with a new API token, by field."""
    wrong: dict[str, str] = {}
    if not 1 <= len(name) <= 100:
        wrong["name"] = "name must be 1 to 100 characters saying what the token is for"
    elif problem := name_problem(name):
        wrong["name"] = f"name {problem}"
    if role not in ROLES:
        wrong["role"] = _role_problem()
    if expires_days is not None and not 1 <= expires_days <= MAX_TOKEN_DAYS:
        wrong["expires_days"] = f"expires_days must be 1 to {MAX_TOKEN_DAYS} days, or nothing for no end"
    return wrong


def list_tokens(session: Session) -> Sequence[CronToken]:
    """All API tokens, revoked and expired ones too, the newest first."""
    return session.scalars(
        sa.select(CronToken).where(CronToken.kind == TokenKind.API).order_by(CronToken.id.desc())
    ).all()


def get_token(session: Session, token_id: int) -> CronToken:
    """An API token's row. Raises NotFound."""
    token = session.get(CronToken, token_id)
    if token is None or token.kind != TokenKind.API:
        raise NotFound(f"Token {token_id} does not exist")
    return token


@transactional
def revoke_token(session: Session, token_id: int, actor: Actor) -> CronToken:
    """Raises NotFound. Revoking twice is no error."""
    token = session.get(CronToken, token_id, with_for_update=True, populate_existing=True)
    if token is None or token.kind != TokenKind.API:
        raise NotFound(f"Token {token_id} does not exist")
    if token.revoked_at is None:
        _revoke(session, token, actor)
    return token


def _revoke(session: Session, token: CronToken, actor: Actor) -> None:
    token.revoked_at = db.now(session)
    audit.record(
        session,
        actor,
        "revoke_token",
        ("token", token.id),
        name=token.name,
        before={"revoked_at": None},
        after={"revoked_at": token.revoked_at},
    )


def find_token(session: Session, plain: str, now: datetime | None = None) -> CronToken | None:
    """The API token that was sent, whose `role` says what it may do; None if unknown, revoked or expired."""
    now = now or db.now(session)
    token = session.scalar(
        sa.select(CronToken).where(
            CronToken.token_hash == _digest(plain),
            CronToken.kind == TokenKind.API,
            CronToken.revoked_at.is_(None),
            sa.or_(CronToken.expires_at.is_(None), CronToken.expires_at > now),
        )
    )
    if token is not None and (token.last_used_at is None or now - token.last_used_at >= SEEN_EVERY):
        _note_token_use(session, token.id, now)
    return token


@transactional
def _note_token_use(session: Session, token_id: int, now: datetime) -> None:
    not_noted = sa.or_(CronToken.last_used_at.is_(None), CronToken.last_used_at <= now - SEEN_EVERY)
    session.execute(sa.update(CronToken).where(CronToken.id == token_id, not_noted).values(last_used_at=now))


def _maker(actor: Actor) -> str:
    """Who made a token, as its row says it: a user's bare name for what was made in the pages, and only then."""
    return (actor.name if actor.source == "web" else f"{actor.source}:{actor.name}")[:100]


def _maker_by_token(session: Session, token_id: int, actor: Actor) -> str:
    """Whom a token that is made with another one belongs to: the user who made that one in the pages, if one did.

    Raises Forbidden when the other one was revoked meanwhile. Whoever revokes all of a user's tokens waits for the
    lock, and so finds the new one, too.
    """
    maker = session.get(CronToken, token_id, with_for_update=True, populate_existing=True)
    if maker is None or maker.revoked_at is not None:
        raise Forbidden("The token that this was asked with is revoked")
    owner = maker.created_by or ""
    return owner if USERNAME.fullmatch(owner) else _maker(actor)


def _revoke_tokens_of(session: Session, user: CronUser, actor: Actor, *, left_with: str | None) -> None:
    """Revoke what the user made that reaches above the role they are left with (None: everything), and their links."""
    above = [role for role in ROLES if left_with is None or not allows(left_with, role)]
    theirs = (
        sa.select(CronToken)
        .where(
            CronToken.kind == TokenKind.API,
            CronToken.created_by == user.username,
            CronToken.role.in_(above),
            CronToken.revoked_at.is_(None),
        )
        .order_by(CronToken.id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    for token in session.scalars(theirs).all():
        _revoke(session, token, actor)
    _revoke_links_for(session, user)


# -- sign-in links -------------------------------------------------------------------------------------------


@transactional
def create_sign_in_link(
    session: Session, actor: Actor, username: str | None = None, lifetime: timedelta = LINK_LIFETIME
) -> str:
    """The token of a link that signs `username` in once (None: the first enabled administrator).

    The way in for who has no password yet, or is disabled. Raises NotFound.
    """
    user = _first_admin(session) if username is None else find_user(session, username)
    if user is None:
        raise NotFound("There is no enabled administrator. Create one with: kytecron users create")
    plain, now = secrets.token_urlsafe(32), db.now(session)
    session.add(
        CronToken(
            name=user.username,  # whom it signs in
            token_hash=_digest(plain),
            role=user.role,
            kind=TokenKind.SIGN_IN,
            created_at=now,
            created_by=_maker(actor),
            expires_at=now + lifetime,
        )
    )
    audit.record(session, actor, "create_sign_in_link", ("user", user.id), name=user.username)
    return plain


def sign_in_address(token: str, settings: Settings, below: str = "") -> str:
    """Where the token of a link signs in. Without `public_url` the path alone, `below` a proxy's own.

    Never from a request's Host header: whoever forges it would be sent the link's secret by who follows it.
    """
    return f"{settings.public_url.rstrip('/') or below}/sign-in/{token}"


@transactional
def first_start_link(session: Session) -> str | None:
    """The token of a link for the administrator `admin`, who is made without a password, or None.

    None as soon as anybody has a password. Until then each call gives a new link, good for 24 hours: whoever
    closed the terminal before using the first one must still get in.
    """
    if session.scalar(sa.select(CronUser.id).where(CronUser.password_hash.is_not(None)).limit(1)) is not None:
        return None
    actor = Actor("first start", Source.CLI)
    if session.scalar(sa.select(CronUser.id).limit(1)) is None:
        with suppress(Invalid):  # another process that starts at the same time was faster
            _insert_user(session, "admin", None, Role.ADMIN, actor)
    if _first_admin(session) is None:
        return None
    return create_sign_in_link(session, actor, None, FIRST_LINK_LIFETIME)


def _first_admin(session: Session) -> CronUser | None:
    return session.scalar(
        sa.select(CronUser)
        .where(CronUser.role == Role.ADMIN, CronUser.enabled.is_(True))
        .order_by(CronUser.id)
        .limit(1)
    )


@transactional
def use_sign_in_link(session: Session, plain: str, ip: str, user_agent: str, settings: Settings) -> str:
    """Sign in by a link: a new session's token. The link is spent.

    Raises Forbidden for a link that was used, has expired or never existed.
    """
    now = db.now(session)
    spend = (
        sa.update(CronToken)
        .where(
            CronToken.token_hash == _digest(plain),
            CronToken.kind == TokenKind.SIGN_IN,
            CronToken.revoked_at.is_(None),
            CronToken.expires_at > now,
        )
        .values(revoked_at=now, last_used_at=now)
    )
    if hits(session, spend):
        name = session.scalar(sa.select(CronToken.name).where(CronToken.token_hash == _digest(plain)))
        user = _by_name(session, name or "")
        if user is not None and user.enabled:
            return _open_session(session, user, "sign_in_by_link", ip, user_agent, settings)
    raise Forbidden("This sign-in link has been used or has expired. Ask for a new one.")


def _revoke_links_for(session: Session, user: CronUser) -> None:
    session.execute(
        sa.update(CronToken)
        .where(
            CronToken.kind == TokenKind.SIGN_IN,
            CronToken.name == user.username,
            CronToken.revoked_at.is_(None),
        )
        .values(revoked_at=db.now(session))
    )


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


# -- tries to sign in ----------------------------------------------------------------------------------------


@transactional
def _count_tries(session: Session, limits: list[tuple[str, int]]) -> list[throttle.Use]:
    """Count one try for each key, or none and raise TooManyRequests; returns what `_forget_tries` takes back."""
    said = "Too many failed sign-ins."
    return [throttle.take(session, key, limit, SIGN_IN_WINDOW_SECONDS, said) for key, limit in limits]


@transactional
def _forget_tries(session: Session, tries: list[throttle.Use]) -> None:
    for use in tries:
        throttle.give_back(session, use)


def _name_key(username: str) -> str:
    # Hashed: it may be of any length, and may be a password typed into the wrong field.
    return "sign-in:name:" + _digest(username)[:40]


def _address_key(ip: str) -> str:
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return "sign-in:from:" + ip[:64]
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return f"sign-in:from:{address.ipv4_mapped}"
        # One customer has a whole /64; addresses in it cost nothing.
        return f"sign-in:from:{ipaddress.IPv6Address(int(address) >> 64 << 64)}/64"
    return f"sign-in:from:{address}"

"""Who may do what, the secrets of jobs, and how this installation is set: all of it for administrators."""

from __future__ import annotations

from dataclasses import asdict

from flask import request

from ..core.choices import Role
from ..services import accounts, secrets, showing
from ..store import queries
from ..store.db import transactional
from ..store.models import CronSecret, CronUser
from ..views import people
from ..views import secrets as secret_views
from . import shapes
from .inputs import ListQuery, NewSecret, NewTokenBody, NewUser, SecretChange, UserChanges
from .routing import Answer, Call, address, route

# -- users ---------------------------------------------------------------------------------------------------


@route("GET /users", role=Role.ADMIN)
def list_users(call: Call, query: ListQuery) -> shapes.Page[shapes.User]:
    """List who may sign in, by name."""
    found = queries.users(call.session, cursor=query.cursor, limit=query.limit)
    return shapes.Page[shapes.User](
        items=[shapes.User.of(one) for one in people.users(found.items)], next_cursor=found.next
    )


@route("POST /users", role=Role.ADMIN, status=201, tells_secret=True)
def create_user(call: Call, body: NewUser) -> Answer[shapes.User]:
    """Make a user. Without a password they sign in by a link first, and choose one."""
    made = accounts.create_user(call.session, body.username, body.password, body.role, call.actor)
    return Answer(shapes.User.of(people.user(made)), 201, {"Location": address(f"/users/{made.id}")})


@route("GET /users/{user_id}", role=Role.ADMIN)
def read_user(call: Call, user_id: int) -> shapes.User:
    """Read a user."""
    return shapes.User.of(people.user(accounts.get_user(call.session, user_id)))


@route("PATCH /users/{user_id}", role=Role.ADMIN, problems=(409,))
def change_user(call: Call, user_id: int, body: UserChanges) -> shapes.User:
    """Give a user another role, lock them out, or let them in again. One administrator stays."""

    def change(_: object) -> CronUser:
        if body.role is not None:
            accounts.set_role(call.session, user_id, body.role, call.actor)
        if body.enabled is not None:
            accounts.set_enabled(call.session, user_id, body.enabled, call.actor)
        return accounts.get_user(call.session, user_id)

    return shapes.User.of(people.user(transactional(change)(call.session)))


@route("DELETE /users/{user_id}", role=Role.ADMIN, status=204, problems=(409,))
def delete_user(call: Call, user_id: int) -> None:
    """Remove a user, their sessions, links and tokens. One administrator stays.

    What they did stays in the audit log.
    """
    accounts.delete_user(call.session, user_id, call.actor)


@route("POST /users/{user_id}/sign-in-link", role=Role.ADMIN, status=201, tells_secret=True)
def create_sign_in_link(call: Call, user_id: int) -> Answer[shapes.SignInLink]:
    """Make a link that signs a user in once, for who has no password or has lost it. It is shown this once."""
    username = accounts.get_user(call.session, user_id).username
    token = accounts.create_sign_in_link(call.session, call.actor, username)
    link = shapes.SignInLink(
        url=accounts.sign_in_address(token, call.settings, request.script_root),
        expires_in_seconds=int(accounts.LINK_LIFETIME.total_seconds()),
    )
    return Answer(link, 201)


@route("POST /users/{user_id}/sign-out", role=Role.ADMIN)
def sign_user_out(call: Call, user_id: int) -> shapes.SignedOut:
    """End all sessions of a user, and the links that would sign them in. Their tokens stay."""
    return shapes.SignedOut(sessions=accounts.end_sessions(call.session, user_id, call.actor))


# -- tokens --------------------------------------------------------------------------------------------------


@route("GET /tokens", role=Role.ADMIN)
def list_tokens(call: Call, query: ListQuery) -> shapes.Page[shapes.Token]:
    """List API tokens, revoked and expired ones too, the newest first."""
    found = queries.tokens(call.session, cursor=query.cursor, limit=query.limit)
    return shapes.Page[shapes.Token](
        items=[shapes.Token.of(one) for one in people.tokens(found.items, call.now)], next_cursor=found.next
    )


@route("POST /tokens", role=Role.ADMIN, status=201, tells_secret=True)
def create_token(call: Call, body: NewTokenBody) -> Answer[shapes.NewToken]:
    """Make an API token. `token` is shown this once.

    It belongs to whom the token belongs that asks for it, and ends with their account.
    """
    made, plain = accounts.create_token(
        call.session,
        body.name,
        body.role,
        body.expires_days,
        call.actor,
        creator_role=call.role,
        creator_token=call.token_id,
    )
    headers = {"Location": address(f"/tokens/{made.id}")}
    return Answer(shapes.NewToken.of(people.token(made, call.now), token=plain), 201, headers)


@route("GET /tokens/{token_id}", role=Role.ADMIN)
def read_token(call: Call, token_id: int) -> shapes.Token:
    """Read what an API token is for, without the token itself."""
    return shapes.Token.of(people.token(accounts.get_token(call.session, token_id), call.now))


@route("POST /tokens/{token_id}/revoke", role=Role.ADMIN)
def revoke_token(call: Call, token_id: int) -> shapes.Token:
    """End an API token for good. Revoking twice is no error."""
    return shapes.Token.of(people.token(accounts.revoke_token(call.session, token_id, call.actor), call.now))


# -- secrets -------------------------------------------------------------------------------------------------


@route("GET /secrets", role=Role.ADMIN)
def list_secrets(call: Call, query: ListQuery) -> shapes.Page[shapes.Secret]:
    """List the names of secrets, and the jobs that may read them."""
    found = queries.secrets(call.session, cursor=query.cursor, limit=query.limit)
    granted = secrets.granted_jobs(call.session, [row.id for row in found.items])
    return shapes.Page[shapes.Secret](
        items=[shapes.Secret.of(one) for one in secret_views.secrets(found.items, granted)],
        next_cursor=found.next,
    )


@route("POST /secrets", role=Role.ADMIN, status=201, problems=(409,), tells_secret=True)
def create_secret(call: Call, body: NewSecret) -> Answer[shapes.Secret]:
    """Store a value for jobs. Nothing ever shows it again."""
    made = secrets.set_secret(call.session, body.name, body.value, call.actor, call.settings, replace=False)
    return Answer(
        shapes.Secret.of(secret_views.secret(made, [])), 201, {"Location": address(f"/secrets/{made.id}")}
    )


@route("GET /secrets/{secret_id}", role=Role.ADMIN)
def read_secret(call: Call, secret_id: int) -> shapes.Secret:
    """Read who may read a secret. Nothing shows its value."""
    return _secret(call, secret_id)


@route("PUT /secrets/{secret_id}", role=Role.ADMIN, problems=(409,), tells_secret=True)
def replace_secret(call: Call, secret_id: int, body: SecretChange) -> shapes.Secret:
    """Give a secret another value. Runs that start from now on get it."""

    def replace(_: object) -> CronSecret:
        name = secrets.get_secret(call.session, secret_id).name
        return secrets.set_secret(call.session, name, body.value, call.actor, call.settings)

    transactional(replace)(call.session)
    return _secret(call, secret_id)


@route("DELETE /secrets/{secret_id}", role=Role.ADMIN, status=204)
def delete_secret(call: Call, secret_id: int) -> None:
    """Remove a secret, and take it from its jobs."""
    name = secrets.get_secret(call.session, secret_id).name
    secrets.delete_secret(call.session, name, call.actor)


@route("PUT /secrets/{secret_id}/jobs/{job_id}", role=Role.ADMIN)
def grant_secret(call: Call, secret_id: int, job_id: int) -> shapes.Secret:
    """Let a job read a secret. Granting twice is no error."""
    secrets.grant(call.session, job_id, secrets.get_secret(call.session, secret_id).name, call.actor)
    return _secret(call, secret_id)


@route("DELETE /secrets/{secret_id}/jobs/{job_id}", role=Role.ADMIN)
def take_secret(call: Call, secret_id: int, job_id: int) -> shapes.Secret:
    """Take a secret from a job. A run that goes on keeps what it was given."""
    secrets.revoke(call.session, job_id, secrets.get_secret(call.session, secret_id).name, call.actor)
    return _secret(call, secret_id)


def _secret(call: Call, secret_id: int) -> shapes.Secret:
    row = secrets.get_secret(call.session, secret_id)
    (found,) = secret_views.secrets([row], secrets.granted_jobs(call.session, [row.id]))
    return shapes.Secret.of(found)


# -- settings ------------------------------------------------------------------------------------------------


@route("GET /settings", role=Role.ADMIN)
def read_settings(call: Call) -> shapes.SettingsShown:
    """Read what the web application is set to; of what is secret, whether it is set."""
    return shapes.SettingsShown(items=[shapes.Setting(**asdict(one)) for one in showing.shown(call.settings)])

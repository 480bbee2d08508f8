"""`users` and `tokens`: who may sign in, and who may use the API."""

from __future__ import annotations

import sys

import click

from ..services import accounts
from ..store import db as database
from ..views import people
from . import console
from .console import ID, Group, json_option, say, yes_option

ROLE = click.Choice([*map(str, accounts.ROLES)])


@click.group(cls=Group)
def users() -> None:
    """Users: who may sign in to the pages, and what they may do there."""


@users.command()
@click.argument("username")
@click.option("--role", type=ROLE, required=True)
@click.option("--no-password", is_flag=True, help="Print a link that signs them in once, instead.")
@click.option("--password-stdin", is_flag=True, help="Read the password from input instead of asking for it.")
@json_option
def create(username: str, role: str, no_password: bool, password_stdin: bool, as_json: bool) -> None:
    """Create a user."""
    password = None if no_password else _password(password_stdin)
    user = accounts.create_user(console.database(), username, password, role, console.actor())
    if as_json:
        console.print_json(people.user(user).for_programs())
    else:
        say(f"User {user.username!r} with the role {role} created.")
    if no_password:
        _print_link(user.username, err=as_json)


def _password(from_input: bool) -> str:
    if from_input:
        # No more than needed to see that it is too long.
        return sys.stdin.readline(2 * accounts.MAX_PASSWORD).rstrip("\r\n")
    return console.ask_unseen("password", "--password-stdin")


def _print_link(username: str, err: bool = False) -> None:
    token = accounts.create_sign_in_link(console.database(), console.actor(), username)
    minutes = int(accounts.LINK_LIFETIME.total_seconds() // 60)
    where = "" if console.settings().public_url else ", behind the address of your pages"
    console.note(f"This link signs {username} in once, within {minutes} minutes{where}:")
    click.echo(accounts.sign_in_address(token, console.settings()), err=err)


@users.command("list")
@json_option
def list_users(as_json: bool) -> None:
    """List users."""
    found = people.users(accounts.list_users(console.database()))
    if as_json:
        console.print_json({"items": [one.for_programs() for one in found]})
        return
    rows = [
        (one.id, one.username, one.role, one.state, one.created_at, one.last_login_at or "never")
        for one in found
    ]
    console.table(("ID", "USER", "ROLE", "STATUS", "CREATED", "LAST SIGN-IN"), rows)


@users.command("set-role")
@click.argument("username")
@click.argument("role", type=ROLE)
def set_role(username: str, role: str) -> None:
    """Give a user another role. Their sessions end, and tokens of theirs that reach above it are revoked."""
    session = console.database()
    accounts.set_role(session, accounts.find_user(session, username).id, role, console.actor())
    say(f"User {username!r} has the role {role}.")


@users.command("set-password")
@click.argument("username")
@click.option("--password-stdin", is_flag=True, help="Read the password from input instead of asking for it.")
def set_password(username: str, password_stdin: bool) -> None:
    """Give a user another password. Their sessions end."""
    session = console.database()
    user = accounts.find_user(session, username)
    accounts.set_password(session, user.id, _password(password_stdin), console.actor())
    say(f"User {username!r} has a new password.")


@users.command("sign-in-link")
@click.argument("username")
def sign_in_link(username: str) -> None:
    """Print a link that signs a user in once: the way back for who has lost the password."""
    _print_link(username)


@users.command("sign-out")
@click.argument("username")
def sign_out(username: str) -> None:
    """End all sessions of a user, and sign-in links that were not used. Their API tokens stay."""
    session = console.database()
    ended = accounts.end_sessions(session, accounts.find_user(session, username).id, console.actor())
    say(f"User {username!r} is signed out. Sessions ended: {ended}.")


@users.command()
@click.argument("username")
@yes_option
def disable(username: str, yes: bool) -> None:
    """Lock a user out. Their sessions end, their links and API tokens are revoked for good."""
    session = console.database()
    user = accounts.find_user(session, username)
    console.confirm(f"Lock {username!r} out, and revoke the API tokens they made?", yes)
    accounts.set_enabled(session, user.id, False, console.actor())
    say(f"User {username!r} is disabled.")


@users.command()
@click.argument("username")
def enable(username: str) -> None:
    """Let a user in again."""
    session = console.database()
    accounts.set_enabled(session, accounts.find_user(session, username).id, True, console.actor())
    say(f"User {username!r} may sign in.")


# -- tokens --------------------------------------------------------------------------------------------------


@click.group(cls=Group)
def tokens() -> None:
    """Tokens: who may use the JSON API, and for what."""


@tokens.command("create")
@click.option("--name", required=True, help="What it is for.")
@click.option("--role", type=ROLE, required=True)
@click.option("--expires", type=int, metavar="DAYS", help="When it ends.  [default: never]")
@json_option
def create_token(name: str, role: str, expires: int | None, as_json: bool) -> None:
    """Create a token and print it. It is never shown again."""
    row, plain = accounts.create_token(console.database(), name, role, expires, console.actor())
    if as_json:
        made = people.token(row, database.now(console.database()))
        console.print_json({"token": plain, **made.for_programs()})
        return
    console.note(f"Token {row.id} {row.name!r} with the role {role}. Keep it: it is never shown again.")
    click.echo(plain)


@tokens.command("list")
@json_option
def list_tokens(as_json: bool) -> None:
    """List tokens, revoked and expired ones too, the newest first."""
    session = console.database()
    found = people.tokens(accounts.list_tokens(session), database.now(session))
    if as_json:
        console.print_json({"items": [one.for_programs() for one in found]})
        return
    rows = [
        (
            one.id,
            one.name,
            one.role,
            one.state,
            one.created_by,
            one.expires_at or "never",
            one.last_used_at or "never",
            one.revoked_at,
        )
        for one in found
    ]
    console.table(("ID", "NAME", "ROLE", "STATE", "BY", "EXPIRES", "LAST USED", "REVOKED"), rows)


@tokens.command()
@click.argument("token", type=ID, metavar="ID")
@yes_option
def revoke(token: int, yes: bool) -> None:
    """End a token for good, by its id."""
    console.confirm(f"Revoke token {token} for good?", yes)
    row = accounts.revoke_token(console.database(), token, console.actor())
    say(f"Token {row.id} {row.name!r} is revoked.")

"""Who may sign in, with what, and when it ends: on every database."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from kytecron.config import Settings
from kytecron.core.errors import Conflict, Forbidden, Invalid, NotFound, TooManyRequests
from kytecron.services import accounts
from kytecron.services.audit import Actor
from kytecron.store import db
from kytecron.store.models import CronAudit, CronSession, CronThrottle, CronToken, CronUser

ROOT = Actor("root", "cli")
PASSWORD = "correct horse battery"
OTHER_PASSWORD = "staple battery horse"
HERE = "203.0.113.7"


@pytest.fixture(autouse=True)
def cheap_hashes(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Hashing for real takes a tenth of a second, as it should."""
    if "real_hashes" not in request.fixturenames:
        monkeypatch.setattr(accounts, "PASSWORD_METHOD", "scrypt:1024:8:1")


@pytest.fixture
def real_hashes() -> None:
    pass


@pytest.fixture(autouse=True)
def mid_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Throttle windows lie on the clock: no test may straddle the end of one."""
    monkeypatch.setattr(accounts, "SIGN_IN_WINDOW_SECONDS", 86_400)


@pytest.fixture
def admin(session: Session) -> CronUser:
    return accounts.create_user(session, "ada", PASSWORD, "admin", ROOT)


def sign_in(
    session: Session, settings: Settings, name: str = "ada", password: str = PASSWORD, ip: str = HERE
) -> str:
    return accounts.sign_in(session, name, password, ip, "browser", settings)


def who(session: Session, token: str, settings: Settings, now: datetime | None = None) -> str | None:
    user = accounts.session_user(session, token, settings, now)
    return user.username if user else None


def actions(session: Session) -> list[str]:
    session.rollback()
    return list(session.scalars(sa.select(CronAudit.action).order_by(CronAudit.id)))


def at_once(sessions: sessionmaker[Session], works: list[Callable[[Session], object]]) -> list[object]:
    """Each work in a thread and session of its own, all let go together; their results or errors."""
    barrier, results = threading.Barrier(len(works)), [None] * len(works)

    def run(number: int) -> None:
        with sessions() as own:
            barrier.wait(10)
            try:
                results[number] = works[number](own)
            except Exception as error:
                results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


# -- roles and users -----------------------------------------------------------------------------------------


def test_each_role_may_do_what_those_before_it_may() -> None:
    allowed = {
        role: [needed for needed in accounts.ROLES if accounts.allows(role, needed)]
        for role in accounts.ROLES
    }
    assert allowed == {
        "viewer": ["viewer"],
        "operator": ["viewer", "operator"],
        "editor": ["viewer", "operator", "editor"],
        "admin": ["viewer", "operator", "editor", "admin"],
    }
    assert not accounts.allows("owner", "viewer")


def test_a_user_is_refused_with_a_message_for_each_wrong_field(session: Session) -> None:
    with pytest.raises(Invalid) as refused:
        accounts.create_user(session, "ada lovelace", "short", "root", ROOT)
    assert refused.value.fields["password"] == "password must have at least 12 characters; this one has 5"
    assert refused.value.fields["role"] == "Invalid role. Must be one of: viewer, operator, editor, admin"
    assert "letters, digits" in refused.value.fields["username"]


@pytest.mark.parametrize("password", ["x" * 1001, "\ud800" * 12])
def test_a_password_that_cannot_be_hashed_in_good_time_is_refused(
    sqlite_settings: Settings, password: str
) -> None:
    with db.make_sessions(db.make_engine(sqlite_settings))() as session, pytest.raises(Invalid):
        accounts.create_user(session, "ada", password, "admin", ROOT)


def test_a_name_is_taken_once(session: Session, admin: CronUser) -> None:
    with pytest.raises(Invalid) as refused:
        accounts.create_user(session, "ada", PASSWORD, "viewer", ROOT)
    assert refused.value.fields == {"username": "The user name 'ada' is taken"}
    assert [user.username for user in accounts.list_users(session)] == ["ada"]


def test_passwords_are_kept_as_scrypt(session: Session, real_hashes: None, admin: CronUser) -> None:
    assert admin.password_hash is not None
    assert admin.password_hash.startswith("scrypt:32768:8:1$")


def test_the_last_enabled_administrator_cannot_go(session: Session, admin: CronUser) -> None:
    bob = accounts.create_user(session, "bob", PASSWORD, "admin", ROOT)
    accounts.set_enabled(session, bob.id, False, ROOT)
    for attempt in (
        lambda: accounts.set_role(session, admin.id, "editor", ROOT),
        lambda: accounts.set_enabled(session, admin.id, False, ROOT),
        lambda: accounts.delete_user(session, admin.id, ROOT),
    ):
        with pytest.raises(Conflict, match="ada is the last enabled administrator"):
            attempt()
    accounts.delete_user(session, bob.id, ROOT)  # one that cannot sign in anyway may go
    assert accounts.find_user(session, "ada").role == "admin"


def test_two_administrators_cannot_remove_each_other_at_once(
    session: Session, sessions: sessionmaker[Session], admin: CronUser
) -> None:
    bob = accounts.create_user(session, "bob", PASSWORD, "admin", ROOT)
    ids = [admin.id, bob.id]
    session.rollback()
    results = at_once(
        sessions, [lambda own, user=user: accounts.set_role(own, user, "viewer", ROOT) for user in ids]
    )
    assert sum(isinstance(result, Conflict) for result in results) == 1, results
    session.rollback()
    roles = session.scalars(sa.select(CronUser.role)).all()
    assert sorted(roles) == ["admin", "viewer"]


def test_deleting_a_user_leaves_what_they_did_in_the_audit_log(
    session: Session, settings: Settings, admin: CronUser
) -> None:
    bob = accounts.create_user(session, "bob", PASSWORD, "viewer", Actor("ada", "web"))
    sign_in(session, settings, "bob")
    accounts.delete_user(session, bob.id, Actor("ada", "web"))
    with pytest.raises(NotFound):
        accounts.find_user(session, "bob")
    assert actions(session) == ["create", "create", "sign_in", "delete"]
    assert session.scalar(sa.select(sa.func.count()).select_from(CronSession)) == 0


# -- signing in and sessions ---------------------------------------------------------------------------------


def test_a_session_is_who_signed_in_and_the_table_does_not_know_its_token(
    session: Session, settings: Settings, admin: CronUser
) -> None:
    token = sign_in(session, settings)
    assert who(session, token, settings) == "ada"
    (row,) = accounts.list_sessions(session, admin.id)
    assert row.token_hash == accounts.session_id(token) != token
    assert (row.ip, row.user_agent) == (HERE, "browser")
    assert accounts.find_user(session, "ada").last_login_at is not None


def test_every_refusal_to_sign_in_reads_the_same(
    session: Session, settings: Settings, admin: CronUser
) -> None:
    off = accounts.create_user(session, "off", PASSWORD, "viewer", ROOT)
    accounts.set_enabled(session, off.id, False, ROOT)
    accounts.create_user(session, "link-only", None, "viewer", ROOT)
    for name, password in [
        ("ada", "wrong wrong wrong"),
        ("ada ", PASSWORD),  # MariaDB alone would ignore the space
        ("ADA", PASSWORD),
        ("nobody", PASSWORD),
        ("off", PASSWORD),
        ("link-only", PASSWORD),
        ("link-only", ""),
        ("ada", "\ud800"),
        ("\ud800", PASSWORD),
        ("ada", "x" * 100_000),
        ("", ""),
    ]:
        with pytest.raises(Invalid) as refused:
            sign_in(session, settings, name, password)
        assert refused.value.fields == {"password": "The user name or the password is wrong"}, name


def test_an_unknown_name_costs_the_same_hash_as_a_known_one(
    session: Session, settings: Settings, admin: CronUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[str] = []
    real = accounts.check_password_hash
    monkeypatch.setattr(
        accounts, "check_password_hash", lambda known, given: compared.append(known) or real(known, given)
    )
    for name in ("ada", "nobody"):
        with pytest.raises(Invalid):
            sign_in(session, settings, name, "wrong wrong wrong")
    known, unknown = (text.split("$") for text in compared)
    assert known[0] == unknown[0]
    assert len(known[2]) == len(unknown[2])


def test_a_failed_sign_in_is_audited_without_the_name_that_nobody_has(
    session: Session, settings: Settings, admin: CronUser
) -> None:
    for name in ("ada", "hunter2 is my password"):
        with pytest.raises(Invalid):
            sign_in(session, settings, name, "wrong wrong wrong")
    session.rollback()
    rows = session.execute(
        sa.select(CronAudit.actor, CronAudit.ip)
        .where(CronAudit.action == "sign_in_failed")
        .order_by(CronAudit.id)
    ).all()
    assert [tuple(row) for row in rows] == [("ada", HERE), ("unknown user", HERE)]


def test_a_session_slides_with_use_and_ends_without(
    session: Session, settings: Settings, admin: CronUser
) -> None:
    token = sign_in(session, settings)
    begun = db.now(session)
    hours = timedelta(hours=settings.session_hours)
    assert who(session, token, settings, begun + hours - timedelta(minutes=5)) == "ada"
    assert who(session, token, settings, begun + hours * 2 - timedelta(minutes=10)) == "ada"
    assert who(session, token, settings, begun + hours * 3) is None
    assert who(session, "no such token", settings) is None


def test_using_a_session_writes_at_most_once_a_minute(
    session: Session, settings: Settings, admin: CronUser
) -> None:
    token = sign_in(session, settings)
    begun = accounts.list_sessions(session, admin.id)[0].last_seen_at

    def seen_after(seconds: int) -> timedelta:
        who(session, token, settings, begun + timedelta(seconds=seconds))
        session.rollback()
        return session.scalars(sa.select(CronSession.last_seen_at)).one() - begun

    assert seen_after(59) == timedelta(0)
    assert seen_after(61) == timedelta(seconds=61)
    assert seen_after(100) == timedelta(seconds=61)


def test_signing_out_ends_this_session_only(session: Session, settings: Settings, admin: CronUser) -> None:
    here, there = sign_in(session, settings), sign_in(session, settings)
    accounts.sign_out(session, here)
    accounts.sign_out(session, here)
    assert (who(session, here, settings), who(session, there, settings)) == (None, "ada")


def test_a_changed_password_ends_all_other_sessions(
    session: Session, settings: Settings, admin: CronUser
) -> None:
    here, there = sign_in(session, settings), sign_in(session, settings)
    accounts.change_password(session, admin.id, PASSWORD, OTHER_PASSWORD, Actor("ada", "web"), keep=here)
    assert (who(session, here, settings), who(session, there, settings)) == ("ada", None)
    sign_in(session, settings, password=OTHER_PASSWORD)
    with pytest.raises(Invalid):
        sign_in(session, settings, password=PASSWORD)


def test_changing_a_password_needs_the_present_one_and_guesses_are_counted(
    session: Session, settings: Settings, admin: CronUser
) -> None:
    token = sign_in(session, settings)
    for _ in range(accounts.FAILURES_PER_NAME):
        with pytest.raises(Invalid) as refused:
            accounts.change_password(session, admin.id, "a guess", OTHER_PASSWORD, ROOT, keep=token)
        assert refused.value.fields == {"current": "The current password is wrong"}
    with pytest.raises(TooManyRequests):
        accounts.change_password(session, admin.id, PASSWORD, OTHER_PASSWORD, ROOT, keep=token)


def test_a_role_change_and_disabling_end_the_sessions(
    session: Session, settings: Settings, admin: CronUser
) -> None:
    bob = accounts.create_user(session, "bob", PASSWORD, "viewer", ROOT)
    token = sign_in(session, settings, "bob")
    accounts.set_role(session, bob.id, "operator", ROOT)
    assert who(session, token, settings) is None
    token = sign_in(session, settings, "bob")
    accounts.set_enabled(session, bob.id, False, ROOT)
    assert who(session, token, settings) is None
    accounts.set_enabled(session, bob.id, True, ROOT)
    assert who(session, token, settings) is None


def test_a_password_set_by_an_administrator_ends_every_session(
    session: Session, settings: Settings, admin: CronUser
) -> None:
    bob = accounts.create_user(session, "bob", PASSWORD, "viewer", ROOT)
    token = sign_in(session, settings, "bob")
    accounts.set_password(session, bob.id, OTHER_PASSWORD, ROOT)
    assert who(session, token, settings) is None


def test_one_session_can_be_ended_by_its_owner_and_by_nobody_else_through_them(
    session: Session, settings: Settings, admin: CronUser
) -> None:
    bob = accounts.create_user(session, "bob", PASSWORD, "viewer", ROOT)
    token = sign_in(session, settings)
    with pytest.raises(NotFound):
        accounts.end_session(session, bob.id, accounts.session_id(token), Actor("bob", "web"))
    accounts.end_session(session, admin.id, accounts.session_id(token), Actor("ada", "web"))
    assert who(session, token, settings) is None


# -- tries to sign in ----------------------------------------------------------------------------------------


def test_a_name_is_closed_after_ten_failures_even_for_the_right_password(
    session: Session, settings: Settings, admin: CronUser
) -> None:
    accounts.create_user(session, "bob", PASSWORD, "viewer", ROOT)
    for number in range(accounts.FAILURES_PER_NAME):
        with pytest.raises(Invalid):
            sign_in(session, settings, password="wrong wrong wrong", ip=f"198.51.100.{number}")
    with pytest.raises(TooManyRequests, match=r"Too many failed sign-ins\. Try again in") as refused:
        sign_in(session, settings)
    assert 0 < refused.value.retry_after <= accounts.SIGN_IN_WINDOW_SECONDS
    sign_in(session, settings, "bob")


def test_an_address_is_closed_after_too_many_failures_over_many_names(
    session: Session, settings: Settings, admin: CronUser
) -> None:
    for number in range(accounts.FAILURES_PER_ADDRESS):
        with pytest.raises(Invalid):
            sign_in(session, settings, f"user{number}", "wrong", ip=f"2001:db8:1:2::{number}")  # one /64
    with pytest.raises(TooManyRequests):
        sign_in(session, settings, ip="2001:db8:1:2::ffff")
    sign_in(session, settings, ip="2001:db8:1:3::1")


def test_only_failures_count(session: Session, settings: Settings, admin: CronUser) -> None:
    for _ in range(accounts.FAILURES_PER_NAME + 2):
        sign_in(session, settings)
    session.rollback()
    assert set(session.scalars(sa.select(CronThrottle.count))) == {0}


def test_guesses_made_at_once_do_not_pass_the_limit(
    session: Session, sessions: sessionmaker[Session], settings: Settings, admin: CronUser
) -> None:
    session.rollback()
    guess = lambda own: sign_in(own, settings, password="wrong wrong wrong")  # noqa: E731
    results = at_once(sessions, [guess] * (accounts.FAILURES_PER_NAME + 5))
    looked_at = [result for result in results if isinstance(result, Invalid)]
    refused = [result for result in results if isinstance(result, TooManyRequests)]
    assert (len(looked_at), len(refused)) == (accounts.FAILURES_PER_NAME, 5), results


# -- API tokens ----------------------------------------------------------------------------------------------


def test_a_token_is_shown_once_and_works_until_revoked(session: Session) -> None:
    row, plain = accounts.create_token(session, "deploy", "operator", None, ROOT)
    assert plain.startswith("kyt_")
    assert plain not in str(session.execute(sa.select(CronToken.__table__)).all())
    found = accounts.find_token(session, plain)
    assert found is not None
    assert (found.name, found.role, found.created_by) == ("deploy", "operator", "cli:root")
    accounts.revoke_token(session, row.id, ROOT)
    accounts.revoke_token(session, row.id, ROOT)
    assert accounts.find_token(session, plain) is None
    assert actions(session) == ["create_token", "revoke_token"]


def test_a_token_expires(session: Session) -> None:
    _, plain = accounts.create_token(session, "deploy", "operator", 7, ROOT)
    now = db.now(session)
    assert accounts.find_token(session, plain, now + timedelta(days=6, hours=23)) is not None
    assert accounts.find_token(session, plain, now + timedelta(days=7, seconds=1)) is None


def test_using_a_token_is_noted_at_most_once_a_minute(session: Session) -> None:
    row, plain = accounts.create_token(session, "deploy", "viewer", None, ROOT)
    now = db.now(session)
    for seconds, noted in ((0, 0), (59, 0), (61, 61), (100, 61)):
        accounts.find_token(session, plain, now + timedelta(seconds=seconds))
        session.rollback()
        assert session.get_one(CronToken, row.id).last_used_at == now + timedelta(seconds=noted)


def test_a_token_never_reaches_above_its_maker(session: Session) -> None:
    with pytest.raises(Forbidden, match="higher role than its maker's: editor"):
        accounts.create_token(session, "mine", "admin", None, Actor("eve", "web"), creator_role="editor")


def test_a_token_is_refused_with_a_message_for_each_wrong_field(session: Session) -> None:
    with pytest.raises(Invalid) as refused:
        accounts.create_token(session, " \n", "root", 0, ROOT)
    assert sorted(refused.value.fields) == ["expires_days", "name", "role"]


def test_tokens_end_with_the_user_who_made_them_and_with_the_role_they_reach_above(session: Session) -> None:
    ada, eve = (accounts.create_user(session, name, PASSWORD, "admin", ROOT) for name in ("ada", "eve"))
    by_eve = Actor("eve", "web")
    strong = accounts.create_token(session, "strong", "admin", None, by_eve)[1]
    weak = accounts.create_token(session, "weak", "viewer", None, by_eve)[1]
    others = [
        accounts.create_token(session, "ada's", "admin", None, Actor("ada", "web"))[1],
        accounts.create_token(session, "made by a token called eve", "admin", None, Actor("eve", "api"))[1],
    ]

    def valid(*plains: str) -> list[bool]:
        return [accounts.find_token(session, plain) is not None for plain in plains]

    accounts.set_role(session, eve.id, "editor", ROOT)
    assert valid(strong, weak) == [False, True]
    accounts.set_enabled(session, eve.id, False, ROOT)
    assert valid(strong, weak, *others) == [False, False, True, True]
    assert ada.enabled


def test_a_sign_in_link_is_no_api_token(session: Session, settings: Settings, admin: CronUser) -> None:
    link = accounts.create_sign_in_link(session, ROOT)
    _, token = accounts.create_token(session, "deploy", "admin", None, ROOT)
    assert accounts.find_token(session, link) is None
    with pytest.raises(Forbidden):
        accounts.use_sign_in_link(session, token, HERE, "browser", settings)
    assert [row.name for row in accounts.list_tokens(session)] == ["deploy"]


# -- sign-in links -------------------------------------------------------------------------------------------


def test_a_link_signs_in_once(session: Session, settings: Settings, admin: CronUser) -> None:
    link = accounts.create_sign_in_link(session, ROOT)
    assert (
        who(session, accounts.use_sign_in_link(session, link, HERE, "browser", settings), settings) == "ada"
    )
    with pytest.raises(Forbidden, match="has been used or has expired"):
        accounts.use_sign_in_link(session, link, HERE, "browser", settings)


def test_a_link_used_twice_at_once_signs_in_once(
    session: Session, sessions: sessionmaker[Session], settings: Settings, admin: CronUser
) -> None:
    link = accounts.create_sign_in_link(session, ROOT)
    results = at_once(
        sessions, [lambda own: accounts.use_sign_in_link(own, link, HERE, "browser", settings)] * 5
    )
    assert sum(isinstance(result, str) for result in results) == 1, results


def test_a_link_ends_by_time_by_a_new_password_and_with_its_user(
    session: Session, settings: Settings, admin: CronUser
) -> None:
    bob = accounts.create_user(session, "bob", None, "viewer", ROOT)

    def refused(link: str) -> bool:
        try:
            accounts.use_sign_in_link(session, link, HERE, "browser", settings)
        except Forbidden:
            return True
        return False

    assert refused(accounts.create_sign_in_link(session, ROOT, "bob", timedelta(seconds=-1)))
    link = accounts.create_sign_in_link(session, ROOT, "bob")
    accounts.set_password(session, bob.id, PASSWORD, ROOT)
    assert refused(link)
    link = accounts.create_sign_in_link(session, ROOT, "bob")
    accounts.set_enabled(session, bob.id, False, ROOT)
    accounts.set_enabled(session, bob.id, True, ROOT)
    assert refused(link)
    assert not refused(accounts.create_sign_in_link(session, ROOT, "bob"))


def test_the_first_start_gives_links_until_somebody_has_a_password(
    session: Session, settings: Settings
) -> None:
    lost, link = accounts.first_start_link(session), accounts.first_start_link(session)
    assert lost
    assert link
    token = accounts.use_sign_in_link(session, link, HERE, "browser", settings)
    user = accounts.session_user(session, token, settings)
    assert user is not None
    assert (user.username, user.role, user.password_hash) == ("admin", "admin", None)
    accounts.change_password(session, user.id, "", PASSWORD, Actor("admin", "web"), keep=token)
    assert who(session, token, settings) == "admin"
    assert accounts.first_start_link(session) is None
    with pytest.raises(Forbidden):  # setting a password closes the doors that were left open
        accounts.use_sign_in_link(session, lost, HERE, "browser", settings)


def test_processes_that_start_at_once_make_one_administrator(
    session: Session, sessions: sessionmaker[Session]
) -> None:
    links = at_once(sessions, [accounts.first_start_link] * 4)
    assert all(isinstance(link, str) for link in links), links
    assert len(set(links)) == 4
    assert session.scalar(sa.select(sa.func.count()).select_from(CronUser)) == 1


def test_no_link_without_an_administrator(session: Session) -> None:
    with pytest.raises(NotFound, match="users create"):
        accounts.create_sign_in_link(session, ROOT)

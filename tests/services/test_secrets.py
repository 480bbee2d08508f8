"""Secrets: nobody reads them but the jobs they are granted to."""

from __future__ import annotations

import stat
from dataclasses import replace

import pytest
import sqlalchemy as sa
from cryptography.fernet import Fernet
from sqlalchemy.orm import Session

from kytecron.config import Settings
from kytecron.core.errors import Conflict, Invalid, NotFound
from kytecron.services import secrets
from kytecron.services.audit import Actor
from kytecron.store.models import CronAudit, CronSecret
from tests.factories import add_job

ANNA = Actor("anna")


def granted(session: Session, settings: Settings, job_id: int) -> dict[str, str]:
    found = secrets.granted_to_jobs(session, settings, [job_id]).get(job_id, {})
    assert isinstance(found, dict), found
    return found


def test_a_job_reads_what_it_was_granted_and_nothing_else(session: Session, settings: Settings) -> None:
    job, other = add_job(session), add_job(session)
    for name, value in (("API_KEY", "s3cret ✓"), ("DB_PASSWORD", "hunter2"), ("UNUSED", "x")):
        secrets.set_secret(session, name, value, ANNA, settings)
    for name in ("DB_PASSWORD", "API_KEY", "API_KEY"):
        secrets.grant(session, job.id, name, ANNA)
    secrets.grant(session, other.id, "DB_PASSWORD", ANNA)
    assert granted(session, settings, job.id) == {"API_KEY": "s3cret ✓", "DB_PASSWORD": "hunter2"}
    assert secrets.granted_to_jobs(session, settings, [job.id, other.id, 999]).keys() == {job.id, other.id}
    secrets.revoke(session, job.id, "API_KEY", ANNA)
    assert granted(session, settings, job.id) == {"DB_PASSWORD": "hunter2"}
    with pytest.raises(NotFound, match="has no secret API_KEY"):
        secrets.revoke(session, job.id, "API_KEY", ANNA)
    secrets.delete_secret(session, "DB_PASSWORD", ANNA)
    assert granted(session, settings, job.id) == {}
    assert [row.name for row in secrets.list_secrets(session)] == ["API_KEY", "UNUSED"]


def test_a_value_can_be_replaced(session: Session, settings: Settings) -> None:
    job = add_job(session)
    secrets.set_secret(session, "API_KEY", "old", ANNA, settings)
    secrets.grant(session, job.id, "API_KEY", ANNA)
    secrets.set_secret(session, "API_KEY", "new", Actor("bob"), settings)
    assert granted(session, settings, job.id) == {"API_KEY": "new"}
    (row,) = secrets.list_secrets(session)
    assert row.updated_by == "bob"


def test_neither_the_tables_nor_the_audit_log_hold_a_value(session: Session, settings: Settings) -> None:
    job = add_job(session)
    secrets.set_secret(session, "API_KEY", "plain-as-day", ANNA, settings)
    secrets.set_secret(session, "API_KEY", "plain-as-day", ANNA, settings)
    secrets.grant(session, job.id, "API_KEY", ANNA)
    secrets.rotate(session, ANNA, settings)
    stored = str(session.execute(sa.select(CronSecret.__table__)).all())
    audited = session.execute(sa.select(CronAudit.__table__).order_by(CronAudit.id)).all()
    assert "plain-as-day" not in stored + str(audited)
    assert [row.action for row in audited] == ["create", "replace", "grant_secret", "rotate_secrets"]


def test_the_largest_value_is_64_kilobytes(session: Session, settings: Settings) -> None:
    job = add_job(session)
    largest = "é" * (32 * 1024)
    secrets.set_secret(session, "LARGE", largest, ANNA, settings)
    secrets.grant(session, job.id, "LARGE", ANNA)
    assert granted(session, settings, job.id) == {"LARGE": largest}
    with pytest.raises(Invalid, match="this one has 65537"):
        secrets.set_secret(session, "LARGE", largest + "x", ANNA, settings)


def test_names_are_those_of_environment_variables(session: Session, settings: Settings) -> None:
    for name in ("", "lower", "1ST", "A B", "A-B", "Ä", "A" * 101, "A\n"):
        with pytest.raises(Invalid) as refused:
            secrets.set_secret(session, name, "", ANNA, settings)
        assert sorted(refused.value.fields) == ["name", "value"], name
    with pytest.raises(Invalid, match="valid text"):
        secrets.set_secret(session, "A", "\ud800", ANNA, settings)


def test_only_what_exists_is_granted(session: Session, settings: Settings) -> None:
    job = add_job(session)
    with pytest.raises(NotFound, match="Secret 'NONE' does not exist"):
        secrets.grant(session, job.id, "NONE", ANNA)
    secrets.set_secret(session, "API_KEY", "x", ANNA, settings)
    with pytest.raises(NotFound, match="Job 999 does not exist"):
        secrets.grant(session, 999, "API_KEY", ANNA)


def test_keys_can_be_changed_without_a_job_noticing(session: Session, settings: Settings) -> None:
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    job = add_job(session)
    with_old = replace(settings, secrets_keys=old)
    secrets.set_secret(session, "API_KEY", "value", ANNA, with_old)
    secrets.grant(session, job.id, "API_KEY", ANNA)
    with_both = replace(settings, secrets_keys=f"{new}, {old}")
    assert granted(session, with_both, job.id) == {"API_KEY": "value"}
    assert secrets.rotate(session, ANNA, with_both) == 1
    assert granted(session, replace(settings, secrets_keys=new), job.id) == {"API_KEY": "value"}
    lost = secrets.granted_to_jobs(session, with_old, [job.id])[job.id]
    assert isinstance(lost, Conflict)


def test_a_key_that_was_lost_stops_its_own_jobs_only_and_rotation_changes_nothing(
    session: Session, settings: Settings
) -> None:
    key = Fernet.generate_key().decode()
    fine, broken = add_job(session), add_job(session)
    secrets.set_secret(session, "FINE", "x", ANNA, settings)
    secrets.set_secret(session, "LOST", "y", ANNA, replace(settings, secrets_keys=key))
    secrets.grant(session, fine.id, "FINE", ANNA)
    secrets.grant(session, broken.id, "LOST", ANNA)
    found = secrets.granted_to_jobs(session, settings, [fine.id, broken.id])
    assert found[fine.id] == {"FINE": "x"}
    lost = str(found[broken.id])
    assert "The secret LOST was encrypted with a key that is not in KYTECRON_SECRETS_KEYS" in lost
    assert not lost.endswith("."), "why and doctor say it within a sentence of theirs"
    query = sa.select(CronSecret.ciphertext).order_by(CronSecret.id)
    before = session.scalars(query).all()
    with pytest.raises(Conflict, match="LOST"):
        secrets.rotate(session, ANNA, settings)
    assert session.scalars(query).all() == before


def test_production_keeps_no_secret_without_a_key_of_its_own(session: Session, settings: Settings) -> None:
    production = replace(settings, environment="production")
    with pytest.raises(Invalid, match="KYTECRON_SECRETS_KEYS must be set") as refused:
        secrets.set_secret(session, "API_KEY", "x", ANNA, production)
    assert list(refused.value.fields) == ["KYTECRON_SECRETS_KEYS"]
    assert secrets.list_secrets(session) == []


def test_development_makes_a_key_once_that_only_its_owner_can_read(sqlite_settings: Settings) -> None:
    (key,) = sqlite_settings.secrets_key_list()
    assert sqlite_settings.secrets_key_list() == [key]
    Fernet(key)
    file = sqlite_settings.instance_path / "secrets-key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_key_that_is_none_is_refused_at_the_start_without_being_shown() -> None:
    good = Fernet.generate_key().decode()
    Settings.load({"secrets_keys": good})
    for keys in ("change-me", f"{good},short", "ü" * 44):
        with pytest.raises(Invalid, match="must be Fernet keys") as refused:
            Settings.load({"secrets_keys": keys})
        assert keys not in str(refused.value)


@pytest.mark.parametrize("broken", ["no key", "directory"])
def test_a_key_file_that_cannot_be_used_is_told_for_each_job_and_breaks_nothing(
    session: Session, settings: Settings, broken: str
) -> None:
    secrets.set_secret(session, "API_KEY", "abc", ANNA, settings)
    job = add_job(session)
    secrets.grant(session, job.id, "API_KEY", ANNA)
    key = settings.instance_path / "secrets-key"
    key.unlink()
    key.mkdir() if broken == "directory" else key.write_text("no key")
    found = secrets.granted_to_jobs(session, settings, [job.id])[job.id]
    assert isinstance(found, Invalid)
    assert "secrets-key cannot be used" in found.message
    assert list(secrets.unreadable(session, settings)) == ["API_KEY"]

"""Secrets for jobs: encrypted in the table, readable only by the jobs they are granted to.

The keys live outside the database (setting `secrets_keys`, newest first): new values are encrypted with the first,
old ones can be read with any. To change keys put a new one in front, call `rotate`, then drop the old one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from itertools import groupby

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, undefer

from ..config import NEW_SECRETS_KEY, Settings
from ..core.errors import Conflict, Invalid, KytecronError, NotFound
from ..store import db
from ..store.db import hits, transactional
from ..store.models import CronJob, CronJobSecret, CronSecret
from . import audit
from .audit import Actor
from .ciphers import Cipher

NAME = re.compile(r"[A-Z_][A-Z0-9_]{0,99}")
MAX_VALUE_BYTES = 64 * 1024


@transactional
def set_secret(
    session: Session, name: str, value: str, actor: Actor, settings: Settings, *, replace: bool = True
) -> CronSecret:
    """Store a value, or replace the one that `name` has. Nothing ever shows it again.

    Raises Invalid naming `name` (also for one that is taken, without `replace`) or `value`, or the setting that is
    missing in production.
    """
    if wrong := problems(name, value):
        raise Invalid(wrong)
    ciphertext = _cipher(settings).encrypt(value.encode())
    now = db.now(session)
    row = session.scalar(sa.select(CronSecret).where(CronSecret.name == name).with_for_update())
    if row is not None and not replace:
        raise Invalid({"name": f"The name {name} is taken"})
    action = "replace" if row else "create"
    if row is None:
        row = CronSecret(name=name, created_at=now)
        session.add(row)
    row.ciphertext, row.updated_at, row.updated_by = ciphertext, now, actor.name[:100]
    try:
        session.flush()
    except IntegrityError:
        raise Conflict(
            f"The secret {name} was made by somebody else just now. Look, then try again."
        ) from None
    audit.record(session, actor, action, ("secret", row.id), name=name)
    return row


@transactional
def delete_secret(session: Session, name: str, actor: Actor) -> None:
    """Remove a secret and its grants. Raises NotFound."""
    row = _find(session, name)
    session.execute(sa.delete(CronJobSecret).where(CronJobSecret.secret == row.id))
    audit.record(session, actor, "delete", ("secret", row.id), name=name)
    session.delete(row)


def list_secrets(session: Session) -> Sequence[CronSecret]:
    """All secrets by name. Their values are not among what is read."""
    return session.scalars(sa.select(CronSecret).order_by(CronSecret.name)).all()


def get_secret(session: Session, secret_id: int) -> CronSecret:
    """A secret without its value. Raises NotFound."""
    row = session.get(CronSecret, secret_id)
    if row is None:
        raise NotFound(f"Secret {secret_id} does not exist")
    return row


@transactional
def grant(session: Session, job_id: int, name: str, actor: Actor) -> None:
    """Let a job read a secret. Granting twice is no error. Raises NotFound for either."""
    row = _find(session, name)
    job = session.get(CronJob, job_id)
    if job is None or job.deleted_at is not None:
        raise NotFound(f"Job {job_id} does not exist")
    if session.get(CronJobSecret, (job_id, row.id)) is not None:
        return
    session.add(CronJobSecret(cron_job=job_id, secret=row.id))
    audit.record(session, actor, "grant_secret", ("job", job_id), name=job.name, after={"secret": name})


@transactional
def revoke(session: Session, job_id: int, name: str, actor: Actor) -> None:
    """Take a secret from a job; runs that have started keep what they were given. Raises NotFound."""
    row = _find(session, name)
    given = sa.delete(CronJobSecret).where(CronJobSecret.cron_job == job_id, CronJobSecret.secret == row.id)
    if not hits(session, given):
        raise NotFound(f"Job {job_id} has no secret {name}")
    audit.record(session, actor, "revoke_secret", ("job", job_id), before={"secret": name})


def granted_jobs(session: Session, secret_ids: Collection[int] | None = None) -> dict[int, list[CronJob]]:
    """The jobs that may read each secret (None: all), by its id; in the order of their names, without deleted ones."""
    query = (
        sa.select(CronJobSecret.secret, CronJob)
        .join(CronJob, CronJob.id == CronJobSecret.cron_job)
        .where(CronJob.deleted_id == 0)
        .order_by(CronJobSecret.secret, CronJob.name)
    )
    if secret_ids is not None:
        query = query.where(CronJobSecret.secret.in_(secret_ids))
    rows = session.execute(query).all()
    return {secret: [job for _, job in group] for secret, group in groupby(rows, key=lambda row: int(row[0]))}


def granted_to_jobs(
    session: Session, settings: Settings, job_ids: Collection[int]
) -> dict[int, dict[str, str] | KytecronError]:
    """The secrets that jobs may read, in plain text, for their processes and for masking their output.

    Jobs without any are left out. A job with one that cannot be decrypted with the keys set here, whatever is wrong
    with them, has the error in its place: it must not start without, and must not keep the others from starting.
    """
    query = (
        sa.select(CronJobSecret.cron_job, CronSecret.name, CronSecret.ciphertext)
        .join(CronSecret, CronSecret.id == CronJobSecret.secret)
        .where(CronJobSecret.cron_job.in_(job_ids))
        .order_by(CronJobSecret.cron_job, CronSecret.name)
    )
    granted: dict[int, dict[str, str] | KytecronError] = {}
    for job_id, rows in groupby(session.execute(query), key=lambda row: int(row.cron_job)):
        try:
            cipher = _cipher(settings)
            granted[job_id] = {row.name: _decrypt(cipher, row.name, row.ciphertext) for row in rows}
        except KytecronError as error:
            granted[job_id] = error
    return granted


def unreadable(session: Session, settings: Settings) -> dict[str, str]:
    """The secrets that cannot be decrypted with the keys set here, by name, each with the reason."""
    found: dict[str, str] = {}
    for row in session.execute(sa.select(CronSecret.name, CronSecret.ciphertext).order_by(CronSecret.name)):
        try:
            _decrypt(_cipher(settings), row.name, row.ciphertext)
        except KytecronError as error:
            found[row.name] = f"The secret {row.name} cannot be read. {error.message}"
    return found


@transactional
def rotate(session: Session, actor: Actor, settings: Settings) -> int:
    """Encrypt all secrets anew with the newest key; returns how many. Afterwards the older keys can be dropped.

    Raises Conflict, and changes nothing, where one cannot be decrypted with the keys that are set.
    """
    cipher = _cipher(settings)
    query = (
        sa.select(CronSecret)
        .options(undefer(CronSecret.ciphertext))
        .order_by(CronSecret.id)
        .with_for_update()
    )
    rows = session.scalars(query.execution_options(populate_existing=True)).all()
    for row in rows:
        row.ciphertext = cipher.encrypt(_decrypt(cipher, row.name, row.ciphertext).encode())
    audit.record(session, actor, "rotate_secrets", ("secret", ""), after={"count": len(rows)})
    return len(rows)


def problems(name: str, value: str) -> dict[str, str]:
    """What is wrong with a secret, by field. The value is not told."""
    wrong: dict[str, str] = {}
    if not NAME.fullmatch(name):
        wrong["name"] = (
            "name must be 1 to 100 of A-Z, 0-9 and _ , not beginning with a digit, such as API_KEY"
        )
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        wrong["value"] = "value must be valid text"
    else:
        if not 1 <= size <= MAX_VALUE_BYTES:
            wrong["value"] = f"value must be 1 to {MAX_VALUE_BYTES} bytes; this one has {size}"
    return wrong


def _cipher(settings: Settings) -> Cipher:
    try:
        keys = [key.strip() for key in settings.secrets_key_list()]
        if keys:
            return Cipher(keys)
    except (OSError, ValueError) as error:
        problem = f"The key in {settings.instance_path / 'secrets-key'} cannot be used: {error}"
        raise Invalid({"KYTECRON_SECRETS_KEYS": problem}) from None
    raise Invalid(
        {
            "KYTECRON_SECRETS_KEYS": "KYTECRON_SECRETS_KEYS must be set to keep secrets in production, "
            f"for example to the output of: {NEW_SECRETS_KEY}"
        }
    )


def _decrypt(cipher: Cipher, name: str, ciphertext: bytes) -> str:
    try:
        text = cipher.decrypt(ciphertext)
        if text is not None:
            return text.decode()
    except UnicodeDecodeError:
        pass
    raise Conflict(
        f"The secret {name} was encrypted with a key that is not in KYTECRON_SECRETS_KEYS. "
        "Put that key back, or set the secret again"
    )


def _find(session: Session, name: str) -> CronSecret:
    row = session.scalar(sa.select(CronSecret).where(CronSecret.name == name).with_for_update())
    if row is None:
        raise NotFound(f"Secret {name[:100]!r} does not exist")
    return row

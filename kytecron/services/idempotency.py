"""A request that is sent twice is carried out once: the second one gets the answer of the first.

The caller names a request with a key of its own. `once` carries out what fits into one transaction, and the key with
its answer is written in that transaction: either both are there or neither, also when a COMMIT's reply is lost. Two
that come at once wait for each other. `stepwise` is for what takes several transactions, such as a bulk action: the
key is noted before, the answer after, and a repetition that comes in between is told to come again.

What was refused changed nothing, so its key is free again. Answers are kept for KEPT, encrypted with the secret key
of the installation; a new secret key forgets them all. At most MOST_A_DAY requests a day and caller carry a key, and
no answer takes more than MAX_ANSWER bytes. An answer that holds a token or a password must not come here.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ..config import Settings
from ..core.errors import Conflict, Invalid, KytecronError, UnderWay
from ..store import db
from ..store.db import transactional
from ..store.models import CronIdempotencyKey
from . import throttle
from .ciphers import Cipher

KEPT = timedelta(hours=24)
"""`services.retention` forgets keys that are older."""
MOST_A_DAY = 10_000
MAX_ANSWER = 64 * 1024
STEPS_TAKE = timedelta(minutes=10)
"""Whoever has not answered after so long never will: its process was killed in the middle."""
RETRY_AFTER = 2
DAY = 86_400
FIELD = "Idempotency-Key"


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: who sent it (`token:3`, `user:7`), under which key, and all that it asks for."""

    caller: str
    key: str
    request: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request was answered with."""

    status: int
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


class Given(NamedTuple):
    """An answer, and whether it is that of an earlier request with the same key."""

    answer: Answer
    replayed: bool


def once(session: Session, settings: Settings, asked: Asked, act: Callable[[], Answer]) -> Given:
    """The answer of `act`, which is one transaction, or the one that it gave to the same request before.

    Raises Invalid for a key that came with another request, TooManyRequests beyond MOST_A_DAY, and what `act` raises,
    which leaves no trace of the key. A deadlock repeats `act`: it must depend on its arguments and the database only.
    """
    throttle.allow(session, f"keys:{asked.caller}", MOST_A_DAY, DAY)
    return _once(session, settings, asked, act)


@transactional
def _once(session: Session, settings: Settings, asked: Asked, act: Callable[[], Answer]) -> Given:
    known = _reserve(session, settings, asked, db.now(session))
    if known is not None:
        return Given(known, replayed=True)
    answer = act()
    _write(session, settings, asked, answer)
    return Given(answer, replayed=False)


def stepwise(session: Session, settings: Settings, asked: Asked, act: Callable[[], Answer]) -> Given:
    """The same for an `act` of several transactions.

    Raises UnderWay while the first request is under way, and Conflict where its process ended in the middle: what was
    done of it is not known here.
    """
    throttle.allow(session, f"keys:{asked.caller}", MOST_A_DAY, DAY)
    known = transactional(_reserve)(session, settings, asked, db.now(session))
    if known is not None:
        return Given(known, replayed=True)
    try:
        answer = act()
    except KytecronError:
        _forget(session, settings, asked)
        raise
    keep(session, settings, asked, answer)
    return Given(answer, replayed=False)


def keep(session: Session, settings: Settings, asked: Asked, answer: Answer) -> None:
    """Give a request that was carried out another answer from now on, such as the one after waiting for the end."""
    transactional(_write)(session, settings, asked, answer)


def _reserve(session: Session, settings: Settings, asked: Asked, now: datetime) -> Answer | None:
    """Note that a request is being carried out; the answer that it has been given already, if any."""
    keys = _Keys(settings, asked)
    row = session.get(CronIdempotencyKey, keys.key_hash, populate_existing=True)
    if row is None and _insert(session, keys, now):
        return None
    # Somebody was faster: their transaction is over, or the insertion would still wait for it.
    row = session.get(CronIdempotencyKey, keys.key_hash, populate_existing=True, with_for_update=True)
    if row is None or row.started_at <= now - KEPT:
        if row is not None:
            session.delete(row)
            session.flush()
        if not _insert(session, keys, now):
            raise UnderWay("Another request with the same Idempotency-Key is under way", RETRY_AFTER)
        return None
    return _known(keys, row, now)


def _insert(session: Session, keys: _Keys, now: datetime) -> bool:
    row = CronIdempotencyKey(key_hash=keys.key_hash, request_hash=keys.request_hash, started_at=now)
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError:
        return False
    return True


def _known(keys: _Keys, row: CronIdempotencyKey, now: datetime) -> Answer:
    if row.request_hash != keys.request_hash:
        raise Invalid(
            {FIELD: f"{FIELD}: this key came with another request before. Send a new key with a new request"}
        )
    if row.status is None:
        if row.started_at > now - STEPS_TAKE:
            raise UnderWay(f"The first request with this {FIELD} is still being carried out", RETRY_AFTER)
        raise Conflict(
            f"The first request with this {FIELD} was cut off in the middle: look what it has done, and send a "
            "new key for the rest"
        )
    if row.answer is None or (answer := keys.unsealed(row.answer)) is None:
        raise Conflict(
            f"The first request with this {FIELD} was carried out (status {row.status}), but its answer is not kept"
        )
    return answer


def _write(session: Session, settings: Settings, asked: Asked, answer: Answer) -> None:
    keys = _Keys(settings, asked)
    session.execute(
        sa.update(CronIdempotencyKey)
        .where(CronIdempotencyKey.key_hash == keys.key_hash)
        .values(status=answer.status, answer=keys.sealed(answer))
    )


@transactional
def _forget(session: Session, settings: Settings, asked: Asked) -> None:
    key_hash = _Keys(settings, asked).key_hash
    session.execute(sa.delete(CronIdempotencyKey).where(CronIdempotencyKey.key_hash == key_hash))


class _Keys:
    """What the table knows of a request, and how its answer is sealed."""

    def __init__(self, settings: Settings, asked: Asked) -> None:
        # A digest of its own: whoever reads the table can neither guess requests nor open answers.
        self._key = hmac.digest(settings.require_secret_key().encode(), b"kytecron idempotency", "sha256")
        self.key_hash = self._digest(f"{asked.caller}\n{asked.key}")
        self.request_hash = self._digest(asked.request)

    def _digest(self, text: str) -> str:
        return hmac.new(self._key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()

    def _cipher(self) -> Cipher:
        return Cipher([base64.urlsafe_b64encode(self._key)])

    def sealed(self, answer: Answer) -> bytes | None:
        """The answer as it is kept; None for one that is too large."""
        sealed = self._cipher().encrypt(zlib.compress(json.dumps(asdict(answer)).encode()))
        return sealed if len(sealed) <= MAX_ANSWER else None

    def unsealed(self, sealed: bytes) -> Answer | None:
        """None for one that somebody has changed by hand."""
        packed = self._cipher().decrypt(sealed)
        return None if packed is None else Answer(**json.loads(zlib.decompress(packed)))

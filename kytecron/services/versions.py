"""Versions of a job's code: every saved state is kept, each distinct source is stored once.

Locks are taken in one order: the job's row, then its executions, then versions, then contents by hash. Whoever
writes a version holds its job's row, so the versions of one job have one writer at a time; contents are shared
by jobs, and their reference counts are only ever moved by statements that add to what stands there.
"""

from __future__ import annotations

import bz2
import re
from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ..core import diff, source
from ..core.errors import Conflict, Invalid, NotFound, Unreadable
from ..core.states import ACTIVE
from ..core.untrusted import LARGEST, LARGEST_VERSION, name_problem
from ..store import db, dialects
from ..store.db import transactional
from ..store.dialects import AT_ONCE
from ..store.models import CronJob, CronJobExecution, KyteCronJobVersion, KyteCronJobVersionContent
from . import audit, checking
from .audit import Actor
from .base import Service

CONTENT: Any = KyteCronJobVersionContent.__table__
VERSION: Any = KyteCronJobVersion.__table__

MAX_MESSAGE = 500
MAX_PAGE = 200
LARGEST_CONTENT = 16_000_000
"""Bytes that stored source may unpack to: more than code was ever allowed to have."""


class CronVersionControl(Service):
    """The versions of jobs' code.

        with CronVersionControl() as versions:
            versions.create_version(5, code, message="retry on 503")
            print(versions.compare(5, 1, 2))

    Without a session it opens one of its own: see Service. Each writing method is one transaction, and audited.
    """

    def create_version(
        self, job_id: int, code: str, message: str = "", base_version: int | None = None
    ) -> KyteCronJobVersion | None:
        """Save code as the job's current version and return that; None where it is the current code already.

        `base_version` is the version that the edit started from. Raises NotFound; Invalid for code that cannot
        be a job; Conflict, with `details` of both sides, where `base_version` is no longer the current one.
        """
        return create_version(self.session, self.actor, job_id, code, message, base_version)

    def rollback(self, job_id: int, version_number: int) -> KyteCronJobVersion:
        """Make an old version current again. Raises NotFound, and Conflict where it is current already."""
        return roll_back(self.session, self.actor, job_id, version_number)

    def prune(self, job_id: int, keep: int) -> int:
        """Remove all versions but the newest `keep`, the current one and those that waiting or running executions
        ask for; returns how many were removed. Contents that no version points at any more go with them.

        Raises NotFound, and Invalid for a `keep` below 1.
        """
        return prune(self.session, self.actor, job_id, keep)

    def history(
        self, job_id: int, limit: int = 50, before: int | None = None
    ) -> Sequence[KyteCronJobVersion]:
        """Versions, newest first, at most MAX_PAGE; `before` goes on where a page ended. Raises NotFound."""
        with self._reading() as session:
            return history(session, job_id, limit, before)

    def get(self, job_id: int, version_number: int) -> KyteCronJobVersion:
        """One version. Raises NotFound."""
        with self._reading() as session:
            return get_version(session, job_id, version_number)

    def code(self, job_id: int, version_number: int) -> str:
        """The source of a version. Raises NotFound, and Unreadable where its stored content is damaged."""
        with self._reading() as session:
            return source_of(session, job_id, version_number)

    def compare(
        self, job_id: int, from_version: int, to_version: int, context: int | None = None
    ) -> diff.Diff:
        """Two versions side by side, with `context` equal lines around each change or all. Raises NotFound."""
        with self._reading() as session:
            old, new = (source_of(session, job_id, number) for number in (from_version, to_version))
        return diff.side_by_side(old, new, context)

    def content_stats(self, top: int = 10) -> dict[str, Any]:
        """How much is stored and what sharing and compression save; see `content_stats` below."""
        with self._reading() as session:
            return content_stats(session, top)

    def find_content(self, hash_prefix: str, limit: int = 50) -> Sequence[KyteCronJobVersionContent]:
        """Contents whose SHA-256 begins with those hexadecimal digits. Raises Invalid for anything else."""
        with self._reading() as session:
            return find_content(session, hash_prefix, limit)

    def orphaned(self) -> Sequence[KyteCronJobVersionContent]:
        """Contents that no version points at: left by changes made by hand, for prune takes its own along."""
        with self._reading() as session:
            return session.scalars(
                sa.select(KyteCronJobVersionContent)
                .where(CONTENT.c.reference_count <= 0)
                .order_by(CONTENT.c.content_hash)
                .execution_options(populate_existing=True)
            ).all()

    def check_references(self) -> list[Miscount]:
        """Contents whose reference count is not the number of versions that point at them: none, always."""
        with self._reading() as session:
            return check_references(session)

    def repair_references(self) -> list[Miscount]:
        """Set wrong reference counts right; returns what was wrong."""
        return repair_references(self.session, self.actor)


# -- a job's row ---------------------------------------------------------------------------------------------


def lock_job(session: Session, job_id: int) -> CronJob:
    """A living job, its row locked until the transaction ends: the first lock of every write about a job.

    Raises NotFound.
    """
    job: CronJob | None = session.scalar(_living_job(job_id).with_for_update())
    if job is None:
        raise NotFound(f"Job {job_id} does not exist")
    return job


def read_job(session: Session, job_id: int) -> CronJob:
    """A living job as the database has it now. Raises NotFound."""
    job: CronJob | None = session.scalar(_living_job(job_id))
    if job is None:
        raise NotFound(f"Job {job_id} does not exist")
    return job


def _living_job(job_id: int) -> Any:
    known = CronJob.id == job_id if 0 < job_id <= LARGEST else sa.false()
    # What the session remembers of the row may be older than what another process wrote.
    return sa.select(CronJob).where(known, CronJob.deleted_id == 0).execution_options(populate_existing=True)


def touch(session: Session, actor: Actor, job: CronJob) -> None:
    """Note who changed a job last."""
    job.updated_at = db.now(session)
    job.updated_by = actor.name[:100]


# -- saving --------------------------------------------------------------------------------------------------


def create_version(
    session: Session, actor: Actor, job_id: int, code: str, message: str = "", base_version: int | None = None
) -> KyteCronJobVersion | None:
    """See CronVersionControl.create_version."""
    if wrong := problems_of(actor, "" if code is None else code, message):
        raise Invalid(wrong)
    return _create_version(session, actor, job_id, code, message, base_version)


@transactional
def _create_version(
    session: Session, actor: Actor, job_id: int, code: str, message: str, base_version: int | None
) -> KyteCronJobVersion | None:
    return save_code(session, actor, lock_job(session, job_id), code, message, base_version)


def problems_of(actor: Actor, code: object, message: object = "") -> dict[str, str]:
    """What is wrong with `code` (None where there is none to save) and `message`, by field. Raises Busy.

    Checking code takes a while: ask before the transaction, not in it.
    """
    wrong: dict[str, str] = {}
    if isinstance(code, str):
        try:
            _check(code, actor)
        except Invalid as invalid:
            wrong |= invalid.fields
    elif code is not None:
        wrong["code"] = "code must be text"
    if not isinstance(message, str) or len(message) > MAX_MESSAGE:
        wrong["message"] = f"message must be text of at most {MAX_MESSAGE} characters"
    elif problem := name_problem(message.replace("\r\n", "\n"), several_lines=True):
        wrong["message"] = f"message {problem}"
    return wrong


_sound: deque[str] = deque(maxlen=16)
"""Hashes of code that was checked: it is asked about before a transaction and in it."""


def _check(code: str, actor: Actor) -> None:
    """Raises Invalid and Busy."""
    digest = _hash(source.normalise(code))
    if digest not in _sound:
        checking.check(code, actor)
        _sound.append(digest)


def save_code(
    session: Session,
    actor: Actor,
    job: CronJob,
    code: str,
    message: str = "",
    base_version: int | None = None,
) -> KyteCronJobVersion | None:
    """Add a version to a job whose row the caller has locked, and audit it; None where nothing changed.

    The code has been checked. Raises Conflict for an edit that started from another version than the current.
    """
    text = source.normalise(code)
    before = job.current_version
    if before is not None and get_version(session, job.id, before).content_hash == _hash(text):
        return None
    if base_version is not None and base_version != (before or 0):
        raise _stale_edit(session, job, base_version, text)
    version = add_version(session, actor, job, text, message)
    touch(session, actor, job)
    audit.record(
        session,
        actor,
        "new_version",
        ("job", job.id),
        name=job.name,
        before={"version": before},
        after={"version": version.version_number, "message": message},
    )
    return version


def add_version(
    session: Session, actor: Actor, job: CronJob, text: str, message: str = ""
) -> KyteCronJobVersion:
    """Make normalised source the next and current version of a job whose row the caller has locked.

    Its changes are counted from the version that was current, which after a rollback is not the one before it.
    """
    # Damaged content must not stand in the way of the code that replaces it.
    previous = _readable(session, job.id, job.current_version) or ""
    counts = diff.summary(previous, text)
    newest = session.scalar(
        sa.select(sa.func.max(VERSION.c.version_number)).where(VERSION.c.cron_job == job.id)
    )
    now = db.now(session)
    digest = _hold(session, text, now)
    version = KyteCronJobVersion(
        cron_job=job.id,
        # Numbers are never used again: the newest version is never removed.
        version_number=(newest or 0) + 1,
        content_hash=digest,
        message=message.replace("\r\n", "\n").strip(),
        changes_from_previous=diff.line_delta(previous, text),
        lines_added=counts.added,
        lines_removed=counts.removed,
        lines_changed=counts.changed,
        lines_before=counts.before,
        lines_after=counts.after,
        created_at=now,
        created_by=actor.name[:100],
    )
    session.add(version)
    session.flush()
    _make_current(session, job, version)
    return version


def current_source(session: Session, job: CronJob) -> str | None:
    """A job's code; None where it has none, or it is damaged."""
    return _readable(session, job.id, job.current_version)


def _readable(session: Session, job_id: int, version_number: int | None) -> str | None:
    """The source of a version; None where there is none, it was pruned, or its content is damaged."""
    if version_number is None:
        return None
    try:
        return source_of(session, job_id, version_number)
    except (NotFound, Unreadable):
        return None


def _make_current(session: Session, job: CronJob, version: KyteCronJobVersion) -> None:
    session.execute(
        sa.update(KyteCronJobVersion)
        .where(KyteCronJobVersion.cron_job == job.id, KyteCronJobVersion.is_current.is_(True))
        .values(is_current=False)
    )
    version.is_current = True
    job.current_version = version.version_number
    session.flush()


def _stale_edit(session: Session, job: CronJob, base_version: int, text: str) -> Conflict:
    current = job.current_version or 0
    row = get_version(session, job.id, current) if current else None
    by = row.created_by if row is not None else None
    return Conflict(
        f"The code is at version {current} by {by or 'somebody'} now; this edit started from version "
        f"{base_version}. Compare both and save again from version {current}",
        {
            "base_version": base_version,
            "current_version": current,
            "changed_by": by,
            "changed_at": row.created_at.isoformat() if row is not None and row.created_at else None,
            "base": _readable(session, job.id, base_version),
            "theirs": _readable(session, job.id, current),
            "yours": text,
        },
    )


@transactional
def roll_back(session: Session, actor: Actor, job_id: int, version_number: int) -> KyteCronJobVersion:
    """See CronVersionControl.rollback."""
    job = lock_job(session, job_id)
    version = get_version(session, job_id, version_number)
    before = job.current_version
    if before == version_number:
        raise Conflict(f"Already at version {version_number}")
    _make_current(session, job, version)
    touch(session, actor, job)
    audit.record(
        session,
        actor,
        "rollback",
        ("job", job_id),
        name=job.name,
        before={"version": before},
        after={"version": version_number},
    )
    return version


# -- reading -------------------------------------------------------------------------------------------------


def get_version(session: Session, job_id: int, version_number: int) -> KyteCronJobVersion:
    """One version of a job, deleted or not. Raises NotFound."""
    version = session.scalar(
        sa.select(KyteCronJobVersion)
        .where(_is_version(job_id, version_number))
        .execution_options(populate_existing=True)
    )
    if version is None:
        raise NotFound(f"Version {version_number} not found for job {job_id}")
    return version


def source_of(session: Session, job_id: int, version_number: int) -> str:
    """The source of a version of a job, deleted or not. Raises NotFound and Unreadable."""
    row = session.execute(
        sa.select(CONTENT.c.code, CONTENT.c.size_bytes, CONTENT.c.content_hash)
        .join(VERSION, VERSION.c.content_hash == CONTENT.c.content_hash)
        .where(_is_version(job_id, version_number))
    ).first()
    if row is None:
        raise NotFound(f"Version {version_number} not found for job {job_id}")
    return unpack(row.code, row.size_bytes, row.content_hash)


_CONTENTS = sa.select(CONTENT.c.content_hash, CONTENT.c.code, CONTENT.c.size_bytes).where(
    CONTENT.c.content_hash.in_(sa.bindparam("hashes", expanding=True))
)


def sources(session: Session, hashes: Collection[str]) -> dict[str, str | Unreadable]:
    """Sources by hash, in one statement; in the place of one that cannot be read stands the error."""
    found: dict[str, str | Unreadable] = {}
    for row in session.connection().execute(_CONTENTS, {"hashes": list(hashes)}) if hashes else ():
        try:
            found[row.content_hash] = unpack(row.code, row.size_bytes, row.content_hash)
        except Unreadable as error:
            found[row.content_hash] = error
    return found


def _is_version(job_id: int, version_number: int) -> Any:
    if not (0 < job_id <= LARGEST and 0 < version_number <= LARGEST_VERSION):
        return sa.false()
    return sa.and_(VERSION.c.cron_job == job_id, VERSION.c.version_number == version_number)


def history(
    session: Session, job_id: int, limit: int = 50, before: int | None = None
) -> Sequence[KyteCronJobVersion]:
    """Versions of a job, deleted or not, newest first; `before` is exclusive. Raises NotFound."""
    known = 0 < job_id <= LARGEST
    if not known or session.scalar(sa.select(CronJob.id).where(CronJob.id == job_id)) is None:
        raise NotFound(f"Job {job_id} does not exist")
    query = sa.select(KyteCronJobVersion).where(KyteCronJobVersion.cron_job == job_id)
    if before is not None:
        query = query.where(KyteCronJobVersion.version_number < min(before, LARGEST_VERSION))
    return session.scalars(
        query.order_by(KyteCronJobVersion.version_number.desc())
        .limit(max(1, min(limit, MAX_PAGE)))
        .execution_options(populate_existing=True)
    ).all()


# -- pruning -------------------------------------------------------------------------------------------------


@transactional
def prune(session: Session, actor: Actor, job_id: int, keep: int) -> int:
    """See CronVersionControl.prune."""
    if keep < 1:
        raise Invalid({"keep": "keep must be 1 or more: the newest version always stays"})
    job = lock_job(session, job_id)
    wanted = _versions_asked_for(session, job_id) | {job.current_version}
    older = session.execute(
        sa.select(VERSION.c.id, VERSION.c.version_number, VERSION.c.content_hash)
        .where(VERSION.c.cron_job == job_id)
        .order_by(VERSION.c.version_number.desc())
        .offset(keep)
    )
    doomed = [row for row in older if row.version_number not in wanted]
    for start in range(0, len(doomed), AT_ONCE):
        ids = [row.id for row in doomed[start : start + AT_ONCE]]
        session.execute(sa.delete(KyteCronJobVersion).where(KyteCronJobVersion.id.in_(ids)))
    _let_go(session, Counter(row.content_hash for row in doomed))
    if doomed:
        audit.record(
            session,
            actor,
            "prune_versions",
            ("job", job_id),
            name=job.name,
            before={"versions": sorted(row.version_number for row in doomed)},
            after={"keep": keep},
        )
    return len(doomed)


def _versions_asked_for(session: Session, job_id: int) -> set[int | None]:
    """What waiting executions want to run, and running ones run."""
    run = CronJobExecution
    rows = session.execute(
        sa.select(run.requested_version, run.version)
        .where(run.cron_job == job_id, run.status.in_(sorted(ACTIVE)))
        .distinct()
    )
    return {number for row in rows for number in row}


# -- contents: one row per source, counted -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Packed:
    """Source as it is stored."""

    content_hash: str
    data: bytes
    size_bytes: int
    """Before compression."""


def pack(text: str) -> Packed:
    """Compress normalised source."""
    plain = text.encode()
    return Packed(sha256(plain).hexdigest(), bz2.compress(plain), len(plain))


def unpack(data: bytes, size_bytes: int, content_hash: str) -> str:
    """The source in `data`, checked against its declared size and hash. Never makes more than was declared.

    Raises Unreadable for anything but what `pack` made.
    """
    problem = f"Content {content_hash[:12]} is damaged"
    if not 0 <= size_bytes <= LARGEST_CONTENT:
        raise Unreadable(f"{problem}: it claims {size_bytes} bytes; {LARGEST_CONTENT} is the most")
    try:
        # One byte more than declared, so that what is longer shows; a bomb is not unpacked further than that.
        plain = bz2.BZ2Decompressor().decompress(data, max_length=size_bytes + 1)
    except OSError as error:
        raise Unreadable(f"{problem}: {error}") from None
    if len(plain) != size_bytes or sha256(plain).hexdigest() != content_hash:
        raise Unreadable(f"{problem}: it is not the {size_bytes} bytes that its hash stands for")
    return plain.decode()


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def _hold(session: Session, text: str, now: datetime) -> str:
    """Count one more version that points at this source; store it if it is new. Returns its hash."""
    digest = _hash(text)
    counted = session.execute(
        sa.update(CONTENT)
        .where(CONTENT.c.content_hash == digest)
        .values(reference_count=CONTENT.c.reference_count + 1)
    )
    if not counted.rowcount:  # type: ignore[attr-defined]
        packed = pack(text)
        _insert_or_count(
            session,
            {
                "content_hash": digest,
                "code": packed.data,
                "size_bytes": packed.size_bytes,
                "compressed_bytes": len(packed.data),
                "reference_count": 1,
                "created_at": now,
            },
        )
    return digest


def _insert_or_count(session: Session, values: Mapping[str, Any]) -> None:
    """Insert a content, or count one more where another writer has just inserted the same.

    One statement, not a savepoint around an INSERT: a deadlock in MySQL takes the savepoint away with the
    transaction, and what is reported then is the missing savepoint.
    """
    one_more = {"reference_count": CONTENT.c.reference_count + 1}
    session.execute(dialects.of(session).insert_or_change(CONTENT, values, lambda _new: one_more))


def _let_go(session: Session, references: Counter[str]) -> None:
    """Count versions that no longer point at their contents; remove contents that nothing points at now."""
    hashes = sorted(references)  # in one order, so that two prunes cannot wait for each other
    for digest in hashes:
        session.execute(
            sa.update(CONTENT)
            .where(CONTENT.c.content_hash == digest)
            .values(reference_count=CONTENT.c.reference_count - references[digest])
        )
    for start in range(0, len(hashes), AT_ONCE):
        session.execute(
            sa.delete(CONTENT).where(
                CONTENT.c.content_hash.in_(hashes[start : start + AT_ONCE]),
                CONTENT.c.reference_count <= 0,
                # A count that somebody changed by hand must not make this fail on the foreign key.
                ~sa.exists().where(VERSION.c.content_hash == CONTENT.c.content_hash),
            )
        )


def find_content(session: Session, hash_prefix: str, limit: int = 50) -> Sequence[KyteCronJobVersionContent]:
    """Contents whose SHA-256 begins with `hash_prefix`, in the order of their hashes. Raises Invalid."""
    prefix = hash_prefix.strip().lower()
    if not re.fullmatch("[0-9a-f]{1,64}", prefix):
        raise Invalid({"hash": "hash must be the first hexadecimal digits of a SHA-256, such as 3fa9"})
    found = KyteCronJobVersionContent.content_hash
    return session.scalars(
        sa.select(KyteCronJobVersionContent)
        .where(found >= prefix, found < prefix + "g")  # a range uses the index on every database
        .order_by(found)
        .limit(max(1, min(limit, MAX_PAGE)))
        .execution_options(populate_existing=True)
    ).all()


def content_stats(session: Session, top: int = 10) -> dict[str, Any]:
    """Numbers about content storage.

    `bytes_of_versions` is what all versions would take one by one, `bytes_of_contents` what is left of it when
    each source counts once, `bytes_stored` that compressed. `dedup_rate` is the per cent saved by the first step,
    `compression_rate` by the second, `saved_rate` by both. `top_shared` names the contents that most versions
    share.
    """
    content = CONTENT.c
    total = session.execute(
        sa.select(
            sa.func.count().label("contents"),
            _sum(content.reference_count).label("versions"),
            _sum(content.size_bytes * content.reference_count).label("of_versions"),
            _sum(content.size_bytes).label("of_contents"),
            _sum(content.compressed_bytes).label("stored"),
            _sum(sa.case((content.reference_count > 1, 1), else_=0)).label("shared"),
            _sum(sa.case((content.reference_count <= 0, 1), else_=0)).label("orphaned"),
        )
    ).one()
    shared = session.execute(
        sa.select(content.content_hash, content.reference_count, content.size_bytes, content.compressed_bytes)
        .where(content.reference_count > 1)
        .order_by(content.reference_count.desc(), content.content_hash)
        .limit(max(0, min(top, MAX_PAGE)))
    )
    return {
        "contents": total.contents,
        "versions": int(total.versions),
        "shared_contents": int(total.shared),
        "orphaned_contents": int(total.orphaned),
        "bytes_of_versions": int(total.of_versions),
        "bytes_of_contents": int(total.of_contents),
        "bytes_stored": int(total.stored),
        "dedup_rate": _saved(total.of_versions, total.of_contents),
        "compression_rate": _saved(total.of_contents, total.stored),
        "saved_rate": _saved(total.of_versions, total.stored),
        "top_shared": [dict(row._mapping) for row in shared],
    }


def _sum(expression: Any) -> Any:
    return sa.func.coalesce(sa.func.sum(expression), 0)


def _saved(before: int, after: int) -> float | None:
    """Per cent with one decimal; None where there is nothing to save. Below zero where it grew."""
    return round(100 * float(before - after) / float(before), 1) if before else None


# -- reference counts, checked -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Miscount:
    """A content whose reference count is wrong."""

    content_hash: str
    recorded: int
    counted: int


def check_references(session: Session) -> list[Miscount]:
    """Contents whose reference count is not the number of versions that point at them."""
    counted = (
        sa.select(VERSION.c.content_hash, sa.func.count().label("versions"))
        .group_by(VERSION.c.content_hash)
        .subquery()
    )
    versions = sa.func.coalesce(counted.c.versions, 0)
    rows = session.execute(
        sa.select(CONTENT.c.content_hash, CONTENT.c.reference_count, versions)
        .outerjoin(counted, counted.c.content_hash == CONTENT.c.content_hash)
        .where(CONTENT.c.reference_count != versions)
        .order_by(CONTENT.c.content_hash)
    )
    return [Miscount(*row) for row in rows]


@transactional
def repair_references(session: Session, actor: Actor) -> list[Miscount]:
    """Set wrong reference counts right; returns what was wrong."""
    repaired = [
        found for wrong in check_references(session) if (found := _repair(session, wrong.content_hash))
    ]
    if repaired:
        audit.record(
            session,
            actor,
            "repair_references",
            ("content", f"{len(repaired)} contents"),
            before={found.content_hash: found.recorded for found in repaired},
            after={found.content_hash: found.counted for found in repaired},
        )
    return repaired


def _repair(session: Session, digest: str) -> Miscount | None:
    # Counted again under the content's lock, in a statement of its own: a writer may have been between its two
    # steps when we looked, and a statement that waited for a lock would still count as of before.
    recorded = session.scalar(
        sa.select(CONTENT.c.reference_count).where(CONTENT.c.content_hash == digest).with_for_update()
    )
    counted = session.scalar(sa.select(sa.func.count()).where(VERSION.c.content_hash == digest))
    if recorded is None or counted is None or recorded == counted:
        return None
    session.execute(
        sa.update(CONTENT).where(CONTENT.c.content_hash == digest).values(reference_count=counted)
    )
    return Miscount(digest, recorded, counted)

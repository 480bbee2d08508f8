"""Is everything as it should be: database, migrations, clocks, time zones, workers, leases, reference counts.

Each check is one finding in plain words with what to do about it; none changes anything unless asked to repair.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from ..config import Settings, unknown_variables
from ..core.errors import Conflict, Invalid
from ..core.schedule import TZDATA_VERSION, tzdata_order
from ..core.words import count, in_words
from ..store import db, dialects, figures, locks, queries, schema
from ..store.models import CronWorkerRecord
from . import lifecycle, probes, recount, registry, secrets, slots, upgrading
from .audit import Actor
from .registry import VERSION
from .versions import CronVersionControl

Verdict = Literal["ok", "warning", "problem", "fixed"]

SKEW_TOLD = timedelta(seconds=1)
"""Leases and slots go by the database's clock. A machine's own is what its jobs see and what its logs say."""
SKEW_BAD = timedelta(seconds=30)
MOST_REAPED = 100_000
MOST_COMPARED = 200
COMPARING_SECONDS = 5.0
"""For so many jobs and so long figures are compared with runs; a job keeps up to 10,000 of them by default."""
MOST_TOLD = 3
PATIENCE = timedelta(seconds=10)
"""A slot that has been due for so long is being passed over."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. `advice` says what to do, and is empty where there is nothing to do."""

    check: str
    verdict: Verdict
    detail: str
    advice: str = ""


def examine(engine: Engine, settings: Settings, actor: Actor, *, fix: bool = False) -> list[Finding]:
    """Check everything; with `fix` repair what can be repaired: migrations, reference counts, ended leases,
    next slots, figures.

    What cannot be checked because something before it is broken is left out.
    """
    found = [*_variables(), _database(engine)]
    if found[-1].verdict != "problem":
        found += _migrations(engine, settings, fix)
    sound = found[-1].verdict != "problem"
    found += _writes(engine, settings, with_database=sound)
    if sound:
        with db.make_sessions(engine)() as session:
            for check in _checks(session, settings, actor, fix):
                found += check()
                session.rollback()
    return found


def healthy(findings: Iterable[Finding]) -> bool:
    """Whether there is no problem left. Warnings are none."""
    return all(one.verdict != "problem" for one in findings)


def _checks(
    session: Session, settings: Settings, actor: Actor, fix: bool
) -> Iterable[Callable[[], Iterator[Finding]]]:
    alive = [one.worker for one in registry.living(session, db.now(session))]
    return (
        lambda: _clock(session, alive),
        lambda: _time_zones(alive),
        lambda: _workers(session, alive),
        lambda: _due_slots(session, alive),
        lambda: _next_slots(session, alive, fix),
        lambda: _troubles(alive),
        lambda: _secrets(session, settings),
        lambda: _leases(session, fix),
        lambda: _references(session, actor, fix),
        lambda: _figures(session, fix),
    )


# -- the database --------------------------------------------------------------------------------------------


def _variables() -> Iterator[Finding]:
    for sentence in unknown_variables():
        yield Finding("settings", "warning", sentence, "See docs/settings.md for all there are")


def _database(engine: Engine) -> Finding:
    try:
        with engine.connect() as connection:
            return _look_at(connection)
    except Exception as error:
        if not (isinstance(error, SQLAlchemyError) or db.is_outage(error)):
            raise
        return Finding(
            "database",
            "problem",
            f"{db.trouble(error)} ({db.shown(engine.url)})",
            "Check KYTECRON_DATABASE_URL, and whether the server runs and lets this machine in",
        )


def _writes(engine: Engine, settings: Settings, *, with_database: bool) -> Iterator[Finding]:
    """Whether there is room: tried by writing."""
    wrong = list(probes.unwritable(engine if with_database else None, settings))
    for problem in wrong:
        yield Finding("writes", "problem", problem, "Make room there, or let it be written to")
    if with_database and not wrong:
        yield Finding("writes", "ok", "The database and the directories of this machine take writes")


def _look_at(connection: sa.Connection) -> Finding:
    about, version = dialects.of(connection), dialects.version_of(connection)
    kind = f"{about.title} {_dotted(version)}"
    if version < about.oldest:
        advice = f"Use {about.title} {_dotted(about.oldest)} or newer"
        return Finding("database", "problem", f"{kind} is too old", advice)
    health = about.look(connection, kind)
    if not health.problem:
        return Finding("database", "ok", health.place)
    verdict: Verdict = "warning" if health.usable else "problem"
    return Finding("database", verdict, f"{health.place}: {health.problem}", health.advice)


def _dotted(version: dialects.Version) -> str:
    return ".".join(map(str, version))


def _migrations(engine: Engine, settings: Settings, fix: bool) -> Iterator[Finding]:
    problem = schema.behind(engine)
    if problem is None:
        yield Finding("migrations", "ok", "The tables are those of this version")
        return
    if fix:
        try:
            upgrading.upgrade(engine, settings)
            yield Finding("migrations", "fixed", "The database was brought to the newest migration")
            return
        except Conflict as error:
            problem = error.message
    detail, _, advice = problem.partition(". ")
    yield Finding("migrations", "problem", detail, advice)


# -- clocks and time zones -----------------------------------------------------------------------------------


def _clock(session: Session, alive: list[CronWorkerRecord]) -> Iterator[Finding]:
    skew, uncertainty = measure_skew(session)
    yield _skewed("clock", "This machine's clock", skew, uncertainty)
    for worker in alive:
        yield _skewed(
            "clock", f"The clock of worker {worker.worker_id}", timedelta(milliseconds=worker.clock_skew_ms)
        )


def measure_skew(session: Session) -> tuple[timedelta, timedelta]:
    """How far this machine's clock is ahead of the database's, and how far that may be wrong."""
    tries: list[tuple[timedelta, timedelta]] = []
    for _ in range(3):
        before = time.monotonic()
        theirs = db.now(session)
        ours = datetime.now(UTC)
        uncertainty = timedelta(seconds=time.monotonic() - before)
        tries.append((uncertainty, ours - theirs))
    uncertainty, skew = min(tries)  # the quickest answer says most
    return skew - uncertainty / 2, uncertainty / 2


def _skewed(check: str, whose: str, skew: timedelta, uncertainty: timedelta = timedelta(0)) -> Finding:
    beyond = abs(skew) - uncertainty
    if beyond < SKEW_TOLD:
        return Finding(check, "ok", f"{whose} goes with the database's")
    direction = "ahead of" if skew > timedelta(0) else "behind"
    return Finding(
        check,
        "problem" if beyond >= SKEW_BAD else "warning",
        f"{whose} is {abs(skew).total_seconds():.1f} s {direction} the database's",
        "Let chrony or systemd-timesyncd keep the clocks together; runs are on time by the database's clock",
    )


def _time_zones(alive: list[CronWorkerRecord]) -> Iterator[Finding]:
    others = sorted({worker.tzdata for worker in alive if worker.tzdata} - {TZDATA_VERSION})
    if not others:
        yield Finding("tzdata", "ok", f"Time zones are those of tzdata {TZDATA_VERSION} everywhere")
        return
    yield Finding(
        "tzdata",
        "problem",
        f"This machine has tzdata {TZDATA_VERSION}, workers have {', '.join(others)}: the newest of them plans the "
        "slots, the others run what it planned",
        "Install the same requirements.txt everywhere, then restart the workers",
    )


# -- workers and leases --------------------------------------------------------------------------------------


def _workers(session: Session, alive: list[CronWorkerRecord]) -> Iterator[Finding]:
    overdue = figures.counters(session, db.now(session)).overdue
    if not alive:
        waiting = f" and {count(overdue, 'run')} overdue" if overdue else ""
        verdict: Verdict = "problem" if overdue else "warning"
        yield Finding("workers", verdict, f"No worker is alive{waiting}", "Start one: python worker.py")
        return
    old = sorted({worker.version for worker in alive} - {VERSION})
    if old:
        detail = f"Some workers run version {', '.join(old)}; this is {VERSION}"
        yield Finding("workers", "warning", detail, "Restart them after an upgrade")
    elif overdue:
        yield Finding(
            "workers",
            "warning",
            f"{count(len(alive), 'worker')} alive, and {count(overdue, 'run')} due for more than a minute",
            "Start more workers or raise KYTECRON_CONCURRENCY; a job with a worker_tag needs a worker with that tag",
        )
    else:
        yield Finding("workers", "ok", f"{count(len(alive), 'worker')} alive")


def _due_slots(session: Session, alive: list[CronWorkerRecord]) -> Iterator[Finding]:
    """Slots that living workers pass over: somebody keeps the jobs' rows locked, or none of them works."""
    passed_over = figures.passed_over(session, db.now(session) - PATIENCE) if alive else []
    if not passed_over:
        yield Finding("slots", "ok", "No slot is due that workers have not turned into a run")
        return
    oldest = passed_over[0]
    late = in_words((db.now(session) - oldest.next_run_time).total_seconds())
    detail = f'The slot of job {oldest.id} "{oldest.name}" has been due for {late} and workers pass over it'
    if len(passed_over) > 1:
        detail += f"; so are those of {count(len(passed_over) - 1, 'other job')}"
    if locks.job_is_locked(session, oldest.id):
        held = ", ".join(locks.holders(session)) or "the database does not say by whom"
        yield Finding("slots", "problem", f"{detail}. Its row is locked: {held}", "End that transaction")
    else:
        yield Finding("slots", "problem", detail, "Look at the logs of the workers, or restart them")


def _next_slots(session: Session, alive: list[CronWorkerRecord], fix: bool) -> Iterator[Finding]:
    """Next slots that are not those that the schedules name."""
    newest = registry.newest_tzdata(alive)
    if tzdata_order(newest) > tzdata_order(TZDATA_VERSION):
        yield Finding("next slots", "warning", f"Not compared: workers have newer time zones ({newest})")
        return
    now = db.now(session)
    later: list[tuple[Any, datetime]] = []
    sooner: list[tuple[Any, datetime]] = []
    for job in queries.jobs_with_next_slot(session):
        try:
            wanted = slots.ought_to_be(job, now)
        except Invalid:
            continue  # a worker disables it at its slot, and says why
        if wanted is not None:
            (later if job.next_run_time > wanted else sooner).append((job, wanted))
    wrong = later + sooner
    if not wrong:
        yield Finding("next slots", "ok", "Every next slot is the one that its schedule names")
        return
    if fix:
        yield Finding("next slots", "fixed", f"{count(_replan(session), 'job')} planned anew")
        return
    job, wanted = wrong[0]
    detail = (
        f"{count(len(wrong), 'job')} with a next slot that the schedule does not name, such as job {job.id} "
        f'"{job.name}": {job.next_run_time:%Y-%m-%d %H:%M:%S} UTC instead of {wanted:%Y-%m-%d %H:%M:%S} UTC'
    )
    verdict: Verdict = "problem" if later else "warning"
    advice = "A clock that was set back, other time zones or a change in SQL does this; --fix plans them anew"
    yield Finding("next slots", verdict, detail, advice)


def _replan(session: Session) -> int:
    total, last = 0, 0
    while True:
        changed, following = lifecycle.replan(session, last)
        total += changed
        if following is None:
            return total
        last = following


def _troubles(alive: list[CronWorkerRecord]) -> Iterator[Finding]:
    for worker in alive:
        if worker.trouble:
            detail = f"Worker {worker.worker_id} is in trouble: {worker.trouble}"
            advice = "What it cannot start it gives back for others, and tries again; its log says more"
            yield Finding("workers", "warning", detail, advice)


def _secrets(session: Session, settings: Settings) -> Iterator[Finding]:
    problems = secrets.unreadable(session, settings)
    for problem in problems.values():
        yield Finding("secrets", "problem", problem, "Jobs that are granted it do not start")
    if not problems:
        yield Finding("secrets", "ok", "Every secret can be decrypted with the keys that are set here")


def _leases(session: Session, fix: bool) -> Iterator[Finding]:
    stale = figures.counters(session, db.now(session)).stale_locks
    if not stale:
        yield Finding("leases", "ok", "No run has a lease that has ended")
    elif fix:
        yield Finding(
            "leases", "fixed", f"{count(_reap(session), 'run')} ended as lost; the retry rule applies"
        )
    else:
        yield Finding(
            "leases",
            "problem",
            f"{count(stale, 'run')} with a lease that has ended: the workers vanished",
            "Any living worker ends them within seconds; without one, --fix does",
        )


def _reap(session: Session) -> int:
    total = 0
    while total < MOST_REAPED and (ended := lifecycle.reap(session)):
        total += len(ended)
    return total


# -- versions ------------------------------------------------------------------------------------------------


def _references(session: Session, actor: Actor, fix: bool) -> Iterator[Finding]:
    control = CronVersionControl(session, actor)
    wrong = control.repair_references() if fix else control.check_references()
    if not wrong:
        yield Finding("references", "ok", "Every stored source counts the versions that point at it")
    elif fix:
        yield Finding("references", "fixed", f"{count(len(wrong), 'reference count')} set right")
    else:
        first = wrong[0]
        yield Finding(
            "references",
            "problem",
            f"{count(len(wrong), 'reference count')} wrong, such as {first.content_hash[:12]}: "
            f"{first.recorded} recorded, {first.counted} counted",
            "Repair with --fix",
        )
    orphaned = control.orphaned()
    if orphaned:
        detail = f"{count(len(orphaned), 'stored source')} without a version, left by changes made by hand"
        yield Finding("references", "warning", detail)


# -- figures -------------------------------------------------------------------------------------------------


def _figures(session: Session, fix: bool) -> Iterator[Finding]:
    """Counters, days and standing of jobs against the runs that are kept.

    Of some jobs, others each time, for as long as looking may take; to repair, of all.
    """
    jobs = list(queries.job_ids(session))
    uncounted = queries.uncounted_jobs(session)
    random.shuffle(jobs)
    begun, compared = time.monotonic(), 0
    wrong: dict[int, list[recount.Difference]] = {}
    for job_id in jobs:
        if not fix and (compared >= MOST_COMPARED or time.monotonic() - begun > COMPARING_SECONDS):
            break
        compared += 1
        if found := recount.recount_job(session, job_id) if fix else recount.compare(session, job_id):
            wrong[job_id] = found
    whose = f"{count(compared, 'job')}" + (f" of {len(jobs)}" if compared < len(jobs) else "")
    if uncounted and not fix:
        detail = f"The runs of {count(uncounted, 'job')} are not counted into chains yet"
        yield Finding(
            "figures", "warning", detail, "A worker does this within minutes of an upgrade; --fix does it now"
        )
    if not wrong:
        yield Finding("figures", "ok", f"The figures of {whose} are what the kept runs come to")
    elif fix:
        yield Finding("figures", "fixed", f"The runs of {count(len(wrong), 'job')} were counted again")
    else:
        job_id, found = min(wrong.items())
        more = len(found) - MOST_TOLD
        told = "; ".join(map(str, found[:MOST_TOLD])) + (f"; {more} more" if more > 0 else "")
        yield Finding(
            "figures",
            "problem",
            f"{count(len(wrong), 'job')} with other figures than the runs come to (compared: {whose}), such as "
            f"job {job_id}: {told}",
            "Changes in SQL do this; --fix counts all jobs again",
        )

"""Compares what jobs wrote into their journal, what the ledger says and which slots there should have been.

The journal is appended to line by line by the job processes themselves, so the order of its lines is the order in
which things happened, whatever any clock says.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from kytecron.core.states import FINAL, Status
from kytecron.services import recount, slots
from kytecron.store.models import CronJob, CronJobExecution
from tests.workers import PATIENCE, Journal, alive, executions

BEATS = 'for _ in range({count}):\n    note(self, "beat")\n    time.sleep(0.05)'


def beating(seconds: float) -> str:
    """The body of a job that notes that it lives, every 50 ms, for `seconds`."""
    return BEATS.format(count=round(seconds / 0.05))


@dataclass
class Report:
    """What is wrong, by kind; each entry says it in words. Empty means that every promise was kept."""

    lost: list[str] = field(default_factory=list)
    """A slot that is not in the ledger, or a chain that stands still."""
    late: list[str] = field(default_factory=list)
    """A run that started later after its due time than is allowed."""
    doubled: list[str] = field(default_factory=list)
    """An attempt that started twice, or a slot that completed twice."""
    overlapping: list[str] = field(default_factory=list)
    """Two runs of one job at the same time."""
    zombie: list[str] = field(default_factory=list)
    """A process that went on after its run was judged, or a run that is `running` with nobody there."""
    unfenced: list[str] = field(default_factory=list)
    """A final state written by somebody who had no right to it."""

    def __bool__(self) -> bool:
        return any(getattr(self, item.name) for item in fields(self))

    def __str__(self) -> str:
        return "\n".join(f"{item.name}: {text}" for item in fields(self) for text in getattr(self, item.name))


def check(
    session: Session,
    journal: Journal,
    *,
    settled: bool = True,
    until: datetime | None = None,
    late_seconds: float = PATIENCE,
    may_overlap: Iterable[int] = (),
) -> Report:
    """Compare everything.

    `settled`: no worker is left, so nothing may still be running. `until`: slots later than this need not be in
    the ledger (default: the job's own next slot, for that one is still to come). `late_seconds`: how long after its
    due time a run may start; as long as a test waits for anything, unless the test knows better. `may_overlap`: ids
    of jobs whose runs may overlap.
    """
    report = Report()
    rows = {row.id: row for row in executions(session)}
    lines: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for entry in journal.entries():
        lines[entry["execution"]].append(entry)
    _check_slots(session, rows.values(), until, report)
    _check_chains(rows.values(), report)
    _check_starts(lines, report)
    _check_overlap(journal, set(may_overlap), report)
    _check_processes(rows, lines, settled, report)
    _check_writes(rows, lines, report)
    _check_counters(session, rows.values(), report)
    _check_lateness(rows.values(), late_seconds, report)
    return report


def _check_slots(
    session: Session, rows: Iterable[CronJobExecution], until: datetime | None, report: Report
) -> None:
    """Every slot from a job's first one to its next_run_time is in the ledger."""
    ledger: dict[int, set[datetime]] = defaultdict(set)
    shared: dict[int, list[CronJobExecution]] = defaultdict(list)
    for row in rows:
        if row.origin == "schedule":
            ledger[row.cron_job].add(row.scheduled_time)
        if row.slots_until is not None:
            shared[row.cron_job].append(row)
    for job in session.query(CronJob).filter(CronJob.schedule_type != "manual").populate_existing():
        have = ledger[job.id]
        end = until or job.next_run_time
        if end is None or not job.enabled:
            continue
        if not have:
            report.lost.append(f"job {job.id} has no slot in the ledger at all")
            continue
        first = job.schedule_anchor or min(have)
        slot = slots.plan(job, first - timedelta(microseconds=1))
        while slot is not None and slot < end:
            if slot not in have and not any(_holds(row, slot) for row in shared[job.id]):
                report.lost.append(f"job {job.id}: slot {slot} is not in the ledger")
            slot = slots.plan(job, slot)


def _holds(row: CronJobExecution, slot: datetime) -> bool:
    return row.slots_until is not None and row.scheduled_time <= slot <= row.slots_until


def _check_chains(rows: Iterable[CronJobExecution], report: Report) -> None:
    chains: dict[tuple[int, datetime, int], list[CronJobExecution]] = defaultdict(list)
    for row in rows:
        chains[(row.cron_job, row.scheduled_time, row.rerun)].append(row)
    for (job, slot, _), chain in chains.items():
        attempts = sorted(row.retry_count for row in chain)
        if attempts != list(range(len(chain))):
            report.lost.append(f"job {job} slot {slot}: attempts {attempts}")
        completed = [row.id for row in chain if row.status == Status.COMPLETED]
        if len(completed) > 1:
            report.doubled.append(f"job {job} slot {slot} completed as {completed}")


def _check_starts(lines: dict[int, list[dict[str, Any]]], report: Report) -> None:
    for execution, entries in lines.items():
        for what in ("start", "end"):
            pids = [entry["pid"] for entry in entries if entry["what"] == what]
            if len(pids) > 1:
                report.doubled.append(f"execution {execution}: {what} written by processes {pids}")


def _check_overlap(journal: Journal, allowed: set[int], report: Report) -> None:
    """In the journal's order: once a run of a job has started, no older one may write another line."""
    latest: dict[int, int] = {}
    for entry in journal.entries():
        job, execution = entry["job"], entry["execution"]
        if job in allowed:
            continue
        if entry["what"] == "start":
            latest[job] = execution
        elif latest.get(job, execution) != execution:
            report.overlapping.append(
                f"job {job}: execution {execution} wrote {entry['what']} after {latest[job]} had started"
            )


def _check_processes(
    rows: dict[int, CronJobExecution], lines: dict[int, list[dict[str, Any]]], settled: bool, report: Report
) -> None:
    for row in rows.values():
        pids = {entry["pid"] for entry in lines[row.id]}
        living = [pid for pid in pids if alive(pid)]
        if row.status == Status.RUNNING and settled:
            report.zombie.append(f"execution {row.id} is running for {row.locked_by}, and nobody is there")
        if row.status in FINAL and living:
            report.zombie.append(f"execution {row.id} is {row.status}, its processes {living} live")
        if row.status in FINAL and row.completed_at is not None:
            after = [entry["what"] for entry in lines[row.id] if _when(entry) > row.completed_at]
            if after:
                report.zombie.append(f"execution {row.id} wrote {after} after it was {row.status}")


def _check_writes(
    rows: dict[int, CronJobExecution], lines: dict[int, list[dict[str, Any]]], report: Report
) -> None:
    for row in rows.values():
        written = [entry["what"] for entry in lines[row.id]]
        if row.status == Status.COMPLETED and "end" not in written:
            report.unfenced.append(f"execution {row.id} is completed, its process wrote {written[-1:]} last")
        if row.status == Status.COMPLETED and not row.locked_by:
            report.unfenced.append(f"execution {row.id} is completed and nobody ever held it")
        if any(entry["attempt"] != row.retry_count + 1 for entry in lines[row.id]):
            report.unfenced.append(f"execution {row.id} ran as another attempt than it is")
        if row.status in (Status.SKIPPED, Status.PENDING) and written:
            report.unfenced.append(f"execution {row.id} is {row.status} and has run")
    for execution in lines.keys() - rows.keys():
        report.unfenced.append(f"execution {execution} ran and is not in the ledger")


def _check_counters(session: Session, rows: Iterable[CronJobExecution], report: Report) -> None:
    """What was ended twice is counted twice; chains and what was recovered are what the ledger says."""
    rows = list(rows)
    chains = {(row.cron_job, row.scheduled_time, row.rerun, row.retry_count): row for row in rows}
    followed: dict[int, int] = defaultdict(int)
    recovered: dict[int, int] = defaultdict(int)
    for row in rows:
        following = (row.cron_job, row.scheduled_time, row.rerun, row.retry_count + 1)
        followed[row.cron_job] += following in chains
        recovered[row.cron_job] += row.status == Status.COMPLETED and row.retry_count > row.interruptions
    ended: dict[int, int] = defaultdict(int)
    for row in rows:
        ended[row.cron_job] += row.status in FINAL and row.started_at is not None
    for job in session.query(CronJob).populate_existing():
        if job.runs_total != ended[job.id]:
            report.unfenced.append(f"job {job.id} counts {job.runs_total} runs, {ended[job.id]} have ended")
        if (job.retried_failed + job.retried_timeout, job.runs_recovered) != (
            followed[job.id],
            recovered[job.id],
        ):
            report.unfenced.append(f"job {job.id} counts other retried or recovered runs than the ledger has")
        report.unfenced += [f"job {job.id}: {found}" for found in recount.compare(session, job.id)]


def _check_lateness(rows: Iterable[CronJobExecution], limit: float, report: Report) -> None:
    for row in rows:
        if row.started_at is None or row.due_time is None:
            continue
        late = (row.started_at - row.due_time).total_seconds()
        if late > limit:
            report.late.append(f"execution {row.id} started {late:.1f} s after it was due")


def _when(entry: dict[str, Any]) -> datetime:
    return datetime.fromtimestamp(entry["at"], UTC)

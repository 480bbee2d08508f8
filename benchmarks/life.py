"""A made-up installation and what it has been through: jobs, their code, and every run with what it left.

`Life.live` goes through the time slot by slot, as workers would have, and hands out rows in the order in which they
would have been inserted. It touches no database and has no clock: the same seed, size and instant give the same life.
Times are microseconds since 1970 while it lives, and text in the rows: a text in ISO form is what each driver takes,
and what SQLAlchemy would store in SQLite.
"""

from __future__ import annotations

import heapq
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import count
from typing import Any

from kytecron.core import retry
from kytecron.core.states import Status
from kytecron.core.statistics import bucket
from kytecron.services import slots
from kytecron.services.endings import COUNTED, LETTERS, RETRIED
from kytecron.services.recount import BARS
from kytecron.store.models import CronJob

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 3600 * SECOND
DAY = 86_400 * SECOND
BATCH = 20_000
LEASE = DAY
"""What is left running is held for so long: nobody is there to end it, and it is no fault that there is not."""
PENDING_DELAY = 2 * DAY
OUTAGE = 40 * MINUTE
"""In the middle of it all no worker ran for so long: slots were missed."""

RUN = (
    *("id", "cron_job", "scheduled_time", "rerun", "retry_count", "is_retry", "parent_execution", "origin"),
    *("status", "due_time", "queue_time", "priority", "worker_tag", "waiting_for", "version", "note"),
    *("triggered_by", "cancel_reason", "locked_by", "locked_at", "locked_until", "token", "started_at"),
    *("completed_at", "duration_ms", "cpu_ms", "memory_peak_mb", "exit_code", "output", "output_bytes"),
    *("error", "stack_trace", "skipped_reason", "slots_until", "slots_count"),
)
DAILY = ("cron_job", "day", *COUNTED, "duration_ms", "duration_min_ms", "duration_max_ms", "durations")
AUDIT = ("at", "actor", "source", "ip", "action", "subject_type", "subject_id", "subject_name", "after")
OUTBOX = (
    *("cause", "kind", "channel", "target", "payload", "cron_job", "execution", "status", "attempts"),
    *("due_time", "last_error", "created_at", "sent_at"),
)
PIECE = ("execution", "seq", "text", "is_tail")
COLUMNS = {
    "CronJobExecution": RUN,
    "CronJobDailyStat": DAILY,
    "CronAudit": AUDIT,
    "CronOutbox": OUTBOX,
    "CronJobOutput": PIECE,
}

TEAMS = {
    "billing": ("invoices", "dunning", "ledger", "tax"),
    "etl": ("orders", "customers", "clicks", "stock"),
    "search": ("index", "suggestions", "synonyms"),
    "mail": ("newsletter", "bounces", "digest"),
    "ops": ("backup", "certificates", "disk", "logs"),
    "reports": ("sales", "churn", "traffic"),
    "partners": ("feed", "prices", "returns"),
}
ACTS = ("import", "export", "sync", "check", "rebuild", "clean", "send", "archive")
PLACES = ("eu", "us", "apac", "de", "fr", "jp", "uk", "br")
OWNERS = {"ada": "admin", "grace": "editor", "linus": "editor", "margaret": "operator", "edsger": "viewer"}
ZONES = ("UTC", "UTC", "Europe/Berlin", "America/New_York", "Asia/Tokyo")
WORKERS = ("worker-a", "worker-b", "worker-c")
FAULTS = (
    "ConnectionError: the payment service did not answer",
    "TimeoutError: no answer from the warehouse within 30 s",
    "KeyError: 'customer_id'",
    "ValueError: could not convert string to float: 'n/a'",
    "PermissionError: [Errno 13] Permission denied: '/srv/export/today.csv'",
    "RuntimeError: 3 of 1,204 rows were refused",
)


@lru_cache(maxsize=50_000)
def _minute(number: int) -> str:
    return datetime.fromtimestamp(number * 60, UTC).strftime("%Y-%m-%d %H:%M:")


def text_of(instant: int) -> str:
    """Microseconds since 1970 as columns of times have them."""
    seconds, rest = divmod(instant, SECOND)
    minute, second = divmod(seconds, 60)
    return f"{_minute(minute)}{second:02d}.{rest:06d}"


@lru_cache(maxsize=5_000)
def _day(number: int) -> str:
    return datetime.fromtimestamp(number * 86_400, UTC).date().isoformat()


def moment(instant: int) -> datetime:
    """Microseconds since 1970 as a datetime."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=instant)


def micros(instant: datetime) -> int:
    """A datetime as microseconds since 1970."""
    return (instant - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


@dataclass(slots=True)
class Job:
    """A job while its life goes on: `row` has the columns of its table."""

    number: int
    row: dict[str, Any]
    step: int = 0
    """Microseconds between slots; 0 where the schedule has to be asked."""
    usual_ms: float = 1000.0
    fault: float = 0.001
    """Share of its attempts that go wrong."""
    versions: list[int] = field(default_factory=list)
    """When each version was saved."""
    gone_at: int = 2**62
    """When somebody disabled or deleted it."""
    busy_until: int = 0
    active: int = 0
    """The attempt that `busy_until` is about."""
    dead: bool = False
    missed: list[int] = field(default_factory=list)
    days: dict[int, dict[str, Any]] = field(default_factory=dict)
    letters: str = ""

    @property
    def id(self) -> int:
        return self.number + 1

    def version_at(self, instant: int) -> int:
        return max(1, sum(saved <= instant for saved in self.versions))


@dataclass(slots=True)
class Attempt:
    """An attempt that is still to come."""

    slot: int
    origin: str = "schedule"
    by: str | None = None
    rerun: int = 0
    retry: int = 0
    parent: int | None = None


class Life:
    """So many jobs, and about so many runs of theirs, the last of them shortly before `until`."""

    def __init__(self, jobs: int, runs: int, until: datetime, seed: int = 1) -> None:
        self.random = random.Random(seed)
        self.until = micros(until)
        self.rows: dict[str, list[tuple[Any, ...]]] = {table: [] for table in COLUMNS}
        """Rows that are still to be written, by table."""
        self.written = 0
        self.jobs = [self._job(number) for number in range(jobs)]
        a_day = sum(DAY / (one.step or 1.4 * DAY) for one in self.jobs)
        self.begin = self.until - int(runs / a_day * DAY)
        self.out_from = (self.begin + self.until) // 2
        for one in self.jobs:
            self._save_versions(one)
        self._order = count()
        self._events: list[tuple[int, int, Job, Attempt | str | None]] = []

    # -- jobs ------------------------------------------------------------------------------------------------

    def _job(self, number: int) -> Job:
        draw = self.random
        team = draw.choice([*TEAMS])
        thing, act = draw.choice(TEAMS[team]), draw.choice(ACTS)
        name = f"{team}/{thing}/{act}-{draw.choice(PLACES)}-{number}"
        owner = draw.choice([*OWNERS][:3])
        job = Job(
            number, {"name": name, "tags": f",{team},{thing}," + ("critical," if number % 9 == 0 else "")}
        )
        job.row |= {
            "id": job.id,
            "description": f"{act.capitalize()}s {thing} for {team}. Ask {owner} before changing it.",
            "created_by": owner,
            "updated_by": owner,
            "priority": draw.choice((5, 5, 5, 1, 9)),
            "max_retries": 0 if number % 20 == 4 else draw.choice((1, 2, 3, 3, 5)),
            "notification_email": f"{team}@example.com" if number % 3 == 0 else None,
            "notify_on_failure": number % 3 == 0,
            "worker_tag": "gpu" if number % 211 == 7 else "",
            "parameters": {"region": draw.choice(PLACES), "limit": draw.randrange(100, 5000)},
        }
        self._give_schedule(job)
        if job.step:
            job.row["max_retries"] = max(3, job.row["max_retries"])
        shortest = (job.step or DAY) / 1000
        job.usual_ms = min(draw.lognormvariate(7, 2) + 15, shortest / 4, 3_600_000)
        if job.step and number % 31 == 1:
            job.usual_ms = shortest * 0.8  # sometimes its next slot comes before it has ended
        job.fault = draw.choices((0.001, 0.02, 0.1), (80, 16, 4))[0]
        if self._is_slow(job):
            job.fault = 0.15
        job.row["timeout_seconds"] = int(max(60, job.usual_ms / 1000 * 5))
        job.row |= {
            "retry_strategy": "fixed" if job.step else "exponential",
            "retry_delay_seconds": 5 if 0 < job.step <= 5 * MINUTE else 60,
            "retry_max_delay_seconds": 3600,
        }
        return job

    def _give_schedule(self, job: Job) -> None:
        draw, number = self.random, job.number
        if number % 250 == 0:
            job.step = MINUTE
        elif number % 80 == 1:
            job.step = 5 * MINUTE
        elif number % 12 == 2:
            job.step = HOUR
        row = {
            "schedule_type": "interval",
            **dict.fromkeys(("cron_expression", "interval_seconds", "time_of_day", "day_of_week")),
            "day_of_month": None,
            "timezone": "UTC",
            "schedule_anchor": None,
        }
        at = f"{draw.randrange(24):02d}:{draw.choice((0, 5, 15, 30, 45)):02d}"
        match number % 10:
            case _ if job.step and number % 3:
                minutes = job.step // MINUTE
                starred = "* * * * *" if minutes == 1 else f"*/{minutes} * * * *"
                row |= {"schedule_type": "cron", "cron_expression": starred if minutes < 60 else "0 * * * *"}
            case _ if job.step:
                row |= {
                    "interval_seconds": job.step // SECOND,
                    "schedule_anchor": datetime(2020, 1, 1, tzinfo=UTC),
                }
            case 6:
                weekdays = f"{draw.randrange(60)} {draw.randrange(24)} * * 1-5"
                row |= {"schedule_type": "cron", "cron_expression": weekdays, "timezone": draw.choice(ZONES)}
            case 7:
                row |= {
                    "schedule_type": "weekly",
                    "day_of_week": draw.choice(("1", "5", "2,4")),
                    "time_of_day": at,
                }
            case 8:
                row |= {
                    "schedule_type": "monthly",
                    "day_of_month": draw.choice((1, 15, 31)),
                    "time_of_day": at,
                }
            case 9:
                row |= {"schedule_type": "manual"}
            case _:
                row |= {"schedule_type": "daily", "time_of_day": at, "timezone": draw.choice(ZONES)}
        job.row |= row

    def _is_slow(self, job: Job) -> bool:
        """Whether the job's retries of the last day are still to come."""
        return not job.step and job.number % 29 == 3

    def _is_doomed(self, job: Job, at: int) -> bool:
        """Whether nothing that the job does works any more, and nobody has got round to it."""
        return job.number % 53 == 11 and at >= self.out_from

    def _save_versions(self, job: Job) -> None:
        draw = self.random
        job.versions = [self.begin - draw.randrange(1, 400) * DAY // 2]
        for _ in range(min(int(draw.expovariate(0.6)), 11)):
            job.versions.append(draw.randrange(job.versions[0], self.until))
        job.versions.sort()
        if not job.step and (job.number % 41 == 7 or job.number % 97 == 5):
            job.gone_at = draw.randrange(self.begin, self.until)

    # -- time goes by ----------------------------------------------------------------------------------------

    def live(self) -> Iterator[None]:
        """Go through it all; stops now and then for `rows` to be written and emptied."""
        for job in self.jobs:
            self._audit(job.versions[0], job.row["created_by"], "create", job, {"name": job.row["name"]})
            for number, saved in enumerate(job.versions[1:], 2):
                self._audit(saved, job.row["created_by"], "new_version", job, {"version": number})
            if job.gone_at < self.until:
                action = "delete" if job.number % 97 == 5 else "disable"
                self._audit(job.gone_at, job.row["created_by"], action, job, {"enabled": False})
            self._await_slot(job, self.begin + self.random.randrange(HOUR))
            if job.row["schedule_type"] == "manual" or self.random.random() < 0.2:
                self._await_hand(job, self.begin)
        while self._events:
            at, _, job, what = heapq.heappop(self._events)
            match what:
                case None:
                    self._await_slot(job, at)
                    self._at_slot(job, at)
                case "recover":
                    job.dead, job.row["consecutive_failures"] = False, 0
                    self._audit(at, self.random.choice([*OWNERS][:4]), "recover", job, {"enabled": True})
                case "hand":
                    self._await_hand(job, at)
                    if at >= job.busy_until and not job.dead and at < job.gone_at:
                        who = self.random.choice([*OWNERS][:4])
                        self._attempt(job, at, Attempt(at, "manual", who))
                case Attempt():
                    self._attempt(job, at, what)
            if len(self.rows["CronJobExecution"]) >= BATCH:
                yield
        for job in self.jobs:
            self._tell_missed(job, self.until - SECOND)
            self._close_days(job, 2**62)
        yield

    def _later(self, at: int, job: Job, what: Attempt | str | None = None) -> None:
        if at < self.until:
            heapq.heappush(self._events, (at, next(self._order), job, what))

    def _await_slot(self, job: Job, after: int) -> None:
        if job.row["schedule_type"] == "manual" or after >= job.gone_at:
            return
        if job.step:
            self._later((after // job.step + 1) * job.step, job)
        elif (slot := slots.plan(self.planned(job), moment(after))) is not None:
            self._later(micros(slot), job)

    def planned(self, job: Job) -> CronJob:
        """What a schedule is made of."""
        return CronJob(**{name: job.row[name] for name in _SCHEDULE}, starts_at=None, ends_at=None)

    def _await_hand(self, job: Job, after: int) -> None:
        self._later(after + int(self.random.expovariate(0.3) * DAY) + 1, job, "hand")

    def _at_slot(self, job: Job, slot: int) -> None:
        if job.dead or slot >= job.gone_at:
            return
        job.row["runs_scheduled"] = job.row.get("runs_scheduled", 0) + 1
        if self.out_from <= slot < self.out_from + OUTAGE:
            job.missed.append(slot)
            return
        self._tell_missed(job, slot)
        if slot < job.busy_until:
            doing = "running" if slot < job.row.get("_ends", 0) else "waiting for its retry"
            reason = f"execution {job.active} was still {doing} (overlap_policy skip)"
            self._skip(job, [slot], reason, slot + 20_000)
        else:
            self._attempt(job, slot, Attempt(slot))

    def _tell_missed(self, job: Job, now: int) -> None:
        if missed := job.missed:
            self._skip(job, missed, "no worker took it in time (misfire_policy run_once)", now + 15_000)
            job.missed = []

    def _skip(self, job: Job, missed: list[int], reason: str, now: int) -> None:
        number = len(missed)
        row = self._row(job, Attempt(missed[0]), "skipped", missed[0])
        row |= {
            "completed_at": text_of(now),
            "skipped_reason": reason,
            "slots_count": number,
            "queue_time": None,
        }
        if number > 1:
            row["slots_until"] = text_of(missed[-1])
        self._put(row)
        self._count(job, now, "skipped", number)
        job.row["runs_skipped"] = job.row.get("runs_skipped", 0) + number
        if now > job.row.get("_resets", 0):  # else the run that is going on counts from none again
            job.row["skipped_in_a_row"] = job.row.get("skipped_in_a_row", 0) + number

    # -- one attempt -----------------------------------------------------------------------------------------

    def _attempt(self, job: Job, at: int, what: Attempt) -> None:
        draw = self.random
        started = at + int(draw.lognormvariate(9.2, 0.7))
        if self._stays(job, at, what):
            return
        status = "failed" if self._is_doomed(job, at) else self._ending(job, what)
        took = max(1, int(job.usual_ms * draw.lognormvariate(0, 0.35)))
        if status == "timeout":
            took = job.row["timeout_seconds"] * 1000
        ends = min(started + took * 1000 + 2000, max(self.until - 1, started + 1))
        again, waits = self._again(job, what, status, ends)
        if again and ends + waits >= self.until and waits != PENDING_DELAY:
            status, again = "completed", False  # nothing is left due that nobody takes
        row = self._row(job, what, status, at)
        number = row["id"]
        duration = None if status == "lost" else took
        row |= self._held(job, started, ends) | {
            "completed_at": text_of(ends),
            "duration_ms": duration,
            "cpu_ms": None if duration is None else took // 3,
            "memory_peak_mb": 12.0 + number % 400 / 8,
            "exit_code": {"completed": 0, "failed": 1}.get(status),
        }
        self._put(row | self._left(number, status, took))
        job.active, job.busy_until, job.row["_ends"] = number, ends, ends
        if again:
            job.busy_until = ends + waits + 1
            following = Attempt(what.slot, what.origin, what.by, what.rerun, what.retry + 1, number)
            if ends + waits < self.until:
                self._later(ends + waits, job, following)
            else:
                waiting = self._row(job, following, "pending", ends + waits)
                self._put(waiting | {"version": None})
        self._settle(job, row, what, status, again, started, ends, duration)

    def _stays(self, job: Job, at: int, what: Attempt) -> bool:
        """Leave a long run of the last minutes running, and what waits behind it."""
        stays = at > self.until - 12 * HOUR and job.usual_ms > 20_000 and job.number % 3 == 0 and not job.step
        if not stays or what.retry:
            return False
        row = self._row(job, what, "running", at)
        held = self._held(job, at + 9_000, self.until + LEASE)
        self._put(row | held | {"output": None, "output_bytes": 4_000})
        self.rows["CronJobOutput"].append((row["id"], 0, _log(row["id"], 80), False))
        job.active, job.busy_until = row["id"], 2**62
        if job.number % 2:
            behind = self._row(job, Attempt(at + MINUTE, "manual", "ada"), "pending", at + MINUTE)
            waiting = {
                "due_time": None,
                "queue_time": None,
                "version": None,
                "waiting_for": f"execution {row['id']}",
            }
            self._put(behind | waiting)
        return True

    def _ending(self, job: Job, what: Attempt) -> str:
        draw = self.random
        # What failed once often fails again.
        if draw.random() >= (0.35 if what.retry else job.fault):
            return "completed"
        kinds = ("failed", "timeout", "lost", "cancelled", "skipped")
        return draw.choices(kinds, (70, 12, 8, 5, 5))[0]

    def _again(self, job: Job, what: Attempt, status: str, ends: int) -> tuple[bool, int]:
        if status not in RETRIED or what.retry >= job.row["max_retries"] or ends >= job.gone_at:
            return False, 0
        if self._is_slow(job) and ends > self.until - DAY:
            return True, PENDING_DELAY
        row = job.row
        policy = retry.Policy(
            row["retry_strategy"],
            row["max_retries"],
            row["retry_delay_seconds"],
            row["retry_max_delay_seconds"],
        )
        return True, retry.delay(policy, what.retry) // timedelta(microseconds=1)

    def _settle(
        self,
        job: Job,
        row: dict[str, Any],
        what: Attempt,
        status: str,
        again: bool,
        started: int,
        ends: int,
        duration: int | None,
    ) -> None:
        """What the ending means for the job, as services.endings has it."""
        recovered = status == "completed" and what.retry > 0
        self._count(job, ends, status, 1, again, recovered, duration)
        mine = job.row
        grown = {
            "runs_total": 1,
            "runs_completed": status == "completed",
            "runs_failed": status in ("failed", "lost"),
            "runs_timeout": status == "timeout",
            "retried_timeout": again and status == "timeout",
            "retried_failed": again and status != "timeout",
            "runs_recovered": recovered,
            "runs_skipped": status == "skipped",
            "duration_total_ms": duration or 0,
        }
        for name, amount in grown.items():
            mine[name] = mine.get(name, 0) + int(amount)
        mine |= {"last_execution": row["id"], "last_status": status, "last_run_at": moment(started)}
        if status == "skipped":
            mine["skipped_in_a_row"] = mine.get("skipped_in_a_row", 0) + 1
        else:
            mine |= {"skipped_in_a_row": 0, "_resets": ends}
        if again:
            return
        job.letters = (job.letters + LETTERS[Status(status)])[-BARS:]
        if status == "completed":
            mine |= {"last_success_at": moment(ends), "last_success_version": row["version"]}
            mine |= {"consecutive_failures": 0, "failing_since": None}
        elif status in RETRIED:
            self._bury(job, row, what, ends)

    def _bury(self, job: Job, row: dict[str, Any], what: Attempt, ends: int) -> None:
        """The last attempt has failed: the job is dead until somebody recovers it, which most days somebody does."""
        cause = row["error"] or "it ran longer than its time limit"
        reason = (
            f"failed {what.retry + 1} times, the last: {cause}"
            if what.retry
            else f"failed once, with no retries: {cause}"
        )
        job.dead = True
        job.row["consecutive_failures"] = job.row.get("consecutive_failures", 0) + 1
        job.row["failing_since"] = job.row.get("failing_since") or moment(ends)
        job.row |= {"dead_letter_reason": reason, "dead_letter_since": moment(ends)}
        self._audit(ends, "worker", "dead_letter", job, {"reason": reason})
        if job.row["notification_email"]:
            self._message(job, row["id"], ends, reason)
        if not self._is_doomed(job, ends) and self.random.random() < 0.95:
            # What runs all the time is missed soon.
            longest = min(10 * HOUR, 30 * (job.step or HOUR))
            self._later(ends + self.random.randrange(4 * MINUTE, longest), job, "recover")

    # -- rows ------------------------------------------------------------------------------------------------

    def _row(self, job: Job, what: Attempt, status: str, due: int) -> dict[str, Any]:
        self.written += 1
        priority = job.row["priority"]
        return _EMPTY | {
            "id": self.written,
            "cron_job": job.id,
            "scheduled_time": text_of(what.slot),
            "rerun": what.rerun,
            "retry_count": what.retry,
            "is_retry": what.retry > 0,
            "parent_execution": what.parent,
            "origin": what.origin,
            "status": status,
            "due_time": text_of(due),
            "queue_time": text_of(due + (9 - priority) * 30 * SECOND),
            "priority": priority,
            "worker_tag": job.row["worker_tag"],
            "version": None if status == "skipped" else job.version_at(due),
            "triggered_by": what.by,
        }

    def _put(self, row: dict[str, Any]) -> None:
        self.rows["CronJobExecution"].append(tuple(map(row.__getitem__, RUN)))

    def _held(self, job: Job, started: int, until: int) -> dict[str, Any]:
        at = text_of(started)
        return {
            "locked_by": f"{WORKERS[self.written % 3]}:4711:{started // DAY:x}",
            "locked_at": at,
            "started_at": at,
            "locked_until": text_of(max(until, started + MINUTE)),
            "token": started ^ job.id,
        }

    def _left(self, number: int, status: str, took: int) -> dict[str, Any]:
        output = f"{number % 9973:,} rows read\ndone in {took} ms\n"
        left: dict[str, Any] = {"output": output, "output_bytes": len(output)}
        match status:
            case "failed":
                error = FAULTS[number % len(FAULTS)]
                left |= {"error": error, "stack_trace": _TRACE + error + "\n"}
            case "timeout":
                left["error"] = "it ran longer than its time limit"
            case "lost":
                left["error"] = "the worker vanished"
            case "cancelled":
                left |= {"error": "stopped by grace", "cancel_reason": "stopped by grace"}
            case "skipped":
                left["skipped_reason"] = "nothing new since the last run"
        if number % 1500 == 0:
            pieces = [_log(number + part, 100) for part in range(3)]
            self.rows["CronJobOutput"] += [(number, part, text, False) for part, text in enumerate(pieces)]
            left["output_bytes"] += sum(map(len, pieces))
        return left

    def _audit(self, at: int, who: str, action: str, job: Job, after: dict[str, Any]) -> None:
        source = "worker" if who == "worker" else "web"
        subject = ("job", str(job.id), job.row["name"], json.dumps(after))
        self.rows["CronAudit"].append(
            (text_of(at), who, source, "" if source == "worker" else "192.0.2.7", action, *subject)
        )

    def _message(self, job: Job, execution: int, at: int, reason: str) -> None:
        facts = {"kind": "dead_letter", "job": job.row["name"], "execution": execution, "reason": reason}
        fails = execution % 50 == 0
        self.rows["CronOutbox"].append(
            (
                f"job {job.id}: dead_letter, execution {execution}",
                *(
                    "dead_letter",
                    "email",
                    job.row["notification_email"],
                    json.dumps(facts),
                    job.id,
                    execution,
                ),
                *("dead" if fails else "sent", 5 if fails else 1, text_of(at)),
                *(
                    "Connection refused" if fails else None,
                    text_of(at),
                    None if fails else text_of(at + SECOND),
                ),
            )
        )

    # -- days ------------------------------------------------------------------------------------------------

    def _count(
        self,
        job: Job,
        at: int,
        status: str,
        number: int,
        again: bool = False,
        recovered: bool = False,
        duration: int | None = None,
    ) -> None:
        today = at // DAY
        day = job.days.get(today)
        if day is None:
            self._close_days(job, today - 1)
            day = job.days[today] = {"counts": Counter(), "took": [0, None, None], "durations": Counter()}
        day["counts"][status] += number
        if again:
            day["counts"][RETRIED[Status(status)]] += 1
        if recovered:
            day["counts"]["recovered"] += 1
        if duration is not None:
            total, least, most = day["took"]
            shortest = duration if least is None else min(least, duration)
            longest = duration if most is None else max(most, duration)
            day["took"] = [total + duration, shortest, longest]
            day["durations"][_bucket(duration)] += 1

    def _close_days(self, job: Job, before: int) -> None:
        for number in [number for number in job.days if number < before]:
            day = job.days.pop(number)
            counts = (day["counts"][name] for name in COUNTED)
            row = (job.id, _day(number), *counts, *day["took"], json.dumps(day["durations"]))
            self.rows["CronJobDailyStat"].append(row)


_bucket = lru_cache(maxsize=100_000)(bucket)
_EMPTY: dict[str, Any] = dict.fromkeys(RUN) | {"output_bytes": 0, "slots_count": 1}
_SCHEDULE = (
    *("schedule_type", "cron_expression", "interval_seconds", "time_of_day", "day_of_week", "day_of_month"),
    *("timezone", "schedule_anchor"),
)
_TRACE = """Traceback (most recent call last):
  File "job.py", line 14, in execute
    for row in self.rows(limit=self.job.parameters["limit"]):
  File "job.py", line 22, in rows
    yield from self.page(number)
  File "job.py", line 31, in page
    raise error
"""


def _log(seed: int, lines: int) -> str:
    return "".join(
        f"[{number:05d}] batch {seed * 7 % 9973 + number}: 200 rows, 0 refused\n" for number in range(lines)
    )


def code_of(job: Job, version: int) -> str:
    """The code of one version; every third job shares its code with others."""
    name = "".join(part.capitalize() for part in job.row["name"].split("/")[1:2]) or "Job"
    shared = job.number % 3 == 0
    what = f"{name} of every region" if shared else job.row["name"]
    steps = "\n".join(f'        self.log(f"step {step} of {version + 2}")' for step in range(1, version + 3))
    return f'''import time


class {name}(CronJobBase):
    """Reads {what} in pages."""

    def execute(self):
        limit = self.job.parameters.get("limit", {100 * version})
{steps}
        for number, page in enumerate(self.pages(limit)):
            self.progress(100 * number / 10, f"page {{number}}")
        return {{"rows": limit}}

    def pages(self, limit):
        for number in range(10):
            time.sleep(0.01)
            yield range(limit)
'''

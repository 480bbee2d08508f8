"""When a job is due: schedules, daylight saving and what to do about missed slots.

Everything here is a pure function of a definition, a time zone and an instant; there is no clock inside.
Instants are aware datetimes in UTC. A *wall time* is a naive datetime: what a clock on a wall in the
schedule's zone shows.

Between the two stands the rule of Debian's cron:

* A schedule of fixed times (daily, weekly, monthly, `30 2 * * *`) fires at the first instant at which the
  local clock shows the wall time *or has gone past it*. So a time inside the gap of spring fires once, at the
  end of the gap; a time in the repeated hour of autumn fires the first time only; and times that the gap
  folds onto one instant fire once.
* A cron expression whose minute or hour field begins with `*` follows real time: it fires at every instant
  at which the local clock shows a matching time, so never inside a gap and in both of two repeated hours.
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple, assert_never
from zoneinfo import ZoneInfo

import tzdata  # type: ignore[import-untyped]

from kytecron.core.choices import MisfirePolicy, ScheduleType
from kytecron.core.cron import SEARCH_YEARS, Calendar, Refused, parse_cron
from kytecron.core.errors import Invalid
from kytecron.core.untrusted import shown
from kytecron.core.words import in_words
from kytecron.core.zones import zone

MISFIRE_GRACE_SECONDS = 60
MAX_CATCH_UP = 100
"""How many slots `run_all` runs, and how many skipped slots get a row of their own; older ones share one."""

TZDATA_VERSION: str = tzdata.IANA_VERSION
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MAX_INTERVAL_SECONDS = 3650 * 86_400

# Nothing is computed outside these, so that no offset or interval can overflow the calendar's ends.
_EARLIEST = datetime(2, 1, 1, tzinfo=UTC)
_LATEST = datetime(9900, 1, 1, tzinfo=UTC)
_SEARCH = timedelta(days=SEARCH_YEARS * 366)
_SECOND = timedelta(seconds=1)
_MICROSECOND = timedelta(microseconds=1)


# --- Time zones ---------------------------------------------------------------------------------------------


def tzdata_order(version: str) -> tuple[int, int]:
    """What a version of tzdata is compared by: `2026f` and the package's `2026.6` are the same; unknown is oldest."""
    found = re.match(r"(\d{4})(?:([a-z])|\.(\d+))", version.strip().lower())
    if found is None:
        return (0, 0)
    year, letter, number = found.groups()
    return (int(year), ord(letter) - ord("a") + 1 if letter else int(number))


def first_change(local_zone: ZoneInfo, start: datetime, end: datetime) -> datetime:
    """The instant in (start, end] at which the zone's offset from UTC changes; there must be exactly one."""
    before = start.astimezone(local_zone).utcoffset()
    while end - start > _SECOND:
        middle = start + (end - start) / 2
        if middle.astimezone(local_zone).utcoffset() == before:
            start = middle
        else:
            end = middle
    return end.replace(microsecond=0)


@lru_cache(maxsize=4096)
def _changes_of(zone_name: str, year: int) -> tuple[datetime, ...]:
    """The instants of a year (UTC) at which the zone's offset changes; no zone changes it twice within a day."""
    local_zone, day = zone(zone_name), timedelta(days=1)
    found = []
    start = datetime(year, 1, 1, tzinfo=UTC)
    while start.year == year:
        if start.astimezone(local_zone).utcoffset() != (start + day).astimezone(local_zone).utcoffset():
            found.append(first_change(local_zone, start, start + day))
        start += day
    return tuple(found)


def _changes(zone_name: str, after: datetime, until: datetime) -> Iterator[datetime]:
    """The instants in (after, until] at which the zone's offset changes. Before 1840 no zone had any."""
    for year in range(max(1840, after.year - 1), until.year + 1):
        yield from (change for change in _changes_of(zone_name, year) if after < change <= until)


def _wall(instant: datetime, local_zone: ZoneInfo) -> datetime:
    return instant.astimezone(local_zone).replace(tzinfo=None)


def _first_reached(wall: datetime, local_zone: ZoneInfo) -> datetime:
    """The first instant at which the local clock shows `wall` or has gone past it."""
    local = wall.replace(tzinfo=local_zone)
    instant = local.astimezone(UTC)
    if _wall(instant, local_zone) == wall:
        return instant
    # Inside a gap fold=1 takes the offset after it, which leads to an instant before it (PEP 495).
    return first_change(local_zone, local.replace(fold=1).astimezone(UTC), instant)


# --- Reading fields -----------------------------------------------------------------------------------------

_TIME_OF_DAY = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])(?::([0-5][0-9]))?")
_WHOLE_NUMBER = re.compile(r"[0-9]{1,12}")


def _blank(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, list | tuple | set | frozenset) and not value)


def _read_whole(value: Any, low: int, high: int) -> int:
    if isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value.strip()):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise Refused
    return int(value)


def _read_time(value: Any) -> time:
    if isinstance(value, time) and value.tzinfo is None:
        return value.replace(microsecond=0, fold=0)
    match = _TIME_OF_DAY.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise Refused
    hour, minute, second = (int(part or 0) for part in match.groups())
    return time(hour, minute, second)


_WEEKDAYS_HINT = "Write 0 (Sunday) to 6 (Saturday), or several such as 1,3,5"


def _read_weekdays(value: Any) -> tuple[int, ...]:
    if isinstance(value, str):
        value = value.split(",", 7)
    elif not isinstance(value, list | tuple | set | frozenset):
        value = [value]
    if len(value) > 7:
        raise Refused(f"Invalid day_of_week: more than 7 days. {_WEEKDAYS_HINT}")
    return tuple(sorted({_read_weekday(day) for day in value}))


def _read_weekday(day: Any) -> int:
    try:
        return _read_whole(day, 0, 6)
    except Refused:
        raise Refused(f"Invalid day_of_week {shown(day)}. {_WEEKDAYS_HINT}") from None


def _read_cron(value: Any) -> str:
    if not isinstance(value, str):
        raise Refused
    parse_cron(value)
    return " ".join(value.split())


def _read_anchor(value: Any) -> datetime:
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise Refused
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise Refused from None


def _read_zone(value: Any) -> str:
    if _blank(value):
        return "UTC"
    if not isinstance(value, str):
        raise Invalid({"timezone": f"Invalid timezone {shown(value)}. Write a name such as Europe/Berlin"})
    return zone(value.strip()).key


class _Kind(NamedTuple):
    """What there is to know of a schedule type."""

    needed: tuple[str, ...]
    """The fields that say when its slots are."""
    on_the_wall: bool
    """Whether its slots depend on a time zone, and so on the version of tzdata."""


_KINDS: dict[ScheduleType, _Kind] = {
    ScheduleType.CRON: _Kind(("cron_expression",), True),
    ScheduleType.INTERVAL: _Kind(("interval_seconds",), False),
    ScheduleType.DAILY: _Kind(("time_of_day",), True),
    ScheduleType.WEEKLY: _Kind(("day_of_week", "time_of_day"), True),
    ScheduleType.MONTHLY: _Kind(("day_of_month", "time_of_day"), True),
    ScheduleType.MANUAL: _Kind((), False),
}
OFFSETS_MATTER = tuple(kind for kind, one in _KINDS.items() if one.on_the_wall)
"""The schedule types whose slots depend on a time zone."""
_READERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "cron_expression": (
        _read_cron,
        "Write five fields (minute, hour, day-of-month, month, day-of-week), for example 30 2 * * 1-5",
    ),
    "interval_seconds": (
        lambda value: _read_whole(value, 1, MAX_INTERVAL_SECONDS),
        f"Write a whole number of seconds from 1 to {MAX_INTERVAL_SECONDS} (10 years), for example 300",
    ),
    "time_of_day": (
        _read_time,
        "Write HH:MM or HH:MM:SS from 00:00 to 23:59:59, for example 02:30",
    ),
    "day_of_week": (
        _read_weekdays,
        _WEEKDAYS_HINT,
    ),
    "day_of_month": (
        lambda value: _read_whole(value, 1, 31),
        "Write 1 to 31; 29 to 31 fall back to the last day of a shorter month",
    ),
}


def schedule_type_of(word: object) -> ScheduleType | None:
    """Return the schedule type that a form, JSON or a row means, if it is one."""
    return ScheduleType(word) if isinstance(word, str) and word in set(ScheduleType) else None


def unused_problems(schedule_type: object, given: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong with those of the given fields that a schedule of this type does not need."""
    kind = schedule_type_of(schedule_type)
    needed = _KINDS[kind].needed if kind else ()
    problems: dict[str, str] = {}
    for name in _READERS.keys() - needed:
        read, hint = _READERS[name]
        if _blank(value := given.get(name)):
            continue
        try:
            read(value)
        except Refused as refused:
            problems[name] = str(refused) or f"Invalid {name} {shown(value)}. {hint}"
    return problems


def _wall_times(values: dict[str, Any]) -> dict[str, Any]:
    """The derived fields of a schedule with these checked values."""
    if "cron_expression" in values:
        cron = parse_cron(values["cron_expression"])
        return {"calendar": cron.calendar, "follows_real_time": cron.follows_real_time}
    if "time_of_day" not in values:
        return {}
    if "day_of_month" in values:
        return {"calendar": Calendar.monthly(values["time_of_day"], values["day_of_month"])}
    return {"calendar": Calendar.weekly(values["time_of_day"], values.get("day_of_week", range(7)))}


# --- Schedules ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Schedule:
    """One checked definition of when a job is due; hashable. Make it with `from_fields`."""

    schedule_type: ScheduleType
    timezone: str
    cron_expression: str | None = None
    interval_seconds: int | None = None
    time_of_day: time | None = None
    day_of_week: tuple[int, ...] | None = None
    """Sunday = 0 to Saturday = 6, sorted."""
    day_of_month: int | None = None
    anchor: datetime = EPOCH
    """The first slot of an interval, in UTC."""
    calendar: Calendar | None = field(default=None, compare=False, repr=False, kw_only=True)
    """The wall times of every type but interval and manual."""
    follows_real_time: bool = field(default=False, compare=False, repr=False, kw_only=True)
    """See the top of this file; true for some cron expressions only."""

    @property
    def zone(self) -> ZoneInfo:
        return zone(self.timezone)

    @classmethod
    def from_fields(
        cls,
        *,
        schedule_type: Any = None,
        cron_expression: Any = None,
        interval_seconds: Any = None,
        time_of_day: Any = None,
        day_of_week: Any = None,
        day_of_month: Any = None,
        timezone: Any = None,
        anchor: Any = None,
    ) -> Schedule:
        """Checks a definition as it comes from a form, JSON or a database row, whatever it contains.

        Fields that the type does not need are ignored, numbers may be strings, a blank timezone is UTC.
        `anchor` is the first slot of an interval, as an aware datetime (default: the epoch).

        Raises Invalid with one message for every wrong field.
        """
        given = {
            "cron_expression": cron_expression,
            "interval_seconds": interval_seconds,
            "time_of_day": time_of_day,
            "day_of_week": day_of_week,
            "day_of_month": day_of_month,
        }
        problems: dict[str, str] = {}
        values: dict[str, Any] = {}
        kind = schedule_type_of(schedule_type)
        if kind is None:
            problems["schedule_type"] = f"Invalid schedule_type. Must be one of: {', '.join(ScheduleType)}"
        for name in _KINDS[kind].needed if kind else ():
            read, hint = _READERS[name]
            value = given[name]
            if _blank(value):
                problems[name] = f"{name} is required for {kind} schedule type. {hint}"
                continue
            try:
                values[name] = read(value)
            except Refused as refused:
                problems[name] = str(refused) or f"Invalid {name} {shown(value)}. {hint}"
        if kind is ScheduleType.INTERVAL and anchor is not None:
            try:
                values["anchor"] = _read_anchor(anchor)
            except Refused:
                problems["anchor"] = "Invalid anchor. Write an instant with its time zone"
        try:
            values["timezone"] = _read_zone(timezone)
        except Invalid as invalid:
            problems |= invalid.fields
        if problems or kind is None:
            raise Invalid(problems)
        return cls(schedule_type=kind, **values, **_wall_times(values))

    def next_after(self, instant: datetime) -> datetime | None:
        """The first slot later than `instant` (aware), in UTC; None if there is none."""
        instant = _within_reason(instant)
        return self._next(instant, instant + _SEARCH) if instant < _LATEST else None

    def latest_at_or_before(self, instant: datetime) -> datetime | None:
        """The last slot not later than `instant` (aware), in UTC; None if there is none in the 50 years before.

        Made of the same steps as `next_after`, so that the two cannot disagree: reach back further and further
        until a slot is found, then close in on the last one by halves.
        """
        instant = _within_reason(instant)
        if self.interval_seconds is not None:
            return self._interval_slot(self._intervals_until(instant))
        farthest = min(instant - _EARLIEST, _SEARCH)
        reach = timedelta(minutes=1)
        while (latest := self._slot_within(instant - min(reach, farthest), instant)) is None:
            if reach >= farthest:
                return None
            reach *= 4
        end = instant
        while (following := self._slot_within(latest, instant)) is not None:
            middle = following + (end - following) / 2
            later = self._slot_within(middle, instant)
            latest = later or following
            if later is None:
                end = middle
        return latest

    def count(self, after: datetime, until: datetime) -> int:
        """How many slots are later than `after` and not later than `until`, without walking through them."""
        after, until = _within_reason(after), _within_reason(until)
        if until <= after:
            return 0
        if self.interval_seconds is not None:
            return max(0, self._intervals_until(until) - self._intervals_until(after))
        if self.calendar is None:
            return 0
        if self.follows_real_time:
            return self._count_shown(self.calendar, after, until)
        return self._count_reached(self.calendar, after, until)

    def _count_shown(self, calendar: Calendar, after: datetime, until: datetime) -> int:
        """How many matching times the clock shows, one stretch without a change of the clock after the other."""
        number, begin = 0, _wall(after, self.zone)
        for change in _changes(self.timezone, after, until):
            number += calendar.count(begin, _wall(change - _MICROSECOND, self.zone))
            begin = _wall(change, self.zone) - _MICROSECOND
        return number + calendar.count(begin, _wall(until, self.zone))

    def _count_reached(self, calendar: Calendar, after: datetime, until: datetime) -> int:
        """How many instants there are at which the clock reaches matching times for the first time."""
        reached = first = self._latest_wall(after)
        folded = 0
        for change in _changes(self.timezone, after, until):
            reached = max(reached, _wall(change - _MICROSECOND, self.zone))
            landed = _wall(change, self.zone)
            # All those within a gap come at its end, as one.
            folded += max(0, calendar.count(reached, landed) - 1)
            reached = max(reached, landed)
        return calendar.count(first, max(reached, _wall(until, self.zone))) - folded

    def _latest_wall(self, instant: datetime) -> datetime:
        """The latest wall time that the clock has shown by `instant`; no clock went back by more than a day."""
        lately = _changes(self.timezone, instant - timedelta(days=2), instant)
        shown_before = (_wall(change - _MICROSECOND, self.zone) for change in lately)
        return max(_wall(instant, self.zone), *shown_before, datetime.min)

    def _intervals_until(self, instant: datetime) -> int:
        """The number of the interval slot at or before `instant`; the anchor is number 0, before it is -1."""
        if instant < self.anchor:
            return -1
        return (instant - self.anchor) // timedelta(seconds=self.interval_seconds or 1)

    def _interval_slot(self, number: int) -> datetime | None:
        if number < 0:
            return None
        try:
            return self.anchor + number * timedelta(seconds=self.interval_seconds or 1)
        except OverflowError:
            return None

    def _slot_within(self, after: datetime, until: datetime) -> datetime | None:
        slot = self._next(after, until)
        return slot if slot is not None and slot <= until else None

    def _next(self, instant: datetime, until: datetime) -> datetime | None:
        """The first slot later than `instant`; may be None when there is none up to `until`."""
        if self.interval_seconds is not None:
            return self._interval_slot(self._intervals_until(instant) + 1)
        if self.calendar is None:
            return None
        if self.follows_real_time:
            return self._next_following_real_time(instant, until)
        return self._next_fixed(instant)

    def _next_fixed(self, instant: datetime) -> datetime | None:
        # Wall times up to the present one were reached by now, so the search begins after it; later ones may
        # have been reached too, when the clock went back since, and are passed over.
        assert self.calendar is not None
        wall = self.calendar.after(_wall(instant, self.zone))
        while wall is not None:
            slot = _first_reached(wall, self.zone)
            if slot > instant:
                return slot
            wall = self.calendar.after(wall)
        return None

    def _next_following_real_time(self, instant: datetime, until: datetime) -> datetime | None:
        slot = self._next_shown(_wall(instant, self.zone), instant, until)
        same_time_again = instant.astimezone(self.zone).replace(fold=1).astimezone(UTC)
        if same_time_again > instant:
            # The clock is about to go back: slots of the second time round are behind on the wall, yet to come.
            change = first_change(self.zone, instant, same_time_again)
            before = change - _MICROSECOND
            second = self._next_shown(_wall(change, self.zone) - _MICROSECOND, before, until)
            return min((found for found in (slot, second) if found is not None), default=None)
        return slot

    def _next_shown(self, wall: datetime, instant: datetime, until: datetime) -> datetime | None:
        """The first instant after `instant` at which the clock shows a time of the calendar later than `wall`."""
        assert self.calendar is not None
        found = self.calendar.after(wall)
        # Bounded, for `*/5 2 * 3 7L` in Berlin lies inside a gap every year and never comes; by a day more than
        # `until` shows, for the clock may have gone back just before it.
        last = _wall(until, self.zone) + timedelta(days=1)
        while found is not None and found <= last:
            slot = _first_reached(found, self.zone)
            if (reached := _wall(slot, self.zone)) != found:  # in a gap, so never shown
                found = self.calendar.after(reached - _MICROSECOND)
                continue
            if slot <= instant:
                slot = found.replace(tzinfo=self.zone, fold=1).astimezone(UTC)
            if slot > instant:
                return slot
            found = self.calendar.after(found)
        return None


def _within_reason(instant: datetime) -> datetime:
    """The instant in UTC, moved to the end of what is computed if it lies outside."""
    if instant.tzinfo is None:
        raise ValueError("a schedule needs an aware datetime")
    return min(max(instant, _EARLIEST), _LATEST).astimezone(UTC)


def next_slot(
    schedule: Schedule, after: datetime, starts_at: datetime | None = None, ends_at: datetime | None = None
) -> datetime | None:
    """The first slot later than `after` that is not before `starts_at` and not after `ends_at`; both ends are
    slots themselves when they fall on one. None if there is no such slot.
    """
    if starts_at is not None:
        after = max(after, starts_at - _MICROSECOND)
    slot = schedule.next_after(after)
    return None if slot is None or (ends_at is not None and slot > ends_at) else slot


def jitter_offset(job_id: int | str, jitter_seconds: int) -> timedelta:
    """How much later than its slots this job starts: between 0 and `jitter_seconds`, always the same for one
    job, spread evenly over jobs.
    """
    share = int.from_bytes(hashlib.sha256(str(job_id).encode()).digest()[:6], "big") / 2**48
    return timedelta(milliseconds=int(share * jitter_seconds * 1000))


# --- Missed slots -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Span:
    """Slots one after another, both ends included."""

    first: datetime
    last: datetime
    count: int


@dataclass(frozen=True, slots=True)
class DueSlots:
    """The slots of a job that are due. After a long outage only the newest are listed."""

    slots: tuple[datetime, ...]
    """Oldest first, so the last one is the newest."""
    older: Span | None = None
    """Those that are due and not listed."""

    def after(self, schedule: Schedule, accounted: datetime) -> DueSlots:
        """Those later than `accounted`."""
        listed = tuple(slot for slot in self.slots if slot > accounted)
        if self.older is None or accounted < self.older.first:
            return DueSlots(listed, self.older)
        first = schedule.next_after(accounted)
        if first is None or first > self.older.last:
            return DueSlots(listed)
        return DueSlots(listed, Span(first, self.older.last, 1 + schedule.count(first, self.older.last)))


class Missed(NamedTuple):
    """A slot that will not run, or many, and why."""

    slots: Span
    reason: str


class Misfire(NamedTuple):
    """What becomes of due slots: run these, oldest first, and record those as skipped, oldest first."""

    run: list[datetime]
    skip: list[Missed]


def due_slots(
    schedule: Schedule,
    first_due: datetime,
    now: datetime,
    limit: int = MAX_CATCH_UP + 1,
    ends_at: datetime | None = None,
) -> DueSlots:
    """The slots from `first_due` (the job's next_run_time, taken as a slot whatever it is) to `now`, both
    included: all of them or, if there are more than `limit`, the newest `limit` at most.

    A job that missed a year of one-second slots costs no more than one that missed `limit` of them.
    """
    until = now if ends_at is None else min(now, ends_at)
    if first_due > until:
        return DueSlots(())
    slots = [first_due, *islice(_slots(schedule, first_due, until), limit)]
    if len(slots) <= limit:
        return DueSlots(tuple(slots))
    newest = schedule.latest_at_or_before(until) or first_due
    # By halves, to a start that has `limit` slots after it, and no more than come within a second besides.
    start, end = first_due, newest
    while end - start > _SECOND:
        middle = start + (end - start) / 2
        if schedule.count(middle, until) < limit:
            end = middle
        else:
            start = middle
    listed = deque(_slots(schedule, start, until), maxlen=limit)
    last = schedule.latest_at_or_before(listed[0] - _MICROSECOND)
    last = first_due if last is None else max(first_due, last)
    return DueSlots(tuple(listed), Span(first_due, last, 1 + schedule.count(first_due, last)))


def _slots(schedule: Schedule, after: datetime, until: datetime) -> Iterator[datetime]:
    slot = schedule.next_after(after)
    while slot is not None and slot <= until:
        yield slot
        slot = schedule.next_after(slot)


def misfire(policy: str, due: DueSlots, now: datetime, grace_seconds: int = MISFIRE_GRACE_SECONDS) -> Misfire:
    """Decides about due slots. One slot that is due within the grace simply runs; otherwise the policy speaks:

    * run_once: the newest runs, however late;
    * skip: the newest runs if it is within the grace;
    * run_all: the newest 100 run, oldest first.

    Every other slot is skipped. Raises Invalid on `misfire_policy`.
    """
    if policy not in set(MisfirePolicy):
        raise Invalid(
            {"misfire_policy": f"Invalid misfire_policy. Must be one of: {', '.join(MisfirePolicy)}"}
        )
    if not due.slots:
        return Misfire([], [])
    within_grace = now - due.slots[-1] <= timedelta(seconds=grace_seconds)
    newest = 1, "only the newest of the missed slots runs"
    match MisfirePolicy(policy):
        case MisfirePolicy.RUN_ALL:
            kept, why = MAX_CATCH_UP, f"only the newest {MAX_CATCH_UP} missed slots are caught up"
        case MisfirePolicy.RUN_ONCE:
            kept, why = newest
        case MisfirePolicy.SKIP if within_grace:
            kept, why = newest
        case MisfirePolicy.SKIP:
            kept, why = 0, f"nothing runs later than the grace of {in_words(grace_seconds)}"
        case never:
            assert_never(never)
    split = max(0, len(due.slots) - kept)
    older = [due.older] if due.older else []
    spans = older + [Span(slot, slot, 1) for slot in due.slots[:split]]
    return Misfire(list(due.slots[split:]), [_missed(span, now, why, policy) for span in spans])


def _missed(slots: Span, now: datetime, why: str, policy: str) -> Missed:
    late = in_words((now - slots.first).total_seconds())
    if slots.count > 1:
        late = f"{in_words((now - slots.last).total_seconds())} to {late}"
    return Missed(slots, f"Missed by {late}: {why} (misfire_policy {policy})")

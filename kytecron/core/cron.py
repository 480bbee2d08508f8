"""Sets of wall times, and the cron expressions that name them.

A *wall time* is a naive datetime: what a clock on a wall shows. No time zone is known here.

Cron expressions are checked here, because croniter takes `R` for a random minute, six fields, and `5-5/10` for
`*/10`; croniter then reads what lists, ranges and steps name. `L`, `5L` and `1#2` are read here too: croniter refuses
most of them beside other days, and joins the two day fields by OR alone.
"""

from __future__ import annotations

import re
from calendar import monthrange
from dataclasses import dataclass
from datetime import datetime, time
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

from croniter import croniter

from kytecron.core import pasted
from kytecron.core.untrusted import shown

MAX_CRON_LENGTH = 200
SEARCH_YEARS = 50
"""How far a search goes. The rarest dates, 29 February on a given weekday, are up to 40 years apart."""


class Refused(Exception):
    """Input that cannot be accepted; the text, if any, says what is wrong and what to write instead."""


# --- Calendars: which times on which days, as bit masks (bit n is set: n is in the set) ---------------------


def _bits(low: int, high: int, step: int = 1) -> int:
    return sum(1 << number for number in range(low, high + 1, step))


def _lowest(mask: int, at_least: int = 0) -> int:
    """The lowest number in `mask` that is at least that; -1 if there is none."""
    rest = mask >> at_least << at_least
    return (rest & -rest).bit_length() - 1


# A month has one of 28 shapes: a length, and a weekday (Monday = 0) that it begins on.
_SHAPES = tuple(product(range(28, 32), range(7)))
_EVERY_WEEK = _bits(0, 28, 7)
_ALL_DATES = _bits(1, 31)
_ALL_MONTHS = _bits(1, 12)
_LAST_DATE = 1 << 32
# Sets of weekdays count from Sunday = 0, in sections of eight bits: section 0 for every such weekday, 1 to 5
# for the first to the fifth of a month, 6 for the last of a month.
_SECTION = 8
_LAST_SECTION = 6


@lru_cache(maxsize=2048)
def _shape(year: int, month: int) -> int:
    first_weekday, length = monthrange(year, month)
    return (length - 28) * 7 + first_weekday


@lru_cache(maxsize=2048)
def _days_by_shape(dates: int, weekdays: int, either: bool) -> tuple[int, ...]:
    """The matching days of a month of each shape; `either` joins dates and weekdays by OR instead of AND."""
    return tuple(
        _dates_in(dates, length) | _weekdays_in(weekdays, length, first_weekday)
        if either
        else _dates_in(dates, length) & _weekdays_in(weekdays, length, first_weekday)
        for length, first_weekday in _SHAPES
    )


def _dates_in(dates: int, length: int) -> int:
    return (dates & (2 << length) - 2) | bool(dates & _LAST_DATE) << length


def _weekdays_in(weekdays: int, length: int, first_weekday: int) -> int:
    days = 0
    for section in range(_LAST_SECTION + 1):
        week = weekdays >> section * _SECTION & 0x7F
        # Turn the week so that bit 0 is the weekday of the month's first day.
        week = (week | week << 7) >> (first_weekday + 1) % 7 & 0x7F
        if section == 0:
            days |= week * _EVERY_WEEK << 1
        elif section < _LAST_SECTION:
            days |= week << section * 7 - 6
        else:
            days |= week * _EVERY_WEEK << 1 & 0x7F << length - 6
    return days & (2 << length) - 2


@dataclass(frozen=True, slots=True)
class Calendar:
    """A set of wall times: some times of day on some days. All but `second` are bit masks."""

    hours: int
    minutes: int
    second: int
    months: int
    days: tuple[int, ...]
    """The days of a month, for each shape of a month."""

    @classmethod
    def weekly(cls, at: time, weekdays: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6)) -> Calendar:
        """At that time on each of these weekdays (Sunday = 0), by default every day."""
        days = _days_by_shape(_ALL_DATES, sum(1 << day for day in weekdays), False)
        return cls(1 << at.hour, 1 << at.minute, at.second, _ALL_MONTHS, days)

    @classmethod
    def monthly(cls, at: time, day_of_month: int) -> Calendar:
        """At that time on that day of each month, or on the last day of a month that is too short."""
        days = tuple(1 << min(day_of_month, length) for length, _ in _SHAPES)
        return cls(1 << at.hour, 1 << at.minute, at.second, _ALL_MONTHS, days)

    def days_in(self, year: int, month: int) -> int:
        """The days of that month, as a bit mask."""
        return self.days[_shape(year, month)] if self.months >> month & 1 else 0

    def after(self, wall: datetime) -> datetime | None:
        """The first wall time of the set that is later than `wall`; None if the next 50 years have none."""
        year, month, day = wall.year, wall.month, wall.day
        if self.days_in(year, month) >> day & 1:
            at = self._time_after(wall)
            if at is not None:
                return datetime.combine(wall, at)
        last_year = year + SEARCH_YEARS
        day += 1
        while year <= last_year:
            found = _lowest(self.days_in(year, month), day)
            if found > 0:
                return datetime(year, month, found, _lowest(self.hours), _lowest(self.minutes), self.second)
            year, month, day = (year, month + 1, 1) if month < 12 else (year + 1, 1, 1)
        return None

    def _time_after(self, wall: datetime) -> time | None:
        """The first time of day of the set that is later than that of `wall`."""
        if self.hours >> wall.hour & 1:
            minute = _lowest(self.minutes, wall.minute + (wall.second >= self.second))
            if minute >= 0:
                return time(wall.hour, minute, self.second)
        hour = _lowest(self.hours, wall.hour + 1)
        return time(hour, _lowest(self.minutes), self.second) if hour >= 0 else None

    def count(self, after: datetime, until: datetime) -> int:
        """How many wall times of the set are later than `after` and not later than `until`."""
        if until <= after:
            return 0
        days = 0  # from the day of `after` to the day before that of `until`
        for number in range(after.year * 12 + after.month - 1, until.year * 12 + until.month):
            year, month = number // 12, number % 12 + 1
            mask = self.days_in(year, month)
            if (year, month) == (after.year, after.month):
                mask = mask >> after.day << after.day
            if (year, month) == (until.year, until.month):
                mask &= (1 << until.day) - 1
            days += mask.bit_count()
        per_day = self.hours.bit_count() * self.minutes.bit_count()
        return days * per_day + self._count_of_day(until) - self._count_of_day(after)

    def _count_of_day(self, wall: datetime) -> int:
        """How many wall times of the set are on the day of `wall` and not later than it."""
        if not self.days_in(wall.year, wall.month) >> wall.day & 1:
            return 0
        whole_hours = self.hours & (1 << wall.hour) - 1
        count = whole_hours.bit_count() * self.minutes.bit_count()
        if self.hours >> wall.hour & 1:
            minutes = self.minutes & (1 << wall.minute + (wall.second >= self.second)) - 1
            count += minutes.bit_count()
        return count


# --- Cron expressions ---------------------------------------------------------------------------------------


class _Field(NamedTuple):
    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()
    """Short for the numbers from `low` on."""


_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_DATE = _Field("day-of-month", 1, 31)
_WEEKDAY = _Field("day-of-week", 0, 7, _WEEKDAYS)
_FIELDS = (_Field("minute", 0, 59), _Field("hour", 0, 23), _DATE, _Field("month", 1, 12, _MONTHS), _WEEKDAY)

_ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_RANGE = re.compile(r"(?:(\*)|([0-9]+|[a-z]+)(?:-([0-9]+|[a-z]+))?)(?:/([0-9]+))?")
_NTH_WEEKDAY = re.compile(r"([0-9]+|[a-z]+)#([0-9]+)")
_LAST_WEEKDAY = re.compile(r"l([0-9]+|[a-z]{3})|([0-9]+|[a-z]{3})l")
_HASH = re.compile(r"[hr](\([0-9]+-[0-9]+\)|\([^)]*\))?(/[0-9]+)?")


class Cron(NamedTuple):
    """A cron expression, read. `fields` are its five fields in lower case, an alias written out."""

    fields: tuple[str, ...]
    calendar: Calendar
    follows_real_time: bool
    """The minute or hour field begins with `*` (see kytecron/core/schedule.py)."""
    either_day: bool
    """Neither day field begins with `*`: a day that matches one of them is enough."""


@lru_cache(maxsize=4096)
def parse_cron(expression: str) -> Cron:
    """Reads five fields or an alias such as `@daily`; raises Refused, saying what to write instead.

    Day-of-month and day-of-week are joined as Debian's cron joins them: either is enough, but when one of
    them begins with `*` (also `*/2`) both must match.
    """
    text = expression.strip().lower()
    fields = tuple(_ALIASES.get(text, text).split())
    plain = text.isascii() and text.replace("\t", " ").isprintable()
    if len(expression) <= MAX_CRON_LENGTH and len(fields) == 5 and plain:
        try:
            return _read(fields, shown(expression))
        except Refused:
            # Five words may be anything: a line of English, a YAML file, systemd.
            words = sum(not _may_be_a_field(field) for field in fields)
            instead = pasted.hint(expression, _problem) if words else None
            if instead is None and words < 3:
                raise
    else:
        instead = pasted.hint(expression, _problem)
        if len(expression) > MAX_CRON_LENGTH and (instead is None or "without" not in instead):
            raise Refused(
                f"Invalid cron_expression. It is longer than {MAX_CRON_LENGTH} characters. "
                "Write ranges and steps such as 0-30/5 instead of long lists, or make several jobs"
            )
    raise Refused(f"Invalid cron_expression {shown(expression)}. {instead or pasted.FIVE_FIELDS}")


def _problem(expression: str) -> str:
    """What is wrong with a text; empty where it is a cron expression. Makes no suggestion for the whole of it."""
    fields = tuple(_ALIASES.get(expression, expression).split())
    if len(fields) != 5 or len(expression) > MAX_CRON_LENGTH:
        return pasted.FIVE_FIELDS
    try:
        _read(fields, shown(expression))
    except Refused as refused:
        return re.sub(r"^Invalid cron_expression.*?\. ", "", str(refused), count=1)
    return ""


def _may_be_a_field(text: str) -> bool:
    """Whether it is told field by field what is wrong: it has the marks of a field, or a digit."""
    return bool(re.fullmatch(r"[0-9a-z*?/,#()-]+", text)) and (
        len(text) <= 3 or bool(re.search(r"[0-9*?,#(/-]", text))
    )


def _read(fields: tuple[str, ...], named: str) -> Cron:
    """Five fields in lower case, of an expression that is `named` so where the whole of it is wrong."""
    plain: list[list[str]] = []
    masks, problems = [], []
    for which, text in zip(_FIELDS, fields, strict=True):
        plain.append([])
        masks.append(0)
        for item in text.split(","):
            try:
                if special := _special(which, item):
                    masks[-1] |= special
                else:
                    plain[-1].append(_written(_range(which, item)))
            except Refused as refused:
                problems.append(str(refused))
    if problems:
        raise Refused(f"Invalid cron_expression. {'. '.join(problems)}")
    minutes, hours, dates, months, weekdays = (
        mask | named for mask, named in zip(masks, _named(plain), strict=True)
    )
    either_day = not (fields[2].startswith("*") or fields[4].startswith("*"))
    calendar = Calendar(hours, minutes, 0, months, _days_by_shape(dates, weekdays, either_day))
    # 28 years hold every month in all the shapes that it can have.
    if not any(calendar.days_in(year, month) for year in range(2000, 2028) for month in range(1, 13)):
        raise Refused(
            f"Invalid cron_expression {named}. It names dates that never come. "
            "Write L as the day-of-month for the last day of a month"
        )
    return Cron(fields, calendar, fields[0].startswith("*") or fields[1].startswith("*"), either_day)


class Step(NamedTuple):
    """An item of a field that steps: `*/7`, `5/20` or `5-50/20`."""

    field: str
    item: str
    values: range
    high: int
    """Where it could have gone on to: the range's end, or the field's."""
    bounded: bool
    """It has an end of its own, and does not begin again right after it."""


def steps(cron: Cron) -> list[Step]:
    """All items that step by more than one."""
    found = []
    for which, text in zip(_FIELDS, cron.fields, strict=True):
        for item in text.split(","):
            match = _RANGE.fullmatch(item)
            if match is None or int(match[4] or 1) == 1:
                continue
            values = _range(which, item)
            whole = _range(which, item.partition("/")[0])
            end = 6 if which is _WEEKDAY else which.high
            high = whole[-1] if match[3] is not None else end
            # `1-31/2` and `1-7/2` are the whole field, as `*/2` is, and begin again right after it.
            bounded = match[3] is not None and len(whole) < end - which.low + 1
            found.append(Step(which.name, item, values, high, bounded))
    return found


def _special(which: _Field, item: str) -> int:
    """The bit mask of an item that names days by their place in the month; 0 for any other item."""
    if which is _DATE and item == "l":
        return _LAST_DATE
    if which is not _WEEKDAY:
        return 0
    if nth := _NTH_WEEKDAY.fullmatch(item):
        if nth[2] not in ("1", "2", "3", "4", "5"):
            raise Refused(f"{_at(which, item)}: write #1 to #5, or {nth[1]}L for the last one of a month")
        return 1 << _number(which, nth[1]) % 7 + int(nth[2]) * _SECTION
    if last := _LAST_WEEKDAY.fullmatch(item):
        return 1 << _number(which, last[1] or last[2]) % 7 + _LAST_SECTION * _SECTION
    return 0


def _range(which: _Field, item: str) -> range:
    """The numbers of `*`, `a` or `a-b`, each possibly with a `/step`; `a/step` goes on to the field's end."""
    match = _RANGE.fullmatch(item)
    if hint := _unsupported(which, item):
        raise Refused(f"{_at(which, item)}: {hint}")
    if match is None:
        raise Refused(
            f"{_at(which, item)}: write *, a number, a range such as 1-5, a step such as */2, or a list of these"
        )
    star, first, last, step = match.groups()
    end = 6 if which is _WEEKDAY else which.high
    low = which.low if star else _number(which, first)
    high = end if star or (step and not last) else _number(which, last or first)
    if which is _WEEKDAY and low > high:
        low, high = low % 7, high or 7  # Sunday ends fri-sun and begins 7-2
    if low > high:
        pieces = ((low, end), (which.low, high))
        instead = ",".join(f"{a}-{b}" if a < b else f"{a}" for a, b in pieces)
        raise Refused(f"{_at(which, item)}: a range cannot run backwards. Write {instead}")
    if step and int(step) == 0:
        raise Refused(f"{_at(which, item)}: a step must be 1 or more")
    return range(low, high + 1, int(step or 1))


def _written(numbers: range) -> str:
    """Numbers as an item that croniter reads as they are; of one number alone it reads `5-5/10` otherwise."""
    return f"{numbers[0]}-{numbers[-1]}/{numbers.step}" if len(numbers) > 1 else f"{numbers[0]}"


def _named(items: list[list[str]]) -> list[int]:
    """What the items of each field name, as croniter reads them, as bit masks; 0 for a field that has none."""
    expanded, _ = croniter.expand(" ".join(",".join(field) or "*" for field in items))
    return [
        _mask(which, values) if field else 0
        for which, field, values in zip(_FIELDS, items, expanded, strict=True)
    ]


def _mask(which: _Field, values: list[Any]) -> int:
    if "*" in values:
        return _bits(which.low, 6 if which is _WEEKDAY else which.high)
    return sum({1 << value for value in values})


def _number(which: _Field, word: str) -> int:
    if word.isdigit() and which.low <= int(word) <= which.high:
        return int(word)
    if word in which.names:
        return which.low + which.names.index(word)
    names = f" or {', '.join(which.names)}" if which.names else ""
    raise Refused(f"{_at(which, word)}: write {which.low} to {which.high}{names}")


def _unsupported(which: _Field, item: str) -> str | None:
    """What to write instead of something that other schedulers know."""
    if not item:
        return "something is missing beside a comma"
    if item == "?":
        return "write * instead of ?"
    if match := _HASH.fullmatch(item):
        limits, step = match.groups()
        instead = f"{(limits or '*').strip('()')}{step}" if step else "a number"
        return f"write {instead}. jitter_seconds spreads jobs out"
    if which is _DATE and item.endswith("w"):
        return "the nearest weekday cannot be asked for. Write a date here, or weekdays as the day-of-week"
    if which is _DATE and item.startswith("l"):
        return "write L alone for the last day, or a date"
    if which is _WEEKDAY and item == "l":
        return "write a weekday beside the L, such as 5L for the last Friday of a month"
    return None


def _at(which: _Field, item: str) -> str:
    return f"{which.name.capitalize()} {shown(item)}"

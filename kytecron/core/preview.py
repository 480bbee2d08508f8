"""What a schedule will do, for people: its next slots, a sentence in English, and warnings with real dates."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta
from functools import lru_cache
from itertools import pairwise
from zoneinfo import ZoneInfo

from kytecron.core.choices import ScheduleType
from kytecron.core.cron import Calendar, Step, parse_cron, steps
from kytecron.core.schedule import Schedule, first_change, next_slot
from kytecron.core.words import in_words

MAX_PREVIEW = 50
_LOOK_AHEAD = timedelta(days=400)
_MICROSECOND = timedelta(microseconds=1)
_ALL_HOURS = (1 << 24) - 1
_WEEKDAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")


def preview(
    schedule: Schedule,
    after: datetime,
    count: int = 5,
    starts_at: datetime | None = None,
    ends_at: datetime | None = None,
) -> list[datetime]:
    """The first `count` slots (at most 50) later than `after`, in UTC; fewer when it ends before that."""
    slots: list[datetime] = []
    while len(slots) < min(count, MAX_PREVIEW):
        slot = next_slot(schedule, slots[-1] if slots else after, starts_at, ends_at)
        if slot is None:
            break
        slots.append(slot)
    return slots


# --- In English ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def describe(schedule: Schedule) -> str:
    """One English sentence, without a full stop: `At 02:30 every day, Europe/Berlin time`."""
    if schedule.schedule_type is ScheduleType.MANUAL:
        return "Only when triggered, by hand, by API or by its parents"
    if schedule.interval_seconds is not None:
        words = in_words(schedule.interval_seconds, parts=4)
        return f"Every {words.removeprefix('1 ') if words.count(' ') == 1 else words}"
    zone = "UTC" if schedule.timezone == "UTC" else f"{schedule.timezone} time"
    if schedule.cron_expression is not None:
        return f"{_describe_cron(schedule.cron_expression)}, {zone}"
    return f"At {_clock(schedule.time_of_day or time())} {_describe_days(schedule)}, {zone}"


def _describe_days(schedule: Schedule) -> str:
    weekdays, day = schedule.day_of_week, schedule.day_of_month
    if weekdays == (1, 2, 3, 4, 5):
        return "from Monday to Friday"
    if weekdays is not None and len(weekdays) < 7:
        return f"every {_listed([_WEEKDAYS[number] for number in weekdays])}"
    if day is None:
        return "every day"
    if day == 31:
        return "on the last day of every month"
    ending = "th" if 11 <= day <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    shorter = " (the last day of a shorter month)" if day > 28 else ""
    return f"on the {day}{ending} of every month{shorter}"


def _describe_cron(expression: str) -> str:
    cron = parse_cron(expression)
    plain = f"At the times of the cron expression {expression}"
    if _misdescribed(cron.fields):
        return plain
    from cron_descriptor import Options, get_description  # 10 ms, and many a process describes nothing

    try:
        words: str = get_description(
            " ".join(cron.fields).upper(), Options(use_24hour_time_format=True, locale_code="en_US")
        )
    except Exception:  # whatever the library makes of it, no accepted expression may fail here
        return plain
    # The library does not know that both days must match when one of their fields begins with `*`.
    return words if cron.either_day else words.replace(", or on ", ", only on ")


def _misdescribed(fields: tuple[str, ...]) -> bool:
    """Whether cron-descriptor says something untrue of it: a list with `*`, L or # in it, `59/2`, `*/90`, `7-7`."""
    minute, hour, date, _, weekday = fields
    return (
        any("," in text and set("*#l") & set(text) for text in (minute, hour, date, weekday))
        or any(
            _steps_nowhere(item, *ends)
            for text, ends in zip(fields, _ENDS, strict=True)
            for item in text.split(",")
        )
        # The same weekday at both ends, which may mean that day or all of them.
        or any(item in ("0-0", "0-7", "7-0", "7-7", "sun-sun") for item in weekday.split(","))
    )


_ENDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))


def _steps_nowhere(item: str, low: int, high: int) -> bool:
    """Whether a range with a step holds one number only: nothing comes "every 2 minutes" of `59/2`."""
    match = re.fullmatch(r"(\*|[0-9]+)(?:-([0-9]+))?/([0-9]+)", item)
    if match is None:
        return False
    first, last, step = match.groups()
    start = low if first == "*" else int(first)
    return start + int(step) > int(last or high)


def _clock(at: time | datetime) -> str:
    return f"{at:%H:%M:%S}" if at.second else f"{at:%H:%M}"


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


# --- Warnings -----------------------------------------------------------------------------------------------


def warnings(
    schedule: Schedule,
    after: datetime,
    usual_duration_seconds: float | None = None,
    starts_at: datetime | None = None,
    ends_at: datetime | None = None,
) -> list[str]:
    """What about this schedule may surprise its owner in the 13 months from `after` on, each a sentence."""
    if schedule.schedule_type is ScheduleType.MANUAL:
        return []
    slots = preview(schedule, after, MAX_PREVIEW, starts_at, ends_at)
    if not slots:
        return [f"It never runs again: there is no slot after {after.astimezone(UTC):%Y-%m-%d %H:%M} UTC."]
    until = after + _LOOK_AHEAD if ends_at is None else min(after + _LOOK_AHEAD, ends_at)
    return [
        *_far_away(schedule, after, slots[0]),
        *_odd_cron(schedule),
        *_short_months(schedule, after),
        *_clock_changes(schedule, max(after, starts_at or after), until),
        *_too_close(slots, usual_duration_seconds),
    ]


def _far_away(schedule: Schedule, after: datetime, slot: datetime) -> Iterator[str]:
    if slot - after > timedelta(days=366):
        yield f"The next run is as far away as {slot.astimezone(schedule.zone):%Y-%m-%d}."


def _odd_cron(schedule: Schedule) -> Iterator[str]:
    if schedule.cron_expression is None:
        return
    cron = parse_cron(schedule.cron_expression)
    yield from filter(None, map(_uneven, steps(cron)))
    if cron.either_day:
        yield (
            f"It runs on days that match the day-of-month ({cron.fields[2]}) and also on days that match the "
            f"day-of-week ({cron.fields[4]}): either is enough."
        )


_CYCLES = {
    "minute": ("minute", (60,), "hour"),
    "hour": ("hour", (24,), "day"),
    "day-of-month": ("day", (28, 29, 30, 31), "month"),
    "month": ("month", (12,), "year"),
    "day-of-week": ("day", (7,), "week"),
}
"""Of each field: its unit, how many of these there are until it begins again, and with what."""


def _uneven(step: Step) -> str | None:
    """What a step does that does not divide its field, or its range, evenly."""
    unit, lengths, whole = _CYCLES[step.field]
    values, by = step.values, step.values.step
    first, last = _named(step.field, values[0]), _named(step.field, values[-1])
    told = f"{step.item} in the {step.field} field"
    if len(values) == 1:
        text = f"{told} means {first} only."
        return text if unit == "month" else f"{text} For a run every {by} {unit}s use schedule_type interval."
    # A week may begin on any day: `1-7` goes from Monday to Sunday.
    begins = values[0] if step.field == "day-of-week" else 1 if unit in ("day", "month") else 0
    gaps = {
        length + values[0] - max(value for value in values if value < length + begins) for length in lengths
    }
    if gaps == {by} and (not step.bounded or step.high == lengths[-1] - 1 + begins):
        return None
    if step.bounded:
        end = _named(step.field, step.high)
        return (
            None
            if values[-1] == step.high
            else f"{told} stops at {last}: steps of {by} do not lead to {end}."
        )
    shortest, longest = min(gaps), max(gaps)
    later = f"{shortest} to {longest}" if shortest < longest else str(shortest)
    before = last if shortest == longest else "its last day"
    return (
        f"{told} begins again with each {whole}: {before} is followed by {first}, "
        f"{later} {unit}{'s' if longest > 1 else ''} later."
    )


def _named(field: str, value: int) -> str:
    if field == "month":
        return f"{datetime(2000, value, 1):%B}"
    if field == "day-of-week":
        return _WEEKDAYS[value % 7]
    return f"day {value}" if field == "day-of-month" else f"{field} {value}"


def _short_months(schedule: Schedule, after: datetime) -> Iterator[str]:
    """Months of the coming year that lack the day asked for."""
    calendar, wanted = schedule.calendar, schedule.day_of_month
    if calendar is None:
        return
    skipped, fallback = [], []
    local = after.astimezone(schedule.zone) + timedelta(days=4)  # a month that is about to end is over
    for number in range(local.year * 12 + local.month - 1, local.year * 12 + local.month + 11):
        year, month = number // 12, number % 12 + 1
        days = calendar.days_in(year, month)
        name = f"{datetime(year, month, 1):%B %Y}"
        if not days and calendar.months >> month & 1:
            skipped.append(name)
        elif wanted is not None and not days >> wanted & 1:
            fallback.append(f"{days.bit_length() - 1} {name}")
    if skipped:
        yield f"No run in {_listed(skipped)}: the day asked for does not come then."
    if fallback:
        yield f"Months without a day {wanted} run on their last day: {_listed(fallback)}."


def _clock_changes(schedule: Schedule, start: datetime, end: datetime) -> Iterator[str]:
    """Changes of the clock that move, drop or double runs."""
    calendar, real_time = schedule.calendar, schedule.follows_real_time
    if calendar is None or (real_time and calendar.hours == _ALL_HOURS):
        return  # real time in every hour: nothing that anybody would notice
    for old, new in _changes_on_the_wall(schedule.zone, start, end):
        gap = old < new
        if not gap and not real_time:
            continue  # a fixed time in the repeated hour comes once, as everybody expects
        after, until = min(old, new) - _MICROSECOND, max(old, new) - _MICROSECOND
        number = calendar.count(after, until)
        if number == 0:
            continue
        several = number > 1
        runs = f"the run{'s' * several} of {_listed(_times(calendar, after, number))}"
        if not real_time:
            effect = f"{runs} come{'s' * (not several)} at {_clock(new)}{', as one' * several}"
        elif gap:
            effect = f"{runs} {'are' if several else 'is'} left out"
        else:
            effect = f"{runs} come{'s' * (not several)} twice"
        yield f"On {old:%Y-%m-%d} the clock goes from {_clock(old)} to {_clock(new)}: {effect}."


def _changes_on_the_wall(
    zone: ZoneInfo, start: datetime, end: datetime
) -> Iterator[tuple[datetime, datetime]]:
    """The changes of a zone's clock in (start, end]: the wall times that meet there, old and new.

    Looks once a week, so it misses a change that is taken back within days; none such is on record since 2000.
    """
    while start < end:
        week_later = min(start + timedelta(days=7), end)
        if start.astimezone(zone).utcoffset() != week_later.astimezone(zone).utcoffset():
            change = first_change(zone, start, week_later)
            last = (change - _MICROSECOND).astimezone(zone)
            yield (
                last.replace(tzinfo=None, fold=0) + _MICROSECOND,
                change.astimezone(zone).replace(tzinfo=None, fold=0),
            )
        start = week_later


def _times(calendar: Calendar, after: datetime, number: int) -> list[str]:
    """The `number` wall times that follow `after`, for people: at most three by name."""
    named: list[str] = []
    wall = calendar.after(after)
    while wall is not None and len(named) < min(number, 3):
        named.append(_clock(wall))
        wall = calendar.after(wall)
    return [*named, f"{number - 3} more"] if number > 3 else named


def _too_close(slots: list[datetime], usual_duration_seconds: float | None) -> Iterator[str]:
    closest = min(pairwise(slots), key=lambda pair: pair[1] - pair[0], default=None)
    if usual_duration_seconds is None or closest is None:
        return
    first, second = closest
    apart = (second - first).total_seconds()
    if apart < usual_duration_seconds:
        yield (
            f"A run usually takes {in_words(usual_duration_seconds)}, but slots are as little as {in_words(apart)} "
            f"apart ({first:%Y-%m-%d %H:%M:%S} and {second:%H:%M:%S} UTC)."
        )

"""What schedules accept, when they fire away from daylight saving, and what becomes of missed slots."""

from __future__ import annotations

import math
import sys
import time as clock
from datetime import UTC, datetime, time, timedelta
from itertools import combinations
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import given, settings
from hypothesis import strategies as st

from kytecron.core.errors import Invalid
from kytecron.core.schedule import (
    TZDATA_VERSION,
    DueSlots,
    Missed,
    Schedule,
    Span,
    due_slots,
    jitter_offset,
    misfire,
    next_slot,
    zone,
)
from kytecron.core.zones import zone_names

NOW = datetime(2026, 11, 23, 22, 17, 45, 123456, tzinfo=UTC)  # a Monday
SECOND = timedelta(seconds=1)


def cron(expression: str, timezone: str = "UTC") -> Schedule:
    return Schedule.from_fields(schedule_type="cron", cron_expression=expression, timezone=timezone)


def every(seconds: int, anchor: datetime | None = None) -> Schedule:
    return Schedule.from_fields(schedule_type="interval", interval_seconds=seconds, anchor=anchor)


def first_slots(subject: Schedule, count: int, after: datetime = NOW) -> list[str]:
    found: list[str] = []
    slot = subject.next_after(after)
    while slot is not None and len(found) < count:
        found.append(f"{slot:%a %Y-%m-%d %H:%M}")
        slot = subject.next_after(slot)
    return found


def refusal(**fields: Any) -> dict[str, str]:
    with pytest.raises(Invalid) as caught:
        Schedule.from_fields(**fields)
    return caught.value.fields


# --- The six types ------------------------------------------------------------------------------------------


def test_an_interval_counts_from_its_anchor_and_never_drifts() -> None:
    anchor = datetime(2026, 11, 23, 22, 0, 7, 500, tzinfo=UTC)
    subject = every(90, anchor)
    assert subject.next_after(anchor) == anchor + 90 * SECOND
    assert subject.next_after(anchor + 89.9 * SECOND) == anchor + 90 * SECOND
    assert subject.next_after(anchor + 1_000_000 * SECOND) == anchor + 11_112 * 90 * SECOND
    assert subject.latest_at_or_before(anchor + 1_000_000 * SECOND) == anchor + 11_111 * 90 * SECOND


def test_the_first_slot_of_an_interval_is_its_anchor() -> None:
    anchor = NOW + timedelta(days=3)
    assert every(60, anchor).next_after(NOW) == anchor
    assert every(60, anchor).latest_at_or_before(NOW) is None


def test_an_interval_without_anchor_counts_from_the_epoch() -> None:
    assert every(3600).next_after(NOW) == datetime(2026, 11, 23, 23, tzinfo=UTC)


def test_an_interval_does_not_see_daylight_saving() -> None:
    subject = Schedule.from_fields(
        schedule_type="interval",
        interval_seconds=7200,
        timezone="Europe/Berlin",
        anchor=datetime(2026, 3, 29, tzinfo=UTC),
    )
    assert first_slots(subject, 2, datetime(2026, 3, 29, tzinfo=UTC)) == [
        "Sun 2026-03-29 02:00",
        "Sun 2026-03-29 04:00",
    ]


def test_daily_fires_at_its_local_time() -> None:
    subject = Schedule.from_fields(schedule_type="daily", time_of_day="02:30:15", timezone="America/New_York")
    slot = datetime(2026, 11, 24, 7, 30, 15, tzinfo=UTC)
    assert subject.next_after(NOW) == slot
    assert subject.next_after(slot - SECOND) == slot
    assert subject.next_after(slot) == slot + timedelta(days=1)


def test_weekly_fires_on_each_named_day() -> None:
    subject = Schedule.from_fields(schedule_type="weekly", day_of_week="5, 1,3", time_of_day="08:00")
    assert subject.day_of_week == (1, 3, 5)
    assert first_slots(subject, 4) == [
        *("Wed 2026-11-25 08:00", "Fri 2026-11-27 08:00", "Mon 2026-11-30 08:00", "Wed 2026-12-02 08:00"),
    ]


@pytest.mark.parametrize("given", [0, "0", [0], ["0"], (0, 0), {0}])
def test_day_of_week_comes_in_many_shapes_and_0_is_sunday(given: Any) -> None:
    subject = Schedule.from_fields(schedule_type="weekly", day_of_week=given, time_of_day="08:00")
    assert first_slots(subject, 1) == ["Sun 2026-11-29 08:00"]


def test_weekly_on_a_local_weekday_is_another_weekday_in_utc() -> None:
    subject = Schedule.from_fields(
        schedule_type="weekly", day_of_week=1, time_of_day="08:00", timezone="Pacific/Auckland"
    )
    assert first_slots(subject, 1) == ["Sun 2026-11-29 19:00"]


def test_monthly_falls_back_to_the_last_day_once_a_month() -> None:
    subject = Schedule.from_fields(schedule_type="monthly", day_of_month="30", time_of_day="23:59")
    assert first_slots(subject, 5) == [
        *("Mon 2026-11-30 23:59", "Wed 2026-12-30 23:59", "Sat 2027-01-30 23:59"),
        *("Sun 2027-02-28 23:59", "Tue 2027-03-30 23:59"),
    ]
    leap = Schedule.from_fields(schedule_type="monthly", day_of_month=31, time_of_day="23:59")
    assert first_slots(leap, 1, datetime(2028, 2, 1, tzinfo=UTC)) == ["Tue 2028-02-29 23:59"]


def test_manual_never_fires() -> None:
    subject = Schedule.from_fields(schedule_type="manual")
    assert subject.next_after(NOW) is None
    assert subject.latest_at_or_before(NOW) is None


def test_equal_definitions_are_equal_and_hashable() -> None:
    assert cron("*/5  * * * *") == cron(" */5 * * * *")
    assert len({cron("@daily"), cron("@daily"), cron("@daily", "Europe/Berlin"), every(60), every(61)}) == 4


# --- Cron expressions ---------------------------------------------------------------------------------------

# After Monday 2026-11-23 22:17:45.
CRON_SLOTS = {
    "* * * * *": ["Mon 2026-11-23 22:18", "Mon 2026-11-23 22:19"],
    "17 22 * * *": ["Tue 2026-11-24 22:17"],
    "*/20 * * * *": ["Mon 2026-11-23 22:20", "Mon 2026-11-23 22:40", "Mon 2026-11-23 23:00"],
    "5/25 * * * *": ["Mon 2026-11-23 22:30", "Mon 2026-11-23 22:55", "Mon 2026-11-23 23:05"],
    "5-5/10 * * * *": ["Mon 2026-11-23 23:05", "Tue 2026-11-24 00:05"],
    "*/90 * * * *": ["Mon 2026-11-23 23:00", "Tue 2026-11-24 00:00"],
    "0 8-18/4,23 * * *": ["Mon 2026-11-23 23:00", "Tue 2026-11-24 08:00", "Tue 2026-11-24 12:00"],
    "0 0 * JAN-mar/2 *": ["Fri 2027-01-01 00:00", "Sat 2027-01-02 00:00"],
    "0 0 * * 7": ["Sun 2026-11-29 00:00", "Sun 2026-12-06 00:00"],
    "0 0 * * 0": ["Sun 2026-11-29 00:00", "Sun 2026-12-06 00:00"],
    "0 0 * * fri-sun": [
        "Fri 2026-11-27 00:00",
        "Sat 2026-11-28 00:00",
        "Sun 2026-11-29 00:00",
        "Fri 2026-12-04 00:00",
    ],
    "0 0 * * 5-7": [
        "Fri 2026-11-27 00:00",
        "Sat 2026-11-28 00:00",
        "Sun 2026-11-29 00:00",
        "Fri 2026-12-04 00:00",
    ],
    "0 0 * * 7-2": [
        "Tue 2026-11-24 00:00",
        "Sun 2026-11-29 00:00",
        "Mon 2026-11-30 00:00",
        "Tue 2026-12-01 00:00",
    ],
    "0 0 * * MON,5-6": ["Fri 2026-11-27 00:00", "Sat 2026-11-28 00:00", "Mon 2026-11-30 00:00"],
    "0 0 L * *": [
        "Mon 2026-11-30 00:00",
        "Thu 2026-12-31 00:00",
        "Sun 2027-01-31 00:00",
        "Sun 2027-02-28 00:00",
    ],
    "0 0 1,l 2 *": [
        "Mon 2027-02-01 00:00",
        "Sun 2027-02-28 00:00",
        "Tue 2028-02-01 00:00",
        "Tue 2028-02-29 00:00",
    ],
    "0 0 * * 5L": ["Fri 2026-11-27 00:00", "Fri 2026-12-25 00:00", "Fri 2027-01-29 00:00"],
    "0 0 * * L5": ["Fri 2026-11-27 00:00", "Fri 2026-12-25 00:00", "Fri 2027-01-29 00:00"],
    "0 0 * * friL": ["Fri 2026-11-27 00:00", "Fri 2026-12-25 00:00", "Fri 2027-01-29 00:00"],
    "0 0 * * 7L": ["Sun 2026-11-29 00:00", "Sun 2026-12-27 00:00"],
    "0 0 * * 1#2": ["Mon 2026-12-14 00:00", "Mon 2027-01-11 00:00"],
    "0 0 * * tue#5": ["Tue 2026-12-29 00:00", "Tue 2027-03-30 00:00"],
    "0 0 * * 1#1,3": ["Wed 2026-11-25 00:00", "Wed 2026-12-02 00:00", "Mon 2026-12-07 00:00"],
    # Both day fields: either is enough, unless one begins with a star: then both.
    "0 0 13 * 5": [
        "Fri 2026-11-27 00:00",
        "Fri 2026-12-04 00:00",
        "Fri 2026-12-11 00:00",
        "Sun 2026-12-13 00:00",
    ],
    "0 0 */10 * 2": ["Tue 2026-12-01 00:00", "Tue 2027-05-11 00:00"],
    "0 0 13 * */5": ["Sun 2026-12-13 00:00", "Sun 2027-06-13 00:00"],
    "0 0 1-7 * *": ["Tue 2026-12-01 00:00", "Wed 2026-12-02 00:00"],
    "0 0 29 2 */7": [
        "Sun 2032-02-29 00:00",
        "Sun 2060-02-29 00:00",
        "Sun 2088-02-29 00:00",
        "Sun 2128-02-29 00:00",
    ],
    "@hourly": ["Mon 2026-11-23 23:00", "Tue 2026-11-24 00:00"],
    "@daily": ["Tue 2026-11-24 00:00", "Wed 2026-11-25 00:00"],
    "@midnight": ["Tue 2026-11-24 00:00", "Wed 2026-11-25 00:00"],
    "@Weekly": ["Sun 2026-11-29 00:00", "Sun 2026-12-06 00:00"],
    "@monthly": ["Tue 2026-12-01 00:00", "Fri 2027-01-01 00:00"],
    "@yearly": ["Fri 2027-01-01 00:00", "Sat 2028-01-01 00:00"],
    "@annually": ["Fri 2027-01-01 00:00", "Sat 2028-01-01 00:00"],
    "\t0 0\t* * * ": ["Tue 2026-11-24 00:00"],
}


@pytest.mark.parametrize("expression", CRON_SLOTS)
def test_cron_expressions_mean_what_they_say(expression: str) -> None:
    expected = CRON_SLOTS[expression]
    assert first_slots(cron(expression), len(expected)) == expected


@settings(max_examples=25, deadline=None)
@given(st.datetimes(datetime(2000, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC)))
def test_cronsim_agrees_on_plain_days(instant: datetime) -> None:
    for expression in (
        *("*/7 3-20/3 * * *", "59 23 31 * *", "0 12 * 2,6-9 1-5", "5 4 L * *", "1 2 3 * 4#2", "0 0 * * 3L"),
        *("0 0 */3 * 1-5", "0 0 1,15 * 1", "30 6 29 2 *", "0 0 */2 2 1", "0 0 * * 5#5", "0 0 31 */2 sun"),
    ):
        subject, theirs = cron(expression), CronSim(expression, instant)
        slot = instant
        for _ in range(4):
            following = subject.next_after(slot)
            assert following is not None
            assert following == next(theirs)
            slot = following


REFUSED_CRON = {
    "0 */5 * * * *": "*/5 * * * *. For less than a minute use schedule_type interval",
    "0 0 1 1 * 2027": "without seconds or a year: 0 0 1 1 *.",
    "0 0 0 1 1 * 2027": "Write five fields",
    "* * * *": "Write five fields",
    "hello": "Write five fields",
    "@reboot": "use schedule_type manual",
    "@every 5m": "Use schedule_type interval and interval_seconds",
    "@fortnightly": "@hourly, @daily",
    "0 " * 101: "longer than 200 characters",
    "0 0 30 2 *": "never come. Write L",
    "0 0 31 2,4,6,9,11 *": "never come",
    "0 0 */29 * 1#2": "Write",
    "? * * * *": "write * instead of ?",
    "0 0 15W * *": "nearest weekday",
    "0 0 LW * *": "nearest weekday",
    "0 0 L-3 * *": "write L alone",
    "H * * * *": "jitter_seconds spreads jobs out",
    "H(0-29)/10 * * * *": "jitter_seconds spreads jobs out",
    "0 0 * * L": "such as 5L",
    "0 0 * * mon#6": "write #1 to #5, or monL",
    "0 0 * * 1-5L": "write *, a number",
    "0 0 * * 8": "write 0 to 7 or sun, mon",
    "0 0 * * monday": "write 0 to 7 or sun, mon",
    "0 0 * 13 *": "write 1 to 12 or jan, feb",
    "0 0 0 * *": "Day-of-month '0': write 1 to 31",
    "60 * * * *": "Minute '60': write 0 to 59",
    "* 24 * * *": "Hour '24': write 0 to 23",
    "* 22-2 * * *": "Write 22-23,0-2",
    "0 0 * * 6-2": "Write 6,0-2",
    "*/0 * * * *": "a step must be 1 or more",
    "1,,2 * * * *": "missing beside a comma",
    "-1 * * * *": "write *, a number",
    "1.5 * * * *": "write *, a number",
    "** * * * *": "write *, a number",
    "*-5 * * * *": "write *, a number",
    "٣ * * * *": "Write five fields",
    "0 0 * * *\x00": "Write five fields",
    "0\n0 * * *": "Write five fields",
}


@pytest.mark.parametrize("expression", REFUSED_CRON)
def test_refused_cron_expressions_say_what_to_write(expression: str) -> None:
    message = refusal(schedule_type="cron", cron_expression=expression)["cron_expression"]
    assert message.startswith("Invalid cron_expression")
    assert REFUSED_CRON[expression] in message


def test_every_wrong_field_of_a_cron_expression_is_named() -> None:
    message = refusal(schedule_type="cron", cron_expression="61 25 * foo *")["cron_expression"]
    assert "Minute '61'" in message
    assert "Hour '25'" in message
    assert "Month 'foo'" in message


# --- Wrong fields -------------------------------------------------------------------------------------------


def test_messages_are_those_of_the_original_system() -> None:
    must_be_one_of = "Invalid schedule_type. Must be one of: cron, interval, daily, weekly, monthly, manual"
    assert refusal(schedule_type="hourly") == {"schedule_type": must_be_one_of}
    assert refusal() == {"schedule_type": must_be_one_of}
    for kind, missing in {
        "cron": ["cron_expression"],
        "interval": ["interval_seconds"],
        "daily": ["time_of_day"],
        "weekly": ["day_of_week", "time_of_day"],
        "monthly": ["day_of_month", "time_of_day"],
    }.items():
        for blank in (None, "", "  "):
            fields = refusal(schedule_type=kind, **dict.fromkeys(missing, blank))
            assert list(fields) == missing
            for name in missing:
                assert fields[name].startswith(f"{name} is required for {kind} schedule type. Write ")


def test_all_wrong_fields_are_told_at_once() -> None:
    fields = refusal(schedule_type="weekly", day_of_week=7, time_of_day="8 am", timezone="Europe/Berln")
    assert fields == {
        "day_of_week": "Invalid day_of_week 7. Write 0 (Sunday) to 6 (Saturday), or several such as 1,3,5",
        "time_of_day": "Invalid time_of_day '8 am'. Write HH:MM or HH:MM:SS from 00:00 to 23:59:59, for example 02:30",
        "timezone": "Invalid timezone 'Europe/Berln'. Did you mean Europe/Berlin?",
    }
    assert set(refusal(schedule_type="sometimes", timezone="Mars")) == {"schedule_type", "timezone"}


@pytest.mark.parametrize(
    ("days", "told"),
    [
        ([1, 9], "9"),
        ("1,8,3", "'8'"),
        (["monday", 2], "'monday'"),
        ([1, None], "(a NoneType)"),
        ([[1]], "(a list)"),
    ],
)
def test_the_day_that_is_wrong_among_several_is_named(days: object, told: str) -> None:
    fields = refusal(schedule_type="weekly", day_of_week=days, time_of_day="08:00")
    hint = "Write 0 (Sunday) to 6 (Saturday), or several such as 1,3,5"
    assert fields == {"day_of_week": f"Invalid day_of_week {told}. {hint}"}
    many = refusal(schedule_type="weekly", day_of_week=[1] * 8, time_of_day="08:00")
    assert many == {"day_of_week": f"Invalid day_of_week: more than 7 days. {hint}"}


def test_fields_of_other_types_are_ignored() -> None:
    subject = Schedule.from_fields(
        schedule_type="daily",
        time_of_day="02:30",
        cron_expression="nonsense",
        interval_seconds="",
        day_of_week=99,
    )
    assert subject == Schedule.from_fields(schedule_type="daily", time_of_day=time(2, 30), timezone=" UTC ")


NESTED: list[Any] = []
for _ in range(5000):
    NESTED = [NESTED]
HOSTILE = [
    *(math.nan, math.inf, -math.inf, 1e308, 2.5, -1, 0.0, 10**400, -(10**400), True, False, sys.maxsize),
    *(
        b"5",
        bytearray(b"5"),
        "x" * 1_000_000,
        "9" * 10_000,
        "1e3",
        "0x10",
        "٣",
        "+5",
        "5\x00",
        "\ud800",
        "\u202e5",
    ),
    *("02:30\x1b[31m", "24:00", "2:60", "12:30:60", "::", "1,2,", ",", "0,1,2,3,4,5,6,0", "../../etc/passwd"),
    *(
        [[]],
        NESTED,
        [1, [2]],
        ["x"],
        list(range(100_000)),
        {"a": 1},
        object(),
        lambda: 1,
        datetime(2026, 1, 1),
        time,
    ),
    *(
        time(2, 30, tzinfo=UTC),
        timedelta(1),
        5j,
        range(3),
        "Europe/Berlin\x00",
        "/etc/localtime",
        "posixrules",
        ".",
    ),
]


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("cron", "cron_expression"), ("interval", "interval_seconds"), ("interval", "anchor")),
        *(("daily", "time_of_day"), ("weekly", "day_of_week"), ("monthly", "day_of_month")),
        *(("manual", "timezone"), ("manual", "schedule_type")),
    ],
)
def test_hostile_values_are_refused_and_nothing_else(kind: str, name: str, value: Any) -> None:
    good = {"interval_seconds": 60, "time_of_day": "02:30", "day_of_week": 1, "day_of_month": 1}
    fields = refusal(**{"schedule_type": kind, **good, name: value})
    assert list(fields) == [name]
    assert len(fields[name]) < 300
    assert fields[name].isprintable()


@settings(max_examples=60, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "schedule_type": st.sampled_from(["cron", "interval", "daily", "weekly", "monthly", "manual"])
            | st.text()
        },
        optional=dict.fromkeys(
            [
                "cron_expression",
                "interval_seconds",
                "time_of_day",
                "day_of_week",
                "day_of_month",
                "timezone",
                "anchor",
            ],
            st.none()
            | st.integers()
            | st.floats()
            | st.text()
            | st.binary()
            | st.lists(st.integers() | st.text())
            | st.text("0123456789*/-,#L? ")
            | st.datetimes()
            | st.times(),
        ),
    )
)
def test_any_input_gives_a_schedule_or_invalid(fields: dict[str, Any]) -> None:
    try:
        subject = Schedule.from_fields(**fields)
    except Invalid:
        return
    slot = subject.next_after(NOW)
    assert slot is None or slot > NOW


@pytest.mark.parametrize("seconds", [1, "1", " 300 ", 315_360_000])
def test_intervals_from_one_second_to_ten_years(seconds: Any) -> None:
    assert every(seconds).interval_seconds == int(seconds)


@pytest.mark.parametrize("seconds", [0, -5, 315_360_001, "0", "1.5"])
def test_other_intervals_are_refused(seconds: Any) -> None:
    message = refusal(schedule_type="interval", interval_seconds=seconds)["interval_seconds"]
    assert message.endswith("Write a whole number of seconds from 1 to 315360000 (10 years), for example 300")


def test_an_anchor_needs_a_time_zone() -> None:
    fields = refusal(schedule_type="interval", interval_seconds=60, anchor=datetime(2026, 1, 1))
    assert fields == {"anchor": "Invalid anchor. Write an instant with its time zone"}
    berlin = ZoneInfo("Europe/Berlin")
    assert every(60, datetime(2026, 1, 1, 1, tzinfo=berlin)).anchor == datetime(2026, 1, 1, tzinfo=UTC)
    assert refusal(
        schedule_type="interval", interval_seconds=60, anchor=datetime.max.replace(tzinfo=zone("Etc/GMT+5"))
    )


# --- Time zones ---------------------------------------------------------------------------------------------


def test_zones_come_from_the_package_only() -> None:
    assert TZDATA_VERSION[:2] == "20"
    assert len(zone_names()) > 500
    assert "Europe/Berlin" in zone_names()
    for name in zone_names():
        assert zone(name).key == name


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Europe/Berln", "Europe/Berlin"),
        ("europe/berlin", "Europe/Berlin"),
        ("Berlin", "Europe/Berlin"),
        ("new york", "America/New_York"),
        ("America/NewYork", "America/New_York"),
        ("Utc", "UTC"),
        ("+02:00", "Write a name such as Europe/Berlin"),
        ("x" * 500, "Write a name such as Europe/Berlin"),
    ],
)
def test_an_unknown_zone_is_refused_with_the_nearest_name(name: str, hint: str) -> None:
    message = refusal(schedule_type="manual", timezone=name)["timezone"]
    assert message.startswith("Invalid timezone")
    assert hint in message


# --- The ends of the calendar and of patience ---------------------------------------------------------------


@pytest.mark.parametrize(
    "subject",
    [
        *(every(1), every(315_360_000), every(86_400, datetime.max.replace(tzinfo=UTC))),
        *(cron("* * * * *", "Pacific/Kiritimati"), cron("0 0 * * *", "Etc/GMT+12"), cron("0 0 29 2 */7")),
        Schedule.from_fields(
            schedule_type="monthly", day_of_month=31, time_of_day="23:59:59", timezone="Etc/GMT-14"
        ),
    ],
)
def test_the_ends_of_the_calendar_do_not_overflow(subject: Schedule) -> None:
    for instant in (datetime.max, datetime.max - timedelta(days=1), datetime(9899, 12, 31, 23)):
        slot = subject.next_after(instant.replace(tzinfo=UTC))
        assert slot is None or slot > instant.replace(tzinfo=UTC)
        subject.latest_at_or_before(instant.replace(tzinfo=UTC))
    for instant in (datetime.min, datetime.min + timedelta(days=400)):
        slot = subject.next_after(instant.replace(tzinfo=UTC))
        assert slot is None or slot > instant.replace(tzinfo=UTC)
        subject.latest_at_or_before(instant.replace(tzinfo=UTC))


def test_a_naive_instant_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="aware"):
        cron("* * * * *").next_after(datetime(2026, 1, 1))


def test_an_instant_in_another_zone_is_understood() -> None:
    instant = datetime(2026, 11, 24, 7, 17, tzinfo=ZoneInfo("Asia/Tokyo"))
    assert cron("0 * * * *").next_after(instant) == datetime(2026, 11, 23, 23, tzinfo=UTC)


SLOW = [
    *(
        "0 0 29 2 */7",
        "0 0 29 2 1",
        "* * 29 2 *",
        "59 23 31 12 *",
        "* * * * *",
        "0 0 * 2 1#5",
        "0 0 L 2 6L",
    ),
    # In Berlin never: always in the gap. The search gives up after 50 years.
    *("* 2 * 3 7L", "*/59 2 * 3 0L", "0-59 */2 * 3 7L", "0 */2 25-31 3 */7"),
    ",".join(str(n) for n in range(59, 0, -1)) + " * * * *",
]


@pytest.mark.parametrize("timezone", ["UTC", "Europe/Berlin", "Pacific/Apia"])
@pytest.mark.parametrize("expression", SLOW)
def test_the_slowest_call_takes_less_than_200_ms(expression: str, timezone: str) -> None:
    subject = cron(expression, timezone)
    for year in (1867, 1900, 2011, 2026, 2096, 9890):
        instant = datetime(year, 3, 1, 1, 59, 59, tzinfo=UTC)
        for call in (subject.next_after, subject.latest_at_or_before):
            assert quickest(lambda call=call, instant=instant: call(instant)) < 0.2


def test_reading_a_hostile_expression_takes_less_than_200_ms() -> None:
    for expression in (",".join(["*"] * 96) + " * * * *", "1" * 190 + " * * * *", "*/1," * 48 + "* * * * *"):
        assert quickest(lambda text=expression: fields_or_refusal(text)) < 0.2


def fields_or_refusal(expression: str) -> None:
    try:
        cron(expression)
    except Invalid:
        pass


def quickest(call: Any) -> float:
    """Seconds of processor time of the quickest of three calls: a busy machine is no slow function."""
    durations = []
    for _ in range(3):
        start = clock.thread_time()
        call()
        durations.append(clock.thread_time() - start)
    return min(durations)


def test_an_expression_that_a_gap_always_swallows_never_fires() -> None:
    assert cron("*/5 2 * 3 7L", "Europe/Berlin").next_after(NOW) is None
    assert cron("*/5 2 * 3 7L", "UTC").next_after(NOW) == datetime(2027, 3, 28, 2, 0, tzinfo=UTC)


# --- Beginning, end, jitter ---------------------------------------------------------------------------------


def test_slots_lie_between_the_ends_and_may_fall_on_them() -> None:
    subject, hour = cron("0 * * * *"), datetime(2026, 11, 24, tzinfo=UTC)
    assert next_slot(subject, NOW, starts_at=hour) == hour
    assert next_slot(subject, NOW, starts_at=hour + timedelta(microseconds=1)) == hour + timedelta(hours=1)
    assert next_slot(subject, hour, starts_at=hour) == hour + timedelta(hours=1)
    assert next_slot(subject, NOW, hour, hour) == hour
    assert next_slot(subject, hour, hour, hour) is None
    assert next_slot(subject, NOW, ends_at=NOW) is None


def test_jitter_is_fixed_for_a_job_and_spread_over_jobs() -> None:
    offsets = [jitter_offset(job, 60) for job in range(1000)]
    assert offsets == [jitter_offset(job, 60) for job in range(1000)]
    assert min(offsets) >= timedelta(0)
    assert max(offsets) <= timedelta(seconds=60)
    assert all(
        sum(n * 10 <= offset.total_seconds() < n * 10 + 10 for offset in offsets) > 100 for n in range(6)
    )
    assert jitter_offset(5, 0) == timedelta(0)


# --- Missed slots -------------------------------------------------------------------------------------------

MINUTES = every(60)
DUE = datetime(2026, 11, 23, 22, 0, tzinfo=UTC)


def minutes(*numbers: int) -> list[datetime]:
    return [DUE + timedelta(minutes=n) for n in numbers]


def decide(
    policy: str, late: timedelta, schedule: Schedule = MINUTES, grace: int = 60
) -> tuple[list[Any], list[Any]]:
    now = DUE + late
    decision = misfire(policy, due_slots(schedule, DUE, now), now, grace)
    assert all(what.slots.count == 1 or what is decision.skip[0] for what in decision.skip)
    return decision.run, [what.slots.first for what in decision.skip]


@pytest.mark.parametrize("policy", ["run_once", "skip", "run_all"])
def test_a_slot_within_the_grace_runs_under_every_policy(policy: str) -> None:
    assert decide(policy, timedelta(seconds=59)) == ([DUE], [])
    assert decide(policy, timedelta(seconds=60), every(7200)) == ([DUE], [])


def test_nothing_is_due_before_the_first_slot() -> None:
    assert due_slots(MINUTES, DUE, DUE - SECOND) == DueSlots(())
    assert misfire("run_once", DueSlots(()), DUE) == ([], [])


def test_run_once_runs_the_newest_however_late() -> None:
    assert decide("run_once", timedelta(minutes=3, seconds=30)) == (minutes(3), minutes(0, 1, 2))
    assert decide("run_once", timedelta(hours=1, minutes=59), every(7200)) == ([DUE], [])


def test_skip_runs_the_newest_only_within_the_grace() -> None:
    assert decide("skip", timedelta(minutes=3, seconds=30)) == (minutes(3), minutes(0, 1, 2))
    assert decide("skip", timedelta(minutes=3, seconds=30), grace=10) == ([], minutes(0, 1, 2, 3))
    assert decide("skip", timedelta(seconds=61), every(7200)) == ([], [DUE])
    assert decide("skip", timedelta(seconds=60), every(7200)) == ([DUE], [])


def test_run_all_runs_the_newest_hundred_oldest_first() -> None:
    assert decide("run_all", timedelta(minutes=3, seconds=30)) == (minutes(0, 1, 2, 3), [])
    run, skipped = decide("run_all", timedelta(minutes=99))
    assert (run, skipped) == (minutes(*range(100)), [])
    run, skipped = decide("run_all", timedelta(minutes=250))
    assert run == minutes(*range(151, 251))
    assert skipped == minutes(0, 150), "the first stands for those before the second"


def test_skipped_slots_say_why_and_the_older_ones_say_it_together() -> None:
    now = DUE + timedelta(minutes=250, seconds=5)
    due = due_slots(MINUTES, DUE, now)
    assert due.older == Span(DUE, DUE + timedelta(minutes=149), 150)
    assert list(due.slots) == minutes(*range(150, 251))
    skip = misfire("run_once", due, now).skip
    assert [what.slots.count for what in skip] == [150] + [1] * 100
    reasons = [what.reason for what in skip]
    assert reasons[-1] == (
        "Missed by 1 minute 5 seconds: only the newest of the missed slots runs (misfire_policy run_once)"
    )
    assert reasons[0] == (
        "Missed by 1 hour 41 minutes to 4 hours 10 minutes: only the newest of the missed slots runs "
        "(misfire_policy run_once)"
    )
    alone = misfire("skip", due_slots(every(7200), DUE, DUE + timedelta(hours=1)), DUE + timedelta(hours=1))
    assert alone.skip == [
        Missed(
            Span(DUE, DUE, 1),
            "Missed by 1 hour: nothing runs later than the grace of 1 minute (misfire_policy skip)",
        )
    ]


def test_of_slots_that_are_accounted_for_only_the_later_ones_are_due() -> None:
    due = due_slots(MINUTES, DUE, DUE + timedelta(minutes=250))
    assert due.after(MINUTES, DUE - SECOND) == due
    assert due.after(MINUTES, DUE).older == Span(
        DUE + timedelta(minutes=1), DUE + timedelta(minutes=149), 149
    )
    assert due.after(MINUTES, DUE + timedelta(minutes=149)) == DueSlots(due.slots)
    assert list(due.after(MINUTES, DUE + timedelta(minutes=248, seconds=1)).slots) == minutes(249, 250)
    assert due.after(MINUTES, DUE + timedelta(minutes=250)) == DueSlots(())


@pytest.mark.parametrize(
    "schedule",
    [
        every(1),
        cron("* * * * *"),
        cron("* * * * *", "Europe/Berlin"),
        cron("* * 1 1 *"),
        cron("0-59 0-23 * 1 *", "America/New_York"),
        cron("* * * 10,11 1-5", "Europe/Berlin"),
    ],
)
def test_a_year_of_missed_slots_costs_no_more_than_a_hundred(schedule: Schedule) -> None:
    for days in (1, 23, 200, 365, 3650):
        start = DUE - timedelta(days=days)
        first = schedule.next_after(start)
        assert first is not None
        if first > DUE:
            continue
        due = due_slots(schedule, first, DUE)
        assert 1 <= len(due.slots) <= 101
        assert list(due.slots) == sorted(set(due.slots))
        assert due.slots[-1] == schedule.latest_at_or_before(DUE)
        assert quickest(lambda first=first: due_slots(schedule, first, DUE)) < 0.2


def test_a_year_of_seconds_is_counted_exactly() -> None:
    older = due_slots(every(1), DUE - timedelta(days=365), DUE).older
    assert older == Span(DUE - timedelta(days=365), DUE - 101 * SECOND, 365 * 86_400 + 1 - 101)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(
        ["*/7 * * * *", "30 2 * * *", "0 * * * *", "5 0-3 * * *", "* 2 * * *", "59 23 31 * *", "0 0 * * *"]
    ),
    st.sampled_from(
        [
            *("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Cairo", "Pacific/Apia"),
            *("Africa/Casablanca", "America/St_Johns", "Antarctica/Troll", "Pacific/Kwajalein", "UTC"),
        ]
    ),
    st.sampled_from([1993, 2011, 2024, 2026]),
    st.integers(0, 365 * 86_400 * 10**6),
    st.integers(0, 50 * 86_400 * 10**6),
)
def test_slots_are_counted_as_they_are_walked_through_also_where_the_clock_changes(
    expression: str, where: str, year: int, begin: int, length: int
) -> None:
    schedule = cron(expression, where)
    first = datetime(year, 1, 1, tzinfo=UTC) + timedelta(microseconds=begin)
    until = first + timedelta(microseconds=length)
    number, slot = 0, schedule.next_after(first)
    while slot is not None and slot <= until:
        number += 1
        slot = schedule.next_after(slot)
    assert schedule.count(first, until) == number


@pytest.mark.parametrize("expression", ["30 2 * * *", "*/10 * * * *", "15,45 1-3 * * *", "0 * * * *"])
@pytest.mark.parametrize(
    ("where", "change"),
    [
        ("Europe/Berlin", datetime(2026, 3, 29, 1, tzinfo=UTC)),
        ("Europe/Berlin", datetime(2026, 10, 25, 1, tzinfo=UTC)),
        ("Australia/Lord_Howe", datetime(2026, 4, 4, 15, tzinfo=UTC)),
        ("Africa/Cairo", datetime(2026, 4, 23, 22, tzinfo=UTC)),
        ("Pacific/Apia", datetime(2011, 12, 30, 10, tzinfo=UTC)),
        ("Pacific/Kwajalein", datetime(1993, 8, 21, 12, tzinfo=UTC)),
    ],
)
def test_slots_are_counted_to_the_second_around_a_change_of_the_clock(
    expression: str, where: str, change: datetime
) -> None:
    schedule = cron(expression, where)
    marks = [
        change + timedelta(seconds=seconds) for seconds in (-7200, -1800, -1, 0, 1, 1800, 3600, 7200, 90_000)
    ]
    for begin, end in combinations(marks, 2):
        number, slot = 0, schedule.next_after(begin)
        while slot is not None and slot <= end:
            number += 1
            slot = schedule.next_after(slot)
        assert schedule.count(begin, end) == number, (begin, end)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 500),
    st.sampled_from(["*/7 * * * *", "0-50/25 3-9 * * *", "30 5 * * 1,4", "0 12 1,L * *"]),
)
def test_due_slots_are_the_newest_of_all(hours: int, expression: str) -> None:
    schedule, now = cron(expression), DUE + timedelta(hours=hours, minutes=13)
    first = schedule.next_after(DUE)
    assert first is not None
    everything, slot = [], first
    while slot <= now:
        everything.append(slot)
        following = schedule.next_after(slot)
        assert following is not None
        slot = following
    due = due_slots(schedule, first, now)
    assert list(due.slots) == everything[-101:]
    older = everything[:-101]
    assert due.older == (Span(older[0], older[-1], len(older)) if older else None)
    assert schedule.count(first, now) == max(0, len(everything) - 1)


def test_slots_that_a_gap_swallowed_are_not_due() -> None:
    # Apia left out 30 December 2011, so the newest slots of every 30 December are those of 2010.
    schedule = cron("* * 30 12 *", "Pacific/Apia")
    first = schedule.next_after(datetime(2009, 6, 1, tzinfo=UTC))
    assert first is not None
    due = due_slots(schedule, first, datetime(2012, 1, 1, tzinfo=UTC))
    assert due.slots[-1] == datetime(2010, 12, 31, 9, 59, tzinfo=UTC)


def test_slots_after_the_end_of_a_job_are_not_due() -> None:
    due = due_slots(MINUTES, DUE, DUE + timedelta(minutes=9), ends_at=DUE + timedelta(minutes=2))
    assert list(due.slots) == minutes(0, 1, 2)


def test_an_unknown_misfire_policy_is_refused() -> None:
    with pytest.raises(Invalid) as caught:
        misfire("panic", DueSlots((DUE,)), DUE)
    assert caught.value.fields == {
        "misfire_policy": "Invalid misfire_policy. Must be one of: run_once, skip, run_all"
    }

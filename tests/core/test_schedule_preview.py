"""What people are told of a schedule: its next slots, a sentence, warnings with real dates."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kytecron.core.preview import describe, preview, warnings
from kytecron.core.schedule import Schedule

NOW = datetime(2026, 11, 23, 22, 17, 45, tzinfo=UTC)  # a Monday


def daily(at: str, timezone: str = "Europe/Berlin") -> Schedule:
    return Schedule.from_fields(schedule_type="daily", time_of_day=at, timezone=timezone)


def monthly(day: int) -> Schedule:
    return Schedule.from_fields(schedule_type="monthly", day_of_month=day, time_of_day="03:00")


def every(seconds: int) -> Schedule:
    return Schedule.from_fields(schedule_type="interval", interval_seconds=seconds)


def cron(expression: str, timezone: str = "Europe/Berlin") -> Schedule:
    return Schedule.from_fields(schedule_type="cron", cron_expression=expression, timezone=timezone)


def test_a_preview_lists_the_next_slots_and_at_most_fifty() -> None:
    hour = datetime(2026, 11, 23, 23, tzinfo=UTC)
    assert preview(every(3600), NOW, 3) == [hour + timedelta(hours=n) for n in range(3)]
    assert len(preview(every(60), NOW, 1000)) == 50
    assert preview(every(3600), NOW, 0) == []
    assert preview(
        every(3600), NOW, 9, starts_at=hour + timedelta(hours=1), ends_at=hour + timedelta(hours=2)
    ) == [*(hour + timedelta(hours=1), hour + timedelta(hours=2))]
    assert preview(Schedule.from_fields(schedule_type="manual"), NOW) == []


SENTENCES: list[tuple[dict[str, Any], str]] = [
    ({"schedule_type": "manual"}, "Only when triggered, by hand, by API or by its parents"),
    ({"schedule_type": "interval", "interval_seconds": 1}, "Every second"),
    ({"schedule_type": "interval", "interval_seconds": 300}, "Every 5 minutes"),
    ({"schedule_type": "interval", "interval_seconds": 3600}, "Every hour"),
    ({"schedule_type": "interval", "interval_seconds": 5430}, "Every 1 hour 30 minutes 30 seconds"),
    ({"schedule_type": "daily", "time_of_day": "02:30"}, "At 02:30 every day, UTC"),
    (
        {"schedule_type": "daily", "time_of_day": "02:30:05", "timezone": "Europe/Berlin"},
        "At 02:30:05 every day, Europe/Berlin time",
    ),
    ({"schedule_type": "weekly", "day_of_week": 0, "time_of_day": "08:00"}, "At 08:00 every Sunday, UTC"),
    (
        {"schedule_type": "weekly", "day_of_week": [1, 3, 5], "time_of_day": "08:00"},
        "At 08:00 every Monday, Wednesday and Friday, UTC",
    ),
    (
        {"schedule_type": "weekly", "day_of_week": "1,2,3,4,5", "time_of_day": "08:00"},
        "At 08:00 from Monday to Friday, UTC",
    ),
    (
        {"schedule_type": "weekly", "day_of_week": "0,1,2,3,4,5,6", "time_of_day": "08:00"},
        "At 08:00 every day, UTC",
    ),
    (
        {"schedule_type": "monthly", "day_of_month": 1, "time_of_day": "03:00"},
        "At 03:00 on the 1st of every month, UTC",
    ),
    (
        {"schedule_type": "monthly", "day_of_month": 12, "time_of_day": "03:00"},
        "At 03:00 on the 12th of every month, UTC",
    ),
    (
        {"schedule_type": "monthly", "day_of_month": 30, "time_of_day": "03:00"},
        "At 03:00 on the 30th of every month (the last day of a shorter month), UTC",
    ),
    (
        {"schedule_type": "monthly", "day_of_month": 31, "time_of_day": "03:00"},
        "At 03:00 on the last day of every month, UTC",
    ),
    ({"schedule_type": "cron", "cron_expression": "*/5 * * * *"}, "Every 5 minutes, UTC"),
    (
        {"schedule_type": "cron", "cron_expression": "30 2 * * 1-5", "timezone": "Europe/Berlin"},
        "At 02:30, Monday through Friday, Europe/Berlin time",
    ),
    ({"schedule_type": "cron", "cron_expression": "@daily"}, "At 00:00, UTC"),
    (
        {"schedule_type": "cron", "cron_expression": "0 0 L * *"},
        "At 00:00, on the last day of the month, UTC",
    ),
    (
        {"schedule_type": "cron", "cron_expression": "0 0 * * L5"},
        "At 00:00, on the last Friday of the month, UTC",
    ),
    (
        {"schedule_type": "cron", "cron_expression": "0 0 13 * 5"},
        "At 00:00, on day 13 of the month, or on Friday, UTC",
    ),
    (
        {"schedule_type": "cron", "cron_expression": "0 0 */2 * 1"},
        "At 00:00, every 2 days, only on Monday, UTC",
    ),
    (
        {"schedule_type": "cron", "cron_expression": "0 0 * * 1#1,3"},
        "At the times of the cron expression 0 0 * * 1#1,3, UTC",
    ),
]


@pytest.mark.parametrize(("fields", "sentence"), SENTENCES)
def test_schedules_are_described_in_english(fields: dict[str, Any], sentence: str) -> None:
    assert describe(Schedule.from_fields(**fields)) == sentence


@pytest.mark.parametrize(
    "expression",
    [
        "59/2 * * * *",
        "0 23/5 * * *",
        "0 0 31/2 * *",
        "0 0 1 */20 *",
        "0 0 * * 6/2",
        "10-20/30 * * * *",
        "0 0 * * 7-7",
    ],
)
def test_a_step_that_leads_nowhere_is_not_described_as_one(expression: str) -> None:
    assert describe(cron(expression)).startswith(f"At the times of the cron expression {expression}")


DAYS = ["*", "*/2", "1", "3-5", "5-5/10", "1/3", "1,2"]
TIMES = st.sampled_from([*DAYS, "*/90", "*,5"])
DATES = st.sampled_from([*DAYS, "L", "1,L"])
MONTHS = st.sampled_from([*DAYS, "jan", "jul-sep/2"])
WEEKDAYS = st.sampled_from([*DAYS, "1#2", "5L", "L5", "7", "mon-fri", "1,2#3", "0,7"])


@settings(max_examples=200, deadline=None)
@given(st.tuples(TIMES, TIMES, DATES, MONTHS, WEEKDAYS).map(" ".join))
def test_every_accepted_expression_can_be_described_and_warned_of(expression: str) -> None:
    subject = cron(expression)
    assert describe(subject).endswith(", Europe/Berlin time")
    assert all(text.endswith(".") for text in warnings(subject, NOW, 60))


# --- Warnings -----------------------------------------------------------------------------------------------

WARNINGS: list[tuple[Schedule, list[str]]] = [
    (every(300), []),
    (daily("04:00"), []),
    (cron("*/5 * * * *"), []),
    (cron("0 * * * *"), []),
    (Schedule.from_fields(schedule_type="manual"), []),
    (daily("02:30"), ["On 2027-03-28 the clock goes from 02:00 to 03:00: the run of 02:30 comes at 03:00."]),
    (
        cron("0,15,30,45 2 * * *"),
        [
            "On 2027-03-28 the clock goes from 02:00 to 03:00: the runs of 02:00, 02:15, 02:30 and 1 more come at "
            "03:00, as one."
        ],
    ),
    (
        cron("*/30 2 * * *"),
        [
            "On 2027-03-28 the clock goes from 02:00 to 03:00: the runs of 02:00 and 02:30 are left out.",
            "On 2027-10-31 the clock goes from 03:00 to 02:00: the runs of 02:00 and 02:30 come twice.",
        ],
    ),
    (
        cron("15 */2 * * *"),
        [
            "On 2027-03-28 the clock goes from 02:00 to 03:00: the run of 02:15 is left out.",
            "On 2027-10-31 the clock goes from 03:00 to 02:00: the run of 02:15 comes twice.",
        ],
    ),
    (
        daily("02:15", "Australia/Lord_Howe"),
        ["On 2027-10-03 the clock goes from 02:00 to 02:30: the run of 02:15 comes at 02:30."],
    ),
    (
        daily("00:00", "Africa/Cairo"),
        ["On 2027-04-30 the clock goes from 00:00 to 01:00: the run of 00:00 comes at 01:00."],
    ),
    (
        cron("0 5 31 * *"),
        [
            "No run in November 2026, February 2027, April 2027, June 2027 and September 2027: the day asked for "
            "does not come then."
        ],
    ),
    (cron("0 5 30 2,4 *"), ["No run in February 2027: the day asked for does not come then."]),
    (
        cron("0 5 29 2 *"),
        [
            "The next run is as far away as 2028-02-29.",
            "No run in February 2027: the day asked for does not come then.",
        ],
    ),
    (monthly(28), []),
    (monthly(30), ["Months without a day 30 run on their last day: 28 February 2027."]),
    (
        cron("0 5 13 * 5"),
        [
            "It runs on days that match the day-of-month (13) and also on days that match the day-of-week (5): "
            "either is enough."
        ],
    ),
    (
        cron("*/45 * * * *"),
        [
            "*/45 in the minute field begins again with each hour: minute 45 is followed by minute 0, "
            "15 minutes later."
        ],
    ),
    (
        cron("*/90 * * * *"),
        [
            "*/90 in the minute field means minute 0 only. For a run every 90 minutes use schedule_type interval."
        ],
    ),
    (cron("*/5 2 * 3 7L"), ["It never runs again: there is no slot after 2026-11-23 22:17 UTC."]),
]


@pytest.mark.parametrize(
    ("subject", "expected"), WARNINGS, ids=lambda value: getattr(value, "cron_expression", "")
)
def test_warnings_name_real_dates(subject: Schedule, expected: list[str]) -> None:
    assert warnings(subject, NOW) == expected


def test_a_month_that_is_about_to_end_is_not_warned_of() -> None:
    late = datetime(2026, 11, 29, tzinfo=UTC)
    assert warnings(monthly(30), late) == ["Months without a day 30 run on their last day: 28 February 2027."]


def test_a_schedule_whose_end_has_come_is_warned_of() -> None:
    assert warnings(every(60), NOW, ends_at=NOW) == [
        "It never runs again: there is no slot after 2026-11-23 22:17 UTC."
    ]


def test_clock_changes_after_the_end_are_not_warned_of() -> None:
    assert warnings(daily("02:30"), NOW, ends_at=datetime(2027, 3, 1, tzinfo=UTC)) == []


def test_slots_closer_together_than_a_run_takes_are_warned_of() -> None:
    assert warnings(every(60), NOW, usual_duration_seconds=60) == []
    assert warnings(every(60), NOW, usual_duration_seconds=95) == [
        "A run usually takes 1 minute 35 seconds, but slots are as little as 1 minute apart "
        "(2026-11-23 22:18:00 and 22:19:00 UTC)."
    ]


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("0 0 */7 * *", "its last day is followed by day 1, 1 to 7 days later."),
        ("0 0 1/10 * *", "its last day is followed by day 1, 1 to 10 days later."),
        ("0 0 1-30/9 * *", "stops at day 28: steps of 9 do not lead to day 30."),
        ("0/45 * * * *", "minute 45 is followed by minute 0, 15 minutes later."),
        ("30/20 * * * *", "minute 50 is followed by minute 30, 40 minutes later."),
        ("5-50/20 * * * *", "stops at minute 45: steps of 20 do not lead to minute 50."),
        ("0 9-17/3 * * *", "stops at hour 15: steps of 3 do not lead to hour 17."),
        ("0,10/25 * * * *", "minute 35 is followed by minute 10, 35 minutes later."),
        ("0 1/5 * * *", "hour 21 is followed by hour 1, 4 hours later."),
        ("0 0 1 */5 *", "November is followed by January, 2 months later."),
        ("0 0 * * */2", "Saturday is followed by Sunday, 1 day later."),
        ("0 0 * * mon/2", "Friday is followed by Monday, 3 days later."),
        ("0 0 * * 1-5/3", "stops at Thursday: steps of 3 do not lead to Friday."),
        ("5-10/20 * * * *", "means minute 5 only."),
        ("0 0 1-31/2 * *", "its last day is followed by day 1, 1 to 2 days later."),
        ("0-59/7 * * * *", "minute 56 is followed by minute 0, 4 minutes later."),
        ("0 0-23/5 * * *", "hour 20 is followed by hour 0, 4 hours later."),
        ("0 0 1 1-12/5 *", "November is followed by January, 2 months later."),
        ("0 0 * * 1-7/2", "Sunday is followed by Monday, 1 day later."),
        ("0 0 * * 0-6/4", "Thursday is followed by Sunday, 3 days later."),
        ("0 9-23/5 * * *", "stops at hour 19: steps of 5 do not lead to hour 23."),
        *(
            (expression, None)
            for expression in (
                *(
                    "*/15 * * * *",
                    "5/20 * * * *",
                    "0 */6 * * *",
                    "0 9-17/2 * * *",
                    "0 0 1 */3 *",
                    "0 0 1 2/3 *",
                ),
                *(
                    "0-59/5 * * * *",
                    "0 0-23/2 * * *",
                    "5-59/15 * * * *",
                    "0 9-23/2 * * *",
                    "0 0 * * fri-sun/2",
                ),
                *("0 0 * * 1-5/2", "0 0 1-28/9 * *", "*/1 * * * *", "0 0 */1 * *", "10-50/20 * * * *"),
            )
        ),
    ],
)
def test_steps_that_do_not_divide_evenly_are_warned_of_in_every_field(
    expression: str, wanted: str | None
) -> None:
    schedule = Schedule.from_fields(schedule_type="cron", cron_expression=expression)
    found = [text for text in warnings(schedule, datetime(2027, 1, 1, tzinfo=UTC)) if " field " in text]
    assert len(found) == (wanted is not None)
    assert all((wanted or "") in text for text in found)

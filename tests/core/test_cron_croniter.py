"""croniter as a second opinion on cron expressions, asked on naive wall time, where it is right."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from croniter import croniter
from hypothesis import given, settings
from hypothesis import strategies as st

from kytecron.core import cron
from kytecron.core.schedule import Schedule


def field(low: int, high: int) -> st.SearchStrategy[str]:
    """One field: a star, a step, a number, a range, a range with a step, or a list of these."""
    numbers = st.integers(low, high)
    # croniter takes `a-a/n` for `*/n`, so a range here has two ends.
    spans = st.tuples(numbers, numbers).filter(lambda pair: pair[0] < pair[1])
    items = st.one_of(
        numbers.map(str),
        spans.map(lambda pair: f"{pair[0]}-{pair[1]}"),
        st.tuples(spans, st.integers(1, 20)).map(lambda both: f"{both[0][0]}-{both[0][1]}/{both[1]}"),
    )
    star = st.one_of(st.just("*"), st.integers(2, 20).map(lambda step: f"*/{step}"))
    return st.one_of(star, st.lists(items, min_size=1, max_size=3).map(",".join))


EXPRESSIONS = st.tuples(field(0, 59), field(0, 23), field(1, 28), field(1, 12), field(0, 6)).map(" ".join)
MOMENTS = st.datetimes(datetime(2020, 1, 1), datetime(2032, 1, 1))


@settings(max_examples=300, deadline=None)
@given(EXPRESSIONS, MOMENTS)
def test_croniter_on_wall_time_names_the_same_slots(expression: str, wall: datetime) -> None:
    dates, weekdays = expression.split()[2], expression.split()[4]
    # croniter joins the day fields by OR always; Debian's rule is AND when one of them begins with a star.
    either = not (dates.startswith("*") or weekdays.startswith("*"))
    theirs = croniter(expression, wall, day_or=either, max_years_between_matches=60)
    ours = Schedule.from_fields(schedule_type="cron", cron_expression=expression, timezone="UTC")
    slot = wall.replace(tzinfo=UTC)
    for _ in range(3):
        following = ours.next_after(slot)
        assert following is not None
        assert following.replace(tzinfo=None) == theirs.get_next(datetime)
        slot = following


def test_what_croniter_reads_is_what_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    daily = {"schedule_type": "cron", "cron_expression": "17 4 * * *", "timezone": "UTC"}
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    cron.parse_cron.cache_clear()
    assert Schedule.from_fields(**daily).next_after(noon) == datetime(2026, 3, 2, 4, 17, tzinfo=UTC)
    read = croniter.expand
    monkeypatch.setattr(
        croniter, "expand", lambda text: ([[18] if field == [17] else field for field in read(text)[0]], {})
    )
    cron.parse_cron.cache_clear()
    assert Schedule.from_fields(**daily).next_after(noon) == datetime(2026, 3, 2, 4, 18, tzinfo=UTC)
    monkeypatch.undo()
    cron.parse_cron.cache_clear()


@pytest.mark.parametrize(
    "expression", ["r 4 * * *", "17 r(0-9) * * *", "0 17 4 * * *", "17 4 ? * *", "17 22-2 * * *"]
)
def test_what_croniter_would_take_and_cron_does_not_is_refused_before_it_is_asked(expression: str) -> None:
    with pytest.raises(cron.Refused):
        cron.parse_cron(expression)

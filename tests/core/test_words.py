"""Values as people read them."""

from __future__ import annotations

import pytest

from kytecron.core import words


@pytest.mark.parametrize(
    ("milliseconds", "said"),
    [
        (0, "0 ms"),
        (999, "999 ms"),
        (1000, "1.0 s"),
        (8_000, "8.0 s"),
        (59_949, "59.9 s"),
        (59_950, "1 min 00 s"),
        (64_200, "1 min 04 s"),
        (3_599_999, "59 min 59 s"),
        (7_500_000, "2 h 05 min"),
        (187_200_000, "2 d 4 h"),
    ],
)
def test_durations(milliseconds: float, said: str) -> None:
    assert words.duration(milliseconds) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.9, "0 seconds"),
        (1, "1 second"),
        (60, "1 minute"),
        (61.7, "1 minute 1 second"),
        (11_525, "3 hours 12 minutes"),
        (86_400_000, "1,000 days"),
    ],
)
def test_spans_of_time_in_sentences(seconds: float, said: str) -> None:
    assert words.in_words(seconds) == said
    assert words.in_words(93_784, parts=4) == "1 day 2 hours 3 minutes 4 seconds"


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (21, "21 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (1_234_567, "1.2 MB"),
        (10_000_000, "10.0 MB"),
        (5_000_000_000_000, "5.0 TB"),
    ],
)
def test_sizes(number: int, said: str) -> None:
    assert words.size(number) == said


@pytest.mark.parametrize(("rate", "said"), [(None, "–"), (0.0, "0%"), (99.9, "99.9%"), (100.0, "100%")])
def test_rates(rate: float | None, said: str) -> None:
    assert words.percent(rate) == said

"""Percentiles of durations, and rates."""

from __future__ import annotations

import pytest

from kytecron.core.statistics import bucket, percentile, success_rate


def _histogram(durations: list[int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for duration in durations:
        found[bucket(duration)] = found.get(bucket(duration), 0) + 1
    return found


@pytest.mark.parametrize(
    "durations", [[8000, 8100, 8200] * 5, [0], [1, 1], [7, 90_000], list(range(1, 3000, 7)), [86_400_000] * 3]
)
def test_a_percentile_lies_among_the_durations_and_never_falls(durations: list[int]) -> None:
    edges = min(durations), max(durations)
    found = [percentile(_histogram(durations), share / 100, *edges) for share in range(1, 101)]
    assert found == sorted(found)
    assert edges[0] <= found[0] <= found[-1] <= edges[1]


def test_without_the_edges_a_percentile_lies_within_its_bucket() -> None:
    assert 7500 <= percentile(_histogram([8000] * 9), 0.5) <= 9405


def test_a_rate_says_all_and_none_only_where_it_is_so() -> None:
    assert [success_rate(*two) for two in ((9999, 10_000), (1, 10_000), (3, 3), (0, 3), (0, 0))] == [
        99.9,
        0.1,
        100.0,
        0.0,
        None,
    ]

"""Durations as a histogram on a log scale: small enough to keep per job and day, exact enough for p50 and p95.

Bucket k holds durations up to 1.25**k ms. A percentile lies within its bucket as if durations were spread evenly there,
and never outside the shortest and the longest, where these are known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

GROWTH = math.log(1.25)


def bucket(duration_ms: int) -> str:
    """The histogram key (a string, as JSON keeps keys) of a duration in milliseconds."""
    return str(math.ceil(math.log(duration_ms) / GROWTH) if duration_ms > 1 else 0)


def merge(histograms: Iterable[Mapping[str, int] | None]) -> dict[str, int]:
    """The sum of several histograms."""
    total: dict[str, int] = {}
    for histogram in histograms:
        for key, count in (histogram or {}).items():
            total[key] = total.get(key, 0) + count
    return total


def percentile(
    histogram: Mapping[str, int], share: float, shortest: int | None = None, longest: int | None = None
) -> int | None:
    """The duration in milliseconds that `share` (0..1) of the runs did not exceed; None without runs."""
    buckets = sorted((int(key), count) for key, count in histogram.items() if count > 0)
    wanted = share * sum(count for _, count in buckets)
    seen = 0
    for key, count in buckets:
        if seen + count >= wanted:
            low, high = _bounds(key, shortest, longest)
            return round(low + (high - low) * (wanted - seen) / count)
        seen += count
    return None


def _bounds(key: int, shortest: int | None, longest: int | None) -> tuple[float, float]:
    """Between which durations the runs of a bucket lie."""
    low = math.exp((key - 1) * GROWTH) if key > 0 else 0.0
    high = math.exp(key * GROWTH)
    if shortest is not None:
        low = max(low, min(shortest, high))
    if longest is not None:
        high = min(high, max(longest, low))
    return low, high


def success_rate(completed: int, total: int) -> float | None:
    """Per cent with one decimal; None when nothing ran. 100 and 0 mean all and none, not nearly."""
    if not total:
        return None
    if completed >= total:
        return 100.0
    return min(max(round(100 * completed / total, 1), 0.1 if completed else 0.0), 99.9)

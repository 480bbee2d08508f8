"""Durations as a histogram on a log scale: small enough to keep per job and day, exact enough for p50 and p95.

Bucket k holds durations up to 1.25**k ms, so a percentile read from it is at most 25 % too high.
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


def percentile(histogram: Mapping[str, int], share: float) -> int | None:
    """The duration in milliseconds that `share` (0..1) of the runs did not exceed; None without runs."""
    wanted = share * sum(histogram.values())
    seen = 0
    for key, count in sorted(histogram.items(), key=lambda item: int(item[0])):
        seen += count
        if count and seen >= wanted:
            return round(math.exp(int(key) * GROWTH))
    return None


def success_rate(completed: int, total: int) -> float | None:
    """Per cent with one decimal; None when nothing ran."""
    return round(100 * completed / total, 1) if total else None

"""How values read to people, on pages, in the API and on the command line: durations, sizes, numbers, statuses.

What was measured is told in units that are written short (`duration`), what somebody set or has to wait for in words
(`in_words`).
"""

from __future__ import annotations

from datetime import UTC, datetime

from .errors import Invalid
from .states import Status
from .zones import zone

STATUSES: dict[str, str] = {
    Status.PENDING: "Pending",
    Status.RUNNING: "Running",
    Status.COMPLETED: "Completed",
    Status.FAILED: "Failed",
    Status.TIMEOUT: "Timed out",
    Status.LOST: "Lost",
    Status.CANCELLED: "Cancelled",
    Status.SKIPPED: "Skipped",
}


def duration(milliseconds: float) -> str:
    """Return a duration that was measured: `840 ms`, `3.2 s`, `2 min 05 s`, `1 h 03 min`, `2 d 4 h`."""
    if milliseconds < 1000:
        return f"{int(milliseconds)} ms"
    if milliseconds < 59_950:  # what rounds to 60.0 s is a minute
        return f"{milliseconds / 1000:.1f} s"
    seconds = max(60, int(milliseconds / 1000))
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02} s"
    if seconds < 86_400:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02} min"
    return f"{seconds // 86_400} d {seconds % 86_400 // 3600} h"


def in_words(seconds: float, parts: int = 2) -> str:
    """Return a span of time for a sentence, in at most so many units: `3 hours 12 minutes`; `0 seconds` below one."""
    rest = int(seconds)
    told: list[str] = []
    for unit, size in (("day", 86_400), ("hour", 3600), ("minute", 60), ("second", 1)):
        number, rest = divmod(rest, size)
        if number:
            told.append(count(number, unit))
    return " ".join(told[:parts]) or "0 seconds"


def count(number: int, what: str, many: str | None = None) -> str:
    """Return how many there are: `1 job`, `2 jobs`, `1,200 jobs`; `many` where the plural is not an s more."""
    return f"{number:,} {what if number == 1 else many or what + 's'}"


def beside(total: int, attempts: int, recovered: int, skipped: int) -> str:
    """Return what stands beside `total` chains, as far as there is any: `51 attempts, 17 recovered, 3 skipped`."""
    told = {
        count(attempts, "attempt"): attempts and attempts != total,
        f"{recovered:,} recovered": recovered,
        f"{skipped:,} skipped": skipped,
    }
    return ", ".join(said for said, number in told.items() if number)


def size(number: int) -> str:
    """Return a number of bytes: `21 bytes`, `1.2 kB`, `10.0 MB`."""
    if number < 1000:
        return count(number, "byte")
    value = number / 1000
    for unit in ("kB", "MB", "GB"):
        if value < 999.95:  # what rounds to 1000.0 is one of the next unit
            return f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"


def status(word: str) -> str:
    """Return a run's status as a label; a word that is none of them as it is written."""
    return STATUSES.get(word, word.replace("_", " ").capitalize())


def percent(rate: float | None) -> str:
    """Return a rate as sharply as it is known: `100%`, `99.9%`; `–` for none."""
    return "–" if rate is None else f"{rate:g}%"


def rate_tone(rate: float | None) -> str:
    """Return what to make of a success rate: `good` from 90 %, `warn` from 70 %, else `bad`; `none` for none."""
    if rate is None:
        return "none"
    return "good" if rate >= 90 else "warn" if rate >= 70 else "bad"


def in_zone(instant: datetime, name: str) -> str:
    """An instant as a clock in that zone shows it, with the zone's short name."""
    local = _local(instant, name)
    return f"{local:%a %d %b %Y} {clock(local)} {local.tzname()}"


def minutes_ahead(instant: datetime, name: str) -> int:
    """Return how far a clock in that zone is ahead of UTC at an instant."""
    ahead = _local(instant, name).utcoffset()
    return int(ahead.total_seconds()) // 60 if ahead else 0


def _local(instant: datetime, name: str) -> datetime:
    """In UTC where there is no such zone: a row written by hand may hold anything."""
    try:
        return instant.astimezone(zone(name))
    except Invalid:
        return instant.astimezone(UTC)


def clock(local: datetime) -> str:
    """The time of day, with seconds where there are any."""
    return f"{local:%H:%M:%S}" if local.second else f"{local:%H:%M}"

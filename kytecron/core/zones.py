"""Time zones: their names and rules, from the pinned `tzdata` package."""

from __future__ import annotations

from difflib import get_close_matches
from functools import lru_cache
from importlib.resources import files
from zoneinfo import ZoneInfo

from .errors import Invalid
from .untrusted import shown


@lru_cache(maxsize=1)
def zone_names() -> tuple[str, ...]:
    """Every time zone name that a schedule may use, sorted."""
    return tuple(sorted(files("tzdata").joinpath("zones").read_text("utf-8").split()))


@lru_cache(maxsize=1024)
def zone(name: str) -> ZoneInfo:
    """The time zone of that name, read from the pinned `tzdata` package and never from the machine: servers
    whose operating systems differ in age must agree on every slot.

    Raises Invalid on `timezone`, with the nearest name, when there is no such zone.
    """
    if name not in zone_names():
        raise Invalid({"timezone": f"Invalid timezone {shown(name)}. {_zone_hint(name)}"})
    with files("tzdata").joinpath("zoneinfo", *name.split("/")).open("rb") as stream:
        return ZoneInfo.from_file(stream, key=name)


def _zone_hint(name: str) -> str:
    """The nearest name, compared as a whole or by its city alone."""
    names = {known.rpartition("/")[2].lower(): known for known in zone_names()}
    names |= {known.lower(): known for known in zone_names()}
    wanted = name.strip().lower().replace(" ", "_")
    close = get_close_matches(wanted, names, n=1, cutoff=0.75) if len(wanted) <= 64 else []
    if close:
        return f"Did you mean {names[close[0]]}?"
    return "Write a name such as Europe/Berlin, America/New_York or UTC"

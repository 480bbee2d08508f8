"""The names of the time zones, from the pinned `tzdata` package."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files


@lru_cache(maxsize=1)
def zone_names() -> tuple[str, ...]:
    """Every time zone name that a schedule may use, sorted."""
    return tuple(sorted(files("tzdata").joinpath("zones").read_text("utf-8").split()))

"""What programs are told of a view: its fields, by the names that the JSON API has for them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any


def names(view: type[Any], *but: str) -> tuple[str, ...]:
    """Return the names of a view's fields, in their order, without those for pages alone."""
    return tuple(one.name for one in fields(view) if one.name not in but)

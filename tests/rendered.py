"""What templates are given, looked through on its way: no row of a table may be among it.

A page says what a view (kytecron/views/) says; one that reads a row itself decides or words something for itself.
`tests/conftest.py` lets every test that renders a template fail that gives it a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from flask import before_render_template
from jinja2 import Template
from sqlalchemy.engine import Row

from kytecron.store.models import Base

NOT_OURS = frozenset({"g", "request", "session", "config"})
"""Flask gives these to every template."""

rendered: set[str] = set()
"""The templates that were rendered so far in this process."""
offences: list[str] = []
"""`template: name` for each row that a template was given."""


def _look(_sender: object, template: Template, context: dict[str, Any], **_more: object) -> None:
    name = str(template.name)
    rendered.add(name)
    given = {key: value for key, value in context.items() if key not in NOT_OURS}
    offences.extend(f"{name} is given {where}" for where in rows_in(given))


before_render_template.connect(_look)


def rows_in(value: object, where: str = "") -> Iterator[str]:
    """Yield the place of each row in `value`, however deep: `jobs[0].parent`."""
    if isinstance(value, Base | Row):
        yield f"{where} ({type(value).__name__})"
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from rows_in(getattr(value, field.name), f"{where}.{field.name}")
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from rows_in(one, f"{where}[{key!r}]" if where else str(key))
    elif isinstance(value, Iterable) and not isinstance(value, str | bytes | Iterator):
        for place, one in enumerate(value):
            yield from rows_in(one, f"{where}[{place}]")

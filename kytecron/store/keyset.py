"""Paging by place instead of by number: an order, its cursors, and pages cut by them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import sqlalchemy as sa

from ..core.errors import Invalid
from .models import UtcDateTime

T = TypeVar("T")

MAX_CURSOR = 2000
CHECK_BYTES = 6


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some items of a list; `next` is the cursor of the page after this one, None at the end."""

    items: list[T]
    next: str | None


@dataclass(frozen=True, slots=True)
class Key:
    """One column of an order. Where it can be NULL, those rows come last, whatever the direction."""

    column: Any
    descending: bool = False
    filled: bool = False
    """The list has no NULL here, so that an index alone orders it."""

    @property
    def may_be_null(self) -> bool:
        """Whether NULL has to be reckoned with."""
        return bool(self.column.nullable and not self.filled)

    def sorted(self) -> list[Any]:
        """What ORDER BY takes."""
        direction = self.column.desc() if self.descending else self.column.asc()
        return [self.column.is_(None), direction] if self.may_be_null else [direction]

    def beyond(self, value: Any) -> Any:
        """Condition: sorted later than `value`."""
        if value is None:
            return sa.false()
        later = self.column < value if self.descending else self.column > value
        return sa.or_(later, self.column.is_(None)) if self.may_be_null else later

    def same(self, value: Any) -> Any:
        """Condition: sorted with `value`."""
        return self.column.is_(None) if value is None else self.column == value


@dataclass(frozen=True, slots=True)
class Order:
    """A total order: its last key is unique. `name` tells its cursors from those of other orders."""

    name: str
    keys: tuple[Key, ...]

    def sorted(self, query: Any) -> Any:
        """`query` in this order."""
        return query.order_by(*(part for key in self.keys for part in key.sorted()))

    def page(self, query: Any, cursor: str | None, limit: int) -> Any:
        """`query` in this order from `cursor` on, one row longer than the page, to know whether there are more."""
        return self.sorted(query.where(*self.after(cursor))).limit(limit + 1)

    def cut(self, rows: list[T], limit: int, source: Callable[[T], Any] = lambda row: row) -> Page[T]:
        """The page that begins `rows`; `source(row)` has the columns of this order as attributes."""
        if len(rows) <= limit:
            return Page(rows, None)
        return Page(rows[:limit], self.cursor(source(rows[limit - 1])))

    def after(self, cursor: str | None) -> list[Any]:
        """Conditions for the rows after a cursor. Raises Invalid for one that this order did not give."""
        if not cursor:
            return []
        values = self._read(cursor)
        alternatives = [
            sa.and_(
                *(earlier.same(value) for earlier, value in zip(self.keys, values[:place], strict=False)),
                key.beyond(values[place]),
            )
            for place, key in enumerate(self.keys)
        ]
        return [sa.or_(*alternatives)]

    def cursor(self, row: Any) -> str:
        """The cursor of the page that begins after `row`."""
        values = [getattr(row, key.column.key) for key in self.keys]
        plain = [value.isoformat() if isinstance(value, datetime) else value for value in values]
        text = json.dumps(plain, separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(self._check(text) + text).decode().rstrip("=")

    def _read(self, cursor: str) -> list[Any]:
        try:
            data = base64.urlsafe_b64decode(cursor[:MAX_CURSOR] + "=" * (-len(cursor) % 4))
            check, text = data[:CHECK_BYTES], data[CHECK_BYTES:]
            canonical = base64.urlsafe_b64encode(data).decode().rstrip("=")
            if canonical != cursor or check != self._check(text):
                raise ValueError(cursor)
            return [_value(key, plain) for key, plain in zip(self.keys, json.loads(text), strict=True)]
        except (ValueError, TypeError, RecursionError, binascii.Error):
            raise Invalid(
                {"cursor": "This page link is no longer valid. Start from the first page."}
            ) from None

    def _check(self, text: bytes) -> bytes:
        # Against accidents, not against forgery: every place in a list is one its reader may ask for.
        return hashlib.blake2s(self.name.encode() + b":" + text, digest_size=CHECK_BYTES).digest()


def _value(key: Key, plain: Any) -> Any:
    """A value of a cursor as its column takes it. Raises ValueError and TypeError for any other."""
    if plain is None and key.may_be_null:
        return None
    if isinstance(key.column.type, UtcDateTime):
        return datetime.fromisoformat(plain).astimezone(UTC)
    if type(plain) is not key.column.type.python_type or (type(plain) is int and abs(plain) >= 2**63):
        raise TypeError(plain)
    return plain

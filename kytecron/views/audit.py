"""The audit log: who changed what, when and from where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from ..store.models import CronAudit
from .programs import names


class Change(NamedTuple):
    """What became of one field, each side as a person would write it; None where that side has none."""

    name: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditView:
    """A change."""

    id: int
    at: datetime
    actor: str
    source: str
    ip: str
    action: str
    """A word for programs: `release_lock`."""
    subject_type: str
    subject_id: str
    subject_name: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None

    def for_programs(self) -> dict[str, Any]:
        """Return what programs are told, by the names that the JSON API has for it."""
        return {name: getattr(self, name) for name in ENTRY}

    @property
    def done(self) -> str:
        """What was done, as a phrase: `Release lock`."""
        return self.action.replace("_", " ").capitalize()

    @property
    def subject(self) -> str:
        """What it was done to, its number included: `job 5`."""
        return f"{self.subject_type} {self.subject_id}".rstrip()

    @property
    def called(self) -> str:
        """The subject's name, where that is not its number."""
        return "" if self.subject_name == self.subject_id else self.subject_name

    @property
    def changes(self) -> tuple[Change, ...]:
        """What it changed, in the order of the fields as they were."""
        return tuple(_changes(self.before or {}, self.after or {}))


ENTRY = names(AuditView)


def entries(rows: Iterable[CronAudit]) -> list[AuditView]:
    """Return what is told of changes, in their order."""
    return [AuditView(**{name: getattr(row, name) for name in ENTRY}) for row in rows]


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    for name in dict.fromkeys([*before, *after]):
        yield Change(name, *(plain(side[name]) if name in side else None for side in (before, after)))


def plain(value: Any) -> str:
    """Return a value of a configuration as a person would write it."""
    if value is None or value == "" or value == [] or value == {}:
        return "nothing"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {plain(one)}" for key, one in value.items())
    return str(value)

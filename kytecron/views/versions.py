"""Versions of jobs' code: their history, and two of them compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from ..core import diff
from ..store.models import KyteCronJobVersion
from .programs import names


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionView:
    """One saved state of a job's code."""

    job_id: int
    version_number: int
    content_hash: str
    """SHA-256 of the source."""
    is_current: bool
    message: str
    lines_added: int
    lines_removed: int
    lines_changed: int
    lines_before: int
    lines_after: int
    created_at: datetime | None
    created_by: str | None
    shared_by: int
    """How many versions, of any job, have the same source; 1 where nobody asked."""

    def for_programs(self) -> dict[str, Any]:
        """Return what programs are told, by the names that the JSON API has for it."""
        return {"job_id": self.job_id, **{name: getattr(self, name) for name in VERSION}}

    @property
    def by(self) -> str:
        """Who saved it."""
        return self.created_by or "unknown"

    @property
    def title(self) -> str:
        """Its number and message: `Version 3: politer`."""
        return f"Version {self.version_number}" + (f": {self.message}" if self.message else "")

    @property
    def lines(self) -> str:
        """How many lines it has, and how many it changed."""
        changed = f"{self.lines_added} added, {self.lines_removed} removed, {self.lines_changed} changed"
        return f"{self.lines_after}: {changed}"


VERSION = names(VersionView, "job_id", "shared_by")
"""What programs are told of a version's row as it is."""


def views(rows: Iterable[KyteCronJobVersion], sharing: Mapping[str, int] | None = None) -> list[VersionView]:
    """Return what is told of versions, in their order; `sharing`: how many versions have a content, by its hash."""
    return [view(row, (sharing or {}).get(row.content_hash, 1)) for row in rows]


def view(row: KyteCronJobVersion, shared_by: int = 1) -> VersionView:
    """Return what is told of a version."""
    values = {name: getattr(row, name) for name in VERSION}
    return VersionView(job_id=row.cron_job, shared_by=shared_by, **values)


def detail_for_programs(row: KyteCronJobVersion) -> dict[str, Any]:
    """Return a version with the lines that it changed."""
    return view(row).for_programs() | {"changes_from_previous": row.changes_from_previous}


def is_unchanged(found: diff.Diff) -> bool:
    """Return whether the two sides of a comparison are the same."""
    return not (found.counts.added or found.counts.removed or found.counts.changed)


def in_words(counts: diff.Counts) -> str:
    """Return how many lines two versions differ by."""
    return f"{counts.added} lines added, {counts.removed} removed, {counts.changed} changed"


def comparison_for_programs(old: int, new: int, found: diff.Diff) -> dict[str, Any]:
    """Return two versions, given by their numbers, side by side."""
    return {
        "from_version": old,
        "to_version": new,
        "counts": asdict(found.counts),
        "rows": [
            row._asdict()
            | {side: [piece._asdict() for piece in getattr(row, side)] for side in ("old", "new")}
            for row in found.rows
        ],
    }

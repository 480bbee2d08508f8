"""Secrets: their names, and the jobs that may read them. Nothing tells a value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from ..store.models import CronJob, CronSecret
from .programs import names


class Granted(NamedTuple):
    """A job that may read a secret."""

    id: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretView:
    """A value for jobs, without the value."""

    id: int
    name: str
    created_at: datetime
    updated_at: datetime
    updated_by: str | None
    jobs: tuple[Granted, ...]

    def for_programs(self) -> dict[str, Any]:
        """Return what programs are told, by the names that the JSON API has for it."""
        return {name: getattr(self, name) for name in SECRET} | {"jobs": [job._asdict() for job in self.jobs]}


SECRET = names(SecretView, "jobs")


def secrets(rows: Iterable[CronSecret], granted: Mapping[int, Sequence[CronJob]]) -> list[SecretView]:
    """Return what is told of secrets, in their order; `granted`: the jobs that may read one, by its id."""
    return [secret(row, granted.get(row.id, ())) for row in rows]


def secret(row: CronSecret, jobs: Iterable[CronJob]) -> SecretView:
    """Return what is told of a secret that `jobs` may read."""
    values = {name: getattr(row, name) for name in SECRET}
    return SecretView(jobs=tuple(Granted(job.id, job.name) for job in jobs), **values)

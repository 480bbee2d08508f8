"""How everything stands at one moment: the numbers of the dashboard, of the API and of the command line."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from ..store import figures
from . import workers
from .workers import Workforce


@dataclass(frozen=True, slots=True)
class Standing:
    """What there is, what goes on, and who works."""

    numbers: figures.Counters
    workforce: Workforce


def standing(session: Session, now: datetime) -> Standing:
    """Return how everything stands."""
    return Standing(figures.counters(session, now), workers.workforce(workers.living(session, now)))

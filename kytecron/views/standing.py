"""How everything stands at one moment, and whether it needs a person: for dashboard, API and command line."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy.orm import Session

from ..core.words import count
from ..store import figures
from . import workers
from .workers import Workforce

Tone = Literal["good", "warn", "bad"]
Place = Literal["workers", "pending", "dead_letters", "failing", "skipping", "unsuccessful"]
"""Where what is meant can be seen."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line that says whether anything needs a person."""

    tone: Tone
    text: str
    see: Place | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """What there is, what goes on, who works, and what to make of it."""

    numbers: figures.Counters
    workforce: Workforce
    verdict: Verdict

    def for_programs(self) -> dict[str, Any]:
        """Return what programs are told, by the names that the JSON API has for it; `today` as it is."""
        return {
            **asdict(self.numbers),
            "today": self.numbers.today,
            "workers": self.workforce.alive,
            "verdict": {"tone": self.verdict.tone, "text": self.verdict.text},
        }


def standing(session: Session, now: datetime) -> Standing:
    """Return how everything stands."""
    numbers = figures.counters(session, now)
    force = workers.workforce(workers.living(session, now))
    return Standing(numbers, force, verdict(numbers, force))


def verdict(numbers: figures.Counters, force: Workforce) -> Verdict:
    """Return the worst thing that is true."""
    if numbers.jobs == 0:
        return Verdict("good", "No jobs yet.")
    if force.alive == 0 and force.draining:
        return Verdict("bad", "All workers are shutting down, so nothing starts.", "workers")
    if force.alive == 0:
        return Verdict(
            "bad", "No worker is running, so nothing starts. Start one with: python worker.py", "workers"
        )
    if numbers.stale_locks:
        lost = count(numbers.stale_locks, "run")
        return Verdict("bad", f"{lost} lost their worker and wait to be taken over.", "workers")
    if numbers.overdue:
        late = count(numbers.overdue, "run")
        return Verdict("bad", f"{late} should have started more than a minute ago.", "pending")
    if numbers.dead:
        return Verdict(
            "warn", f"{_jobs(numbers.dead, 'is', 'are')} in the dead letter queue.", "dead_letters"
        )
    if numbers.failing:
        return Verdict("warn", f"{_jobs(numbers.failing, 'fails', 'fail')}.", "failing")
    if numbers.skipping:
        return Verdict("warn", f"{_jobs(numbers.skipping, 'skips its', 'skip their')} slots.", "skipping")
    failed = numbers.today.failed + numbers.today.timeout + numbers.today.lost
    if failed:
        text = f"All jobs are on time. {count(failed, 'slot')} failed today (UTC)."
        return Verdict("good", text, "unsuccessful")
    return Verdict("good", "All jobs are on time.")


def _jobs(number: int, one: str, many: str) -> str:
    return f"{count(number, 'job')} {one if number == 1 else many}"

"""What rows mean to people: schedules as sentences, letters as endings, configuration as text."""

from __future__ import annotations

from functools import lru_cache

from markupsafe import Markup, escape

from ..core.fields import FIELDS
from ..core.words import duration as duration
from ..core.words import percent as percent
from ..core.words import rate_tone as rate_tone
from ..core.words import size as size
from ..core.words import status as status
from ..services import endings, why
from ..views.jobs import beside as beside
from ..views.jobs import counted_as as counted_as
from ..views.jobs import rate_of as rate_of

ENDINGS = {letter: status for status, letter in endings.LETTERS.items()}
BARS = 30
SCHEDULE_TYPES = FIELDS["schedule_type"].choices


def standing(found: why.Why) -> str:
    """How a job stands, on a page that names it already."""
    return f"It {why.VERDICTS[found.reasons[0].code]}."


def question(found: why.Why) -> str:
    """What the reasons of a job answer: where nothing is amiss, nobody asks why it has not run."""
    return "Status" if found.as_planned else "Why has it not run?"


@lru_cache(maxsize=2048)
def bars(recent_results: str) -> Markup:
    """The last runs as small bars, oldest first: `recent_results` of a job drawn as SVG."""
    letters = recent_results[-BARS:]
    said = ", ".join(
        f"{letters.count(letter)} {status}" for letter, status in ENDINGS.items() if letter in letters
    )
    label = f"Last {len(letters)} runs: {said}" if letters else "No runs yet"
    blank = BARS - len(letters)
    parts = [
        f'<rect class="run-bar run-none" x="{place * 4}" y="16" width="3" height="4" rx="1"/>'
        for place in range(blank)
    ]
    parts += [
        f'<rect class="run-bar run-{ENDINGS.get(letter, "none")}" x="{place * 4}" y="2" width="3" height="18" rx="1"/>'
        for place, letter in enumerate(letters, blank)
    ]
    return Markup(
        f'<svg class="run-bars" viewBox="0 0 {BARS * 4} 20" width="{BARS * 4}" height="20" role="img" '
        f'aria-label="{escape(label)}"><title>{escape(label)}</title>{"".join(parts)}</svg>'
    )

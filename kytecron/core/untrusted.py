"""Text that other people typed: what a name may hold, how the rest is shown, and lists that stay short."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable, Mapping, Sequence
from itertools import islice

MAX_TOLD = 50
"""Wrong fields that one error names."""

JOINERS = frozenset("\u200c\u200d")
"""Zero-width, but words of Persian and Hindi and some emoji are spelled with them: allowed between two letters."""

# Bidirectional controls reorder what stands around them; the blanks of Hangul and Braille and the fillers are letters
# that show nothing. The other characters that do not show are known by their category.
_UNSEEN = frozenset("\u115f\u1160\u3164\uffa0\u2800\u034f\u17b4\u17b5")
_CATEGORIES = {
    "Cc": "a control character",
    "Cf": "an invisible character",
    "Cs": "half a character",
    "Co": "a character without a meaning of its own",
    "Cn": "a character that does not exist",
    "Zl": "a line separator",
    "Zp": "a paragraph separator",
}
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

HIDDEN = re.compile(
    "[\0-\x08\x0b\x0e-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e0fff]"
)
"""What would not be seen in a line of text, would reorder what stands around it, or cannot be encoded."""


def visible(text: str) -> str:
    """Return `text` with ⟨U+202E⟩ in the place of such characters."""
    return HIDDEN.sub(lambda found: f"\u27e8U+{ord(found.group()):04X}\u27e9", text)


# -- names ---------------------------------------------------------------------------------------------------


def name_problem(text: str, *, several_lines: bool = False) -> str | None:
    """Say which character of a name, or of a note, people could not see or would be misled by; None if there is none.

    `several_lines` allows ends of line and tabs, as descriptions have them.
    """
    for place, char in enumerate(text):
        if several_lines and char in "\n\t":
            continue
        if (what := _what_is_wrong_with(char)) and not _joins(text, place):
            return f"must not hold {what} (U+{ord(char):04X}, character {place + 1}): remove it"
    return None


def _what_is_wrong_with(char: str) -> str | None:
    if " " <= char <= "~":
        return None
    if char in _BIDI:
        return "a character that turns the direction of text"
    if char in _UNSEEN:
        return "an invisible character"
    if char in "\n\r\t\x0b\x0c\x85":
        return "a tab or an end of line"
    return _CATEGORIES.get(unicodedata.category(char))


def _joins(text: str, place: int) -> bool:
    """Whether the character there is a joiner between two that show."""
    if text[place] not in JOINERS or not 0 < place < len(text) - 1:
        return False
    # An emoji may have its variation selector before the joiner.
    return all(unicodedata.category(text[beside])[0] in "LMS" for beside in (place - 1, place + 1))


# -- lists that stay short -----------------------------------------------------------------------------------


def first_repeated(items: Sequence[Hashable]) -> int | None:
    """Return the place of the first item that was there before, in one pass."""
    seen: set[Hashable] = set()
    for place, item in enumerate(items):
        if item in seen:
            return place
        seen.add(item)
    return None


def cut(wrong: Mapping[str, str]) -> dict[str, str]:
    """Return the first of many wrong fields, and how many more there are."""
    if len(wrong) <= MAX_TOLD:
        return dict(wrong)
    first = dict(islice(wrong.items(), MAX_TOLD))
    return first | {"…": f"and {len(wrong) - MAX_TOLD:,} more"}

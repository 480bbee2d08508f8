"""Text that other people typed: what a name may hold, what can be stored, how it is shown, lists that stay short."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Hashable, Mapping, Sequence
from itertools import islice
from typing import Any

MAX_TOLD = 50
"""Wrong fields that one error names."""

JOINERS = frozenset("\u200c\u200d")
"""Zero-width, but words of Persian and Hindi and some emoji are spelled with them: allowed where they change these."""

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


def shown(value: Any) -> str:
    """A value from outside, safe and short enough to stand in a message."""
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:40] + "…")
    if type(value) in (int, float, bool) and -(10**15) < value < 10**15:
        return repr(value)
    return f"(a {type(value).__name__[:40]})"


# -- names ---------------------------------------------------------------------------------------------------


def name_problem(text: str, *, several_lines: bool = False) -> str | None:
    """Say which character of a name, or of a note, people could not see or would be misled by; None if there is none.

    `several_lines` allows ends of line and tabs, as descriptions have them.
    """
    for place, char in enumerate(text):
        if several_lines and char in "\n\t":
            continue
        if (what := _what_is_wrong_with(char)) and not (_joins(text, place) or _selects(text, place)):
            return f"must not hold {what} (U+{ord(char):04X}, character {place + 1}): remove it"
    return None


def _what_is_wrong_with(char: str) -> str | None:
    if " " <= char <= "~":
        return None
    if char in _BIDI:
        return "a character that turns the direction of text"
    if char in _UNSEEN or _SELECTORS.match(char):
        return "an invisible character"
    if char in "\n\r\t\x0b\x0c\x85":
        return "a tab or an end of line"
    return _CATEGORIES.get(unicodedata.category(char))


def _joins(text: str, place: int) -> bool:
    """Whether the character there is a joiner that changes how one of its neighbours looks.

    Those are signs of India, which combine; letters of Arabic; emoji. Between two Latin letters nobody would see it.
    """
    if text[place] not in JOINERS or not 0 < place < len(text) - 1:
        return False
    beside = (text[place - 1], text[place + 1])
    # An emoji may have its variation selector before the joiner.
    return all(unicodedata.category(char)[0] in "LMS" for char in beside) and any(
        unicodedata.category(char) in ("Mc", "Mn", "So", "Sk") or unicodedata.bidirectional(char) == "AL"
        for char in beside
    )


_SELECTORS = re.compile("[\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")
"""They choose a variant of the character before them, and are not seen after one that has none."""
_HAVE_VARIANTS = re.compile(
    "[\u203c\u2049\u3030\u303d\u1800-\u18aa\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


def _selects(text: str, place: int) -> bool:
    """Whether the character there is a variation selector of an emoji, a key, a Mongolian letter or an ideograph."""
    if not (place and _SELECTORS.match(text[place])):
        return False
    before, after = text[place - 1], text[place + 1 : place + 2]
    is_key = before in "0123456789#*" and after == "\u20e3"
    return is_key or unicodedata.category(before) in ("So", "Sm") or bool(_HAVE_VARIANTS.match(before))


# -- what can be stored --------------------------------------------------------------------------------------


LARGEST = 2**63 - 1
LARGEST_VERSION = 2**31 - 1
"""What a column of version numbers holds: some databases refuse to compare it with more."""
"""The largest whole number that every database keeps, inside JSON too."""

MAX_DEPTH = 31
"""Levels of objects and lists inside a JSON value that every database keeps: MariaDB refuses more."""
TOO_DEEP = "(nested too deeply)"

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def storable(text: str) -> str:
    """Return `text` with ␀ for NUL and \\ud800 for half a character: PostgreSQL takes neither, UTF-8 not the second.

    Text without them is returned as it is; half a character becomes six.
    """
    if "\0" in text:
        text = text.replace("\0", "␀")
    if text.isascii():
        return text
    try:
        text.encode()  # a fifth of the time of a search
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text


def storable_json(value: Any, depth: int = MAX_DEPTH) -> Any:
    """Return a JSON value as every database takes it.

    All text in it is storable, keys too; numbers that JSON lacks stand as "NaN" or "Infinity"; what is nested more than
    `depth` levels deep is left out, and a text says so.
    """
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if not isinstance(value, dict | list | tuple):
        return value
    if depth == 0:
        return TOO_DEEP
    if isinstance(value, dict):
        return {
            storable(key) if isinstance(key, str) else key: storable_json(part, depth - 1)
            for key, part in value.items()
        }
    return [storable_json(part, depth - 1) for part in value]


def too_deep(value: Any, depth: int = MAX_DEPTH) -> bool:
    """Whether a JSON value is nested more than `depth` levels deep."""
    if not isinstance(value, dict | list | tuple):
        return False
    parts = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(too_deep(part, depth - 1) for part in parts)


def unstorable(value: Any, depth: int = MAX_DEPTH) -> str | None:
    """Say what a text or a JSON value that somebody typed holds that no database could keep; None if there is none."""
    if isinstance(value, str):
        return "a NUL or half a character" if _UNSTORABLE.search(value) else None
    if isinstance(value, int):
        return "a whole number of more than 64 bits" if abs(value) > LARGEST else None
    if isinstance(value, float):
        return None if math.isfinite(value) else "a number that is too large"
    if not isinstance(value, dict | list):
        return None
    if depth == 0:
        return f"more than {MAX_DEPTH} levels of nesting"
    parts = [part for pair in value.items() for part in pair] if isinstance(value, dict) else value
    return next(filter(None, (unstorable(part, depth - 1) for part in parts)), None)


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

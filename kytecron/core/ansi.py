"""What a job printed, made fit to be shown: colours as class names, everything else harmless.

Escape sequences that set colours become classes (see `CLASSES`), all others are dropped. Control characters
and characters that reorder text become visible. A line that was overwritten after a carriage return, as
progress bars do, shows its last state. The pieces are plain text: escaping them is the template's task.
Linear in the length of the text, whatever it holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from .untrusted import HIDDEN, visible

Segment = tuple[str, str]
"""Class names, separated by blanks and possibly none, and the text that they apply to."""

MAX_SEGMENTS = 10_000
"""After so many pieces the rest stays plain, or the markup would outgrow the text."""

COLOURS = ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")
CLASSES = tuple(
    [f"ansi-{prefix}{colour}" for prefix in ("", "bright-", "bg-", "bg-bright-") for colour in COLOURS]
    + [f"ansi-{style}" for style in ("bold", "dim", "italic", "underline", "inverse", "strike")]
)
"""Every class that `segments` can name."""
_STYLE_CODES = {"bold": 1, "dim": 2, "italic": 3, "underline": 4, "inverse": 7, "strike": 9}

# The colours of xterm, in the order of their numbers.
_PALETTE = (
    *((0, 0, 0), (205, 0, 0), (0, 205, 0), (205, 205, 0)),
    *((0, 0, 238), (205, 0, 205), (0, 205, 205), (229, 229, 229)),
    *((127, 127, 127), (255, 0, 0), (0, 255, 0), (255, 255, 0)),
    *((92, 92, 255), (255, 0, 255), (0, 255, 255), (255, 255, 255)),
)

# ECMA-48: CSI sequences, then strings such as window titles and links (OSC, DCS, SOS, PM, APC), then the short
# ones. Each part takes what it can and never gives back, so that no text makes this slow; one that was cut
# off, or never ends, reaches to the end of its line at most.
_ESCAPE = re.compile(
    r"\x1b(?:"
    r"\[(?P<parameters>[0-?]*+)[ -/]*+(?P<final>[@-~]?)"
    r"|[\]PX^_][^\x07\x1b\n]*+(?:\x07|\x1b\\)?"
    r"|[ -/]*+[0-~]?"
    r")"
)
_COLOUR_CHANGE = re.compile(r"\x1b\[[0-9;:]*+m")
_ERASES_LINE = re.compile(r"\x1b\[[0-2]?K")

# Control characters have pictures; what else would not be seen, or would reorder the text around it, is made visible
# as everywhere.
_PICTURES = {
    **{code: chr(0x2400 + code) for code in range(0x20) if code not in (0x09, 0x0A)},
    0x7F: "\u2421",
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),
}
_SPECIAL = re.compile("[\0-\x08\x0b-\x1f]")


def segments(text: str) -> list[Segment]:
    """Split `text` into pieces of one style each; joined, they are what a terminal would show of it."""
    if not (_SPECIAL.search(text) or HIDDEN.search(text)):
        return [("", text)] if text else []
    pieces: list[tuple[str, list[str]]] = []
    for classes, piece in _styled(_overwritten(text)):
        if len(pieces) >= MAX_SEGMENTS:
            classes = ""
        if not pieces or pieces[-1][0] != classes:
            pieces.append((classes, []))
        pieces[-1][1].append(piece)
    return [(classes, visible("".join(parts).translate(_PICTURES))) for classes, parts in pieces]


# --- Text that comes in pieces

_CODES = {
    **dict(zip(CLASSES, [base + n for base in (30, 90, 40, 100) for n in range(len(COLOURS))], strict=False)),
    **{f"ansi-{name}": code for name, code in _STYLE_CODES.items()},
}
"""The code that turns each class on."""
_STYLE = re.compile(r"[0-9;]{1,40}")
_END = "\n."

LONGEST_OPEN = 20_000
"""Characters of a line that are kept open: of a longer one the beginning stays as it is, whatever comes."""

_UNFINISHED = re.compile(r"(?:\r|\x1b(?:\[[0-?]*[ -/]*|[\]PX^_][^\x07\x1b\n]*\x1b?|[ -/]*))\Z")
_LONGEST_UNFINISHED = 256


class Advance(NamedTuple):
    """What a piece of text adds to what was shown before it."""

    done: list[Segment]
    """Lines that nothing can change any more."""
    open: list[Segment]
    """The line after them, as it looks now: to be replaced when more of the text is there."""
    taken: int
    """Characters of the piece that are done with. The rest belongs in front of the next piece."""
    style: str
    """What is on after those; for the next call."""


def advance(text: str, style: str = "") -> Advance:
    """Show the next piece of a text, so that all pieces together look as the whole text does in `segments`.

    `style` is what the piece before ended with; anything else counts as none.
    """
    done = text.rfind("\n") + 1
    start, colours = _shown_from(text[done:])
    start += done
    if len(text) - start > LONGEST_OPEN:
        done = start = len(text) - unfinished(text)
        colours = ""
    lines, style = continued(text[:done], style)
    _, style = continued(colours, style)
    return Advance(lines, continued(text[start:], style)[0], start, style)


def continued(text: str, style: str) -> tuple[list[Segment], str]:
    """`segments` of a text before which `style` was on, and what is on at its end."""
    if not text:
        return [], style
    before = f"\x1b[{style}m" if _STYLE.fullmatch(style) else ""
    # A mark at the end shows the style that holds there, also after an escape sequence that ends the text.
    pieces = segments(before + text + _END)
    classes, last = pieces[-1]
    pieces[-1] = (classes, last.removesuffix(_END))
    return pieces, ";".join(str(_CODES[name]) for name in classes.split() if name in _CODES)


def unfinished(text: str) -> int:
    """How many characters at the end mean nothing without what follows: half an escape sequence, half a line break."""
    found = _UNFINISHED.search(text[-_LONGEST_UNFINISHED:])
    return len(found[0]) if found else 0


def rest_of_sequence(before: str, text: str) -> int:
    """How many characters at the beginning of `text` belong to an escape sequence that begins in `before`."""
    begun = before[len(before) - unfinished(before) :]
    if not begun.startswith("\x1b"):
        return 0
    found = _ESCAPE.match(begun + text[:_LONGEST_UNFINISHED])
    return max(0, found.end() - len(begun)) if found else 0


def _overwritten(text: str) -> str:
    """Leave of each line what was written after its last carriage return that something followed."""
    if "\r" not in text:
        return text
    return "\n".join(_last_state(line) if "\r" in line else line for line in text.split("\n"))


def _last_state(line: str) -> str:
    start, colours = _shown_from(line)
    return colours + line[start:].replace("\r", "")


def _shown_from(line: str) -> tuple[int, str]:
    """Where in `line` begins what was not overwritten, and the colours that are set before it: those stay."""
    shown, colours, position = 0, [], 0
    for part in line.split("\r"):
        if position and (_ESCAPE.sub("", part) or _ERASES_LINE.search(part)):
            colours += _COLOUR_CHANGE.findall(line[shown:position].replace("\r", ""))
            shown = position
        position += len(part) + 1
    return shown, "".join(colours)


def _styled(text: str) -> Iterator[Segment]:
    """Yield the text between escape sequences with the classes that hold there."""
    style: dict[str, str] = {}
    classes = ""
    position = 0
    for escape in _ESCAPE.finditer(text):
        if position < escape.start():
            yield classes, text[position : escape.start()]
        position = escape.end()
        if escape["final"] != "m":
            continue
        for aspect, value in _effects(escape["parameters"]):
            if not aspect:
                style.clear()
            elif value:
                style[aspect] = value
            else:
                style.pop(aspect, None)
        classes = " ".join(style[aspect] for aspect in sorted(style))
    if position < len(text):
        yield classes, text[position:]


# --- Select Graphic Rendition, the sequences that end with "m"

_Effect = tuple[str, str]
"""An aspect of the style and the class it gets; no class takes it away, no aspect resets all."""

_STYLES: dict[int, tuple[_Effect, ...]] = {
    0: (("", ""),),
    1: (("bold", "ansi-bold"),),
    2: (("dim", "ansi-dim"),),
    3: (("italic", "ansi-italic"),),
    4: (("underline", "ansi-underline"),),
    7: (("inverse", "ansi-inverse"),),
    9: (("strike", "ansi-strike"),),
    21: (("underline", "ansi-underline"),),
    22: (("bold", ""), ("dim", "")),
    23: (("italic", ""),),
    24: (("underline", ""),),
    27: (("inverse", ""),),
    29: (("strike", ""),),
    39: (("colour", ""),),
    49: (("background", ""),),
}
_EXTENDED = {38: "colour", 48: "background", 58: "underline colour"}


@lru_cache(maxsize=1024)
def _effects(parameters: str) -> tuple[_Effect, ...]:
    if len(parameters) > 100 or re.search("[<=>?]", parameters):
        return ()
    effects: list[_Effect] = []
    todo = parameters.split(";")[::-1]
    while todo:
        head, *inner = todo.pop().split(":")
        code = _number(head)
        if code in _EXTENDED:
            effects += _extended(_EXTENDED[code], inner or _taken(todo))
        elif code == 4 and inner == ["0"]:
            effects += _STYLES[24]
        elif code in _STYLES:
            effects += _STYLES[code]
        else:
            effects += _basic(code)
    return tuple(effects)


def _taken(todo: list[str]) -> list[str]:
    """Take from `todo` the arguments of an extended colour that is written with semicolons."""
    count = {5: 2, 2: 4}.get(_number(todo[-1]) if todo else 0, 0)
    return [todo.pop() for _ in range(min(count, len(todo)))]


def _extended(aspect: str, arguments: list[str]) -> list[_Effect]:
    """5 and a number of 256, or 2 and red, green and blue, between them perhaps the name of a colour space."""
    numbers = [_number(argument) for argument in arguments]
    if aspect == "underline colour" or not all(0 <= number <= 255 for number in numbers):
        return []
    if len(numbers) == 2 and numbers[0] == 5:
        return [(aspect, _class(aspect, _of_256(numbers[1])))]
    if len(numbers) >= 4 and numbers[0] == 2:
        red, green, blue = numbers[1:4] if len(numbers) == 4 else numbers[2:5]
        return [(aspect, _class(aspect, _nearest(red, green, blue)))]
    return []


def _basic(code: int) -> list[_Effect]:
    for first, aspect, offset in (
        (30, "colour", 0),
        (40, "background", 0),
        (90, "colour", 8),
        (100, "background", 8),
    ):
        if first <= code < first + 8:
            return [(aspect, _class(aspect, offset + code - first))]
    return []


def _number(digits: str) -> int:
    """An absent parameter is 0; one that is no number, or absurdly long, means nothing: -1."""
    if not digits:
        return 0
    return int(digits) if len(digits) <= 3 and digits.isdecimal() else -1


def _class(aspect: str, number: int) -> str:
    background = "bg-" if aspect == "background" else ""
    bright = "bright-" if number >= 8 else ""
    return f"ansi-{background}{bright}{COLOURS[number % 8]}"


def _of_256(number: int) -> int:
    """Map xterm's 256 colours to the first 16: these, then a cube of 6 x 6 x 6, then 24 greys."""
    if number < 16:
        return number
    if number >= 232:
        grey = 8 + 10 * (number - 232)
        return _nearest(grey, grey, grey)
    levels = (0, 95, 135, 175, 215, 255)
    cube = number - 16
    return _nearest(levels[cube // 36], levels[cube // 6 % 6], levels[cube % 6])


def _nearest(red: int, green: int, blue: int) -> int:
    def distance(number: int) -> int:
        r, g, b = _PALETTE[number]
        return (r - red) ** 2 + (g - green) ** 2 + (b - blue) ** 2

    return min(range(16), key=distance)

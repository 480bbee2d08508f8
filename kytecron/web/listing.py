"""Python source as coloured HTML, line by line: listings, comparisons, stack traces.

Colours are the class names of Pygments; the stylesheet knows them inside `.highlight` and `.hl`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from markupsafe import Markup, escape
from pygments.lexers import PythonLexer
from pygments.token import STANDARD_TYPES, Token

from ..core.diff import Diff, Segment
from ..core.untrusted import visible

MAX_COLOURED = 200_000
"""Characters; colouring takes about a second per million."""
COLOURING_SECONDS = 0.5
"""Of CPU: some code takes fifteen times as long. Its rest comes back uncoloured."""
CONTEXT_LINES = 2
"""Lines shown around a line of a stack trace."""

Piece = tuple[str, str]
"""A class name, or nothing, and the text that has it."""
Line = tuple[Piece, ...]


@lru_cache(maxsize=32)
def coloured(code: str) -> tuple[Line, ...]:
    """The lines of `code`, each as pieces with their colours. Code too long for that comes back uncoloured."""
    if len(code) > MAX_COLOURED:
        return tuple((("", line),) for line in _lines(code))
    lines: list[list[Piece]] = [[]]
    for css, text in _tokens(code):
        for number, part in enumerate(text.split("\n")):
            if number:
                lines.append([])
            if part:
                lines[-1].append((css, part))
    if not lines[-1]:
        lines.pop()
    return tuple(tuple(line) for line in lines)


def _tokens(code: str) -> Iterator[Piece]:
    # As the lexer reads it, or its places would count other characters.
    code = code.replace("\r\n", "\n").replace("\r", "\n")
    ends = time.thread_time() + COLOURING_SECONDS
    for at, kind, text in PythonLexer(stripnl=False, ensurenl=False).get_tokens_unprocessed(code):
        if time.thread_time() > ends:
            yield "", code[at:]
            return
        yield token_class(kind), text


def token_class(kind: object) -> str:
    """The class name of a kind of token; empty for what looks like the text around it."""
    while kind is not None and kind not in STANDARD_TYPES:
        kind = getattr(kind, "parent", None)
    css = STANDARD_TYPES.get(kind or Token, "")  # type: ignore[call-overload]
    # Blanks, plain names and punctuation.
    return "" if css in ("w", "n", "p") else str(css)


def _lines(code: str) -> list[str]:
    # Not splitlines(): a form feed inside a line would shift every number after it.
    return code.removesuffix("\n").split("\n") if code else []


def listing(code: str) -> list[Markup]:
    """The lines of `code` as HTML."""
    return [_html(line) for line in coloured(code)]


def _html(pieces: Iterable[Piece]) -> Markup:
    return Markup("").join(
        Markup('<span class="{}">{}</span>').format(css, visible(text)) if css else escape(visible(text))
        for css, text in pieces
    )


# -- comparisons ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DiffRow:
    """One row of a side-by-side view, ready for the template: see core.diff.Row."""

    kind: str
    old_line: int | None
    old: Markup
    new_line: int | None
    new: Markup
    hidden: int


def diff_rows(diff: Diff, old: str, new: str) -> list[DiffRow]:
    """The rows of a comparison of `old` with `new`: coloured, with the words that changed marked."""
    old_lines, new_lines = coloured(old), coloured(new)
    return [
        DiffRow(
            row.kind,
            row.old_line,
            _side(old_lines, row.old_line, row.old, "del"),
            row.new_line,
            _side(new_lines, row.new_line, row.new, "ins"),
            row.hidden,
        )
        for row in diff.rows
    ]


def _side(lines: Sequence[Line], number: int | None, segments: Sequence[Segment], tag: str) -> Markup:
    if number is None or not segments:
        return Markup("")
    pieces = iter(lines[number - 1])
    css, rest = "", ""
    parts: list[Markup] = []
    for segment in segments:
        left = len(segment.text)
        inside: list[Piece] = []
        while left > 0:
            if not rest:
                css, rest = next(pieces, ("", segment.text[-left:]))
            inside.append((css, rest[:left]))
            rest, left = rest[left:], left - len(rest)
        html = _html(inside)
        parts.append(Markup("<{0}>{1}</{0}>").format(Markup(tag), html) if segment.marked else html)
    return Markup("").join(parts)


# -- stack traces --------------------------------------------------------------------------------------------

_FRAME = re.compile(r'^ *File "(?P<file>[^"\n]*)", line (?P<line>\d+)(?:, in (?P<name>.*))?$')
_OWN = re.compile(r"^<job \d+ v\d+>$")


@dataclass(slots=True)
class Frame:
    """One step of a stack trace. `lines` are (number, source, whether it is the line itself)."""

    where: str
    own: bool
    """Inside the job's own code."""
    line: int
    lines: list[tuple[int, Markup, bool]] = field(default_factory=list)


@dataclass(slots=True)
class Note:
    """Text of a stack trace that is no step: the error itself, or how two errors belong together."""

    text: str


def trace(text: str, code: str | None) -> list[Frame | Note]:
    """A Python stack trace as steps; those in the job's own `code` show the lines around them."""
    parts: list[Frame | Note] = []
    for line in text.rstrip("\n").split("\n"):
        frame = _FRAME.match(line)
        last = parts[-1] if parts else None
        if frame:
            parts.append(_frame(frame["file"], int(frame["line"]), frame["name"], code))
        elif line.startswith("    ") and isinstance(last, Frame):
            if not last.own and not _is_underline(line):
                last.lines.append((last.line, escape(visible(line.strip())), True))
        elif line.startswith("Traceback (most recent call last)"):
            continue
        elif isinstance(last, Note):
            last.text += f"\n{line}"
        elif line.strip():
            parts.append(Note(line))
    for part in parts:
        if isinstance(part, Note):
            part.text = part.text.strip("\n")
    return parts


def _frame(file: str, number: int, name: str | None, code: str | None) -> Frame:
    own = bool(_OWN.match(file)) and code is not None
    where = f"line {number}" if own else f"{file}, line {number}"
    frame = Frame(f"{where}, in {name}" if name else where, own, number)
    if own and code is not None:
        frame.lines = list(_around(coloured(code), number))
    return frame


def _around(lines: Sequence[Line], number: int) -> Iterator[tuple[int, Markup, bool]]:
    for shown in range(max(1, number - CONTEXT_LINES), min(len(lines), number + CONTEXT_LINES) + 1):
        yield shown, _html(lines[shown - 1]), shown == number


def _is_underline(line: str) -> bool:
    return not line.strip(" ^~")

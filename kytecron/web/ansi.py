"""Output of a run as HTML, in pieces that follow each other: a colour that is on goes on in the next piece."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

from ..core.ansi import CLASSES, COLOURS, segments

_STYLES = {"bold": 1, "dim": 2, "italic": 3, "underline": 4, "inverse": 7, "strike": 9}
_CODES = {
    **dict(zip(CLASSES, [base + n for base in (30, 90, 40, 100) for n in range(len(COLOURS))], strict=False)),
    **{f"ansi-{name}": code for name, code in _STYLES.items()},
}
"""The code that turns each class on."""
_STYLE = re.compile(r"[0-9;]{1,40}")
_END = "\n."


def to_html(text: str, style: str = "") -> tuple[Markup, str]:
    """`text` as HTML, and the style that is on at its end, for the piece after it.

    `style` is what the piece before ended with; anything else (it travels in addresses) counts as none.
    """
    if not text:
        return Markup(""), style
    before = f"\x1b[{style}m" if _STYLE.fullmatch(style) else ""
    # A mark at the end shows the style that holds there, also after an escape sequence that ends the text.
    pieces = segments(before + text + _END)
    classes, last = pieces[-1]
    pieces[-1] = (classes, last.removesuffix(_END))
    html = Markup("").join(
        Markup('<span class="{}">{}</span>').format(css, piece) if css else escape(piece)
        for css, piece in pieces
    )
    return html, ";".join(str(_CODES[name]) for name in classes.split() if name in _CODES)


def overwrites(text: str) -> bool:
    """Whether a line of `text` is written over, as progress bars do: pieces of it cannot show that."""
    return "\r" in text.replace("\r\n", "\n")

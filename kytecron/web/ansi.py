"""Output of a run as HTML, in pieces that follow each other: a colour that is on goes on in the next piece."""

from __future__ import annotations

from collections.abc import Iterable

from markupsafe import Markup, escape

from ..core.ansi import Segment, continued


def to_html(text: str, style: str = "") -> tuple[Markup, str]:
    """`text` as HTML, and the style that is on at its end, for the piece after it.

    `style` is what the piece before ended with; anything else (it travels in addresses) counts as none.
    """
    pieces, style = continued(text, style)
    return markup(pieces), style


def markup(pieces: Iterable[Segment]) -> Markup:
    """Segments of core.ansi as HTML."""
    return Markup("").join(
        Markup('<span class="{}">{}</span>').format(css, piece) if css else escape(piece)
        for css, piece in pieces
    )


def overwrites(text: str) -> bool:
    """Whether a line of `text` is written over, as progress bars do."""
    return "\r" in text.replace("\r\n", "\n")

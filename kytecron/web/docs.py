"""The documents of docs/, as pages: what `DOCUMENTS` names, and no other file.

Raw HTML in them is text. A link to another document leads to its page, and one to a file that is not served is its
text alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from flask import render_template
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup, escape
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from ..config import PARTS
from ..core.choices import Role
from ..core.errors import NotFound
from . import access
from .access import needs
from .listing import listing, token_class

area = access.area("docs", __name__, "/docs")

DOCUMENTS = {
    "Using it": {
        "jobs": "Its directory, variables, modules, processes, output and files",
        "schedules": "Types, cron expressions, daylight saving, missed slots, retries, dependencies",
        "fields": "Each with its default and its bounds",
        "cli": "Every command, with examples",
        "api": "Flows to copy, and what holds everywhere",
    },
    "Running it": {
        "settings": "Environment variables and their defaults",
        "upgrading": "Newer versions, and back",
        "guarantees": "What is promised, what proves it, and the limits; restoring a backup",
        "security": "What is protected, from whom, and what is not",
        "performance": "What was measured, and how",
        "scaling": "What one database carries, and what to do beyond it",
    },
    "Changing it": {
        "architecture": "The house, the way of a run, the states",
        "pages": "Templates, parts, styles and scripts",
    },
}
"""The files of docs/ without their ending, and what each is about."""
NAMES = [name for group in DOCUMENTS.values() for name in group]
_LEVELS = ("h2", "h3")


class Heading(NamedTuple):
    """A heading that the table of contents names."""

    level: str
    anchor: str
    text: str


@dataclass(frozen=True, slots=True)
class Document:
    """A document as HTML."""

    title: str
    html: Markup
    headings: tuple[Heading, ...]
    anchors: frozenset[str]
    """Of every heading: what links may lead to."""


@area.get("")
@needs(Role.VIEWER)
def index() -> str:
    """What there is to read."""
    titles = {name: document(name).title for name in NAMES}
    return render_template("docs/index.html", groups=DOCUMENTS, titles=titles)


@area.get("/<title>")
@needs(Role.VIEWER)
def show(title: str) -> str:
    """One document."""
    return render_template("docs/page.html", document=document(title))


def document(name: str) -> Document:
    """A document of the list. Raises NotFound for any other name."""
    if name not in NAMES:
        raise NotFound("There is no such document")
    return _read(name)


@lru_cache(maxsize=len(NAMES))
def _read(name: str) -> Document:
    """Made once: the files come with the release."""
    return read((PARTS / "docs" / f"{name}.md").read_text())


def read(text: str) -> Document:
    """Make a document of Markdown: its first heading is the title."""
    tokens = _MARKDOWN.parse(text)
    title, body = _without_title(tokens)
    headings = list(_with_anchors(body))
    for token in body:
        _reword(token)
    html = Markup(_MARKDOWN.renderer.render(body, _MARKDOWN.options, {}))
    shown = tuple(one for one in headings if one.level in _LEVELS)
    return Document(title, html, shown, frozenset(one.anchor for one in headings))


def _without_title(tokens: list[Token]) -> tuple[str, list[Token]]:
    if len(tokens) > 2 and tokens[0].tag == "h1":
        return _plain(tokens[1]), tokens[3:]
    return "", tokens


def _with_anchors(tokens: list[Token]) -> Iterator[Heading]:
    """Give each heading an id as GitHub does, for the documents are read there, too."""
    seen: dict[str, int] = {}
    for place, token in enumerate(tokens):
        if token.type != "heading_open":
            continue
        text = _plain(tokens[place + 1])
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        number = seen[slug] = seen.get(slug, -1) + 1
        anchor = f"{slug}-{number}" if number else slug
        token.attrSet("id", anchor)
        yield Heading(token.tag, anchor, text)


def _plain(inline: Token) -> str:
    return "".join(part.content for part in inline.children or ())


def _reword(token: Token) -> None:
    """Links as the pages have them, and no style attributes: the policy of the pages forbids them."""
    token.attrs.pop("style", None)
    if token.type == "table_open":
        token.attrSet("class", "table")
    if token.children:
        token.children = list(_linked(token.children))


def _linked(parts: list[Token]) -> Iterator[Token]:
    """Text whose links lead to pages; of a link to what is not served, its text alone."""
    leads = True
    for part in parts:
        if part.type == "link_open":
            target = _target(str(part.attrGet("href") or ""))
            leads = target is not None
            part.attrSet("href", target or "")
        if leads or part.type not in ("link_open", "link_close"):
            yield part


def _target(link: str) -> str | None:
    """Where a link of a document leads to from its page; None where nothing is served."""
    if link.startswith(("https://", "http://", "#")):
        return link
    path, mark, anchor = link.partition("#")
    name = path.removesuffix(".md")
    return name + mark + anchor if path != name and name in NAMES else None


# -- how it looks --------------------------------------------------------------------------------------------


Rule = Callable[..., str]


def _fence(_renderer: Any, tokens: list[Token], place: int, _options: Any, _env: Any) -> str:
    return _code(tokens[place].content, tokens[place].info.strip())


def _block(_renderer: Any, tokens: list[Token], place: int, _options: Any, _env: Any) -> str:
    return _code(tokens[place].content, "")


def _code(text: str, language: str) -> str:
    lines = listing(text) if language in ("python", "py") else [_coloured(text, language)]
    # What may be scrolled sideways has to be reachable by keyboard.
    return Markup('<div class="highlight"><pre tabindex="0">{}</pre></div>\n').format(
        Markup("\n").join(lines)
    )


def _coloured(text: str, language: str) -> Markup:
    try:
        tokens = get_lexer_by_name(language or "text").get_tokens(text)
    except ClassNotFound:
        return escape(text)
    pieces = ((token_class(kind), piece) for kind, piece in tokens)
    return Markup("").join(
        Markup('<span class="{}">{}</span>').format(css, piece) if css else escape(piece)
        for css, piece in pieces
    )


def _image(_renderer: Any, tokens: list[Token], place: int, _options: Any, _env: Any) -> str:
    return escape(tokens[place].content)  # pictures are not served


def _table_open(renderer: Any, tokens: list[Token], place: int, options: Any, env: Any) -> str:
    return '<div class="table-wrap" tabindex="0">' + str(renderer.renderToken(tokens, place, options, env))


def _table_close(_renderer: Any, *_: Any) -> str:
    return "</table></div>\n"


_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")
_RULES: dict[str, Rule] = {
    "fence": _fence,
    "code_block": _block,
    "image": _image,
    "table_open": _table_open,
    "table_close": _table_close,
}
for _name, _rule in _RULES.items():
    _MARKDOWN.add_render_rule(_name, _rule)

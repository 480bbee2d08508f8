"""Addresses that somebody else wrote: a header, a parameter, a form. Reading one never raises."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

LABEL = r"[A-Za-z0-9_-]{1,63}"
HOST = re.compile(rf"(?:(?:{LABEL}\.)*{LABEL}\.?|\[[0-9A-Fa-f:.]{{2,45}}\])(?::\d{{1,5}})?")


@dataclass(frozen=True, slots=True)
class Address:
    """The parts of a URL or of a path, as they were written."""

    scheme: str
    netloc: str
    host: str
    port: int | None
    path: str
    query: str
    has_credentials: bool

    @property
    def local(self) -> str:
        """Path and query."""
        return f"{self.path}?{self.query}" if self.query else self.path


def read(text: str | None) -> Address | None:
    """The parts of an address, or None for what is none: no text, brackets that do not match, a port that is none."""
    if not text:
        return None
    try:
        parts = urlsplit(text)
        return Address(
            parts.scheme,
            parts.netloc,
            parts.hostname or "",
            parts.port,
            parts.path,
            parts.query,
            parts.username is not None or parts.password is not None,
        )
    except ValueError:
        return None


def path_on_this_site(text: str | None) -> str | None:
    """`text` if browsers take it for a path on the site that they are on, else None.

    They drop tabs and line breaks, read a backslash as a slash, and take what begins with two slashes for a host.
    """
    if not text or not text.startswith("/") or text.startswith("//") or "\\" in text:
        return None
    if not text.isascii() or any(not " " < char < "\x7f" for char in text):
        return None
    found = read(text)
    return text if found is not None and not found.scheme and not found.netloc else None


def is_host(text: str) -> bool:
    """Whether it is a name or an IP address, with or without a port, as a Host header has it."""
    return len(text) <= 260 and HOST.fullmatch(text) is not None

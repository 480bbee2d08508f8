"""What a run prints: made into clean text, masked, and kept within bounds. No I/O.

Kept are the first half of the limit (the head) and the last half (the tail). The head is handed out exactly once,
piece by piece, while the run goes on. Once it is full, live pieces show the newest output only, and the end of the
run replaces them all with a line that says how much was cut, and the tail.

Nothing here ever waits: while nobody takes the output (the database is away), one run holds the limit's worth of
it in memory and no more, and the job goes on printing.
"""

from __future__ import annotations

import base64
import codecs
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, quote_plus

from ..core.ansi import rest_of_sequence, unfinished
from ..core.untrusted import MAX_DEPTH, TOO_DEEP, storable
from .child import MASKED, hide

PIECE = 256 * 1024
"""Most bytes of UTF-8 in one live piece."""

BLOCK = 64 * 1024
"""Bytes after which the tail begins another block."""

SEQUENCE = 64
"""Bytes of a begun escape sequence that wait for its end; a longer one is shown in parts."""


@dataclass(frozen=True, slots=True)
class OutputChunk:
    """A piece of a run's output."""

    text: str
    tail: bool
    """Printed after the head was full: shown live only, and replaced when the run ends."""
    more: bool
    """There is more to take at once."""


SHORTEST_SECRET = 4
"""Shorter ones are not masked: they would black out half of any text."""

WRAPPED = 57
"""Bytes in a line of base64 that is broken after 76 characters, as mail and `base64` do."""

SHORTEST_LINE = 6
"""A last line of fewer could be anything."""


def spellings(secrets: Iterable[str]) -> list[str]:
    """The texts that give secrets away: whole and line by line, as they are and in the common encodings of each.

    The longest first: a secret may be part of another one.
    """
    parts = {part for secret in secrets for part in (secret, *map(str.strip, secret.splitlines()))}
    forms = {form for part in parts if len(part) >= SHORTEST_SECRET for form in _forms(part)}
    return sorted(forms, key=lambda form: (-len(form), form))


def _forms(text: str) -> Iterator[str]:
    """`text` as it is, and as repr, JSON, addresses and base64 write it."""
    yield text
    for written in (repr(text), ascii(text), json.dumps(text), json.dumps(text, ensure_ascii=False)):
        yield written[1:-1]
    data = text.encode("utf-8", "surrogatepass")
    yield repr(data)[2:-1]
    for quoted in (quote(data), quote(data, safe=""), quote_plus(data)):
        yield from (quoted, re.sub("%..", lambda code: code[0].lower(), quoted))
    # With the newline that `echo` adds, too; the padding, or what stands for the last byte or two, may be missing.
    for ending in (b"", b"\n"):
        for encode in (base64.standard_b64encode, base64.urlsafe_b64encode):
            yield from (encoded := encode(data + ending).decode(), encoded.rstrip("="))
        for start in range(0, len(data) - SHORTEST_LINE if len(data) > WRAPPED else 0, WRAPPED):
            yield base64.standard_b64encode((data + ending)[start : start + WRAPPED]).decode()
    yield from (data.hex(), data.hex().upper())


class Mask:
    """Hides the values of secrets, however they are spelled (see `spellings`). The one way in which that is done."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self.texts = spellings(secrets)
        """What is hidden, the longest first."""
        self._bytes = [form.encode("utf-8", "surrogatepass") for form in self.texts]
        self._any = re.compile(b"|".join(map(re.escape, self._bytes)))

    def text(self, text: str) -> str:
        """`text` with the secrets masked, NUL made visible, and nothing in it that UTF-8 cannot hold."""
        return storable(hide(text, self.texts))

    def value(self, value: Any, depth: int = 0) -> Any:
        """The same for every text inside a JSON value."""
        if isinstance(value, str):
            return self.text(value)
        if depth == MAX_DEPTH and isinstance(value, list | dict):
            return TOO_DEEP
        if isinstance(value, list):
            return [self.value(item, depth + 1) for item in value]
        if isinstance(value, dict):
            return {self.text(key): self.value(item, depth + 1) for key, item in value.items()}
        return MASKED if self._is_number(value) else value

    def reveals(self, value: Any) -> bool:
        """Whether a JSON value holds a secret anywhere."""
        waiting = [value] if self.texts else []
        while waiting:
            item = waiting.pop()
            if isinstance(item, dict):
                waiting += [*item.keys(), *item.values()]
            elif isinstance(item, list):
                waiting += item
            elif self._is_number(item) or (isinstance(item, str) and hide(item, self.texts) != item):
                return True
        return False

    def _is_number(self, value: Any) -> bool:
        """Whether a secret is this number."""
        return bool(self.texts) and type(value) in (int, float) and json.dumps(value) in self.texts

    def stream_end(self, data: bytes) -> bytes:
        """The last of a stream, masked: nothing follows it."""
        return self._any.sub(MASKED.encode(), data) if self._bytes else data

    def split(self, data: bytes) -> tuple[bytes, bytes]:
        """The masked part of a stream that can be passed on, and its end, which may be the start of a secret."""
        if not self._bytes:
            return data, b""
        held = self._begun(data, 0)
        masked = []
        at = 0
        for match in self._any.finditer(data):
            if match.start() >= held:
                break
            masked += [data[at : match.start()], MASKED.encode()]
            at = match.end()
            if at > held:
                held = self._begun(data, at)
        masked.append(data[at:held])
        return b"".join(masked), data[held:]

    def _begun(self, data: bytes, start: int) -> int:
        """Where, from `start` on, an end of `data` begins with which a secret begins; its length if none does."""
        return min(_begun(data, start, secret) for secret in self._bytes)


def _begun(data: bytes, start: int, secret: bytes) -> int:
    at = max(start, len(data) - len(secret) + 1)
    while (at := data.find(secret[0], at)) >= 0:
        if secret.startswith(data[at:]):
            return at
        at += 1
    return len(data)


class Output:
    """The output of one run."""

    def __init__(self, limit: int, mask: Mask) -> None:
        self.printed = 0
        """All bytes that the job has printed."""
        self._mask = mask
        self._held = b""
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._head = bytearray()  # not yet taken
        self._head_room = limit // 2
        self._head_ended_line = True
        self._tail = _Tail(limit - limit // 2)
        self._tail_bytes = 0  # all that came after the head, kept or not
        self._unseen = 0  # of these, since the last live piece

    def feed(self, data: bytes) -> None:
        """Take in what was just read. Invalid UTF-8 becomes \\xNN, NUL a visible sign."""
        self.printed += len(data)
        data, self._held = self._mask.split(self._held + data)
        self._keep(self._decoder.decode(data))

    def finish(self) -> None:
        """Nothing more comes."""
        self._keep(self._decoder.decode(self._mask.stream_end(self._held), final=True))
        self._held = b""

    def take(self) -> OutputChunk | None:
        """What can be shown now and has not been taken yet: at most PIECE bytes of it.

        What means nothing without what follows it, the beginning of an escape sequence say, waits for that.
        """
        if size := _showable(self._head, PIECE):
            piece = bytes(self._head[:size])
            del self._head[:size]
            more = _showable(self._head, PIECE) or (self._unseen and not self._head)
            return OutputChunk(piece.decode(), tail=False, more=bool(more))
        if self._head and self._tail_bytes:  # what follows it is in the tail
            piece = bytes(self._head)
            self._head.clear()
            return OutputChunk(piece.decode(), tail=False, more=True)
        if self._unseen:
            piece = self._tail.end(min(self._unseen, PIECE))
            size = _showable(piece, PIECE)
            if not size:
                return None
            passed_over, self._unseen = self._unseen - len(piece), len(piece) - size
            note = _note(passed_over, "not shown while the job runs") if passed_over else ""
            return OutputChunk(note + piece[:size].decode(), tail=True, more=False)
        return None

    def rest(self) -> tuple[str, bool]:
        """At the end of the run, once: the text that is still to be kept, and whether it replaces the tail pieces."""
        texts = [self._head.decode()]
        if not self._tail_bytes:
            return texts[0], False
        self._tail.cut()
        lost = self._tail_bytes - self._tail.size
        texts.append(_note(lost, "cut", line_begun=not self._head_ended_line) if lost else "")
        texts += self._tail.texts()
        return "".join(texts), True

    def _keep(self, text: str) -> None:
        data = storable(text).encode()
        if self._head_room:
            size = _cut(data, self._head_room)
            if size:
                self._head += data[:size]
                self._head_ended_line = data[size - 1 : size] == b"\n"
            # What does not fit ends the head for good, also where a character left a byte or two of room.
            self._head_room = 0 if size < len(data) else self._head_room - size
            data = data[size:]
        self._tail.append(data)
        self._tail_bytes += len(data)
        self._unseen += len(data)


class _Tail:
    """The newest `limit` bytes of a text, and up to a block more. In blocks: the oldest goes, and nothing is moved."""

    def __init__(self, limit: int) -> None:
        self.size = 0
        self._limit = limit
        self._blocks: deque[bytearray] = deque()

    def append(self, data: bytes) -> None:
        """Whole characters."""
        if self._blocks and len(self._blocks[-1]) < BLOCK:
            self._blocks[-1] += data
        else:
            self._blocks.append(bytearray(data))
        self.size += len(data)
        while len(self._blocks) > 1 and self.size - len(self._blocks[0]) >= self._limit:
            self.size -= len(self._blocks.popleft())

    def end(self, size: int) -> bytes:
        """The last `size` bytes."""
        blocks: deque[bytearray] = deque()
        found = 0
        for block in reversed(self._blocks):
            blocks.appendleft(block)
            found += len(block)
            if found >= size:
                break
        return _end_of(b"".join(blocks), size)

    def cut(self) -> None:
        """Let go of what is older than the limit."""
        if self.size > self._limit:
            first = self._blocks[0]
            kept = bytearray(_end_of(first, len(first) - self.size + self._limit))
            self._blocks[0] = kept
            self.size -= len(first) - len(kept)

    def texts(self) -> Iterator[str]:
        """All that is kept, which is given away."""
        while self._blocks:
            yield self._blocks.popleft().decode()


def _note(size: int, what: str, line_begun: bool = True) -> str:
    return f"{chr(10) if line_begun else ''}[... {size:,} bytes {what} ...]\n"


def _showable(data: bytes | bytearray, size: int) -> int:
    """The most bytes of `data`, up to `size`, that end with a whole character and with no half of a sequence."""
    size = _cut(data, size)
    return size - unfinished(data[max(0, size - SEQUENCE) : size].decode("utf-8", "replace"))


def _cut(data: bytes | bytearray, size: int) -> int:
    """The most bytes of `data`, up to `size`, that end with a whole character."""
    if size >= len(data):
        return len(data)
    while size and data[size] & 0xC0 == 0x80:
        size -= 1
    return size


def _end_of(data: bytes | bytearray, size: int) -> bytes:
    """The last `size` bytes of `data`, without a character or an escape sequence that was cut in two."""
    start = max(0, len(data) - size)
    while start < len(data) and data[start] & 0xC0 == 0x80:
        start += 1
    text = data[start : start + SEQUENCE].decode("utf-8", "ignore")
    cut = rest_of_sequence(data[max(0, start - SEQUENCE) : start].decode("utf-8", "ignore"), text)
    return bytes(data[start + len(text[:cut].encode()) :])

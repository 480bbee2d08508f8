"""A TCP proxy between a worker and its server that can do what networks do, at the statement a test names.

It reads the client's half of MySQL's protocol or PostgreSQL's (plain text on this machine), so a trap can stand at one
statement of one transaction: hold it, hold its reply, or lose the reply after the server has done the work.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple, Protocol

COM_QUERY = 0x03
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of zero seconds: close with RST, as a machine that knows nothing of the connection answers."""

CLAIM = r"SET status='running'"
SETTLE = r"SET status='(completed|failed)'"
OUTPUT = r"INSERT INTO [`\"]CronJobOutput"
TRIGGER = r"INSERT INTO [`\"]CronAudit"
RENEW = r"UPDATE [`\"]CronJobExecution[`\"] SET locked_until="
ENQUEUE = r"INSERT INTO [`\"]CronJobExecution"


class Packet(NamedTuple):
    """What is passed on as one."""

    data: bytes
    statement: str
    """What the server is told to execute by it, with its values; empty for a packet that executes nothing."""


class Client(Protocol):
    """The client's half of a protocol."""

    def read(self, data: bytes) -> Iterator[Packet]:
        """The packets that are whole now."""


class MySQLClient:
    """Each statement is one packet, its values written into it."""

    def __init__(self) -> None:
        self._unread = b""

    def read(self, data: bytes) -> Iterator[Packet]:
        self._unread += data
        while len(self._unread) >= 4:
            end = 4 + int.from_bytes(self._unread[:3], "little")
            if len(self._unread) < end:
                return
            packet, self._unread = self._unread[:end], self._unread[end:]
            is_query = packet[4:5] == bytes([COM_QUERY])
            yield Packet(packet, packet[5:].decode(errors="replace") if is_query else "")


class PostgreSQLClient:
    """A statement is a message of its own, or is parsed once and then bound to values, each time anew."""

    ENCRYPTED = (80877103, 80877104)
    """What a client asks for before it begins: TLS, GSSAPI."""

    def __init__(self) -> None:
        self._unread = b""
        self._begun = False
        self._parsed: dict[bytes, str] = {}

    def read(self, data: bytes) -> Iterator[Packet]:
        self._unread += data
        while len(self._unread) >= 5:
            kind = self._unread[:1] if self._begun else b""
            end = len(kind) + int.from_bytes(self._unread[len(kind) :][:4], "big")
            if len(self._unread) < end:
                return
            packet, self._unread = self._unread[:end], self._unread[end:]
            body = packet[len(kind) + 4 :]
            if not kind:
                self._begun = int.from_bytes(body[:4], "big") not in self.ENCRYPTED
            yield Packet(packet, self._statement(kind, body))

    def _statement(self, kind: bytes, body: bytes) -> str:
        match kind:
            case b"Q":
                return body[:-1].decode(errors="replace")
            case b"P":
                name, text, _ = body.split(b"\0", 2)
                self._parsed[name] = text.decode(errors="replace")
            case b"B":
                _, name, rest = body.split(b"\0", 2)
                values = self._values(rest)
                return re.sub(r"\$(\d+)", lambda found: values[int(found[1]) - 1], self._parsed[name])
        return ""

    def _values(self, rest: bytes) -> list[str]:
        (formats,) = struct.unpack_from("!h", rest)
        at = 2 + 2 * formats
        (count,) = struct.unpack_from("!h", rest, at)
        at += 2
        values = []
        for _ in range(count):
            (size,) = struct.unpack_from("!i", rest, at)
            value = rest[at + 4 : at + 4 + max(size, 0)].decode(errors="replace")
            values.append("NULL" if size < 0 else f"'{value}'")
            at += 4 + max(size, 0)
        return values


class Fate(Enum):
    """What becomes of the statement a trap stands at."""

    HOLD = auto()
    """It is not passed on until the trap is released."""
    HOLD_REPLY = auto()
    """The server executes it; the reply is not passed on until the trap is released."""
    LOSE_REPLY = auto()
    """The server executes it; instead of the reply the client gets a reset."""


@dataclass
class Trap:
    """Waits for the first statement that matches, in a transaction that has sent one matching `after`."""

    statement: str
    fate: Fate
    after: str | None = None
    sprung: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def matches(self, statement: str, transaction: list[str]) -> bool:
        if self.sprung.is_set() or not re.search(self.statement, statement):
            return False
        return self.after is None or any(re.search(self.after, sent) for sent in transaction)


class Proxy:
    """Listens on a port of this machine and passes on to `target_port`, as its state allows."""

    def __init__(self, target_port: int, client: Callable[[], Client]) -> None:
        self.target_port = target_port
        self.client = client
        self.delay = 0.0
        """Seconds that each statement waits before it is passed on."""
        self.traps: list[Trap] = []
        self._flowing = threading.Event()
        self._flowing.set()
        self._lock = threading.Lock()
        self._links: set[_Link] = set()
        self._closing = False
        self._listener = self._listen(0)
        self.port: int = self._listener.getsockname()[1]

    # What a test can do to the network

    def trap(self, statement: str, fate: Fate, after: str | None = None) -> Trap:
        """Stand at the next such statement."""
        trap = Trap(statement, fate, after)
        self.traps.append(trap)
        return trap

    def freeze(self) -> None:
        """Nothing passes any more, in either direction, on old connections and new ones; all stay open."""
        self._flowing.clear()

    def thaw(self) -> None:
        """What was held back arrives late."""
        self._flowing.set()

    def drop(self) -> None:
        """Reset the connections there are; new ones work."""
        for link in self._all():
            link.reset()

    def forget(self) -> None:
        """The connections there are stay open and silent for ever (as after a router's restart); new ones work."""
        for link in self._all():
            link.silent.set()

    def refuse(self) -> None:
        """Reset the connections there are and refuse new ones."""
        listener, self._listener = self._listener, None
        if listener is not None:
            # Closing alone would not wake the thread that accepts.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.drop()

    def accept(self) -> None:
        """Let new connections in again."""
        self._listener = self._listen(self.port)

    def close(self) -> None:
        self._closing = True
        for trap in self.traps:
            trap.released.set()
        self.thaw()
        self.refuse()

    # How it works

    def _all(self) -> list[_Link]:
        with self._lock:
            return list(self._links)

    def _listen(self, port: int) -> socket.socket | None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(100)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.target_port))
            except OSError:
                _reset(client)
                continue
            link = _Link(self, client, server)
            with self._lock:
                self._links.add(link)
            link.start()

    def gone(self, link: _Link) -> None:
        with self._lock:
            self._links.discard(link)

    def wait_until_flowing(self, link: _Link) -> None:
        """Return when bytes may pass on this link; never for a link that was forgotten, until it is reset."""
        while not link.over.is_set() and (link.silent.is_set() or not self._flowing.is_set()):
            link.over.wait(0.01)


class _Link:
    """One connection through the proxy: a thread for each direction."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self.silent = threading.Event()
        self.over = threading.Event()
        self._transaction: list[str] = []
        self._said = proxy.client()
        self._awaiting_reply: Trap | None = None

    def start(self) -> None:
        for target in (self._pass_statements, self._pass_replies):
            threading.Thread(target=self._until_over, args=(target,), daemon=True).start()

    def reset(self) -> None:
        self.over.set()
        for end in (self._client, self._server):
            _reset(end)
        self._proxy.gone(self)

    def _until_over(self, work: object) -> None:
        with contextlib.suppress(OSError):
            work()  # type: ignore[operator]
        self.reset()

    def _pass_statements(self) -> None:
        while data := self._client.recv(1 << 16):
            for packet in self._said.read(data):
                self._proxy.wait_until_flowing(self)
                self._pass_statement(packet)

    def _pass_statement(self, packet: Packet) -> None:
        statement = packet.statement
        trap = next((t for t in self._proxy.traps if t.matches(statement, self._transaction)), None)
        if statement in ("COMMIT", "ROLLBACK"):
            self._transaction = []
        elif statement:
            self._transaction.append(statement)
        if trap is not None and trap.fate is Fate.HOLD:
            trap.sprung.set()
            trap.released.wait()
        elif trap is not None:
            self._awaiting_reply = trap
        if self._proxy.delay and statement:
            time.sleep(self._proxy.delay)
        self._server.sendall(packet.data)

    def _pass_replies(self) -> None:
        while data := self._server.recv(1 << 16):
            trap, self._awaiting_reply = self._awaiting_reply, None
            if trap is not None:
                trap.sprung.set()
                if trap.fate is Fate.LOSE_REPLY:
                    return
                trap.released.wait()
            self._proxy.wait_until_flowing(self)
            self._client.sendall(data)


def _reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    # shutdown wakes the thread that reads from it; close alone would not, nor send anything while it reads.
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()

"""Waiting on behalf of a caller: no longer than they are there, and without a connection to the database meanwhile."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator

from flask import request
from sqlalchemy.orm import Session

SERVERS_SOCKETS = ("gunicorn.socket", "werkzeug.socket")
"""Where servers keep the connection of a request. Under one that does not, waiting ends with its time alone."""
LEFT = getattr(select, "POLLRDHUP", 0)
"""Set when the other side has closed, whatever it sent before that nobody has read. Linux knows it."""
SEND_SECONDS = 30
"""A piece that the caller does not take within this time ends the answer."""
# A host that vanished without a word is found out within a minute: its connection counts as closed then.
KEEPALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))


class Caller:
    """The connection of whoever waits for this request's answer."""

    def __init__(self) -> None:
        found = (request.environ.get(name) for name in SERVERS_SOCKETS)
        self._socket: socket.socket | None = next((one for one in found if one is not None), None)
        if self._socket is not None:
            self._socket.settimeout(SEND_SECONDS)
            _keep_alive(self._socket)

    def stays(self, seconds: float) -> bool:
        """Wait so long; False as soon as the caller has hung up."""
        if self._socket is None or not LEFT:
            time.sleep(seconds)
            return True
        if self._socket.fileno() < 0:
            return False
        poll = select.poll()
        poll.register(self._socket, LEFT)  # errors and hang-ups are always told
        return not poll.poll(max(0.0, seconds) * 1000)


def _keep_alive(connection: socket.socket) -> None:
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE:
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    except (OSError, AttributeError):  # a socket of another family, or a system without these
        pass


def looks(session: Session, step: float, seconds: float) -> Iterator[None]:
    """Come round for a look every `step` seconds, for so many seconds at most and while the caller is there.

    Between two looks the session is in no transaction: it holds no connection, and sees what others wrote.
    """
    caller, until = Caller(), time.monotonic() + seconds
    while True:
        yield
        session.rollback()
        left = until - time.monotonic()
        if left <= 0 or not caller.stays(min(step, left)):
            return

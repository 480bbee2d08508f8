"""gunicorn's threaded worker, made so that no client's pace keeps a thread: `gunicorn_conf` chooses it.

gthread gives a connection to a thread at once, which then reads, writes and closes at the client's pace: a few dozen
clients that send a byte now and then keep everybody out. Here the loop, which waits for all connections at once,
collects each request; a thread gets complete ones only and has a deadline for each. `/healthz` and `/readyz` have
threads of their own, so that they answer whatever the others are at.
"""

from __future__ import annotations

import errno
import re
import selectors
import socket
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from gunicorn.workers.gthread import TConn, ThreadWorker

from .config import path_prefix

COLLECT_SECONDS = 30.0
"""A request that is not complete by then is dropped."""
ANSWER_SECONDS = 60.0
"""By then a thread must have sent its answer; what waits or streams on purpose says so (`Connection.settimeout`)."""
LAST_SECONDS = 5.0
"""An answer that took longer to make still has this long to be sent."""
LEAVE_SECONDS = 2.0
"""A client may take so long to close after us; closing before it has read everything would cut the answer off."""
MAX_HEAD = 64 * 1024
MAX_BODY = 4 * 1024 * 1024 + 64 * 1024
"""A little more than the app takes, so that it is the app that says what is too large."""
SMALL = 64 * 1024
MAX_COLLECTED = 64 * 1024 * 1024
"""Bytes of incomplete requests kept in a process, besides the first SMALL of each."""
PIECE = 64 * 1024

REQUEST_LINE = re.compile(rb"[^ \r\n]+ [^ \r\n]+ HTTP/\d\.\d\r\n")
HEALTH = re.compile(rb"(?:GET|HEAD) [^ ?]*/(healthz|readyz)(?:\?[^ ]*)? HTTP/")
LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,15})[ \t]*\r\n", re.I)
CHUNKED = re.compile(rb"\r\ntransfer-encoding:", re.I)
EXPECTS = re.compile(rb"\r\nexpect:[ \t]*100-continue[ \t]*(?=\r\n)", re.I)
CHUNK_SIZE = re.compile(rb"[0-9a-f]{1,8}", re.I)
GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"
TOO_LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
ELSEWHERE = b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Connection(socket.socket):
    """A client's socket. What a thread reads and writes for one request must be done by a deadline."""

    _until: float | None = None

    def begin(self) -> None:
        """A request is given to a thread now."""
        self._until = time.monotonic() + ANSWER_SECONDS

    def settimeout(self, seconds: float | None) -> None:
        """Give each piece so long instead of a deadline to the whole: for answers that wait or stream on purpose."""
        self._until = None
        super().settimeout(seconds)

    def arrived(self) -> bytes:
        """What has come in and can be had without waiting. Raises BlockingIOError when that is nothing."""
        self.setblocking(False)
        return super().recv(PIECE)

    def recv(self, *arguments: Any) -> bytes:
        """Raises ConnectionResetError at the deadline, as if the client had hung up."""
        received: bytes = self._in_time(super().recv, *arguments)
        return received

    def sendall(self, *arguments: Any) -> None:
        """Raises ConnectionResetError at the deadline, as if the client had hung up."""
        self._in_time(super().sendall, *arguments)

    def _in_time(self, act: Any, *arguments: Any) -> Any:
        if self._until is not None:
            super().settimeout(max(LAST_SECONDS, self._until - time.monotonic()))
        try:
            return act(*arguments)
        except TimeoutError:
            raise ConnectionResetError(errno.ECONNRESET, "the client is too slow") from None


class Client(TConn):
    """A connection and what it has sent of its next request."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.received = bytearray()
        self._body_at = 0
        self._chunk_at = 0

    def take_back(self) -> None:
        """What the parser read beyond the last request is the beginning of the next one."""
        self._body_at = self._chunk_at = 0
        if self.parser is not None:
            self.received += self.parser.unreader.take_buffered()

    def is_complete(self) -> bool:
        """Whether a thread can read the request without waiting, or refuse it: what is malformed is complete, too."""
        while self.received.startswith(b"\r\n"):
            del self.received[:2]
        if not self._body_at and not self._find_body():
            return b"\r\n" in self.received and not REQUEST_LINE.match(self.received)
        return self._chunks_end() if self._chunk_at else len(self.received) >= self._body_end

    def _find_body(self) -> bool:
        end = self.received.find(b"\r\n\r\n", 0, MAX_HEAD)
        if end < 0:
            return False
        head = self.received[: end + 4]
        length = LENGTH.search(head)
        if EXPECTS.search(head):
            # The loop asks for the body, so that the thread does not wait for it.
            head = bytearray(EXPECTS.sub(b"", head))
            self.received[: end + 4] = head
            if length is None or int(length[1]) <= MAX_BODY:
                self.sock.send(GO_ON)
        self._body_at = len(head)
        self._chunk_at = self._body_at if CHUNKED.search(head) else 0
        wanted = int(length[1]) if length else 0
        # The app refuses a body that is too large without reading it.
        self._body_end = self._body_at + (wanted if wanted <= MAX_BODY else 0)
        return True

    def _chunks_end(self) -> bool:
        while len(self.received) - self._body_at <= MAX_BODY:
            end = self.received.find(b"\r\n", self._chunk_at)
            if end < 0:
                return False
            size = bytes(self.received[self._chunk_at : end]).partition(b";")[0].strip()
            if not CHUNK_SIZE.fullmatch(size):
                return True
            if not int(size, 16):
                return self.received.find(b"\r\n\r\n", end) >= 0
            after = end + 2 + int(size, 16) + 2
            if after > len(self.received):
                return after - self._body_at > MAX_BODY
            self._chunk_at = after
        return True


class Worker(ThreadWorker):
    """gthread with a loop that collects requests."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._leaving: deque[Client] = deque()
        self._collected = 0
        """Bytes that count towards MAX_COLLECTED."""

    def init_process(self) -> None:
        """Make the threads, and run."""
        self._health = {name: ThreadPoolExecutor(1, f"{name}") for name in ("healthz", "readyz")}
        super().init_process()

    # -- connections come ------------------------------------------------------------------------------------

    def accept(self, listener: socket.socket) -> None:
        """Take a connection in. It costs no thread before its request is complete."""
        if self.cfg.is_ssl:  # the handshake is the thread's, and so is reading
            super().accept(listener)
            return
        try:
            plain, address = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._make_room()
            elif error.errno not in (errno.EAGAIN, errno.ECONNABORTED):
                raise
            return
        self.nr_conns += 1
        connection = Connection(fileno=plain.detach())
        self.enqueue_req(Client(self.cfg, connection, address, listener.getsockname()))
        if self.nr_conns >= self.worker_connections:
            self._make_room()

    def _make_room(self) -> None:
        """End the connection that has been idle, or incomplete, for longest."""
        if self.keepalived_conns:
            self.keepalived_conns[0].timeout = 0
            self.murder_keepalived()
        elif self.pending_conns:
            self._drop(min(self.pending_conns, key=lambda client: client.timeout))

    def enqueue_req(self, conn: Client) -> None:
        """A request begins, or more of it may have come."""
        if self.cfg.is_ssl:
            super().enqueue_req(conn)
            return
        if not conn.received:
            conn.timeout = time.monotonic() + COLLECT_SECONDS
            conn.take_back()
        self._collect(conn)

    def on_pending_socket_readable(self, conn: Client, client: socket.socket) -> None:
        """More of a request has come."""
        if self.cfg.is_ssl:
            super().on_pending_socket_readable(conn, client)
            return
        self.poller.unregister(client)
        self.pending_conns.remove(conn)
        self._collect(conn)

    def _collect(self, client: Client) -> None:
        before = _counted(client)
        try:
            ended = not self._read(client)
        except OSError:
            ended = True
        self._collected += _counted(client) - before
        try:
            complete = not ended and client.is_complete()
        except OSError:  # asking it to go on
            ended = True
        if ended:
            self._end(client)
        elif complete:
            self._give_to_a_thread(client)
        elif len(client.received) > MAX_HEAD and not client._body_at:
            self._end(client, TOO_LONG)
        elif self._collected > MAX_COLLECTED and len(client.received) > SMALL:
            self._end(client, BUSY)
        else:
            self.pending_conns.append(client)
            wait = partial(self.on_pending_socket_readable, client)
            self.poller.register(client.sock, selectors.EVENT_READ, wait)

    @staticmethod
    def _read(client: Client) -> bool:
        """Read what is there, up to what one turn of the loop may take. False when the client has hung up."""
        for _ in range(16):
            try:
                piece = client.sock.arrived()
            except BlockingIOError:
                return True
            if not piece:
                return False
            client.received += piece
        return True

    def _give_to_a_thread(self, client: Client) -> None:
        self._collected -= _counted(client)
        health = HEALTH.match(client.received)
        pool = self._health[health[1].decode()] if health else self.tpool
        given = pool.submit(self.handle, client)
        given.add_done_callback(lambda future: self.method_queue.defer(self.finish_request, client, future))

    def handle(self, conn: Client) -> Any:
        """Answer a request. In a thread."""
        if not self.cfg.is_ssl:
            conn.data_ready = True
            conn.sock.begin()
            conn.init()
            conn.parser.unreader.unread(bytes(conn.received))
            conn.received.clear()
        return super().handle(conn)

    def handle_request(self, req: Any, conn: Client) -> bool | None:
        """Answer a request that was read; what is not below the prefix of this site is nothing of ours."""
        prefix = path_prefix().rstrip("/")
        if prefix and req.path != prefix and not req.path.startswith(f"{prefix}/"):
            conn.sock.sendall(ELSEWHERE)  # gunicorn takes it for a fault of the server: 500
            return False
        answered: bool | None = super().handle_request(req, conn)
        return answered

    # -- connections go --------------------------------------------------------------------------------------

    def finish_request(self, conn: Client, fs: Future[Any]) -> None:
        """Keep the connection for its next request, or let the client close it. In the loop, which waits for nobody."""
        if self.cfg.is_ssl or fs.cancelled() or fs.exception() or fs.result():
            super().finish_request(conn, fs)
            return
        self.nr_conns -= 1
        self._take_leave(conn)

    def _take_leave(self, client: Client) -> None:
        try:
            client.sock.shutdown(socket.SHUT_WR)
            client.sock.setblocking(False)
            forget = partial(self._on_leaving, client)
            self.poller.register(client.sock, selectors.EVENT_READ, forget)
        except (OSError, ValueError):
            client.close()
            return
        client.timeout = time.monotonic() + LEAVE_SECONDS
        self._leaving.append(client)

    def _on_leaving(self, client: Client, _: socket.socket) -> None:
        try:
            ended = not client.sock.arrived()
        except BlockingIOError:
            return
        except OSError:
            ended = True
        if ended:
            self._leaving.remove(client)
            self._close(client)

    def murder_pending(self) -> None:
        """End what was not complete in time, and what takes too long to leave."""
        now = time.monotonic()
        for client in list(self.pending_conns):
            if client.timeout <= now or not (self.alive or client.received):
                self._drop(client)
        while self._leaving and self._leaving[0].timeout <= now:
            self._close(self._leaving.popleft())

    def _drop(self, client: Client) -> None:
        self.pending_conns.remove(client)
        self.poller.unregister(client.sock)
        self._end(client)

    def _end(self, client: Client, answer: bytes = b"") -> None:
        """End a connection whose request no thread was given, after a short `answer`."""
        self._collected -= _counted(client)
        self.nr_conns -= 1
        if answer:
            try:
                client.sock.setblocking(False)
                client.sock.send(answer)
            except OSError:
                pass
            self._take_leave(client)
        else:
            client.close()

    def _close(self, client: Client) -> None:
        self.poller.unregister(client.sock)
        client.close()


def _counted(client: Client) -> int:
    return max(0, len(client.received) - SMALL)

"""Servers that tests talk to for real: the pages under gunicorn, one that receives webhooks, one that receives mail."""

from __future__ import annotations

import json
import os
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from kytecron.config import ROOT, Settings

from .mariadb import free_port
from .workers import wait_for


@dataclass
class Answer:
    """What the webhook receiver says to one request."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"ok"
    drip_seconds: float = 0
    """Time between two bytes of the body: a server that keeps a caller for ever."""


class _Server:
    """Runs `self.server` in a thread for as long as the `with` block lasts."""

    server: socketserver.BaseServer

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join(5)


class WebhookReceiver(_Server):
    """Gives the answers in `script` one after another, then 200; keeps what it was sent."""

    def __init__(self, *script: Answer, tls: ssl.SSLContext | None = None) -> None:
        self.script = list(script)
        self.received: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.closing = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver._answer(self)

            def do_GET(self) -> None:  # a redirect that was followed would come as one
                receiver._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        # Callers that leave early are what some tests are about.
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]
        if tls:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        self.paths.append(request.path)
        self.headers.append(dict(request.headers))
        self.received.append(json.loads(body) if body else {})
        answer = self.script.pop(0) if self.script else Answer()
        request.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            request.send_header(name, value)
        if not answer.drip_seconds:
            request.end_headers()
            request.wfile.write(answer.body)
            return
        # Header bytes, one at a time: each arrives well within a socket's own time limit.
        request.flush_headers()
        while not self.closing.wait(answer.drip_seconds):
            request.wfile.write(b"X")

    def __exit__(self, *exception: Any) -> None:
        self.closing.set()
        super().__exit__(*exception)


class MailServer(_Server):
    """As much SMTP as a client needs. `replies` overrides the answer to a verb, such as {"RCPT": "550 no"}."""

    def __init__(self, replies: dict[str, str] | None = None, unknown: Collection[str] = ()) -> None:
        self.replies = replies or {}
        self.unknown = unknown
        self.mails: list[str] = []
        self.recipients: list[str] = []
        server = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                self._say("220 test")
                while line := self.rfile.readline():
                    text = line.decode().strip()
                    verb = text.split(" ")[0].split(":")[0].upper()
                    self._say(self._reply(verb, text))
                    if verb == "QUIT":
                        return

            def _reply(self, verb: str, text: str) -> str:
                if verb in server.replies:
                    return server.replies[verb]
                if verb == "RCPT":
                    recipient = text.partition("<")[2].rstrip(">")
                    if recipient in server.unknown:
                        return "550 no such user"
                    server.recipients.append(recipient)
                if verb == "DATA":
                    self._say("354 go on")
                    server.mails.append(self._data())
                return "221 bye" if verb == "QUIT" else "250 ok"

            def _data(self) -> str:
                lines = []
                while (line := self.rfile.readline()) not in (b".\r\n", b""):
                    lines.append(line)
                return b"".join(lines).decode().replace("\r\n", "\n")

            def _say(self, text: str) -> None:
                self.wfile.write(text.encode() + b"\r\n")

        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True


@contextmanager
def serving(settings: Settings, *options: str, **variables: str) -> Iterator[int]:
    """The port of a gunicorn that is started in the repository's directory, as the documents say."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KYTECRON_")}
    environment |= {"KYTECRON_INSTANCE_PATH": str(settings.instance_path), **variables}
    command = [sys.executable, "-m", "gunicorn", f"--bind=127.0.0.1:{port}", *options, "wsgi:app"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    ready = variables.get("SCRIPT_NAME", "") + "/readyz"
    try:
        wait_for(lambda: _answers(port, ready) or process.poll() is not None)
        assert process.poll() is None
        yield port
    finally:
        process.kill()
        process.wait()


def _answers(port: int, path: str) -> bool:
    try:
        with closing(HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
            connection.request("GET", path)
            return connection.getresponse().status == 200
    except OSError:
        return False

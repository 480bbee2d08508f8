"""gunicorn as it is started: who waits keeps nobody out, slow clients neither, and it believes no header."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from kytecron.config import Settings
from kytecron.services import accounts, lifecycle
from kytecron.services.audit import Actor
from kytecron.services.jobs import CronJobManager
from kytecron.store import db
from tests.pages import HELLO
from tests.servers import serving
from tests.workers import wait_for

PATIENCE = 60
SEATS = 2 * (8 // 2)
"""Two processes, each with half of its eight threads."""
PLAIN = ("--worker-class", "gthread")
"""Without our worker, as somebody may start it: the bounds hold there, too."""


@dataclass
class Server:
    """A running gunicorn, with a run that never ends, and a token for every caller."""

    port: int
    run: int
    job: int
    tokens: list[str]

    def ask(self, path: str, **headers: str) -> tuple[HTTPResponse, bytes]:
        """The answer to a GET on a connection of its own."""
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)) as connection:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer, answer.read()

    def send(self, data: bytes) -> socket.socket:
        """A connection on which this was sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        connection.sendall(data)
        return connection

    def follow(self, number: int) -> socket.socket:
        """Follow the run's log with one of the tokens."""
        return self._api("GET", f"/executions/{self.run}/log?follow=true", number)

    def wait(self, number: int) -> socket.socket:
        """Trigger the job and wait for its end, which never comes."""
        return self._api("POST", f"/jobs/{self.job}/trigger?wait=60", number)

    def _api(self, method: str, path: str, number: int) -> socket.socket:
        token = self.tokens[number % len(self.tokens)]
        lines = [
            f"{method} /api/v1{path} HTTP/1.1", "Host: here", f"Authorization: Bearer {token}", "Content-Length: 0",
        ]  # fmt: skip
        return self.send(("\r\n".join(lines) + "\r\n\r\n").encode())


def head_of(connection: socket.socket) -> str:
    """What has come of an answer, without waiting; empty while there is none."""
    connection.setblocking(False)
    try:
        return connection.recv(65536, socket.MSG_PEEK).decode()
    except BlockingIOError:
        return ""


@pytest.fixture(params=[(), PLAIN], ids=["ours", "gthread"])
def server(request: pytest.FixtureRequest, sqlite_settings: Settings) -> Iterator[Server]:
    options: tuple[str, ...] = request.param
    engine = db.make_engine(sqlite_settings)
    with db.make_sessions(engine)() as session:
        made = prepare(session)
    engine.dispose()
    with serving(sqlite_settings, *options) as port:
        yield Server(port, *made)


def prepare(session: Session) -> tuple[int, int, list[str]]:
    job = CronJobManager(session).create_job(name="long", code=HELLO, overlap_policy="allow")
    run = lifecycle.trigger(session, job.id, actor=Actor("test"))
    lifecycle.claim(session, "nobody:1:a", (), 1, 3600.0)
    tokens = [
        accounts.create_token(session, f"caller {number}", "operator", 1, Actor("test"))[1]
        for number in range(20)
    ]
    return run.id, job.id, tokens


# -- who waits -----------------------------------------------------------------------------------------------


def test_forty_who_wait_leave_half_of_the_threads_to_everybody_else(server: Server) -> None:
    crowd = [server.follow(number) if number % 2 else server.wait(number) for number in range(40)]
    for gone in crowd[:10]:
        gone.close()
    rest = crowd[10:]
    wait_for(lambda: sum(" 503 " in head_of(one) for one in rest) >= len(rest) - SEATS)
    for path in ("/healthz", "/readyz", "/sign-in"):
        assert server.ask(path)[0].status == 200, path
    refused = [answer for one in rest if " 503 " in (answer := head_of(one))]
    waiting = [one for one in rest if " 503 " not in head_of(one)]
    assert len(waiting) <= SEATS
    for answer in refused:
        assert "\r\nRetry-After: 5\r\n" in answer
        error = json.loads(answer.partition("\r\n\r\n")[2])["error"]
        assert error["code"] == "busy"
        assert "Try again in 5 seconds" in error["message"]
    for one in rest:
        one.close()
    wait_for(lambda: is_let_in(server))


def is_let_in(server: Server) -> bool:
    with closing(server.follow(0)) as one:
        wait_for(lambda: bool(head_of(one)))
        return " 200 " in head_of(one)


def test_one_caller_leaves_seats_to_others(server: Server) -> None:
    crowd = [server.follow(0) for _ in range(20)]
    wait_for(lambda: all(map(head_of, crowd)))
    let_in = [one for one in crowd if " 200 " in head_of(one)]
    assert 1 <= len(let_in) <= SEATS / 2
    assert any("which is the most for one caller" in head_of(one) for one in crowd)
    others = [server.follow(number) for number in range(1, 20)]
    wait_for(lambda: all(map(head_of, others)))
    assert any(" 200 " in head_of(one) for one in others)
    for one in (*crowd, *others):
        one.close()


def test_whoever_sent_more_before_leaving_is_gone_all_the_same(server: Server) -> None:
    # What nobody reads must not hide that the client has left.
    for _ in range(3):
        crowd = [server.wait(number) for number in range(SEATS * 2)]
        for one in crowd:
            one.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            one.close()
        wait_for(lambda: is_let_in(server))


def test_a_refused_trigger_has_started_nothing(server: Server) -> None:
    crowd = [server.follow(number) for number in range(40)]
    wait_for(lambda: all(map(head_of, crowd)))
    token = {"Authorization": f"Bearer {server.tokens[0]}"}

    def runs() -> int:
        return len(json.loads(server.ask("/api/v1/executions?limit=200", **token)[1])["items"])

    before = runs()
    with closing(server.wait(0)) as one:
        wait_for(lambda: bool(head_of(one)) or runs() > before)
        assert (" 503 " in head_of(one)) == (runs() == before)
    for other in crowd:
        other.close()


# -- who is slow ---------------------------------------------------------------------------------------------

SLOW = {
    "says nothing": b"",
    "half a line": b"GET /sig",
    "half a head": b"GET /sign-in HTTP/1.1\r\nHost: here\r\nX-Slow: ",
    "half a body": b"POST /sign-in HTTP/1.1\r\nHost: here\r\nContent-Length: 100\r\n\r\nusername=",
    "half of the chunks": b"POST /sign-in HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nusern\r\n",
    "waits to go on": b"POST /sign-in HTTP/1.1\r\nHost: here\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n",
    "does not close": b"GET /sign-in HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n",
    "keeps its connection": b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n",
    "speaks something else": b"\x16\x03\x01\x02\x00\x01\x00",
    "half of a lower-case method": b"get /sign-in HTTP/1.1\r\nHost: here\r\n",
    "blank lines first": b"\r\n\r\nGET /sign-in HTTP/1.1\r\nHost: here\r\n",
    "does not read": b"GET /static/app.js HTTP/1.1\r\nHost: here\r\n\r\n" * 3,
}


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Iterator[int]:
    instance = tmp_path_factory.mktemp("instance")
    (instance / "kytecron.db").write_bytes(sqlite_template.read_bytes())
    with serving(Settings(instance_path=instance)) as port:
        yield port


@pytest.mark.parametrize("data", SLOW.values(), ids=SLOW.keys())
def test_slow_clients_keep_no_thread(port: int, data: bytes) -> None:
    server = Server(port, 0, 0, [])
    crowd = [server.send(data) for _ in range(100)]
    for path in ("/healthz", "/readyz", "/sign-in", "/static/app.css"):
        assert server.ask(path)[0].status == 200, path
    for one in crowd:
        one.close()


def test_a_full_house_ends_who_has_been_idle_for_longest(port: int) -> None:
    server = Server(port, 0, 0, [])
    crowd = [server.send(b"GET /") for _ in range(800)]
    assert server.ask("/healthz")[0].status == 200
    for one in crowd:
        one.close()


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def chunked(body: bytes, size: int = 7) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in pieces(body, size)) + b"0\r\n\r\n"


HEAD = b"POST /sign-in HTTP/1.1\r\nHost: here\r\nContent-Type: application/x-www-form-urlencoded\r\n"
FORM = b"username=" + b"x" * 100
WHOLE = {
    "at once": (HEAD + b"Content-Length: %d\r\n\r\n" % len(FORM) + FORM, 10_000),
    "byte by byte": (HEAD + b"content-length: %d\r\n\r\n" % len(FORM) + FORM, 1),
    "chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(FORM), 5),
    "chunks with trailers": (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(FORM)[:-2] + b"X-Sum: 1\r\n\r\n", 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("data", "size"), WHOLE.values(), ids=WHOLE.keys())
def test_a_request_is_understood_however_it_comes_in(port: int, data: bytes, size: int) -> None:
    server = Server(port, 0, 0, [])
    with closing(server.send(b"")) as one:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2):  # the second on the connection of the first
            for piece in pieces(data, size):
                one.sendall(piece)
            answer = HTTPResponse(one)
            answer.begin()
            assert answer.status == 400, "the form carries no token"
            assert b"out of date" in answer.read()


def test_requests_sent_in_a_row_are_answered_in_a_row(port: int) -> None:
    asked = [b"/healthz", b"/sign-in", b"/nothing", b"/readyz"]
    data = b"".join(b"GET %s HTTP/1.1\r\nHost: here\r\n\r\n" % path for path in asked)
    with closing(Server(port, 0, 0, []).send(data)) as one:
        got = b""
        while got.count(b"HTTP/1.1 ") < len(asked):
            got += one.recv(65536)
    assert re.findall(rb"HTTP/1.1 (\d+)", got) == [b"200", b"200", b"404", b"200"]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"hello\r\n", b"400"),
        (b"GET / HTTP/9\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: here\r\nX: " + b"y" * 70_000, b"431"),
        (b"GET /" + b"y" * 5000 + b" HTTP/1.1\r\nHost: here\r\n\r\n", b"414"),
        (b"POST /sign-in HTTP/1.1\r\nHost: here\r\nContent-Length: 99999999\r\n\r\nx", b"413"),
        (b"POST /sign-in HTTP/1.1\r\nHost: here\r\nContent-Length: x\r\n\r\n", b"400"),
        (b"POST /sign-in HTTP/1.1\r\nHost: here\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxy", b"400"),
        (b"POST /sign-in HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n", b"400"),
    ],
    ids=["nonsense", "version", "head", "line", "body", "no length", "two lengths", "bad chunk"],
)
def test_what_is_too_large_or_malformed_is_refused_at_once(port: int, data: bytes, status: bytes) -> None:
    with closing(Server(port, 0, 0, []).send(data)) as one:
        assert one.recv(65536).split(b" ")[1] == status


# -- whom it believes ----------------------------------------------------------------------------------------

CLAIMS = {
    "X-Forwarded-Proto": "https", "X-Forwarded-Protocol": "ssl", "X-Forwarded-Ssl": "on",
}  # fmt: skip


@pytest.mark.parametrize(
    "options", [(), PLAIN, ("--config", os.devnull, *PLAIN)], ids=["ours", "gthread", "bare"]
)
def test_gunicorn_believes_nobody_about_how_a_request_came(
    sqlite_settings: Settings, options: tuple[str, ...]
) -> None:
    with serving(sqlite_settings, *options) as port:
        server = Server(port, 0, 0, [])
        for claim, value in CLAIMS.items():
            answer, _ = server.ask("/sign-in", **{claim: value})
            assert answer.status == 200
            assert answer.headers["Strict-Transport-Security"] is None, claim
            assert "Secure" not in answer.headers["Set-Cookie"]
        answer, _ = server.ask("/jobs", SCRIPT_NAME="/jobs")
        assert (answer.status, answer.headers["Location"]) == (303, "/sign-in?next=/jobs")
        assert server.ask("/sign-in", PATH_INFO="/jobs", REMOTE_USER="admin")[0].status == 200


@pytest.mark.parametrize(
    ("proxies", "sent", "is_tls"),
    [(1, "https", True), (1, "http", False), (2, "https", False), (2, "https, http", True)],
)
def test_as_many_proxies_are_believed_as_the_settings_say(
    sqlite_settings: Settings, proxies: int, sent: str, is_tls: bool
) -> None:
    with serving(sqlite_settings, KYTECRON_TRUSTED_PROXIES=str(proxies)) as port:
        answer, _ = Server(port, 0, 0, []).ask("/sign-in", **{"X-Forwarded-Proto": sent})
        assert (answer.headers["Strict-Transport-Security"] is not None) == is_tls


def test_a_prefix_that_gunicorn_is_told_stays(sqlite_settings: Settings) -> None:
    with serving(sqlite_settings, SCRIPT_NAME="/cron") as port:
        answer, _ = Server(port, 0, 0, []).ask("/cron/jobs")
        assert answer.headers["Location"] == "/cron/sign-in?next=/jobs"
        for path in ("/jobs", "/", "/cronies", "/healthz", "/cron%2fjobs"):
            assert Server(port, 0, 0, []).ask(path)[0].status == 404, path
        assert Server(port, 0, 0, []).ask("/cron/healthz")[0].status == 200

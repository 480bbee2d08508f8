"""Posting JSON to an address that somebody typed into a form, without becoming their way into our network.

https only; the host's name is resolved once, every address found is checked, and the connection goes to a checked
address (a second look-up could answer differently); redirects are refused; time and size are bounded.
"""

from __future__ import annotations

import functools
import http.client
import io
import json
import re
import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from ..config import Settings
from ..core import addresses

MAX_URL = 500
MAX_SECONDS = 10.0
"""From the look-up of the name to the end of the answer."""
CONNECT_SECONDS = 4.0
"""For one address: a host whose first address is dead (often IPv6) gets a second chance."""
MAX_RESPONSE_BYTES = 65_536
MAX_RETRY_AFTER = 3600
SHOWN_OF_ANSWER = 200

IpAddress = IPv4Address | IPv6Address
NAT64 = IPv6Network("64:ff9b::/96")
# Answers of a client's making that may be different the next time: timeout, too early, too many.
TRY_AGAIN = {408, 425, 429}


class DeliveryFailed(Exception):
    """A message did not arrive. `permanent`: trying again would change nothing. `retry_after` is in seconds."""

    def __init__(self, message: str, *, permanent: bool = False, retry_after: int = 0) -> None:
        super().__init__(message)
        self.permanent = permanent
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class _Target:
    scheme: str
    host: str
    port: int
    host_header: str
    path: str


def validate_webhook_url(url: str, settings: Settings) -> None:
    """Raises ValueError saying what is wrong with a webhook's address. Names are looked up only when sending."""
    _parse(url, settings)


def post_json(url: str, payload: Mapping[str, Any], settings: Settings) -> None:
    """Send `payload` to a webhook. Raises DeliveryFailed, never anything else; takes at most MAX_SECONDS."""
    deadline = time.monotonic() + MAX_SECONDS
    try:
        target = _parse(url, settings)
    except ValueError as error:
        raise DeliveryFailed(str(error), permanent=True) from None
    try:
        addresses = _checked_addresses(target, settings, deadline)
        with closing(_connect(target, addresses, deadline)) as connection:
            _exchange(connection, target, json.dumps(payload).encode(), deadline)
    except TimeoutError:
        raise DeliveryFailed(f"no complete answer from {target.host} within {MAX_SECONDS:g} s") from None
    except ssl.SSLCertVerificationError as error:
        raise DeliveryFailed(
            f"the certificate of {target.host} is not valid: {error.verify_message}"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise DeliveryFailed(f"no answer from {target.host}: {error or type(error).__name__}") from None


# -- what may be addressed -----------------------------------------------------------------------------------


def _parse(url: str, settings: Settings) -> _Target:
    if len(url) > MAX_URL or not re.fullmatch(r"[!-~]+", url):
        raise ValueError(f"A webhook address is at most {MAX_URL} plain characters without spaces")
    address = addresses.read(url)
    if address is None:
        raise ValueError("This is not an address such as https://hooks.slack.com/services/...")
    schemes = ("https", "http") if settings.allow_local_webhooks else ("https",)
    if address.scheme not in schemes or not address.host:
        raise ValueError("A webhook address begins with https:// and names a host")
    if address.has_credentials:
        raise ValueError("A webhook address must not contain a user name or password")
    _check_host(address.scheme, address.host, settings)
    return _Target(
        scheme=address.scheme,
        host=address.host,
        port=address.port or (443 if address.scheme == "https" else 80),
        host_header=address.netloc,
        path=address.local if address.path else f"/{address.local}",
    )


def _check_host(scheme: str, host: str, settings: Settings) -> None:
    """What can be said without looking the name up."""
    try:
        literal: IpAddress | None = ip_address(host)
    except ValueError:
        literal = None
    if literal is not None:
        if not _may_connect(literal, scheme, settings):
            raise ValueError(_refused(host, scheme))
        return
    local = host == "localhost" or host.endswith(".localhost")
    if local and not settings.allow_local_webhooks:
        raise ValueError(_refused(host, scheme))
    if scheme == "http" and not local:
        raise ValueError("http:// is allowed to this machine only; use https://")


def _refused(host: str, scheme: str) -> str:
    if scheme == "http":
        return f"http:// is allowed to this machine only, and {host} is not it; use https://"
    return f"{host} is not a public address: webhooks into private networks are refused"


def _may_connect(address: IpAddress, scheme: str, settings: Settings) -> bool:
    address = _inner(address)
    if address.is_loopback:
        return settings.allow_local_webhooks
    return scheme == "https" and _is_public(address)


def _inner(address: IpAddress) -> IpAddress:
    """The IPv4 address that an IPv6 address stands for (mapped, 6to4, NAT64): that is where packets end."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped:
            return address.ipv4_mapped
        if address.sixtofour:
            return address.sixtofour
        if address in NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _is_public(address: IpAddress) -> bool:
    site_local = isinstance(address, IPv6Address) and address.is_site_local
    return (
        address.is_global
        and not site_local
        and not address.is_multicast
        and not address.is_reserved
        and not address.is_unspecified
    )


def _checked_addresses(target: _Target, settings: Settings, deadline: float) -> list[str]:
    """Where the host's name leads. One bad address among good ones is enough to refuse: it is how rebinding looks."""
    found = _resolve(target.host, target.port, deadline)
    for address in found:
        if not _may_connect(ip_address(address), target.scheme, settings):
            raise DeliveryFailed(_refused(f"{target.host} ({address})", target.scheme), permanent=True)
    return found


def _resolve(host: str, port: int, deadline: float) -> list[str]:
    """All addresses of a name. In a thread of its own, since a look-up cannot be given a time limit."""
    answer: SimpleQueue[list[str] | Exception] = SimpleQueue()

    def look_up() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answer.put(list(dict.fromkeys(str(item[4][0]) for item in found)))
        except (OSError, UnicodeError) as error:
            answer.put(error)

    Thread(target=look_up, name="webhook-look-up", daemon=True).start()
    try:
        found = answer.get(timeout=_left(deadline))
    except Empty:
        raise DeliveryFailed(f"the name {host} could not be looked up in time") from None
    if isinstance(found, Exception):
        raise DeliveryFailed(f"the name {host} could not be looked up: {found}")
    return found


# -- one request ---------------------------------------------------------------------------------------------


def _connect(target: _Target, addresses: list[str], deadline: float) -> socket.socket:
    for number, address in enumerate(addresses, start=1):
        try:
            plain = socket.create_connection(
                (address, target.port), timeout=min(CONNECT_SECONDS, _left(deadline))
            )
            break
        except OSError:
            if number == len(addresses):
                raise
    if target.scheme == "http":
        return plain
    try:
        plain.settimeout(_left(deadline))
        return _tls().wrap_socket(plain, server_hostname=target.host)
    except BaseException:
        plain.close()
        raise


@functools.cache
def _tls() -> ssl.SSLContext:
    # Reading the certificates takes 20-50 ms.
    return ssl.create_default_context()


def _exchange(connection: socket.socket, target: _Target, body: bytes, deadline: float) -> None:
    client = http.client.HTTPConnection(target.host, target.port)
    client.sock = _Bounded(connection, deadline)
    client.request(
        "POST",
        target.path,
        body,
        {
            "Host": target.host_header,
            "Content-Type": "application/json; charset=utf-8",
            "User-Agent": "kytecron",
            "Connection": "close",
        },
    )
    response = client.getresponse()
    if 200 <= response.status < 300:
        return
    if 300 <= response.status < 400:
        raise DeliveryFailed(
            f"{target.host} answered {response.status}: redirects are not followed", permanent=True
        )
    raise DeliveryFailed(
        f"{target.host} answered {response.status} {_beginning(response)}".strip(),
        permanent=400 <= response.status < 500 and response.status not in TRY_AGAIN,
        retry_after=_seconds(response.getheader("Retry-After")),
    )


def _beginning(response: http.client.HTTPResponse) -> str:
    """What a webhook says about a refusal, such as `no_service`; the status counts also where this fails."""
    try:
        return " ".join(response.read(SHOWN_OF_ANSWER).decode("utf-8", "replace").split())
    except (OSError, http.client.HTTPException):
        return ""


def _seconds(text: str | None) -> int:
    return min(int(text), MAX_RETRY_AFTER) if text and re.fullmatch(r"[0-9]{1,9}", text.strip()) else 0


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _Bounded(io.RawIOBase):
    """A connection as http.client uses one, with a limit on all that is read and on all the time it takes.

    A socket's own time limit begins anew with each byte, which a slow server can send for hours.
    """

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline
        self._allowance = MAX_RESPONSE_BYTES

    def sendall(self, data: bytes) -> None:
        self._connection.settimeout(_left(self._deadline))
        self._connection.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def close(self) -> None:
        """Who opened the connection closes it: http.client would before the answer has been read."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._connection.settimeout(_left(self._deadline))
        count = self._connection.recv_into(buffer)
        self._allowance -= count
        if self._allowance < 0:
            raise DeliveryFailed("the answer was longer than 64 KB", permanent=True)
        return count

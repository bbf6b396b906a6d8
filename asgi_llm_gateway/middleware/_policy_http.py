"""Asks OPA over HTTP/1.1: kept connections, one deadline, bounded answers, nothing followed.

A client of our own: a question is one small POST and its answer one small JSON, for which a general client costs twenty
times the CPU (see ``benchmarks/policy.py``). No proxy of the environment is used: the policy is asked directly.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httptools

from ..opa import PolicyFault

MAX_ANSWER = 1024 * 1024
"""Bytes that an answer may have."""

CONNECTIONS = 32
"""Connections to OPA for one event loop; further questions wait for one, within their deadline."""


class Place(NamedTuple):
    """Where OPA listens: its host, port, whether over TLS, and the start of every path."""

    host: str
    port: int
    secure: bool
    prefix: str


def place_of(url: str) -> Place:
    """Read a base URL such as ``http://127.0.0.1:8181``. Raises ValueError, without the URL: it may hold a secret."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("an http or https URL, such as http://127.0.0.1:8181")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError("without user, password, query and fragment; a token is OPA_TOKEN")
    if not url.isascii() or any(character <= " " for character in url):
        raise ValueError("without spaces and special characters")
    secure = parts.scheme == "https"
    return Place(parts.hostname, parts.port or (443 if secure else 80), secure, parts.path.rstrip("/"))


class _Lost(Exception):
    """The connection ended before a byte of the answer had come."""


class _Connection(asyncio.Protocol):
    """One connection, one question at a time."""

    def __init__(self) -> None:
        self.usable = False
        self._transport: Any = None
        self._waiting: asyncio.Future[tuple[int, bytes]] | None = None
        self._begun = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self.usable = True

    def ask(self, data: bytes) -> asyncio.Future[tuple[int, bytes]]:
        """Write a question; the future has status and body."""
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._size = 0
        self._begun = False
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        return self._waiting

    def data_received(self, data: bytes) -> None:
        self._begun = True
        if self._waiting is None:  # it says what nobody asked for
            self.drop()
            return
        self._size += len(data)
        if self._size > MAX_ANSWER + 65536:  # endless headers are counted too
            self._fail(PolicyFault(f"its answer is over {MAX_ANSWER} bytes"))
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(PolicyFault("its answer is not HTTP"))

    def on_body(self, data: bytes) -> None:
        self._parts.append(data)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # an interim answer; the real one follows. Source: RFC 9110, 15.2
            self._parts.clear()
            return
        waiting, self._waiting = self._waiting, None
        if not self._parser.should_keep_alive():
            self.drop()
        body = b"".join(self._parts)
        if waiting is not None and not waiting.done():
            if len(body) > MAX_ANSWER:
                waiting.set_exception(PolicyFault(f"its answer is over {MAX_ANSWER} bytes"))
            else:
                waiting.set_result((status, body))

    def connection_lost(self, error: Exception | None) -> None:
        self.usable = False
        self._fail(PolicyFault("it closed the connection in the middle of its answer") if self._begun else _Lost())

    def _fail(self, error: Exception) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_exception(error)
        self.drop()

    def drop(self) -> None:
        """Close at once."""
        self.usable = False
        if self._transport is not None:
            self._transport.abort()


class OpaClient:
    """Asks one OPA, from one event loop.

    Args:
        place: Where it listens.
        path: The path of the policy's document.
        token: For ``Authorization: Bearer``, where OPA asks for one.
        timeout: Seconds for a whole question, its wait for a connection included.
    """

    def __init__(self, place: Place, path: str, *, token: str | None, timeout: float) -> None:
        self._place = place
        self._timeout = timeout
        host = f"[{place.host}]" if ":" in place.host else place.host
        head = f"POST {place.prefix}{path} HTTP/1.1\r\nhost: {host}:{place.port}\r\n"
        head += "content-type: application/json\r\naccept: application/json\r\n"
        if token is not None:
            head += f"authorization: Bearer {token}\r\n"
        self._head = head.encode("latin-1") + b"content-length: "
        self._idle: list[_Connection] = []
        self._free = asyncio.Semaphore(CONNECTIONS)
        self._tls: ssl.SSLContext | None = None

    async def ask(self, document: bytes) -> tuple[int, bytes]:
        """Ask; status and body of the answer. Raises PolicyFault."""
        data = b"%b%d\r\n\r\n%b" % (self._head, len(document), document)
        try:
            async with asyncio.timeout(self._timeout), self._free:
                while True:
                    idle = self._taken()
                    connection = idle or await self._connect()
                    try:
                        answer = await connection.ask(data)
                    except _Lost:
                        if idle is None:
                            raise PolicyFault("it closed the connection without an answer") from None
                        continue  # closed as idle while we wrote; to ask again changes nothing at OPA
                    except BaseException:  # cancelled, too: an answer may be on its way there
                        connection.drop()
                        raise
                    if connection.usable:
                        self._idle.append(connection)
                    return answer
        except TimeoutError:
            raise PolicyFault(f"it did not answer within {self._timeout:g} s") from None
        except OSError as error:  # refused, unreachable, no such name, no trust
            raise PolicyFault(f"it can't be reached ({type(error).__name__})") from None

    def _taken(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return None

    async def _connect(self) -> _Connection:
        host, port, secure, _ = self._place
        if secure and self._tls is None:  # reads the machine's certificates from the disk
            self._tls = await asyncio.to_thread(ssl.create_default_context)
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, host, port, ssl=self._tls)
        return connection

    async def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            self._idle.pop().drop()

"""The upstream client: pooled HTTP/1.1 connections of our own."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from ..adapters.base import Endpoint, Script, UpstreamRequest
from ..errors import Header
from .http1 import Connection
from .scripted import ScriptedFlight
from .transfer import Flight, Timeouts, TransferError

_HEADS = 16  # kept renderings of a head
_RECEIVE_BUFFER = 512 * 1024  # bytes
_STALE_SECONDS = 1.0
# A kept connection that dies so soon after a request, without a byte of an answer, had been given up by the server
# before: asked once more on a fresh one. Later than that the server may well have done the work, and it is not.


class Origin(NamedTuple):
    """Where connections go."""

    scheme: str
    host: str
    port: int


class _Prepared(NamedTuple):
    """An Endpoint as this client sends it: all of the head but the length."""

    origin: Origin
    head: bytes
    heads: dict[tuple[Header, ...], bytes]
    """The head with a call's own headers, of which there are few."""

    def __repr__(self) -> str:
        return f"_Prepared({self.origin})"  # the head has the provider's key in it


def prepare(endpoint: Endpoint) -> _Prepared:
    """The request line and headers of an endpoint, checked and rendered. Raises ValueError for what is no http URL."""
    parts = urlsplit(endpoint.url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise ValueError("an upstream URL is http://host[:port]/path or https://host[:port]/path")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if any(ord(character) < 33 or ord(character) > 126 for character in path):
        raise ValueError("an upstream URL holds printable ASCII without spaces")
    lines = [f"{endpoint.method} {path} HTTP/1.1\r\nhost: {parts.netloc}\r\n".encode()]
    for name, value in endpoint.headers:
        if b"\r" in name + value or b"\n" in name + value:
            raise ValueError("a header can't hold a line break")
        lines.append(name + b": " + value + b"\r\n")
    return _Prepared(Origin(parts.scheme, parts.hostname, port), b"".join(lines), {})


class UpstreamClient:
    """Upstream calls of one event loop.

    Args:
        timeouts: Seconds for each phase.
        max_connections: Per origin; further calls wait, at most the connect timeout.
        keep_alive: Seconds that an idle connection is kept.
        ssl_context: For https; certificates are verified by the system's authorities where none is given.
    """

    def __init__(
        self,
        *,
        timeouts: Timeouts | None = None,
        max_connections: int = 1000,
        keep_alive: float = 30.0,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.timeouts = timeouts or Timeouts()
        self._of_stream = self.timeouts.of_stream()
        self._max = max_connections
        self._keep_alive = keep_alive
        self._ssl = ssl_context
        self._pools: dict[Origin, _Pool] = {}
        # Asked for once: before Python 3.12, get_running_loop() makes a system call each time.
        self.loop = asyncio.get_running_loop()

    def open(
        self, request: UpstreamRequest | Script, extra: tuple[Header, ...] = (), *, stream: bool = False
    ) -> Flight:
        """A call, not yet sent; ``extra`` are headers of this call alone (names and values that the gateway made).

        ``stream``: it asks for one, and the time for its first event counts.
        """
        if isinstance(request, Script):
            return ScriptedFlight(request)
        endpoint = request.endpoint
        prepared: _Prepared = endpoint.prepared
        if prepared is None:
            prepared = endpoint.prepared = prepare(endpoint)
        pool = self._pools.get(prepared.origin)
        if pool is None:
            pool = self._pools[prepared.origin] = _Pool(prepared.origin, self)
        head = prepared.heads.get(extra)
        if head is None:
            head = prepared.head + b"".join([b"%b: %b\r\n" % one for one in extra])
            if len(prepared.heads) < _HEADS:
                prepared.heads[extra] = head
        body = request.body
        return PooledFlight(
            pool,
            b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body),
            self._of_stream if stream else self.timeouts,
        )

    def tls(self) -> ssl.SSLContext:
        """The context for https, made on first use: it reads the system's certificates."""
        if self._ssl is None:
            self._ssl = ssl.create_default_context()
        return self._ssl

    @property
    def limits(self) -> tuple[int, float]:
        """Connections per origin, and seconds that an idle one is kept."""
        return self._max, self._keep_alive

    async def close(self) -> None:
        """Cut all connections, in use or not."""
        for pool in self._pools.values():
            pool.close()


class _Pool:
    """The connections to one origin."""

    def __init__(self, origin: Origin, client: UpstreamClient) -> None:
        self._origin = origin
        self._client = client
        self.loop = client.loop
        self._keep_alive = client.limits[1]
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self._opening = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._closed = False

    def idle(self) -> Connection | None:
        """The connection that was used last, if it still is of use; one that idled too long is not."""
        idle = self._idle
        while idle:
            connection = idle.pop()
            if connection.error is None:
                if self.loop.time() - connection.idle_since <= self._keep_alive:
                    return connection
                connection.fail(TransferError("cut", "idled too long"))
        return None

    async def fresh(self) -> Connection:
        """A new connection, or one that becomes free while the pool is full. Raises TransferError."""
        loop = self.loop
        until = loop.time() + self._client.timeouts.connect
        while len(self._all) + self._opening >= self._client.limits[0]:
            await self._turn(until)
            connection = self.idle()
            if connection is not None:
                return connection
        if self._closed:
            raise TransferError("cut", "the gateway shuts down")
        self._opening += 1
        try:
            connection = await self._connect(loop)
        except BaseException:  # cancelled, too: the place in the pool is free again
            self._opening -= 1
            self._next()
            raise
        self._opening -= 1
        if connection.error is None:  # lost again already: then begin() tells
            self._all.add(connection)
        else:
            self._next()
        return connection

    async def _turn(self, until: float) -> None:
        """Wait in line for a connection to become free. Raises TransferError."""
        turn = self.loop.create_future()
        self._waiting.append(turn)
        came = False
        try:
            async with asyncio.timeout_at(until):
                await turn
            came = True
        except TimeoutError:
            raise TransferError("pool", "all connections are in use") from None
        finally:
            if turn in self._waiting:
                self._waiting.remove(turn)
            elif not came:  # its turn came in the moment it left
                self._next()

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> Connection:
        origin, context = self._origin, None
        if origin.scheme == "https":
            context = self._client.tls()
        try:
            async with asyncio.timeout(self._client.timeouts.connect):
                transport, connection = await loop.create_connection(
                    lambda: Connection(loop, self._freed),
                    origin.host,
                    origin.port,
                    ssl=context,
                    server_hostname=origin.host if context else None,
                )
        except TimeoutError:
            raise TransferError("connect", f"no connection to {origin.host}:{origin.port} in time") from None
        except ssl.SSLError as error:
            raise TransferError("connect", f"TLS with {origin.host}:{origin.port}: {error.reason}") from error
        except (OSError, UnicodeError) as error:
            raise TransferError("connect", f"{origin.host}:{origin.port}: {error}") from error
        wire: socket.socket | None = transport.get_extra_info("socket")
        if wire is not None and wire.family in (socket.AF_INET, socket.AF_INET6):
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Else the kernel may take tens of megabytes from the provider for a client that reads nothing.
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        if self._closed:
            transport.abort()
        return connection

    def _freed(self, connection: Connection) -> None:
        """A call is over, or a connection was lost."""
        if connection.error is None and not self._closed:
            self._idle.append(connection)
            oldest = self._idle[0]
            if oldest.error is None and connection.idle_since - oldest.idle_since > self._keep_alive:
                oldest.fail(TransferError("cut", "idled too long"))
        else:
            self._all.discard(connection)
            if connection in self._idle:
                self._idle.remove(connection)
        if self._waiting:
            self._next()

    def _next(self) -> None:
        """Wake the one that waits longest."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                break

    def close(self) -> None:
        """Cut everything."""
        self._closed = True
        for connection in list(self._all):
            connection.fail(TransferError("cut", "the gateway shuts down"))
        while self._waiting:
            self._next()


class PooledFlight:
    """A Flight over the pool."""

    __slots__ = ("_connecting", "_connection", "_data", "_ended", "_pool", "_timeouts")

    def __init__(self, pool: _Pool, data: bytes, timeouts: Timeouts) -> None:
        self._pool = pool
        self._data = data
        self._timeouts = timeouts
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[Connection] | None = None
        self._ended: Exception | None = None

    @property
    def status(self) -> int:
        """See Flight."""
        return 0 if self._connection is None else self._connection.status

    @property
    def headers(self) -> Sequence[Header]:
        """See Flight."""
        return () if self._connection is None else self._connection.headers

    @property
    def sent(self) -> bool:
        """See Flight."""
        return self._connection is not None

    @property
    def done(self) -> bool:
        """See Flight."""
        return self._connection is not None and self._connection.complete

    async def start(self) -> None:
        """See Flight. Raises TransferError."""
        if self._ended is not None:
            raise self._ended
        connection = self._pool.idle()
        if connection is not None:
            self._connection = connection
            try:
                await connection.begin(self._data, self._timeouts)
                return
            except TransferError as error:
                late = self._pool.loop.time() - connection.begun_at > _STALE_SECONDS
                if error.kind != "cut" or error.received or late or self._ended is not None:
                    raise
                connection.free()
        connection = await self._fresh()
        self._connection = connection
        await connection.begin(self._data, self._timeouts)

    async def _fresh(self) -> Connection:
        """A connection, in a task of its own, so that ``abort`` can end the wait for it."""
        if self._ended is not None:
            raise self._ended
        task = self._connecting = self._pool.loop.create_task(self._pool.fresh())
        try:
            connection = await task
        except asyncio.CancelledError:
            task.cancel()
            task.add_done_callback(_unused)
            if self._ended is not None:
                raise self._ended from None
            raise
        finally:
            self._connecting = None
        if self._ended is not None:
            _unused(task)
            raise self._ended
        return connection

    def take(self) -> bytes:
        """See Flight."""
        assert self._connection is not None
        return self._connection.take()

    def more(self) -> Awaitable[None] | None:
        """See Flight."""
        assert self._connection is not None
        return self._connection.more()

    @property
    def connection(self) -> Connection | None:
        """The connection, for the relay that pushes."""
        return self._connection

    def abort(self, reason: Exception) -> None:
        """See Flight."""
        if self._ended is None:
            self._ended = reason
            if self._connecting is not None:
                self._connecting.cancel()
            elif self._connection is not None and self._connection.busy and not self._connection.complete:
                self._connection.fail(reason)

    def close(self) -> None:
        """See Flight."""
        if self._connection is not None:
            self._connection.free()


def _unused(task: asyncio.Task[Connection]) -> None:
    """A connection that came too late for its call."""
    if not task.cancelled() and task.exception() is None:
        task.result().fail(TransferError("cut", "not wanted any more"))

"""A Flight over an httpx (or httpx2) client: the calls are the same in both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any

from ..adapters.base import UpstreamRequest
from ..errors import Header
from .transfer import BUFFER_LIMIT, Timeouts, TransferError, is_progressive


class HTTPXFlight:
    """A Flight; its waits run in a task of their own, so that ``abort`` can end them."""

    def __init__(self, client: Any, request: UpstreamRequest, extra: Sequence[Header], timeouts: Timeouts) -> None:
        self._client = client
        self._request = request
        self._extra = extra
        self._timeouts = timeouts
        self._response: Any = None
        self._pieces: AsyncIterator[bytes] | None = None
        self._came: list[bytes] = []
        self._ended: Exception | None = None
        self._task: asyncio.Task[None] | None = None
        self._deadline = 0.0
        self.status = 0
        self.headers: Sequence[Header] = ()
        self.done = False
        self.sent = True

    async def start(self) -> None:
        """See Flight."""
        self._deadline = asyncio.get_running_loop().time() + self._timeouts.total
        await self._bounded(self._send(), self._timeouts.connect + self._timeouts.first_byte)
        kinds = [value for name, value in self.headers if name == b"content-type"]
        if self.status == 200 and any(map(is_progressive, kinds)):
            return
        while not self.done and sum(map(len, self._came)) <= BUFFER_LIMIT:
            await self._bounded(self._read(), self._timeouts.idle)

    async def _send(self) -> None:
        endpoint = self._request.endpoint
        own = self._client.timeout
        made = self._client.build_request(
            endpoint.method,
            endpoint.url,
            content=self._request.body,
            headers=[*endpoint.headers, *self._extra],
            timeout=(own.connect, None, own.write, own.pool),  # how long to read is bounded here
        )
        # A client keeps the cookies that providers set; they are no other tenant's affair.
        made.headers.pop("cookie", None)
        self._response = await self._client.send(made, stream=True, follow_redirects=False)
        self.status = self._response.status_code
        self.headers = [(name.lower(), value) for name, value in self._response.headers.raw]
        # A test transport may give an answer that is read already: that can't be had raw any more.
        read = self._response.is_stream_consumed
        self._pieces = self._response.aiter_bytes() if read else self._response.aiter_raw()

    async def _read(self) -> None:
        assert self._pieces is not None
        try:
            self._came.append(await anext(self._pieces))
        except StopAsyncIteration:
            self.done = True

    async def _bounded(self, work: Any, seconds: float) -> None:
        """Do ``work`` in time; what httpx raises becomes a TransferError."""
        if self._ended is not None:
            work.close()
            raise self._ended
        loop = asyncio.get_running_loop()
        task = self._task = loop.create_task(work)
        until = min(loop.time() + seconds, self._deadline)
        try:
            async with asyncio.timeout_at(until):
                await task
        except TimeoutError:
            raise TransferError("timeout", "httpx: timed out", received=self.status > 0) from None
        except asyncio.CancelledError:
            task.cancel()
            if self._ended is not None:
                raise self._ended from None
            raise
        except Exception as error:  # the two packages' exceptions have no common base: told apart by name
            told = _translated(error, self.status > 0)
            if isinstance(told, TransferError) and told.kind in ("connect", "pool"):
                self.sent = False
            raise told from error
        finally:
            self._task = None

    def take(self) -> bytes:
        """See Flight."""
        data = b"".join(self._came)
        self._came.clear()
        return data

    def more(self) -> Awaitable[None] | None:
        """See Flight."""
        return None if self._came or self.done else self._bounded(self._read(), self._timeouts.idle)

    def abort(self, reason: Exception) -> None:
        """See Flight."""
        if self._ended is None:
            self._ended = reason
            if self._task is not None:
                self._task.cancel()

    def close(self) -> None:
        """See Flight."""
        if self._response is not None and not self._response.is_closed:
            closing = asyncio.ensure_future(self._response.aclose())
            _closing.add(closing)
            closing.add_done_callback(_closing.discard)


_closing: set[asyncio.Future[None]] = set()  # a task that nobody holds may be collected before it ran


def _translated(error: Exception, received: bool) -> Exception:
    """httpx's exceptions by name: the two packages have the same names and no common base."""
    names = {base.__name__ for base in type(error).__mro__}
    if "PoolTimeout" in names:
        return TransferError("pool", "httpx: all connections are in use")
    if "ConnectTimeout" in names:
        return TransferError("connect", "httpx: ConnectTimeout")
    if "TimeoutException" in names:
        return TransferError("timeout", f"httpx: {type(error).__name__}", received=received)
    if "ConnectError" in names or "ProxyError" in names or "UnsupportedProtocol" in names:
        return TransferError("connect", f"httpx: {type(error).__name__}")
    if ("RemoteProtocolError" in names and "without sending" in str(error)) or "NetworkError" in names:
        return TransferError("cut", f"httpx: {type(error).__name__}", received=received)
    if "HTTPError" in names or "StreamError" in names or "InvalidURL" in names:
        kind = "cut" if "incomplete" in str(error) or "closed" in str(error) else "protocol"
        return TransferError(kind, f"httpx: {type(error).__name__}", received=received)
    return error

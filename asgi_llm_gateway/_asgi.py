"""ASGI in small pieces: types, header look-up, whole answers, and work that must be finished."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

from .errors import Envelope, GatewayError, Header

# Frameworks disagree on the exact types of scopes and messages; the specification says "dict".
Scope = Any
Message = Any
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

T = TypeVar("T")

JSON: Header = (b"content-type", b"application/json")


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first header of that (lower-case) name. Servers should send lower-case names; not all do."""
    for key, value in scope.get("headers") or ():
        if key == name or (len(key) == len(name) and key.lower() == name):
            return bytes(value)
    return None


class Headers:
    """A request's headers by lower-case name, read in one pass for all layers."""

    __slots__ = ("get", "raw", "repeated")

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self.repeated: dict[bytes, list[bytes]] = {}
        """Every value by name, where a name may stand more than once; else empty."""
        first: dict[bytes, bytes] = dict(raw)
        if len(first) != len(raw) or not b"".join(first).islower():
            for name, value in raw:
                self.repeated.setdefault(name.lower(), []).append(bytes(value))
            first = {name: values[0] for name, values in self.repeated.items()}
        self.get = first.get
        """The first value of a (lower-case) name; a plain dictionary's, for it is asked several times a call."""

    def all(self, name: bytes) -> list[bytes]:
        """Every value of a header that may repeat."""
        if self.repeated:
            return self.repeated.get(name, [])
        value = self.get(name)
        return [] if value is None else [value]


def whole(status: int, body: bytes, headers: Iterable[Header] = ()) -> tuple[Message, Message]:
    """The two messages of an answer of known length."""
    head = [*headers, (b"content-length", b"%d" % len(body))]
    return (
        {"type": "http.response.start", "status": status, "headers": head},
        {"type": "http.response.body", "body": body},
    )


async def send_body(send: Send, status: int, body: bytes, headers: Iterable[Header] = ()) -> None:
    """Answer with a whole body of known length."""
    for message in whole(status, body, headers):
        await send(message)


async def send_error(send: Send, error: GatewayError, envelope: Envelope = "openai") -> None:
    """Answer with an error in the caller's dialect."""
    await send_body(send, error.http_status, error.body(envelope), (JSON, *error.headers))


async def finish(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end, also while the task that asks is being cancelled; then let the cancellation through.

    A cancelled task may not wait for anything, so the work runs in a task of its own. anyio cancels a scope's tasks
    again and again, hence the loop.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.done():
                break
            cancelled = error
        except Exception:  # the work's own failure: result() below raises it
            break
    result = task.result()
    if cancelled is not None:
        raise cancelled
    return result

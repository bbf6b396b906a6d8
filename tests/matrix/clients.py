"""What the three clients have in common: what is asked, what is seen, and one way to use sync and async SDKs alike.

A blocking call blocks only the test's own event loop: the gateway is another process, its providers another thread.
"""

from __future__ import annotations

import inspect
import ssl
import struct
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel

from .model import Called, Counts

TLS = ssl.create_default_context()
"""One for all clients: each would make its own, which takes longer than a test."""

WAYS = ["whole", "stream"]
EVERY_WAY = ["whole", "stream", "async whole", "async stream"]


def _png(width: int) -> bytes:
    """A grey picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = zlib.compress(b"".join(b"\x00" + bytes(range(width)) for _ in range(width)))
    head = struct.pack(">IIBBBBB", width, width, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


PICTURE = _png(48)
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: dict[str, dict[str, Any]] = {
    "weather": PARAMETERS,
    "now": {"type": "object", "properties": {}, "required": [], "additionalProperties": False},
}
"""Tools by name, each with its schema."""


class City(BaseModel):
    """What a structured answer is parsed to."""

    name: str
    people: int
    coastal: bool


@dataclass
class Ask:
    """What is asked, in no dialect.

    Attributes:
        words: The prompt: a command for the model behind the providers.
        system: Instructions.
        image: A picture beside the words.
        tools: Whether there are tools.
        thinks: Whether the model shall think.
        limit: Output tokens at most; Anthropic's clients must name one.
        model: The name that the gateway knows.
    """

    words: str
    model: str
    system: str = ""
    image: bytes | None = None
    tools: bool = False
    thinks: bool = False
    limit: int | None = None


@dataclass
class Seen:
    """What the SDK made of an answer.

    Attributes:
        text: The text.
        end: Why it ended, in the model's words.
        counts: The tokens that it was told.
        calls: Calls of tools.
        thoughts: What was thought, as far as it is told.
        refusal: The words of a refusal.
        cost: In USD, where it is told.
        trace: ``x-trace-id``, of a whole answer.
        raw: The SDK's own object, which goes on the conversation.
    """

    text: str
    end: str
    counts: Counts | None
    calls: list[Called] = field(default_factory=list)
    thoughts: str = ""
    refusal: str = ""
    cost: float | None = None
    trace: str = ""
    raw: Any = None


class Client(Protocol):
    """An SDK and its dialect.

    Attributes:
        sdk: The module, in which its errors are.
        tells_thoughts: Providers whose thoughts reach this client.
        hands_over_errors: Providers whose own error events its SDK does not raise, but hands over like any other.
        cannot_move_to: Providers that refuse another's thoughts, which stand in the SDK's own objects.
        replays_thoughts: Providers that get their own thoughts back from it with a call's result.
    """

    sdk: ClassVar[Any]
    tells_thoughts: ClassVar[frozenset[str]]
    replays_thoughts: ClassVar[frozenset[str]]
    hands_over_errors: ClassVar[frozenset[str]]
    cannot_move_to: ClassVar[frozenset[str]]

    def open(self, url: str, key: str, *, sync: bool, max_retries: int = 0, strict: bool = True) -> Any:
        """The SDK's client, as its users make it; ``strict``: it validates what it gets by its types."""
        ...

    def fields(self, ask: Ask) -> dict[str, Any]:
        """A request as the SDK takes it."""
        ...

    def goes_on(self, fields: dict[str, Any], seen: Seen, results: dict[str, str]) -> dict[str, Any]:
        """The request after an answer's calls: the SDK's own objects, and what the tools said, by the calls' ids."""
        ...

    async def whole(self, client: Any, fields: dict[str, Any]) -> Seen:
        """A JSON answer."""
        ...

    async def stream(self, client: Any, fields: dict[str, Any], first: Callable[[], Any] | None = None) -> Seen:
        """A stream, put together by the SDK's helper; ``first`` is called after its first event."""
        ...

    def put_together(self, events: list[Any]) -> Seen:
        """A plain stream's events as an answer: for what the SDK's helper has no result for."""
        ...

    async def begun(self, client: Any, fields: dict[str, Any]) -> Any:
        """The SDK's plain stream of events."""
        ...

    def piece(self, event: Any) -> str:
        """The text in an event of a plain stream; empty for one that has none."""
        ...

    def cost(self, event: Any) -> float | None:
        """What an event of a plain stream says that the call cost."""
        ...

    async def parsed(self, client: Any, fields: dict[str, Any], *, stream: bool) -> Any:
        """A structured answer, as an instance of ``City``."""
        ...


async def now(value: Any) -> Any:
    """The value, waited for if need be."""
    return await value if inspect.isawaitable(value) else value


async def everything(events: Any, first: Callable[[], Any] | None = None) -> list[Any]:
    """All events of a stream; ``first`` is called when there is one."""
    found: list[Any] = []
    async for event in _one_by_one(events):
        found.append(event)
        if first is not None and len(found) == 1:
            first()
    return found


async def _one_by_one(events: Any) -> AsyncIterator[Any]:
    if hasattr(events, "__aiter__"):
        async for event in events:
            yield event
    else:
        for event in events:
            yield event


@asynccontextmanager
async def entered(manager: Any) -> AsyncIterator[Any]:
    """``async with`` for managers of both kinds."""
    if hasattr(manager, "__aenter__"):
        async with manager as value:
            yield value
    else:
        with manager as value:
            yield value

"""An exchange on its own, and what stands on either side of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

from asgi_llm_gateway._asgi import Message, Receive, Scope, Send
from asgi_llm_gateway.calls import Call
from asgi_llm_gateway.errors import BudgetError
from asgi_llm_gateway.exchange import Exchange
from asgi_llm_gateway.records import Target
from asgi_llm_gateway.wire import METERED, Route

from .conversation import CHAT, JSON, scope_of

ROUTE = Route("metered", METERED["/v1/chat/completions"], "/v1/chat/completions")
TARGET = Target("echo", "echo")
RAW = json.dumps(CHAT).encode()


async def nobody(scope: Scope, receive: Receive, send: Send) -> None:
    """An entry that is never called."""
    raise AssertionError("called")


class Line:
    """A client's side: gives the body in pieces, then the disconnect; counts how often it was asked."""

    def __init__(self, pieces: Iterable[bytes], *, gone_after: int | None = None) -> None:
        self.pieces = list(pieces)
        self.asked = 0
        self._gone_after = gone_after

    async def receive(self) -> Message:
        """See ASGI."""
        self.asked += 1
        if (self._gone_after is not None and self.asked > self._gone_after) or self.asked > len(self.pieces):
            return {"type": "http.disconnect"}
        return {
            "type": "http.request",
            "body": self.pieces[self.asked - 1],
            "more_body": self.asked < len(self.pieces),
        }


def exchange_for(route: Route = ROUTE, *, max_body: int = 2**20) -> Exchange:
    """An exchange on its own."""
    return Exchange(nobody, route, scope_of(), max_body=max_body)


async def read(
    body: bytes = RAW, *, cut: int = 0, headers: Any = (JSON,), max_body: int = 2**20
) -> tuple[Exchange, Receive]:
    """An exchange whose body was read, and the ``receive`` for those further in."""
    exchange = exchange_for(max_body=max_body)
    pieces = [body[at : at + cut] for at in range(0, len(body), cut)] if cut else [body]
    return exchange, await exchange.read(Line(pieces or [b""]).receive, scope_of(headers=headers))


class Sent:
    """What went out to the client."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def send(self, message: Message) -> None:
        """See ASGI."""
        self.messages.append(message)


class Watchman:
    """A guard that notes who came, and says no to some."""

    def __init__(self, refuse: str = "") -> None:
        self.seen: list[str] = []
        self._refuse = refuse

    async def begin(self, call: Call) -> None:
        """See Guard."""
        self.seen.append(call.target.model)
        await asyncio.sleep(0)
        if call.target.model == self._refuse:
            raise BudgetError("no money")

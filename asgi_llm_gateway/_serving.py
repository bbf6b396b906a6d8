"""Which request an app that is not ours is serving just now: the one use of a context variable."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

from ._asgi import ASGIApp, Receive, Scope, Send
from ._recovery import theirs
from .calls import Guard
from .exchange import Exchange


class Serving:
    """An exchange in the hands of a handler, as the calls that it makes find it.

    Attributes:
        exchange: The exchange.
        guards: Who was asked before upstream calls when the handler was called; they outlive the exchange.
        loop: The event loop that the handler is served in, and the guards with it.
        over: The handler has returned; what finds this now outlives the request.
    """

    __slots__ = ("exchange", "guards", "loop", "over")

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.guards: tuple[Guard, ...] = exchange.guards
        self.loop = asyncio.get_running_loop()
        self.over = False


_serving: ContextVar[Serving | None] = ContextVar("asgi_llm_gateway.serving", default=None)


def serving() -> Serving | None:
    """What is being served in this context: tasks and threads that a handler starts have a copy of its own."""
    return _serving.get()


def current_exchange() -> Exchange | None:
    """The exchange of the request being served; in a task that outlives the request it is the one that is done."""
    served = _serving.get()
    return None if served is None else served.exchange


async def serve(app: ASGIApp, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
    """Call ``app``; whatever it calls finds the exchange."""
    served = Serving(exchange)
    token = _serving.set(served)
    try:
        await app(scope, receive, send)
    except Exception as error:  # only marked as theirs, and raised on
        theirs(error)
        raise
    finally:
        served.over = True
        _serving.reset(token)


__all__ = ["Serving", "current_exchange", "serve", "serving"]

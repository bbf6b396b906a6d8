"""``POST /v1/messages/count_tokens``: how long a prompt is, which costs nothing.

Source: Anthropic API reference, "Count tokens in a Message", 2023-06-01.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import orjson

from .._asgi import JSON, Receive, Scope, Send, send_body
from .._hangup import Patience
from .._vocabulary import Counter, counter_of
from ..adapters._native_messages import CountsTokens, counted
from ..adapters.base import Adapter, UpstreamRequest
from ..allowed import may_use
from ..errors import Forbidden, GatewayError, Header, NotFound, UpstreamError
from ..exchange import ClientGone, Exchange
from ..records import Target, Usage
from ..tokens import estimate
from ..wire import LLMRequest, Route
from .clients import Client
from .routing import Router
from .transfer import TransferError

log = logging.getLogger("asgi_llm_gateway")

PATH = "/v1/messages/count_tokens"
_ROUTE = Route("authenticated", "messages", PATH)
_COUNTED_HERE = 16 * 1024  # bytes of a body whose text is counted in the event loop; a longer one is in a thread
_MESSAGE_TOKENS = 8
_TOOL_TOKENS = 16


async def count_tokens(
    exchange: Exchange,
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    router: Router,
    client: Client,
    patience: Patience,
    hops: tuple[Header, ...] = (),
) -> None:
    """Answer ``{"input_tokens": n}``, and in ``x-llm-token-count`` who counted: the ``provider``, or an ``estimate``.

    A provider that counts is asked, one target after the other; where none answers, the failure is the answer. For a model
    whose first target does not count, the gateway estimates: by the vocabulary
    of one of OpenAI's models where it is loaded, else by the length.

    Args:
        exchange: The call; its body has not been read.
        scope: The ASGI scope.
        receive: The ASGI receive.
        send: The ASGI send.
        router: Where models are.
        client: Who carries calls to providers in this event loop.
        patience: Who learns there that clients hang up.
        hops: The headers that tell of the gateways that the request has been through.

    Raises BadRequest, TooLarge, NotFound (a model that is not there or not the caller's), what the provider refuses,
    ClientGone.
    """
    # The path is not one of the metered ones, whose body the exchange reads: it is read here by the same rules.
    reading = Exchange(exchange.entry, _ROUTE, scope, max_body=exchange.max_body)
    receive = reading.truth(await reading.read(receive, scope))
    request = reading.request
    assert request is not None
    if request.tenant not in (None, exchange.identity.tenant.id):
        raise Forbidden("The tenant does not exist, or this key may not act for it. Name it in 'x-tenant-id'.",
                        code="tenant_not_found")  # fmt: skip
    if not may_use(exchange.identity, request.model):
        raise NotFound(f"The model '{request.model}' does not exist or you do not have access to it.",
                       code="model_not_found", param="model")  # fmt: skip
    failed: GatewayError | None = None
    tokens: int | None = None
    for place in router.way(request.model).order(exchange.identity):
        target, adapter = place.target, place.adapter
        sent = adapter.count_request(request, target.model) if isinstance(adapter, CountsTokens) else None
        if sent is None:
            if failed is None:
                break
            continue  # who counts goes before who does not
        call = await exchange.begin_call(target, request, sent.endpoint.url)
        try:
            tokens = counted(
                adapter.name, await _ask(sent, target, adapter, client, patience, receive, hops + call.headers)
            )
            call.status = 200
            break
        except GatewayError as error:
            call.error = error.error_code
            if error.http_status < 500 and error.http_status != 429:  # the request's own fault, everywhere
                raise
            failed = failed or error
        finally:
            call.end(Usage())
    by = b"provider"
    if tokens is None:
        if failed is not None:
            raise failed
        tokens, by = await _estimated(request, target.model), b"estimate"
    await send_body(send, 200, orjson.dumps({"input_tokens": tokens}), (JSON, (b"x-llm-token-count", by)))


async def _ask(
    sent: UpstreamRequest,
    target: Target,
    adapter: Adapter,
    client: Client,
    patience: Patience,
    receive: Receive,
    hops: tuple[Header, ...],
) -> bytes:
    """The provider's answer. Raises GatewayError, ClientGone."""
    flight = client.open(sent, hops + sent.headers)
    patience.watch(flight, receive, lambda: flight.abort(ClientGone()))
    try:
        await flight.start()
        body = flight.take()
        if flight.status != 200:
            log.warning("%s answered %d to a count of tokens", adapter.name, flight.status)
            raise adapter.error(flight.status if flight.status >= 400 else 502, flight.headers, body)
        if not flight.done:
            raise UpstreamError(f"The provider '{target.provider}' sent no count of tokens.")
        return body
    except TransferError as error:
        log.warning("%s: %s", adapter.name, error)
        raise error.as_answer(adapter.name) from error
    finally:
        patience.stop(flight)
        flight.close()


async def _estimated(request: LLMRequest, model: str) -> int:
    counter = counter_of(model)
    if counter is None:
        return estimated(request, model)
    if len(request.raw) <= _COUNTED_HERE:
        return estimated(request, model, counter)
    return await asyncio.to_thread(estimated, request, model, counter)


def estimated(request: LLMRequest, model: str, counter: Counter | None = None) -> int:
    """About so many prompt tokens, at least one. Blocks for some 0.1 ms per 1,000 tokens where a ``counter`` is given.

    With a counter: the tokens of all texts, 8 a message and 16 a tool. Without one, or with an image or a file in it: a
    token for four bytes, and images by their model's rule.
    """
    if counter is not None:
        pieces = list(_pieces(request.data))
        if None not in pieces:
            tools = request.data.get("tools")
            around = _MESSAGE_TOKENS * (len(request.data["messages"]) + 1)
            around += _TOOL_TOKENS * len(tools) if type(tools) is list else 0
            return around + sum(counter(piece) for piece in pieces if piece)
    return max(1, estimate(request, model=model).prompt)


def _pieces(data: dict[str, Any]) -> Iterator[str | None]:
    """The texts of a request; ``None`` for what is none."""
    yield from _texts(data.get("system"))
    for message in data["messages"]:
        yield from _texts(message.get("content"))
    tools = data.get("tools")
    for tool in tools if type(tools) is list else ():
        yield _json(tool)


def _texts(content: Any) -> Iterator[str | None]:
    if type(content) is str:
        yield content
    for block in content if type(content) is list else ():
        match block:
            case {"type": "text", "text": str(text)}:
                yield text
            case {"type": "thinking", "thinking": str(text)}:
                yield text
            case {"type": "tool_use", "name": str(name)}:
                yield name
                yield _json(block.get("input"))
            case {"type": "tool_result"}:
                yield from _texts(block.get("content"))
            case _:
                yield None


def _json(value: Any) -> str | None:
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:  # it reads deeper than it writes
        return None


__all__ = ["PATH", "count_tokens", "estimated"]

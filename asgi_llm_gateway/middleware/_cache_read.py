"""How the readers of a flight get its answer: the one who pays as it came, others in their own form."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from .._asgi import Receive, Send, finish
from .._hangup import Patience
from .._sse import EventTooLong
from ..caching.replay import Told, UsageFilter, told_again
from ..errors import GatewayError, Header, UpstreamError
from ..exchange import ClientGone, Exchange
from ..records import Usage
from ._cache_flight import Flight, Lost, Reader

FREE: Header = (b"x-llm-cost-usd", b"0.0")
"""What an answer cost that was paid for by another call."""

_OWN_AFFAIR = frozenset({401, 402, 403, 429})
"""Refusals that may be of one key and not of another."""


class Alone(Exception):
    """This caller can't have the other's answer, and has to ask for itself."""


async def pay(
    flight: Flight, reader: Reader, exchange: Exchange, receive: Receive, send: Send, patience: Patience
) -> None:
    """Give the one who pays the answer as it came, and return when the app has.

    Once the client has hung up, the call goes on for those who read along, and this returns when it is over: what it used is
    known then.
    """
    patience.watch(reader, exchange.waiting(receive), reader.leave)
    try:
        try:
            await _as_it_came(flight, reader, exchange, send)
        finally:
            patience.stop(reader)
            flight.leave(reader)
        await flight.ended()
    except ClientGone:
        exchange.gone = True
        await _last_words(flight)
    except BaseException:  # the client has left, or the task is cancelled
        if flight.alone and not flight.over:  # cancelled, like the call: it is paid for all the same
            await finish(_last_words(flight))
        raise
    finally:
        flight.inner.mirror(exchange)


async def _last_words(flight: Flight) -> None:
    with suppress(Exception):  # nobody is there to be told; the app's own layers have noted it
        await flight.ended()


async def _as_it_came(flight: Flight, reader: Reader, exchange: Exchange, send: Send) -> None:
    inner = flight.inner
    while flight.start is None:
        if flight.over:
            return  # whatever it raised is raised to the server
        await reader.news()
    start = flight.start
    inner.mirror(exchange)
    if flight.complete:
        await _settled(exchange, inner)
        pieces = reader.take()
        if start["status"] not in (204, 304) and all(type(piece) is bytes for piece in pieces):
            head = [one for one in start.get("headers") or () if one[0].lower() != b"content-length"]
            await exchange.answer(send, start["status"], b"".join(pieces), head)
            return
        await send(start)
        await _give(pieces, send)
    else:
        await send(start)
    while True:
        await _give(reader.take(), send, exchange, inner)
        if flight.complete and not (pieces := reader.take()):
            await _settled(exchange, inner)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        if flight.over and not flight.complete:
            return
        await reader.news()


async def _give(pieces: list[Any], send: Send, exchange: Exchange | None = None, inner: Exchange | None = None) -> None:
    """Send what has come; messages of unknown kinds as they are."""
    if exchange is not None and inner is not None and pieces and inner.ended and not exchange.ended:
        await _settled(exchange, inner)  # the stream's last news
    waiting: list[bytes] = []
    for piece in pieces:
        if type(piece) is bytes:
            waiting.append(piece)
            continue
        if waiting:
            await send({"type": "http.response.body", "body": b"".join(waiting), "more_body": True})
            waiting = []
        await send(piece)
    if waiting:
        await send({"type": "http.response.body", "body": b"".join(waiting), "more_body": True})


async def _settled(exchange: Exchange, inner: Any) -> None:
    """The content is complete: those further out do what they have to."""
    inner.mirror(exchange)
    if not exchange.ended:
        await exchange.end()


# -- those who read along ----------------------------------------------------------------------------------------------


async def follow(flight: Flight, exchange: Exchange, receive: Receive, send: Send, patience: Patience) -> None:
    """Give another caller the same answer, live where it is in the form that it asks for. Raises Alone, ClientGone."""
    reader = flight.join()
    patience.watch(reader, exchange.waiting(receive), reader.leave)
    try:
        while flight.start is None:
            if flight.over:
                raise _broken(flight)
            await reader.news()
        start = flight.start
        if not flight.shareable:
            raise Alone
        if start["status"] >= 400:
            await _refused(flight, reader, exchange, send)
            return
        request = exchange.request
        assert request is not None
        free(exchange)
        if flight.stream == request.stream:
            await _live(flight, reader, exchange, send)
            return
        while not flight.judged:
            await reader.news()
        told = told_again(flight.kept, request) if flight.kept is not None else None
        if told is None:
            raise Alone
        _saved(flight, exchange)
        await answer(exchange, send, told, 0)
    except Lost:
        raise Alone from None  # nothing has gone out
    finally:
        patience.stop(reader)
        flight.leave(reader)


def free(exchange: Exchange) -> None:
    """The call uses nothing and costs nothing."""
    exchange.exact = exchange.ends_itself = True
    exchange.usage = Usage()
    exchange.cost = 0
    if exchange.record is not None:
        exchange.record.cost = 0


def unfree(exchange: Exchange) -> None:
    """It asks for itself after all."""
    exchange.exact = exchange.ends_itself = False
    exchange.usage = exchange.cost = None
    if exchange.record is not None:
        exchange.record.cost = exchange.record.saved = None


async def answer(exchange: Exchange, send: Send, told: Told, age: int) -> None:
    """Answer with what is known."""
    exchange.answering = 200
    if exchange.awaited:
        await exchange.end()
    await exchange.answer(send, 200, told.body, (*told.head, (b"age", b"%d" % age), FREE))


def _saved(flight: Flight, exchange: Exchange) -> None:
    if exchange.record is not None:
        exchange.record.saved = flight.inner.cost


async def _refused(flight: Flight, reader: Reader, exchange: Exchange, send: Send) -> None:
    """The same error, unless it may be the other's own affair."""
    assert flight.start is not None
    status = flight.start["status"]
    if status in _OWN_AFFAIR and not flight.inner.calls and exchange.identity != flight.inner.identity:
        raise Alone
    parts: list[bytes] = []
    while True:
        parts += [piece for piece in reader.take() if type(piece) is bytes]
        if flight.complete:
            break
        if flight.over:
            raise _broken(flight)
        await reader.news()
    parts += [piece for piece in reader.take() if type(piece) is bytes]
    free(exchange)
    if exchange.record is not None:
        record = flight.inner.record
        exchange.record.error = (record.error if record is not None else None) or "shared_call_refused"
    if exchange.awaited:
        await exchange.end()
    await exchange.answer(send, status, b"".join(parts), flight.head)


async def _live(flight: Flight, reader: Reader, exchange: Exchange, send: Send) -> None:
    request, other = exchange.request, flight.inner.request
    assert request is not None
    assert other is not None
    chat = request.route.dialect in ("chat", "completions")
    filtered = flight.stream and chat and request.wants_usage != other.wants_usage
    filter = UsageFilter(wanted=request.wants_usage) if filtered else None
    if flight.complete and filter is None:
        pieces = reader.take()
        _saved(flight, exchange)
        await answer(exchange, send, Told(flight.head, b"".join(pieces)), 0)
        return
    head = [*flight.head, (b"age", b"0"), FREE]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    try:
        while True:
            data = b"".join(reader.take())
            if filter is not None and data:
                data = filter.feed(data, flight.inner.usage)
            if data:
                if flight.inner.ended and not exchange.ended:
                    _saved(flight, exchange)
                    await exchange.end()
                await send({"type": "http.response.body", "body": data, "more_body": True})
            elif flight.complete:
                break
            elif flight.over:
                raise Lost
            else:
                await reader.news()
    except (Lost, EventTooLong):
        await _cut(flight, exchange, send)
        return
    _saved(flight, exchange)
    if not exchange.ended:
        await exchange.end()
    rest = filter.rest() if filter is not None else b""
    await send({"type": "http.response.body", "body": rest, "more_body": False})


async def _cut(flight: Flight, exchange: Exchange, send: Send) -> None:
    """The answer had begun, and its rest can't be had."""
    error = (
        _broken(flight)
        if flight.over
        else UpstreamError("The answer went on faster than it was read. Ask again.", code="read_too_slowly")
    )
    if exchange.record is not None:
        exchange.record.error = error.error_code
    if not flight.stream:
        raise error  # all that is left is to break off, which the server does for an exception
    if not exchange.ended:
        await exchange.end()
    await send({"type": "http.response.body", "body": error.event(exchange.route.envelope), "more_body": False})


def _broken(flight: Flight) -> GatewayError:
    if isinstance(flight.failure, GatewayError):
        return UpstreamError(flight.failure.message, status=flight.failure.http_status, code=flight.failure.error_code)
    return UpstreamError(
        "The same call was under way for another caller, and broke off. Ask again.", code="upstream_cut"
    )


__all__ = ["Alone", "answer", "follow", "free", "pay", "unfree"]

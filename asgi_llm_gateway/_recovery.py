"""A fault that nobody foresaw: a 500 in the caller's envelope with the request's id, one log line, and nothing of its words.

An exception's own words may hold anything of the call. The log tells its kind and where it was raised, and the request's id
joins that to the answer. What an app that is not ours raises is the host's: it is answered the same way, and raised on.
"""

from __future__ import annotations

import logging
import random
import traceback
from pathlib import PurePath
from typing import NoReturn

from ._asgi import Send, send_error
from .errors import GatewayError, Header
from .exchange import Exchange

log = logging.getLogger("asgi_llm_gateway")

_FRAMES = 6  # of the innermost, which is where the fault is
_THEIRS = "_asgi_llm_gateway_theirs"
_LOGGED = "_asgi_llm_gateway_logged"


class BrokenOff(Exception):
    """An answer that had begun cannot go on: the server is to cut the connection. Logged already, and without content."""


def theirs(error: BaseException) -> None:
    """Note that an app that is not ours raised it."""
    setattr(error, _THEIRS, True)


async def recover(exchange: Exchange, error: Exception, send: Send, *, entry: bool) -> None:
    """Answer a fault, where nothing was answered yet, and log it once.

    Args:
        exchange: The call.
        error: What was raised.
        send: The ``send`` of the layer that caught it.
        entry: Whether that is the outermost layer.

    Raises:
        BrokenOff: The answer had begun.
        Exception: The error itself, where it is the host app's or the server's own.
    """
    if isinstance(error, BrokenOff) or (isinstance(error, OSError) and exchange.response_started):
        raise error  # the latter: the client has left, and the server says so in its own way
    if hasattr(error, _THEIRS):
        if entry and not exchange.response_started:
            await send_error(send, failure_of(exchange, error), exchange.route.envelope)
        raise error
    failed = failure_of(exchange, error)
    if not exchange.response_started:
        await send_error(send, failed, exchange.route.envelope)
    elif not exchange.complete:
        _break_off(error)


def failure_of(exchange: Exchange, error: Exception) -> GatewayError:
    """What the client is told; a fault of ours is logged, once, and one of the host's app is the host's to log."""
    name = request_id(exchange)
    if not hasattr(error, _THEIRS):
        log_once("a call failed", error, name)
    if exchange.record is not None and exchange.record.error is None:
        exchange.record.error = type(error).__name__
    return _told(exchange, name)


def log_once(what: str, error: Exception, name: str) -> None:
    """One line for a fault, however often it is raised again; ``name`` is the request's id."""
    if not hasattr(error, _LOGGED):
        setattr(error, _LOGGED, True)
        log.error("%s: %s (request %s)", what, where(error), name)


def request_id(exchange: Exchange) -> str:
    """The call's id; one of its own where no TracingMiddleware gave it one."""
    record = exchange.record
    return (record.request_id if record is not None else "") or f"req_{random.getrandbits(128):032x}"


def _told(exchange: Exchange, name: str) -> GatewayError:
    headers: tuple[Header, ...] = ()
    if not any(header[0] == b"x-request-id" for header in exchange.headers):
        headers = ((b"x-request-id", name.encode()),)
    return GatewayError(f"The gateway, or the app behind it, failed. Its log says why, by the request id {name}.",
                        headers=headers)  # fmt: skip


def where(error: BaseException) -> str:
    """The kind of an exception and where it was raised, innermost first; without its words."""
    kinds = [type(error).__name__]
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    while cause is not None and len(kinds) < 4:
        kinds.append(type(cause).__name__)
        cause = cause.__cause__
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    places = [f"{'/'.join(PurePath(one.filename).parts[-2:])}:{one.lineno} {one.name}" for one in reversed(frames)]
    return f"{' from '.join(kinds)} at {' < '.join(places)}"


def _break_off(error: Exception) -> NoReturn:
    raise BrokenOff(f"{type(error).__name__} after the answer had begun; it was logged") from None


__all__ = ["BrokenOff", "failure_of", "log_once", "recover", "request_id", "theirs", "where"]

"""The end of a process: no new calls, a time for those that run, and an end in band for those that take longer.

``Drain`` is the state of one event loop, ``Life`` what a lifespan does with it, ``signals`` hears SIGTERM and SIGINT before
the server does. All of it is off the hot path: a call is put into a dictionary and taken out again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from ._asgi import Receive
from ._perloop import PerLoop
from ._stepping import server_of
from .errors import Header, Unavailable
from .signals import SIGNALS, Told

log = logging.getLogger("asgi_llm_gateway")

LINGER = 2.0
"""Seconds that a call has for its end in band, before its connection is cut: a client that does not read gets no more."""

Phase = Literal["starting", "serving", "draining"]


class ShuttingDown(Unavailable):
    """The process ends: another one will answer, in a moment."""

    code = "shutting_down"

    def __init__(self, *, close: bool = False) -> None:
        # "connection" is a field of HTTP/1 only. Source: RFC 9113, 8.2.2.
        headers: tuple[Header, ...] = ((b"retry-after", b"1"),)
        super().__init__(
            "The gateway is shutting down. Send the call again: another process answers it.",
            headers=(*headers, (b"connection", b"close")) if close else headers,
        )


class Times(NamedTuple):
    """Seconds: ``delay`` in which calls are still taken after the signal, ``grace`` for those that run then."""

    delay: float = 0.0
    grace: float = 30.0


class Drain:
    """Calls of one event loop, and whether it takes more.

    Attributes:
        calls: The exchanges of running calls, with the ``receive`` that their outermost layer was given: host apps seldom
            put something else in its place, as they do with ``send``.
        phase: What ``/ready`` says.
        refusing: New calls are refused.
        lingering: Tasks that give sessions without a connection of the server's (WebRTC) their time; none lasts longer than
            calls may.
    """

    __slots__ = ("_ended", "_timers", "_when_ended", "_when_refusing", "calls", "lingering", "phase", "refusing")

    def __init__(self) -> None:
        self.calls: dict[Any, Receive] = {}
        self.phase: Phase = "serving"
        self.refusing = False
        self.lingering: set[asyncio.Task[None]] = set()
        self._when_refusing: list[Callable[[], None]] = []
        self._when_ended: list[Callable[[], None]] = []
        self._ended = False
        self._timers: list[asyncio.TimerHandle] = []

    def when_refusing(self, work: Callable[[], None]) -> None:
        """Call ``work`` in the event loop once no more calls are taken: long-lived sessions are told to end."""
        self._when_refusing.append(work)

    def when_ended(self, work: Callable[[], None]) -> None:
        """Call ``work`` in the event loop once running calls have had their time: they are to end now, in band."""
        self._when_ended.append(work)

    def begin(self, times: Times) -> None:
        """The process was told to end. Safe to repeat."""
        self.phase = "draining"
        if self._timers or self._ended:
            return
        log.info("shutting down: %d calls are running", len(self.calls))
        later = asyncio.get_running_loop().call_later
        if times.delay:
            self._timers.append(later(times.delay, self.refuse))
        else:
            self.refuse()
        self._timers.append(later(times.delay + times.grace, self.end))

    def refuse(self) -> None:
        """Take no more calls. Safe to repeat."""
        self.phase = "draining"
        if not self.refusing:
            self.refusing = True
            _tell(self._when_refusing)

    def end(self) -> None:
        """End the calls that still run, in band; soon their connections are cut. Safe to repeat."""
        self.refuse()
        if self._ended:
            return
        self._ended = True
        if self.calls:
            log.warning("shutting down: %d calls had not ended in their time and are ended", len(self.calls))
        _tell(self._when_ended)
        self._timers.append(asyncio.get_running_loop().call_later(LINGER, self._cut))

    def _cut(self) -> None:
        """Cut the connections of calls that have not ended: whoever does not read would keep the process for ever."""
        for receive in list(self.calls.values()):
            server = server_of(receive)
            if server is not None:
                server.transport.abort()

    async def finish(self) -> None:
        """End what still runs, and return when it has ended; after three seconds in any case."""
        if self.lingering and not self._ended:  # the server sees no connection of theirs, and did not wait for them
            await asyncio.wait(self.lingering)
        self.end()
        until = time.monotonic() + LINGER + 1.0
        while self.calls and time.monotonic() < until:  # noqa: ASYNC110 - an event would cost every call something
            await asyncio.sleep(0.01)
        for timer in self._timers:
            timer.cancel()
        if self.calls:
            log.error("%d calls did not end and are left to the server", len(self.calls))


def _tell(works: list[Callable[[], None]]) -> None:
    for work in works:
        try:
            work()
        except Exception:  # one that fails must not keep the others from their end
            log.exception("a part could not be told of the shutdown")


_loops: PerLoop[Drain] = PerLoop()


def drain() -> Drain:
    """The running event loop's own."""
    return _loops.get() or _loops.put(Drain())


class Life:
    """From the start of a lifespan to its end. Several in one event loop share its Drain, and the first to end ends it.

    Args:
        whole: The server serves nothing but this app: it is kept from waiting for ever for clients that do not read.
        signals: Whether SIGTERM and SIGINT are heard; ``None`` takes SHUTDOWN_SIGNALS.
    """

    def __init__(self, *, whole: bool = False, signals: bool | None = None) -> None:
        self._whole = whole
        self._wanted = signals
        self._drain = drain()
        if self._drain.phase == "serving":
            self._drain.phase = "starting"
        self._told: Told | None = None

    def started(self) -> None:
        """All is open: signals are heard from now on (the server has set its own handlers), and ``/ready`` may say yes."""
        times, wanted = _settings()
        if self._wanted is None:
            self._wanted = wanted
        here = self._drain
        if here.phase == "starting":
            here.phase = "serving"
        if self._wanted:

            def begin(server: Any) -> None:
                here.begin(_within(times, server, whole=self._whole))

            self._told = Told(at_once=lambda: _mark(here), begin=begin, again=here.end, delay=times.delay)
            SIGNALS.add(self._told)

    async def end(self) -> None:
        """Refuse new calls and end those that run; then everything may be closed. A later call begins a life of its own."""
        try:
            await self._drain.finish()
        finally:
            if self._told is not None:
                SIGNALS.remove(self._told)
            if _loops.get() is self._drain:
                _loops.pop()


def _mark(here: Drain) -> None:
    here.phase = "draining"


def _settings() -> tuple[Times, bool]:
    from .settings import SettingsError, current

    try:
        settings = current()
    except SettingsError as error:  # told where settings are needed; a host app's start must not fail for it
        log.error("a setting is wrong: %s", error)
        return Times(), True
    return Times(settings.shutdown_delay_seconds, settings.shutdown_grace_seconds), settings.shutdown_signals


def _within(times: Times, server: Any, *, whole: bool) -> Times:
    """The times that the server leaves. uvicorn cancels what runs after its own time-out, if it has one."""
    config: Any = getattr(server, "config", None)
    if type(server).__module__ != "uvicorn.server" or not hasattr(config, "timeout_graceful_shutdown"):
        return times
    limit = config.timeout_graceful_shutdown
    if limit is None:
        if whole:  # it would wait for ever for a client that neither reads nor leaves
            config.timeout_graceful_shutdown = times.grace + LINGER + 1.0
        return times
    return times._replace(grace=max(0.0, min(times.grace, limit - 1.0)))


__all__ = ["LINGER", "Drain", "Life", "ShuttingDown", "Times", "drain"]

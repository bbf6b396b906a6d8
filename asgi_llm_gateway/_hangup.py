"""Learning that the client hung up while somebody else is being waited for.

ASGI tells it only to those who await ``receive()``. A task for that costs more than all else that the relay does, so
where the server is known to allow it, the coroutine of ``receive()`` is stepped by hand until it waits, and looked at
again when it is woken. Anywhere else a task does it.

Most JSON answers come before anybody could hang up, so for them the watch begins a moment later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

from ._asgi import Receive
from ._stepping import steppable


class Hangup:
    """Calls ``gone`` once when the client has left; ``stop`` ends the watch.

    Args:
        receive: The server's, after the body was read.
        gone: What to do; called in the event loop.
    """

    __slots__ = ("_gone", "_receive", "_step", "_task", "_waiting")

    def __init__(self, receive: Receive, gone: Callable[[], None]) -> None:
        self._receive = receive
        self._gone = gone
        self._step: Coroutine[Any, Any, Any] | None = None
        self._waiting: asyncio.Future[Any] | None = None
        self._task: asyncio.Task[None] | None = None
        if steppable(receive):
            self._begin()
        else:
            self._task = asyncio.get_running_loop().create_task(self._ask())

    def _begin(self) -> None:
        self._step = cast("Coroutine[Any, Any, Any]", self._receive())
        self._look(None)

    def _look(self, woken: asyncio.Future[Any] | None) -> None:
        """Run ``receive()`` until it waits again, or says what came."""
        step = self._step
        if step is None:
            return
        try:
            waiting = step.send(None)
        except StopIteration as said:
            self._step = self._waiting = None
            if said.value["type"] == "http.disconnect":
                self._gone()
            else:  # a stray piece of body: the disconnect comes after it
                self._begin()
            return
        except Exception:  # the server's own fault is its to tell, when something is sent
            self._step = self._waiting = None
            return
        # What a Task does when a coroutine yields a future to it.
        waiting._asyncio_future_blocking = False
        self._waiting = waiting
        waiting.add_done_callback(self._look)

    async def _ask(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                break
        self._gone()

    def stop(self) -> None:
        """The call is over."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        step, self._step = self._step, None
        if self._waiting is not None:
            self._waiting.remove_done_callback(self._look)
            self._waiting = None
        if step is not None:
            step.close()


class Patience:
    """Starts a Hangup for those calls of one event loop that are still under way at the next tick.

    A hang-up is noticed at most one tick late; a call that is over before costs nothing.

    Args:
        loop: The event loop.
        tick: Seconds.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, tick: float = 0.02) -> None:
        self._loop = loop
        self._tick = tick
        self._waiting: dict[object, tuple[Receive, Callable[[], None]]] = {}
        self._watched: dict[object, Hangup] = {}
        self._running = False

    def watch(self, call: object, receive: Receive, gone: Callable[[], None]) -> None:
        """Watch for ``call`` from the next tick on."""
        self._waiting[call] = receive, gone
        if not self._running:
            self._running = True
            self._loop.call_later(self._tick, self._look)

    def stop(self, call: object) -> None:
        """The call is over."""
        if self._waiting.pop(call, None) is None:
            hangup = self._watched.pop(call, None)
            if hangup is not None:
                hangup.stop()

    def _look(self) -> None:
        waiting, self._waiting = self._waiting, {}
        self._running = False
        for call, (receive, gone) in waiting.items():
            self._watched[call] = Hangup(receive, gone)

"""``/ready``: whether this process should be sent calls. What each probe costs is a look at what is known.

The parts are looked at in the background, each by one look at a time that is bounded, however many probes come and however
slow a part is. A part that fails is let be for a while, so that a store's blip does not pull every replica at once; one that
has never answered since the start is not.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import orjson

from .._closing import on_close
from .._perloop import PerLoop
from ..draining import drain
from ..errors import StoreError
from ..logs import hidden, plain

log = logging.getLogger("asgi_llm_gateway")

Status = Literal["ready", "not_ready", "draining"]

_WAIT = 0.5
"""Seconds that a probe waits for a look under way. Kubernetes gives a probe one second, if nothing else is said."""


class Part(NamedTuple):
    """Something that calls depend on.

    Attributes:
        name: What it is called in the answer and in READY_CHECKS.
        check: Looks at it; raises where it does not answer. It costs next to nothing, and no money.
        fails: What happens to calls while it is away: ``closed`` (503), ``open`` (they pass), ``local`` (each process
            decides by itself).
        counts: Whether the process is not ready without it.
    """

    name: str
    check: Callable[[], Awaitable[None]]
    fails: Literal["closed", "open", "local"]
    counts: bool


class Down(Exception):
    """A part was reached and is not as it should be; its words are for the admins, and hold no secret."""


class _Seen:
    """What is known of one part in one event loop."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.good: bool | None = None
        self.ever = False
        self.since = time.time()
        self.at = time.monotonic()
        self.error: str | None = None
        self.task: asyncio.Task[None] | None = None

    async def look(self) -> None:
        try:
            await self.part.check()
        except Exception as error:  # whatever it is: it is not there
            self.tell(_words(error))
        else:
            self.tell(None)

    def tell(self, error: str | None) -> None:
        """It answers, or it does not and this is why."""
        good = error is None
        if good is not self.good:
            if not good:
                log.warning("%s does not answer: %s", self.part.name, error)
            elif self.good is False:
                log.warning("%s answers again", self.part.name)
            self.good, self.since, self.at = good, time.time(), time.monotonic()
        self.ever = self.ever or good
        self.error = error

    def down(self, grace: float) -> bool:
        """Whether it is away for good: for longer than the grace, or since the start."""
        return not self.good and (not self.ever or time.monotonic() - self.at >= grace)


class _Known:
    """What is known of all parts in one event loop."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = [_Seen(part) for part in parts]
        self.at = float("-inf")
        self.round: asyncio.Task[None] | None = None

    async def close(self) -> None:
        tasks = [one.task for one in self.parts if one.task is not None] + ([self.round] if self.round else [])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Readiness:
    """Looks at the parts when somebody asks, and keeps what it found for a while.

    Args:
        parts: What to look at.
        grace: Seconds that a part may be away before the process is not ready.
        interval: Seconds for which what was found is good.
        timeout: Seconds after which a part that says nothing does not answer.
    """

    def __init__(
        self, parts: Sequence[Part], *, grace: float = 10.0, interval: float = 2.0, timeout: float = 2.0
    ) -> None:
        self._parts = tuple(parts)
        self._grace = grace
        self._interval = interval
        self._timeout = timeout
        self._loops: PerLoop[_Known] = PerLoop()

    async def status(self) -> Status:
        """Whether calls should come here."""
        known = self._loops.get() or self._open()
        if time.monotonic() - known.at >= self._interval and (known.round is None or known.round.done()):
            known.round = asyncio.get_running_loop().create_task(self._look(known))
        if known.round is not None and not known.round.done():
            await asyncio.wait({known.round}, timeout=_WAIT)
        phase = drain().phase
        if phase == "draining":
            return "draining"
        if phase == "starting" or any(one.part.counts and one.down(self._grace) for one in known.parts):
            return "not_ready"
        return "ready"

    def details(self) -> list[dict[str, Any]]:
        """Each part, for those who may know."""
        known = self._loops.get()
        return [self._shown(one) for one in known.parts] if known is not None else []

    def _shown(self, one: _Seen) -> dict[str, Any]:
        state = "unknown" if one.good is None else "ok" if one.good else "down" if one.down(self._grace) else "failing"
        return {
            "name": one.part.name,
            "state": state,
            "fails": one.part.fails,
            "counts": one.part.counts,
            "since": datetime.fromtimestamp(one.since, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "error": one.error,
        }

    def _open(self) -> _Known:
        known = self._loops.put(_Known(self._parts))

        async def close() -> None:
            self._loops.pop()
            await known.close()

        on_close(close)
        return known

    async def _look(self, known: _Known) -> None:
        loop = asyncio.get_running_loop()
        for one in known.parts:
            if one.task is None or one.task.done():  # else it is stuck, and not asked a second time meanwhile
                one.task = loop.create_task(one.look())
        tasks = [one.task for one in known.parts if one.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=self._timeout)
        for one in known.parts:
            if one.task is not None and not one.task.done():
                one.tell(f"it did not answer within {self._timeout:g} s")
        known.at = time.monotonic()


def answer(status: Status, parts: Sequence[dict[str, Any]] | None) -> tuple[bytes, int]:
    """What ``/ready`` answers, and its HTTP status: 200 where calls may come, else 503; the parts for those who may know."""
    body: dict[str, Any] = {"status": status}
    if parts is not None:
        body["parts"] = parts
    return orjson.dumps(body), 200 if status == "ready" else 503


def _words(error: Exception) -> str:
    """Why, without a secret: a driver's own words may hold a URL, and that a password."""
    if isinstance(error, (StoreError, Down)):
        return plain(hidden(str(error)))
    if isinstance(error, OSError) and error.strerror:
        return plain(error.strerror)
    return type(error).__name__


__all__ = ["Down", "Part", "Readiness", "Status", "answer"]

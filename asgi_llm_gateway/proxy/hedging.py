"""A rival for a slow call: whichever has a first event first is relayed, the other is cancelled and paid for."""

from __future__ import annotations

import asyncio
from typing import Protocol

from ..errors import GatewayError
from ..exchange import ClientGone
from ..prices import PriceTable, ceiling_of
from ..tokens import estimate
from ..units import applied, applies, ceiling
from ..wire import MEDIA, LLMRequest
from .attempt import Attempt
from .failures import Failed
from .ways import Hedge, Place

_OUTPUT = 4096  # tokens that a rival may make, for its cost, where the request sets no limit


class Course(Protocol):
    """The call that a rival is opened for (Relay)."""

    async def open(self, place: Place) -> Attempt:
        """An attempt at a place. Raises Failed, GatewayError."""
        ...

    def lost(self, attempt: Attempt, failed: Failed) -> None:
        """An attempt came to nothing."""
        ...

    def outrun(self, attempt: Attempt) -> None:
        """Another attempt was faster: this one is closed."""
        ...

    def close(self, attempt: Attempt) -> None:
        """An attempt is not wanted any more. Safe to repeat."""
        ...


async def hedged(
    course: Course,
    first: Attempt,
    rivals: list[Place],
    request: LLMRequest,
    hedge: Hedge,
    prices: PriceTable,
    wait: float,
) -> tuple[Attempt, Failed | None]:
    """Begin an attempt, and after ``hedge.after`` seconds a second one beside it, at the first of ``rivals`` that may be asked.

    Returns the attempt that counts and why it failed, if none succeeded; every other one is closed by then. ``wait`` is
    Attempt.begin's. Raises ClientGone.
    """
    loop = asyncio.get_running_loop()
    running = {loop.create_task(first.begin(wait)): first}
    won = False
    try:
        await asyncio.wait(running, timeout=hedge.after)
        if not any(task.done() for task in running):
            second = await _rival(course, rivals, request, hedge, prices)
            if second is not None:
                running[loop.create_task(second.begin(wait))] = second
        found = await _fastest(course, running)
        won = True
        return found
    finally:
        for task, attempt in running.items():  # the loser; or all, where the client left
            attempt.flight.abort(ClientGone())
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if won:
                course.outrun(attempt)
            else:
                course.close(attempt)


async def _fastest(course: Course, running: dict[asyncio.Task[None], Attempt]) -> tuple[Attempt, Failed | None]:
    """The first that has begun, taken out of ``running``; the losers stay there."""
    while True:
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        task = next(iter(done))
        try:
            task.result()
        except Failed as failed:
            attempt = running.pop(task)
            if not running:
                return attempt, failed
            course.lost(attempt, failed)
            continue
        return running.pop(task), None


async def _rival(
    course: Course, rivals: list[Place], request: LLMRequest, hedge: Hedge, prices: PriceTable
) -> Attempt | None:
    """A second attempt, where it may be made and does not cost too much."""
    for place in rivals:
        if place.health.tripped or not _affordable(place, request, hedge, prices):
            continue
        try:
            rival = await course.open(place)
        except (Failed, GatewayError):  # it cannot do it, or the money does not suffice for two: its turn may come yet
            return None
        rivals.remove(place)
        return rival
    return None


def _affordable(place: Place, request: LLMRequest, hedge: Hedge, prices: PriceTable) -> bool:
    price = prices.find(place.target.model, place.target.provider, request.model)
    if price is None:
        return False
    if request.route.dialect in MEDIA:
        if not applies(price, request.route.dialect):
            return False
        return ceiling(request, applied(price, request), place.target.model).money <= hedge.most
    return ceiling_of(estimate(request).prompt, (request.max_tokens or _OUTPUT) * request.choices, price) <= hedge.most

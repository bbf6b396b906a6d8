"""The time for a stream's first event: no head, a head and silence, signs of life; each phase has a time of its own."""

from __future__ import annotations

import json

import pytest

from asgi_llm_gateway.proxy import attempt
from asgi_llm_gateway.proxy.routing import Model
from asgi_llm_gateway.proxy.transfer import Timeouts

from ..upstream import (
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    Gone,
    Peer,
    Script,
    chunk,
    silent,
    streaming,
    then_stall,
    until,
    usage_event,
    word,
)
from .house import STREAMED, house

SOON = Timeouts(connect=5, write=5, first_byte=20, idle=20, total=40, first_event=0.4)
"""Only the first event may not take long."""
BOTH = Model(["a/x", "b/x"])
GOOD = [word("a"), word("b", "stop"), usage_event(), DONE]


def alive(after: float | None = None) -> Script:
    """A provider that says that it lives, twenty times a second; and begins after so many seconds, or never."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM_HEAD)
        try:
            for _ in range(200 if after is None else round(after / 0.05)):
                await peer.send(chunk(b": hi\n\n"), gap=0.05)
        except Gone:
            return
        await peer.send(*(chunk(one) for one in GOOD))
        await peer.send(LAST_CHUNK)

    return script


@pytest.mark.parametrize("first", [silent, then_stall(), then_stall(STREAM_HEAD), alive()],
                         ids=["nothing", "no head", "a head", "signs of life"])  # fmt: skip
async def test_another_target_is_asked_when_no_event_comes_in_its_time(first: Script) -> None:
    """Long before the times for a first byte and for silence are over."""
    async with house(first, streaming(*GOOD), model=BOTH, timeouts=SOON) as at:
        answer = await at.ask(STREAMED)
        assert (answer.status, answer.headers["x-llm-provider"]) == (200, "b")
        assert at.attempts[0][2] == "upstream_timeout"
        await at.settled()


async def test_signs_of_life_that_went_on_do_not_make_the_wait_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer has begun with them; when the time is over it ends in one error event, and the provider is left."""
    monkeypatch.setattr(attempt, "_QUIET", 0.1)
    async with house(alive(), streaming(*GOOD), model=BOTH, timeouts=SOON) as at:
        answer = await at.ask(STREAMED)
        assert (answer.status, answer.headers["x-llm-provider"]) == (200, "a")
        assert answer.body.startswith(b": hi\n\n")
        assert json.loads(answer.events[-1])["error"]["code"] == "upstream_timeout"
        assert "[DONE]" not in answer.events
        await until(lambda: at.servers["a"].open == 0)
        assert await at.settled() > 0


async def test_an_event_that_comes_in_time_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """After signs of life that went on, too: what follows has all the time that streams have."""
    monkeypatch.setattr(attempt, "_QUIET", 0.05)
    async with house(alive(0.2), timeouts=SOON) as at:
        answer = await at.ask(STREAMED)
        assert answer.body.startswith(b": hi\n\n")
        assert answer.body.endswith(GOOD[0] + GOOD[1] + DONE)
        await at.settled()

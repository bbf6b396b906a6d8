"""One call, shared by the whole stack: its guards, its calls, and where it is found."""

from __future__ import annotations

import asyncio

import pytest

from asgi_llm_gateway.calls import Call
from asgi_llm_gateway.errors import GatewayError
from asgi_llm_gateway.exchange import KEY, exchange_of
from asgi_llm_gateway.records import Target, Usage

from .exchange_parts import TARGET, Watchman, exchange_for


async def test_every_guard_is_asked_before_a_call_goes_out() -> None:
    """In the order in which they came; the call is then among the exchange's."""
    exchange = exchange_for()
    one, two = Watchman(), Watchman()
    exchange.guard(one)
    exchange.guard(two)
    first = await exchange.begin_call(TARGET)
    second = await exchange.begin_call(Target("echo", "other"))
    assert one.seen == two.seen == ["echo", "other"]
    assert exchange.calls == [first, second]


async def test_a_refused_call_is_no_call() -> None:
    """The guard's error is raised, later guards are not asked, and nothing is counted."""
    exchange = exchange_for()
    one, two = Watchman(refuse="dear"), Watchman()
    exchange.guard(one)
    exchange.guard(two)
    kept = await exchange.begin_call(TARGET)
    with pytest.raises(GatewayError, match="no money"):
        await exchange.begin_call(Target("echo", "dear"))
    assert exchange.calls == [kept]
    assert two.seen == ["echo"]


async def test_a_call_that_begins_is_seen_by_one_that_begins_beside_it() -> None:
    """A hedge must not be held as if it were alone."""
    exchange = exchange_for()
    together: list[int] = []

    class Counter:
        async def begin(self, call: Call) -> None:
            await asyncio.sleep(0)
            together.append(len(exchange.calls))

    exchange.guard(Counter())
    await asyncio.gather(exchange.begin_call(TARGET), exchange.begin_call(TARGET))
    assert together == [2, 2]


async def test_a_call_ends_once() -> None:
    """The first word on its usage stands; unknown stays unknown."""
    call = Call(TARGET, None)
    call.end(None)
    call.end(Usage(1, 2))
    assert call.ended
    assert call.usage is None


async def test_an_exchange_is_found_in_its_scope_only() -> None:
    """Under a private key that no client can set."""
    exchange = exchange_for()
    assert exchange_of({KEY: exchange}) is exchange
    assert exchange_of({}) is None
    assert exchange_of({KEY: "forged"}) is None


async def test_an_exchange_that_was_guarded_makes_no_call_after_its_end() -> None:
    """A task that outlives the call finds no way round; an unguarded one was never asked for leave."""
    exchange = exchange_for()
    exchange.guard(Watchman())
    exchange.close()
    with pytest.raises(GatewayError, match="is over"):
        await exchange.begin_call(TARGET)
    assert exchange.calls == []
    free = exchange_for()
    free.close()
    await free.begin_call(TARGET)

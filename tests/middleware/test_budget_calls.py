"""Several upstream calls for one request: each is held before it goes out, and their sum is settled."""

from __future__ import annotations

import pytest

from asgi_llm_gateway._asgi import Receive, Scope, Send
from asgi_llm_gateway.errors import GatewayError
from asgi_llm_gateway.exchange import KEY, Exchange
from asgi_llm_gateway.records import Target, Usage

from . import Stranger
from .purse import Calling, Counting, Purse, bound, limited


async def test_the_sum_over_a_calls_upstream_calls_is_settled() -> None:
    """Each at its own target's price; the record holds their tokens together."""
    purse = Purse(Calling("m", "dear", usage=Usage(5, 10)), 100_000)
    assert (await purse.ask(limited(10))).status == 200
    assert await purse.balance() == ((5 + 20) + (5 + 200), 0)
    assert (await purse.record()).usage == Usage(10, 20)
    assert (await purse.record()).provider == "p"


async def test_the_hold_is_raised_before_a_further_call_or_the_call_is_refused() -> None:
    """The entry hold covers the first; a second that does not fit does not go out."""
    body = limited(100)
    first = bound(body) + 200
    app = Calling("m", "m", usage=Usage(bound(body), 100))
    purse = Purse(app, 2 * first)
    assert (await purse.ask(body)).status == 200
    assert await purse.balance() == (2 * first, 0)
    app = Calling("m", "m", usage=Usage(bound(body), 100))
    purse = Purse(app, 2 * first - 1)
    answer = await purse.ask(body)
    assert (answer.status, answer.error["code"]) == (402, "would_exceed_budget")
    assert app.made == ["m"]
    assert await purse.balance() == (first, 0)


async def test_a_dearer_target_raises_the_hold() -> None:
    """A fallback is held at its own price."""
    body = limited(100)
    app = Calling("dear")
    purse = Purse(app, bound(body) + 2000 - 1)
    assert (await purse.ask(body)).error["code"] == "would_exceed_budget"
    assert app.made == []


async def test_calls_that_begin_side_by_side_are_held_together() -> None:
    """Also where the ledger takes its time."""
    body = limited(100)
    first = bound(body) + 200
    app = Calling("m", "m", "m", usage=Usage(bound(body), 100), together=True)
    purse = Purse(app, 3 * first, ledger=Counting())
    assert (await purse.ask(body)).status == 200
    assert await purse.balance() == (3 * first, 0)
    purse = Purse(Calling("m", "m", "m", together=True), 3 * first - 1, ledger=Counting())
    assert (await purse.ask(body)).error["code"] == "would_exceed_budget"


async def test_a_call_that_ended_unknown_is_estimated() -> None:
    """Never zero."""
    purse = Purse(Calling("m", usage=None), 10_000)
    await purse.ask()
    assert (await purse.record()).usage.estimated
    assert (await purse.balance())[0] > 0


async def test_a_users_own_path_holds_nothing_until_it_calls() -> None:
    """Its body is not read; a call of a model without a price is refused before it goes out."""
    app = Calling("m")
    purse = Purse(app, 10_000, paths={"/ask": "metered"})
    assert (await purse.ask(b"any words", "/ask")).status == 200
    assert await purse.balance() == (3, 0)
    app = Calling("unheard-of")
    purse = Purse(app, 10_000, paths={"/ask": "metered"})
    assert (await purse.ask(b"any words", "/ask")).error["code"] == "unpriced_model"
    assert app.made == []
    assert await purse.balance() == (0, 0)


async def test_no_call_can_be_made_for_a_settled_exchange() -> None:
    """A handler's background task has no money left."""
    kept: list[Exchange] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        kept.append(scope[KEY])
        await Stranger()(scope, receive, send)

    await Purse(app, 10_000).ask()
    with pytest.raises(GatewayError, match="no further upstream call"):
        await kept[0].begin_call(Target("p", "m"))

"""What has a price, what has none, and how money is told."""

from __future__ import annotations

import pytest

from asgi_llm_gateway.limits import usd
from asgi_llm_gateway.prices import DEFAULT_PRICES, prices_of
from asgi_llm_gateway.records import Price
from asgi_llm_gateway.settings import ModelConfig

from ..conversation import ask, get
from . import Stranger
from .purse import ASKED, Purse


async def test_an_unknown_price_is_refused_where_there_is_a_budget() -> None:
    """A model of unknown price would be a way round."""
    app = Stranger()
    answer = await Purse(app, 10**9).ask({**ASKED, "model": "unheard-of"})
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "unpriced_model", "model")
    assert app.calls == 0
    free = Purse(app, 10**9, unknown_price="free")
    assert (await free.ask({**ASKED, "model": "unheard-of"})).status == 200
    assert await free.balance() == (0, 0)
    assert (await Purse(app, None).ask({**ASKED, "model": "unheard-of"})).status == 200


@pytest.mark.parametrize("path", ["/v1/audio/voices", "/v1/images/variations", "/v1/files", "/v1/rerank"])
async def test_an_endpoint_without_a_price_is_refused_where_there_is_a_budget(path: str) -> None:
    """Also a GET on it; unless the operator lists the path."""
    app = Stranger()
    for answer in (await Purse(app, 10**9).ask(ASKED, path), await get(Purse(app, 10**9).stack, path)):
        assert (answer.status, answer.error["code"]) == (403, "unpriced_endpoint")
    assert app.calls == 0
    assert (await Purse(app, None).ask(ASKED, path)).status == 200
    assert (await Purse(app, 10**9, paths={path: "metered"}).ask(ASKED, path)).status == 200


async def test_what_costs_nothing_is_let_through() -> None:
    """The list of models, counting tokens, and opening a realtime session, whose messages are calls themselves."""
    app = Stranger()
    stack = Purse(app, 0).stack
    for path in ("/v1/models", "/v1/models/gpt-4", "/v1/realtime/sessions"):
        assert (await get(stack, path)).status == 200, path
    for path in ("/v1/messages/count_tokens", "/v1/realtime/sessions"):
        assert (await ask(stack, ASKED, path)).status == 200, path
    assert (await ask(stack, ASKED, "/v1/models")).status == 403
    assert (await get(stack, "/v1/models-of-mine")).status == 403


async def test_another_method_on_a_metered_path_is_405() -> None:
    """Whatever the app would make of it."""
    app = Stranger()
    answer = await get(Purse(app, None).stack, "/v1/chat/completions")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert app.calls == 0


@pytest.mark.parametrize(
    ("nano", "text"),
    [(0, "0.00"), (1, "0.000000001"), (10**9, "1.00"), (1_500_000_000, "1.50"), (123_456_789, "0.123456789")],
)
def test_money_is_told_exactly(nano: int, text: str) -> None:
    """At least two decimals, at most nine."""
    assert usd(nano) == text


def test_the_files_prices_come_first() -> None:
    """And one price alone leaves the other side free."""
    own = prices_of({"gpt-4": ModelConfig(usd_per_million_in=7), "x": ModelConfig()})
    assert own.find("gpt-4") == Price(7_000_000_000, 0)
    assert own.find("x") is None
    assert prices_of({}) is DEFAULT_PRICES

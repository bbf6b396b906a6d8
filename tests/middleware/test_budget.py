"""For how much money: all that a call can cost is held before it, or the call is refused."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from asgi_llm_gateway.limits import usd
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.settings import forget
from asgi_llm_gateway.stores.memory import MemoryLedger
from asgi_llm_gateway.stores.shared import shared_ledger

from ..conversation import CHAT, ask
from . import Gate, Stranger
from .purse import ASKED, BOUND, Purse, bound, limited

# -- alone -------------------------------------------------------------------------------------------------------------


async def test_alone_it_books_on_the_shared_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    """``BudgetMiddleware(app)`` and nothing else: the tenant is default, without a limit, and the call is booked."""
    monkeypatch.setenv("DEFAULT_MAX_OUTPUT_TOKENS", "77")
    forget()
    app, ledger = Stranger((10, 20)), await shared_ledger()
    before = (await ledger.balance("default")).spent
    answer = await ask(BudgetMiddleware(app), {**CHAT, "model": "gpt-4"})
    assert answer.status == 200
    assert json.loads(app.bodies[0])["max_tokens"] == 77
    after = await ledger.balance("default")
    assert (after.spent - before, after.held) == (10 * 30_000 + 20 * 60_000, 0)


async def test_alone_it_takes_prices_from_the_settings_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """``[models.NAME]`` sets a price in USD per million tokens."""
    (tmp_path / "gateway.toml").write_text('[models.own]\nusd_per_million_in = "3"\nusd_per_million_out = 0.5\n')
    monkeypatch.setenv("GATEWAY_CONFIG", str(tmp_path / "gateway.toml"))
    forget()
    ledger = MemoryLedger()
    await ask(BudgetMiddleware(Stranger((10, 20)), ledger=ledger), {**CHAT, "model": "own"})
    assert (await ledger.balance("default")).spent == 10 * 3000 + 20 * 500


# -- the entry hold ----------------------------------------------------------------------------------------------------


async def test_what_a_call_can_cost_is_held_while_it_runs() -> None:
    """The prompt's bound and the whole output limit; then what it did cost."""
    gate = Gate(Stranger((3, 4)))
    purse = Purse(gate, 10_000)
    body = limited(100)
    running = asyncio.ensure_future(purse.ask(body))
    await gate.reached.wait()
    assert await purse.balance() == (0, bound(body) + 200)
    gate.open.set()
    assert (await running).status == 200
    assert await purse.balance() == (3 + 8, 0)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_an_explicit_limit_is_never_changed(name: str) -> None:
    """Where it fits, the body goes through byte for byte; where it does not, the call is refused and says what is free."""
    app = Stranger()
    body = {**ASKED, name: 100}
    need = bound(body) + 200
    assert (await Purse(app, need).ask(body)).status == 200
    assert app.bodies == [json.dumps(body).encode()]
    purse = Purse(app, need - 1)
    answer = await purse.ask(body)
    assert (answer.status, answer.error["code"], answer.error["type"]) == (
        402,
        "would_exceed_budget",
        "insufficient_quota",
    )
    assert answer.headers["x-should-retry"] == "false"
    assert usd(need) in answer.error["message"]
    assert usd(need - 1) in answer.error["message"]
    assert app.calls == 1
    assert await purse.balance() == (0, 0)


async def test_a_missing_limit_is_chosen_and_put_into_the_request() -> None:
    """The default where it fits, and the hold is for just that."""
    app = Stranger()
    purse = Purse(app, 10**9, default_max_output=500)
    assert (await purse.ask()).status == 200
    assert json.loads(app.bodies[0]) == {**ASKED, "max_tokens": 500}
    assert app.bodies[0].startswith(json.dumps(ASKED).encode()[:-1])


@pytest.mark.parametrize(
    ("path", "field"),
    [("/v1/responses", "max_output_tokens"), ("/v1/completions", "max_tokens"), ("/v1/messages", "max_tokens")],
)
async def test_the_chosen_limit_has_its_dialects_name(path: str, field: str) -> None:
    """So that the one who answers obeys it."""
    app = Stranger()
    body = {**ASKED, "prompt": "x", "input": "x"}
    assert (await Purse(app, 10**9, default_max_output=500).ask(body, path)).status == 200
    assert json.loads(app.bodies[0]) == {**body, field: 500}


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/responses", "max_tokens"),
        ("/v1/chat/completions", "max_output_tokens"),
        ("/v1/completions", "max_completion_tokens"),
    ],
)
async def test_a_limit_under_another_dialects_name_is_none(path: str, field: str) -> None:
    """Providers pass such a field over: the real one is chosen and held beside it."""
    app = Stranger()
    body = {**ASKED, "prompt": "x", "input": "x", field: 1}
    await Purse(app, 10**9, default_max_output=500).ask(body, path)
    sent = json.loads(app.bodies[0])
    assert 500 in (sent.get("max_tokens"), sent.get("max_output_tokens"))


async def test_a_chosen_limit_is_lowered_to_what_the_budget_holds() -> None:
    """But not below the fewest tokens that are worth a call."""
    app = Stranger()
    assert (await Purse(app, BOUND + 2 * 40, default_max_output=500, min_output=16).ask()).status == 200
    assert json.loads(app.bodies[0])["max_tokens"] == 40
    assert (await Purse(app, BOUND + 2 * 16, default_max_output=500, min_output=16).ask()).status == 200
    answer = await Purse(app, BOUND + 2 * 16 - 1, default_max_output=500, min_output=16).ask()
    assert (answer.status, answer.error["code"]) == (402, "would_exceed_budget")
    assert app.calls == 2


@pytest.mark.parametrize(("fields", "times"), [({"n": 3}, 3), ({"best_of": 4, "n": 2}, 4)])
async def test_every_answer_asked_for_is_held(fields: dict[str, int], times: int) -> None:
    """``n`` and ``best_of`` multiply what a call can cost."""
    body = limited(100, **fields)
    need = bound(body) + 2 * 100 * times
    assert (await Purse(Stranger(), need).ask(body)).status == 200
    assert (await Purse(Stranger(), need - 1).ask(body)).status == 402


@pytest.mark.parametrize(("prompt", "times"), [("abc", 1), (["a", "b", "c"], 3), ([1, 2, 3], 1), ([[1, 2], [3]], 2)])
async def test_every_prompt_of_a_list_is_held(prompt: Any, times: int) -> None:
    """Completions answer each prompt of a list; a list of numbers is one prompt in tokens."""
    body = {"model": "m", "prompt": prompt, "max_tokens": 100, "n": 2}
    need = bound(body) + 2 * 100 * 2 * times
    assert (await Purse(Stranger(), need).ask(body, "/v1/completions")).status == 200
    assert (await Purse(Stranger(), need - 1).ask(body, "/v1/completions")).status == 402
    app = Stranger()
    del body["max_tokens"]
    await Purse(app, bound(body) + 2 * 50 * 2 * times, default_max_output=500).ask(body, "/v1/completions")
    assert json.loads(app.bodies[0])["max_tokens"] == 50


async def test_embeddings_have_no_output_to_hold() -> None:
    """And no limit is put in."""
    app = Stranger((5, 0))
    body = {"model": "m", "input": "some words"}
    purse = Purse(app, bound(body))
    assert (await purse.ask(body, "/v1/embeddings")).status == 200
    assert app.bodies == [json.dumps(body).encode()]
    assert await purse.balance() == (5, 0)


async def test_a_spent_budget_says_so() -> None:
    """``budget_exceeded`` is for good; ``would_exceed_budget`` is about this request."""
    purse = Purse(Stranger((100, 100)), 1000)
    assert (await purse.ask(limited(300))).status == 200
    assert await purse.balance() == (300, 0)
    assert (await purse.ask(limited(400))).error["code"] == "would_exceed_budget"
    broke = Purse(Stranger(), 0)
    answer = await broke.ask(limited(1))
    assert (answer.status, answer.error["code"]) == (402, "budget_exceeded")


async def test_a_tenant_without_a_budget_is_metered_and_not_limited() -> None:
    """``None`` is no limit."""
    purse = Purse(Stranger((3, 4)), None)
    assert (await purse.ask(limited(2**31 - 1))).status == 200
    assert await purse.balance() == (11, 0)


# -- small things ------------------------------------------------------------------------------------------------------


def test_a_senseless_setting_is_refused_when_it_is_made() -> None:
    """Not at the first call."""
    with pytest.raises(ValueError, match="unknown_price"):
        BudgetMiddleware(Stranger(), unknown_price="maybe")  # type: ignore[arg-type]

"""What a handler reports by ``record_usage``: priced, held at once and booked with its calls."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from asgi_llm_gateway.errors import GatewayError
from asgi_llm_gateway.metering import NoExchange, record_usage
from asgi_llm_gateway.records import Usage

from .shop import COST, Shop


class SDKUsage:
    """As the SDKs have it."""

    def model_dump(self) -> Any:
        """As Pydantic has it."""
        return {"input_tokens": 3, "output_tokens": 4}


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        (Usage(3, 4), {}),
        ({"prompt_tokens": 3, "completion_tokens": 4}, {}),
        (SDKUsage(), {}),
        (None, {"prompt": 3, "completion": 4}),
    ],
)
async def test_reports_add_up(usage: Any, counted: dict[str, Any]) -> None:
    """In whatever form; they are priced, and held at once."""
    held: list[int] = []

    async def handler() -> Any:
        for _ in range(2):
            await record_usage(usage, model="m", **counted)
            held.append((await shop.balance())[1])
        await shop.post()

    shop = Shop(handler, 10_000)
    await shop.ask()
    assert held == [COST, 2 * COST]
    (record,) = await shop.records()
    assert (record.cost, record.overdraft) == (3 * COST, 0)
    await shop.quiet()


async def test_a_report_beyond_the_budget_is_an_overdraft() -> None:
    """Used is used; but the next call of the handler's is refused."""

    async def handler() -> Any:
        await record_usage(prompt=1000, completion=0, model="m")
        return (await shop.post()).status_code

    shop = Shop(handler, 900)
    assert (await shop.ask()).json() == 402
    (record,) = await shop.records()
    assert (record.cost, record.overdraft) == (1000, 1000)
    await shop.quiet()


async def test_a_report_after_the_answer_is_booked() -> None:
    """A background task's."""

    async def handler() -> Any:
        shop.later.append(partial(record_usage, prompt=3, completion=4, model="m", provider="own"))

    shop = Shop(handler, 10_000)
    await shop.ask()
    late, _ = await shop.records()
    assert (late.cost, late.provider, late.overdraft) == (COST, "own", 0)
    await shop.quiet()


async def test_a_report_without_a_request_says_so() -> None:
    """Or does nothing, where that was said."""
    with pytest.raises(NoExchange, match="outside a request"):
        await record_usage(prompt=1, completion=1, model="m")
    await record_usage(prompt=1, completion=1, model="m", outside="ignore")


@pytest.mark.parametrize(
    "given_",
    [
        {},
        {"prompt": -1, "completion": 1},
        {"usage": Usage(-5, 1)},
        {"usage": object()},
        {"usage": {"prompt_tokens": "x"}},
    ],
)
async def test_a_report_without_counts_is_refused(given_: dict[str, Any]) -> None:
    """Nobody gets money back."""
    with pytest.raises(ValueError, match="no usage"):
        await record_usage(model="m", **given_)


async def test_a_report_of_a_model_without_a_price_is_refused() -> None:
    """The guard says so, as for a call."""

    async def handler() -> Any:
        with pytest.raises(GatewayError) as refused:
            await record_usage(prompt=1, completion=1, model="nobodys")
        return refused.value.error_code

    shop = Shop(handler, 10_000)
    assert (await shop.ask()).json() == "unpriced_model"
    await shop.quiet()


async def test_a_report_from_a_thread() -> None:
    """``anyio.from_thread.run``, as frameworks run ``def`` handlers."""
    import anyio.to_thread

    def work() -> None:
        anyio.from_thread.run(partial(record_usage, prompt=3, completion=4, model="m"))

    async def handler() -> Any:
        await anyio.to_thread.run_sync(work)

    shop = Shop(handler, 10_000)
    await shop.ask()
    assert await shop.balance() == (COST, 0)

"""``GET /v1/models``: what the caller may use, with its provider and its price."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import orjson
import pytest

from asgi_llm_gateway.adapters.echo import EchoAdapter
from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.errors import NotFound
from asgi_llm_gateway.prices import PriceTable
from asgi_llm_gateway.proxy.models import model_list, names_for, one_model
from asgi_llm_gateway.proxy.routing import Router
from asgi_llm_gateway.records import ApiKey, Identity, Price, Tenant, UnitPrice

ROUTER = Router(
    [OpenAIAdapter("own", "http://own/v1", models=["m1", "m2"]), EchoAdapter()],
    {"fast": ["own/m1"], "p-*": ["own/*"]},
)
PRICES = PriceTable({
    "own/m1": Price(100_000_001, 400_000_000, cached=10_000_000, cache_write=125_000_000, context=131_072),
    "own/m2": Price(0, 0),
})  # fmt: skip
ANYBODY = Identity(Tenant("t"), None)


def identity(tenants: tuple[str, ...] | None = None, keys: tuple[str, ...] | None = None) -> Identity:
    """A caller with these lists."""
    return Identity(Tenant("t", allowed_models=tenants), ApiKey("k", "t", "0" * 64, allowed_models=keys))


def listed(caller: Identity = ANYBODY) -> dict[str, dict[str, Any]]:
    """The entries by name."""
    answer = orjson.loads(model_list(ROUTER, PRICES, caller))
    assert answer["object"] == "list"
    return {entry["id"]: entry for entry in answer["data"]}


def test_a_caller_without_lists_sees_all_names() -> None:
    """The operator's and the providers'; a pattern is no name."""
    assert set(listed()) == {"fast", "own/m1", "own/m2", "echo"}
    for name, entry in listed().items():
        assert entry == orjson.loads(one_model(ROUTER, PRICES, ANYBODY, name))
        assert (entry["object"], type(entry["created"])) == ("model", int)


def test_an_entry_tells_its_provider_and_its_prices() -> None:
    """US dollars per million tokens, exact; what has no price says so."""
    body = model_list(ROUTER, PRICES, ANYBODY).decode()
    assert '"usd_per_million_in":0.100000001' in body
    entry = listed()["fast"]
    assert (entry["provider"], entry["owned_by"], entry["context_length"]) == ("own", "own", 131_072)
    assert {name: Decimal(str(value)) for name, value in entry["pricing"].items()} == {
        "usd_per_million_in": Decimal("0.100000001"),
        "usd_per_million_out": Decimal("0.4"),
        "usd_per_million_cached": Decimal("0.01"),
        "usd_per_million_cache_write": Decimal("0.125"),
    }
    assert listed()["own/m2"]["pricing"] == {"usd_per_million_in": 0.0, "usd_per_million_out": 0.0}
    assert "context_length" not in listed()["own/m2"]


def test_what_has_no_price_says_so() -> None:
    """``null``, and not zero."""
    router = Router([OpenAIAdapter("own", "http://own/v1", models=["unheard-of"])])
    assert orjson.loads(one_model(router, PriceTable(), ANYBODY, "own/unheard-of"))["pricing"] is None


@pytest.mark.parametrize(
    ("tenants", "keys", "expected"),
    [
        (("fast",), None, ["fast"]),
        (None, ("echo", "fast"), ["fast", "echo"]),
        (("fast", "echo"), ("echo", "own/m1"), ["echo"]),
        ((), None, []),
        (("gone",), None, []),
        # named by a list only: a pattern's names, and those of a provider that lists no such model
        (("p-7", "fast"), None, ["fast", "p-7"]),
        (("own/m9",), ("own/m9", "p-1"), ["own/m9"]),
        (None, ("p-7", "p-7", "echo/echo"), ["p-7", "echo/echo"]),
    ],
)
def test_a_list_shows_what_both_lists_allow(
    tenants: tuple[str, ...] | None, keys: tuple[str, ...] | None, expected: list[str]
) -> None:
    """The tenant's and the key's; each name once, and each can be asked for."""
    caller = identity(tenants, keys)
    assert names_for(ROUTER, caller) == expected
    assert list(listed(caller)) == expected
    for name in ("fast", "echo", "own/m1", "own/m9", "p-7", "gone"):
        if name in expected:
            assert orjson.loads(one_model(ROUTER, PRICES, caller, name))["id"] == name
        else:
            with pytest.raises(NotFound) as caught:
                one_model(ROUTER, PRICES, caller, name)
            assert caught.value.error_code == "model_not_found"


def test_one_that_does_not_exist_is_404_in_the_same_words_as_one_that_is_not_allowed() -> None:
    """Nobody learns so which names others use."""
    told = set()
    for name, caller in (("echo", identity(("fast",))), ("nothing", identity(("fast",)))):
        with pytest.raises(NotFound) as caught:
            one_model(ROUTER, PRICES, caller, name)
        told.add(caught.value.message.replace(name, "X"))
    assert len(told) == 1


def test_what_is_charged_by_units_is_not_told_to_be_free() -> None:
    """By the image, the minute, the character and the call; tokens beside them only where they cost something."""
    prices = PriceTable({
        "own/m1": Price(0, 0, units=UnitPrice(image=50_000_000)),
        "own/m2": Price(1_000_000_000, 2_000_000_000, units=UnitPrice(minute=6_000_000, request=1_000)),
    })  # fmt: skip
    told = {name: orjson.loads(one_model(ROUTER, prices, ANYBODY, name))["pricing"] for name in ("own/m1", "own/m2")}
    assert told == {
        "own/m1": {"usd_per_image": 0.05},
        "own/m2": {
            "usd_per_million_in": 1.0,
            "usd_per_million_out": 2.0,
            "usd_per_minute": 0.006,
            "usd_per_request": 0.000001,
        },
    }

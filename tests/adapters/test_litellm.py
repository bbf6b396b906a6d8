"""LiteLLM as a provider: what it says of cost, whose budget it speaks of, and what of it stays in the house."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.adapters.base import Unsupported, cost_in
from asgi_llm_gateway.adapters.echo import EchoAdapter
from asgi_llm_gateway.adapters.translated import speaking
from asgi_llm_gateway.adapters.vendors import adapter_of
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.routing import Router
from asgi_llm_gateway.wire import Route, parse

from ..conversation import JSON, ask
from ..upstream import always, upstream, whole

KEY = "sk-litellm-0123456789"
ADAPTER = adapter_of("litellm", "litellm", "http://h:4000/v1", KEY)
CHAT = Route("metered", "chat", "/v1/chat/completions")
ASKED: dict[str, Any] = {"model": "litellm/m", "messages": [{"role": "user", "content": "a"}]}


@pytest.mark.parametrize(
    ("text", "nano"),
    [
        (b"0.0123", 12_300_000),
        (b"2.4e-05", 24_000),
        (b"0", 0),
        (b"0.0", 0),
        (b" 1.5 ", 1_500_000_000),
        (b"0.0000000001", 1),  # rounded up
        (b"1e-999999", 1),
        (b"", None),
        (b"None", None),
        (b"nan", None),
        (b"inf", None),
        (b"-0.1", None),
        (b"1e9", None),
        (b"\xff", None),
        (b"9" * 100_000, None),
    ],
)
def test_the_cost_header_is_read_as_money(text: bytes, nano: int | None) -> None:
    """In nano-USD; what is no amount is none."""
    assert ADAPTER.cost_in([(b"x-litellm-response-cost", text)]) == nano


@given(st.decimals(0, 999_999, places=12))
def test_a_cost_is_never_rounded_down(usd: Decimal) -> None:
    """And by less than one nano-USD up."""
    told = ADAPTER.cost_in([(b"x-litellm-response-cost", str(usd).encode())])
    assert told is not None
    assert 0 <= told - usd * 10**9 < 1


def test_only_who_tells_a_cost_in_a_header_is_asked_for_it() -> None:
    """A header of that name from anybody else means nothing; a provider that is translated is asked all the same."""
    headers = [(b"content-type", b"application/json"), (b"x-litellm-response-cost", b"0.5")]
    assert cost_in(ADAPTER, headers) == 500_000_000
    assert cost_in(speaking(ADAPTER, "messages"), headers) == 500_000_000
    assert cost_in(ADAPTER, headers[:1]) is None
    assert cost_in(adapter_of("openai", "openai", "http://h/v1"), headers) is None
    assert cost_in(EchoAdapter(), headers) is None


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (422, {"type": "budget_exceeded", "code": "422", "message": "Budget has been exceeded! Current cost: 5"}),
        (429, {"type": "budget_exceeded", "code": "429", "message": "m"}),
        (400, {"type": "budget_exceeded", "code": "400", "message": "m"}),
        (401, {"type": "team_model_access_denied", "code": "401", "message": "m"}),
        (403, {"type": "key_model_access_denied", "code": "403", "message": "m"}),
        (401, {"type": "expired_key", "code": "401", "message": "m"}),
        (429, {"type": "insufficient_quota", "code": "credit_balance_exhausted", "message": "m"}),
    ],
)
def test_the_gateways_own_account_there_is_not_the_tenants_budget(status: int, error: dict[str, str]) -> None:
    """502 ``upstream_account``: never the words that a tenant's own budget is refused with."""
    told = ADAPTER.error(status, (), json.dumps({"error": error}).encode())
    assert (told.http_status, told.error_type, told.error_code) == (502, "upstream_error", "upstream_account")
    assert error["message"] == "m" or error["message"] not in told.message
    assert "litellm" in told.message


@pytest.mark.parametrize(("code", "status"), [("429", 429), ("503", 503), ("400", 400), ("xyz", 502), ("2", 502)])
def test_a_status_as_text_is_one(code: str, status: int) -> None:
    """Its ``code`` is the HTTP status as a string; it is not repeated as the error's code."""
    body = json.dumps({"error": {"message": "m", "type": "throttling_error", "code": code}}).encode()
    with pytest.raises(Exception, match="m") as caught:
        ADAPTER.response(parse(CHAT, json.dumps(ASKED).encode()), body)
    told: Any = caught.value
    assert told.http_status == status
    assert not (told.error_code or "").isdigit()


@pytest.mark.parametrize(
    "field",
    ["fallbacks", "context_window_fallbacks", "content_policy_fallbacks", "model_list", "user_config", "extra_body",
     "input_cost_per_token", "output_cost_per_token"],
)  # fmt: skip
def test_a_field_that_would_lead_to_another_model_or_price_is_refused(field: str) -> None:
    """By name; a client that is trusted may send it, and null is nothing."""
    asked = parse(CHAT, json.dumps({**ASKED, field: ["x"]}).encode())
    with pytest.raises(Unsupported) as caught:
        ADAPTER.request(asked, "m")
    assert (caught.value.http_status, caught.value.param) == (400, field)
    trusting = adapter_of("litellm", "litellm", "http://h/v1", trust_clients=True)
    assert json.loads(trusting.request(asked, "m").body)[field] == ["x"]
    assert ADAPTER.request(parse(CHAT, json.dumps({**ASKED, field: None}).encode()), "m").body


async def test_its_headers_stay_in_the_house_both_ways() -> None:
    """A tenant can't steer it by headers, and learns nothing of its key's state or addresses."""
    told = (("x-litellm-model-api-base", "http://10.0.0.7/v1"), ("x-litellm-key-spend", "12.5"),
            ("x-litellm-response-cost", "0.25"), ("llm_provider-x-request-id", "r"))  # fmt: skip
    async with upstream(always(whole(headers=told))) as server:
        app = ProxyApp(router=Router([adapter_of("litellm", "litellm", server.url(), KEY)]))
        mine = ((b"x-litellm-tags", b"free"), (b"x-litellm-num-retries", b"99"), (b"x-litellm-api-key", b"sk-other"))
        answer = await ask(app, ASKED, headers=(JSON, *mine))
        await app.aclose()
    assert answer.status == 200
    assert not [name for name in answer.headers if name.startswith(("x-litellm", "llm_provider"))]
    assert not [name for name in server.requests[0].headers if name.startswith("x-litellm")]
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"

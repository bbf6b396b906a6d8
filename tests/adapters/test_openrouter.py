"""OpenRouter: who asks, what it really cost, errors behind a 200, and no way to a dearer call than was held for."""

from __future__ import annotations

import asyncio
import json
from decimal import ROUND_CEILING, Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway import TenantMiddleware
from asgi_llm_gateway.adapters.base import FailedAnswer, Unsupported
from asgi_llm_gateway.adapters.openrouter import OpenRouterAdapter
from asgi_llm_gateway.errors import GatewayError
from asgi_llm_gateway.keys import new_key
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.routing import Router
from asgi_llm_gateway.records import Tenant, Usage
from asgi_llm_gateway.stores.memory import MemoryStore
from asgi_llm_gateway.usage import usage_from
from asgi_llm_gateway.wire import LLMRequest, Route, parse

from ..conversation import JSON, ask, call
from ..upstream import DONE, LAST_CHUNK, STREAM_HEAD, Peer, always, chunk, event, upstream, usage_event, whole, word

KEY = "sk-or-v1-0123456789abcdef"
URL = "https://openrouter.ai/api/v1"
ADAPTER = OpenRouterAdapter("openrouter", URL, KEY)
CHAT = Route("metered", "chat", "/v1/chat/completions")
ASKED: dict[str, Any] = {"model": "openrouter/vendor/m", "messages": [{"role": "user", "content": "a"}]}


def request(**fields: Any) -> LLMRequest:
    """A parsed chat request."""
    return parse(CHAT, json.dumps({**ASKED, **fields}).encode())


# -- who asks ----------------------------------------------------------------------------------------------------------


def test_the_app_is_named_where_it_is_configured() -> None:
    """Two headers on each request; none where nothing is set."""
    named = OpenRouterAdapter("o", URL, KEY, referer="https://app.example", title="My app")
    headers = dict(named.request(request(), "vendor/m").endpoint.headers)
    assert headers[b"http-referer"] == b"https://app.example"
    assert headers[b"x-openrouter-title"] == b"My app"
    assert headers[b"authorization"] == b"Bearer " + KEY.encode()
    plain = dict(ADAPTER.request(request(), "vendor/m").endpoint.headers)
    assert not {b"http-referer", b"x-openrouter-title"} & plain.keys()


@pytest.mark.parametrize("text", ["a\r\nx: y", "a\nb", "\u00e9", "a\0b"])
def test_a_name_that_no_header_can_hold_is_refused(text: str) -> None:
    """At the start."""
    with pytest.raises(ValueError, match="printable ASCII"):
        OpenRouterAdapter("o", URL, referer=text)
    with pytest.raises(ValueError, match="printable ASCII"):
        OpenRouterAdapter("o", URL, title=text)


# -- what a tenant may not choose --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"models": ["vendor/dear", "vendor/m"]}, "models"),
        ({"route": "fallback"}, "route"),
        ({"plugins": [{"id": "web"}]}, "plugins"),
        ({"transforms": ["middle-out"]}, "transforms"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"provider": {"order": ["Dear"]}}, "provider"),
        ({"provider": {"only": ["Dear"]}}, "provider"),
        ({"provider": {"sort": "throughput"}}, "provider"),
        ({"provider": {"max_price": {"prompt": 1}, "preferred_min_throughput": 9}}, "provider"),
        ({"provider": "Dear"}, "provider"),
        ({"tools": [{"type": "openrouter:web_search"}]}, "tools[0].type"),
    ],
)
def test_what_could_cost_more_than_was_held_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    """400, before anybody is asked; a client that is trusted may."""
    with pytest.raises(Unsupported) as caught:
        ADAPTER.request(request(**fields), "vendor/m")
    assert (caught.value.http_status, caught.value.param) == (400, param)
    assert caught.value.error_code == "unsupported_parameter"
    trusting = OpenRouterAdapter("o", URL, KEY, trust_clients=True)
    assert fields.items() <= json.loads(trusting.request(request(**fields), "vendor/m").body).items()


@pytest.mark.parametrize(
    "fields",
    [
        {"provider": {"max_price": {"prompt": 1, "completion": 2}}},
        {"provider": {"data_collection": "deny", "zdr": True, "require_parameters": True, "sort": "price"}},
        {"reasoning": {"effort": "low"}, "session_id": "s", "user": "u", "top_a": 0.5, "usage": {"include": True}},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"models": None, "plugins": None},
    ],
)
def test_what_narrows_or_costs_nothing_goes_on(fields: dict[str, Any]) -> None:
    """Byte for byte."""
    asked = request(**fields, model="vendor/m")
    assert ADAPTER.request(asked, "vendor/m").body == asked.raw


@pytest.mark.parametrize("suffix", ["online", "nitro"])
def test_a_suffix_that_costs_more_must_be_listed(suffix: str) -> None:
    """The operator's list of models is what allows it; ``:free`` and the like are models of their own."""
    dear = f"vendor/m:{suffix}"
    with pytest.raises(Unsupported) as caught:
        ADAPTER.request(request(), dear)
    assert caught.value.param == "model"
    assert "'vendor/m'" in caught.value.message
    assert OpenRouterAdapter("o", URL, models=[dear]).request(request(), dear).body
    for plain in ("vendor/m:free", "vendor/m:thinking", "vendor/m"):
        assert ADAPTER.request(request(), plain).body


async def test_a_list_of_allowed_models_means_whole_names() -> None:
    """A name with a suffix is another name: 404, and nobody is asked."""
    store = MemoryStore()
    secret = "gw-0123456789abcdef0123456789abcdef"
    await store.put_tenant(Tenant("t", allowed_models=("openrouter/vendor/m",)))
    await store.add_key(new_key("t", secret=secret)[0])
    async with upstream(always(whole())) as server:
        proxy = ProxyApp(router=Router([OpenRouterAdapter("openrouter", server.url(), trust_clients=True)]))
        app = TenantMiddleware(proxy, store=store)
        headers = (JSON, (b"authorization", b"Bearer " + secret.encode()))
        assert (await ask(app, ASKED, headers=headers)).status == 200
        for suffix in (":online", ":nitro", ":free", ":floor"):
            answer = await ask(app, {**ASKED, "model": ASKED["model"] + suffix}, headers=headers)
            assert (answer.status, answer.error["code"]) == (404, "model_not_found")
        assert len(server.requests) == 1
        await proxy.aclose()


# -- what it cost ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "nano"),
    [
        ({"cost": 0.00014}, 140_000),
        ({"cost": 0.0000000001}, 1),
        ({"cost": 0}, 0),
        ({"cost": None}, None),
        ({}, None),
        ({"cost": 0.001, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.02}}, 21_000_000),
        ({"cost": 0, "cost_details": {"upstream_inference_cost": 0.02}}, 20_000_000),
        ({"cost": None, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.02}}, 20_000_000),
        ({"cost": 0.02, "is_byok": False, "cost_details": {"upstream_inference_cost": 0.02}}, 20_000_000),
        ({"cost": 0.02, "is_byok": True, "cost_details": {"upstream_inference_cost": None}}, 20_000_000),
        ({"cost": 0.02, "is_byok": True, "cost_details": {"upstream_inference_cost": "x"}}, 20_000_000),
        ({"cost": 0.02, "is_byok": True, "cost_details": None}, 20_000_000),
        ({"cost": -1, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.02}}, 20_000_000),
    ],
)
def test_the_true_spend_is_the_fee_and_what_ones_own_key_paid(more: dict[str, Any], nano: int | None) -> None:
    """With one's own provider key (BYOK), ``cost`` is the router's fee only."""
    told = usage_from({"prompt_tokens": 3, "completion_tokens": 5, **more})
    assert told == Usage(3, 5, provider_cost=nano)


@given(st.floats(0, 1000), st.floats(0, 1000))
def test_the_sum_of_both_is_rounded_up_once(fee: float, price: float) -> None:
    """Exactly as Decimal adds the texts."""
    told = usage_from({"prompt_tokens": 1, "cost": fee, "cost_details": {"upstream_inference_cost": price}})
    exact = (Decimal(repr(fee)) + Decimal(repr(price))) * 10**9
    assert told is not None
    assert told.provider_cost == int(exact.to_integral_value(ROUND_CEILING))


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        ({"code": 402, "message": "Insufficient credits"}, 502, "upstream_auth"),
        ({"code": 402, "message": "m", "metadata": {"error_type": "payment_required"}}, 502, "upstream_auth"),
        ({"code": 400, "message": "m", "metadata": {"error_type": "context_length_exceeded"}}, 400,
         "context_length_exceeded"),
        ({"code": 403, "message": "m", "metadata": {"reasons": ["violence"], "flagged_input": "my secret words"}}, 400,
         "content_policy_violation"),
        ({"code": 403, "message": "key limit"}, 502, "upstream_auth"),
        ({"code": 404, "message": "No endpoints found"}, 404, "upstream_refused"),
        ({"code": 408, "message": "m"}, 504, "upstream_timeout"),
        ({"code": 429, "message": "m", "metadata": {"provider_name": "X"}}, 429, "upstream_rate_limited"),
        ({"code": 502, "message": "m"}, 502, "upstream_error"),
        ({"code": 503, "message": "m"}, 503, "upstream_unavailable"),
        ({"code": 529, "message": "m"}, 503, "upstream_unavailable"),
    ],
)  # fmt: skip
def test_an_error_is_told_as_what_it_is(error: dict[str, Any], status: int, code: str) -> None:
    """The same with a status of its own, and behind a 200: beside choices, in place of them, in a choice."""
    body = json.dumps({"error": error, "user_id": "org_1"}).encode()
    told = [ADAPTER.error(error["code"], (), body)]
    for inside in (
        {"error": error},
        {"error": error, "choices": [{"message": {"content": "half"}, "finish_reason": "error"}]},
        {"choices": [{"message": {"content": "half"}, "finish_reason": "error", "error": error}]},
    ):
        with pytest.raises(GatewayError) as caught:
            ADAPTER.response(request(), json.dumps(inside).encode())
        told.append(caught.value)
    for one in told:
        assert (one.http_status, one.error_code) == (status, code)
        assert "secret words" not in one.message
        assert "insufficient_quota" not in (one.error_type, one.error_code)


def test_what_a_failed_answer_used_is_kept() -> None:
    """It is paid for, though the client gets an error; a mere end by ``error`` is one too, in a long answer as well."""
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "cost": 0.01}
    for size in (1, 2_000_000):
        body = {"choices": [{"message": {"content": "x" * size}, "finish_reason": "error"}], "usage": usage}
        with pytest.raises(FailedAnswer) as caught:
            ADAPTER.response(request(), json.dumps(body).encode())
        assert caught.value.usage == Usage(3, 5, provider_cost=10_000_000)
        assert caught.value.http_status == 502


def test_words_in_an_answer_are_no_error() -> None:
    """Text that merely speaks of one, an error that is null, tool arguments that have a member of that name."""
    for content in ('"error": "x"', '{"error": {"code": 402}}', '"finish_reason": "error"'):
        body = json.dumps(
            {"error": None, "choices": [{"message": {"content": content}, "finish_reason": "stop", "error": None}],
             "usage": {"prompt_tokens": 3, "completion_tokens": 5}}
        ).encode()  # fmt: skip
        assert ADAPTER.response(request(), body) == (body, Usage(3, 5))


async def test_a_stream_that_breaks_off_with_an_error_tells_it_once() -> None:
    """In words that may be told, with no ``[DONE]`` after it."""
    said = event({"id": "g", "error": {"code": 502, "message": f"upstream said {KEY}", "metadata": {"raw": KEY}},
                  "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}]})  # fmt: skip
    seen = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM_HEAD, chunk(word("a")))
        await seen.wait()  # from then on no other answer can be given
        await peer.send(chunk(said), chunk(DONE), LAST_CHUNK)

    async with upstream(script) as server:
        app = ProxyApp(router=Router([OpenRouterAdapter("openrouter", server.url(), KEY)]))
        async with call(app, {**ASKED, "stream": True}) as talk:
            await talk.next()
            await talk.next()
            seen.set()
            answer = await talk.answer()
        await app.aclose()
    events = [json.loads(one) for one in answer.events]
    assert [bool(one.get("error")) for one in events] == [False, True]
    assert events[1]["choices"][0]["finish_reason"] == "error"
    assert KEY not in answer.body.decode()
    assert answer.status == 200


async def test_signs_of_life_are_no_answer() -> None:
    """Comments while the provider waits do not commit the gateway to it: an error after them has its own status."""
    release = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM_HEAD, chunk(b": OPENROUTER PROCESSING\n\n"))
        await release.wait()
        await peer.send(chunk(word("a")), chunk(word("", "stop")), chunk(usage_event()), chunk(DONE), LAST_CHUNK)

    async with upstream(script) as server:
        app = ProxyApp(router=Router([OpenRouterAdapter("openrouter", server.url(), KEY)]))
        async with call(app, {**ASKED, "stream": True}) as talk:
            await asyncio.sleep(0.1)
            assert talk.messages == []
            release.set()
            answer = await talk.answer()
        await app.aclose()
    assert b": OPENROUTER PROCESSING\n\n" in answer.body
    assert answer.events[-1] == "[DONE]"

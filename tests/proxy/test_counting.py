"""``/v1/messages/count_tokens``: who counts, for whom, and what happens where nobody can."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anthropic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway import _vocabulary
from asgi_llm_gateway._asgi import send_error
from asgi_llm_gateway._hangup import Patience
from asgi_llm_gateway.adapters.anthropic import AnthropicAdapter
from asgi_llm_gateway.adapters.echo import EchoAdapter
from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.errors import GatewayError
from asgi_llm_gateway.exchange import ClientGone, Exchange
from asgi_llm_gateway.proxy.clients import open_client
from asgi_llm_gateway.proxy.counting import PATH, count_tokens, estimated
from asgi_llm_gateway.proxy.routing import Router
from asgi_llm_gateway.proxy.transfer import Timeouts
from asgi_llm_gateway.records import ApiKey, Identity, Tenant, Usage
from asgi_llm_gateway.wire import Route, Table, parse

from ..conversation import JSON, ask, call
from ..servers import serving
from ..upstream import Script, always, once, refused_port, silent, until, upstream, whole

KEY = "sk-ant-0123456789abcdef"
HI: list[Any] = [{"role": "user", "content": "hi"}]
ASKED: dict[str, Any] = {"model": "claude-x", "messages": HI}
COUNTED = whole({"input_tokens": 22})
HOPS = ((b"x-llm-gateway-hop", b"abc"),)


class Counting:
    """The terminal app, as far as it counts: opened in the event loop that it first runs in."""

    def __init__(
        self, *adapters: Any, identity: Identity | None = None, max_body: int = 10_000, **timeouts: float
    ) -> None:
        self.router = Router([*adapters, EchoAdapter()])
        self.identity = identity
        self.max_body = max_body
        self.timeouts = Timeouts(**timeouts)
        self.client: Any = None
        self.exchange: Any = None
        self.gone = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The ASGI application."""
        if scope["type"] != "http":
            return
        if self.client is None:
            self.client = open_client(timeouts=self.timeouts)
            self.patience = Patience(asyncio.get_running_loop())
        exchange = self.exchange = Exchange(self, Table().match(scope), scope, max_body=self.max_body)
        if self.identity is not None:
            exchange.identity = self.identity
        send = exchange.wrap(send)
        try:
            await count_tokens(exchange, scope, receive, send, router=self.router, client=self.client,
                               patience=self.patience, hops=HOPS)  # fmt: skip
        except GatewayError as error:
            await send_error(send, error, exchange.route.envelope)
        except ClientGone:
            self.gone = True


async def through(script: Script, body: Any = None, **more: Any) -> tuple[Any, list[Any], Counting]:
    """What a client gets, what the provider was asked, and the app."""
    headers = more.pop("headers", (JSON,))
    async with upstream(script) as server:
        app = Counting(AnthropicAdapter("anthropic", server.url(), KEY), **more)
        answer = await ask(app, ASKED if body is None else body, PATH, headers=headers)
        await app.client.close()
        return answer, server.requests, app


# -- by the provider ---------------------------------------------------------------------------------------------------


async def test_a_provider_that_counts_is_asked() -> None:
    """The body goes on as it came, with the client's version and features and the gateway's own key and mark."""
    body = json.dumps({**ASKED, "system": "s", "thinking": {"type": "adaptive"}, "new": 1.50}).encode()
    headers = (JSON, (b"anthropic-version", b"2026-10-21"), (b"anthropic-beta", b"x"), (b"x-api-key", b"tenants-own"))
    answer, (asked,), app = await through(always(COUNTED), body, headers=headers)
    assert (answer.status, answer.json()) == (200, {"input_tokens": 22})
    assert answer.headers["x-llm-token-count"] == "provider"
    assert (asked.method, asked.path, asked.body) == ("POST", PATH, body)
    sent = asked.headers
    assert (sent["x-api-key"], sent["anthropic-version"], sent["anthropic-beta"]) == (KEY, "2026-10-21", "x")
    assert sent["x-llm-gateway-hop"] == "abc"
    assert [(made.target.provider, made.usage) for made in app.exchange.calls] == [("anthropic", Usage())]


async def test_the_models_own_name_is_sent() -> None:
    """And the gateway's own field is not."""
    _, (asked,), _ = await through(always(COUNTED), {**ASKED, "model": "anthropic/claude-y", "tenant": "default"})
    assert asked.json() == {"messages": HI, "model": "claude-y"}


@pytest.mark.parametrize(
    ("answer", "status", "kind"),
    [
        (whole({"type": "error", "error": {"type": "overloaded_error", "message": "m"}}, 529), 503, "overloaded_error"),
        (whole({"type": "error", "error": {"type": "rate_limit_error", "message": "m"}}, 429), 429, "rate_limit_error"),
        (whole({"type": "error", "error": {"type": "authentication_error", "message": KEY}}, 401), 502, "api_error"),
        (whole({"type": "error", "error": {"type": "not_found_error", "message": "m"}}, 404), 404, "not_found_error"),
        (whole(b"<html>", 200), 502, "api_error"),
        (whole({"input_tokens": "many"}), 502, "api_error"),
        (whole(b"", 302, headers=[("Location", "http://127.0.0.1/")]), 502, "api_error"),
        (whole({"input_tokens": 3})[:-2], 502, "api_error"),
        (b"nonsense\r\n\r\n", 502, "api_error"),
    ],
)  # fmt: skip
async def test_a_providers_failure_is_the_answer(answer: bytes, status: int, kind: str) -> None:
    """In Anthropic's envelope, without the key; no estimate is passed off for a count."""
    told, _, _ = await through(once(answer))
    assert (told.status, told.json()["type"], told.json()["error"]["type"]) == (status, "error", kind)
    assert KEY not in told.body.decode()
    assert "x-llm-token-count" not in told.headers


async def test_a_provider_that_is_not_there_or_silent_is_told() -> None:
    """As for any other call."""
    answer, _, _ = await through(silent, first_byte=0.05)
    assert (answer.status, answer.json()["error"]["type"]) == (504, "timeout_error")
    taken, port = refused_port()
    with taken:
        app = Counting(AnthropicAdapter("anthropic", f"http://127.0.0.1:{port}", KEY))
        answer = await ask(app, ASKED, PATH)
        await app.client.close()
    assert (answer.status, answer.json()["error"]["code"]) == (502, "upstream_unreachable")
    assert str(port) not in answer.body.decode()


async def test_a_client_that_hangs_up_is_not_counted_for() -> None:
    """The call to the provider ends with it."""
    async with upstream(silent) as server:
        app = Counting(AnthropicAdapter("anthropic", server.url(), KEY))
        async with call(app, ASKED, PATH) as talk:
            await until(lambda: server.connections == 1)
            await talk.hang_up()
        assert app.gone
        await until(lambda: server.open == 0)
        await app.client.close()


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b"", 400, "empty"), (b"{", 400, "JSON"), (b"[]", 400, "object"), ({"messages": HI}, 400, "model"),
        ({"model": "claude-x"}, 400, "messages"), ({**ASKED, "messages": []}, 400, "messages"),
        ({**ASKED, "messages": "hi"}, 400, "messages"), ({**ASKED, "api_base": "http://x"}, 400, "api_base"),
        (b'{"model":"claude-x","model":"claude-y","messages":[{"role":"user","content":"hi"}]}', 400, "twice"),
        ({**ASKED, "system": "x" * 10_000}, 413, "10000"), ({**ASKED, "model": "nobody"}, 404, "nobody"),
        ({**ASKED, "container": "c"}, 400, "container"), ({**ASKED, "mcp_servers": [{}]}, 400, "mcp_servers"),
        ({**ASKED, "tenant": "other"}, 403, "x-tenant-id"), ({**ASKED, "tenant": 7}, 400, "tenant"),
    ],
)  # fmt: skip
async def test_a_senseless_request_is_refused(body: Any, status: int, word: str) -> None:
    """By the rules of any other call, in Anthropic's envelope, and nobody is asked."""
    answer, asked, _ = await through(always(COUNTED), body)
    assert (answer.status, answer.json()["type"], asked) == (status, "error", [])
    assert word in answer.json()["error"]["message"]


async def test_only_json_is_read() -> None:
    """Plain, and of that type."""
    for headers in (((b"content-type", b"text/plain"),), (JSON, (b"content-encoding", b"gzip"))):
        answer, asked, _ = await through(always(COUNTED), headers=headers)
        assert (answer.status, asked) == (415, [])


@pytest.mark.parametrize(
    "identity",
    [
        Identity(Tenant("t", allowed_models=("claude-y",)), None),
        Identity(Tenant("t"), ApiKey("k", "t", "k", "d", allowed_models=("claude-y",))),
    ],
)
async def test_a_model_that_is_not_the_callers_is_not_there(identity: Identity) -> None:
    """For counting as for asking; one that is the caller's is counted."""
    answer, asked, _ = await through(always(COUNTED), identity=identity)
    assert (answer.status, answer.json()["error"]["code"], asked) == (404, "model_not_found", [])
    answer, asked, _ = await through(always(COUNTED), {**ASKED, "model": "claude-y", "tenant": "t"}, identity=identity)
    assert (answer.status, len(asked)) == (200, 1)


# -- by estimate -------------------------------------------------------------------------------------------------------


async def test_for_any_other_provider_the_gateway_estimates() -> None:
    """And says so; nobody is asked."""
    async with upstream(always(COUNTED)) as server:
        app = Counting(OpenAIAdapter("openai", server.url(), "k"))
        for model in ("gpt-4o", "echo"):
            answer = await ask(app, {"model": model, "messages": [{"role": "user", "content": "word " * 100}]}, PATH)
            assert (answer.status, answer.headers["x-llm-token-count"]) == (200, "estimate")
            assert 100 <= answer.json()["input_tokens"] <= 200
        assert server.requests == []
        await app.client.close()


def request(**fields: Any) -> Any:
    """A parsed request."""
    return parse(
        Route("authenticated", "messages", PATH), json.dumps({"model": "m", "messages": HI, **fields}).encode()
    )


def test_an_estimate_by_the_vocabulary_counts_all_texts() -> None:
    """System, messages, thoughts, calls, results and tools; more text is more tokens."""
    _vocabulary.load()
    counter = _vocabulary.counter_of("gpt-4o")
    assert counter is not None
    word = "gateway " * 50
    blocks = [{"type": "text", "text": word}, {"type": "thinking", "thinking": word, "signature": "s"},
              {"type": "tool_use", "id": "t", "name": "n", "input": {"a": word}},
              {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": word}]},
              {"type": "tool_result", "tool_use_id": "t", "content": word}]  # fmt: skip
    least = estimated(request(), "gpt-4o", counter)
    assert 1 <= least <= 30
    more: list[dict[str, Any]] = [{"messages": [*HI, {"role": "user", "content": [block]}]} for block in blocks]
    more += [{"system": word}, {"system": [{"type": "text", "text": word}]}]
    more.append({"tools": [{"name": "n", "description": word, "input_schema": {}}]})
    for fields in more:
        assert counter(word) <= estimated(request(**fields), "gpt-4o", counter) - least <= counter(word) + 60


def test_an_image_counts_by_its_models_rule() -> None:
    """Not by its bytes, with a vocabulary or without."""
    _vocabulary.load()
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 400_000}}
    asked = request(messages=[{"role": "user", "content": [image]}])
    for counter in (None, _vocabulary.counter_of("gpt-4o")):
        assert 85 <= estimated(asked, "gpt-4o", counter) <= 2_000


ODD = st.recursive(
    st.none() | st.integers(0, 3) | st.sampled_from(["", "text", "tool_use", "thinking", "a b"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "text", "content", "name", "input", "thinking"]), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(st.none() | st.text() | st.lists(ODD, max_size=4), ODD, ODD)
def test_whatever_is_in_it_is_estimated(content: Any, system: Any, tools: Any) -> None:
    """At a token at least."""
    asked = request(messages=[{"role": "user", "content": content}], system=system, tools=tools)
    for counter in (None, _vocabulary.counter_of("gpt-4o"), len):
        assert estimated(asked, "gpt-4o", counter) >= 1


# -- by the official client --------------------------------------------------------------------------------------------


async def test_the_official_client_counts() -> None:
    """Sync and async, natively and by estimate, with an error that it knows."""

    def sync(url: str) -> None:
        with anthropic.Anthropic(base_url=url, api_key="k", max_retries=0) as client:
            assert client.messages.count_tokens(model="claude-x", messages=HI, system="s").input_tokens == 22
            assert client.messages.count_tokens(model="echo", messages=HI).input_tokens >= 1
            with pytest.raises(anthropic.NotFoundError):
                client.messages.count_tokens(model="nobody", messages=HI)

    async with upstream(always(COUNTED)) as server:
        app = Counting(AnthropicAdapter("anthropic", server.url(), KEY))
        with serving(app) as url:
            await asyncio.to_thread(sync, url)
            async with anthropic.AsyncAnthropic(base_url=url, auth_token="k") as client:
                assert (await client.messages.count_tokens(model="claude-x", messages=HI)).input_tokens == 22
        assert len(server.requests) == 2


async def test_another_target_counts_where_the_first_is_away() -> None:
    """As the call that follows would go there; one that cannot count is passed by, and the last word is the first failure's."""
    taken, port = refused_port()
    with taken:
        away = AnthropicAdapter("away", f"http://127.0.0.1:{port}", KEY, models=["claude-x"])
        async with upstream(always(COUNTED)) as server:
            there = AnthropicAdapter("there", server.url().removesuffix("/v1"), KEY, models=["claude-y"])
            app = Counting(away, there)
            app.router = Router([away, there, EchoAdapter()], {"m": ["away/claude-x", "echo/echo", "there/claude-y"]})
            answer = await ask(app, {**ASKED, "model": "m"}, PATH)
            assert (answer.json(), answer.headers["x-llm-token-count"]) == ({"input_tokens": 22}, "provider")
        app = Counting(away)
        app.router = Router([away, EchoAdapter()], {"m": ["away/claude-x", "echo/echo"]})
        assert (await ask(app, {**ASKED, "model": "m"}, PATH)).status == 502

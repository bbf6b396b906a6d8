"""Every layer at once, in every dialect: each one does its work, whatever the others do, and each refusal is in the dialect."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest

from asgi_llm_gateway.adapters.anthropic import AnthropicAdapter
from asgi_llm_gateway.adapters.base import Adapter
from asgi_llm_gateway.adapters.compatible import OPENAI
from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.keys import new_key
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.middleware.cache import CacheMiddleware
from asgi_llm_gateway.middleware.logging import LoggingMiddleware
from asgi_llm_gateway.middleware.metrics import MetricsMiddleware
from asgi_llm_gateway.middleware.policy import PolicyMiddleware
from asgi_llm_gateway.middleware.ratelimit import RateLimitMiddleware
from asgi_llm_gateway.middleware.security import SecurityHeadersMiddleware
from asgi_llm_gateway.middleware.structured import StructuredOutputMiddleware
from asgi_llm_gateway.middleware.tenant import TenantMiddleware
from asgi_llm_gateway.middleware.tracing import TracingMiddleware
from asgi_llm_gateway.prices import PriceTable
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.routing import Router
from asgi_llm_gateway.records import NANO_PER_USD, Price, Tenant, TraceRecord
from asgi_llm_gateway.stores.memory import MemoryStore
from asgi_llm_gateway.tracelog import TraceLog

from ..caching import PATHS, text_of, text_of_stream
from ..conversation import JSON, Answer, ask
from ..metrics_parts import counting, shown, value
from ..middleware.test_logging import Kept
from ..servers import serving
from .model import CITY, HELLO
from .provider import KEYS, Providers
from .stage import PRICES, exact_cost

FRONTS = ("chat", "messages", "responses")
COUNT = "/v1/messages/count_tokens"
NO = {"allow": False, "reason": "not on sundays"}
OWN = {"openai": "gpt-5", "anthropic": "claude-sonnet-4-6"}
CITIES: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "people": {"type": "integer"}, "coastal": {"type": "boolean"}},
    "required": list(CITY),
    "additionalProperties": False,
}
WRONG = {**CITIES, "properties": {**CITIES["properties"], "people": {"type": "string"}}}
"""Asks for what the model does not answer."""

every_front = pytest.mark.parametrize("front", FRONTS)
both_forms = pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
both_providers = pytest.mark.parametrize("provider", list(OWN))


def price() -> Price:
    """What the stage's models cost, in nano-USD."""
    of = {name: int(usd * NANO_PER_USD) for name, usd in PRICES.items()}
    return Price(of["in"], of["out"], cached=of["cached"], cache_write=of["cache_write"])


class Stack:
    """All layers in this process, before the scripted providers.

    Attributes:
        app: The outermost layer.
        providers: What stands behind.
        asked: What the policy was asked.
        says: What it says.
        log: The lines of the log.
        meters: The metrics.
        store: Tenants and money.
        key: The id of the key of the tenant ``team``.
    """

    def __init__(self, url: str, providers: Providers, meters: Any, *, requests: int, retries: int) -> None:
        prices = PriceTable(dict.fromkeys(["m", *(f"{name}/{model}" for name, model in OWN.items())], price()))
        adapters: list[Adapter] = [
            OpenAIAdapter("openai", f"{url}/openai/v1", KEYS["openai"], vendor=OPENAI),
            AnthropicAdapter("anthropic", f"{url}/anthropic", KEYS["anthropic"]),
        ]
        self.providers, self.meters = providers, meters
        self.store, self.traces, self.log = MemoryStore(), TraceLog(), Kept()
        self.asked: list[dict[str, Any]] = []
        self.says: Any = True
        self.proxy = ProxyApp(router=Router(adapters), prices=prices, max_retries=0)
        inner: Any = StructuredOutputMiddleware(self.proxy, streams="hold", retries=retries)
        inner = CacheMiddleware(BudgetMiddleware(inner, ledger=self.store, prices=prices))
        inner = RateLimitMiddleware(
            PolicyMiddleware(inner, decide=self._decide, cache_seconds=0), requests=requests, window=60
        )
        inner = TracingMiddleware(TenantMiddleware(inner, store=self.store), traces=self.traces)
        self.app = SecurityHeadersMiddleware(
            LoggingMiddleware(MetricsMiddleware(inner, meters=meters), logger=self.log.lines)
        )
        self._secret = b""
        self.key = ""

    def _decide(self, question: dict[str, Any]) -> Any:
        self.asked.append(question)
        return self.says

    async def tenant(self, usd: float) -> None:
        """The tenant ``team``, which has so much money."""
        await self.store.put_tenant(Tenant("team", budget=int(usd * NANO_PER_USD)))
        key, secret = new_key("team")
        await self.store.add_key(key)
        self._secret, self.key = secret.encode(), key.id

    async def ask(self, body: Any, path: str) -> Answer:
        """A call of the tenant's."""
        headers = (JSON, (b"authorization", b"Bearer " + self._secret), (b"anthropic-version", b"2023-06-01"))
        return await ask(self.app, body, path, headers=headers)

    def trace(self) -> TraceRecord:
        """The last call's."""
        return self.traces.recent(1)[0]

    def line(self) -> dict[str, Any]:
        """The last call's."""
        return self.log.read()[-1]

    def metric(self, name: str, **labels: str) -> float:
        """A metric's value."""
        return value(shown(self.meters), name, **labels)

    async def settled(self) -> Decimal:
        """USD that were spent; nothing is held, and what was booked is what the providers billed."""
        balance = await self.store.balance("team")
        assert (balance.held, balance.tokens_held) == (0, 0)
        spent = Decimal(balance.spent) / NANO_PER_USD
        assert spent == exact_cost(self.providers.billed)
        assert len((await self.store.records("team", limit=100)).records) == len(self.providers.billed)
        return spent


@pytest.fixture(scope="module")
def behind() -> Iterator[tuple[str, Providers]]:
    """The providers, and where they are."""
    providers = Providers()
    with serving(providers) as url:
        yield url, providers


@pytest.fixture
def stacked(behind: tuple[str, Providers]) -> Any:
    """Makes a stack."""
    url, providers = behind

    @asynccontextmanager
    async def made(*, usd: float = 5.0, requests: int = 1000, retries: int = 0) -> AsyncIterator[Stack]:
        providers.forget()
        with counting() as meters:
            stack = Stack(url, providers, meters, requests=requests, retries=retries)
            await stack.tenant(usd)
            yield stack
            await stack.proxy.aclose()
        assert providers.objections == []

    return made


def asking(front: str, provider: str, words: str = "hello", *, schema: Any = None, **more: Any) -> dict[str, Any]:
    """A call whose answer is always the same."""
    body: dict[str, Any] = {"model": f"{provider}/{OWN[provider]}", "temperature": 0, **more}
    limit = {"chat": "max_completion_tokens", "messages": "max_tokens", "responses": "max_output_tokens"}[front]
    body |= {limit: 100, "input" if front == "responses" else "messages": [{"role": "user", "content": words}]}
    if front == "responses":
        body["store"] = False
    if schema is not None:
        named = {"name": "city", "strict": True, "schema": schema}
        wanted: dict[str, Any] = {
            "chat": {"response_format": {"type": "json_schema", "json_schema": named}},
            "messages": {"output_config": {"format": {"type": "json_schema", "schema": schema}}},
            "responses": {"text": {"format": {"type": "json_schema", **named}}},
        }
        body |= wanted[front]
    return body


def said(front: str, answer: Answer, stream: bool) -> str:
    """The text of an answer."""
    return text_of_stream(front, answer.body) if stream else text_of(front, answer.json())


def refusal(front: str, answer: Answer) -> tuple[int, str]:
    """Status and code of a refusal, which is in the envelope of its dialect."""
    told = answer.json()
    assert answer.headers["content-type"].startswith("application/json")
    if front == "messages":
        assert told["type"] == "error"
        assert told["error"]["type"] in {
            "permission_error",
            "rate_limit_error",
            "billing_error",
            "invalid_request_error",
        }
    else:
        assert "type" not in told
        assert {"message", "type", "param", "code"} <= told["error"].keys()
    return answer.status, told["error"]["code"]


# -- what goes through -------------------------------------------------------------------------------------------------


@every_front
@both_forms
@both_providers
async def test_each_layer_does_its_work_for_a_call_and_for_its_repetition(
    stacked: Any, front: str, stream: bool, provider: str
) -> None:
    """Policy, cache, limits, budget, trace, log line and metrics; the second call is a hit, and costs nothing."""
    body, path, model = asking(front, provider, stream=stream), PATHS[front], f"{provider}/{OWN[provider]}"
    async with stacked() as at:
        answer = await at.ask(body, path)
        assert (answer.status, answer.complete, said(front, answer, stream)) == (200, True, HELLO)
        assert (answer.headers["x-cache"], answer.headers["x-llm-provider"]) == ("miss", provider)
        assert answer.headers["x-ratelimit-remaining-requests"] == "999"
        assert answer.headers["x-content-type-options"] == "nosniff"
        (question,) = at.asked
        assert (question["dialect"], question["model"], question["stream"]) == (front, model, stream)
        assert (question["tenant"]["id"], question["key"]["id"], question["kind"]) == ("team", at.key, "metered")
        cost = await at.settled()
        (billed,) = at.providers.billed
        trace, line = at.trace(), at.line()
        assert (trace.tenant, trace.model, trace.provider, trace.status) == ("team", model, provider, 200)
        assert (trace.stream, trace.cache, trace.error, trace.cost) == (stream, "miss", None, int(cost * NANO_PER_USD))
        assert trace.usage is not None
        assert (trace.usage.prompt, trace.usage.completion) == billed[:2]
        assert (trace.usage.cached, trace.usage.cache_write) == billed[2:4]
        assert (line["tenant"], line["key"], line["model"], line["provider"]) == ("team", at.key, model, provider)
        assert (line["path"], line["stream"], line["status"], line["cache"]) == (path, stream, 200, "miss")
        assert (line["tokens_in"], line["tokens_out"], line["tokens_cached"]) == billed[:3]
        assert (line["cost_usd"], line["trace_id"]) == (float(cost), answer.headers["x-trace-id"])
        of: dict[str, str] = {"tenant": "team", "model": model}
        for kind, count in zip(("prompt", "completion"), billed[:2], strict=True):
            assert at.metric("llm_tokens_total", type=kind, **of) == count
        assert (at.metric("llm_calls_total", **of), at.metric("llm_cost_total", tenant="team")) == (1, float(cost))
        assert at.metric("http_requests_total", route=path, status="200") == 1

        again = await at.ask(body, path)
        assert (again.status, again.headers["x-cache"], said(front, again, stream)) == (200, "hit", HELLO)
        assert (len(at.providers.asked), len(at.asked), await at.settled()) == (1, 2, cost)
        assert again.headers["x-ratelimit-remaining-requests"] == "998"
        trace, line = at.trace(), at.line()
        assert (trace.tenant, trace.cache, trace.saved) == ("team", "hit", int(cost * NANO_PER_USD))
        assert (line["cache"], line["saved_usd"], line["tenant"], line["model"]) == ("hit", float(cost), "team", model)
        assert at.metric("llm_cache_events_total", event="hit") == 1
        assert at.metric("llm_cache_saved_total") == float(cost)
        assert at.metric("llm_calls_total", **of) == 1
        assert HELLO not in json.dumps(at.log.read(), ensure_ascii=False)


@every_front
@both_forms
@both_providers
async def test_an_answer_in_its_schema_goes_through_and_is_kept(
    stacked: Any, front: str, stream: bool, provider: str
) -> None:
    """Validated once, and told again from the cache."""
    body = asking(front, provider, "city", schema=CITIES, stream=stream)
    async with stacked() as at:
        for cached in ("miss", "hit"):
            answer = await at.ask(body, PATHS[front])
            assert (answer.status, answer.headers["x-cache"]) == (200, cached)
            assert json.loads(said(front, answer, stream)) == CITY
        assert await at.settled() > 0
        assert len(at.providers.asked) == 1
        assert at.providers.heard[0].schema is not None


# -- what does not -----------------------------------------------------------------------------------------------------


@every_front
@both_forms
@pytest.mark.parametrize("guard", ["policy", "rate limit", "budget"])
async def test_a_guards_refusal_is_in_the_dialect_and_costs_nothing(
    stacked: Any, front: str, stream: bool, guard: str
) -> None:
    """No provider is asked; trace, log line and metrics name the refusal and whom it met."""
    limits: dict[str, dict[str, Any]] = {"policy": {}, "rate limit": {"requests": 1}, "budget": {"usd": 0.000001}}
    body, path = asking(front, "openai", stream=stream), PATHS[front]
    async with stacked(**limits[guard]) as at:
        if guard == "policy":
            at.says = NO
        elif guard == "rate limit":
            assert (await at.ask(body, path)).status == 200
        before, asked = len(at.providers.asked), len(at.asked)
        answer = await at.ask(body, path)
        expected = {
            "policy": (403, "policy_denied"),
            "rate limit": (429, "rate_limit_exceeded"),
            "budget": (402, "would_exceed_budget"),
        }[guard]
        assert refusal(front, answer) == expected
        assert ("not on sundays" in answer.body.decode()) == (guard == "policy")
        assert len(at.providers.asked) == before
        await at.settled()
        assert len(at.asked) == asked + (guard != "rate limit")
        assert all(question["dialect"] == front for question in at.asked)
        trace, line = at.trace(), at.line()
        assert (trace.tenant, trace.status, trace.error) == ("team", *expected)
        assert (line["tenant"], line["status"], line["error"]) == ("team", *expected)
        assert at.metric("llm_errors_total", code=expected[1]) == 1
        assert at.metric("http_requests_total", route=path, status=str(expected[0])) == 1


@every_front
@both_forms
@both_providers
async def test_an_answer_that_is_not_in_its_schema_is_refused_paid_and_not_kept(
    stacked: Any, front: str, stream: bool, provider: str
) -> None:
    """422 in the dialect, each time anew."""
    body = asking(front, provider, "city", schema=WRONG, stream=stream)
    async with stacked() as at:
        for calls in (1, 2):
            answer = await at.ask(body, PATHS[front])
            assert refusal(front, answer) == (422, "structured_output_invalid")
            assert (len(at.providers.billed), at.trace().error) == (calls, "structured_output_invalid")
        assert await at.settled() > 0


# -- counting ----------------------------------------------------------------------------------------------------------


@both_providers
@pytest.mark.parametrize("allowed", [True, False])
async def test_the_policy_is_asked_before_tokens_are_counted(stacked: Any, provider: str, allowed: bool) -> None:
    """As for a call, though it costs nothing; a no is told as Anthropic's clients know it, and reaches no provider."""
    body = {name: told for name, told in asking("messages", provider).items() if name in ("model", "messages")}
    async with stacked() as at:
        at.says = True if allowed else NO
        answer = await at.ask(body, COUNT)
        (question,) = at.asked
        assert (question["path"], question["kind"], question["tenant"]["id"]) == (COUNT, "authenticated", "team")
        if allowed:
            assert (answer.status, answer.json()["input_tokens"] > 0) == (200, True)
            assert answer.headers["x-llm-token-count"] == ("provider" if provider == "anthropic" else "estimate")
        else:
            assert refusal("messages", answer) == (403, "policy_denied")
            assert at.providers.asked == []
        assert await at.settled() == 0
        assert at.trace().status == at.line()["status"] == answer.status

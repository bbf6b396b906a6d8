"""``x-request-id`` and ``x-trace-id`` on every answer, whoever gives it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from asgi_llm_gateway._asgi import Receive, Scope, Send
from asgi_llm_gateway.middleware.base import LLMMiddleware, Rank
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.middleware.ratelimit import RateLimitMiddleware
from asgi_llm_gateway.middleware.tenant import TenantMiddleware
from asgi_llm_gateway.middleware.tracing import TracingMiddleware
from asgi_llm_gateway.settings import forget
from asgi_llm_gateway.stores.memory import MemoryLedger, MemoryStore
from asgi_llm_gateway.tracelog import TraceLog

from ..conversation import CHAT, JSON, Answer, ask, get
from ..otel.seen import Seen
from . import Stranger

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def identified(answer: Answer) -> bool:
    """Whether it has both ids, once each."""
    names = [bytes(name).lower() for name, _ in answer.messages[0]["headers"]]
    assert re.fullmatch(r"req_[0-9a-f]{32}", answer.headers["x-request-id"])
    assert re.fullmatch(r"(?!0{32})[0-9a-f]{32}", answer.headers["x-trace-id"])
    return names.count(b"x-request-id") == names.count(b"x-trace-id") == 1


class Faulty(LLMMiddleware):
    """A layer with a mistake in it."""

    rank = Rank.POLICY

    async def handle(self, exchange: Any, scope: Scope, receive: Receive, send: Send) -> None:
        """See LLMMiddleware."""
        raise ZeroDivisionError("PRIVATE")


@pytest.fixture(params=["without", "sampled", "not sampled"])
def layer(request: pytest.FixtureRequest) -> Any:
    """TracingMiddleware without OpenTelemetry, and with it."""
    if request.param == "without":
        return lambda app, **more: TracingMiddleware(app, traces=TraceLog(), **more)
    return Seen(None if request.param == "sampled" else ALWAYS_OFF)


async def test_answers_refusals_and_faults_alike(layer: Any) -> None:
    """200, 400, 401, 404, 405, 429 and the 500 of a layer's own mistake."""
    paid = BudgetMiddleware(Stranger(), ledger=MemoryLedger(), unknown_price="free")
    limited = layer(RateLimitMiddleware(paid, requests=1, window=1e7))
    guarded = layer(TenantMiddleware(Stranger(), store=MemoryStore()))
    assert (await ask(limited, CHAT)).status == 200
    answers = {
        200: await ask(layer(paid), CHAT),
        400: await ask(layer(paid), b"{"),
        401: await ask(guarded, CHAT),
        404: await ask(guarded, CHAT, "/v1//chat/completions"),
        405: await get(layer(paid), "/v1/chat/completions"),
        429: await ask(limited, CHAT),
        500: await ask(layer(Faulty(Stranger())), CHAT),
    }
    assert {status: answer.status for status, answer in answers.items()} == {status: status for status in answers}
    assert all(identified(answer) for answer in answers.values())
    assert len({answer.headers["x-trace-id"] for answer in answers.values()}) == len(answers)


@pytest.mark.parametrize("method", ["GET", "OPTIONS", "POST"])
async def test_pages_beside_the_calls(layer: Any, method: str) -> None:
    """A path that is none of the gateway's, where all that answers is ours; no span and no record is made of it."""
    app = layer(Stranger(status=404), pages=True)
    answer = await get(app, "/nowhere") if method == "GET" else await ask(app, None, "/nowhere", method=method)
    assert answer.status == 404
    assert identified(answer)
    if isinstance(layer, Seen):
        assert layer.spans == []


async def test_a_hosts_own_ids_stay() -> None:
    """What a page says of itself is left as it is; and a host's pages altogether, unless that is asked for."""

    async def page(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"X-Request-ID", b"theirs")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    answer = await get(TracingMiddleware(page, traces=TraceLog()), "/page")
    assert answer.headers == {"x-request-id": "theirs"}
    answer = await get(TracingMiddleware(page, traces=TraceLog(), pages=True), "/page")
    assert answer.headers["x-request-id"] == "theirs"
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-trace-id"])


async def test_wrong_settings_fail_calls_and_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of the host's is none of the gateway's affair."""
    monkeypatch.setenv("TRACE_PARENT", "believe")
    forget()
    app = TracingMiddleware(Stranger(), traces=TraceLog(), pages=True)
    assert (await get(app, "/page")).status == 200
    answer = await ask(app, CHAT)
    assert (answer.status, answer.error["code"]) == (503, "misconfigured")
    assert "TRACE_PARENT" in answer.error["message"]


@pytest.mark.parametrize("policy", ["continue", "link", "ignore"])
async def test_a_clients_trace_id_counts_where_its_trace_does(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRACE_PARENT, without OpenTelemetry, for calls and for pages."""
    monkeypatch.setenv("TRACE_PARENT", policy)
    forget()
    app = TracingMiddleware(Stranger(), traces=TraceLog(), pages=True)
    headers = [JSON, (b"traceparent", f"00-{TRACE}-00f067aa0ba902b7-01".encode())]
    for path in ("/v1/chat/completions", "/page"):
        answer = await ask(app, CHAT, path, headers=headers)
        assert (answer.headers["x-trace-id"] == TRACE) is (policy == "continue")

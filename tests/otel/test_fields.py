"""Each kind of call, its spans compared field by field with the conventions."""

from __future__ import annotations

from typing import Any

from opentelemetry.trace import SpanKind, StatusCode

from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.middleware.cache import CacheMiddleware
from asgi_llm_gateway.middleware.ratelimit import RateLimitMiddleware
from asgi_llm_gateway.proxy.routing import Model
from asgi_llm_gateway.records import ApiKey, Tenant
from asgi_llm_gateway.stores.memory import MemoryLedger

from ..conversation import JSON, ask, call
from ..middleware import DONE as END
from ..middleware import Stranger, Streamer, counts, words
from ..proxy.house import ASKED, NOBODY, PRICES, STREAMED, House, house
from ..proxy.test_hedging import Held, hedged
from ..upstream import ANSWER, DONE, USAGE, always, event, once, silent, streaming, until, usage_event, whole, word
from .seen import Seen, about, own, standard

HEADERS = [JSON, (b"host", b"gw.example:8443"), (b"user-agent", b"tests/1")]
SERVER = {
    "http.request.method": "POST",
    "http.route": "/v1/chat/completions",
    "url.scheme": "http",
    "url.path": "/v1/chat/completions",
    "server.address": "gw.example",
    "server.port": 8443,
    "client.address": "127.0.0.1",
    "network.protocol.version": "1.1",
    "user_agent.original": "tests/1",
}
ASKED_FOR = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "gen_ai.request.max_tokens": 50}
USED = {"gen_ai.usage.input_tokens": 3, "gen_ai.usage.output_tokens": 5}


def chunk(text: str, finish: str | None = None) -> bytes:
    """An event of a provider that says who it is in each."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return event({"id": "chatcmpl-7", "model": "x-2026", "choices": [choice]})


async def asked(seen: Seen, home: House, body: Any = ASKED, **more: Any) -> Any:
    """A call through the house, whose spans are what holds of all."""
    answer = await ask(seen(home.app), body, headers=HEADERS, **more)
    seen.check()
    return answer


def place(home: House, name: str = "a") -> dict[str, Any]:
    """Where a provider of the house is."""
    return {"server.address": "127.0.0.1", "server.port": home.servers[name].port}


async def test_a_json_call() -> None:
    """All of what was asked, by whom, who answered, with what, and what it cost."""
    seen, key = Seen(), ApiKey("k1", "t", "0" * 64)
    body = {**ASKED, "temperature": 0.5, "top_p": 1, "seed": 7, "stop": ["a", "b"], "n": 2, "reasoning_effort": "low",
            "frequency_penalty": 0.1, "presence_penalty": -1, "response_format": {"type": "json_object"}}  # fmt: skip
    told = {**ANSWER, "model": "x-2026"}
    told["choices"] = [{"index": 0, "message": {}, "finish_reason": "stop"},
                       {"index": 1, "message": {}, "finish_reason": "length"}]  # fmt: skip
    told["usage"] = {**USAGE, "prompt_tokens_details": {"cached_tokens": 2},
                     "completion_tokens_details": {"reasoning_tokens": 4}}  # fmt: skip
    async with house(always(whole(told)), key=key) as home:
        answer = await asked(seen, home, body, query_string=b"api_key=SECRET&plain")
        (attempt,) = seen.attempts
        assert (seen.server.name, seen.server.kind) == ("POST /v1/chat/completions", SpanKind.SERVER)
        shown = {"url.query": "api_key=REDACTED&REDACTED", "http.response.status_code": 200}
        assert standard(seen.server) == SERVER | shown
        request_id = answer.headers["x-request-id"]
        assert own(seen.server) == {"tenant": "t", "key_id": "k1", "request_id": request_id}
        assert seen.logical.name == "chat m"
        assert standard(seen.logical) == {
            **ASKED_FOR,
            **USED,
            **place(home),
            "gen_ai.provider.name": "a",
            "gen_ai.request.temperature": 0.5,
            "gen_ai.request.top_p": 1.0,
            "gen_ai.request.seed": 7,
            "gen_ai.request.stop_sequences": ("a", "b"),
            "gen_ai.request.choice.count": 2,
            "gen_ai.request.reasoning.level": "low",
            "gen_ai.request.frequency_penalty": 0.1,
            "gen_ai.request.presence_penalty": -1.0,
            "gen_ai.output.type": "json",
            "gen_ai.response.id": "chatcmpl-1",
            "gen_ai.response.model": "x-2026",
            "gen_ai.response.finish_reasons": ("stop", "length"),
            "gen_ai.usage.cache_read.input_tokens": 2,
            "gen_ai.usage.reasoning.output_tokens": 4,
        }
        assert own(seen.logical) == {
            "tenant": "t", "key_id": "k1", "request_id": request_id, "attempts": 1, "cost_usd": 13e-9,
        }  # fmt: skip
        assert (attempt.name, attempt.kind) == ("POST", SpanKind.CLIENT)
        assert standard(attempt) == {
            **place(home),
            "http.request.method": "POST",
            "url.full": home.servers["a"].url("/v1/chat/completions"),
            "http.response.status_code": 200,
        }
        assert own(attempt) == {"attempt": 1, "provider": "a", "model": "x"}
    assert {one.status.status_code for one in seen.spans} == {StatusCode.UNSET}
    assert answer.headers["x-trace-id"] == f"{seen.server.context.trace_id:032x}"


async def test_a_stream() -> None:
    """Its first chunk's time, and what its last events told."""
    seen = Seen()
    events = [chunk("hel"), chunk("lo"), chunk("", "stop"), usage_event(), DONE]
    async with house(streaming(*events)) as home:
        await asked(seen, home, STREAMED)
        found = standard(seen.logical)
        first = found.pop("gen_ai.response.time_to_first_chunk")
        assert found == {
            **ASKED_FOR,
            **USED,
            **place(home),
            "gen_ai.provider.name": "a",
            "gen_ai.request.stream": True,
            "gen_ai.response.id": "chatcmpl-7",
            "gen_ai.response.model": "x-2026",
            "gen_ai.response.finish_reasons": ("stop",),
        }
    logical = seen.logical
    assert 0 < first <= ((logical.end_time or 0) - (logical.start_time or 0)) / 1e9
    assert own(logical)["cost_usd"] == 13e-9
    assert "aborted" not in own(logical)


async def test_a_stream_that_its_client_leaves() -> None:
    """No failure: marked as aborted, with the tokens that came until then."""
    seen = Seen()
    async with house(streaming(*[chunk("word")] * 500, gap=0.01)) as home:
        async with call(seen(home.app), STREAMED, headers=HEADERS) as talk:
            for _ in range(4):
                await talk.next()
            await talk.hang_up()
        seen.check()
    (attempt,) = seen.attempts
    assert {one.status.status_code for one in seen.spans} == {StatusCode.UNSET}
    assert not [one for one in seen.spans if "error.type" in about(one)]
    found = about(seen.logical)
    assert found["llm_gateway.aborted"] is about(seen.server)["llm_gateway.aborted"] is True
    assert found["gen_ai.response.finish_reasons"] == ("error",)
    assert found["gen_ai.usage.output_tokens"] >= 3
    assert found["llm_gateway.usage_estimated"] is True
    assert found["llm_gateway.cost_usd"] > 0
    assert about(attempt)["http.response.status_code"] == 200


async def test_a_json_call_that_its_client_leaves() -> None:
    """Before anything was answered: no status, and no error."""
    seen = Seen()
    async with house(silent) as home:
        async with call(seen(home.app), ASKED, headers=HEADERS) as talk:
            await until(lambda: home.servers["a"].connections == 1)
            await talk.hang_up()
        seen.check()
    assert "http.response.status_code" not in about(seen.server)
    assert own(seen.server)["aborted"] is own(seen.logical)["aborted"] is True
    assert {one.status.status_code for one in seen.spans} == {StatusCode.UNSET}


async def test_a_refused_call_never_reached_a_model() -> None:
    """Its reason stands on the SERVER span, whose status is the client's affair; there is no other span."""
    seen = Seen()
    layer = seen(RateLimitMiddleware(Stranger(), requests=1, window=1e7))
    await ask(layer, ASKED)
    seen.clear()
    answer = await ask(layer, ASKED, headers=HEADERS)
    seen.check()
    (server,) = seen.spans
    assert (answer.status, server.status.status_code) == (429, StatusCode.UNSET)
    assert about(server)["error.type"] == "rate_limit_exceeded"
    assert about(server)["http.response.status_code"] == 429
    assert answer.headers["x-trace-id"] == f"{server.context.trace_id:032x}"


async def test_a_budgets_refusal() -> None:
    """The same where the money does not suffice: what was asked for goes nowhere."""
    seen = Seen()
    async with house(always(whole()), tenant=Tenant("t", budget=1)) as home:
        answer = await asked(seen, home)
    assert answer.status in (402, 429)
    (server,) = seen.spans
    assert about(server)["error.type"] == "would_exceed_budget"
    assert own(server)["tenant"] == "t"


async def test_a_call_that_is_tried_again() -> None:
    """One span an attempt, the failed ones with their errors; the second one is counted as sent again."""
    seen = Seen()
    bad = whole({"error": {"message": "PRIVATE"}}, 500)
    async with house([once(bad), always(whole())], retries=1) as home:
        answer = await asked(seen, home)
    assert answer.status == 200
    first, second = seen.attempts
    assert (first.status.status_code, second.status.status_code) == (StatusCode.ERROR, StatusCode.UNSET)
    assert about(first)["http.response.status_code"] == 500
    assert about(first)["error.type"] == home.attempts[0][2]
    assert "http.request.resend_count" not in about(first)
    assert about(second)["http.request.resend_count"] == 1
    assert (first.end_time or 0) <= (second.start_time or 0)
    assert (seen.logical.status.status_code, own(seen.logical)["attempts"]) == (StatusCode.UNSET, 2)
    assert "PRIVATE" not in repr([(about(one), one.status.description) for one in seen.spans])


async def test_a_call_that_goes_elsewhere() -> None:
    """The whole is told of the provider that answered; the attempts say where each went."""
    seen = Seen()
    async with house(NOBODY, always(whole()), model=Model(["a/x", "b/x"])) as home:
        await asked(seen, home)
        sent = home.servers["b"].requests[0].headers["traceparent"]
    first, second = seen.attempts
    assert [own(one)["provider"] for one in (first, second)] == ["a", "b"]
    assert "http.response.status_code" not in about(first)
    assert about(first)["error.type"] == "upstream_unreachable"
    assert about(seen.logical)["gen_ai.provider.name"] == "b"
    assert second.context is not None
    assert sent[:53] == f"00-{second.context.trace_id:032x}-{second.context.span_id:016x}-"
    assert int(sent[53:], 16) & 1  # sampled


async def test_a_call_that_fails_everywhere() -> None:
    """An error of the server's, of the call, and of each attempt."""
    seen = Seen()
    async with house(once(whole({}, 500)), once(whole({}, 503)), model=Model(["a/x", "b/x"])) as home:
        answer = await asked(seen, home)
    assert answer.status >= 500
    assert {one.status.status_code for one in seen.spans} == {StatusCode.ERROR}
    assert about(seen.logical)["error.type"] == about(seen.server)["error.type"] == answer.error["code"]
    assert "gen_ai.usage.output_tokens" not in about(seen.logical)


async def test_a_providers_refusal_is_an_error_of_the_attempt() -> None:
    """A 4xx is one for a client, which we are there; our own status is not set for it."""
    seen = Seen()
    async with house(always(whole({"error": {"message": "no", "code": "bad_thing"}}, 400))) as home:
        answer = await asked(seen, home)
    assert answer.status == 400
    (attempt,) = seen.attempts
    assert attempt.status.status_code is seen.logical.status.status_code is StatusCode.ERROR
    assert about(attempt)["http.response.status_code"] == 400
    assert about(attempt)["error.type"] == about(seen.logical)["error.type"] == "bad_thing"
    assert seen.server.status.status_code is StatusCode.UNSET


async def test_a_stream_that_breaks_off() -> None:
    """A 200 that came to nothing is an error of all three."""
    seen = Seen()
    async with house(streaming(chunk("one"), chunk("two"))) as home:
        await asked(seen, home, STREAMED)
    (attempt,) = seen.attempts
    for one in (seen.server, seen.logical, attempt):
        assert one.status.status_code is StatusCode.ERROR
        assert about(one)["error.type"] == "upstream_cut"
    assert about(seen.logical)["gen_ai.response.finish_reasons"] == ("error",)
    assert "aborted" not in own(seen.logical)


async def test_a_rival_that_was_outrun() -> None:
    """It was given up on purpose: marked as such, and no error."""
    seen = Seen()
    async with house(Held(), always(whole()), model=hedged()) as home:
        await asked(seen, home)
    slow, quick = seen.attempts
    assert own(slow)["outrun"] is True
    assert "outrun" not in own(quick)
    assert "error.type" not in about(slow)
    assert {one.status.status_code for one in seen.spans} == {StatusCode.UNSET}
    assert about(seen.logical)["gen_ai.provider.name"] == "b"
    assert about(quick)["http.request.resend_count"] == 1


async def test_an_answer_of_the_cache() -> None:
    """A span of the call that begins with the look-up, no attempt, no tokens, no cost, and what was saved."""
    seen = Seen()
    body = {**ASKED, "temperature": 0}
    async with house(always(whole())) as home:
        paid = BudgetMiddleware(home.proxy, ledger=home.ledger, prices=PRICES, prompt_bound="bytes")
        app = seen(CacheMiddleware(paid, redis_url=""))
        await ask(app, body, headers=HEADERS)
        seen.check()
        assert (own(seen.logical)["cache"], len(seen.attempts)) == ("miss", 1)
        miss = seen.logical
        assert about(miss)["gen_ai.usage.output_tokens"] == 5
        (attempt,) = seen.attempts
        assert (miss.start_time or 0) < (attempt.start_time or 0)  # the look-up belongs to it
        seen.clear()
        answer = await ask(app, body, headers=HEADERS)
        seen.check()
    assert answer.headers["x-cache"] == "hit"
    assert not seen.attempts
    assert standard(seen.logical) == ASKED_FOR | {
        "gen_ai.provider.name": "openai", "gen_ai.request.temperature": 0.0,
    }  # fmt: skip
    found = own(seen.logical)
    assert (found["cache"], found["attempts"], found["cost_usd"], found["saved_usd"]) == ("hit", 0, 0.0, 13e-9)
    assert own(seen.server)["cache"] == "hit"


async def test_a_strangers_answer() -> None:
    """An app that speaks the API itself: what its answer tells, and no attempt that we would know of.

    What was asked is known where a layer further in reads it; tracing alone leaves the body to the app.
    """
    seen = Seen()
    told = {"gen_ai.provider.name": "openai", "gen_ai.usage.input_tokens": 10, "gen_ai.usage.output_tokens": 20}
    await ask(seen(Stranger((10, 20))), ASKED, headers=HEADERS)
    seen.check()
    assert standard(seen.logical) == {"gen_ai.operation.name": "chat", **told}
    seen.clear()
    read = BudgetMiddleware(Stranger((10, 20)), ledger=MemoryLedger(), prices=PRICES)
    await ask(seen(read), ASKED, headers=HEADERS)
    seen.check()
    assert standard(seen.logical) == {**ASKED_FOR, **told}
    assert own(seen.logical)["cost_usd"] == 50e-9
    seen.clear()
    streams = BudgetMiddleware(Streamer([*words(3), counts(4, 3), END]), ledger=MemoryLedger(), prices=PRICES)
    await ask(seen(streams), STREAMED, headers=HEADERS)
    seen.check()
    found = about(seen.logical)
    assert (found["gen_ai.usage.input_tokens"], found["gen_ai.usage.output_tokens"]) == (4, 3)
    assert found["gen_ai.response.time_to_first_chunk"] > 0


async def test_a_strangers_refusal_makes_no_span_of_a_call() -> None:
    """It is not known whether any model was asked."""
    seen = Seen()
    await ask(seen(Stranger(status=400)), ASKED)
    (server,) = seen.spans
    assert (server.status.status_code, about(server)["http.response.status_code"]) == (StatusCode.UNSET, 400)
    seen.clear()
    await ask(seen(Stranger(status=503)), ASKED)
    (server,) = seen.spans
    assert (server.status.status_code, about(server)["error.type"]) == (StatusCode.ERROR, "503")


async def test_streams_that_are_relayed_word_by_word() -> None:
    """The helpers of other tests say no id and no model: then neither does the span."""
    seen = Seen()
    async with house(streaming(word("hi", "stop"), usage_event(), DONE)) as home:
        await asked(seen, home, STREAMED)
    found = about(seen.logical)
    assert "gen_ai.response.id" not in found
    assert "gen_ai.response.model" not in found
    assert found["gen_ai.response.finish_reasons"] == ("stop",)

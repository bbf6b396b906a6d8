"""What happened: ids on every answer, one record a call, and nothing private in it."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import asdict

import pytest

from asgi_llm_gateway._asgi import Receive, Scope, Send
from asgi_llm_gateway.keys import new_key
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.middleware.ratelimit import RateLimitMiddleware
from asgi_llm_gateway.middleware.tenant import TenantMiddleware
from asgi_llm_gateway.middleware.tracing import TracingMiddleware
from asgi_llm_gateway.records import Tenant, Usage
from asgi_llm_gateway.stores.memory import MemoryLedger, MemoryStore
from asgi_llm_gateway.tracelog import TraceLog, shared_traces

from ..conversation import CHAT, JSON, Headers, ask, call, get
from . import DONE, Gate, Stranger, Streamer, counts, words

TRACE = b"4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = b"00-" + TRACE + b"-00f067aa0ba902b7-01"


async def test_alone_it_gives_ids_and_keeps_the_record_in_this_process() -> None:
    """``TracingMiddleware(app)`` and nothing else."""
    answer = await ask(TracingMiddleware(Stranger()), CHAT)
    assert answer.status == 200
    assert re.fullmatch(r"req_[0-9a-f]{32}", answer.headers["x-request-id"])
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-trace-id"])
    record = shared_traces.find(answer.headers["x-trace-id"])
    assert record is not None
    assert record.request_id == answer.headers["x-request-id"]


async def test_ids_are_fresh_for_every_call() -> None:
    """No two calls share one."""
    layer = TracingMiddleware(Stranger(), traces=TraceLog())
    answers = [await ask(layer, CHAT) for _ in range(50)]
    for name in ("x-request-id", "x-trace-id"):
        assert len({answer.headers[name] for answer in answers}) == 50


@pytest.mark.parametrize("name", [b"x-request-id", b"X-Request-ID"])
async def test_a_clients_sound_request_id_is_kept(name: bytes) -> None:
    """So that its log and ours can be laid side by side."""
    answer = await ask(TracingMiddleware(Stranger()), CHAT, headers=[JSON, (name, b"my-id_1.2")])
    assert answer.headers["x-request-id"] == "my-id_1.2"


@pytest.mark.parametrize("junk", [b"", b"a b", b"x" * 129, b"a\nx-evil: 1", b"\xff", b"<script>", b"id;drop", b"ok\n"])
async def test_a_junk_request_id_is_replaced(junk: bytes) -> None:
    """Nothing that could break a log or a header is echoed."""
    answer = await ask(TracingMiddleware(Stranger()), CHAT, headers=[JSON, (b"x-request-id", junk)])
    assert re.fullmatch(r"req_[0-9a-f]{32}", answer.headers["x-request-id"])


@pytest.mark.parametrize("name", [b"traceparent", b"Traceparent"])
async def test_a_traceparents_trace_is_joined(name: bytes) -> None:
    """``x-trace-id`` is that trace's id."""
    answer = await ask(TracingMiddleware(Stranger()), CHAT, headers=[JSON, (name, PARENT)])
    assert answer.headers["x-trace-id"] == TRACE.decode()


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01",
        b"00-" + TRACE + b"-" + b"0" * 16 + b"-01",
        b"ff-" + TRACE + b"-00f067aa0ba902b7-01",
        PARENT.upper(),
        PARENT[:-1],
        PARENT + b"\n",
        b"00-xyz-abc-01",
    ],
)  # fmt: skip
async def test_an_unsound_traceparent_starts_a_trace_of_our_own(junk: bytes) -> None:
    """As the specification says of an invalid header."""
    answer = await ask(TracingMiddleware(Stranger()), CHAT, headers=[JSON, (b"traceparent", junk)])
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-trace-id"])
    assert answer.headers["x-trace-id"] != TRACE.decode()


async def test_a_record_tells_who_what_and_how_long() -> None:
    """All that the layers further in know of the call."""
    traces, store, ledger = TraceLog(), MemoryStore(), MemoryLedger()
    await store.add_tenant(Tenant("team", budget=10**9))
    key, secret = new_key("team")
    await store.add_key(key)
    inner = TenantMiddleware(BudgetMiddleware(Stranger((10, 20)), ledger=ledger), store=store)
    layer = TracingMiddleware(inner, traces=traces)
    headers: Headers = [JSON, (b"x-api-key", secret.encode()), (b"traceparent", PARENT)]
    answer = await ask(layer, {**CHAT, "model": "gpt-4"}, headers=headers)
    (record,) = traces.recent()
    assert (record.trace_id, record.request_id) == (TRACE.decode(), answer.headers["x-request-id"])
    assert (record.method, record.path, record.tenant, record.model) == (
        "POST",
        "/v1/chat/completions",
        "team",
        "gpt-4",
    )
    assert (record.status, record.stream, record.error, record.aborted) == (200, False, None, False)
    assert (record.usage, record.cost) == (Usage(10, 20), 1_500_000)
    assert record.duration is not None
    assert record.first_byte is not None
    assert 0 <= record.first_byte <= record.duration
    assert record.started > 1e9
    (booked,) = (await ledger.records("team")).records
    assert (booked.request_id, booked.trace_id, booked.cost) == (record.request_id, record.trace_id, record.cost)


async def test_a_record_holds_no_prompt_no_answer_and_no_secret() -> None:
    """Neither of a call that went well nor of one that was refused."""
    traces, store = TraceLog(), MemoryStore()
    await store.add_tenant(Tenant("team"))
    key, secret = new_key("team")
    await store.add_key(key)
    layer = TracingMiddleware(TenantMiddleware(Stranger(), store=store), traces=traces)
    body = {"model": "m", "messages": [{"role": "user", "content": "PRIVATE-WORDS"}]}
    await ask(layer, body, headers=[JSON, (b"x-api-key", secret.encode())])
    await ask(layer, {**body, "n": -1}, headers=[JSON, (b"x-api-key", secret.encode())])
    await ask(layer, body, headers=[JSON, (b"x-api-key", secret.encode() + b"x")])
    text = repr([asdict(record) for record in traces.recent()]) + repr(traces.recent())
    assert len(traces.recent()) == 3
    for private in ("PRIVATE-WORDS", secret, key.digest):
        assert private not in text


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [(b"{", 400, "invalid_json"), (json.dumps({**CHAT, "base_url": "x"}).encode(), 400, "unsupported_parameter")],
)
async def test_a_refused_call_is_recorded_with_its_code(body: bytes, status: int, code: str) -> None:
    """And has its ids, as every answer does."""
    traces = TraceLog()
    answer = await ask(TracingMiddleware(BudgetMiddleware(Stranger()), traces=traces), body)
    (record,) = traces.recent()
    assert (record.status, record.error) == (answer.status, answer.error["code"]) == (status, code)
    assert answer.headers["x-trace-id"] == record.trace_id


async def test_every_refusal_of_a_stack_is_one_record() -> None:
    """One call, one record, whoever refuses."""
    traces = TraceLog()
    layer = TracingMiddleware(RateLimitMiddleware(Stranger(), requests=1, window=1e7), traces=traces)
    assert [(await ask(layer, CHAT)).status for _ in range(2)] == [200, 429]
    assert [record.error for record in traces.recent()] == ["rate_limit_exceeded", None]


async def test_a_stream_is_recorded_when_it_is_over() -> None:
    """Its usage and its first byte included."""
    traces = TraceLog()
    app = Streamer([*words(3), counts(4, 3), DONE])
    await ask(TracingMiddleware(BudgetMiddleware(app, ledger=MemoryLedger()), traces=traces), {**CHAT, "stream": True})
    (record,) = traces.recent()
    assert record.stream
    assert record.usage == Usage(4, 3)
    assert record.first_byte is not None


async def test_an_app_that_crashes_is_recorded_by_the_name_of_its_error() -> None:
    """The name only; its message could hold anything."""
    traces = TraceLog()

    async def crashing(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError("PRIVATE-WORDS")

    with pytest.raises(ZeroDivisionError):
        await ask(TracingMiddleware(crashing, traces=traces), CHAT)
    (record,) = traces.recent()
    assert record.error == "ZeroDivisionError"
    assert "PRIVATE" not in repr(record)


async def test_a_cancelled_call_is_recorded() -> None:
    """A server that cancels on hang-up leaves its mark."""
    traces = TraceLog()
    gate = Gate(Stranger())
    async with call(TracingMiddleware(gate, traces=traces), CHAT) as talk:
        await gate.reached.wait()
        talk.task.cancel()
        await asyncio.wait({talk.task})
    (record,) = traces.recent()
    assert record.error == "CancelledError"
    assert record.status is None


async def test_a_record_names_a_path_that_is_not_in_the_table() -> None:
    """An authenticated path by what was asked; one that the gateway passes over is none of its calls."""
    traces = TraceLog()
    layer = TracingMiddleware(Stranger(), traces=traces)
    await get(layer, "/v1/models/gpt-4")
    answer = await get(layer, "/health")
    assert [(record.method, record.path) for record in traces.recent()] == [("GET", "/v1/models/gpt-4")]
    assert "x-request-id" not in answer.headers


async def test_the_log_is_bounded_and_newest_first() -> None:
    """The oldest calls are forgotten; one tenant's can be asked for."""
    traces = TraceLog(size=3)
    layer = TracingMiddleware(Stranger(), traces=traces)
    for at in range(5):
        await ask(layer, CHAT, headers=[JSON, (b"x-request-id", b"r%d" % at)])
    assert [record.request_id for record in traces.recent()] == ["r4", "r3", "r2"]
    assert [record.request_id for record in traces.recent(1)] == ["r4"]
    assert len(traces.recent(tenant="default")) == 3
    assert not traces.recent(tenant="other")
    assert traces.find("0" * 32) is None

"""One line a call, with all that an operator asks for and nothing that is nobody's business."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import structlog

from asgi_llm_gateway._asgi import Receive, Scope, Send
from asgi_llm_gateway._log_writer import LogWriter
from asgi_llm_gateway.errors import StoreError
from asgi_llm_gateway.exchange import exchange_of
from asgi_llm_gateway.keys import new_key
from asgi_llm_gateway.logs import Lines, renderer
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.middleware.logging import LoggingMiddleware
from asgi_llm_gateway.middleware.ratelimit import RateLimitMiddleware
from asgi_llm_gateway.middleware.tenant import TenantMiddleware
from asgi_llm_gateway.middleware.tracing import TracingMiddleware
from asgi_llm_gateway.records import Target, Tenant, Usage
from asgi_llm_gateway.stores.memory import MemoryLedger, MemoryStore
from asgi_llm_gateway.tracelog import TraceLog

from ..conversation import CHAT, JSON, ask, call, get
from . import DONE, Gate, Stranger, Streamer, counts, words

PAID = {**CHAT, "model": "gpt-4"}
CANARY = "PRIVATE-WORDS"


class Kept:
    """A log that a test reads."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self._writer = LogWriter(renderer("json", None), self.written.append)
        self.lines = Lines(self._writer, lambda: 1_700_000_000.25)

    def read(self) -> list[dict[str, Any]]:
        """All lines so far."""
        assert self._writer.flush(10)
        return [json.loads(line) for line in b"".join(self.written).splitlines()]


async def test_a_calls_line_has_all_that_an_operator_asks_for() -> None:
    """Who, what, how long, how much."""
    kept, store = Kept(), MemoryStore()
    await store.add_tenant(Tenant("team"))
    key, secret = new_key("team")
    await store.add_key(key)
    inner = TenantMiddleware(BudgetMiddleware(Stranger((10, 20)), ledger=store), store=store)
    stack = LoggingMiddleware(TracingMiddleware(inner, traces=TraceLog()), logger=kept.lines)
    answer = await ask(stack, PAID, headers=[JSON, (b"x-api-key", secret.encode())])
    (line,) = kept.read()
    assert line.pop("latency_ms") >= line.pop("ttft_ms") >= 0
    assert line == {
        "timestamp": "2023-11-14T22:13:20.250000Z",
        "level": "info",
        "event": "call",
        "request_id": answer.headers["x-request-id"],
        "trace_id": answer.headers["x-trace-id"],
        "tenant": "team",
        "key": key.id,
        "method": "POST",
        "path": "/v1/chat/completions",
        "model": "gpt-4",
        "provider": None,
        "stream": False,
        "status": 200,
        "tokens_in": 10,
        "tokens_out": 20,
        "cost_usd": 0.0015,
        "error": None,
    }


async def test_a_stream_is_logged_when_it_is_over() -> None:
    """Its last usage and its first byte included."""
    kept = Kept()
    app = BudgetMiddleware(Streamer([*words(3), counts(4, 3), DONE]), ledger=MemoryLedger())
    await ask(LoggingMiddleware(app, logger=kept.lines), {**PAID, "stream": True})
    (line,) = kept.read()
    assert (line["stream"], line["tokens_in"], line["tokens_out"], line["status"]) == (True, 4, 3, 200)
    assert 0 <= line["ttft_ms"] <= line["latency_ms"]
    assert "aborted" not in line


@contextmanager
def crash(wanted: type[BaseException] | None) -> Iterator[None]:
    if wanted is None:
        yield
    else:
        with pytest.raises(wanted):
            yield


async def _crashing(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    raise ZeroDivisionError(CANARY)


@pytest.mark.parametrize(
    ("app", "body", "status", "error", "level", "raises"),
    [
        (Stranger(), b"{", 400, "invalid_json", "info", None),
        (Stranger(), {**PAID, "n": -1}, 400, "invalid_type", "info", None),
        (RateLimitMiddleware(Stranger(), requests=1, window=1e7), PAID, 429, "rate_limit_exceeded", "info", None),
        (Stranger(None, status=503), PAID, 503, None, "error", None),
        (_crashing, PAID, 500, "ZeroDivisionError", "error", ZeroDivisionError),
    ],
)
async def test_what_went_wrong_is_told_by_its_code(
    app: Any, body: Any, status: int, error: str | None, level: str, raises: type[BaseException] | None
) -> None:
    """And by its level; never by the words of an exception."""
    kept = Kept()
    layer = LoggingMiddleware(BudgetMiddleware(app, ledger=MemoryLedger()), logger=kept.lines)
    if isinstance(app, RateLimitMiddleware):
        layer = LoggingMiddleware(app, logger=kept.lines)
        await ask(layer, body)
    with crash(raises):
        await ask(layer, body)
    line = kept.read()[-1]
    if error == "invalid_type":
        assert line["error"]
    else:
        assert line["error"] == error
    assert (line["status"], line["level"]) == (status, level)
    assert CANARY not in repr(kept.written)


async def test_a_client_that_left_has_no_status_where_none_went_out() -> None:
    """The line says so."""
    kept = Kept()
    gate = Gate(Stranger())
    async with call(LoggingMiddleware(gate, logger=kept.lines), CHAT) as talk:
        await gate.reached.wait()
        talk.task.cancel()
        await asyncio.wait({talk.task})
    (line,) = kept.read()
    assert (line["status"], line["error"], line["tokens_out"]) == (None, "client_gone", None)


async def test_a_stream_that_was_cut_is_marked_and_has_its_cost() -> None:
    """Nobody rides for free."""
    kept = Kept()
    app = BudgetMiddleware(Streamer(words(5), endless=True), ledger=MemoryLedger())
    async with call(LoggingMiddleware(app, logger=kept.lines), {**PAID, "stream": True}) as talk:
        for _ in range(4):
            await talk.next()
        talk.task.cancel()
        await asyncio.wait({talk.task})
    (line,) = kept.read()
    assert line["aborted"] is True
    assert line["cost_usd"] > 0


async def test_a_call_that_could_not_be_settled_yet_says_so() -> None:
    """What it will cost is known; that it is booked is not claimed."""

    class Away(MemoryLedger):
        async def settle(self, hold: Any, record: Any) -> bool:
            raise StoreError("away")

    kept = Kept()
    layer = LoggingMiddleware(BudgetMiddleware(Stranger((10, 20)), ledger=Away()), logger=kept.lines)
    assert (await ask(layer, PAID)).status == 200
    (line,) = kept.read()
    assert (line["cost_usd"], line["settled"]) == (0.0015, False)


async def test_nobody_is_no_tenant() -> None:
    """A call without a key is not the default tenant's."""
    kept = Kept()
    await ask(LoggingMiddleware(TenantMiddleware(Stranger(), store=MemoryStore()), logger=kept.lines), CHAT)
    (line,) = kept.read()
    assert (line["status"], line["tenant"], line["key"]) == (401, None, None)


async def test_pages_and_health_checks_are_not_logged() -> None:
    """They are no calls; a server has an access log."""
    kept = Kept()
    layer = LoggingMiddleware(Stranger(), logger=kept.lines)
    for path in ("/", "/health", "/metrics"):
        await get(layer, path)
    assert not kept.read()


async def test_no_prompt_no_answer_no_key_and_no_client_text_is_in_the_log() -> None:
    """Of calls that went well, that were refused, that broke; in names, headers, paths and bodies."""
    kept, store = Kept(), MemoryStore()
    await store.add_tenant(Tenant("team"))
    key, secret = new_key("team")
    await store.add_key(key)

    async def telling(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
        await send(start)
        answer = {"choices": [{"message": {"content": CANARY}}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    inner = TenantMiddleware(BudgetMiddleware(telling, ledger=store), store=store)
    layer = LoggingMiddleware(TracingMiddleware(inner, traces=TraceLog()), logger=kept.lines)
    shows = [JSON, (b"authorization", b"Bearer " + secret.encode()), (b"x-request-id", CANARY.encode() + b" !")]
    body = {**PAID, "messages": [{"role": "user", "content": CANARY}], "metadata": {"who": CANARY}, "user": CANARY}
    for asked in (body, {**body, "n": CANARY}, {**body, "messages": CANARY}, {**body, CANARY: CANARY}):
        await ask(layer, asked, headers=shows, query_string=CANARY.encode())
    await ask(layer, body, headers=[JSON, (b"x-api-key", secret.encode() + CANARY.encode())])
    await get(layer, f"/v1/models/{CANARY}", headers=shows)
    await get(layer, f"/v1/{CANARY}", headers=shows)
    await ask(layer, {**body, "tenant": CANARY}, headers=shows)
    assert len(kept.read()) == 8
    for private in (CANARY, secret, key.digest):
        assert private not in b"".join(kept.written).decode()


@pytest.mark.parametrize("name", ['x\n{"event": "call"}', "\x1b[2J\x1b[31m", "m\u2028n\x00", "m" * 5000, "\ud83d"])
@pytest.mark.parametrize("form", ["json", "text"])
async def test_a_model_that_is_made_up_breaks_no_line(name: str, form: Any) -> None:
    """No second line, no terminal codes, no megabytes."""
    written: list[bytes] = []
    writer = LogWriter(renderer(form, None), written.append)
    layer = LoggingMiddleware(BudgetMiddleware(Stranger()), logger=Lines(writer, lambda: 1.0))
    await ask(layer, json.dumps({**CHAT, "model": name}).encode())
    assert writer.flush(10)
    text = b"".join(written).decode()
    assert text.count("\n") == 1
    assert "\x1b[2J" not in text
    assert len(text) < 2000
    assert "call" in text


async def test_where_the_host_app_uses_structlog_the_lines_go_its_way() -> None:
    """Its processors, its output; and a logger that is given is used as it is."""
    captured: list[Any] = []

    def keep(logger: Any, name: str, event: Any) -> Any:
        captured.append(event)
        raise structlog.DropEvent

    structlog.configure(processors=[keep])
    try:
        await ask(LoggingMiddleware(Stranger()), CHAT)
        await ask(LoggingMiddleware(Stranger(), logger=structlog.get_logger("mine")), CHAT)
    finally:
        structlog.reset_defaults()
    assert [line["event"] for line in captured] == ["call", "call"]
    assert captured[0]["path"] == "/v1/chat/completions"


async def test_alone_it_writes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    """``LoggingMiddleware(app)`` and nothing else; JSON, because nobody reads it at a terminal."""
    from asgi_llm_gateway.logs import shared_lines

    shared_lines.cache_clear()
    try:
        await ask(LoggingMiddleware(Stranger()), CHAT)
        assert shared_lines().writer.flush(10)
    finally:
        shared_lines.cache_clear()
    (line,) = [json.loads(text) for text in capfd.readouterr().err.splitlines() if text.startswith("{")]
    assert (line["event"], line["status"]) == ("call", 200)


async def test_a_call_that_needed_several_attempts_has_the_tokens_of_all() -> None:
    """They are all paid for."""

    async def twice(scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        assert exchange is not None
        for used in (Usage(10, 0), None, Usage(10, 5)):
            (await exchange.begin_call(Target("openai", "gpt-4"), exchange.request)).end(used)
        await Stranger((10, 5))(scope, receive, send)

    kept = Kept()
    await ask(LoggingMiddleware(BudgetMiddleware(twice, ledger=MemoryLedger()), logger=kept.lines), PAID)
    (line,) = kept.read()
    assert (line["attempts"], line["tokens_in"], line["tokens_out"], line["provider"]) == (3, 20, 5, "openai")


async def test_a_host_apps_processor_that_fails_costs_nobody_an_answer() -> None:
    """It is the host's log, and its bug."""

    class Broken:
        def info(self, event: str, **fields: Any) -> None:
            raise ZeroDivisionError

        error = info

    assert (await ask(LoggingMiddleware(Stranger(), logger=Broken()), CHAT)).status == 200

"""What was said, on the spans and in the events of a call; and of whose calls nothing may ever be."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor

from asgi_llm_gateway.contents.capture import ContentCapture, Mode, Redact
from asgi_llm_gateway.keys import new_key
from asgi_llm_gateway.middleware._tracing_content import EVENT, TRUNCATED
from asgi_llm_gateway.middleware.cache import CacheMiddleware
from asgi_llm_gateway.middleware.tenant import TenantMiddleware
from asgi_llm_gateway.records import Tenant
from asgi_llm_gateway.stores.memory import MemoryStore
from asgi_llm_gateway.wire import METERED, Dialect

from ..contents import CHAT, CHAT_ANSWER, MESSAGES, MESSAGES_ANSWER, PATHS, RESPONSES, RESPONSES_ANSWER
from ..contents.test_answered import stream_of
from ..conversation import JSON, Answer, ask, call
from .seen import Seen, about

TALKS: dict[Dialect, tuple[dict[str, Any], dict[str, Any]]] = {
    "chat": (CHAT, CHAT_ANSWER),
    "messages": (MESSAGES, MESSAGES_ANSWER),
    "responses": (RESPONSES, RESPONSES_ANSWER),
    "completions": (
        {"model": "gpt-3", "prompt": "What is this cat?"},
        {"choices": [{"index": 0, "text": "A cat.", "finish_reason": "stop"}]},
    ),
    "embeddings": ({"model": "text-embedding-3-small", "input": "a cat"}, {"data": [{"embedding": [1.0]}]}),
}
INPUT, OUTPUT = "gen_ai.input.messages", "gen_ai.output.messages"
SYSTEM, TOOLS = "gen_ai.system_instructions", "gen_ai.tool.definitions"


class Talker:
    """An app that answers in the dialect that it is asked in, as it came from a provider.

    Args:
        pack: Whether the answer is compressed.
        cut: Bytes in one message.
    """

    def __init__(self, *, pack: bool = False, cut: int = 50) -> None:
        self._pack = pack
        self._cut = cut
        self.stops_at: int | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The ASGI application."""
        asked = orjson.loads((await receive())["body"])
        dialect = METERED[scope["path"]]
        answer = TALKS[dialect][1]
        stream = bool(asked.get("stream"))
        body = stream_of(dialect, answer) if stream else orjson.dumps(answer)
        headers = [(b"content-type", b"text/event-stream" if stream else b"application/json")]
        if self._pack:
            body = gzip.compress(body)
            headers.append((b"content-encoding", b"gzip"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for at in range(0, len(body), self._cut):
            if self.stops_at is not None and at >= self.stops_at:
                await receive()  # until the client has left
                return
            await send({"type": "http.response.body", "body": body[at : at + self._cut], "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class Stage:
    """A stack with two tenants, whose spans and events are kept."""

    def __init__(
        self,
        mode: Mode,
        listed: list[str],
        app: Any = None,
        redact: Redact | None = None,
        *,
        max_bytes: int = 16384,
        cache: bool = False,
    ) -> None:
        self.seen = Seen()
        self._events = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]
        logs = LoggerProvider(shutdown_on_exit=False)
        logs.add_log_record_processor(SimpleLogRecordProcessor(self._events))
        self._store = MemoryStore()
        inner = app or Talker()
        inner = CacheMiddleware(inner) if cache else inner
        content = ContentCapture(mode, tenants=listed, redact=redact, max_bytes=max_bytes)
        guarded = TenantMiddleware(inner, store=self._store)
        self.app = self.seen(guarded, content=content, logger_provider=logs)

    async def key(self, tenant: str) -> str:
        """A key of that tenant."""
        await self._store.put_tenant(Tenant(tenant))
        key, secret = new_key(tenant)
        await self._store.add_key(key)
        return secret

    async def ask(self, tenant: str | None, dialect: Dialect = "chat", **more: Any) -> Answer:
        """One call; ``None`` comes with a key of nobody's."""
        secret = await self.key(tenant) if tenant is not None else "gw-nobody"
        headers = (JSON, (b"authorization", f"Bearer {secret}".encode()))
        return await ask(self.app, {**TALKS[dialect][0], **more}, PATHS[dialect], headers=headers)

    @property
    def events(self) -> list[Any]:
        """The log records."""
        return [one.log_record for one in self._events.get_finished_logs()]

    @property
    def told(self) -> str:
        """Everything that left the process."""
        return repr([(one.name, about(one)) for one in self.seen.spans]) + repr(
            [(one.event_name, one.body, dict(one.attributes or {})) for one in self.events]
        )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("dialect", TALKS)
async def test_the_content_of_a_listed_tenant_is_on_the_calls_span(dialect: Dialect, stream: bool) -> None:
    """Of each dialect, whole and streamed: JSON of what was asked, of what was answered, and of nothing else."""
    if dialect == "embeddings" and stream:
        return
    stage = Stage("SPAN_ONLY", ["acme"])
    assert (await stage.ask("acme", dialect, **({"stream": True} if stream else {}))).status == 200
    found = about(stage.seen.logical)
    assert "cat" in repr(orjson.loads(found[INPUT])) or dialect == "responses"
    if dialect != "embeddings":
        assert "A cat." in repr(orjson.loads(found[OUTPUT]))
        assert all(one["finish_reason"] for one in orjson.loads(found[OUTPUT]))
    assert (SYSTEM in found) == (dialect in ("messages", "responses"))
    assert (TOOLS in found) == (dialect in ("chat", "messages", "responses"))
    assert TRUNCATED not in found
    assert stage.events == []
    for other in (stage.seen.server, *stage.seen.attempts):
        assert "cat" not in repr(about(other))


async def test_events_have_the_spans_attributes_and_structured_content() -> None:
    """One log record a call, in the span's context; with EVENT_ONLY nothing is on the span."""
    stage = Stage("EVENT_ONLY", ["*"])
    await stage.ask("acme")
    span = stage.seen.logical
    (event,) = stage.events
    assert event.event_name == EVENT
    assert span.context is not None
    assert (event.trace_id, event.span_id) == (span.context.trace_id, span.context.span_id)
    assert event.timestamp
    found = dict(event.attributes)
    assert found["gen_ai.operation.name"] == "chat"
    assert found[OUTPUT][0]["parts"][0]["content"] == "A cat."
    assert found[INPUT][0]["role"] == "system"
    assert about(span).items() <= found.items()
    assert set(found) - set(about(span)) == {INPUT, OUTPUT, TOOLS}


@settings(max_examples=60, deadline=None)
@given(
    mode=st.sampled_from(["NO_CONTENT", "SPAN_ONLY", "EVENT_ONLY", "SPAN_AND_EVENT"]),
    listed=st.lists(st.sampled_from(["acme", "acm", "acme-2", "beta", "default", "*"]), max_size=3),
    tenant=st.sampled_from(["acme", "beta", "default", None]),
    dialect=st.sampled_from(sorted(TALKS)),
    stream=st.booleans(),
    cache=st.booleans(),
)
def test_content_is_told_of_listed_tenants_only(
    mode: Mode, listed: list[str], tenant: str | None, dialect: Dialect, stream: bool, cache: bool
) -> None:
    """Whoever calls, with whatever answer, from the cache or not; one without a key is nobody's tenant."""
    stage = Stage(mode, listed, cache=cache)
    more = {"stream": True} if stream and dialect != "embeddings" else {}

    async def twice() -> None:
        for _ in range(2):
            await stage.ask(tenant, dialect, temperature=0, **more) if dialect in ("chat", "completions") else (
                await stage.ask(tenant, dialect, **more)
            )

    asyncio.run(twice())
    allowed = mode != "NO_CONTENT" and tenant is not None and (tenant in listed or "*" in listed)
    assert ("cat" in stage.told) == allowed
    assert bool(stage.events) == (allowed and "EVENT" in mode)


async def test_an_answer_from_the_cache_has_its_content_too() -> None:
    """It was said to this caller as well."""
    stage = Stage("SPAN_ONLY", ["acme"], cache=True)
    await stage.ask("acme", temperature=0)
    await stage.ask("acme", temperature=0)
    first, second = stage.seen.logicals
    assert about(second)["llm_gateway.cache"] == "hit"
    assert about(second)[OUTPUT] == about(first)[OUTPUT]


async def test_a_stream_that_its_client_left_tells_what_came_until_then() -> None:
    """And that it never finished."""
    talker = Talker(cut=30)
    talker.stops_at = stream_of("chat", CHAT_ANSWER).index(b'"finish_reason":"stop"') - 20
    stage = Stage("SPAN_ONLY", ["acme"], talker)
    headers = (JSON, (b"authorization", f"Bearer {await stage.key('acme')}".encode()))
    async with call(stage.app, {**CHAT, "stream": True}, headers=headers) as talk:
        for _ in range(2 + talker.stops_at // 30):
            await talk.next()
        await talk.hang_up()
    found = orjson.loads(about(stage.seen.logical)[OUTPUT])
    assert found[0]["parts"] == [{"type": "text", "content": "A cat."}]
    assert [one["finish_reason"] for one in found] == ["error"]


@pytest.mark.parametrize(
    ("app", "status"), [(Talker(pack=True), 200), (None, 403)], ids=["compressed", "of a tenant that is disabled"]
)
async def test_what_can_not_be_read_or_was_refused_is_left_out(app: Any, status: int) -> None:
    """A compressed answer is not unpacked for it; a refused call has no span of its own."""
    stage = Stage("SPAN_AND_EVENT", ["acme"], app)
    secret = await stage.key("acme")
    if status == 403:
        await stage._store.put_tenant(Tenant("acme", enabled=False))
    headers = (JSON, (b"authorization", f"Bearer {secret}".encode()))
    assert (await ask(stage.app, CHAT, headers=headers)).status == status
    assert "A cat." not in stage.told
    assert len(stage.events) == (status == 200)


async def test_a_hook_that_fails_costs_the_content_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    """The call is answered, its span ends, and of the content not even the log tells."""

    def redact(name: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        raise ValueError(str(messages))

    stage = Stage("SPAN_AND_EVENT", ["acme"], redact=redact)
    with caplog.at_level(logging.DEBUG):
        for _ in range(3):
            assert (await stage.ask("acme")).status == 200
    assert len(stage.seen.logicals) == 3
    assert "cat" not in stage.told + caplog.text
    assert caplog.text.count("redact= failed") == 1


async def test_a_log_processor_that_fails_costs_no_call_and_no_span(caplog: pytest.LogCaptureFixture) -> None:
    """It is said once."""

    class Broken:
        """A logger provider of somebody's."""

        def get_logger(self, *arguments: Any, **more: Any) -> Any:
            """See LoggerProvider."""
            raise RuntimeError("What is this cat?")

    seen = Seen()
    content = ContentCapture("SPAN_AND_EVENT", tenants=["default"], max_bytes=1000)
    app = seen(Talker(), content=content, logger_provider=Broken())
    for _ in range(2):
        assert (await ask(app, CHAT)).status == 200
    assert len(seen.logicals) == 2
    assert caplog.text.count("could not be told") == 1
    assert "cat" not in caplog.text


async def test_alone_it_hears_the_request_too() -> None:
    """Where no other layer of the gateway reads it, as in front of a model server."""
    seen = Seen()
    content = ContentCapture("SPAN_ONLY", tenants=["default"], max_bytes=5000)
    app = seen(Talker(), content=content)
    for body in (CHAT, b"[]", b"{", b"\xff"):
        with contextlib.suppress(orjson.JSONDecodeError, TypeError, AttributeError):  # the app's own way with such
            await ask(app, body)
    first, *_ = seen.logicals
    assert "What is this?" in about(first)[INPUT]
    assert "A cat." in about(first)[OUTPUT]


async def test_a_long_call_is_cut_and_says_so() -> None:
    """Each attribute to TRACE_CONTENT_MAX_BYTES."""
    stage = Stage("SPAN_AND_EVENT", ["acme"], max_bytes=500)
    await stage.ask("acme", messages=[{"role": "user", "content": "word " * 10_000}])
    found = about(stage.seen.logical)
    assert len(found[INPUT]) <= 500
    assert found[TRUNCATED] is True
    assert stage.events[0].attributes[TRUNCATED] is True


async def test_without_a_capture_answers_are_not_kept() -> None:
    """The server's own ``send`` goes on: nothing stands between."""
    stage = Stage("NO_CONTENT", ["*"])
    assert (await stage.ask("acme", stream=True)).status == 200
    assert stage.app._hears is False
    assert not {INPUT, OUTPUT} & set(about(stage.seen.logical))

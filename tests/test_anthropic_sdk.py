"""The official Anthropic SDK, unchanged but for ``base_url``, through ``uvicorn examples:app`` to Anthropic's own API.

The provider is a scripted server over TCP at an address that the gateway's process was told.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import anthropic
import pytest

from .servers import KEY, TEAM, Server, environment, fetch, free_port, shown, uvicorn
from .upstream import LAST_CHUNK, STREAM_HEAD, Peer, Script, Upstream, always, chunk, streaming, until, upstream, whole

PROVIDER_KEY = "sk-ant-the-providers-own-key"
HELLO: Any = [{"role": "user", "content": "hello"}]
USAGE = {"input_tokens": 25, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 10, "output_tokens": 7}
TOOL: Any = {"name": "look", "description": "Looks.", "input_schema": {"type": "object", "properties": {"at": {}}}}
PNG = "iVBORw0KGgo="
PRICE = """
[models.claude-x]
usd_per_million_in = 3
usd_per_million_out = 15
"""
VERSIONS = ["2023-06-01", "2026-10-21"]


def message(*content: Any, stop_reason: str = "end_turn", **fields: Any) -> dict[str, Any]:
    """An answer."""
    return {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": list(content),
            "stop_reason": stop_reason, "stop_sequence": None, "usage": USAGE, **fields}  # fmt: skip


def text(words: str) -> dict[str, Any]:
    """A block of text."""
    return {"type": "text", "text": words}


def event(type: str, **fields: Any) -> bytes:
    """An event of a stream."""
    return b"event: %b\ndata: %b\n\n" % (
        type.encode(),
        json.dumps({"type": type, **fields}, separators=(",", ":")).encode(),
    )


def block(index: int, opened: dict[str, Any], *deltas: dict[str, Any]) -> list[bytes]:
    """A block of a stream."""
    pieces = [event("content_block_delta", index=index, delta=delta) for delta in deltas]
    return [
        event("content_block_start", index=index, content_block=opened),
        *pieces,
        event("content_block_stop", index=index),
    ]


STREAM = [
    event("message_start", message={**message(), "stop_reason": None, "usage": {**USAGE, "output_tokens": 1}}),
    event("ping"),
    *block(0, {"type": "thinking", "thinking": "", "signature": ""}, {"type": "thinking_delta", "thinking": "Hm."},
           {"type": "signature_delta", "signature": "c2ln"}),
    *block(1, text(""), {"type": "text_delta", "text": "Let me "}, {"type": "text_delta", "text": "message_stop look."}),
    *block(2, {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}},
           {"type": "input_json_delta", "partial_json": '{"at": "K'}, {"type": "input_json_delta", "partial_json": 'öln"}'}),
    event("message_delta", delta={"stop_reason": "tool_use", "stop_sequence": None}, usage={"output_tokens": 30}),
    event("message_stop"),
]  # fmt: skip


class Parts(NamedTuple):
    """The gateway's process, and where it looks for its provider."""

    gateway: Server
    port: int


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    """The gateway stand-alone. It tries nothing twice itself, so that what is tried again is the SDK's doing."""
    folder, port = tmp_path_factory.mktemp("sdk"), free_port()
    env = environment(
        folder,
        file=TEAM + PRICE,
        ANTHROPIC_BASE_URL=f"http://127.0.0.1:{port}",
        ANTHROPIC_API_KEY=PROVIDER_KEY,
        GATEWAY_MAX_RETRIES="0",
        BREAKER_FAILURES="1000",
        RATE_LIMIT_MAX_REQUESTS="100000",
    )
    with uvicorn("examples:app", env, folder) as server:
        yield Parts(server, port)


@pytest.fixture
def parts(process: Parts) -> Iterator[Parts]:
    """The same for one test, with what the gateway logs; no key may be in it."""
    with shown(process.gateway):
        yield process
    assert PROVIDER_KEY not in process.gateway.err
    assert KEY not in process.gateway.err


@asynccontextmanager
async def asking(
    parts: Parts, *scripts: Script, **more: Any
) -> AsyncIterator[tuple[anthropic.AsyncAnthropic, Upstream]]:
    """The SDK as its users make it, and the provider for the length of a test."""
    options: Any = {"api_key": KEY, "max_retries": 0, **more}
    async with (
        upstream(*scripts, port=parts.port) as provider,
        anthropic.AsyncAnthropic(base_url=parts.gateway.url, **options) as client,
    ):
        yield client, provider


async def sync(parts: Parts, *scripts: Script, do: Callable[[anthropic.Anthropic], Any]) -> Any:
    """What the sync client makes of it, in a thread."""

    def run() -> Any:
        with anthropic.Anthropic(base_url=parts.gateway.url, auth_token=KEY, max_retries=0) as client:
            return do(client)

    async with upstream(*scripts, port=parts.port):
        return await asyncio.to_thread(run)


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("header", ["api_key", "auth_token"])
async def test_a_message_is_answered(parts: Parts, version: str, header: str) -> None:
    """With either header for the key and in either version, which goes along; the key does not."""
    options: Any = {"api_key": None, header: KEY, "default_headers": {"anthropic-version": version}}
    async with asking(parts, always(whole(message(text("hi")))), **options) as (client, provider):
        answer = await client.messages.create(model="claude-x", max_tokens=9, messages=HELLO)
    assert (answer.id, answer.content[0].type, answer.stop_reason) == ("msg_1", "text", "end_turn")
    assert answer.usage.cache_read_input_tokens == 100
    (asked,) = provider.requests
    assert (asked.path, asked.headers["anthropic-version"], asked.headers["x-api-key"]) == (
        "/v1/messages",
        version,
        PROVIDER_KEY,
    )
    assert KEY not in str(asked)
    assert asked.json() == {"model": "claude-x", "max_tokens": 9, "messages": HELLO}


async def test_all_that_a_message_may_hold_goes_there_and_back(parts: Parts) -> None:
    """System, images, tools, thinking and their replay: as the client wrote it; beta features by their header."""
    said = [
        {"role": "user", "content": [text("what is it?"),
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
            {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": 1.50}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": [text("r")]}]},
    ]  # fmt: skip
    fields: Any = {
        "system": [{**text("s"), "cache_control": {"type": "ephemeral", "ttl": "1h"}}], "tools": [TOOL],
        "tool_choice": {"type": "auto"}, "thinking": {"type": "enabled", "budget_tokens": 1024}, "metadata": {"user_id": "u"},
    }  # fmt: skip
    use = {"type": "tool_use", "id": "toolu_2", "name": "look", "input": {"at": [1, "ü"]}}
    thought = {"type": "thinking", "thinking": "So.", "signature": "c2ln"}
    script = always(whole(message(thought, use, stop_reason="tool_use")))
    async with asking(parts, script) as (client, provider):
        answer = await client.beta.messages.create(
            model="claude-x", max_tokens=2048, messages=said, betas=["some-feature-2026-01-01"], **fields  # type: ignore[arg-type]
        )  # fmt: skip
    assert [one.type for one in answer.content] == ["thinking", "tool_use"]
    assert answer.content[1].input == {"at": [1, "ü"]}  # type: ignore[union-attr]
    (asked,) = provider.requests
    assert asked.json() == {"model": "claude-x", "max_tokens": 2048, "messages": said, **fields}
    assert asked.headers["anthropic-beta"] == "some-feature-2026-01-01"


async def test_the_sync_client_is_answered_too(parts: Parts) -> None:
    """A message and a stream."""
    script = always(whole(message(text("hi"))))
    made = await sync(parts, script, do=lambda c: c.messages.create(model="claude-x", max_tokens=9, messages=HELLO))
    assert made.content[0].text == "hi"

    def stream(client: anthropic.Anthropic) -> tuple[list[str], Any]:
        with client.messages.stream(model="claude-x", max_tokens=9, messages=HELLO) as events:
            return list(events.text_stream), events.get_final_message()

    texts, final = await sync(parts, streaming(*STREAM), do=stream)
    assert (texts, final.usage.output_tokens) == (["Let me ", "message_stop look."], 30)


# -- streams -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, 1, 50])
async def test_a_stream_is_put_together_by_the_client(parts: Parts, size: int | None) -> None:
    """Thinking, text and a call, however the provider's bytes are cut."""
    whole_stream = b"".join(STREAM)
    step = size or len(whole_stream)
    pieces = [whole_stream[at : at + step] for at in range(0, len(whole_stream), step)]
    asked: Any = {"model": "claude-x", "max_tokens": 99, "messages": HELLO, "tools": [TOOL]}
    async with asking(parts, streaming(*pieces)) as (client, provider), client.messages.stream(**asked) as stream:
        kinds = [one.type async for one in stream]
        final = await stream.get_final_message()
    assert [one.type for one in final.content] == ["thinking", "text", "tool_use"]
    assert (final.content[0].signature, final.content[2].input) == ("c2ln", {"at": "Köln"})  # type: ignore[union-attr]
    assert (final.stop_reason, final.usage.output_tokens, final.usage.input_tokens) == ("tool_use", 30, 25)
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
    assert provider.requests[0].json()["stream"] is True


async def test_a_stream_goes_on_byte_for_byte(parts: Parts) -> None:
    """Pings too; but for the cost, which stands in the event that tells the usage of the whole."""
    async with upstream(streaming(*STREAM), port=parts.port):
        body = {"model": "claude-x", "max_tokens": 9, "messages": HELLO, "stream": True}
        reply = await asyncio.to_thread(fetch, parts.gateway.url + "/v1/messages", body)
    assert reply.headers["content-type"].startswith("text/event-stream")
    told = reply.body.split(b"\n\n")
    for before, after in zip(b"".join(STREAM).split(b"\n\n"), told, strict=True):
        if b"message_delta" in before:
            assert after.startswith(before[:-1] + b',"cost_usd":')
            assert json.loads(after.partition(b"data: ")[2])["cost_usd"] >= 30 * 15e-6
        elif b"message_start" not in before:
            assert after == before


async def test_each_event_goes_on_when_it_came(parts: Parts) -> None:
    """The provider sends the second only when the client has the first."""
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM_HEAD, *(chunk(one) for one in STREAM[:3]))
        await go.wait()
        await peer.send(*(chunk(one) for one in STREAM[3:]), LAST_CHUNK)

    async with asking(parts, script) as (client, _):
        stream = await client.messages.create(model="claude-x", max_tokens=9, messages=HELLO, stream=True)
        seen = [await anext(stream), await anext(stream)]
        assert [one.type for one in seen] == ["message_start", "content_block_start"]
        go.set()
        assert [one.type async for one in stream][-1] == "message_stop"


async def test_an_error_amid_a_stream_is_raised(parts: Parts) -> None:
    """By its type, in the gateway's words, without the provider's key."""
    failed = event("error", error={"type": "overloaded_error", "message": f"Overloaded {PROVIDER_KEY}"})
    async with asking(parts, streaming(*STREAM[:8], failed)) as (client, _):
        with pytest.raises(anthropic.APIStatusError, match="Overloaded") as caught:
            async with client.messages.stream(model="claude-x", max_tokens=9, messages=HELLO) as stream:
                await stream.get_final_message()
    assert caught.value.body["error"]["type"] == "overloaded_error"  # type: ignore[index]
    assert PROVIDER_KEY not in str(caught.value)


@pytest.mark.parametrize("at", [2, 8, len(STREAM) - 2])
async def test_a_stream_that_is_cut_is_raised(parts: Parts, at: int) -> None:
    """Never taken for a whole answer."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM_HEAD, *(chunk(one) for one in STREAM[:at]))
        peer.reset()

    async with asking(parts, script) as (client, _):
        with pytest.raises(anthropic.APIStatusError) as caught:
            async with client.messages.stream(model="claude-x", max_tokens=9, messages=HELLO) as stream:
                await stream.get_final_message()
    assert caught.value.body["error"]["code"] == "upstream_cut"  # type: ignore[index]


async def test_a_client_that_leaves_ends_the_providers_work(parts: Parts) -> None:
    """In the middle of a stream."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM_HEAD, *(chunk(one) for one in STREAM[:5]))
        await peer.stall()

    async with asking(parts, script) as (client, provider):
        stream = await client.messages.create(model="claude-x", max_tokens=9, messages=HELLO, stream=True)
        await anext(stream)
        await stream.close()
        await until(lambda: provider.aborted == 1)


# -- refusals and failures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind", "expected", "code"),
    [
        (400, "invalid_request_error", anthropic.BadRequestError, "upstream_refused"),
        (401, "authentication_error", anthropic.InternalServerError, "upstream_auth"),
        (403, "permission_error", anthropic.InternalServerError, "upstream_auth"),
        (404, "not_found_error", anthropic.NotFoundError, "upstream_refused"),
        (413, "request_too_large", anthropic.RequestTooLargeError, "upstream_refused"),
        (429, "rate_limit_error", anthropic.RateLimitError, "upstream_rate_limited"),
        (500, "api_error", anthropic.InternalServerError, "upstream_error"),
        (504, "timeout_error", anthropic.DeadlineExceededError, "upstream_timeout"),
        (529, "overloaded_error", anthropic.ServiceUnavailableError, "upstream_unavailable"),
    ],
)
async def test_a_providers_failure_is_raised(parts: Parts, status: int, kind: str, expected: Any, code: str) -> None:
    """As the client's own class of it; the gateway's key being refused is not the client's fault."""
    body = {"type": "error", "error": {"type": kind, "message": f"no {PROVIDER_KEY}"}, "request_id": "req_1"}
    async with asking(parts, always(whole(body, status))) as (client, _):
        with pytest.raises(expected) as caught:
            await client.messages.create(model="claude-x", max_tokens=9, messages=HELLO)
    assert caught.value.body["error"]["code"] == code
    assert PROVIDER_KEY not in str(caught.value.body)


async def test_the_client_tries_again_what_may_pass(parts: Parts) -> None:
    """An overloaded provider, after the time that it asks for; each try is a call of its own."""
    busy = whole({"type": "error", "error": {"type": "overloaded_error", "message": "m"}}, 529,
                 headers=[("Retry-After-Ms", "1"), ("Connection", "close")])  # fmt: skip

    async def overloaded(peer: Peer) -> None:
        await peer.request()
        await peer.send(busy)

    async with asking(parts, overloaded, always(whole(message(text("hi")))), max_retries=2) as (client, provider):
        answer = await client.messages.create(model="claude-x", max_tokens=9, messages=HELLO)
    assert answer.content[0].text == "hi"  # type: ignore[union-attr]
    assert len(provider.requests) == 2


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"extra_body": {"container": "c"}}, "container"), ({"extra_body": {"mcp_servers": [{"type": "url"}]}}, "mcp_servers"),
        ({"extra_body": {"workspace_id": "w"}}, "workspace_id"), ({"extra_body": {"api_base": "http://x"}}, "api_base"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "server_tools"),
        ({"messages": [{"role": "user", "content": [{"type": "container_upload", "file_id": "f"}]}]}, "file_id"),
        ({"messages": []}, "messages"), ({"max_tokens": -1}, "max_tokens"),
        ({"extra_headers": {"anthropic-version": "2020-01-01"}}, "anthropic-version"),
    ],
)  # fmt: skip
async def test_what_is_not_a_tenants_to_ask_is_refused(parts: Parts, fields: dict[str, Any], word: str) -> None:
    """By name, and the provider never hears of it."""
    async with asking(parts, always(whole(message(text("hi"))))) as (client, provider):
        with pytest.raises(anthropic.BadRequestError, match=word):
            await client.messages.create(**{"model": "claude-x", "max_tokens": 9, "messages": HELLO, **fields})
        assert provider.requests == []


async def test_a_wrong_key_and_an_unknown_model_are_raised(parts: Parts) -> None:
    """As the provider itself would."""
    async with asking(parts, always(whole(message())), api_key="gw-wrong") as (client, provider):
        with pytest.raises(anthropic.AuthenticationError):
            await client.messages.create(model="claude-x", max_tokens=9, messages=HELLO)
        with pytest.raises(anthropic.NotFoundError):
            await client.with_options(api_key=KEY).messages.create(model="nobody", max_tokens=9, messages=HELLO)
        assert provider.requests == []

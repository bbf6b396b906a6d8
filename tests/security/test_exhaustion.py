"""What it takes to keep the gateway from its work: the attacker wants memory, time, or lines in the log."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from asgi_llm_gateway import _vocabulary
from asgi_llm_gateway.tokens import exact_bound, prompt_bound, text_tokens
from asgi_llm_gateway.wire import Route, parse

from ..conversation import CHAT, JSON, ask, call
from ..fuzz import ended
from .house import chat, house, raw

DEEP = 100_000


async def test_a31_a_strangers_body_is_not_read() -> None:
    """Gain: memory and time without a key. Refused by its head; not one piece of the body is taken."""
    made = await house()
    for length in (b"10", b"10737418240"):
        headers = [(b"host", b"x"), JSON, (b"content-length", length), (b"x-api-key", b"gw-wrong-wrong")]
        async with call(made.app, b"x" * 10_000, headers=headers, cut=10) as talk:
            assert (await talk.answer()).status in (401, 413)
            assert len(talk._pieces) == 1000


async def test_a31_a_length_that_lies_changes_nothing() -> None:
    """Gain: a body over the limit behind a small length. What comes is counted."""
    made = await house()
    made = type(made)(max_body=1000)
    await made.tenant("a")
    async with call(made.app, b" " * 100_000, headers=made.headers("a", (b"content-length", b"5")), cut=500) as talk:
        answer = await talk.answer()
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")
        assert len(talk._pieces) > 190


@pytest.mark.parametrize("brackets", ["[" * DEEP, '{"a":' * DEEP, "[{" * DEEP, "[" * DEEP + "]" * DEEP])
async def test_a33_depth_is_refused_before_anything_recurses(brackets: str) -> None:
    """Gain: a stack that overflows. 400, with a limit on the way in and without."""
    made = await house()
    shallow = type(made)(max_depth=1024 * 1024)
    await shallow.tenant("a")
    for one in (made, shallow):
        answer = await one.ask(raw('"metadata": ' + brackets))
        assert (answer.status, answer.error["code"]) == (400, "invalid_json")


async def test_a33_many_keys_and_huge_numbers_are_read_in_their_length() -> None:
    """Gain: time that grows with the square (key collisions, digits of an integer)."""
    made = await house()
    keys = json.dumps({f"k{at}": at for at in range(100_000)})
    with ended(60):
        assert (await made.ask(raw(f'"metadata": {keys}, "max_tokens": 3'))).status == 200
        assert (await made.ask(raw('"seed": ' + "9" * 100_000 + ', "max_tokens": 3'))).status in (200, 400)
        assert (await made.ask(raw('"top_p": 0.' + "3" * 100_000 + ', "max_tokens": 3'))).status == 200
        assert (await made.ask(raw('"max_tokens": ' + "9" * 100_000))).status == 400


ODD = [
    b"\xef\xbb\xbf" + json.dumps(CHAT).encode(),
    raw('"user": "\\ud800"'),
    raw('"user": "#"').replace(b"#", b"\xff"),
    json.dumps(CHAT).encode("utf-16"),
    *(b"", b"null", b"[]", b'"x"', b"{}", b"{" * 10, b"\x00" * 10),
]


@pytest.mark.parametrize("body", ODD)
async def test_a33_bytes_that_two_parsers_read_in_two_ways_are_refused(body: bytes) -> None:
    """Gain: a request that is one thing here and another at the provider. Marks, half letters, other codings: 400."""
    made = await house()
    assert (await made.ask(body)).status == 400


async def test_a34_a_costly_schema_costs_nothing() -> None:
    """Gain: seconds of work for a kilobyte. Refused with its place before anything is asked or held."""
    made = await house()
    wide: Any = {"anyOf": [{"type": "object", "properties": {"a": {"$ref": "#"}}} for _ in range(50)]}
    costly: list[Any] = [
        {"type": "object", "properties": {f"p{at}": {"$ref": "#"} for at in range(4000)}},
        wide,
        {"type": "string", "pattern": "^(a+)+(?=x)$"},
        {"type": "string", "pattern": "(a{1,1000}){1,1000}"},
        {"type": "array", "items": {"enum": list(range(50_000))}},
        {"$dynamicRef": "#x"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    ]
    with ended(30):
        for schema in costly:
            form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
            answer = await made.ask(chat(response_format=form, max_tokens=9))
            assert answer.status in (400, 422), json.dumps(schema)[:80]
            assert await made.held() == 0


def test_a35_a_word_of_megabytes_is_counted_in_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gain: a tokenizer that is quadratic in a word (tiktoken#195 and its like), on the loop that serves everybody."""
    monkeypatch.setattr(_vocabulary, "_loaded", {})  # what is loaded here is nobody else's
    monkeypatch.setattr(_vocabulary, "_loaded_by", {})
    assert _vocabulary.load() is not None
    with ended(60):
        for text in ("a" * 10**7, " " * 10**7, "\n\t" * 10**6, "'" * 10**6, "\U0001f600" * 10**6, "a1" * 10**6):
            body = {"model": "gpt-4o", "messages": [{"role": "user", "content": text}]}
            request = parse(Route("metered", "chat", "/v1/chat/completions"), json.dumps(body).encode())
            assert text_tokens(text, "gpt-4o") <= prompt_bound(request)
            exact = exact_bound(request, "gpt-4o")
            assert exact is not None
            assert exact <= prompt_bound(request)


async def test_a36_what_a_client_chooses_fills_no_memory_and_no_line(caplog: pytest.LogCaptureFixture) -> None:
    """Gain: a label or a line each for what is made up. Records are bounded, and no line break of a client's is logged."""
    made = await house()
    with caplog.at_level(logging.DEBUG):
        for at in range(1200):
            headers = made.headers("a", (b"x-request-id", b"evil\x0bline%d" % at), (b"traceparent", b"0" * 4000))
            await ask(made.app, chat(model=f"model-{at}\u2028evil"), headers=headers)
            await ask(made.app, None, f"/v1/models/{at}\x0bevil", method="GET", headers=headers)
    assert len(made.traces.recent(5000)) == 1000
    assert not [record for record in caplog.records if "evil" in record.getMessage()]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01" * 9999),
        (b"tracestate", b"a=" + b"b" * 20_000),
        (b"baggage", b"a=b," * 5000),
        (b"x-request-id", b"x" * 20_000),
        (b"anthropic-beta", b"x," * 10_000),
    ],
)
async def test_a36_junk_in_a_trace_header_ends_there(name: bytes, value: bytes) -> None:
    """Gain: a megabyte in every span and log. Dropped or refused; never echoed."""
    made = await house()
    answer = await made.ask(chat(max_tokens=3), more=[(name, value)])
    assert answer.status in (200, 400)
    assert len(repr(answer.headers)) < 3000


async def test_a37_a_websocket_is_closed_before_it_is_one() -> None:
    """Gain: a channel that no layer reads. On every guarded path it is closed, and a flood of frames is never taken."""
    made = await house()
    taken = 0

    async def receive() -> Any:
        nonlocal taken
        taken += 1
        return {"type": "websocket.connect"} if taken == 1 else {"type": "websocket.receive", "bytes": b"x" * 2**20}

    said: list[Any] = []

    async def send(message: Any) -> None:
        said.append(message)

    await made.app({"type": "websocket", "path": "/v1/realtime", "headers": made.headers()}, receive, send)
    assert (taken, [message["type"] for message in said]) == (1, ["websocket.close"])


async def test_a39_a_herd_on_a_cold_key_is_one_question() -> None:
    """Gain: a store that falls over when a thousand clients start. Their look-ups are one."""
    made = await house()
    asked = 0
    identify = made.store.identify

    async def counted(digest: str) -> Any:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return await identify(digest)

    made.store.identify = counted  # type: ignore[method-assign]
    answers = await asyncio.gather(*(made.ask(chat(max_tokens=1)) for _ in range(200)))
    assert {answer.status for answer in answers} == {200}
    assert asked < 20

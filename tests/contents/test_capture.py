"""Whose content is captured, what a hook makes of it, and how much of it is kept."""

from __future__ import annotations

import logging
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway import settings
from asgi_llm_gateway.contents.capture import VARIABLE, ContentCapture, Heard, Mode, as_json, mode_of
from asgi_llm_gateway.contents.fit import Fit
from asgi_llm_gateway.contents.read import INPUT, OUTPUT, TOOLS
from asgi_llm_gateway.wire import Dialect

from . import CHAT, CHAT_ANSWER, MESSAGES, PATHS, RESPONSES

IDS = st.text("abcdefgh-_*0123456789", min_size=1, max_size=6)
SAID = orjson.dumps(CHAT_ANSWER)
SPEAKING: list[Dialect] = ["chat", "completions", "embeddings", "messages", "responses"]


def heard(body: bytes = SAID, *, stream: bool = False, cut: int = 7) -> Heard:
    """An answer that came in pieces."""
    answer = Heard(stream=stream)
    for at in range(0, len(body), cut):
        answer.add(body[at : at + cut])
    return answer


def everybody(**more: Any) -> ContentCapture:
    """Captures onto spans, for every tenant."""
    return ContentCapture("SPAN_ONLY", tenants=["*"], max_bytes=more.pop("max_bytes", 16384), **more)


# -- whose -------------------------------------------------------------------------------------------------------------


@given(mode=st.sampled_from(["SPAN_ONLY", "EVENT_ONLY", "SPAN_AND_EVENT"]), listed=st.sets(IDS), asked=IDS)
def test_only_tenants_that_are_listed_are_captured(mode: Mode, listed: set[str], asked: str) -> None:
    """No other one, whatever its name is like; ``*`` alone stands for all."""
    capture = ContentCapture(mode, tenants=listed, max_bytes=1024)
    assert capture.wants(asked) == (asked in listed or "*" in listed)
    assert capture.on == bool(listed)


@given(asked=IDS, listed=st.sets(IDS))
def test_without_a_mode_nobody_is_captured(asked: str, listed: set[str]) -> None:
    """Also where all are listed."""
    capture = ContentCapture("NO_CONTENT", tenants={*listed, "*"}, max_bytes=1024)
    assert not capture.wants(asked)
    assert not capture.on


@pytest.mark.parametrize(
    ("text", "mode"),
    [("", "NO_CONTENT"), ("false", "NO_CONTENT"), ("no_content", "NO_CONTENT"), ("true", "SPAN_ONLY"),
     ("True", "SPAN_ONLY"), ("SPAN_ONLY", "SPAN_ONLY"), ("span_and_event", "SPAN_AND_EVENT"),
     (" EVENT_ONLY ", "EVENT_ONLY"), ("yes please", "NO_CONTENT")],
)  # fmt: skip
def test_modes(text: str, mode: Mode) -> None:
    """In any case; older instrumentations' ``true`` is for spans; what is none is off."""
    assert mode_of(text) == mode


@pytest.mark.parametrize(
    ("mode", "tenants", "wanted"),
    [("SPAN_ONLY", "acme, beta", True), ("SPAN_ONLY", "*", True), ("SPAN_ONLY", "", False), ("", "acme", False),
     ("SPAN_ONLY", "acm", False), ("SPAN_ONLY", "acme2", False)],
)  # fmt: skip
def test_the_environment_names_mode_and_tenants(
    monkeypatch: pytest.MonkeyPatch, mode: str, tenants: str, wanted: bool
) -> None:
    """Both are needed: with no tenant listed nobody is captured."""
    monkeypatch.setenv(VARIABLE, mode)
    monkeypatch.setenv("TRACE_CONTENT_TENANTS", tenants)
    settings.forget()
    assert ContentCapture().wants("acme") is wanted


def test_a_capture_reads_no_setting_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A middleware is made at import time, before the environment is complete."""
    capture = ContentCapture()
    monkeypatch.setenv(VARIABLE, "SPAN_ONLY")
    monkeypatch.setenv("TRACE_CONTENT_TENANTS", "acme")
    settings.forget()
    assert capture.wants("acme")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [({"mode": "ALL"}, ValueError), ({"max_bytes": 10}, ValueError), ({"tenants": "acme"}, TypeError)],
)
def test_a_mistake_is_told_at_once(arguments: dict[str, Any], error: type[Exception]) -> None:
    """When it is made, not with the first call."""
    with pytest.raises(error):
        ContentCapture(**arguments)


async def test_a_hook_that_nobody_would_await_is_refused() -> None:
    """It would redact nothing."""

    async def redact(name: str, messages: list[Any]) -> None:
        """Never awaited."""

    with pytest.raises(TypeError, match="coroutine"):
        ContentCapture(redact=redact)  # type: ignore[arg-type]


# -- the hook ----------------------------------------------------------------------------------------------------------


def test_a_hook_changes_what_is_told() -> None:
    """It gets each attribute's name with its messages."""
    seen = []

    def redact(name: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
        seen.append(name)
        return None if name == TOOLS else [{"role": one["role"], "parts": []} for one in messages]

    said = everybody(redact=redact).content("chat", CHAT, heard()).said
    assert seen == [INPUT, TOOLS, OUTPUT]
    assert set(said) == {INPUT, OUTPUT}
    assert b"cat" not in orjson.dumps(said)


def test_a_hook_sees_a_text_before_it_is_cut() -> None:
    """Half of a secret would not be known for one."""
    secret = "sk-" + "a" * 300

    def redact(name: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = orjson.loads(orjson.dumps(messages).replace(secret.encode(), b"[secret]"))
        return found

    asked = {"messages": [{"role": "user", "content": "x" * 200 + secret}]}
    told = as_json(everybody(redact=redact, max_bytes=300).content("chat", asked, Heard()))
    assert "sk-" not in told[INPUT]
    assert "[secret]" in told[INPUT]


@pytest.mark.parametrize("bad", ["raises", "text", "object", "surrogate", "names"])
def test_a_hook_that_fails_leaves_the_content_out_and_is_logged_once(
    bad: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of the content is told, not by the log either."""

    def redact(name: str, messages: list[dict[str, Any]]) -> Any:
        match bad:
            case "raises":
                raise RuntimeError(f"no idea what {messages} is")
            case "text":
                return str(messages)
            case "object":
                return [{"role": "user", "parts": [object()], "cat": "cat"}]
            case "surrogate":
                return [{"role": "user", "parts": ["cat\ud800"]}]
            case _:
                return [{1: "cat"}]

    capture = everybody(redact=redact)
    with caplog.at_level(logging.DEBUG):
        for _ in range(3):
            assert capture.content("chat", CHAT, heard()).said == {}
    assert len(caplog.records) == 1
    assert "cat" not in caplog.text


# -- how much ----------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=50),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=12), inner, max_size=6),
    max_leaves=40,
)


@given(values=st.lists(JSON, max_size=12), limit=st.integers(256, 2048), newest=st.booleans())
def test_what_is_kept_takes_no_more_than_the_limit(values: list[Any], limit: int, newest: bool) -> None:
    """Whatever it is made of; and what fits is kept as it is."""
    fit = Fit(limit)
    kept = fit.list(values, newest_first=newest)
    assert len(orjson.dumps(kept)) <= limit
    assert fit.cut or kept == values


def test_a_number_that_the_protocol_has_no_form_of_is_told_as_text() -> None:
    """One of them would keep a whole batch of spans from being sent."""
    assert Fit(400).list([2**63, -(2**63), 2**64]) == [str(2**63), -(2**63), str(2**64)]


@given(text=st.text(max_size=400), limit=st.integers(256, 600))
def test_a_text_is_cut_to_its_beginning(text: str, limit: int) -> None:
    """A prefix, in whole characters, and as long as there is room."""
    fit = Fit(limit)
    (kept,) = fit.list([text])
    assert text.startswith(kept)
    assert fit.cut == (kept != text)
    if fit.cut:
        assert len(orjson.dumps([text[: len(kept) + 60]])) > limit - 8


def test_the_newest_messages_are_kept_and_the_oldest_of_an_answer() -> None:
    """What led to the answer, and how the answer begins."""
    messages = [{"role": "user", "parts": [{"type": "text", "content": str(at) * 100}]} for at in range(10)]
    newest = Fit(400).list(messages, newest_first=True)
    assert newest[-1] == messages[-1]
    oldest = Fit(400).list(messages)
    assert oldest[0] == messages[0]


def test_an_image_is_kept_whole_or_not_at_all() -> None:
    """Half of its base64 is of no use."""
    part = {"type": "blob", "mime_type": "image/png", "modality": "image", "content": "A" * 5000}
    fit = Fit(1000)
    assert fit.list([part]) == [{**part, "content": ""}]
    assert fit.cut


def test_an_answer_is_kept_up_to_a_bound() -> None:
    """Of a long stream its beginning is read, of a long document nothing can be."""
    stream = Heard(stream=True, limit=10)
    document = Heard(limit=10)
    for one in (stream, document):
        for _ in range(5):
            one.add(b"12345678")
        assert one.cut
    assert (stream.bytes, document.bytes) == (b"1234567812", b"")


def test_a_long_call_says_that_it_was_cut() -> None:
    """And each of its attributes stays within the limit."""
    asked = {"messages": [{"role": "user", "content": "é\n" * 20_000}]}
    content = everybody(max_bytes=1000).content("chat", asked, heard())
    assert content.truncated
    assert {len(text.encode()) <= 1000 for text in as_json(content).values()} == {True}
    assert not everybody().content("chat", CHAT, heard()).truncated


# -- hostile shapes ----------------------------------------------------------------------------------------------------

FIELDS = st.sampled_from(
    ["messages", "role", "content", "type", "text", "image_url", "url", "tool_calls", "function", "arguments", "name",
     "tools", "system", "input", "output", "choices", "message", "delta", "index", "finish_reason", "item", "response",
     "source", "data", "input_audio", "file", "content_block", "id", "call_id", "summary", "audio", "output_index",
     "stop_reason", "status", "incomplete_details", "instructions", "prompt", "functions", "function_call", "custom"]
)  # fmt: skip
WORDS = st.sampled_from(
    ["user", "tool", "assistant", "text", "image_url", "input_image", "input_file", "file", "function_call", "tool_use",
     "image", "base64", "url", "thinking", "message", "reasoning", "content_block_delta", "content_block_start",
     "message_start", "message_delta", "response.output_item.added", "response.output_text.delta", "response.completed",
     "completed", "incomplete", "data:", "data:;base64,", "compaction", "web_search_call", "_call", "_tool_result"]
)  # fmt: skip
HOSTILE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(FIELDS, inner, max_size=6),
    max_leaves=30,
)
BODIES = st.dictionaries(FIELDS, HOSTILE, max_size=8)


@given(dialect=st.sampled_from(SPEAKING), body=BODIES, answer=BODIES)
def test_hostile_requests_and_answers_never_raise(dialect: Dialect, body: dict[str, Any], answer: Any) -> None:
    """Whatever stands where: something bounded comes of it that can be written down, or nothing; no warning either."""
    capture = everybody(max_bytes=1000)
    said = orjson.dumps(_small(answer))
    content = capture.content(dialect, _small(body), heard(said, cut=len(said)))
    assert all(len(text.encode()) <= 1000 for text in as_json(content).values())
    assert not capture._told  # nothing was left out because reading it failed


@given(dialect=st.sampled_from(SPEAKING), events=st.lists(BODIES, max_size=8), noise=st.binary(max_size=20))
def test_hostile_streams_never_raise(dialect: Dialect, events: list[dict[str, Any]], noise: bytes) -> None:
    """The same for events, and for bytes that are none."""
    stream = b"".join(b"data: " + orjson.dumps(_small(event)) + b"\n\n" for event in events) + noise
    capture = everybody(max_bytes=1000)
    content = capture.content(dialect, {}, heard(stream, stream=True, cut=11))
    assert all(len(text.encode()) <= 1000 for text in as_json(content).values())
    assert not capture._told


def _small(value: Any) -> Any:
    """With numbers that fit JSON's writer."""
    if type(value) is int:
        return max(-(2**63), min(value, 2**63 - 1))
    if type(value) is list:
        return [_small(one) for one in value]
    return {name: _small(one) for name, one in value.items()} if type(value) is dict else value


@pytest.mark.parametrize("dialect", SPEAKING)
def test_deep_arguments_are_cut_off(dialect: Dialect) -> None:
    """As deep as a body may be: bounded in depth, too."""
    deep: Any = "cat"
    for _ in range(900):
        deep = {"in": deep}
    messages = [{"role": "user", "content": [{"type": "tool_use", "input": deep, "function": deep}]}]
    body = {"messages": messages, "input": [{"type": "function_call", "arguments": deep}], "prompt": "x"}
    content = everybody().content(dialect, {**body, "tools": [{"parameters": deep}]}, Heard())
    as_json(content)
    assert content.said


def test_every_dialect_is_read_or_has_no_words() -> None:
    """Those of the closed table: none is forgotten."""
    bodies: dict[Dialect, Any] = {**dict.fromkeys(PATHS, CHAT), "messages": MESSAGES, "responses": RESPONSES,
              "completions": {"prompt": "x"}, "embeddings": {"input": "x"}}  # fmt: skip
    speaking = [dialect for dialect, body in bodies.items()
                if everybody().content(dialect, body, Heard()).said]  # fmt: skip
    assert sorted(speaking) == SPEAKING

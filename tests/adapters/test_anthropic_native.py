"""Anthropic for clients that speak its API: what goes out, with which headers, and what is not theirs to ask."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.adapters._native_messages import MessagesStream
from asgi_llm_gateway.adapters.anthropic import AnthropicAdapter
from asgi_llm_gateway.adapters.base import UpstreamRequest
from asgi_llm_gateway.errors import BadRequest, GatewayError, Unsupported
from asgi_llm_gateway.records import Usage
from asgi_llm_gateway.wire import LLMRequest, Route, parse

KEY = "sk-ant-abcdefghijklmnop"
ROUTE = Route("metered", "messages", "/v1/messages")
ADAPTER = AnthropicAdapter("anthropic", "https://api.example.com/v1", KEY)
HI: list[Any] = [{"role": "user", "content": "hi"}]
PNG = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}


def request(body: bytes | None = None, headers: dict[bytes, bytes] | None = None, **fields: Any) -> LLMRequest:
    """A parsed request."""
    told = {"model": "claude-x", "max_tokens": 9, "messages": HI, **fields}
    found = parse(ROUTE, json.dumps(told).encode() if body is None else body)
    found.header = (headers or {}).get
    return found


def sent(asked: LLMRequest, model: str = "claude-x", adapter: AnthropicAdapter = ADAPTER) -> UpstreamRequest:
    """What goes out."""
    return adapter.request(asked, model)


# -- what goes out -----------------------------------------------------------------------------------------------------


def test_a_body_goes_on_byte_for_byte() -> None:
    """White space, digits, order and fields that nobody knows."""
    body = (b' {"max_tokens" : 5, "model":"claude-x",\n "new_field": [1.50, 123456789012345678901234567890, "\\u00fc"],'
            b'"messages":[{"role":"user","content":"hi"}], "temperature":0.5 }\n')  # fmt: skip
    found = sent(request(body))
    assert (found.body, found.dropped) == (body, ())
    assert (found.endpoint.method, found.endpoint.url) == ("POST", "https://api.example.com/v1/messages")
    assert (b"x-api-key", KEY.encode()) in found.endpoint.headers


def test_only_the_models_name_is_changed() -> None:
    """To what the provider calls it."""
    asked = request(new_field=[1.5, 2**70], system=[{"type": "text", "text": "s"}], stream=True)
    assert json.loads(sent(asked, "claude-y").body) == {**json.loads(asked.raw), "model": "claude-y"}


def test_what_the_gateway_put_in_goes_along() -> None:
    """As a limit that a budget chose; and its own field does not."""
    body = b'{"model":"claude-x","messages":[{"role":"user","content":"hi"}], "tenant": "t"}'
    found = sent(request(body).with_fields(tenant=None, max_tokens=7))
    assert json.loads(found.body) == {"model": "claude-x", "messages": HI, "max_tokens": 7}


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, {b"anthropic-version": b"2023-06-01"}),
        ({b"anthropic-version": b"2023-06-01"}, {b"anthropic-version": b"2023-06-01"}),
        ({b"anthropic-version": b" 2026-10-21 "}, {b"anthropic-version": b"2026-10-21"}),
        ({b"anthropic-beta": b"a-2025-01-01 , b.c"}, {b"anthropic-version": b"2023-06-01",
                                                      b"anthropic-beta": b"a-2025-01-01,b.c"}),
        ({b"anthropic-beta": b" "}, {b"anthropic-version": b"2023-06-01"}),
        ({b"x-api-key": b"k", b"authorization": b"Bearer k", b"anthropic-workspace-id": b"w", b"cookie": b"c"},
         {b"anthropic-version": b"2023-06-01"}),
    ],
)  # fmt: skip
def test_the_clients_version_and_features_go_along(headers: dict[bytes, bytes], expected: dict[bytes, bytes]) -> None:
    """And no other header of its; the version once."""
    found = sent(request(headers=headers))
    assert dict(found.headers) == expected
    assert len(found.headers) == len(expected)
    assert not {name for name, _ in found.endpoint.headers} & {b"anthropic-version", b"anthropic-beta"}


def test_a_chat_goes_out_in_the_gateways_own_version() -> None:
    """Whatever the client's headers say: the translation knows one version."""
    chat = Route("metered", "chat", "/v1/chat/completions")
    asked = parse(chat, json.dumps({"model": "m", "messages": HI}).encode())
    asked.header = {b"anthropic-version": b"2026-10-21", b"anthropic-beta": b"x"}.get
    found = sent(asked)
    assert (b"anthropic-version", b"2023-06-01") in found.endpoint.headers
    assert found.headers == ()


def test_an_operator_says_which_features_and_version_there_are() -> None:
    """Others are refused by name, never left out in silence."""
    adapter = AnthropicAdapter("a", "http://h", betas=["good"], version="2027-01-01")
    assert dict(sent(request(headers={b"anthropic-beta": b"good"}), adapter=adapter).headers) == {
        b"anthropic-version": b"2027-01-01",
        b"anthropic-beta": b"good",
    }
    assert sent(request(headers={b"anthropic-version": b"2027-01-01"}), adapter=adapter).headers
    with pytest.raises(BadRequest, match=r"'bad' is not allowed.*Allowed: good") as caught:
        sent(request(headers={b"anthropic-beta": b"good,bad"}), adapter=adapter)
    assert (caught.value.param, caught.value.error_code) == ("anthropic-beta", "unsupported_beta")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"anthropic-version", b"2023-01-01"), (b"anthropic-version", b""), (b"anthropic-version", b"2023-06-01\r\nx: y"),
        (b"anthropic-version", b"\xff" * 9000), (b"anthropic-beta", b"a\r\nx-api-key: b"), (b"anthropic-beta", b"a,,b"),
        (b"anthropic-beta", b"a b"), (b"anthropic-beta", b"\xc3\xbc"), (b"anthropic-beta", b"x" * 101),
        (b"anthropic-beta", b",".join([b"x"] * 65)), (b"anthropic-beta", b"a\x00"),
    ],
)  # fmt: skip
def test_a_senseless_header_is_refused(name: bytes, value: bytes) -> None:
    """400, naming it and not repeating it."""
    with pytest.raises(BadRequest) as caught:
        sent(request(headers={name: value}))
    assert (caught.value.http_status, caught.value.param) == (400, name.decode())
    assert "\r" not in caught.value.message
    assert "xxx" not in caught.value.message


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_no_header_smuggles_another(version: bytes, beta: bytes) -> None:
    """Whatever a client sends, what goes out is printable ASCII without a comma too many, or nothing."""
    try:
        found = sent(request(headers={b"anthropic-version": version, b"anthropic-beta": beta}))
    except BadRequest:
        return
    for name, value in found.headers:
        assert name in (b"anthropic-version", b"anthropic-beta")
        assert value.decode("ascii").isprintable()


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_thread_is_refused_so_that_the_sdk_sends_the_whole_conversation() -> None:
    """By the code and the details on which its tool runner falls back."""
    with pytest.raises(Unsupported) as caught:
        sent(request(thread={"type": "create"}))
    told = caught.value.as_dict("anthropic")["error"]
    assert told["details"] == {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("container", "container_1"), ("container", {"id": "c", "skills": []}),
        ("diagnostics", {"previous_message_id": "msg_1"}), ("mcp_servers", [{"type": "url", "url": "https://x"}]),
        ("fallbacks", "default"), ("fallbacks", [{"model": "claude-opus-5"}]), ("fallback_credit_token", "t"),
        ("billing_policy", {"bill_to": "user_profile"}), ("user_profile_id", "u"), ("workspace_id", "w"),
        ("inference_geo", "us"), ("service_tier", "priority"), ("service_tier", "flex"), ("service_tier", 7),
    ],
)  # fmt: skip
def test_what_is_not_a_tenants_to_ask_is_refused_by_name(name: str, value: Any) -> None:
    """The shared account's state, others' prices and bills; a null asks for nothing."""
    with pytest.raises(Unsupported) as caught:
        sent(request(**{name: value}))
    assert (caught.value.http_status, caught.value.error_code, caught.value.param) == (
        400,
        "unsupported_parameter",
        name,
    )
    assert f"'{name}'" in caught.value.message
    assert sent(request(**{name: None}))
    for tier in ("auto", "standard_only"):
        assert sent(request(service_tier=tier))


@pytest.mark.parametrize(
    "type",
    ["web_search_20250305", "web_fetch_20260209", "code_execution_20250825", "tool_search_tool_regex_20251119",
     "advisor_20260301", "mcp_toolset", "browser_toolset_20260801", "something_new"],
)  # fmt: skip
def test_a_tool_that_the_provider_runs_is_refused_unless_allowed(type: str) -> None:
    """It costs money that no budget counts."""
    tools = [{"name": "mine", "input_schema": {"type": "object"}}, {"type": type, "name": "x"}]
    with pytest.raises(Unsupported, match="server_tools") as caught:
        sent(request(tools=tools))
    assert caught.value.param == "tools[1].type"
    allowed = AnthropicAdapter("a", "http://h", server_tools=True)
    assert json.loads(sent(request(tools=tools), adapter=allowed).body)["tools"] == tools


def test_tools_that_the_client_runs_pass() -> None:
    """Its own, and those that the provider only describes."""
    types = ("custom", "bash_20250124", "text_editor_20250728", "computer_20250124", "memory_20250818", None)
    tools: list[Any] = [{"type": type, "name": "x", "input_schema": {}} for type in types]
    assert sent(request(tools=[*tools, {"name": "y", "input_schema": {}}], tool_choice={"type": "auto"}))
    senseless: list[Any] = [{}, "x", [1], [{"type": 7}], [{"type": ""}], [["custom"]]]
    for bad in senseless:
        with pytest.raises(BadRequest) as caught:
            sent(request(tools=bad))
        assert str(caught.value.param).startswith("tools")


FILE = {"type": "file", "file_id": "file_1"}


@pytest.mark.parametrize(
    ("blocks", "param"),
    [
        ([{"type": "image", "source": FILE}], "messages[0].content[0].source.file_id"),
        ([{"type": "text", "text": "x"}, {"type": "document", "source": FILE}], "messages[0].content[1].source.file_id"),
        ([{"type": "container_upload", "file_id": "file_1"}], "messages[0].content[0].file_id"),
        ([{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image", "source": FILE}]}],
         "messages[0].content[0].content[0].source.file_id"),
        ([{"type": "document", "source": {"type": "content", "content": [{"type": "image", "source": FILE}]}}],
         "messages[0].content[0].source.content[0].source.file_id"),
    ],
)  # fmt: skip
def test_a_file_of_the_account_is_refused(blocks: list[Any], param: str) -> None:
    """Wherever a block may name one, also in disguise."""
    asked = request(messages=[{"role": "user", "content": blocks}])
    disguised = asked.raw.replace(b'"file_id"', b'"\\u0066ile_id"')
    for found in (asked, request(disguised)):
        with pytest.raises(Unsupported) as caught:
            sent(found)
        assert caught.value.param == param


def test_a_file_id_that_is_only_text_passes() -> None:
    """In a tool call's input or a schema it is the client's own word; files that are sent themselves are fine."""
    use = {"type": "tool_use", "id": "t", "name": "x", "input": {"file_id": "f", "source": FILE}}
    schema = {"type": "object", "properties": {"file_id": {"type": "string"}}}
    said = [*HI, {"role": "assistant", "content": [use]}, {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "t", "content": "file_id"}, {"type": "image", "source": PNG},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "file_id"}}]}]  # fmt: skip
    asked = request(messages=said, tools=[{"name": "x", "input_schema": schema}])
    assert sent(asked).body == asked.raw


ODD = st.recursive(
    st.none() | st.integers(0, 3) | st.sampled_from(["", "file_id", "custom", "text"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "source", "content", "file_id", "name", "input"]), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(ODD, ODD, ODD)
def test_whatever_is_asked_is_sent_or_refused(content: Any, tools: Any, field: Any) -> None:
    """Never an exception of ours."""
    try:
        asked = request(
            messages=[{"role": "user", "content": content}], tools=tools, container=field, service_tier=field
        )
        assert sent(asked).body == asked.raw
    except GatewayError as error:
        refused = error
        assert refused.http_status == 400


# -- counting, answers, streams ----------------------------------------------------------------------------------------


def test_a_count_is_asked_for_as_it_came() -> None:
    """At its own path, with the same headers; the tools of the provider's may be counted, what is shared may not."""
    asked = request(headers={b"anthropic-beta": b"x"}, tools=[{"type": "web_search_20250305", "name": "web_search"}])
    found = ADAPTER.count_request(asked, "claude-x")
    assert (found.endpoint.url, found.body) == ("https://api.example.com/v1/messages/count_tokens", asked.raw)
    assert dict(found.headers)[b"anthropic-beta"] == b"x"
    assert json.loads(ADAPTER.count_request(asked, "claude-y").body)["model"] == "claude-y"
    with pytest.raises(Unsupported):
        ADAPTER.count_request(request(container="c"), "claude-x")


def test_an_answer_goes_back_as_it_came() -> None:
    """And its counts are read; that to a chat is translated."""
    told = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": [], "new": 1,
            "stop_reason": "end_turn", "usage": {"input_tokens": 5, "output_tokens": 7}}  # fmt: skip
    body = json.dumps(told).encode()
    found = ADAPTER.response(request(), body)
    assert (found.body, found.usage) == (body, Usage(5, 7))
    assert isinstance(ADAPTER.stream(request(stream=True)), MessagesStream)
    assert ADAPTER.speaks == {"chat", "messages"}
    assert ADAPTER.translates == {"chat"}


def test_an_error_in_a_200_is_an_error() -> None:
    """In the client's envelope, without the gateway's key."""
    body = json.dumps({"type": "error", "error": {"type": "overloaded_error", "message": f"no {KEY}"}}).encode()
    with pytest.raises(GatewayError) as caught:
        ADAPTER.response(request(), body)
    assert (caught.value.http_status, KEY in caught.value.message) == (503, False)
    assert caught.value.as_dict("anthropic")["error"]["type"] == "overloaded_error"

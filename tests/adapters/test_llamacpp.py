"""llama.cpp's own words: what passes, what is kept from its server, and what of its host the client never learns."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.adapters._native_messages import CountsTokens
from asgi_llm_gateway.adapters.base import Unsupported
from asgi_llm_gateway.adapters.llamacpp import LlamaCppAdapter
from asgi_llm_gateway.errors import BadRequest, GatewayError
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.routing import Router
from asgi_llm_gateway.records import Usage
from asgi_llm_gateway.wire import METERED, LLMRequest, Route, parse

from ..conversation import ask
from ..upstream import DONE, event, head, once, streaming, upstream, whole

ADAPTER = LlamaCppAdapter("llamacpp", "http://10.0.0.7:8080/v1", "k1-of-the-server")
HI: Any = [{"role": "user", "content": "a"}]
WEATHER: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
TIME: Any = {"type": "function", "function": {"name": "time", "parameters": {"type": "object"}}}
PATH = "/srv/models/secret-project/tiny.gguf"


def request(path: str = "/v1/chat/completions", **fields: Any) -> LLMRequest:
    """A parsed request."""
    dialect = METERED[path]
    told: dict[str, Any] = {"model": "llamacpp/tiny", "max_tokens": 9, **fields}
    if dialect in ("chat", "messages"):
        told.setdefault("messages", HI)
    return parse(Route("metered", dialect, path), json.dumps(told).encode())


def sent(asked: LLMRequest, adapter: LlamaCppAdapter = ADAPTER) -> dict[str, Any]:
    """The body that the server gets."""
    found: dict[str, Any] = json.loads(adapter.request(asked, asked.model).body)
    return found


# -- requests ----------------------------------------------------------------------------------------------------------


def test_the_servers_own_fields_pass() -> None:
    """Byte for byte."""
    asked = request(grammar='root ::= "a"', json_schema=None, top_k=1, min_p=0.1, mirostat=2, samplers=["top_k"],
                    timings_per_token=True, reasoning_format="deepseek", chat_template_kwargs={"enable_thinking": False},
                    return_progress=True)  # fmt: skip
    assert ADAPTER.request(asked, "llamacpp/tiny").body == asked.raw


def test_what_reaches_into_others_slots_is_kept_back_and_told() -> None:
    """``id_slot`` and ``cache_prompt``, unless clients are trusted."""
    asked = request(id_slot=0, cache_prompt=True, top_k=1)
    made = ADAPTER.request(asked, "llamacpp/tiny")
    assert made.dropped == ("id_slot", "cache_prompt")
    assert json.loads(made.body) == {"model": "llamacpp/tiny", "max_tokens": 9, "top_k": 1, "messages": HI}
    trusting = LlamaCppAdapter("l", "http://h/v1", trust_clients=True)
    assert trusting.request(asked, "llamacpp/tiny").body == asked.raw


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/chat/completions", {"n": 2}, "n"),
        ("/v1/completions", {"prompt": ["a", "b"]}, "prompt"),
        ("/v1/completions", {"prompt": [[1, 2], [3]]}, "prompt"),
    ],
)
def test_several_answers_in_a_call_are_refused(path: str, fields: dict[str, Any], param: str) -> None:
    """The server tells the tokens of one of them only: the others would be free. One by one they are not."""
    with pytest.raises(Unsupported) as caught:
        sent(request(path, **fields))
    assert caught.value.param == param
    assert sent(request(path, **fields), LlamaCppAdapter("l", "http://h/v1", trust_clients=True))
    for one in ({"prompt": ["a"]}, {"prompt": [1, 2, 3]}, {"prompt": "a", "n": 1}):
        assert sent(request("/v1/completions", **one))


def test_it_counts_tokens_of_messages_itself() -> None:
    """At its own path, in the client's own words; the URL of a picture is not let through there either."""
    made = ADAPTER.count_request(request("/v1/messages", system="s"), "tiny")
    assert made.endpoint.url == "http://10.0.0.7:8080/v1/messages/count_tokens"
    assert json.loads(made.body) == {"model": "tiny", "max_tokens": 9, "system": "s", "messages": HI}
    assert isinstance(ADAPTER, CountsTokens)
    content = [{"type": "image", "source": {"type": "url", "url": "http://h/x.png"}}]
    with pytest.raises(Unsupported, match="data: URI"):
        ADAPTER.count_request(request("/v1/messages", messages=[{"role": "user", "content": content}]), "tiny")


@pytest.mark.parametrize(
    ("choice", "expected", "names"),
    [
        ({"type": "function", "function": {"name": "time"}}, "required", ["time"]),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [TIME]}}, "auto", ["time"]),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [TIME, WEATHER]}}, "required",
         ["weather", "time"]),
        ("auto", "auto", ["weather", "time"]),
        ("required", "required", ["weather", "time"]),
        ("none", "none", ["weather", "time"]),
    ],
)  # fmt: skip
def test_one_function_is_asked_for_by_giving_the_model_no_other(choice: Any, expected: str, names: list[str]) -> None:
    """The server takes words only, and makes ``auto`` of an object without a word."""
    body = sent(request(tools=[WEATHER, TIME], tool_choice=choice))
    assert body["tool_choice"] == expected
    assert [tool["function"]["name"] for tool in body["tools"]] == names


def test_the_other_dialects_choices_are_fitted_too() -> None:
    """Anthropic's ``tool`` and Responses' flat function."""
    flat: Any = [{"name": "weather", "input_schema": {}}, {"name": "time", "input_schema": {}}]
    body = sent(request("/v1/messages", tools=flat, tool_choice={"type": "tool", "name": "time"}))
    assert (body["tool_choice"], body["tools"]) == ({"type": "any"}, flat[1:])
    assert sent(request("/v1/messages", tools=flat, tool_choice={"type": "auto"}))["tool_choice"] == {"type": "auto"}
    tools = [{"type": "function", **one, "parameters": {}} for one in ({"name": "weather"}, {"name": "time"})]
    asked = parse(
        Route("metered", "responses", "/v1/responses"),
        json.dumps(
            {"model": "m", "input": "a", "tools": tools, "tool_choice": {"type": "function", "name": "time"}}
        ).encode(),
    )
    body = sent(asked)
    assert (body["tool_choice"], body["tools"]) == ("required", tools[1:])


@pytest.mark.parametrize(
    ("choice", "tools"),
    [
        ({"type": "function", "function": {"name": "nobody"}}, [WEATHER]),
        ({"type": "function", "function": {"name": "weather"}}, []),
        ({"type": "function", "function": {"name": "weather"}}, None),
        ({"type": "function"}, [WEATHER, {"type": "function"}]),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}, [WEATHER]),
        ({"type": "allowed_tools", "allowed_tools": 7}, [WEATHER]),
        ({"type": "custom", "custom": {"name": "x"}}, [WEATHER]),
        ({}, [WEATHER]),
    ],
)
def test_a_choice_of_nothing_is_refused(choice: Any, tools: Any) -> None:
    """400, naming the field."""
    with pytest.raises(BadRequest) as caught:
        sent(request(tools=tools, tool_choice=choice))
    assert (caught.value.http_status, caught.value.param) == (400, "tool_choice")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)
       | st.dictionaries(st.sampled_from(["type", "function", "name", "allowed_tools", "tools", "mode", "content"]), inner,
                         max_size=3), max_leaves=12))  # fmt: skip
def test_no_shape_of_tools_or_parts_is_a_traceback(value: Any) -> None:
    """A refusal that names the field, or a request."""
    messages = [{"role": "user", "content": value if type(value) is list else [value]}]
    for fields in ({"tool_choice": value, "tools": [WEATHER]}, {"tool_choice": {"type": "function"}, "tools": value},
                   {"messages": messages}):  # fmt: skip
        refused = None
        try:
            ADAPTER.request(request(**fields), "m")
        except GatewayError as error:
            refused = error
        assert refused is None or (refused.http_status == 400 and refused.param)


# -- answers -----------------------------------------------------------------------------------------------------------


def answer(model: str, text: str = "hi") -> bytes:
    """An answer as the server writes it."""
    told = {"choices": [{"finish_reason": "stop", "index": 0, "message": {"role": "assistant", "content": text}}],
            "model": model, "object": "chat.completion",
            "usage": {"completion_tokens": 5, "prompt_tokens": 3, "total_tokens": 8}, "timings": {"cache_n": 0}}  # fmt: skip
    return json.dumps(told, separators=(",", ":")).encode()


@pytest.mark.parametrize("path", [PATH, "tiny.gguf", "models/tiny.gguf", r"C:\models\tiny.gguf", "~/tiny", "./tiny"])
def test_a_models_file_is_called_by_the_name_that_was_asked_for(path: str) -> None:
    """Where the server was given no alias, it calls the model by its file's path; all else stays as it was."""
    made = ADAPTER.response(request(), answer(path, f'"model":"{path}"'))
    told = json.loads(made.body)
    assert told["model"] == "llamacpp/tiny"
    assert told == {**json.loads(answer(path, f'"model":"{path}"')), "model": "llamacpp/tiny"}
    assert made.usage == Usage(3, 5)
    assert told["timings"] == {"cache_n": 0}


@pytest.mark.parametrize("name", ["tiny", "org/model:Q4_K_M", "llamacpp/tiny"])
def test_a_models_name_stays(name: str) -> None:
    """Byte for byte."""
    body = answer(name)
    assert ADAPTER.response(request(), body).body == body


@given(st.integers(1, 400))
def test_the_file_is_hidden_in_every_event_however_it_is_cut(size: int) -> None:
    """And nothing else is changed; usage, end and counts are the stream's own."""
    chunks = [event({"choices": [{"delta": {"content": word}, "finish_reason": end}], "model": PATH})
              for word, end in (("a", None), ('"model":"b"', None), ("", "stop"))]  # fmt: skip
    said = b"".join([b": ping\n\n", *chunks, DONE])
    stream = ADAPTER.stream(request(stream=True))
    out = b"".join(stream.feed(said[at : at + size]) for at in range(0, len(said), size)) + stream.finish()
    assert out == said.replace(PATH.encode(), b"llamacpp/tiny")
    assert (stream.complete, stream.failed, stream.events) == (True, False, 4)


# -- errors ------------------------------------------------------------------------------------------------------------

LOADING = {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}


def test_a_model_that_is_being_loaded_is_no_failure() -> None:
    """503 with a code of its own and a time to come again; without a free slot it is another."""
    told = ADAPTER.error(503, (), json.dumps(LOADING).encode())
    assert (told.http_status, told.error_code, dict(told.headers)) == (503, "upstream_loading", {b"retry-after": b"2"})
    told = ADAPTER.error(503, ((b"retry-after", b"7"),), json.dumps(LOADING).encode())
    assert dict(told.headers) == {b"retry-after": b"7"}
    busy = {"error": {"message": "no slot available", "type": "unavailable_error", "code": 503}}
    assert ADAPTER.error(503, (), json.dumps(busy).encode()).error_code == "upstream_unavailable"


def test_a_prompt_that_is_too_long_is_called_as_openai_calls_it() -> None:
    """With both counts."""
    body = {"error": {"code": 400, "message": "request (12024 tokens) exceeds the available context size (2048 tokens)",
                      "type": "exceed_context_size_error", "n_prompt_tokens": 12024, "n_ctx": 2048}}  # fmt: skip
    told = ADAPTER.error(400, (), json.dumps(body).encode())
    assert (told.http_status, told.error_type, told.error_code, told.param) == (
        400, "invalid_request_error", "context_length_exceeded", "messages",
    )  # fmt: skip
    assert "12024" in told.message
    assert "2048" in told.message


@pytest.mark.parametrize(
    "text",
    [f"failed to open '{PATH}'", f"failed to load {PATH}: no such file", r"can't read C:\models\x\tiny.gguf",
     "model tiny-secret-project.gguf is broken", "at http://10.0.0.7:8080/v1 with k1-of-the-server"],
)  # fmt: skip
def test_no_error_tells_of_the_servers_files(text: str) -> None:
    """Nor of its place and its key."""
    told = ADAPTER.error(500, (), json.dumps({"error": {"message": text, "code": 500}}).encode())
    assert told.http_status == 502
    for secret in ("secret-project", ".gguf", "models", "10.0.0.7", "k1-of"):
        assert secret not in told.message


async def test_loading_then_ready_is_an_answer() -> None:
    """The gateway comes again, and the client sees nothing of it, or is told when to come itself."""
    body = json.dumps(LOADING).encode()
    loading = head(503, ("Content-Type", "application/json"), ("Content-Length", str(len(body))), reason="x") + body
    async with upstream(once(loading), once(whole())) as server:
        app = ProxyApp(router=Router([LlamaCppAdapter("llamacpp", server.url())]))
        first = await ask(app, {"model": "llamacpp/tiny", "messages": HI})
        if first.status != 200:
            assert (first.status, first.error["code"]) == (503, "upstream_loading")
            first = await ask(app, {"model": "llamacpp/tiny", "messages": HI})
        assert first.status == 200
        await app.aclose()


async def test_an_error_in_a_stream_without_an_end_is_told_and_no_end_is_made_up() -> None:
    """llama.cpp says so and is silent: the client gets the error, and no ``[DONE]``."""
    first = event(
        {"choices": [{"delta": {"role": "assistant", "content": None}, "finish_reason": None}], "model": PATH}
    )
    failed = event({"error": {"code": 500, "message": f"decode failed in {PATH}", "type": "server_error"}})
    async with upstream(streaming(first, failed)) as server:
        app = ProxyApp(router=Router([LlamaCppAdapter("llamacpp", server.url())]))
        answer = await ask(app, {"model": "llamacpp/tiny", "messages": HI, "stream": True})
        await app.aclose()
    assert "[DONE]" not in answer.body.decode()
    assert PATH not in answer.body.decode()
    if answer.status == 200:
        assert json.loads(answer.events[-1])["error"]["code"] == "upstream_error"
    else:  # nothing had gone out yet
        assert (answer.status, answer.error["code"]) == (502, "upstream_error")


def test_a_picture_by_url_is_refused_before_the_host_loads_it() -> None:
    """The host would load it from within the operator's network."""
    content = [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}]
    with pytest.raises(Unsupported, match="data: URI"):
        ADAPTER.request(request(messages=[{"role": "user", "content": content}]), "m")

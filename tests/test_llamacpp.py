"""A real llama.cpp server with a tiny model behind a real gateway process that knows it by LLAMACPP_URL."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest

from .servers import KEY, ROOT, Server, environment, fetch, free_port, running, shown, uvicorn

pytestmark = pytest.mark.real

SERVER_KEY = "k1-of-the-llama-server"
HELLO: Any = [{"role": "user", "content": "tell me about the gateway"}]
# Tokens of the tiny model: <tool_call>, </tool_call>, <|im_end|>. With them it makes a whole tool call.
TOOL_BIAS = {"261": 100, "262": 60, "260": 90}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"day": {"enum": ["mon", "tue"]}}, "required": ["day"]},
    },
}
MOOD: Any = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}, "sure": {"type": "boolean"}},
    "required": ["mood", "sure"],
    "additionalProperties": False,
}


class Pair(NamedTuple):
    """The gateway and the llama.cpp server behind it."""

    gateway: Server
    llama: Server


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, made afresh."""
    pytest.importorskip(
        "xllamacpp", reason="xllamacpp cannot be imported: no real llama.cpp server", exc_type=ImportError
    )
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    subprocess.run([sys.executable, "-m", "tests.real.make_tiny_gguf", str(path)], cwd=ROOT, check=True)
    return path


@pytest.fixture(scope="module", params=["", "/v1"], ids=["plain_url", "url_with_v1"])
def pair(request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both processes, the gateway configured by the environment alone."""
    folder = tmp_path_factory.mktemp("llama")
    gateway_folder = folder / "gateway"
    command = [sys.executable, "-m", "tests.real.llama_server", str(model), "--port", str(free_port())]
    with running([*command, "--api-key", SERVER_KEY], environment(folder), folder) as llama:
        env = environment(gateway_folder, LLAMACPP_URL=llama.url + request.param, LLAMACPP_API_KEY=SERVER_KEY)
        with uvicorn("examples:app", env, gateway_folder) as gateway:
            yield Pair(gateway, llama)


@pytest.fixture
def servers(pair: Pair) -> Iterator[Pair]:
    """The same for one test, with what the gateway logs."""
    with shown(pair.gateway):
        yield pair


@pytest.fixture
def client(servers: Pair) -> Iterator[openai.OpenAI]:
    """The official SDK, pointed at the gateway."""
    with openai.OpenAI(base_url=servers.gateway.url + "/v1", api_key=KEY) as made:
        yield made


@pytest.fixture
def direct(servers: Pair) -> Iterator[openai.OpenAI]:
    """The official SDK, pointed at llama.cpp itself."""
    with openai.OpenAI(base_url=servers.llama.url + "/v1", api_key=SERVER_KEY) as made:
        yield made


def busy(llama: Server) -> list[bool]:
    """Which slots of the server are at work."""
    return [slot["is_processing"] for slot in fetch(f"{llama.url}/slots", key=SERVER_KEY).json()]


def test_a_chat_is_answered_with_the_servers_usage(client: openai.OpenAI, direct: openai.OpenAI) -> None:
    """Text and counts through the gateway are those of the server itself."""
    same: Any = {"messages": HELLO, "max_tokens": 12, "temperature": 0, "seed": 1}
    through = client.chat.completions.create(model="llamacpp/tiny", **same)
    alone = direct.chat.completions.create(model="tiny", **same)
    assert through.choices[0].message.content
    assert through.choices[0].message.content == alone.choices[0].message.content
    assert through.usage is not None
    assert alone.usage is not None
    assert through.usage.completion_tokens == alone.usage.completion_tokens > 0
    assert through.usage.prompt_tokens == alone.usage.prompt_tokens > 0
    assert through.choices[0].finish_reason == alone.choices[0].finish_reason


def test_a_stream_is_the_answer_in_pieces(client: openai.OpenAI, direct: openai.OpenAI) -> None:
    """The chunks make the server's own text; usage comes where it is asked for, and equals the server's."""
    same: Any = {"messages": HELLO, "max_tokens": 12, "temperature": 0, "seed": 1}
    alone = direct.chat.completions.create(model="tiny", **same)
    both: tuple[Any, Any] = ({}, {"stream_options": {"include_usage": True}})
    for options in both:
        with client.chat.completions.create(model="llamacpp/tiny", stream=True, **same, **options) as stream:
            chunks = list(stream)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == alone.choices[0].message.content
        told = [chunk.usage for chunk in chunks if chunk.usage is not None]
        assert bool(told) == bool(options)
        if told:
            assert alone.usage is not None
            assert told[-1].total_tokens == alone.usage.total_tokens


def test_fields_that_only_the_server_knows_pass_through(client: openai.OpenAI) -> None:
    """llama.cpp's own request fields reach it, and its own answer fields come back."""
    answer = client.chat.completions.create(
        model="llamacpp/tiny",
        messages=HELLO,
        max_tokens=4,
        extra_body={"top_k": 1, "min_p": 0.1, "cache_prompt": False},
    )
    assert answer.model_extra is not None
    assert "timings" in answer.model_extra


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called(client: openai.OpenAI, stream: bool) -> None:
    """A real tool call, held to its schema by a grammar, streamed and not."""
    asked: Any = {
        "model": "llamacpp/tiny", "messages": HELLO, "tools": [WEATHER], "tool_choice": "required",
        "logit_bias": TOOL_BIAS, "max_tokens": 300, "temperature": 0,
    }  # fmt: skip
    if stream:
        with client.chat.completions.stream(**asked) as events:
            answer: Any = events.get_final_completion()
    else:
        answer = client.chat.completions.create(**asked)
    assert answer.choices[0].finish_reason == "tool_calls"
    called = answer.choices[0].message.tool_calls[0].function
    assert called.name == "weather"
    assert json.loads(called.arguments)["day"] in ("mon", "tue")


def test_an_answer_keeps_its_schema(client: openai.OpenAI) -> None:
    """``response_format`` with a JSON schema gives JSON of that schema."""
    schema: Any = {"type": "json_schema", "json_schema": {"name": "mood", "schema": MOOD, "strict": True}}
    answer = client.chat.completions.create(
        model="llamacpp/tiny", messages=HELLO, max_tokens=60, response_format=schema, temperature=0
    )
    said = json.loads(answer.choices[0].message.content or "")
    assert said["mood"] in ("good", "bad")
    assert isinstance(said["sure"], bool)


def test_a_completion_is_answered(client: openai.OpenAI) -> None:
    """The older API."""
    answer = client.completions.create(model="llamacpp/tiny", prompt="the gateway", max_tokens=6)
    assert answer.choices[0].text
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0


def test_the_servers_refusal_arrives_in_the_envelope(client: openai.OpenAI) -> None:
    """What llama.cpp refuses is told in OpenAI's envelope, without a host or a key of the operator's."""
    with pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(
            model="llamacpp/tiny", messages=HELLO, extra_body={"grammar": "this is no grammar ::="}
        )
    assert refused.value.status_code in (400, 502)
    assert SERVER_KEY not in refused.value.response.text
    assert "127.0.0.1" not in refused.value.response.text


def test_a_hang_up_frees_the_slot(servers: Pair) -> None:
    """A client that leaves in the middle of a long stream stops the work at llama.cpp.

    Without a stream llama.cpp works on to the end, also for a client of its own that has left.
    """
    body = {
        "model": "llamacpp/tiny",
        "messages": HELLO,
        "max_tokens": 3900,
        "stream": True,
        "logit_bias": {"260": -100},
    }
    connection = http.client.HTTPConnection("127.0.0.1", servers.gateway.port, timeout=30)
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    answer = connection.getresponse()
    assert answer.read(10)
    assert any(busy(servers.llama)), "the answer was over before the client could leave"
    left = time.monotonic()
    answer.close()
    connection.close()
    _until(lambda: not any(busy(servers.llama)), "the server went on for nobody")
    assert time.monotonic() - left < 1.0


def _until(true: Any, otherwise: str) -> None:
    until = time.monotonic() + 5.0
    while not true():
        assert time.monotonic() < until, otherwise
        time.sleep(0.002)


def test_embeddings_are_answered(model: Path, tmp_path: Path) -> None:
    """A server that was started for embeddings gives vectors of the model's width, decoded by the SDK."""
    command = [sys.executable, "-m", "tests.real.llama_server", str(model), "--port", str(free_port()), "--embedding"]
    with running(command, environment(tmp_path), tmp_path) as llama:
        env = environment(tmp_path / "gateway", LLAMACPP_URL=llama.url)
        with (
            uvicorn("examples:app", env, tmp_path / "gateway") as gateway,
            openai.OpenAI(base_url=gateway.url + "/v1", api_key=KEY) as client,
        ):
            answer = client.embeddings.create(model="llamacpp/tiny", input=["the gateway", "the budget"])
    assert [len(row.embedding) for row in answer.data] == [64, 64]
    assert answer.data[0].embedding != answer.data[1].embedding
    assert answer.usage.prompt_tokens > 0

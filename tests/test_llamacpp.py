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

import anthropic
import openai
import pytest

from asgi_llm_gateway.adapters._native_messages import counted
from asgi_llm_gateway.adapters.llamacpp import LlamaCppAdapter
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.routing import Router
from asgi_llm_gateway.wire import Route, parse

from .servers import KEY, ROOT, Server, environment, fetch, free_port, running, serving, shown, uvicorn

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


# -- the adapter for it, before a server that was given no alias for its model -----------------------------------------


class Own(NamedTuple):
    """A ProxyApp's URL, and what its llama.cpp server calls the model: a file of the operator's."""

    url: str
    file: str
    adapter: LlamaCppAdapter

    def openai(self) -> openai.OpenAI:
        """The official SDK, pointed at the app."""
        return openai.OpenAI(base_url=self.url + "/v1", api_key=KEY, max_retries=0)

    def ask(self, body: Any, path: str = "/v1/chat/completions") -> Any:
        """One call as it is, and its answer as it is: no word of it may tell of the file."""
        reply = fetch(self.url + path, body)
        assert self.file.encode() not in reply.body
        assert b".gguf" not in reply.body
        return reply


@pytest.fixture(scope="module")
def own(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Own]:
    """Both."""
    folder = tmp_path_factory.mktemp("own")
    command = [sys.executable, "-m", "tests.real.llama_server", str(model), "--port", str(free_port()), "--no-alias"]
    with running(command, environment(folder), folder) as llama:
        adapter = LlamaCppAdapter("llamacpp", llama.url + "/v1")
        with serving(ProxyApp(router=Router([adapter]))) as url:
            yield Own(url, str(model), adapter)


CHAT: dict[str, Any] = {"model": "llamacpp/tiny", "messages": HELLO, "max_tokens": 6}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/messages", CHAT),
        ("/v1/responses", {"model": "llamacpp/tiny", "input": "tell me", "max_output_tokens": 16}),
        ("/v1/completions", {"model": "llamacpp/tiny", "prompt": "the gateway", "max_tokens": 6}),
    ],
)
def test_no_answer_tells_of_the_models_file(own: Own, path: str, body: dict[str, Any], stream: bool) -> None:
    """In no dialect and in no event: the model is called by the name that was asked for."""
    reply = own.ask({**body, "stream": stream}, path)
    assert reply.status == 200
    assert b'"model":"llamacpp/tiny"' in reply.body


def test_it_speaks_messages_natively(own: Own) -> None:
    """Anthropic's own SDK, streamed and not; counts and all come from the server."""
    with anthropic.Anthropic(base_url=own.url, api_key=KEY, max_retries=0) as client:
        whole = client.messages.create(**CHAT)
        with client.messages.stream(**CHAT) as stream:
            last = stream.get_final_message()
    for message in (whole, last):
        assert message.content[0].type == "text"
        assert message.stop_reason in ("max_tokens", "end_turn")
        assert message.usage.output_tokens > 0
        assert message.model == "llamacpp/tiny"


def test_it_speaks_responses_natively(own: Own) -> None:
    """OpenAI's SDK, streamed and not."""
    with own.openai() as client:
        whole = client.responses.create(model="llamacpp/tiny", input="tell me", max_output_tokens=16)
        events = list(
            client.responses.create(model="llamacpp/tiny", input="tell me", max_output_tokens=16, stream=True)
        )
    assert whole.output_text
    assert whole.usage is not None
    assert whole.usage.output_tokens > 0
    assert events[-1].type in ("response.completed", "response.incomplete")


@pytest.mark.parametrize("field", ["n_predict", "n_cmpl"])
def test_the_servers_second_names_for_limits_are_refused(own: Own, field: str) -> None:
    """It would believe them in place of ``max_tokens`` and ``n``, which are what was checked and held for."""
    reply = own.ask({**CHAT, field: 30})
    assert (reply.status, reply.json()["error"]["param"]) == (400, field)


def test_a_request_without_a_limit_comes_to_an_end(own: Own) -> None:
    """The model never says that it is done here: the gateway's limit ends it, or the server's context."""
    reply = own.ask({"model": "llamacpp/tiny", "messages": HELLO, "logit_bias": {"260": -100, "2": -100}})
    assert reply.status == 200
    assert reply.json()["choices"][0]["finish_reason"] == "length"
    assert reply.json()["usage"]["completion_tokens"] <= 4096


def test_the_function_that_is_named_is_called(own: Own) -> None:
    """``tool_choice`` as an object: the other function is never called, whatever the model would like."""
    other: Any = {"type": "function", "function": {**WEATHER["function"], "name": "other"}}
    with own.openai() as client:
        answer: Any = client.chat.completions.create(
            model="llamacpp/tiny", messages=HELLO, tools=[other, WEATHER], max_tokens=300, temperature=0,
            tool_choice={"type": "function", "function": {"name": "weather"}}, logit_bias=TOOL_BIAS,
        )  # fmt: skip
    assert answer.choices[0].message.tool_calls[0].function.name == "weather"


def test_a_prompt_that_is_too_long_is_called_as_openai_calls_it(own: Own) -> None:
    """400 ``context_length_exceeded``, whole and streamed."""
    for stream in (False, True):
        reply = own.ask({**CHAT, "messages": [{"role": "user", "content": "tell me " * 9000}], "stream": stream})
        error = reply.json()["error"]
        assert (reply.status, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")


def test_what_reaches_into_others_slots_is_kept_back(own: Own) -> None:
    """And told in a header."""
    reply = own.ask({**CHAT, "id_slot": 1, "cache_prompt": False})
    assert reply.status == 200
    assert reply.headers["x-llm-dropped-fields"] == "id_slot, cache_prompt"
    assert "timings" in reply.json()


def test_it_counts_a_prompt_exactly(own: Own) -> None:
    """As many tokens as the call itself is then billed for."""
    asked = parse(Route("authenticated", "messages", "/v1/messages/count_tokens"), json.dumps(CHAT).encode())
    made = own.adapter.count_request(asked, "tiny")
    told = counted("llamacpp", fetch(made.endpoint.url, made.body).body)
    used = own.ask(CHAT, "/v1/messages").json()["usage"]
    assert told == used["input_tokens"] + used["cache_read_input_tokens"] > 0


def test_a_picture_by_url_never_reaches_the_server(own: Own) -> None:
    """400 by the gateway: the model's host loads nothing."""
    content = [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}]
    reply = own.ask({**CHAT, "messages": [{"role": "user", "content": content}]})
    assert (reply.status, reply.json()["error"]["param"]) == (400, "messages[0].content[0].image_url")


def test_embeddings_come_in_the_encoding_that_was_asked_for(model: Path, tmp_path: Path) -> None:
    """Base64 for the SDK, numbers for whoever asks for nothing, and both are the same vector."""
    command = [sys.executable, "-m", "tests.real.llama_server", str(model), "--port", str(free_port()), "--embedding"]
    with running(command, environment(tmp_path), tmp_path) as llama:
        app = ProxyApp(router=Router([LlamaCppAdapter("llamacpp", llama.url + "/v1")]))
        with serving(app) as url, openai.OpenAI(base_url=url + "/v1", api_key=KEY) as client:
            asked = {"model": "llamacpp/tiny", "input": "the gateway"}
            plain = fetch(url + "/v1/embeddings", asked).json()["data"][0]["embedding"]
            text = fetch(url + "/v1/embeddings", {**asked, "encoding_format": "base64"}).json()["data"][0]["embedding"]
            decoded = client.embeddings.create(model="llamacpp/tiny", input="the gateway").data[0].embedding
    assert isinstance(text, str)
    assert len(plain) == len(decoded) == 64
    assert plain == pytest.approx(decoded, rel=1e-5)

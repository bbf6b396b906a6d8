"""Anthropic's adapter before a server that really speaks its API, llama.cpp's ``/v1/messages``: translated and natively."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import anthropic
import openai
import pytest

from asgi_llm_gateway.adapters.anthropic import AnthropicAdapter

from .conversation import ask
from .proxy.test_counting import Counting
from .servers import KEY, ROOT, TEAM, Server, environment, free_port, running, shown, uvicorn

pytestmark = pytest.mark.real

SERVER_KEY = "k1-of-the-llama-server"
HELLO: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "tell me about the gateway"}]
PROVIDER = f"""
[providers.local]
type = "anthropic"
base_url = "${{LLAMA}}"
api_key = "{SERVER_KEY}"
models = ["tiny"]

{TEAM}"""


class Pair(NamedTuple):
    """The gateway and the llama.cpp server behind it."""

    gateway: Server
    llama: Server


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both processes; the llama.cpp server is a provider of the type ``anthropic``."""
    pytest.importorskip(
        "xllamacpp", reason="xllamacpp cannot be imported: no real llama.cpp server", exc_type=ImportError
    )
    folder = tmp_path_factory.mktemp("llama")
    model = folder / "tiny.gguf"
    subprocess.run([sys.executable, "-m", "tests.real.make_tiny_gguf", str(model)], cwd=ROOT, check=True)
    command = [sys.executable, "-m", "tests.real.llama_server", str(model), "--port", str(free_port())]
    with running([*command, "--api-key", SERVER_KEY], environment(folder), folder) as llama:
        env = environment(folder / "gateway", file=PROVIDER, LLAMA=llama.url)
        with uvicorn("examples:app", env, Path(folder / "gateway")) as gateway:
            yield Pair(gateway, llama)


@pytest.fixture
def gateway(pair: Pair) -> Server:
    """The gateway alone."""
    return pair.gateway


def test_a_chat_is_translated_there_and_back(gateway: Server) -> None:
    """Text, the reason of the end, and the tokens that the server counted."""
    with shown(gateway), openai.OpenAI(base_url=gateway.url + "/v1", api_key=KEY, max_retries=0) as client:
        answer = client.chat.completions.create(model="local/tiny", messages=HELLO, max_tokens=8)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 0
    assert 1 <= answer.usage.completion_tokens <= 8


def test_a_stream_is_translated_event_by_event(gateway: Server) -> None:
    """Role, words, reason, and usage because it was asked for."""
    with shown(gateway), openai.OpenAI(base_url=gateway.url + "/v1", api_key=KEY, max_retries=0) as client:
        stream = client.chat.completions.create(
            model="local/tiny", messages=HELLO, max_tokens=8, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] in ("length", "stop")
    assert chunks[-1].usage is not None
    assert 1 <= chunks[-1].usage.completion_tokens <= 8


def test_what_has_no_word_there_is_refused_by_name(gateway: Server) -> None:
    """Before anybody is asked."""
    with (
        shown(gateway),
        openai.OpenAI(base_url=gateway.url + "/v1", api_key=KEY, max_retries=0) as client,
        pytest.raises(openai.BadRequestError) as caught,
    ):
        client.chat.completions.create(model="local/tiny", messages=HELLO, n=2)
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "n")


# -- natively ----------------------------------------------------------------------------------------------------------

ASKED: Any = {"messages": HELLO[1:], "system": "Be brief.", "max_tokens": 8}


def client(server: Server, key: str = KEY) -> anthropic.Anthropic:
    """The official SDK."""
    return anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0)


def test_a_message_is_that_of_the_server(pair: Pair) -> None:
    """Text, reason and counts through the gateway are those of the server itself."""
    with shown(pair.gateway), client(pair.gateway) as through, client(pair.llama, SERVER_KEY) as direct:
        answers = [through.messages.create(model="local/tiny", extra_body={"top_k": 1}, **ASKED),
                   direct.messages.create(model="tiny", extra_body={"top_k": 1}, **ASKED)]  # fmt: skip
    first, second = ((one.content, one.stop_reason, one.usage.output_tokens, _prompt(one.usage)) for one in answers)
    assert first == second
    assert first[0][0].type == "text"
    assert first[2] > 0


def _prompt(usage: anthropic.types.Usage) -> int:
    return usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_a_stream_is_the_message_in_pieces(pair: Pair) -> None:
    """Put together by the SDK, with the counts of the whole."""
    same = {**ASKED, "model": "local/tiny", "extra_body": {"top_k": 1}}
    with shown(pair.gateway), client(pair.gateway) as through:
        alone = through.messages.create(**same)
        with through.messages.stream(**same) as stream:
            texts = list(stream.text_stream)
            final = stream.get_final_message()
    assert "".join(texts) == final.content[0].text == alone.content[0].text  # type: ignore[union-attr]
    assert len(texts) > 1
    assert (final.stop_reason, final.usage.output_tokens) == (alone.stop_reason, alone.usage.output_tokens)


def test_the_servers_refusal_is_raised(pair: Pair) -> None:
    """In Anthropic's envelope, without a key or a host."""
    png = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}  # the tiny model sees nothing
    image: Any = [{"role": "user", "content": [{"type": "image", "source": png}]}]
    with shown(pair.gateway), client(pair.gateway) as through, pytest.raises(anthropic.APIStatusError) as caught:
        through.messages.create(model="local/tiny", max_tokens=4, messages=image)
    assert caught.value.status_code in (400, 502)
    assert caught.value.body["type"] == "error"  # type: ignore[index]
    assert SERVER_KEY not in str(caught.value.body)
    assert "127.0.0.1" not in str(caught.value.body)


async def test_the_server_counts_tokens(pair: Pair) -> None:
    """As many as it then reports for the prompt."""
    app = Counting(AnthropicAdapter("local", pair.llama.url, SERVER_KEY))
    answer = await ask(app, {"model": "local/tiny", "messages": HELLO[1:]}, "/v1/messages/count_tokens")
    await app.client.close()
    with client(pair.gateway) as through:
        usage = through.messages.create(model="local/tiny", max_tokens=4, messages=HELLO[1:]).usage
    assert (answer.status, answer.headers["x-llm-token-count"]) == (200, "provider")
    assert answer.json()["input_tokens"] == _prompt(usage)

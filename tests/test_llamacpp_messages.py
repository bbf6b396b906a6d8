"""Anthropic's adapter before a server that really speaks its API: llama.cpp's ``/v1/messages``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

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


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
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
            yield gateway


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

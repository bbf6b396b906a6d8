"""A real model server of somebody else's (llama-cpp-python's FastAPI app), wrapped in the middlewares, with no ProxyApp.

It needs ``llama-cpp-python[server]``, of which there is no wheel: pip builds it from source in some minutes. Its streams
carry no usage, whatever is asked for: the real case for an estimate.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest

from .servers import KEY, ROOT, Server, environment, fetch, gateway, shown, uvicorn

pytestmark = pytest.mark.real

HELLO: Any = [{"role": "user", "content": "tell me about the gateway"}]
CHAT: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 8}
POOR_KEY = "gw-poor-key-for-the-tests"
BUSY_KEY = "gw-busy-key-for-the-tests"
CHOSEN = 40
"""Output tokens of a request that names no limit."""

FILE = """
[models.tiny]
usd_per_million_in = "1"
usd_per_million_out = "3"

[tenants.team]
keys = ["${TEAM_KEY}"]
budget_usd = "1"

[tenants.poor]
keys = ["gw-poor-key-for-the-tests"]
budget_usd = "0.00001"

[tenants.busy]
keys = ["gw-busy-key-for-the-tests"]
rate_requests = 2
"""


class Wrapped(NamedTuple):
    """The process, and the environment that it shares with the command line."""

    server: Server
    env: dict[str, str]

    def records(self, tenant: str) -> list[Any]:
        """What is booked of a tenant, newest first, read by the command line from the same store."""
        done = gateway("usage", tenant, "--records", "--json", env=self.env)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def until_booked(self, tenant: str, count: int) -> Any:
        """The newest record, once there are so many: an answer that was cut is booked a moment after it."""
        until = time.monotonic() + 30
        while len(found := self.records(tenant)) < count:
            assert time.monotonic() < until, f"{count} records were expected, there are {len(found)}"
            time.sleep(0.05)
        assert len(found) == count
        return found[0]


@pytest.fixture(scope="module")
def running_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wrapped]:
    """The server process."""
    if importlib.util.find_spec("llama_cpp") is None or importlib.util.find_spec("starlette_context") is None:
        pytest.skip("llama-cpp-python[server] is not installed: pip install 'llama-cpp-python[server]' builds it")
    folder = tmp_path_factory.mktemp("wrapped")
    model = folder / "tiny.gguf"
    subprocess.run([sys.executable, "-m", "tests.real.make_tiny_gguf", str(model)], cwd=ROOT, check=True)
    env = environment(folder, file=FILE, LLAMA_GGUF=str(model), DEFAULT_MAX_OUTPUT_TOKENS=str(CHOSEN))
    with uvicorn("tests.real.llama_wrapped:app", env, Path(folder)) as server:
        yield Wrapped(server, env)


@pytest.fixture
def wrapped(running_server: Wrapped) -> Iterator[Wrapped]:
    """The same for one test, with what it logs."""
    with shown(running_server.server):
        yield running_server


@pytest.fixture
def client(wrapped: Wrapped) -> Iterator[openai.OpenAI]:
    """The official SDK."""
    with openai.OpenAI(base_url=wrapped.server.url + "/v1", api_key=KEY, max_retries=0) as made:
        yield made


def cost_of(prompt: int, completion: int) -> float:
    """In USD, at one and three dollars a million."""
    return (prompt + 3 * completion) / 1_000_000


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/chat/completions", "/extras/tokenize", "/extras/detokenize", "/openapi.json"]
)
def test_nobody_comes_in_without_a_key(wrapped: Wrapped, path: str) -> None:
    """Also by the server's own paths, which are no part of OpenAI's API."""
    body = None if path in ("/v1/models", "/openapi.json") else {**CHAT, "input": "a"}
    for key in (None, "gw-nobodys-key-for-the-tests"):
        reply = fetch(wrapped.server.url + path, body, key=key)
        assert (reply.status, reply.json()["error"]["code"]) == (401, "invalid_api_key")
    assert fetch(wrapped.server.url + "/v1/models", key=KEY).json()["data"][0]["id"] == "tiny"


def test_an_answer_costs_what_its_usage_says(wrapped: Wrapped, client: openai.OpenAI) -> None:
    """The hold is settled by the server's own counts; the header and the record tell the same."""
    before = len(wrapped.records("team"))
    raw = client.chat.completions.with_raw_response.create(**CHAT)
    answer = raw.parse()
    assert answer.choices[0].message.content
    assert answer.usage is not None
    used = answer.usage
    assert float(raw.headers["x-llm-cost-usd"]) == pytest.approx(cost_of(used.prompt_tokens, used.completion_tokens))
    assert raw.headers["x-trace-id"]
    record = wrapped.until_booked("team", before + 1)
    assert (record["prompt_tokens"], record["completion_tokens"]) == (used.prompt_tokens, used.completion_tokens)
    assert record["cost_usd"] == pytest.approx(cost_of(used.prompt_tokens, used.completion_tokens))
    assert record["flags"] == []
    assert record["trace_id"] == raw.headers["x-trace-id"]


def test_a_stream_without_usage_is_estimated_and_not_free(wrapped: Wrapped, client: openai.OpenAI) -> None:
    """The server tells no counts, though they are asked for."""
    before = len(wrapped.records("team"))
    with client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    pieces = [chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert pieces
    record = wrapped.until_booked("team", before + 1)
    assert record["flags"] == ["estimated"]
    assert len(pieces) <= record["completion_tokens"] <= 4 * len(pieces)
    assert record["prompt_tokens"] > 0
    assert record["cost_usd"] > 0


def test_a_request_without_a_limit_gets_one(client: openai.OpenAI) -> None:
    """The server would go on to the end of its context: the limit that the budget chose stands in the body it reads."""
    answer = client.chat.completions.create(model="tiny", messages=HELLO, logit_bias={"260": -100})
    assert answer.usage is not None
    assert answer.usage.completion_tokens == CHOSEN
    assert answer.choices[0].finish_reason == "length"


def test_a_spent_budget_is_402_and_the_model_is_not_asked(wrapped: Wrapped) -> None:
    """Whole and streamed; nothing is booked."""
    with openai.OpenAI(base_url=wrapped.server.url + "/v1", api_key=POOR_KEY, max_retries=2) as poor:
        for stream in (False, True):
            with pytest.raises(openai.APIStatusError) as refused:
                poor.chat.completions.create(**{**CHAT, "max_tokens": 500}, stream=stream)
            assert refused.value.status_code == 402
            assert refused.value.type == "insufficient_quota"
            assert refused.value.response.headers["x-should-retry"] == "false"
    assert wrapped.records("poor") == []


def test_too_many_requests_are_429(wrapped: Wrapped) -> None:
    """The third in a window of two."""
    for status in (200, 200, 429):
        reply = fetch(wrapped.server.url + "/v1/chat/completions", CHAT, key=BUSY_KEY)
        assert reply.status == status
    assert reply.json()["error"]["code"] == "rate_limit_exceeded"


def test_a_hang_up_is_paid_for_and_the_server_goes_on(wrapped: Wrapped, client: openai.OpenAI) -> None:
    """A client that leaves in the middle of a stream: booked as cut, estimated, not free, and the next one is served."""
    before = len(wrapped.records("team"))
    body = {**CHAT, "max_tokens": 1500, "stream": True, "logit_bias": {"260": -100}}
    connection = http.client.HTTPConnection("127.0.0.1", wrapped.server.port, timeout=30)
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    answer = connection.getresponse()
    assert answer.status == 200
    assert answer.read(2000).count(b"data:") > 1
    answer.close()
    connection.close()
    record = wrapped.until_booked("team", before + 1)
    assert set(record["flags"]) == {"aborted", "estimated"}
    assert 0 < record["completion_tokens"] <= 1500
    assert record["cost_usd"] > 0
    assert client.chat.completions.create(**CHAT).choices[0].message.content


def test_the_servers_own_refusal_costs_nothing(running_server: Wrapped) -> None:
    """A body that the gateway takes and the server does not; the hold is given back."""
    wrapped = running_server  # it logs a traceback of its own
    before = len(wrapped.records("team"))
    reply = fetch(wrapped.server.url + "/v1/chat/completions", {**CHAT, "temperature": "hot"})
    assert reply.status in (400, 422, 500)
    assert len(wrapped.records("team")) == before
    shown_money = gateway("tenants", "show", "team", "--json", env=wrapped.env)
    assert shown_money.returncode == 0, shown_money.stderr
    assert float(json.loads(shown_money.stdout)["held_usd"]) == 0

"""Every file under examples/, run as the README says, answers over real HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from .servers import ROOT, Server, environment, fetch, shown, uvicorn

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]}


class Example(NamedTuple):
    """A way in: where it serves the API, and a route of the host app."""

    app: str
    prefix: str
    host_path: str | None
    host_body: bytes
    answer: str
    proxied: bool


EXAMPLES = (
    Example("examples:app", "", None, b"", "one two three", True),
    Example("examples.wrap_fastapi:app", "", "/hello", b'{"hello":"world"}', "You sent 3 words.", False),
    Example("examples.wrap_quart:app", "", "/hello", b'{"hello":"world"}\n', "one two three", True),
    Example("examples.mount_fastapi:app", "/llm", "/hello", b'{"hello":"world"}', "one two three", True),
    Example("examples.mount_starlette:app", "/llm", "/", b"The gateway is under /llm/v1", "one two three", True),
)


class Running(NamedTuple):
    """An example that is being served."""

    example: Example
    server: Server

    @property
    def url(self) -> str:
        """What an SDK would be given, less the ``/v1``."""
        return self.server.url + self.example.prefix


@pytest.fixture(scope="module", params=EXAMPLES, ids=lambda example: example.app)
def process(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Each example under a real uvicorn, one after the other."""
    folder = tmp_path_factory.mktemp("example")
    with uvicorn(request.param.app, environment(folder), folder) as server:
        yield Running(request.param, server)


@pytest.fixture
def running(process: Running) -> Iterator[Running]:
    """The example under test."""
    with shown(process.server):
        yield process


def test_no_example_is_left_out() -> None:
    """A new file in examples/ has a row here."""
    files = {f"examples.{path.stem}:app" for path in (ROOT / "examples").glob("[a-z]*.py")}
    files.remove("examples.metered_fastapi:app")  # it serves no LLM API; metering/test_sdk_example.py runs it
    files.remove(
        "examples.custom_adapter:app"
    )  # it is a package's adapter and no app; test_custom_adapter.py serves it
    files.remove("examples.cached:app")  # it asks for no key; test_cache_hosts.py serves it
    files.remove("examples.cors_fastapi:app")  # it puts headers on every route; test_security.py runs it
    assert files | {"examples:app"} == {example.app for example in EXAMPLES}


def test_an_example_answers_a_chat(running: Running) -> None:
    """The first call of a newcomer is answered, and the answer says who it was by its ids."""
    answer = fetch(running.url + "/v1/chat/completions", CHAT)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json()["choices"][0]["message"]["content"] == running.example.answer
    assert len(answer.headers["x-trace-id"]) == 32
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.headers["x-ratelimit-limit-requests"] == "600"


def test_an_example_asks_for_a_key(running: Running) -> None:
    """Without a key, and with a wrong one, the same 401 in OpenAI's envelope."""
    refusals = [fetch(running.url + "/v1/chat/completions", CHAT, key=key) for key in (None, "gw-not-a-key-of-ours")]
    assert [answer.status for answer in refusals] == [401, 401]
    assert refusals[0].body == refusals[1].body
    assert refusals[0].json()["error"]["code"] == "invalid_api_key"


def test_an_example_says_what_is_wrong_with_a_body(running: Running) -> None:
    """Half a JSON object is 400 with a message that says where, not a traceback."""
    answer = fetch(running.url + "/v1/chat/completions", b'{"model": "echo", ')
    assert (answer.status, answer.json()["error"]["code"]) == (400, "invalid_json")


def test_an_example_streams(running: Running) -> None:
    """Where the proxy answers, ``stream: true`` gives events and an end; the own model of a host knows no streams."""
    answer = fetch(running.url + "/v1/chat/completions", {**CHAT, "stream": True})
    assert answer.status == 200
    if running.example.proxied:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.body.endswith(b"data: [DONE]\n\n")
        assert b'"usage"' not in answer.body


def test_an_example_lists_its_models(running: Running) -> None:
    """Where the proxy answers, the list of a machine without provider keys is ``echo``."""
    answer = fetch(running.url + "/v1/models")
    if running.example.proxied:
        assert [model["id"] for model in answer.json()["data"]] == ["echo"]
    else:
        assert answer.status == 404


def test_the_hosts_own_route_is_untouched(running: Running) -> None:
    """A route of the host app needs no key, and bears no header of ours."""
    if running.example.host_path is None:
        answer = fetch(running.server.url + "/health", key=None)
        assert (answer.status, answer.json()) == (200, {"status": "ok"})
        return
    answer = fetch(running.server.url + running.example.host_path, key=None)
    assert (answer.status, answer.body) == (200, running.example.host_body)
    assert not [name for name in answer.headers if name.startswith("x-")]


def test_a_path_that_nobody_has_is_no_way_in(running: Running) -> None:
    """Other spellings of a guarded path, and unknown paths below /v1, are answered 404 or 401, never served."""
    for path in ("/v1//chat/completions", "/V1/chat/completions", "/v1/chat/completions;x=1", "/v1/nothing"):
        assert fetch(running.url + path, CHAT, key=None).status in (401, 404)


@pytest.mark.parametrize("settings", [{"GATEWAY_CONFIG": "/nowhere.toml"}, {"ENABLE_RATE_LIMIT": "perhaps"}])
def test_a_wrong_setting_stops_the_start_and_is_named(tmp_path: Path, settings: dict[str, str]) -> None:
    """``uvicorn examples:app`` with a setting that can't be meant ends at once and says which."""
    env = {**environment(tmp_path), **settings}
    with pytest.raises(AssertionError, match=next(iter(settings))), uvicorn("examples:app", env, tmp_path):
        pass

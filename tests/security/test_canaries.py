"""A07, A45: unique secrets and prompts go down every path, and are then searched for wherever something is kept or told.

Gain: keys and conversations, from a log, a trace, a dump of the database, an error or a repr. Nothing of them is found.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import secrets as random
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from asgi_llm_gateway import create_app
from asgi_llm_gateway.adapters.anthropic import AnthropicAdapter
from asgi_llm_gateway.adapters.base import Answer as Upstream
from asgi_llm_gateway.adapters.base import Endpoint, Script, UpstreamRequest
from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.admin.routes import OPERATIONS
from asgi_llm_gateway.keys import new_key
from asgi_llm_gateway.logs import shared_lines
from asgi_llm_gateway.proxy.upstream import prepare
from asgi_llm_gateway.records import Tenant
from asgi_llm_gateway.settings import ProviderConfig, Settings, forget
from asgi_llm_gateway.stores._database import Dsn
from asgi_llm_gateway.tracelog import shared_traces
from asgi_llm_gateway.wire import Route, parse

from ..conversation import JSON, Answer, ask, call
from ..forms import form, part
from ..upstream import DONE, LAST_CHUNK, STREAM_HEAD, Gone, Peer, chunk, event, upstream, usage_event, whole, word
from .house import House, chat


class Canaries:
    """Texts that stand nowhere else, by what they are."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def __call__(self, what: str, prefix: str = "") -> str:
        """The canary of that name."""
        return self.texts.setdefault(what, f"{prefix}canary{random.token_hex(12)}")

    def found_in(self, *told: Any) -> set[str]:
        """Which of them stand in what was told (texts, bytes, or anything with a repr), and where that begins."""
        texts = [
            one if isinstance(one, str) else one.decode("utf-8", "replace") if isinstance(one, bytes) else repr(one)
            for one in told
        ]
        return {f"{what} in {one[:60]}" for what, text in self.texts.items() for one in texts if text in one}


def reprs() -> list[str]:
    """What every living object of ours says of itself."""
    # A provider's refusal is an exception with its words, which may quote the prompt, until its call is over. One that only
    # waits for the garbage collector is kept by nobody.
    gc.collect()
    found = []
    for thing in gc.get_objects():
        if str(getattr(type(thing), "__module__", "")).startswith("asgi_llm_gateway"):
            try:
                found.append(f"{type(thing).__qualname__}: {thing!r}")
            except Exception as error:  # half made, half gone, or changed by another thread meanwhile
                found.append(repr(error))
    return found


def logged(caplog: pytest.LogCaptureFixture) -> Iterator[str]:
    """Every line, its arguments, and its traceback."""
    for record in caplog.records:
        yield record.getMessage()
        yield repr(record.__dict__)
        if record.exc_info and record.exc_info[1] is not None:
            yield "".join(traceback.format_exception(record.exc_info[1]))


@pytest.fixture
def printed(capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """What the process wrote to its own stdout and stderr, with a log writer of this test's own: see ``shared_lines``."""
    shared_lines.cache_clear()

    def read() -> str:
        assert shared_lines().writer.flush(10)
        return "".join(capfd.readouterr())

    yield read
    shared_lines.cache_clear()


@contextmanager
def told(canary: Canaries, caplog: pytest.LogCaptureFixture, folder: Path) -> Iterator[None]:
    """After what happens within, nothing is kept anywhere."""
    with caplog.at_level(logging.DEBUG):
        yield
    assert canary.found_in(*logged(caplog)) == set()
    assert canary.found_in(*shared_traces.recent(10_000)) == set()
    assert canary.found_in(*reprs()) == set()
    for path in folder.rglob("*"):
        if path.is_file():
            assert canary.found_in(path.read_bytes()) == set(), path.name


ANSWER: dict[str, Any] = {"id": "x", "object": "chat.completion", "usage": {"prompt_tokens": 3, "completion_tokens": 5}}


def provider(canary: Canaries) -> Any:
    """A provider that answers as the request's ``seed`` says, with words of its own that nobody is to keep."""
    said = canary("an answer")
    leaky = f"Incorrect API key provided: {canary('the provider key', 'sk-')} for {canary('a prompt')}"
    plain = {
        **ANSWER,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}],
    }
    whole_ones: dict[int, bytes] = {
        1: whole(plain),
        2: whole({"error": {"message": leaky, "type": "invalid_request_error", "code": "x"}}, 400),
        3: whole({"error": {"message": leaky}}, 500),
        4: whole({"error": {"message": leaky}}, 401),
        5: whole(f"<html>{leaky}</html>".encode(), 502, kind="text/html"),
        6: whole(f'{{"choices": [{{"message": "{said}'.encode()),
        7: whole({"error": {"message": leaky}}),
        8: whole({"error": {"message": leaky}}, 429, headers=[("retry-after", "1"), ("x-leak", leaky)]),
    }
    streams: dict[int, tuple[bytes, ...]] = {
        11: (chunk(word(said)), chunk(usage_event()), chunk(DONE), LAST_CHUNK),
        12: (chunk(word(said)), chunk(event({"error": {"message": leaky}})), LAST_CHUNK),
        13: (chunk(word(said)), b"zz" + leaky.encode() + b"\r\n"),
        14: (chunk(b"data: " + said.encode() + b"\n\n"), LAST_CHUNK),
    }

    async def script(peer: Peer) -> None:
        while True:
            asked = await peer.request()
            seed = 1 if asked.body.startswith(b"--") else asked.json().get("seed", 1)
            if seed in streams:
                await peer.send(STREAM_HEAD, *streams[seed])
                if seed != 11:
                    return
            elif seed == 20:  # it begins, and says nothing more
                await peer.send(STREAM_HEAD, chunk(word(said)))
                await peer.stall()
            elif seed == 21:
                raise Gone
            else:
                await peer.send(whole_ones.get(seed, whole_ones[1]))

    return script


def full(canary: Canaries, **fields: Any) -> dict[str, Any]:
    """A chat with a canary in every text of it."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + canary("an image")}}
    arguments = json.dumps({"a": canary("an argument")})
    called = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    schema = {"type": "object", "properties": {"a": {"type": "string", "description": canary("a schema")}}}
    tool = {"type": "function", "function": {"name": "f", "description": canary("a tool"), "parameters": schema}}
    return {
        "model": "gpt-4",
        "messages": [
            {"role": "system", "content": canary("a system")},
            {"role": "user", "content": [{"type": "text", "text": canary("a prompt")}, image]},
            {"role": "assistant", "content": None, "tool_calls": [called]},
            {"role": "tool", "tool_call_id": "call_1", "content": canary("a result")},
            {"role": "user", "content": canary("a question")},
        ],
        "tools": [tool],
        "stop": [canary("a stop")],
        "user": canary("a user"),
        "metadata": {"note": canary("a note")},
        "max_tokens": 50,
        **fields,
    }


async def test_nothing_of_a_conversation_or_a_secret_is_kept_or_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, printed: Callable[[], str]
) -> None:
    """Down every path of the stand-alone gateway: answers, kept answers, streams, refusals, failures, hang-ups, the admin API.

    The cache keeps answers in this process's memory, which is what it is for; nothing that looks at it shows them.
    """
    canary = Canaries()
    admin = canary("the admin key", "an-admin-key-of-thirty-two-characters-")
    wrong = canary("a wrong key", "gw-")
    async with upstream(provider(canary)) as server, upstream(policy) as opa:
        environment = {
            "OPENAI_API_KEY": canary("the provider key", "sk-"),
            "OPENAI_BASE_URL": server.url(),
            "ANTHROPIC_API_KEY": canary("another provider's key", "sk-ant-"),
            "ANTHROPIC_BASE_URL": server.url(""),
            "GATEWAY_ADMIN_KEY": admin,
            "OPA_URL": opa.url(""),
            "OPA_TOKEN": canary("the policy's token"),
            "ENABLE_STRUCTURED_OUTPUT": "1",
            "ENABLE_CACHE": "1",
            "CACHE_CALLS": "all",
            "METRICS_PUBLIC": "1",
            "GATEWAY_MAX_RETRIES": "1",
            "GATEWAY_MAX_RETRY_WAIT_SECONDS": "0",
            "BREAKER_FAILURES": "0",
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        forget()
        with told(canary, caplog, tmp_path):
            app = create_app()
            bearer = [JSON, (b"authorization", f"Bearer {admin}".encode())]
            kept: list[Answer] = [
                await ask(app, {"id": "team", "budget_usd": 5}, "/api/tenants", headers=bearer),
                await ask(app, {"id": "poor", "budget_usd": 0}, "/api/tenants", headers=bearer),
            ]
            keys = {}
            for tenant in ("team", "poor"):  # shown once, in this one answer
                made = await ask(app, {}, f"/api/tenants/{tenant}/keys", headers=bearer)
                keys[tenant] = canary.texts[f"the key of {tenant}"] = made.json()["key"]
            mine = [JSON, (b"x-api-key", keys["team"].encode())]
            errors = await calls(canary, app, mine)
            errors += await refusals(canary, app, mine, keys, wrong)
            kept += await looks(canary, app, bearer, wrong)
            assert {answer.status for answer in kept} >= {200, 201, 401, 422}
            assert {answer.status for answer in errors} >= {400, 401, 402, 403, 404, 413, 502}
            for answer in (*kept, *errors):
                # What the provider says is told to who asked, and to nobody else: its words may quote the prompt.
                found = canary.found_in(answer.body, answer.headers)
                assert not [one for one in found if not one.startswith('a prompt in {"error":{"message":"Incorrect')], (
                    found
                )
        written = printed().splitlines()
        assert canary.found_in(*written) == set()
        lines = [json.loads(line) for line in written if line.startswith("{")]
        made_of = {line["cache"] for line in lines if line["event"] == "call" and "cache" in line}
        assert made_of >= {"miss", "hit"}  # every call has a line, of those that the cache answered too
        assert {line["status"] for line in lines if line["event"] == "call"} >= {200, 400, 401, 402, 403, 502}


async def policy(peer: Peer) -> None:
    """Yes to everything but a model called ``gpt-4-denied``; and no prompt reaches it."""
    while True:
        asked = await peer.request()
        assert b"canary" not in asked.body
        await peer.send(whole({"result": {"allow": b"denied" not in asked.body}}))


async def calls(canary: Canaries, app: Any, mine: list[tuple[bytes, bytes]]) -> list[Answer]:
    """Calls that go out; those that fail."""
    failed = []
    for seed in (1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 14, 21):
        for stream in (True,) if 10 < seed < 20 else (False, True):
            answer = await ask(app, full(canary, seed=seed, stream=stream), headers=mine)
            if answer.status >= 400:
                failed.append(answer)
    form_of_one = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}, "strict": True}}
    failed.append(await ask(app, full(canary, seed=1, response_format=form_of_one), headers=mine))
    said = canary("a prompt")
    await ask(app, {"model": "echo", "input": said, "instructions": canary("a system")}, "/v1/responses", headers=mine)
    turn = {"model": "echo", "max_tokens": 50, "messages": [{"role": "user", "content": said}]}
    for model in ("echo", "claude-3-opus-20240229"):
        await ask(app, {**turn, "model": model}, "/v1/messages", headers=mine)
    await ask(app, turn, "/v1/messages/count_tokens", headers=mine)
    await ask(app, {"model": "text-embedding-3-small", "input": [said]}, "/v1/embeddings", headers=mine)
    await ask(app, {"model": "gpt-4", "prompt": said}, "/v1/completions", headers=mine)
    sound = form(part("model", b"whisper-1"), part("file", said.encode(), filename=canary("a file") + ".wav"))
    kind = (b"content-type", b"multipart/form-data; boundary=xYz")
    await ask(app, sound, "/v1/audio/transcriptions", headers=[mine[1], kind])
    async with call(app, full(canary, seed=20, stream=True), headers=mine) as talk:
        await talk.next()
        await talk.next()
        assert canary.found_in(*reprs()) == set()  # while it runs, all of it is alive
        await talk.hang_up()
    return failed


async def refusals(
    canary: Canaries, app: Any, mine: list[tuple[bytes, bytes]], keys: dict[str, str], wrong: str
) -> list[Answer]:
    """Calls that are refused before they go out."""
    body = full(canary)
    shown = (b"authorization", f"Bearer {wrong}".encode())
    text = json.dumps(body)
    return [
        await ask(app, body, headers=[JSON]),
        await ask(app, body, headers=[JSON, shown]),
        await ask(app, body, headers=[*mine, shown]),
        await ask(app, body, headers=[JSON, (b"x-api-key", keys["poor"].encode())]),
        await ask(app, {**body, "tenant": "poor"}, headers=mine),
        await ask(app, {**body, "model": "gpt-4-denied"}, headers=mine),
        await ask(app, {**body, "model": "nobody-has-it"}, headers=mine),
        await ask(app, {**body, "api_key": canary("a key in a body", "sk-")}, headers=mine),
        await ask(app, {**body, "max_tokens": canary("a limit")}, headers=mine),
        await ask(app, {**body, "messages": canary("no messages")}, headers=mine),
        await ask(app, {**body, "messages": [{"role": "user", "content": {"x": canary("a question")}}]}, headers=mine),
        await ask(app, text[:-1].encode(), headers=mine),
        await ask(app, (text[:-1] + ', "model": "gpt-4"}').encode(), headers=mine),
        await ask(app, (text[:-1] + ', "x": ' + "[" * 300).encode(), headers=mine),
        await ask(app, body, headers=[*mine, (b"content-length", b"99999999999")]),
        await ask(app, body, headers=[*mine, (b"host", canary("a host").encode() + b"/")]),
        await ask(app, body, "/v1/batches", headers=mine),
        await ask(app, body, "//v1/chat/completions", headers=mine, query_string=canary("a query").encode()),
    ]


async def looks(canary: Canaries, app: Any, bearer: list[tuple[bytes, bytes]], wrong: str) -> list[Answer]:
    """All that the admin API shows, and its refusals."""
    shown = [JSON, (b"authorization", f"Bearer {wrong}".encode())]
    junk = {"id": "x", "note": canary("a note"), "budget_usd": canary("a limit")}
    found = [await ask(app, junk, "/api/tenants", headers=one) for one in (bearer, shown)]
    found.append(await ask(app, canary("no json").encode(), "/api/tenants", headers=bearer))
    shown_at = {one.path.format(id="team", key_id="x", trace_id="x") for one in OPERATIONS if one.method == "GET"}
    for path in sorted(shown_at | {"/health", "/ready", "/metrics", "/", "/dashboard"}):
        for accept in (b"application/json", b"text/csv"):
            headers = [*bearer, (b"accept", accept)]
            found.append(await ask(app, None, path, method="GET", headers=headers))
    return found


async def test_an_app_that_crashes_tells_nothing_of_the_call(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Its own words go to the server as they are; what we record of it is the kind of error, and no more."""
    canary = Canaries()

    async def crashes(scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        raise RuntimeError(body.decode())

    made = House(terminal=crashes)
    canary.texts["the key"] = await made.tenant("a")
    with told(canary, caplog, tmp_path):
        with pytest.raises(RuntimeError):
            await made.ask(full(canary, model="echo"))
        record = made.traces.recent()[0]
        assert record.error == "RuntimeError"
        assert len(made.log.lines) == 1
        assert canary.found_in(record, *made.log.lines) == set()
        assert await made.held() == 0


def test_no_record_that_carries_a_secret_or_a_text_shows_it() -> None:
    """In a repr, as a debugger, a failed test or a careless log line has it."""
    canary = Canaries()
    key, text = canary("the provider key", "sk-"), canary("a prompt")
    endpoint = Endpoint("POST", "http://provider.invalid/v1", [(b"authorization", b"Bearer " + key.encode())])
    request = parse(Route("metered", "chat", "/v1/chat/completions"), json.dumps(chat(user=text)).encode())
    carrying: list[Any] = [
        endpoint,
        prepare(endpoint),
        OpenAIAdapter("up", "http://provider.invalid/v1", key),
        AnthropicAdapter("up", "http://provider.invalid/v1", key),
        UpstreamRequest(endpoint, text.encode(), (), ((b"x", key.encode()),)),
        Script(200, (), [(0.0, text.encode())]),
        Upstream(text.encode(), None),
        request,
        request.with_fields(n=1),
        Dsn(f"postgresql://gateway:{key}@db.invalid/x", 5.0),
        Settings.load(
            {"OPENAI_API_KEY": key, "DATABASE_URL": f"postgresql://gateway:{key}@db.invalid/x", "OPA_TOKEN": key}
        ),
        ProviderConfig(api_key=SecretStr(key)),
    ]
    assert canary.found_in(*map(repr, carrying), *map(str, carrying)) == set()


def test_a_key_tells_its_secret_once() -> None:
    """Neither the record of a key nor what makes it has the secret in it."""
    key, secret = new_key("a", name="n")
    assert secret not in repr(key)
    assert all(secret not in str(getattr(key, name)) for name in key.__slots__)


async def test_the_search_would_find_something(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, printed: Callable[[], str]
) -> None:
    """A sweep that finds nothing anywhere is worth nothing: planted, each canary is found."""
    canary = Canaries()
    text = canary("a prompt")
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("asgi_llm_gateway.somewhere").debug("said %s", text)
    assert len(canary.found_in(*logged(caplog))) == 2
    shared_lines().info("said", text=text)
    assert canary.found_in(printed())
    made = House()
    await made.store.put_tenant(Tenant("a", name=text))
    living = await made.store.tenant("a")
    assert canary.found_in(*reprs())
    assert living is not None
    (tmp_path / "x.db").write_bytes(b"\0" + text.encode())
    caplog.clear()
    del living, made
    gc.collect()
    with pytest.raises(AssertionError, match=r"x\.db"), told(canary, caplog, tmp_path):
        await asyncio.sleep(0)
    assert (await ask(House().app, chat(), headers=[JSON])).status == 401

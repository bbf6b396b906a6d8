"""The same calls through Starlette, FastAPI, Quart, Litestar and Django: wrapped, mounted and stand-alone are one."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from asgi_llm_gateway import create_app, settings
from asgi_llm_gateway.middleware.security import HEADERS as SECURITY

from ..caching import PATHS, asking, text_of_stream
from ..conversation import CHAT, JSON, ask, get
from ..conversation import call as talk_to
from ..servers import KEY, Reply, fetch, serving
from .hosts import FRAMEWORKS, HELLO, Framework, guarded

AUTH = (b"authorization", f"Bearer {KEY}".encode())
HOST = (b"host", b"testserver")

# Of the answer's headers: those that the gateway promises. Servers and frameworks may add a date, a name, a length.
PROMISED = (
    "content-type",
    "cache-control",
    "x-ratelimit-limit-requests",
    "www-authenticate",
    "x-should-retry",
    "allow",
    "x-cache",
    "x-content-type-options",
    "content-security-policy",
)


class Outcome(NamedTuple):
    """What of an answer must be the same everywhere."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    ids: tuple[bool, bool]


class Case(NamedTuple):
    """A call of the matrix."""

    name: str
    path: str
    body: Any = None
    key: bool = True
    method: str = "POST"


CASES = (
    Case("chat", "/v1/chat/completions", CHAT),
    Case("chat_stream", "/v1/chat/completions", {**CHAT, "stream": True}),
    Case(
        "chat_stream_with_usage",
        "/v1/chat/completions",
        {**CHAT, "stream": True, "stream_options": {"include_usage": True}},
    ),
    Case("completions", "/v1/completions", {"model": "echo", "prompt": "one two"}),
    Case("embeddings", "/v1/embeddings", {"model": "echo", "input": ["one", "two"]}),
    Case("messages", "/v1/messages", asking("messages", model="echo")),
    Case("messages_stream", "/v1/messages", asking("messages", model="echo", stream=True)),
    Case("responses", "/v1/responses", asking("responses", model="echo")),
    Case("responses_stream", "/v1/responses", asking("responses", model="echo", stream=True)),
    Case("models", "/v1/models", method="GET"),
    Case("one_model", "/v1/models/echo", method="GET"),
    Case("unknown_model", "/v1/chat/completions", {**CHAT, "model": "nothing"}),
    Case("missing_key", "/v1/chat/completions", CHAT, key=False),
    Case("missing_key_for_models", "/v1/models", key=False, method="GET"),
    Case("bad_json", "/v1/chat/completions", b'{"model": "echo", '),
    Case("empty_messages", "/v1/chat/completions", {"model": "echo", "messages": []}),
    Case("wrong_method", "/v1/chat/completions", method="GET"),
    Case("unknown_path", "/v1/nothing", {}),
    Case("odd_spelling", "/v1//chat/completions", CHAT),
    Case("anthropics_envelope", "/v1/messages", b"{", key=True),
)


@pytest.fixture(autouse=True)
def team(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The tenant of the tests in the settings file of the process; and the layers that a setting puts into ``create_app``."""
    (tmp_path / "gateway.toml").write_text(f'[tenants.team]\nkeys = ["{KEY}"]\n', "utf-8")
    monkeypatch.setenv("GATEWAY_CONFIG", str(tmp_path / "gateway.toml"))
    monkeypatch.setenv("ENABLE_CACHE", "1")
    monkeypatch.setenv("ENABLE_STRUCTURED_OUTPUT", "1")
    settings.forget()


@pytest.fixture(params=FRAMEWORKS, ids=lambda framework: framework.name)
def framework(request: pytest.FixtureRequest) -> Framework:
    """Each framework."""
    found: Framework = request.param
    return found


def outcome(status: int, headers: Mapping[str, str], body: bytes) -> Outcome:
    """An answer without what differs from second to second."""
    same = re.sub(rb'"(created|created_at|completed_at)":\d{10}', rb'"\1":0', body)
    same = re.sub(rb'"(resp|msg)_[0-9a-f]{32}', rb'"\1_0', same)  # Responses' ids are made anew for each call
    ids = (
        bool(re.fullmatch(r"req_[0-9a-f]{32}", headers.get("x-request-id", ""))),
        len(headers.get("x-trace-id", "")) == 32,
    )
    return Outcome(status, {name: headers[name] for name in PROMISED if name in headers}, same, ids)


async def through(app: Any, case: Case, prefix: str = "") -> Outcome:
    """A call in this process, message by message."""
    headers = [HOST, JSON, *([AUTH] if case.key else [])]
    answer = await ask(app, case.body, prefix + case.path, headers=headers, method=case.method)
    assert answer.complete
    return outcome(answer.status, answer.headers, answer.body)


def over_http(url: str, case: Case) -> Outcome:
    """A call to a real server."""
    reply = fetch(url + case.path, case.body, key=KEY if case.key else None, method=case.method)
    return outcome(reply.status, reply.headers, reply.body)


# -- one answer, three ways in -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_wrapped_and_mounted_give_the_bytes_of_the_stand_alone(framework: Framework, case: Case) -> None:
    """Status, promised headers and body are the same, whichever way the call came in."""
    alone = await through(create_app(), case)
    mounted = await through(framework.mounted(), case, "/llm")
    if (framework.name, case.name) == ("litestar", "odd_spelling"):
        assert mounted.status == 200  # Litestar itself makes it the plain path before it looks for a mount
    else:
        assert mounted == alone
    assert await through(framework.wrapped(), case) == alone
    assert alone.ids == (True, True)


async def test_the_matrix_is_about_something() -> None:
    """The stand-alone answers that all are compared with are the right ones."""
    seen = {case.name: (await through(create_app(), case)).status for case in CASES}
    assert seen == {
        "chat": 200, "chat_stream": 200, "chat_stream_with_usage": 200, "completions": 200, "embeddings": 200,
        "messages": 200, "messages_stream": 200, "responses": 200, "responses_stream": 200,
        "models": 200, "one_model": 200, "unknown_model": 404, "missing_key": 401, "missing_key_for_models": 401,
        "bad_json": 400, "empty_messages": 400, "wrong_method": 405, "unknown_path": 404, "odd_spelling": 404,
        "anthropics_envelope": 400,
    }  # fmt: skip


@pytest.mark.parametrize("dialect", ["chat", "messages", "responses"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_second_call_is_a_hit_whichever_way_it_came_in(
    framework: Framework, dialect: str, stream: bool
) -> None:
    """Wrapped, mounted, and round a handler of the host's own (which speaks chat): the same answer again."""
    case = Case(dialect, PATHS[dialect], asking(dialect, model="echo", stream=stream))
    ways = [(framework.wrapped(), ""), (framework.mounted(), "/llm")]
    if dialect == "chat":
        ways.append((guarded(framework.own()), ""))
    for app, prefix in ways:
        miss, hit = [await through(app, case, prefix) for _ in range(2)]
        assert [one.headers.get("x-cache") for one in (miss, hit)] == ["miss", "hit"]
        assert hit.status == 200
        if stream:  # told again from what is kept: its pieces may be cut another way
            assert text_of_stream(dialect, hit.body) == text_of_stream(dialect, miss.body) != ""
        else:
            assert hit.body == miss.body
        assert {one.headers["x-content-type-options"] for one in (miss, hit)} == {"nosniff"}


async def test_the_hosts_own_route_is_untouched(framework: Framework) -> None:
    """No key, no change: wrapped or mounted, the host's route answers as it does alone, with security headers if wrapped."""
    alone = await get(framework.own(), "/hello", headers=[HOST])
    assert json.loads(alone.body) == HELLO
    mounted = await get(framework.mounted(), "/hello", headers=[HOST])
    assert (mounted.status, mounted.headers, mounted.body) == (200, alone.headers, alone.body)
    wrapped = await get(framework.wrapped(), "/hello", headers=[HOST])
    assert (wrapped.status, wrapped.headers, wrapped.body) == (200, {**secured(), **alone.headers}, alone.body)


def secured() -> dict[str, str]:
    """The security headers of an answer over plain HTTP."""
    return {name: value for name, value in SECURITY.items() if name != "strict-transport-security"}


async def test_a_path_that_the_host_does_not_have_is_not_ours(framework: Framework) -> None:
    """Outside the API nothing of ours is on a 404, and beside a mounted gateway it is the host's own."""
    for app in (framework.wrapped(), framework.mounted()):
        answer = await get(app, "/nothing", headers=[HOST])
        assert (answer.status, "x-request-id" in answer.headers) == (404, False)
    alone = await get(framework.own(), "/nothing", headers=[HOST])
    assert answer.body == alone.body


# -- handlers of the host's own ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_a_hosts_own_llm_handler_is_guarded_and_unchanged(framework: Framework, stream: bool) -> None:
    """The middlewares round a handler that knows no gateway: its bytes go out as they are; without a key it is not asked."""
    body = {**CHAT, "max_tokens": 7, "stream": stream}
    alone = await ask(framework.own(), body, headers=[HOST, JSON])
    app = guarded(framework.own())
    answer = await ask(app, body, headers=[HOST, JSON, AUTH])
    assert (answer.status, answer.body) == (200, alone.body)
    assert answer.headers["content-type"] == alone.headers["content-type"]
    assert len(answer.headers["x-trace-id"]) == 32
    refused = await ask(app, body, headers=[HOST, JSON])
    assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")


async def test_a_handler_reads_the_request_as_it_was_amended(framework: Framework) -> None:
    """A limit that the gateway chose is in the body that the handler reads, the gateway's own field is not."""
    body = {**CHAT, "tenant": "team"}
    answer = await ask(guarded(framework.own()), body, headers=[HOST, JSON, AUTH])
    said = answer.json()["choices"][0]["message"]["content"]
    assert said == "3 words, 4096 at most, ['max_tokens', 'messages', 'model']"


async def test_a_slash_that_the_client_wrote_is_another_path() -> None:
    """Only the slash that a mounting framework adds is overlooked; ``/health`` and ``/api`` are found behind it as well."""
    app = create_app()
    for path, raw, status in (
        ("/v1/models/", b"/llm/v1/models", 200),
        ("/v1/models/echo/", b"/llm/v1/models/echo", 200),
        ("/health/", b"/llm/health", 200),
        ("/api/tenants/", b"/llm/api/tenants", 403),
        ("/v1/chat/completions/", b"/v1/chat/completions/", 404),
        ("/v1/chat/completions/", b"/v1/chat/completions%2F", 404),
        ("/health/", b"/health/", 404),
    ):
        method = "POST" if "chat" in path else "GET"
        answer = await ask(app, CHAT, path, headers=[HOST, JSON, AUTH], method=method, raw_path=raw)
        assert (path, raw, answer.status) == (path, raw, status)


@pytest.mark.parametrize("kept", [False, True])
async def test_a_handlers_stream_goes_out_piece_by_piece(framework: Framework, kept: bool) -> None:
    """Each piece that a handler yields leaves at once, as it would without the gateway; whole events where they are kept."""
    body = {**CHAT, "max_tokens": 7, "stream": True, **({"temperature": 0} if kept else {})}
    async with talk_to(guarded(framework.own()), body, headers=[HOST, JSON, AUTH]) as talk:
        answer = await talk.answer()
    pieces = [message["body"] for message in talk.messages[1:] if message.get("body")]
    assert answer.headers["x-cache"] == ("miss" if kept else "bypass")
    if kept:  # a call of its own, which does not wait for the client: what comes at once may leave at once
        assert all(piece.endswith(b"\n\n") for piece in pieces)
        assert answer.body == (await ask(framework.own(), body, headers=[HOST, JSON])).body
    else:
        assert len(pieces) == 3


# -- lifespan ----------------------------------------------------------------------------------------------------------


class Recorder:
    """Stands where the gateway is mounted, and notes which scopes arrive."""

    def __init__(self, app: Any, kinds: list[str]) -> None:
        self._app = app
        self._kinds = kinds

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._kinds.append(scope["type"])
        await self._app(scope, receive, send)


@pytest.mark.parametrize("name", ["starlette", "fastapi", "litestar", "django"])
def test_a_mounted_gateway_gets_no_lifespan_and_works(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a real server with lifespan on, nothing but http reaches a mounted app: it opens its store on first use."""
    kinds: list[str] = []
    monkeypatch.setattr("tests.frameworks.hosts.create_app", lambda: Recorder(create_app(), kinds))
    (host,) = (one for one in FRAMEWORKS if one.name == name)
    with serving(host.mounted()) as url:
        assert fetch(f"{url}/llm/v1/chat/completions", CHAT).status == 200
        assert fetch(f"{url}/hello", key=None).json() == HELLO
    assert kinds == ["http"]


async def test_a_lifespan_passes_through_the_middlewares() -> None:
    """Wrapped, the host still gets its own lifespan, and both its ends are answered as the host answers them."""
    said: list[str] = []

    async def host(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan"
        for _ in range(2):
            message = await receive()
            await send({"type": message["type"] + ".complete"})

    waiting: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    for kind in ("lifespan.startup", "lifespan.shutdown"):
        waiting.put_nowait({"type": kind})

    async def send(message: Any) -> None:
        said.append(message["type"])

    await guarded(host)({"type": "lifespan", "asgi": {"version": "3.0"}}, waiting.get, send)
    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


# -- over a real server ------------------------------------------------------------------------------------------------

NAMES = ("chat", "chat_stream", "messages", "messages_stream", "responses", "responses_stream", "models", "missing_key",
         "bad_json")  # fmt: skip
WIRE = tuple(case for case in CASES if case.name in NAMES)


def test_a_real_server_gives_the_same(framework: Framework) -> None:
    """Uvicorn, sockets and HTTP between: the stand-alone gateway, the wrapped and the mounted one answer alike."""
    with serving(create_app()) as url:
        alone = [over_http(url, case) for case in WIRE]
    assert [one.status for one in alone] == [200] * 7 + [401, 400]
    with serving(framework.wrapped()) as url:
        assert [over_http(url, case) for case in WIRE] == alone
        assert hello(fetch(url + "/hello", key=None), {name for name in secured() if name.startswith("x-")})
    with serving(framework.mounted()) as url:
        assert [over_http(url + "/llm", case) for case in WIRE] == alone
        assert hello(fetch(url + "/hello", key=None))


def hello(reply: Reply, ours: Collection[str] = ()) -> bool:
    """The host's own route, with these headers of ours alone."""
    found = {name for name in reply.headers if name.startswith("x-")}
    return reply.status == 200 and reply.json() == HELLO and found == set(ours)

"""A policy over HTTP: OPA's own engine behind its REST API, and a scripted server for what OPA should never say."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from asgi_llm_gateway._closing import close_all
from asgi_llm_gateway.keys import new_key
from asgi_llm_gateway.middleware.policy import PolicyMiddleware
from asgi_llm_gateway.middleware.tenant import TenantMiddleware
from asgi_llm_gateway.records import Tenant
from asgi_llm_gateway.settings import forget
from asgi_llm_gateway.stores.memory import MemoryStore

from ..conversation import CHAT, JSON, ask, get
from ..servers import KEY, ROOT, Server, environment, fetch, free_port, running, uvicorn
from ..upstream import (
    LAST_CHUNK,
    Authority,
    Peer,
    Script,
    always,
    chunk,
    head,
    once,
    refused_port,
    silent,
    then_stall,
    upstream,
    whole,
)
from . import Stranger

RULES = ROOT / "examples" / "policy" / "gateway.rego"
YES: dict[str, Any] = {"result": True}
PATH = "/v1/data/llm/gateway"


@contextmanager
def opa(folder: Path, *policies: Path, port: int = 0) -> Iterator[Server]:
    """OPA's engine, with these policies."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.real.opa_rest", "--port", str(port)]
    for policy in policies:
        command += ["--policy", str(policy)]
    with running(command, environment(folder), folder) as server:
        yield server


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One engine with the example's rules, for all tests that leave it alone."""
    with opa(tmp_path_factory.mktemp("opa"), RULES) as server:
        yield server


def asked(server: Server) -> Any:
    """How many questions the engine got, and the last input."""
    return fetch(server.url + "/v1/asked", key=None).json()


async def plans() -> tuple[MemoryStore, Callable[[str], list[tuple[bytes, bytes]]]]:
    """Tenants ``poor`` and ``rich`` with their plans; and the headers of each."""
    store = MemoryStore()
    secrets = {}
    for name, plan in (("poor", "free"), ("rich", "paid")):
        key, secrets[name] = new_key(name)
        await store.put_tenant(Tenant(name, metadata={"plan": plan}))
        await store.add_key(key)
    return store, lambda name: [JSON, (b"authorization", b"Bearer " + secrets[name].encode())]


# -- the real engine ---------------------------------------------------------------------------------------------------


async def test_the_examples_rules_hold(engine: Server) -> None:
    """Plans, tools and obligations, decided by OPA; the reason is the policy's own words."""
    store, as_tenant = await plans()
    app = Stranger()
    layer = TenantMiddleware(PolicyMiddleware(app, url=engine.url, policy="llm.gateway", timeout=10), store=store)
    dear = {**CHAT, "model": "gpt-4o", "max_tokens": 900}
    refused = await ask(layer, dear, headers=as_tenant("poor"))
    assert (refused.status, refused.error["code"]) == (403, "policy_denied")
    assert refused.error["message"].endswith(": gpt-4o is not in the plan 'free'")
    assert len(refused.headers["x-llm-policy-decision"]) == 36
    assert (await ask(layer, dear, headers=as_tenant("rich"))).status == 200
    assert (await ask(layer, {**CHAT, "max_tokens": 900}, headers=as_tenant("poor"))).status == 200
    assert [json.loads(body).get("max_tokens") for body in app.bodies] == [900, 256]
    tools = {**dear, "tools": [{"type": "web_search"}]}
    assert (
        (await ask(layer, tools, headers=as_tenant("rich"))).error["message"].endswith("web search is not allowed here")
    )
    assert (await get(layer, "/v1/models", headers=as_tenant("poor")[1:])).status == 200


async def test_a_rule_alone_can_be_the_policy(engine: Server) -> None:
    """A path that leads to a boolean; one that leads nowhere is a no."""
    yes = PolicyMiddleware(Stranger(), url=engine.url, policy="llm/gateway/allow", timeout=10)
    nowhere = PolicyMiddleware(Stranger(), url=engine.url, policy="llm/nowhere", timeout=10, fail="open")
    assert (await ask(yes, CHAT)).status == 200
    assert (await ask(yes, {**CHAT, "model": "gpt-4o"})).status == 403
    assert (await ask(nowhere, CHAT)).status == 403


async def test_the_input_arrives_as_documented_and_without_the_prompt(engine: Server) -> None:
    """What OPA itself got; with ``prompt=True`` the body is in it."""
    await ask(PolicyMiddleware(Stranger(), url=engine.url, timeout=10), {**CHAT, "temperature": 0.25})
    found = asked(engine)["input"]
    assert (found["model"], found["dialect"], found["parameters"]) == ("echo", "chat", {"temperature": 0.25})
    assert "one two three" not in json.dumps(found)
    await ask(PolicyMiddleware(Stranger(), url=engine.url, timeout=10, prompt=True), CHAT)
    assert asked(engine)["input"]["body"] == CHAT


async def test_equal_calls_ask_the_engine_once(engine: Server) -> None:
    """Side by side and afterwards."""
    layer = PolicyMiddleware(Stranger(), url=engine.url, timeout=10, omit=("time",))
    before = asked(engine)["count"]
    answers = await asyncio.gather(*(ask(layer, {**CHAT, "seed": 4711}) for _ in range(20)))
    assert {answer.status for answer in answers} == {200}
    assert (await ask(layer, {**CHAT, "seed": 4711})).status == 200
    assert asked(engine)["count"] == before + 1


async def test_an_engine_that_is_frozen_or_killed_stops_the_calls_until_it_is_back(tmp_path: Path) -> None:
    """Frozen: 503 at the deadline. Killed: 503 at once. Back: served, without a restart of ours."""
    app = Stranger()
    port = free_port()
    with opa(tmp_path / "one", RULES, port=port) as server:
        layer = PolicyMiddleware(app, url=server.url, timeout=2.0, cache_seconds=0)
        lenient = PolicyMiddleware(app, url=server.url, timeout=2.0, cache_seconds=0, fail="open")
        assert (await ask(layer, CHAT)).status == 200
        os.kill(server.process.pid, signal.SIGSTOP)
        answers = await asyncio.gather(*(ask(layer, {**CHAT, "seed": seed}) for seed in range(50)))
        assert {(answer.status, answer.error["code"]) for answer in answers} == {(503, "policy_unavailable")}
        assert (await ask(lenient, CHAT)).status == 200
        os.kill(server.process.pid, signal.SIGCONT)
        for _ in range(20):  # it first works off what it was asked meanwhile
            if (await ask(layer, CHAT)).status == 200:
                break
        else:
            raise AssertionError("not served again")
        server.process.kill()
        server.process.wait()
        calls = app.calls
        assert (await ask(layer, CHAT)).error["code"] == "policy_unavailable"
        assert app.calls == calls
    with opa(tmp_path / "two", RULES, port=port):
        assert (await ask(layer, CHAT)).status == 200


def test_the_example_runs_against_the_engine(engine: Server, tmp_path: Path) -> None:
    """As its first line says, over real HTTP, with settings from the environment alone."""
    env = {**environment(tmp_path), "OPA_URL": engine.url, "OPA_TIMEOUT_MS": "10000"}
    with uvicorn("examples.policy.app:app", env, tmp_path) as server:
        assert fetch(server.url + "/v1/chat/completions", CHAT).status == 200
        answer = fetch(server.url + "/v1/chat/completions", {**CHAT, "model": "gpt-4o"})
        assert (answer.status, answer.json()["error"]["code"]) == (403, "policy_denied")
        assert fetch(server.url + "/v1/models", key=KEY).status == 200


def test_the_example_runs_without_opa(tmp_path: Path) -> None:
    """A function stands in."""
    with uvicorn("examples.policy.app:app", environment(tmp_path), tmp_path) as server:
        assert fetch(server.url + "/v1/chat/completions", CHAT).status == 200
        answer = fetch(server.url + "/v1/chat/completions", {**CHAT, "model": "gpt-4o"})
        assert answer.json()["error"]["message"].endswith("only echo is allowed here")


# -- what OPA should never say -----------------------------------------------------------------------------------------


def big(size: int) -> bytes:
    """A yes with so many bytes of padding."""
    return whole(json.dumps({"result": True, "pad": "x" * size}).encode())


FAULTS: dict[str, Script] = {
    "500": always(whole(YES, 500)),
    "404": always(whole({"code": "resource_not_found"}, 404)),
    "redirect": always(head(302, ("Location", "/elsewhere"), ("Content-Length", "0"))),
    "text": always(whole({"result": "true"})),
    "number": always(whole({"result": 1})),
    "allow is text": always(whole({"result": {"allow": "true"}})),
    "no object": always(whole([True])),
    "no json": always(whole(b"<html>true</html>", kind="text/html")),
    "empty": always(whole(b"")),
    "huge": always(big(2 * 1024 * 1024)),
    "huge and chunked": once(head(200, ("Transfer-Encoding", "chunked")), *[chunk(b"x" * 65536)] * 40),
    "endless header": once(b"HTTP/1.1 200 OK\r\n", *[b"x-pad: " + b"y" * 65536 + b"\r\n"] * 40),
    "no http": once(b"\x00\x01\x02 hello\r\n\r\n"),
    "cut": once(whole(YES)[:-3]),
    "closed": once(),
    "stalls": then_stall(whole(YES)[:-3]),
    "silent": silent,
    "compressed": always(whole(b"\x1f\x8b\x08\x00", headers=[("Content-Encoding", "gzip")])),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_an_odd_answer_follows_the_fail_mode(name: str) -> None:
    """Closed: 503 and nothing reaches the app. Open: it does (A41)."""
    async with upstream(FAULTS[name]) as server:
        app = Stranger()
        url = server.url("")
        timeout = 0.3 if name in ("stalls", "silent") else 10.0
        answer = await ask(PolicyMiddleware(app, url=url, timeout=timeout), CHAT)
        assert (answer.status, answer.error["code"]) == (503, "policy_unavailable")
        assert app.calls == 0
        assert (await ask(PolicyMiddleware(app, url=url, timeout=timeout, fail="open"), CHAT)).status == 200
        assert {request.path for request in server.requests} <= {PATH}
        await close_all()


async def test_nobody_listens() -> None:
    """Refused at once, and told by the setting's fail mode."""
    taken, port = refused_port()
    with taken:
        answer = await ask(PolicyMiddleware(Stranger(), url=f"http://127.0.0.1:{port}"), CHAT)
    assert answer.error["code"] == "policy_unavailable"


async def test_a_connection_is_used_again() -> None:
    """One for calls after each other; a chunked and a dripping answer are read as any other."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(head(200, ("Transfer-Encoding", "chunked")), chunk(b'{"result"'), chunk(b": true}"), LAST_CHUNK)
        await peer.request()
        await peer.drip(b"HTTP/1.1 100 Continue\r\n\r\n" + whole(YES))
        while True:
            await peer.request()
            await peer.send(whole(YES))

    async with upstream(script) as server:
        layer = PolicyMiddleware(Stranger(), url=server.url(""), timeout=10, cache_seconds=0)
        assert [(await ask(layer, CHAT)).status for _ in range(5)] == [200] * 5
        assert server.connections == 1
        await close_all()


async def test_a_connection_closed_while_idle_is_no_outage() -> None:
    """The question is asked again, on a fresh one."""
    async with upstream(once(whole(YES))) as server:
        layer = PolicyMiddleware(Stranger(), url=server.url(""), timeout=10, cache_seconds=0)
        assert [(await ask(layer, CHAT)).status for _ in range(4)] == [200] * 4
        assert server.connections == 4
        await close_all()


async def test_a_crowd_of_questions_shares_few_connections() -> None:
    """Different questions side by side; all are answered, over at most 32 connections."""
    async with upstream(always(whole(YES))) as server:
        layer = PolicyMiddleware(Stranger(), url=server.url(""), timeout=60)
        answers = await asyncio.gather(*(ask(layer, {**CHAT, "seed": seed}) for seed in range(300)))
        assert {answer.status for answer in answers} == {200}
        assert server.connections <= 32
        assert len(server.requests) == 300
        await close_all()


async def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """URL with a path, policy and token; the token is in no refusal."""
    async with upstream(always(whole({"result": False}))) as server:
        monkeypatch.setenv("OPA_URL", server.url("/behind/"))
        monkeypatch.setenv("OPA_POLICY", "my.rules/allow")
        monkeypatch.setenv("OPA_TOKEN", "the-token-of-opa")
        monkeypatch.setenv("OPA_TIMEOUT_MS", "10000")
        forget()
        layer = PolicyMiddleware(Stranger())
        answer = await ask(layer, CHAT)
        assert answer.status == 403
        [request] = server.requests
        assert (request.method, request.path) == ("POST", "/behind/v1/data/my.rules/allow")
        assert request.headers["authorization"] == "Bearer the-token-of-opa"
        assert request.headers["content-type"] == "application/json"
        assert "the-token-of-opa" not in answer.body.decode() + repr(layer.__dict__["_open"].get())
        await close_all()


async def test_the_fail_mode_and_the_dry_run_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """OPA_FAIL=open, OPA_DRY_RUN=1."""
    async with upstream(always(whole({}, 500)), always(whole({"result": False}))) as server:
        monkeypatch.setenv("OPA_URL", server.url(""))
        monkeypatch.setenv("OPA_FAIL", "open")
        forget()
        assert (await ask(PolicyMiddleware(Stranger(), timeout=10), CHAT)).status == 200
        assert (await ask(PolicyMiddleware(Stranger(), timeout=10), CHAT)).status == 403
        monkeypatch.setenv("OPA_DRY_RUN", "1")
        forget()
        assert (await ask(PolicyMiddleware(Stranger(), timeout=10), CHAT)).status == 200
        await close_all()


async def test_over_tls_the_certificate_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown authority: unavailable. Known by SSL_CERT_FILE: asked."""
    authority = Authority(tmp_path)
    async with upstream(always(whole(YES)), tls=authority.serving()) as server:
        stranger = PolicyMiddleware(Stranger(), url=server.url(""), timeout=10)
        assert (await ask(stranger, CHAT)).error["code"] == "policy_unavailable"
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.file()))
        assert (await ask(PolicyMiddleware(Stranger(), url=server.url(""), timeout=10), CHAT)).status == 200
        await close_all()

"""Every layer holds for every message of a session: each is an ordinary call from the outermost layer on."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from asgi_llm_gateway.damping import Damping
from asgi_llm_gateway.keys import new_key
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.middleware.ratelimit import RateLimitMiddleware
from asgi_llm_gateway.middleware.realtime import RealtimeMiddleware
from asgi_llm_gateway.middleware.tenant import TenantMiddleware
from asgi_llm_gateway.records import ApiKey, Tenant
from asgi_llm_gateway.tokens import FIXED_TOKENS

from ..middleware import Stranger
from .stage import CHAT, LIVELY, SLOW, STREAM, Peer, Stage, stage
from .test_session import code, words

ASKED = {**CHAT, "model": "m"}


def keep(**fields: Any) -> dict[str, Any]:
    """A chat that the cache keeps."""
    return {**CHAT, "temperature": 0, "seed": 1, **fields}


# -- tenant --------------------------------------------------------------------------------------------------------------


async def test_a_revoked_key_is_told_so_and_ends_the_session() -> None:
    """The key is asked for with each message; the calls under way end with the session and are settled."""
    async with stage() as st:
        peer = await st.connect()
        assert words(await peer.ask("1")) == "one two three"
        peer.chat("running", SLOW)
        await st.holding()
        await st.store.revoke_key(st.keys["a"].id, 0.0)
        peer.chat("2")
        found = await peer.rest("2", "running")
        assert code(found["2"]) == (401, "invalid_api_key")
        assert code(found["running"]) == (499, "cancelled")
        frame, closed = await peer.last()
        assert (frame["reason"], closed["code"]) == ("invalid_api_key", 1008)
        assert await st.refused() == (401, "invalid_api_key")


async def test_a_key_that_expires_ends_its_session() -> None:
    """Like one that is revoked; a rotated key has its overlap."""
    now = [1000.0]
    async with stage(clock=lambda: now[0]) as st:
        made, secret = new_key("a", expires=1010.0)
        await st.store.add_key(made)
        peer = await st.connect([(b"x-api-key", secret.encode())])
        assert (await peer.ask("1"))[-1]["type"] == "response.done"
        now[0] = 1010.0
        assert code(await peer.ask("2")) == (401, "invalid_api_key")
        assert (await peer.last())[0]["reason"] == "invalid_api_key"


async def test_a_disabled_tenant_ends_the_session() -> None:
    """With the code that HTTP has for it."""
    async with stage() as st:
        peer = await st.connect()
        await st.store.put_tenant(Tenant("a", enabled=False))
        assert code(await peer.ask("1")) == (403, "tenant_disabled")
        assert (await peer.last())[0]["reason"] == "tenant_disabled"


async def test_a_provider_that_says_invalid_key_does_not_end_the_session() -> None:
    """What an app answers is the app's; only our own gate ends a session."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        body = b'{"error":{"message":"no","code":"invalid_api_key"}}'
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async with stage(terminal=app) as st:
        peer = await st.connect()
        for call in ("1", "2"):
            assert code(await peer.ask(call, body=ASKED)) == (401, "invalid_api_key")
        peer.say("ping")
        assert (await peer.hear())["type"] == "pong"


async def test_a_session_acts_for_the_tenants_that_its_key_may_act_for() -> None:
    """By the body as over HTTP, by ``x-tenant-id`` for the whole session; any other tenant is refused."""
    async with stage() as st:
        await st.tenant("b")
        await st.tenant("both", key={"also_tenants": ("b",)})
        peer = await st.connect([st.bearer("both")])
        assert code(await peer.ask("1", body={**STREAM, "tenant": "a"})) == (403, "tenant_not_found")
        assert (await peer.ask("2", body={**STREAM, "tenant": "b"}))[-1]["type"] == "response.done"
        assert (await st.spent("both"), await st.spent("b")) == (0, 9_000)
        peer = await st.connect([st.bearer("both"), (b"x-tenant-id", b"b")])
        await peer.ask("1")
        assert (await st.spent("both"), await st.spent("b")) == (0, 18_000)
        assert await st.refused([st.bearer("both"), (b"x-tenant-id", b"a")]) == (403, "tenant_not_found")


async def test_a_models_list_holds() -> None:
    """``allowed_models`` of the key."""
    async with stage() as st:
        await st.tenant("c", key={"allowed_models": ("other",)})
        peer = await st.connect([st.bearer("c")])
        assert code(await peer.ask("1")) == (404, "model_not_found")


# -- the others ----------------------------------------------------------------------------------------------------------


async def test_the_rate_limit_counts_messages() -> None:
    """Over all sessions and HTTP together, bad requests included; when to come again is told."""
    async with stage(requests=4) as st:
        first, second = await st.connect(), await st.connect()
        assert words(await first.ask("1")) == "one two three"
        assert words(await second.ask("1")) == "one two three"
        assert code(await first.ask("2", body={"model": "echo"}))[0] == 400
        assert (await st.http("POST", "/v1/chat/completions", CHAT)).status == 200
        found = await second.ask("2")
        assert code(found) == (429, "rate_limit_exceeded")
        assert int(found[-1]["headers"]["retry-after-ms"]) > 0


async def test_an_exhausted_budget_refuses_inside_the_session() -> None:
    """The session stays, and goes on when there is money again. Calls side by side never pass the budget."""
    async with stage() as st:
        await st.tenant("poor", budget=400_000)
        peer = await st.connect([st.bearer("poor")])
        for number in range(16):
            peer.chat(str(number), {**STREAM, "max_tokens": 10})
        found = await peer.rest(*map(str, range(16)))
        ends = [frames[-1]["type"] for frames in found.values()]
        assert {"response.done", "error"} == set(ends)
        refused = [frames for frames in found.values() if frames[-1]["type"] == "error"]
        assert {code(frames)[0] for frames in refused} == {402}
        assert await st.spent("poor") == 9_000 * ends.count("response.done") <= 400_000
        await st.store.put_tenant(Tenant("poor", budget=10**12))
        assert words(await peer.ask("more", body={**STREAM, "max_tokens": 10})) == "one two three"


async def test_a_policy_is_asked_about_each_message() -> None:
    """403, and the next one may pass."""

    def decide(asked: Any) -> bool:
        return "forbidden" not in str(asked)

    async with stage(policy=decide) as st:
        peer = await st.connect()
        assert code(await peer.ask("1", body={**ASKED, "model": "forbidden"}))[0] == 403
        assert words(await peer.ask("2")) == "one two three"


async def test_the_cache_serves_sessions_and_http_alike() -> None:
    """A hit costs nothing, and says so; ``cache-control`` of a frame is that of its call; other tenants see none of it."""
    async with stage() as st:
        await st.tenant("b")
        peer = await st.connect()
        first = (await peer.ask("1", body=keep()))[-1]
        again = (await peer.ask("2", body=keep()))[-1]
        assert (first["headers"]["x-cache"], again["headers"]["x-cache"]) == ("miss", "hit")
        assert (first["cost_usd"], await st.spent()) == (0.000009, 9_000)
        assert not again["cost_usd"]
        assert (await st.http("POST", "/v1/chat/completions", keep())).headers["x-cache"] == "hit"
        peer.chat("3", keep(), headers={"cache-control": "no-cache"})
        assert (await peer.rest("3"))["3"][-1]["headers"]["x-cache"] != "hit"
        other = await st.connect([st.bearer("b")])
        assert (await other.ask("1", body=keep()))[-1]["headers"]["x-cache"] == "miss"


async def test_structured_output_is_checked() -> None:
    """An answer that does not match its schema is asked for again, and is an error then; both are paid."""
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answers = ['{"a":1}', "no json at all", "nor here"]

    async def provider(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        message = {"role": "assistant", "content": answers.pop(0)}
        told = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 3, "completion_tokens": 4}}  # fmt: skip
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(told).encode()})

    async with stage(terminal=provider) as st:
        peer = await st.connect()
        found = await peer.ask("1", body={**ASKED, "response_format": form})
        assert json.loads(found[0]["data"]["choices"][0]["message"]["content"]) == {"a": 1}
        found = await peer.ask("2", body={**ASKED, "response_format": form})
        assert (found[-1]["type"], answers) == ("error", [])
        assert await st.spent() == 3 * 11_000
        found = await peer.ask("3", body={**ASKED, "response_format": {"type": "json_schema"}})
        assert found[-1]["status"] == 400


async def test_each_message_has_a_trace_of_its_own() -> None:
    """With the ids that the frame tells, or those that it brought; a cancelled one is recorded as aborted."""
    async with stage() as st:
        peer = await st.connect()
        done = [(await peer.ask(call))[-1]["headers"] for call in ("1", "2")]
        assert len({one["x-trace-id"] for one in done}) == 2
        brought = "0af7651916cd43dd8448eb211c80319c"
        peer.chat("3", headers={"traceparent": f"00-{brought}-b7ad6b7169203331-01", "x-request-id": "mine"})
        found = (await peer.rest("3"))["3"][-1]["headers"]
        assert (found["x-trace-id"], found["x-request-id"]) == (brought, "mine")
        peer.chat("4", SLOW)
        await st.holding()
        peer.say("cancel", id="4")
        await peer.rest("4")
        records = {record.request_id: record for record in st.traces.recent(10)}
        assert {one["x-request-id"] for one in done} | {"mine"} <= set(records)
        assert [record.path for record in records.values()] == ["/v1/chat/completions"] * 4
        assert sum(record.aborted for record in records.values()) == 1
        assert {record.tenant for record in records.values()} == {"a"}


async def test_the_outermost_layer_runs_for_each_message() -> None:
    """SecurityHeaders stands outside all: its limit of nesting holds."""
    deep: Any = "x"
    for _ in range(140):
        deep = [deep]
    async with stage() as st:
        peer = await st.connect()
        found = await peer.ask("1", body={**CHAT, "metadata": deep})
        assert found[-1]["status"] == 400
        assert "nested" in found[-1]["error"]["message"]


# -- what the app sees ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "root", "wanted"),
    [
        ("/v1/realtime/ws", "", "/v1/chat/completions"),
        ("/llm/v1/realtime/ws", "/llm", "/llm/v1/chat/completions"),
        ("/v1/realtime/ws", "/v1", "/v1/chat/completions"),
    ],
)
async def test_an_app_sees_a_plain_request_without_a_credential(path: str, root: str, wanted: str) -> None:
    """As if a server had made it: path, body and length; no header of the handshake that is a secret."""
    app = Stranger()
    async with stage(terminal=app) as st:
        headers = [st.bearer(), (b"cookie", b"session=secret"), (b"user-agent", b"me"), (b"sec-websocket-key", b"x")]
        peer = await st.connect(headers, path=path, root_path=root, state={"pool": 1}, app="host")
        await peer.ask("1", body=ASKED)
        (scope,) = app.scopes
        assert (scope["type"], scope["method"], scope["scheme"]) == ("http", "POST", "http")
        assert (scope["path"], scope["raw_path"], scope["root_path"]) == (wanted, wanted.encode(), root)
        assert (scope["query_string"], scope["state"], scope["app"]) == (b"", {"pool": 1}, "host")
        assert "subprotocols" not in scope
        sent = dict(scope["headers"])
        assert set(sent) == {b"host", b"user-agent", b"content-type", b"content-length"}
        assert int(sent[b"content-length"]) == len(app.bodies[0])
        assert st.secrets["a"] not in repr(dict(scope))


# -- stacks --------------------------------------------------------------------------------------------------------------


def peer_of(app: Any, secret: str) -> Peer:
    """A peer of a stack that is put together by hand."""
    made = Stage()
    made.app = app
    made.secrets["a"] = secret
    return made.dial()


async def key_in(store: Any) -> tuple[ApiKey, str]:
    """A tenant and its key."""
    await store.put_tenant(Tenant("a"))
    key, secret = new_key("a")
    await store.add_key(key)
    return key, secret


async def test_without_a_tenant_middleware_all_is_the_default_tenants() -> None:
    """As over HTTP."""
    st = Stage()
    app = RealtimeMiddleware(BudgetMiddleware(Stranger(), ledger=st.store, prices=st.prices), limits=LIVELY)
    peer = peer_of(app, "x")
    assert (await peer.message())["type"] == "websocket.accept"
    await peer.hear()
    assert (await peer.ask("1", body=ASKED))[-1]["type"] == "response.done"
    await peer.end()
    assert await st.spent("default") == 3_000 + 8_000


async def test_a_stack_in_the_wrong_order_makes_no_call() -> None:
    """Tenant within Realtime: each message is refused, naming the right order."""
    st, app = Stage(), Stranger()
    _, secret = await key_in(st.store)
    tenant = TenantMiddleware(BudgetMiddleware(app, ledger=st.store), store=st.store, damping=Damping(longest=0))
    peer = peer_of(RealtimeMiddleware(tenant, limits=LIVELY), secret)
    assert (await peer.message())["type"] == "websocket.accept"
    await peer.hear()
    assert code(await peer.ask("1", body=ASKED)) == (500, "misordered_stack")
    await peer.end()
    assert app.calls == 0


async def test_a_session_needs_realtime_directly_within_tenant() -> None:
    """Where another layer stands between, or none at all, the handshake is closed."""
    st, app = Stage(), Stranger()
    _, secret = await key_in(st.store)
    between = RateLimitMiddleware(RealtimeMiddleware(app, limits=LIVELY), requests=9)
    for inner in (between, app):
        peer = peer_of(TenantMiddleware(inner, store=st.store), secret)
        assert (await peer.message())["type"] == "websocket.close"
        await peer.end()
    assert app.calls == 0


async def test_a_layer_twice_does_its_work_once() -> None:
    """Equal settings: one session, one count."""
    st = Stage()
    _, secret = await key_in(st.store)
    inner: Any = RealtimeMiddleware(Stranger(), store=st.store, limits=LIVELY)
    inner = RealtimeMiddleware(inner, store=st.store, limits=LIVELY)
    peer = peer_of(TenantMiddleware(inner, store=st.store), secret)
    assert (await peer.message())["type"] == "websocket.accept"
    await peer.hear()
    assert (await peer.ask("1", body=ASKED))[-1]["type"] == "response.done"
    await peer.end()


async def test_budgets_hold_by_key_as_well() -> None:
    """A key's own budget, which the session's digest stands for."""
    async with stage() as st:
        asked = {**STREAM, "max_tokens": 3}
        least = (len(orjson.dumps(asked)) + FIXED_TOKENS) * 1_000 + 3 * 2_000
        await st.tenant("k", key={"budget": least})
        peer = await st.connect([st.bearer("k")])
        assert (await peer.ask("1", body=asked))[-1]["type"] == "response.done"
        assert code(await peer.ask("2", body=asked))[0] == 402
        assert (await st.store.balance("k", st.keys["k"].id)).spent == 9_000

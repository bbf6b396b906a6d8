"""Who one is taken for, and on which path: the attacker wants to be another tenant, or nobody at all."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from asgi_llm_gateway.keys import MAX_KEY_LENGTH, new_key
from asgi_llm_gateway.records import Tenant
from asgi_llm_gateway.wire import METERED

from ..conversation import CHAT, JSON, ask, call, get
from ..middleware import Streamer, event, words
from ..servers import fetch, serving
from .house import House, chat, house

OTHERS = ("x-forwarded-for", "x-forwarded-host", "x-forwarded-user", "x-real-ip", "forwarded", "x-tenant", "x-user",
          "x-litellm-tenant", "x-litellm-api-key", "x-portkey-api-key", "x-openai-organization", "x-llm-tenant",
          "x-llm-gateway-tenant", "asgi_llm_gateway.exchange", "x-original-url", "x-rewrite-url")  # fmt: skip


@pytest.mark.parametrize("host", ["x/health?", "x#", "x?", "x/../health", "x@y", "x\\y", "x/v1/../health#"])
async def test_a01_a_host_rewrites_no_path(host: str) -> None:
    """Gain: a guarded path that is taken for an open one. The host is refused, and nobody is asked."""
    made = await house()
    for headers in ([(b"host", host.encode()), JSON], [*made.headers()[1:], (b"host", host.encode())]):
        answer = await ask(made.app, CHAT, headers=headers)
        assert (answer.status, answer.error["code"]) == (400, "malformed_headers")
    assert await made.spent() == 0


TRICKS = ["//v1/chat/completions", "/v1//chat/completions", "/v1/chat/completions/", "/V1/chat/completions",
          "/v1;x/chat/completions", "/v1/./chat/completions", "/x/../v1/chat/completions", "/v1/chat%2fcompletions",
          "/v1/chat/completions.", "/v1/chat/completions%00", "/%76%31/chat/completions", "/v1\\chat\\completions",
          "/v1/%2e%2e/v1/chat/completions", "/v1/chat/completions;a=b", " /v1/chat/completions"]  # fmt: skip


@pytest.mark.parametrize("path", TRICKS)
async def test_a02_another_spelling_reaches_nobody_without_a_key(path: str) -> None:
    """Gain: an app further in that serves the spelling, past the gate. 401 or 404, and the app is never called."""
    called = []

    async def lenient(scope: Any, receive: Any, send: Any) -> None:
        called.append(scope["path"])

    made = House(terminal=lenient)
    for root in ("", "/llm"):
        answer = await ask(made.app, CHAT, root + path, headers=[JSON], root_path=root)
        assert answer.status in (401, 404), (root, answer.body)
    assert called == []


async def test_a02_raw_path_and_query_decide_nothing() -> None:
    """Gain: a server whose ``path`` and ``raw_path`` differ, or a query with a path in it. Only ``path`` counts."""
    made = await house()
    more: dict[str, Any] = {"raw_path": b"/health", "query_string": b"path=/health&/../health"}
    assert (await ask(made.app, CHAT, headers=[JSON], **more)).status == 401
    answer = await made.ask(chat(max_tokens=9), raw_path=b"/v1/embeddings")
    assert answer.json()["object"] == "chat.completion"


async def test_a02_under_a_mount_the_same_paths_are_guarded() -> None:
    """Gain: a prefix of the host app that hides the path. Everywhere below it a key is asked for."""
    made = await house()
    host = Starlette(routes=[Mount("/llm", app=made.app), Mount("/v1", app=made.app)])
    for path in ("/llm/v1/chat/completions", "/v1/chat/completions", "/llm/v1/models", "/v1/v1/chat/completions"):
        answer = await ask(host, CHAT, path, headers=[JSON, (b"host", b"x")])
        assert answer.status == 401, path
    assert (await ask(host, chat(max_tokens=3), "/llm/v1/chat/completions", headers=made.headers())).status == 200


SHAPES: dict[str, list[tuple[bytes, bytes]]] = {
    "a megabyte": [(b"x-api-key", b"g" * 2**20)],
    "just too long": [(b"x-api-key", b"g" * (MAX_KEY_LENGTH + 1))],
    "a zero byte": [(b"authorization", b"Bearer gw-abcdefgh\x00")],
    "bytes that are no text": [(b"authorization", b"Bearer \xff\xfe\xfd\xfc\xff\xfe\xfd\xfc")],
    "a folded line": [(b"authorization", b"Bearer gw-abc\r\n def")],
    "a tab": [(b"authorization", b"Bearer\tgw-abcdefgh")],
    "two in one": [(b"authorization", b"Bearer gw-abcdefgh, Bearer gw-ijklmnop")],
    "another scheme": [(b"authorization", b"Basic Z3c6Z3c=")],
    "a quote": [(b"x-api-key", b"gw-' OR '1'='1")],
    "a command for redis": [(b"x-api-key", b"gw-x\r\nFLUSHALL\r\n")],
    "a query for mongo": [(b"x-api-key", b'{"$ne": null}')],
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
async def test_a03_a05_what_is_no_key_opens_nothing(name: str) -> None:
    """Gain: a parser that reads another key than the one that is checked, or a store that runs it. Refused unread."""
    made = await house()
    answer = await ask(made.app, CHAT, headers=[(b"host", b"x"), JSON, *SHAPES[name]])
    assert answer.status in (400, 401, 431)
    assert await made.spent() == 0


async def test_a03_two_keys_are_one_or_none() -> None:
    """Gain: one layer checks the first key, another charges the second. Agreeing keys pass, all others are 400."""
    made = await house()
    a, b = (made.secrets[name].encode() for name in "ab")
    for pair in ([b"Bearer " + a, b"Bearer " + b], [b"Bearer " + b, b"Bearer " + a]):
        twice = [(b"authorization", value) for value in pair]
        answer = await ask(made.app, CHAT, headers=[(b"host", b"x"), JSON, *twice])
        assert (answer.status, answer.error["code"]) == (400, "conflicting_credentials")
    answer = await made.ask(more=[(b"X-API-Key", b)])
    assert (answer.status, answer.error["code"]) == (400, "conflicting_credentials")
    assert (
        await made.ask(chat(max_tokens=3), more=[(b"X-Api-Key", a), (b"AUTHORIZATION", b"bearer " + a)])
    ).status == 200
    assert await made.spent("b") == 0


def test_a03_a_real_server_hands_nothing_else_on() -> None:
    """Gain: headers that the server below us reads in its own way. Over TCP it is as in process."""
    made = House()
    asyncio.run(made.tenant("a"))
    with serving(made.app) as url:
        for key in (None, "gw-' OR 1=1", "x" * 300, made.secrets["a"][:-1], made.secrets["a"] + "x"):
            assert fetch(url + "/v1/chat/completions", CHAT, key=key).status == 401
        for more in ({"x-api-key": "gw-another-key-0"}, {"x-tenant-id": "b"}):
            assert fetch(url + "/v1/chat/completions", CHAT, key=made.secrets["a"], headers=more).status in (400, 403)
        assert fetch(url + "/v1/chat/completions", chat(max_tokens=3), key=made.secrets["a"]).status == 200


async def test_a04_no_header_of_a_clients_makes_another_of_it() -> None:
    """Gain: the tenant that an internal header names. It is charged to the key's tenant, and no trace says otherwise."""
    made = await house()
    forged = [(name.encode(), b"b") for name in OTHERS]
    assert (await made.ask(chat(max_tokens=3), more=forged)).status == 200
    assert await made.spent("a") > 0
    assert await made.spent("b") == 0
    assert [record.tenant for record in made.traces.recent()] == ["a"]
    assert (await ask(made.app, CHAT, headers=[(b"host", b"x"), JSON, *forged])).status == 401


async def test_a04_the_private_keys_of_the_scope_are_not_a_clients_to_set() -> None:
    """Gain: an exchange of the attacker's own. Headers and extensions never become scope keys."""
    made = await house()
    answer = await ask(
        made.app,
        CHAT,
        headers=[JSON, (b"asgi_llm_gateway.exchange", b"1")],
        extensions={"asgi_llm_gateway.exchange": {}},
    )
    assert answer.status == 401


async def test_a05_keys_that_begin_alike_are_apart() -> None:
    """Gain: a cache by ``token[:20]`` (CVE-2026-35030) that takes one for the other. The whole key counts, cached or not."""
    made = await house()
    long = "gw-" + "a" * 200
    key, _ = new_key("a", secret=long)
    twin, _ = new_key("b", secret=long + "b")
    await made.store.add_key(key)
    await made.store.add_key(twin)
    for secret, status in ((long, 200), (long + "b", 200), (long + "c", 401), (long[:-1], 401), (long[:20], 401)):
        headers = [(b"host", b"x"), JSON, (b"x-api-key", secret.encode())]
        for _ in range(2):
            assert (await ask(made.app, chat(max_tokens=3), headers=headers)).status == status, secret[-3:]
    assert [record.tenant for record in made.traces.recent() if record.tenant != "default"].count("b") == 2


async def test_a07_a_digest_is_no_key() -> None:
    """Gain: from a stolen dump, whose digests are shown in place of keys (GHSA-69x8-hrgq-fjj8). 401."""
    made = await house()
    digest = made.keys["a"].digest
    assert digest == hashlib.sha256(made.secrets["a"].encode()).hexdigest()
    for shown in (digest, "gw-" + digest, made.keys["a"].id):
        answer = await ask(made.app, CHAT, headers=[(b"host", b"x"), JSON, (b"x-api-key", shown.encode())])
        assert answer.status == 401


async def test_a08_an_admin_key_calls_no_model_and_a_tenants_key_is_no_admin() -> None:
    """Gain: a key of one kind in the place of the other."""
    made = await house()
    admin, secret = new_key("a")
    await made.store.add_key(replace(admin, kind="admin", tenant=""))
    answer = await ask(made.app, CHAT, headers=[(b"host", b"x"), JSON, (b"x-api-key", secret.encode())])
    assert answer.status == 401


async def test_a09_fields_of_a_call_set_nothing_of_a_tenants() -> None:
    """Gain: a role, a limit, another's budget. Unknown fields go to the provider and mean nothing here."""
    made = await house()
    before = await made.store.tenant("a"), await made.store.tenant("b")
    fields: dict[str, Any] = {
        "role": "admin",
        "user_role": "proxy_admin",
        "budget": 10**9,
        "max_budget": 1,
        "spend": -5,
    }
    fields |= {"allowed_models": None, "enabled": False, "allowed_routes": ["*"], "key": {"budget": None}}
    fields |= {"metadata": {"tenant": "b"}}
    assert (await made.ask(chat(max_tokens=3, **fields))).status == 200
    assert (await made.store.tenant("a"), await made.store.tenant("b")) == before
    assert await made.spent("a") > 0
    assert await made.spent("b") == 0


TWINS = [
    "B",
    "\uff42",
    "b\u200b",
    "\u202eb",
    "b\x00",
    " b",
    "b ",
    "b\n",
    "b:x",
    "b/",
    "{b}",
    "b" * 10_000,
    "\u1e07",
    "b\u0301",
]


@pytest.mark.parametrize("name", TWINS)
async def test_a10_a_twin_of_a_tenants_name_is_nobody(name: str) -> None:
    """Gain: a name that some layer folds into another's. 403 in the words used for every other name."""
    made = await house()
    await made.tenant("c", key={"also_tenants": ("b",)})
    refused = await made.ask({**CHAT, "tenant": "nobody-at-all"}, tenant="c")
    for how in ("body", "header"):
        body = {**CHAT, "tenant": name} if how == "body" else CHAT
        more = [] if how == "body" else [(b"x-tenant-id", name.encode())]
        answer = await made.ask(body, tenant="c", more=more)
        if answer.status != 400 and answer.status != 431:  # a line break, or too long for a header
            assert (answer.status, answer.body) == (403, refused.body)
    assert await made.spent("b") == 0
    assert (await made.ask({**CHAT, "tenant": "b", "max_tokens": 3}, tenant="c")).status == 200
    assert await made.spent("b") > 0


async def test_a11_a_revoked_key_ends_with_the_call_that_runs() -> None:
    """Gain: a key that lives on. The stream that was paid for ends as it began; the next call is refused."""
    made = House(terminal=Streamer(words(2), endless=True))
    await made.tenant("a")
    async with made.talk(chat(stream=True, max_tokens=50)) as talk:
        await talk.next()
        await talk.next()
        assert await made.store.revoke_key(made.keys["a"].id, 0.0)
        assert b"w1" in (await talk.next())["body"]
        assert (await made.ask()).status == 401
        await talk.hang_up()
    assert await made.held() == 0
    assert await made.spent() > 0


async def test_a11_a_key_that_was_asked_for_while_it_was_good_is_refused_when_it_ends() -> None:
    """Gain: a look-up that outlives its key. Rotation, expiry and a disabled tenant count at once where nothing is kept."""
    made = await house()
    assert (await made.ask(chat(max_tokens=3))).status == 200
    await made.store.put_tenant(Tenant("a", enabled=False))
    assert (await made.ask()).error["code"] == "tenant_disabled"
    await made.store.drop_tenant("b", 0.0)
    assert (await made.ask(tenant="b")).status == 401


async def test_a21_every_surface_asks_for_a_key() -> None:
    """Gain: a second protocol, another method or a websocket that skips the gate. None does, and none reaches the app."""
    called: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        called.append(scope["type"])

    made = House(terminal=app)
    await made.tenant("a")
    paths = [*METERED, "/v1/models", "/v1/messages/count_tokens", "/v1/realtime/sessions", "/v1/files", "/v1", "/v1/",
             "/prefix/v1/chat/completions", "/v1/responses/resp_1", "/v1/batches", "/v1/messages/batches"]  # fmt: skip
    for path in paths:
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT"):
            async with call(made.app, CHAT, path, method=method, headers=[(b"host", b"x"), JSON]) as talk:
                assert (await talk.answer()).status == 401, (method, path)
        said: list[Any] = []

        async def receive() -> Any:
            return {"type": "websocket.connect"}

        async def send(message: Any, said: list[Any] = said) -> None:
            said.append(message)

        await made.app({"type": "websocket", "path": path, "headers": made.headers()}, receive, send)
        assert [message["type"] for message in said] == ["websocket.close"], path
    assert called == []


async def test_a21_options_and_open_paths_answer_nothing_of_ours() -> None:
    """Gain: a method that every gate lets pass (CORS). It goes to the app as it is, and costs nothing there."""
    made = await house()
    answer = await get(made.app, "/health", headers=[(b"host", b"x")])
    assert answer.status == 404  # ProxyApp has none; the gateway's stands beside it
    async with call(made.app, CHAT, method="OPTIONS", headers=[(b"host", b"x"), JSON]) as talk:
        assert (await talk.answer()).status in (404, 405)
    assert await made.spent() == 0


async def test_a24_interleaved_calls_stay_apart() -> None:
    """Gain: another's identity, trace or id through something that is shared. A hundred calls side by side are not mixed."""
    made = House(terminal=Streamer([event({"choices": []})]))
    for name in "ab":
        await made.tenant(name)

    async def one(name: str, at: int) -> None:
        answer = await made.ask(chat(max_tokens=at), tenant=name, more=[(b"x-request-id", b"same-for-all")])
        record = made.traces.find(answer.headers["x-trace-id"])
        assert record is not None
        assert (record.tenant, record.request_id) == (name, "same-for-all")

    await asyncio.gather(*(one("ab"[at % 2], at) for at in range(1, 101)))
    assert len({record.trace_id for record in made.traces.recent(1000)}) == 100
    for name in "ab":
        page = await made.store.records(name, limit=1000)
        assert len({record.hold for record in page.records}) == 50

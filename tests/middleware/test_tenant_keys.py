"""Who is calling: the key, good, bad, missing or shown twice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from asgi_llm_gateway.keys import new_key
from asgi_llm_gateway.middleware.tenant import TenantMiddleware

from ..conversation import CHAT, JSON, ask, call, get
from . import Stranger
from .tenant_parts import served, setup


async def test_a_good_key_is_let_in_either_way() -> None:
    """As OpenAI's SDK sends it and as Anthropic's does; both at once if they agree."""
    one = await setup()
    secret = one.secret.encode()
    for shown in (
        [(b"authorization", b"Bearer " + secret)],
        [(b"Authorization", b"bearer  " + secret + b" ")],
        [(b"x-api-key", secret)],
        [(b"X-Api-Key", secret)],
        [(b"x-api-key", secret), (b"authorization", b"Bearer " + secret)],
        [(b"authorization", b"Basic Zm9vOmJhcg=="), (b"x-api-key", secret)],
    ):
        assert served(await ask(one.layer, CHAT, headers=[JSON, *shown])), shown


async def test_no_unknown_revoked_and_expired_keys_get_the_same_401() -> None:
    """Byte for byte the same, so that nothing can be learnt."""
    one = await setup()
    expired, old = new_key("a", expires=999.0)
    revoked, gone = new_key("a")
    orphan, lost = new_key("nobody")
    for key in (expired, replace(revoked, revoked=5.0), orphan):
        await one.store.add_key(key)
    _, unknown = new_key("a")
    headers: list[list[tuple[bytes, bytes]]] = [
        [],
        [(b"authorization", b"Bearer ")],
        [(b"authorization", b"Basic eDp5")],
    ]
    headers += [[(b"x-api-key", secret.encode())] for secret in (old, gone, lost, unknown)]
    answers = [await ask(one.layer, CHAT, headers=[JSON, *shown]) for shown in headers]
    assert {answer.status for answer in answers} == {401}
    assert len({answer.body for answer in answers}) == 1
    assert answers[0].error["code"] == "invalid_api_key"
    assert answers[0].headers["x-should-retry"] == "false"
    assert one.app.calls == 0


@pytest.mark.parametrize(
    "junk",
    [
        b"' OR '1'='1",
        b"gw-x'; DROP TABLE api_keys; --",
        b"gw-%00%27 UNION SELECT * FROM api_keys",
        b"\x00\xff\xfe",
        b"x" * 300,
        b"short",
        b"gw-\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9",
        b"gw-abcdefgh\nx: y",
        b"*" * 20,
        b'{"$gt": ""}',
    ],
)  # fmt: skip
async def test_what_can_be_no_key_never_reaches_the_store(junk: bytes) -> None:
    """Injections and junk are 401 without a look-up."""
    one = await setup()
    answer = await ask(one.layer, CHAT, headers=[JSON, (b"x-api-key", junk)])
    assert (answer.status, one.store.lookups, one.app.calls) == (401, 0, 0)


async def test_a_wrong_key_is_401_from_the_sql_store_too() -> None:
    """Shaped like a key, it is a value of a statement and no part of it."""
    layer = TenantMiddleware(Stranger())
    for secret in (b"gw-OR-1=1--", b"gw-/../../etc/passwd", b"=" * 40):
        assert (await ask(layer, CHAT, headers=[JSON, (b"x-api-key", secret)])).status == 401


async def test_two_keys_that_disagree_are_400() -> None:
    """Which of them acts must not be a matter of order."""
    one = await setup()
    _, other = new_key("b")
    answer = await one.ask(CHAT, (b"x-api-key", other.encode()))
    assert (answer.status, answer.error["code"]) == (400, "conflicting_credentials")
    assert one.secret not in answer.body.decode()
    assert one.app.calls == 0


async def test_a_key_is_asked_for_before_the_body_is_read() -> None:
    """A stranger can't make the gateway buffer."""
    one = await setup()
    async with call(one.layer, b"x" * 10_000, headers=[JSON], cut=10) as talk:
        answer = await talk.answer()
        assert answer.status == 401
        assert len(talk._pieces) == 1000


async def test_every_governed_path_asks_for_a_key() -> None:
    """Also those whose body is not read, and any method."""
    one = await setup()
    for path in ("/v1/models", "/v1/models/Qwen3", "/v1/files", "/v1/realtime/sessions", "/v1/chat/completions"):
        assert (await get(one.layer, path)).status == 401, path
        shown = [(b"x-api-key", one.secret.encode())]
        assert served(await get(one.layer, path, headers=shown)), path
    assert (await get(one.layer, "/health")).status == 200


async def test_govern_all_asks_on_every_path_but_health() -> None:
    """For model servers, whose other paths cost money too."""
    one = await setup()
    layer = TenantMiddleware(one.app, store=one.store, govern="all", paths={"/metrics": "open"})
    assert [(await get(layer, path)).status for path in ("/invocations", "/", "/health", "/metrics")] == [
        401,
        401,
        200,
        200,
    ]

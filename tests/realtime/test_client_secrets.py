"""Client secrets: short-lived, bound to tenant and key, good for opening sessions and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st_

from asgi_llm_gateway.errors import BadRequest, StoreError
from asgi_llm_gateway.keys import digest_of
from asgi_llm_gateway.passport import PROTOCOL, SECRET_PROTOCOL
from asgi_llm_gateway.realtime.limits import Limits
from asgi_llm_gateway.realtime.minting import seconds_of
from asgi_llm_gateway.records import ApiKey, Tenant
from asgi_llm_gateway.stores.memory import MemoryStore

from .stage import CHAT, LIVELY, STREAM, Peer, Stage, stage
from .test_session import code

PATH = "/v1/realtime/client_secrets"


async def made(st: Stage, body: Any = None, **more: Any) -> str:
    """A client secret."""
    answer = await st.http("POST", PATH, body, **more)
    assert answer.status == 200, answer.body
    value: str = answer.json()["value"]
    return value


async def opened(st: Stage, secret: str) -> Peer:
    """A session opened with a client secret."""
    return await st.connect([], subprotocols=[PROTOCOL, SECRET_PROTOCOL + secret])


async def test_it_is_shown_once_and_kept_as_a_digest() -> None:
    """OpenAI's form of the answer; only the SHA-256 is in the store, under a key of kind ephemeral that no list shows."""
    async with stage(clock=lambda: 1000.0) as st:
        answer = await st.http("POST", PATH, {"expires_after": {"anchor": "created_at", "seconds": 60}})
        told = answer.json()
        assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
        assert told["value"].startswith("ek_")
        assert len(told["value"]) > 40
        assert told["expires_at"] == 1060
        kept = await st.store.client_secret(digest_of(told["value"].encode()) or "")
        assert kept is not None
        assert (kept.kind, kept.tenant, kept.parent, kept.expires) == ("ephemeral", "a", st.keys["a"].digest, 1060.0)
        assert told["value"] not in repr(vars(st.store))
        assert [key.id for key in await st.store.keys("a")] == [st.keys["a"].id]


async def test_it_opens_sessions_and_nothing_else() -> None:
    """No call over HTTP, no models, no other client secret; ICE servers, which a page needs."""
    async with stage() as st:
        secret = await made(st)
        shown = [(b"authorization", b"Bearer " + secret.encode()), (b"content-type", b"application/json")]
        for method, path, body in (
            ("POST", "/v1/chat/completions", CHAT),
            ("POST", "/v1/messages", CHAT),
            ("GET", "/v1/models", None),
            ("GET", "/v1/realtimes/ws", None),
        ):
            assert (await st.http(method, path, body, headers=shown)).status == 401, path
        refused = await st.http("POST", PATH, headers=shown)
        assert (refused.status, refused.error["code"]) == (403, "ephemeral_key")
        assert (await st.http("GET", "/v1/realtime/ice", headers=shown)).status == 200
        peer = await opened(st, secret)
        assert (await peer.ask("1"))[-1]["type"] == "response.done"


async def test_it_ends_with_its_key() -> None:
    """Revoked or rotated away: no new session, and those that stand end with their next message."""
    async with stage() as st:
        secret = await made(st)
        peer = await opened(st, secret)
        await st.store.revoke_key(st.keys["a"].id, 0.0)
        assert code(await peer.ask("1")) == (401, "invalid_api_key")
        assert (await peer.last())[0]["reason"] == "invalid_api_key"
        shown = [PROTOCOL, SECRET_PROTOCOL + secret]
        assert await st.refused([], subprotocols=shown) == (401, "invalid_api_key")


async def test_it_never_outlives_its_key() -> None:
    """A key that expires in five seconds makes no secret for ten minutes."""
    async with stage(clock=lambda: 1000.0) as st:
        await st.tenant("short", key={"expires": 1005.0})
        answer = await st.http("POST", PATH, headers=[st.bearer("short")])
        assert answer.json()["expires_at"] == 1005


async def test_it_is_bound_to_the_tenant_that_it_was_made_for() -> None:
    """However far its key reaches: neither a header nor a body leads to another."""
    async with stage() as st:
        await st.tenant("b")
        await st.tenant("both", key={"also_tenants": ("a", "b")})
        secret = await made(st, headers=[st.bearer("both"), (b"x-tenant-id", b"b")])
        shown = [PROTOCOL, SECRET_PROTOCOL + secret]
        assert await st.refused([(b"x-tenant-id", b"a")], subprotocols=shown) == (403, "tenant_not_found")
        peer = await opened(st, secret)
        assert (await peer.ask("1"))[-1]["type"] == "response.done"
        for other in ("a", "both"):
            assert code(await peer.ask("2", body={**STREAM, "tenant": other})) == (403, "tenant_not_found")
        assert (await st.spent("b"), await st.spent("a"), await st.spent("both")) == (9_000, 0, 0)
        await st.store.put_tenant(Tenant("b", enabled=False))
        assert code(await peer.ask("3")) == (403, "tenant_disabled")


async def test_a_tenant_makes_so_many_in_a_minute() -> None:
    """Each is a row in the store; when to come again is told."""
    async with stage(limits=replace(LIVELY, secrets=2)) as st:
        await made(st)
        await made(st)
        refused = await st.http("POST", PATH)
        assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
        assert 1 <= int(refused.headers["retry-after"]) <= 60


async def test_those_that_have_ended_are_forgotten() -> None:
    """With the next one that is made, so that the table does not grow."""
    now = [1000.0]
    async with stage(clock=lambda: now[0]) as st:
        old = await made(st, {"expires_after": {"seconds": 10}})
        now[0] = 1011.0
        await made(st)
        assert await st.store.client_secret(digest_of(old.encode()) or "") is None


async def test_a_store_that_is_away_is_503() -> None:
    """When it is made, and when it is shown; never 401."""

    class Away(MemoryStore):
        async def add_client_secret(self, key: ApiKey, now: float) -> None:
            raise StoreError("the database is away")

        async def client_secret(self, digest: str) -> ApiKey | None:
            raise StoreError("the database is away")

    async with stage(store=Away()) as st:
        assert (await st.http("POST", PATH)).status == 503
        shown = [PROTOCOL, SECRET_PROTOCOL + "ek_some-secret-or-other"]
        assert await st.refused([], subprotocols=shown) == (503, "store_unavailable")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        ({"model": "m"}, "model"),
        ({"expires_after": 60}, "expires_after"),
        ({"expires_after": {"anchor": "now", "seconds": 60}}, "expires_after"),
        ({"expires_after": {"seconds": 9}}, "expires_after.seconds"),
        ({"expires_after": {"seconds": 7201}}, "expires_after.seconds"),
        ({"expires_after": {"seconds": True}}, "expires_after.seconds"),
        ({"expires_after": {"seconds": 60, "x": 1}}, "expires_after"),
        ({"session": {"type": "realtime", "model": "gpt-realtime"}}, "session"),
        ({"session": {"type": "transcription"}}, "session"),
        ({"session": []}, "session"),
    ],
)
async def test_what_can_not_be_done_is_refused_by_its_field(body: Any, param: str | None) -> None:
    """400, and nothing is made."""
    async with stage() as st:
        answer = await st.http("POST", PATH, body)
        assert (answer.status, answer.error["param"]) == (400, param)


async def test_other_methods_and_long_bodies_are_refused() -> None:
    """405 and 413."""
    async with stage() as st:
        assert (await st.http("GET", PATH)).headers["allow"] == "POST"
        assert (await st.http("POST", PATH, b" " * 70_000, cut=10_000)).status == 413


async def test_what_openai_may_send_is_taken() -> None:
    """``session`` with nothing but its type."""
    async with stage() as st:
        await made(st, {"session": {"type": "realtime"}, "expires_after": None})


@given(st_.binary(max_size=60) | st_.recursive(
    st_.none() | st_.integers() | st_.text(max_size=5), lambda inner: st_.dictionaries(
        st_.sampled_from(["expires_after", "seconds", "anchor", "session", "type"]), inner, max_size=3),
    max_leaves=6).map(lambda value: repr(value).replace("'", '"').replace("None", "null").encode()))  # fmt: skip
def test_whatever_is_asked_is_refused_or_within_the_limits(body: bytes) -> None:
    """Never another exception, and never a longer life."""
    try:
        seconds = seconds_of(body, Limits(secret_seconds=20, secret_longest=100))
    except BadRequest:
        return
    assert 10 <= seconds <= 100

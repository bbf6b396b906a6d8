"""Wrong keys in numbers: their refusals wait, and a right key never notices."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest

from asgi_llm_gateway.damping import Damping
from asgi_llm_gateway.errors import StoreError
from asgi_llm_gateway.keys import new_key
from asgi_llm_gateway.middleware import _tenant_directory, tenant
from asgi_llm_gateway.middleware.tenant import TenantMiddleware
from asgi_llm_gateway.records import Identity, Tenant
from asgi_llm_gateway.stores.memory import MemoryStore

from ..conversation import CHAT, JSON, Answer, ask, call
from . import Stranger

FOR_EVER = 3600.0  # seconds that no test waits


class Counted(MemoryStore):
    """A store that counts its look-ups, and is away where the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.lookups = 0
        self.away = False

    async def identify(self, digest: str) -> Identity | None:
        """See TenantStore."""
        self.lookups += 1
        if self.away:
            raise StoreError("the database is away")
        return await super().identify(digest)


class Desk:
    """A middleware with a right key, and a damping of the test's own."""

    def __init__(self, secret: str, **settings: Any) -> None:
        self.secret = secret
        self.app = Stranger()
        self.store = Counted()
        self.damping = Damping(longest=FOR_EVER, per_second=1 / FOR_EVER, **settings)
        self.layer = TenantMiddleware(self.app, store=self.store, damping=self.damping, remember=0)

    async def ask(self, secret: str, *, client: Any = ("192.0.2.1", 1)) -> Answer:
        """A call with a key."""
        return await ask(self.layer, CHAT, headers=[JSON, (b"x-api-key", secret.encode())], client=client)

    def waits(self, secret: str, *, client: Any = ("192.0.2.1", 1)) -> asyncio.Task[Answer]:
        """A call with a key whose answer is not waited for."""
        return asyncio.ensure_future(self.ask(secret, client=client))


async def desk(**settings: Any) -> Desk:
    """See Desk."""
    key, secret = new_key("a")
    made = Desk(secret, **settings)
    await made.store.add_tenant(Tenant("a"))
    await made.store.add_key(key)
    return made


async def turns() -> None:
    """Let all that can go on do so."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_beyond_its_burst_a_sources_refusals_wait_and_a_right_key_does_not() -> None:
    """From the same address, while they wait; and it is not even delayed."""
    one = await desk(burst=2)
    for _ in range(2):
        assert (await one.ask("gw-a-wrong-key")).status == 401
    guesses = [one.waits(f"gw-a-wrong-key-{at}") for at in range(50)]
    await turns()
    assert not any(guess.done() for guess in guesses)
    for _ in range(30):
        assert (await one.ask(one.secret)).status == 200
    assert not any(guess.done() for guess in guesses)
    assert one.damping.now_waiting == 50
    for guess in guesses:
        guess.cancel()
    await asyncio.wait(guesses)
    assert one.damping.now_waiting == 0


async def test_a_refusal_that_waited_is_the_same_401() -> None:
    """Byte for byte, and with the same headers, but for the ids of the call."""
    one = await desk(burst=1)
    at_once = await one.ask("gw-a-wrong-key")
    one.damping._longest = 0.01
    waited = await one.ask("gw-a-wrong-key")
    assert one.damping.delayed == 1
    ids = {"x-request-id", "x-trace-id"}
    assert waited.headers.keys() == at_once.headers.keys() >= ids
    shown = [
        (one.status, one.body, {name: value for name, value in one.headers.items() if name not in ids})
        for one in (waited, at_once)
    ]
    assert shown[0] == shown[1]


async def test_a_call_without_a_key_is_no_guess() -> None:
    """It is refused at once, and counts for nothing; neither does a right key nor a store that is away."""
    one = await desk(burst=0)
    assert (await ask(one.layer, CHAT)).status == 401
    assert (await one.ask(one.secret)).status == 200
    one.store.away = True
    assert (await one.ask("gw-a-wrong-key")).status == 503
    assert one.damping.failures == 0


async def test_the_wrong_keys_of_one_source_delay_no_other() -> None:
    """Nor does a header make another source of it."""
    one = await desk(burst=1)
    await one.ask("gw-a-wrong-key")
    forged = [JSON, (b"x-api-key", b"gw-a-wrong-key"), (b"x-forwarded-for", b"198.51.100.9")]
    async with call(one.layer, CHAT, headers=forged, client=("192.0.2.1", 1)) as talk:
        await turns()
        assert not talk.task.done()
        assert (await one.ask("gw-a-wrong-key", client=("198.51.100.9", 1))).status == 401


async def test_the_same_wrong_key_again_and_again_asks_no_store() -> None:
    """Once its source is beyond its burst: a client with an old key in its settings is no load on the database."""
    one = await desk(burst=3)
    for _ in range(3):
        await one.ask("gw-a-wrong-key")
    assert one.store.lookups == 3
    guesses = [one.waits("gw-a-wrong-key")]
    await turns()
    assert one.store.lookups == 4
    guesses += [one.waits("gw-a-wrong-key") for _ in range(20)]
    await turns()
    assert one.store.lookups == 4
    for guess in guesses:
        guess.cancel()
    await asyncio.wait(guesses)


async def test_refusals_that_wait_are_bounded() -> None:
    """One more is answered at once: a flood of guesses fills no memory."""
    one = await desk(burst=0, waiting=5)
    guesses = [one.waits(f"gw-a-wrong-key-{at}") for at in range(5)]
    await turns()
    assert (await one.ask("gw-a-wrong-key")).status == 401
    assert not any(guess.done() for guess in guesses)
    for guess in guesses:
        guess.cancel()
    await asyncio.wait(guesses)


async def test_the_operator_is_told_without_a_key(caplog: pytest.LogCaptureFixture) -> None:
    """Once, with the address; no key is in the log, and none in a repr."""
    one = await desk(burst=0)
    with caplog.at_level(logging.DEBUG):
        guesses = [one.waits("gw-a-very-secret-guess") for _ in range(3)]
        await turns()
    assert caplog.text.count("wrong API keys, now from 192.0.2.1") == 1
    told = caplog.text + repr(one.damping) + repr(vars(one.damping)) + repr(one.layer)
    assert "very-secret" not in told
    for guess in guesses:
        guess.cancel()
    await asyncio.wait(guesses)


@contextmanager
def steps() -> Iterator[list[tuple[str, int]]]:
    """The lines of the two files on keys that run meanwhile."""
    seen: list[tuple[str, int]] = []
    files = {tenant.__file__, _tenant_directory.__file__}

    def look(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            seen.append((frame.f_code.co_name, frame.f_lineno))
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        yield seen
    finally:
        sys.settrace(before)


async def test_an_unknown_a_revoked_and_an_expired_key_are_refused_by_the_same_steps() -> None:
    """A06: line by line the same, with one look-up each: there is nothing that could take longer for one than another."""
    key, _ = new_key("a")
    expired, old = new_key("a", expires=10.0)
    revoked, gone = new_key("a")
    orphan, lost = new_key("nobody")
    taken = {}
    for name, secret in {"unknown": new_key("a")[1], "expired": old, "revoked": gone, "orphan": lost}.items():
        store = Counted()
        await store.add_tenant(Tenant("a"))
        for one in (key, expired, replace(revoked, revoked=5.0), orphan):
            await store.add_key(one)
        layer = TenantMiddleware(Stranger(), store=store)
        with steps() as seen:
            assert (await ask(layer, CHAT, headers=[JSON, (b"x-api-key", secret.encode())])).status == 401
        taken[name] = (seen, store.lookups)
    assert taken["unknown"][1] == 1
    assert len(taken["unknown"][0]) > 30
    assert all(steps == taken["unknown"] for steps in taken.values())


async def test_a_near_miss_is_refused_by_the_same_steps() -> None:
    """A06: how much of a key is right makes no difference: its digest is looked up, never the key compared."""
    key, secret = new_key("a")
    taken = set()
    for wrong in (new_key("a")[1], secret[:-1] + ("A" if secret[-1] != "A" else "B"), secret[:10], secret + "x"):
        store = Counted()
        await store.add_tenant(Tenant("a"))
        await store.add_key(key)
        layer = TenantMiddleware(Stranger(), store=store)
        with steps() as seen:
            assert (await ask(layer, CHAT, headers=[JSON, (b"x-api-key", wrong.encode())])).status == 401
        taken.add((tuple(seen), store.lookups))
    assert len(taken) == 1

"""Whatever a peer does, and in whatever order: every hold ends once, and every call is told its end once."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asgi_llm_gateway._asgi import Receive, Scope, Send
from asgi_llm_gateway._closing import close_all
from asgi_llm_gateway.realtime import session
from asgi_llm_gateway.records import CallRecord, Hold, Refusal
from asgi_llm_gateway.stores.memory import MemoryStore

from .stage import CHAT, Stage

EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"word"}}]}\n\n'
BUDGET = 2_000_000

doings = st.sampled_from(["json", "stream", "stall", "deaf", "raise", "refuse", "nothing", "cut"])
kinds = st.sampled_from(["ask"] * 5 + ["cancel", "cancel", "wait", "wait", "bad", "pause", "resume"])
actions = st.lists(st.tuples(kinds, st.integers(0, 5), doings, st.integers(0, 60)), min_size=6, max_size=40)
"""What to do, to which call, what its app does, and how many times (events, or steps to wait)."""


class Watched(MemoryStore):
    """A store that notes which holds were taken, and how often each was ended."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: set[str] = set()
        self.ended: Counter[str] = Counter()

    async def hold(self, tenant: str, **more: Any) -> Hold | Refusal:
        """See Ledger."""
        await asyncio.sleep(0)
        found = await super().hold(tenant, **more)
        if isinstance(found, Hold):
            self.taken.add(found.id)
        balance = await self.balance(tenant)
        assert balance.spent + balance.held <= BUDGET
        return found

    async def settle(self, hold: Hold, record: CallRecord) -> bool:
        """See Ledger."""
        await asyncio.sleep(0)
        done = await super().settle(hold, record)
        self.ended[hold.id] += done
        return done

    async def release(self, hold: Hold) -> bool:
        """See Ledger."""
        await asyncio.sleep(0)
        done = await super().release(hold)
        self.ended[hold.id] += done
        return done


async def provider(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that does what the request says."""
    asked = json.loads((await receive())["body"])["metadata"]
    doing, count = asked["do"], asked["count"]
    if doing == "raise":
        raise RuntimeError
    if doing == "nothing":
        return
    if doing == "deaf":
        await asyncio.sleep(3600)
    kind = b"application/json" if doing in ("json", "refuse") else b"text/event-stream"
    status = 503 if doing == "refuse" else 200
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
    if kind == b"application/json":
        for _ in range(count):
            await asyncio.sleep(0)
        body = b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}'
        await send({"type": "http.response.body", "body": body})
        return
    for _ in range(count):
        await send({"type": "http.response.body", "body": EVENT, "more_body": True})
        await asyncio.sleep(0)
    if doing == "stall" and (await receive())["type"] == "http.disconnect":
        return
    if doing == "stream":
        await send({"type": "http.response.body", "body": b""})


async def played(script: list[Any], vanishes: bool, lingers: bool) -> None:
    """A session as the script says, and what must be so at its end."""
    store = Watched()
    stage = Stage(terminal=provider, store=store)
    await stage.tenant("a", budget=BUDGET)
    peer = await stage.connect()
    asked: Counter[str] = Counter()
    for action, call, doing, count in script:
        if action == "ask":
            body = {**CHAT, "model": "m", "max_tokens": 5, "metadata": {"do": doing, "count": count}}
            peer.chat(str(call), {**body, "stream": doing not in ("json", "refuse")})
            asked[str(call)] += 1
        elif action == "cancel":
            peer.say("cancel", id=str(call))
        elif action == "wait":
            for _ in range(count):
                await asyncio.sleep(0)
        elif action == "bad":
            peer.send("{}")
        elif action == "pause":
            peer.pause()
        else:
            peer.resume()
    if lingers:
        await asyncio.sleep(0.01)
    if not vanishes:
        peer.resume()
        for one in asked:
            peer.say("cancel", id=one)
        # One answer to each that was asked, its last frame or that its id was in use; then the pong.
        ended: Counter[str | None] = Counter()
        while sum(ended.values()) < sum(asked.values()):
            frame = await peer.hear()
            if frame["type"] in ("response.done", "error") and frame.get("error", {}).get("param") != "type":
                ended[frame["id"]] += 1
                for one in asked:  # those that were asked again after the cancel
                    peer.say("cancel", id=one)
        assert all(ended[one] <= asked[one] for one in asked)
        peer.say("ping")
        while (frame := await peer.hear())["type"] != "pong":
            assert frame.get("error", {}).get("param") == "type", frame
    await peer.end()
    assert dict(store.ended) == dict.fromkeys(store.taken, 1)
    await stage.audit()


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script=actions, vanishes=st.booleans(), lingers=st.booleans())
def test_every_hold_ends_once_whatever_a_peer_does(
    monkeypatch: pytest.MonkeyPatch, script: list[Any], vanishes: bool, lingers: bool
) -> None:
    """Calls, cancels, pauses, bad frames and hang-ups in any order, over apps of every kind."""
    monkeypatch.setattr(session, "PATIENCE", 0.02)

    async def run() -> None:
        try:
            async with asyncio.timeout(15):
                await played(script, vanishes, lingers)
        finally:
            await close_all()

    asyncio.run(run())

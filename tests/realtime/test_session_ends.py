"""How sessions end: lost peers, slow readers, idle and total time, and the end of the process."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

from asgi_llm_gateway._asgi import Receive, Scope, Send
from asgi_llm_gateway.draining import drain

from .stage import CHAT, LIVELY, SLOW, STREAM, stage
from .test_session import code, words

# -- loss and slow readers -----------------------------------------------------------------------------------------------


async def test_a_lost_peer_cancels_its_calls_and_settles_them() -> None:
    """Streams under way and calls before their first byte alike; another session goes on."""
    async with stage() as st:
        lost, other = await st.connect(), await st.connect()
        for number in range(5):
            lost.chat(str(number), {**SLOW, "metadata": {"echo_delay_ms": "30"}})
            lost.chat(f"s{number}", SLOW)
        other.chat("mine", {**STREAM, "metadata": {"echo_delay_ms": "50"}})
        await lost.hear()
        await lost.end()
        assert (await st.store.balance("a")).held > 0  # the other's
        assert words((await other.rest("mine"))["mine"]) == "one two three"
        assert (await st.store.balance("a")).held == 0
        assert sum(record.aborted for record in (await st.store.records("a")).records) == 10


async def test_an_app_that_does_not_hear_a_hang_up_is_cancelled() -> None:
    """It waits for its provider and never asks for the client: so long it holds money, and no longer."""
    ended = asyncio.Event()

    async def deaf(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    async with stage(terminal=deaf) as st:
        peer = await st.connect()
        peer.chat("1", {**CHAT, "model": "m"})
        peer.chat("2", {**CHAT, "model": "m"})
        await st.holding()
        peer.say("cancel", id="1")
        assert code((await peer.rest("1"))["1"]) == (499, "cancelled")
        assert ended.is_set()
        await peer.end()
        assert not drain().calls


async def test_a_slow_reader_holds_its_own_upstreams_only_and_little_memory() -> None:
    """An endless provider stands still with it, while another peer reads on."""
    sent = {"slow": 0, "quick": 0}
    piece = b'data: {"choices":[{"index":0,"delta":{"content":"' + b"x" * 1000 + b'"}}]}\n\n'

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        who = json.loads((await receive())["body"])["metadata"]["who"]
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        hearing = asyncio.ensure_future(receive())
        while not hearing.done():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            sent[who] += 1
            await asyncio.sleep(0)

    async with stage(terminal=endless) as st:
        slow, quick = await st.connect(), await st.connect()
        slow.pause()
        for call in ("1", "2", "3"):
            slow.chat(call, {**STREAM, "model": "m", "metadata": {"who": "slow"}})
        quick.chat("1", {**STREAM, "model": "m", "metadata": {"who": "quick"}})
        for _ in range(500):
            await quick.hear()
        # One event of each call is under way; the next waits in ``send``.
        assert sent["slow"] <= 3
        slow.say("cancel", id="2")
        await asyncio.sleep(0.1)
        slow.resume()
        frames = [await slow.hear() for _ in range(100)]
        assert [one["id"] for one in frames if one["type"] == "error"] == ["2"]
        assert {one["id"] for one in frames[50:]} == {"1", "3"}


async def test_a_peer_that_reads_nothing_at_all_loses_its_session() -> None:
    """After the idle time, and its calls end with it."""
    async with stage(limits=replace(LIVELY, idle=0.3)) as st:
        peer = await st.connect()
        peer.pause()
        peer.chat("1", {**STREAM, "metadata": {"echo_delay_ms": "5"}})
        async with asyncio.timeout(20):
            await asyncio.wait({peer.task})
        assert not drain().calls


# -- ends ----------------------------------------------------------------------------------------------------------------


async def test_an_idle_session_ends_and_one_with_a_call_does_not() -> None:
    """Idle is: no call runs, and none is asked for. Pings do not count."""
    async with stage(limits=replace(LIVELY, idle=0.4)) as st:
        peer = await st.connect()
        peer.chat("1", {**STREAM, "metadata": {"echo_delay_ms": "250"}})
        assert words((await peer.rest("1"))["1"]) == "one two three"
        peer.say("ping")
        frame, closed = await peer.last()
        assert (frame["reason"], closed["code"], closed["reason"]) == ("idle_timeout", 1008, "idle_timeout")


async def test_a_session_has_an_end_whatever_happens_in_it() -> None:
    """Its calls are hung up, and told so before the session's last frame."""
    async with stage(limits=replace(LIVELY, total=0.5)) as st:
        peer = await st.connect()
        peer.chat("1", SLOW)
        assert code((await peer.rest("1"))["1"]) == (499, "cancelled")
        frame, _ = await peer.last()
        assert frame["reason"] == "session_expired"
        assert "0.5 seconds" in frame["message"]


async def test_a_silent_peer_is_asked_for_a_sign_of_life() -> None:
    """One that has answered once is lost when it answers no more; one that never did may be an old client."""
    async with stage(limits=replace(LIVELY, ping=0.3)) as st:
        mute, lively = await st.connect(), await st.connect()
        for peer in (mute, lively):
            assert (await peer.hear())["type"] == "ping"
        lively.say("pong")
        assert (await lively.hear())["type"] == "ping"
        async with asyncio.timeout(20):
            await asyncio.wait({lively.task})
        mute.say("ping")
        assert (await mute.hear())["type"] == "pong"


async def test_a_flood_of_bad_frames_that_nobody_reads_the_answers_to_ends_the_session() -> None:
    """What the gateway keeps to say is bounded."""
    async with stage() as st:
        peer = await st.connect()
        peer.pause()
        for _ in range(400):
            peer.send("{")
        await asyncio.sleep(0.5)
        peer.resume()
        frame, closed = await peer.last()
        assert (frame["reason"], closed["code"]) == ("too_many_bad_frames", 1008)


async def test_a_shutdown_lets_calls_end_and_takes_no_new_ones() -> None:
    """First the calls, then the sessions; a handshake is refused meanwhile."""
    async with stage() as st:
        peer, idle = await st.connect(), await st.connect()
        peer.chat("1", {**STREAM, "metadata": {"echo_delay_ms": "100"}})
        await peer.hear()
        drain().refuse()
        assert await st.refused() == (503, "shutting_down")
        assert (await idle.hear())["type"] == "session.closing"
        assert (await idle.last())[0]["reason"] == "shutting_down"
        peer.chat("2", STREAM)
        found = await peer.rest("1", "2")
        assert code(found["2"]) == (503, "shutting_down")
        assert found["1"][-1]["type"] == "response.done"
        frame, closed = await peer.last()
        assert (frame["reason"], closed["code"]) == ("shutting_down", 1001)


async def test_a_shutdown_whose_time_is_over_ends_the_sessions() -> None:
    """With their calls, which are settled."""
    async with stage() as st:
        peer = await st.connect()
        peer.chat("1", SLOW)
        await st.holding()
        await drain().finish()
        assert (await peer.rest("1"))["1"][-1]["type"] == "error"
        assert (await peer.last())[0]["reason"] == "shutting_down"

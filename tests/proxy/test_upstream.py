"""The upstream client, ours, httpx and httpx2: what goes well, each answer whole and to its own call."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_llm_gateway.proxy.clients import Client
from asgi_llm_gateway.proxy.transfer import BUFFER_LIMIT

from ..upstream import HOST, LAST_CHUNK, STREAM_HEAD, Peer, Upstream, always, chunk, head, once, upstream, whole, word
from .clients import BODY, Left, client_of, drain, every_client, fetch, more, request_to

FRAMINGS: dict[str, bytes] = {
    "length": whole(),
    "chunked": head(200, ("Content-Type", "application/json"), ("Transfer-Encoding", "chunked"))
    + chunk(BODY[:7]) + chunk(BODY[7:]) + LAST_CHUNK,
    "trailers": head(200, ("Content-Type", "application/json"), ("Transfer-Encoding", "chunked"))
    + chunk(BODY) + b"0\r\nx-late: 1\r\n\r\n",
    "until close": head(200, ("Content-Type", "application/json")) + BODY,
    "until close, said so": head(200, ("Content-Type", "application/json"), ("Connection", "close")) + BODY,
    "HTTP/1.0": head(200, ("Content-Type", "application/json")).replace(b"HTTP/1.1", b"HTTP/1.0") + BODY,
    "after interim answers": head(100, reason="Continue") + head(103, ("Link", "</a>"), reason="Hints") + whole(),
}  # fmt: skip


@every_client
@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("cut", [1, 10_000])
async def test_a_whole_answer_arrives_however_it_is_framed_and_cut(kind: str, framing: str, cut: int) -> None:
    """Length, chunks, the end of the connection, interim answers before it: the body is the same."""
    raw = FRAMINGS[framing]
    pieces = [raw[at : at + cut] for at in range(0, len(raw), cut)]
    async with upstream(once(*pieces)) as server, client_of(kind) as client:
        status, headers, body = await fetch(client, request_to(server.url()))
    assert (status, headers[b"content-type"], body) == (200, b"application/json", BODY)


@every_client
async def test_a_request_arrives_as_it_was_made(kind: str) -> None:
    """Method, path with query, headers, the gateway's extra headers and the body."""
    async with upstream(always(whole())) as server, client_of(kind) as client:
        flight = client.open(
            request_to(server.url("/v1/chat?api-version=1"), b'{"a":1}', [(b"authorization", b"Bearer k")]),
            ((b"x-llm-gateway-hop", b"abc"),),
        )
        await flight.start()
        flight.close()
        asked = server.requests[0]
        assert (asked.method, asked.path, asked.body) == ("POST", "/v1/chat?api-version=1", b'{"a":1}')
        assert asked.headers["host"] == f"{HOST}:{server.port}"
        assert asked.headers["authorization"] == "Bearer k"
        assert asked.headers["x-llm-gateway-hop"] == "abc"
        assert asked.headers["content-length"] == "7"


@every_client
async def test_an_event_stream_is_read_while_it_comes(kind: str) -> None:
    """``start`` returns at the head, and each event can be taken before the next is written."""
    go = asyncio.Semaphore(0)

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM_HEAD)
        for at in range(3):
            await go.acquire()
            await peer.send(chunk(word(str(at))))
        await go.acquire()
        await peer.send(LAST_CHUNK)

    async with upstream(script) as server, client_of(kind) as client:
        flight = client.open(request_to(server.url()))
        await flight.start()
        assert (flight.status, flight.done, flight.take()) == (200, False, b"")
        for at in range(3):
            go.release()
            await more(flight)
            assert flight.take() == word(str(at))
        go.release()
        while not flight.done:
            await more(flight)
        flight.close()


@every_client
async def test_an_error_is_read_whole_even_if_it_calls_itself_a_stream(kind: str) -> None:
    """An error's body is wanted in one piece, also where it comes late and as an event stream."""
    late = b'data: {"error": {"message": "slow down"}}\n\n'
    answer = head(429, ("Content-Type", "text/event-stream"), ("Content-Length", str(len(late))), reason="Busy")
    async with upstream(once(answer, late, gap=0.05)) as server, client_of(kind) as client:
        flight = client.open(request_to(server.url()))
        await flight.start()
        assert (flight.status, flight.done, flight.take()) == (429, True, late)
        flight.close()


@every_client
async def test_a_connection_is_used_again(kind: str) -> None:
    """Five calls in turn need one connection, with bodies and without."""

    async def script(peer: Peer) -> None:
        while True:
            asked = await peer.request()
            await peer.send(whole() if asked.body == b"{}" else head(204, reason="No Content"))

    async with upstream(script) as server, client_of(kind) as client:
        found = [
            (await fetch(client, request_to(server.url(), body)))[::2] for body in (b"{}", b"", b"{}", b"", b"{}")
        ]  # fmt: skip
        assert found == [(200, BODY), (204, b""), (200, BODY), (204, b""), (200, BODY)]
        assert server.connections == 1


@every_client
async def test_a_connection_that_the_server_closes_is_not_used_again(kind: str) -> None:
    """``connection: close``, and HTTP/1.0."""
    answers = [whole(headers=[("Connection", "close")]), whole().replace(b"HTTP/1.1", b"HTTP/1.0"), whole()]
    async with upstream(*(always(one) for one in answers)) as server, client_of(kind) as client:
        for expected in (1, 2, 3, 3):
            assert (await fetch(client, request_to(server.url())))[2] == BODY
            assert server.connections == expected


@every_client
async def test_calls_side_by_side_have_connections_of_their_own(kind: str) -> None:
    """Three calls at once are three connections, which then serve the next three."""
    everybody = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            if len(server.requests) == 3:
                everybody.set()
            await everybody.wait()
            await peer.send(whole())

    async with upstream(script) as server, client_of(kind) as client:
        for _ in range(2):
            await asyncio.gather(*(fetch(client, request_to(server.url())) for _ in range(3)))
        assert server.connections == 3


async def blocked(peer: Callable[[], int]) -> int:
    """Bytes written once no more can be."""
    before = -1
    while peer() != before:
        before = peer()
        await asyncio.sleep(0.3)
    return before


@every_client
@pytest.mark.parametrize("content_type", ["text/event-stream", "application/json"])
async def test_a_reader_that_takes_nothing_holds_the_server_back(kind: str, content_type: str) -> None:
    """A bounded amount is held; all of it arrives when it is read."""
    total = 2**26
    peers: list[Peer] = []

    async def script(peer: Peer) -> None:
        peers.append(peer)
        peer.narrow()
        await peer.request()
        await peer.send(head(200, ("Content-Type", content_type), ("Content-Length", str(total))))
        for _ in range(total // 2**16):
            await peer.send(b"x" * 2**16)

    async with upstream(script) as server, client_of(kind) as client:
        flight = client.open(request_to(server.url()))
        await flight.start()
        assert await blocked(lambda: peers[0].sent) < total // 2
        held = flight.take()
        assert len(held) < 2**20 + (BUFFER_LIMIT if content_type == "application/json" else 0)
        assert len(held) + len(await drain(flight)) == total
        flight.close()


PLANS = st.lists(
    st.tuples(st.integers(0, 70_000), st.sampled_from(["length", "chunked", "stream"]), st.integers(0, 4)),
    min_size=1,
    max_size=30,
)


@settings(max_examples=20, deadline=None)
@given(plans=PLANS, connections=st.integers(1, 6))
def test_answers_never_mix(plans: list[tuple[int, str, int]], connections: int) -> None:
    """Many calls over few connections, of any size, some of them given up: each gets its own answer, whole."""

    async def script(peer: Peer) -> None:
        while True:
            asked = (await peer.request()).json()
            body = b"%d;" % asked["id"] * asked["size"]
            if asked["framing"] == "length":
                await peer.send(whole(body))
                continue
            kind = "text/event-stream" if asked["framing"] == "stream" else "application/json"
            await peer.send(head(200, ("Content-Type", kind), ("Transfer-Encoding", "chunked")))
            for at in range(0, len(body), 30_000):
                await peer.send(chunk(body[at : at + 30_000]))
            await peer.send(LAST_CHUNK)

    async def one(client: Client, server: Upstream, at: int, plan: tuple[int, str, int]) -> None:
        size, framing, leaves = plan
        asked = {"id": at, "size": size // 4, "framing": framing}
        flight = client.open(request_to(server.url(), json.dumps(asked).encode()))
        leaver = None
        if leaves == 1:
            leaver = asyncio.get_running_loop().call_later(size % 7 / 1000, flight.abort, Left())
        try:
            await flight.start()
            assert await drain(flight) == b"%d;" % at * (size // 4)
        except Left:
            assert leaver is not None
        finally:
            flight.close()
            if leaver is not None:
                leaver.cancel()

    async def all_of_them() -> None:
        async with upstream(script) as server, client_of("own", connections=connections) as client:
            async with asyncio.timeout(30):
                await asyncio.gather(*(one(client, server, at, plan) for at, plan in enumerate(plans)))
            assert server.open <= connections

    asyncio.run(all_of_them())

"""Calls from threads and from other event loops than the gateway's."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import httpx2

from asgi_llm_gateway.metering import MeteredTransport, record_usage

from ..middleware import DONE, counts, words
from .shop import ASKED, COST, STREAMED, URL, Shop, answer


async def test_a_waiting_client_serves_a_handler_in_a_thread() -> None:
    """``def`` handlers: held, refused, streamed and counted like others."""

    def provide(request: Any) -> Any:
        shop.sent.append(json.loads(request.content))
        if shop.sent[-1].get("stream"):
            return httpx2.Response(
                200, headers={"content-type": "text/event-stream"}, content=b"".join([*words(4), counts(3, 4), DONE])
            )
        return answer(httpx2)

    def work() -> Any:
        with httpx2.Client(transport=MeteredTransport(httpx2.MockTransport(provide))) as client:
            one = client.post(URL, json=ASKED).status_code
            with client.stream("POST", URL, json=STREAMED) as response:
                two = b"".join(response.iter_raw())
            three = client.post(URL, json={**ASKED, "max_tokens": 10**6}).status_code
            return [one, two.decode(), three]

    async def handler() -> Any:
        return await asyncio.to_thread(work)

    shop = Shop(handler, 10_000)
    assert (await shop.ask()).json() == [200, b"".join([*words(4), DONE]).decode(), 402]
    assert len(shop.sent) == 2
    assert [record.cost for record in await shop.records()] == [2 * COST]
    await shop.quiet()


async def test_an_async_client_may_run_on_a_loop_of_its_own() -> None:
    """``asyncio.run`` in a thread: the guards are asked on the loop that they belong to."""

    def work() -> int:
        async def inner() -> int:
            async with httpx2.AsyncClient(transport=MeteredTransport(httpx2.MockTransport(shop._provide))) as client:
                await record_usage(prompt=1, completion=1, model="m")
                return (await client.post(URL, json=ASKED)).status_code

        return asyncio.run(inner())

    async def handler() -> Any:
        return await asyncio.to_thread(work)

    shop = Shop(handler, 10_000)
    assert (await shop.ask()).json() == 200
    assert await shop.balance() == (COST + 3, 0)


async def test_a_waiting_client_in_an_async_handler_is_refused() -> None:
    """It would wait for the loop that it stops."""

    async def handler() -> Any:
        with httpx2.Client(transport=MeteredTransport(httpx2.MockTransport(lambda request: answer(httpx2)))) as client:
            return client.post(URL, json=ASKED).json()

    shop = Shop(handler, 10_000)
    assert (await shop.ask()).json()["error"]["code"] == "blocking_call"


def test_a_waiting_client_outside_a_request_is_refused() -> None:
    """As the other is; and it can't hold anything, for want of a loop."""
    inner = httpx.MockTransport(lambda request: answer(httpx))
    for transport in (MeteredTransport(inner), MeteredTransport(inner, outside="hold")):
        with httpx.Client(transport=transport) as client:
            assert client.post(URL, json=ASKED).json()["error"]["code"] == "no_exchange"
    with httpx.Client(transport=MeteredTransport(inner, outside="pass")) as client:
        assert client.post(URL, json=ASKED).status_code == 200

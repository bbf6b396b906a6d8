"""OpenAI's SDK inside a FastAPI app that is wrapped by the gateway's layers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import httpx2
import openai
import pytest
from fastapi import BackgroundTasks
from fastapi.responses import StreamingResponse

from asgi_llm_gateway import MeteredTransport, record_usage

from ..conversation import call
from ..upstream import DONE, LAST_CHUNK, STREAM_HEAD, Peer, Script, always, chunk, streaming, until, whole, word
from .host import CHAT_STREAM, COST, HELLO, chat, host


async def test_chats_in_a_handler_add_up() -> None:
    """Two calls, one record: tokens, money and trace are the request's."""
    async with host(always(whole())) as shop:

        async def handler() -> Any:
            return [(await chat(shop)).choices[0].message.content for _ in range(2)]

        shop.route(handler)
        said = await shop.ask()
        assert (said.status, said.json()) == (200, ["hi", "hi"])
        assert said.headers["x-llm-cost-usd"] == "0.000000026"
        assert await shop.spent() == 2 * COST
        (record,) = (await shop.store.records("team")).records
        assert (record.usage.total, record.model, record.provider) == (16, "m", "127.0.0.1")
        trace = shop.traces.find(said.headers["x-trace-id"])
        assert trace is not None
        assert (trace.tenant, trace.model, trace.cost) == ("team", "m", 2 * COST)
        assert (trace.request_id, trace.trace_id) == (record.request_id, record.trace_id)
        assert shop.provider.requests[0].headers["authorization"] == "Bearer sk-theirs"


async def test_a_stream_in_a_handler_is_relayed_and_counted() -> None:
    """The SDK sees the chunks it would have seen without the gateway, and not the one that tells the usage."""
    async with host(streaming(*CHAT_STREAM)) as shop:

        async def handler() -> Any:
            stream = await chat(shop, stream=True)

            async def text() -> AsyncIterator[str]:
                async for one in stream:
                    assert one.choices
                    yield one.choices[0].delta.content

            return StreamingResponse(text())

        shop.route(handler)
        assert (await shop.ask()).body == b"one two"
        assert shop.provider.requests[0].json()["stream_options"] == {"include_usage": True}
        assert await shop.spent() == COST


async def test_a_stream_whose_caller_asks_for_usage_gets_it() -> None:
    """``include_usage`` of the handler's own."""
    async with host(streaming(*CHAT_STREAM)) as shop:

        async def handler() -> Any:
            stream = await chat(shop, stream=True, stream_options={"include_usage": True})
            return [one.usage.total_tokens async for one in stream if one.usage]

        shop.route(handler)
        assert (await shop.ask()).json() == [8]
        assert await shop.spent() == COST


async def test_the_budgets_refusal_is_the_sdks_error() -> None:
    """The second call is not sent, the SDK does not try again, and the handler can tell why."""
    async with host(always(whole()), budget=305) as shop:

        async def handler() -> Any:
            await chat(shop)
            with pytest.raises(openai.APIStatusError) as refused:
                await chat(shop)
            return [refused.value.status_code, refused.value.code, str(refused.value.message)]

        shop.route(handler)
        status, code, message = (await shop.ask()).json()
        assert (status, code) == (402, "would_exceed_budget")
        assert "Ask for fewer tokens" in message
        assert len(shop.provider.requests) == 1
        assert await shop.spent() == COST


async def test_the_sdks_retries_are_calls_of_their_own() -> None:
    """An error that may pass is asked for again; only the last call cost something."""
    busy = whole({"error": {"message": "busy"}}, 503, headers=[("retry-after-ms", "5")])

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(busy if len(shop.provider.requests) < 3 else whole())

    async with host(script, budget=305) as shop:

        async def handler() -> Any:
            return (await chat(shop)).choices[0].message.content

        shop.route(handler)
        assert (await shop.ask()).json() == "hi"
        assert len(shop.provider.requests) == 3
        assert await shop.spent() == COST


async def test_embeddings_and_responses_are_metered() -> None:
    """By their own tables: the one has no output, the other a limit of another name."""
    answer = {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}]}

    async def script(peer: Peer) -> None:
        while True:
            asked = await peer.request()
            if asked.path == "/v1/embeddings":
                await peer.send(whole({**answer, "usage": {"prompt_tokens": 3, "total_tokens": 3}}))
            else:
                await peer.send(whole({"output": [], "usage": {"input_tokens": 3, "output_tokens": 5}}))

    async with host(script) as shop:

        async def handler() -> Any:
            await shop.openai.embeddings.create(model="m", input="x", encoding_format="float")
            await shop.openai.responses.create(model="m", input="x")

        shop.route(handler)
        assert (await shop.ask()).status == 200
        assert await shop.spent() == 3 + COST
        embedding, response = (asked.json() for asked in shop.provider.requests)
        assert embedding == {"model": "m", "input": "x", "encoding_format": "float"}
        assert response["max_output_tokens"] == 4096


async def test_the_older_client_is_metered_too() -> None:
    """``httpx`` as well as ``httpx2``."""
    async with host(streaming(*CHAT_STREAM)) as shop:

        async def handler() -> Any:
            async with httpx.AsyncClient(transport=MeteredTransport()) as client:
                body = {"model": "m", "messages": HELLO, "stream": True}
                answer = await client.post(shop.provider.url("/v1/chat/completions"), json=body)
                return answer.text

        shop.route(handler)
        said: str = (await shop.ask()).json()
        assert said.encode() == b"".join([*CHAT_STREAM[:3], DONE])
        assert await shop.spent() == COST


async def test_a_hang_up_closes_the_upstream() -> None:
    """The client leaves in the middle of the stream: the provider sees it at once, and what came is paid."""
    async with host(then_wait(word("one"), word(" two"))) as shop:

        async def handler() -> Any:
            stream = await chat(shop, stream=True)

            async def text() -> AsyncIterator[str]:
                async for one in stream:
                    yield one.choices[0].delta.content

            return StreamingResponse(text())

        shop.route(handler)
        async with call(shop.app, None, "/ask", headers=shop.headers) as talk:
            for _ in range(3):  # the start and two pieces
                await talk.next()
            await talk.hang_up()
        await until(lambda: shop.provider.aborted == 1)
        assert await shop.spent() > 0
        (record,) = (await shop.store.records("team")).records
        assert (record.usage.completion, record.usage.estimated, record.aborted) == (2, True, True)


def then_wait(*events: bytes) -> Script:
    """The beginning of a stream."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM_HEAD, *(chunk(one) for one in events))
        await peer.stall()

    return script


async def test_a_handler_that_is_cancelled_closes_the_upstream() -> None:
    """Before the first byte too."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.stall()

    async with host(script) as shop:

        async def handler() -> Any:
            await chat(shop)

        shop.route(handler)
        async with call(shop.app, None, "/ask", headers=shop.headers) as talk:
            await until(lambda: len(shop.provider.requests) == 1)
            talk.task.cancel()
            await asyncio.wait({talk.task})
        await until(lambda: shop.provider.aborted == 1)
        assert await shop.spent() > 0


async def test_a_background_task_pays_for_itself() -> None:
    """FastAPI runs it after the answer, in the same call or in a thread: a hold and a record of its own."""
    async with host(always(whole())) as shop:

        def in_a_thread() -> None:
            with openai.OpenAI(
                base_url=shop.provider.url(), api_key="sk", http_client=httpx2.Client(transport=MeteredTransport())
            ) as client:
                client.chat.completions.create(model="m", messages=HELLO)

        async def handler(tasks: BackgroundTasks) -> Any:
            tasks.add_task(chat, shop)
            tasks.add_task(in_a_thread)

        shop.route(handler)
        await shop.ask()
        assert await shop.spent() == 2 * COST
        records = (await shop.store.records("team")).records
        assert sorted(record.cost for record in records) == [0, COST, COST]
        assert len({record.request_id for record in records}) == 1


async def test_outside_a_request_the_sdk_raises() -> None:
    """Its own class for 403, at once."""
    async with host(always(whole())) as shop:
        with pytest.raises(openai.PermissionDeniedError, match="outside a request") as refused:
            await chat(shop)
        assert refused.value.code == "no_exchange"
        assert shop.provider.requests == []


async def test_the_waiting_sdk_in_a_def_handler() -> None:
    """It runs in a thread of FastAPI's: chat, stream, refusal."""

    async def script(peer: Peer) -> None:
        while True:
            asked = await peer.request()
            if asked.json().get("stream"):
                await peer.send(STREAM_HEAD, *(chunk(one) for one in CHAT_STREAM), LAST_CHUNK)
            else:
                await peer.send(whole())

    async with host(script) as shop:
        transport = MeteredTransport()
        client = openai.OpenAI(
            base_url=shop.provider.url(), api_key="sk", http_client=httpx2.Client(transport=transport)
        )

        def handler() -> Any:
            said = client.chat.completions.create(model="m", messages=HELLO).choices[0].message.content
            with client.chat.completions.create(model="m", messages=HELLO, stream=True) as stream:
                streamed = [one.choices[0].delta.content or "" for one in stream]
            with pytest.raises(openai.APIStatusError) as refused:
                client.chat.completions.create(model="m", messages=HELLO, max_tokens=10**6)
            return [said, "".join(streamed), refused.value.status_code]

        shop.route(handler)
        assert (await shop.ask()).json() == ["hi", "one two", 402]
        assert await shop.spent() == 2 * COST
        client.close()


async def test_a_report_beside_calls() -> None:
    """``record_usage`` with an SDK's own usage object."""
    async with host(always(whole())) as shop:

        async def handler() -> Any:
            answer = await chat(shop)
            await record_usage(answer.usage, model="m", provider="own")

        shop.route(handler)
        await shop.ask()
        assert await shop.spent() == 2 * COST


async def test_many_requests_never_spend_more_than_the_budget() -> None:
    """Twenty requests side by side, each with two calls, for a budget that three of them fill."""
    async with host(always(whole()), budget=700) as shop:

        async def handler() -> Any:
            done = 0
            for _ in range(2):
                try:
                    await chat(shop)
                    done += 1
                except openai.APIStatusError:
                    break
            return done

        shop.route(handler)
        answers = await asyncio.gather(*(shop.ask() for _ in range(20)))
        done = sum(answer.json() for answer in answers)
        assert 0 < done < 40
        assert done == len(shop.provider.requests)
        assert await shop.spent() == done * COST <= 700

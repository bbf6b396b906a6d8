"""Calls that a user's own handler makes with an SDK: attempts of the request that is being served."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
from opentelemetry.trace import SpanKind, StatusCode

from ..conversation import Answer
from ..metering.shop import ASKED, PATHS, STREAMED, Pieces, Shop, answer
from ..middleware import DONE, counts
from ..upstream import event, until
from .seen import Seen, about, own


def traced(handler: Any, seen: Seen) -> Shop:
    """A shop whose spans are seen."""
    shop = Shop(handler, 10_000)
    shop.stack = seen(shop.stack, paths=PATHS)
    return shop


async def test_a_handlers_calls_are_attempts_of_one_call() -> None:
    """Each has its own span and ``traceparent``, and none is another one sent again; the tokens are their sum."""
    seen = Seen()

    async def handler() -> Any:
        await asyncio.gather(*(shop.post() for _ in range(2)))
        await shop.post({**ASKED, "temperature": 1})

    shop = traced(handler, seen)
    said: Answer = await shop.ask()
    seen.check()
    assert seen.server.name == "POST /ask"
    assert own(seen.logical)["attempts"] == len(seen.attempts) == 3
    found = about(seen.logical)
    assert seen.logical.name == "chat m"
    assert found["gen_ai.provider.name"] == "api.example"
    assert (found["gen_ai.usage.input_tokens"], found["gen_ai.usage.output_tokens"]) == (9, 12)
    assert own(seen.logical)["cost_usd"] == float(said.headers["x-llm-cost-usd"])
    for span in seen.attempts:
        assert span.kind is SpanKind.CLIENT
        assert "http.request.resend_count" not in about(span)
        assert about(span)["http.response.status_code"] == 200
    told = {headers["traceparent"].split("-")[2] for headers in shop.headers}
    assert told == {f"{span.context.span_id:016x}" for span in seen.attempts if span.context is not None}
    await shop.quiet()


async def test_no_credential_of_a_url_is_told() -> None:
    """Neither a user's nor one in the query, as Gemini and Azure have them."""
    seen = Seen()

    async def handler() -> Any:
        await shop.post(url="https://user:PRIVATE@api.example:8443/v1/chat/completions?key=PRIVATE#PRIVATE")

    shop = traced(handler, seen)
    await shop.ask()
    seen.check()
    (attempt,) = seen.attempts
    assert about(attempt)["url.full"] == "https://api.example:8443/v1/chat/completions"
    assert (about(attempt)["server.address"], about(attempt)["server.port"]) == ("api.example", 8443)
    assert "PRIVATE" not in repr([about(one) for one in seen.spans])


async def test_a_client_that_traces_itself_sends_our_context() -> None:
    """Its own header would leave our attempt out of the trace."""
    seen = Seen()

    async def handler() -> Any:
        theirs = {"traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01"}
        await shop.client.post("https://api.example/v1/chat/completions", json=ASKED, headers=theirs)

    shop = traced(handler, seen)
    await shop.ask()
    (attempt,) = seen.attempts
    assert attempt.context is not None
    assert shop.headers[0]["traceparent"].split("-")[2] == f"{attempt.context.span_id:016x}"


async def test_a_stream_that_a_handler_reads() -> None:
    """What its last events told is known, as of any stream."""
    seen = Seen()
    choice = {"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}
    pieces = [event({"id": "chatcmpl-9", "model": "m-1", "choices": [choice]}), counts(3, 4), DONE]

    async def handler() -> Any:
        async with shop.client.stream("POST", "https://api.example/v1/chat/completions", json=STREAMED) as answer:
            return [piece.decode() async for piece in answer.aiter_bytes()]

    def provide(http: Any) -> Any:
        return http.Response(200, headers={"content-type": "text/event-stream"}, stream=Pieces(pieces))

    shop = traced(handler, seen)
    shop.answers = [provide]
    await shop.ask()
    seen.check()
    found = about(seen.logical)
    assert found["gen_ai.response.id"] == "chatcmpl-9"
    assert found["gen_ai.response.model"] == "m-1"
    assert found["gen_ai.response.finish_reasons"] == ("stop",)
    assert found["gen_ai.request.stream"] is True
    assert found["gen_ai.usage.output_tokens"] == 4


async def test_a_failure_that_a_handler_gets_over() -> None:
    """An error of the attempt, not of the call, which was answered."""
    seen = Seen()

    async def handler() -> Any:
        try:
            await shop.post()
        except httpx2.ConnectError:
            await shop.post()

    shop = traced(handler, seen)
    shop.answers = [lambda http: http.ConnectError("PRIVATE"), answer]
    await shop.ask()
    seen.check()
    first, second = seen.attempts
    assert (first.status.status_code, about(first)["error.type"]) == (StatusCode.ERROR, "ConnectError")
    assert second.status.status_code is seen.logical.status.status_code is StatusCode.UNSET


async def test_a_call_that_outlives_the_answer_ends_its_span_when_it_ends() -> None:
    """The request's span ends with the request; the call's waits for its last attempt, and has its cost."""
    seen = Seen()
    tasks: list[asyncio.Task[Any]] = []
    begun, go = asyncio.Event(), asyncio.Event()

    async def provide(http: Any) -> Any:
        begun.set()
        await go.wait()
        return answer(http)

    async def handler() -> Any:
        tasks.append(asyncio.create_task(shop.post()))
        await begun.wait()

    shop = traced(handler, seen)
    shop.answers = [provide]
    await shop.ask()
    assert [one.name for one in seen.spans] == ["POST /ask"]
    go.set()
    await tasks[0]
    await until(lambda: len(seen.spans) == seen.started == 3)
    (attempt,) = seen.attempts
    assert (attempt.end_time or 0) > (seen.server.end_time or 0)
    assert about(seen.logical)["gen_ai.usage.output_tokens"] == 4
    assert own(seen.logical)["cost_usd"] == 11e-9
    await shop.quiet()


async def test_a_call_made_after_the_answer_is_none_of_its_spans() -> None:
    """It has a hold of its own, and a trace that is over is not added to."""
    seen = Seen()

    async def work() -> None:
        await shop.post()

    async def handler() -> Any:
        shop.later.append(work)

    shop = traced(handler, seen)
    await shop.ask()
    (server,) = seen.spans
    assert seen.started == 1
    assert server.name == "POST /ask"
    assert "traceparent" not in shop.headers[0]
    await shop.quiet()


async def test_a_handler_that_makes_no_call_has_none() -> None:
    """A path of the user's own, whose body nobody reads: the request's span alone."""
    seen = Seen()

    async def handler() -> Any:
        return "no model was asked"

    await traced(handler, seen).ask()
    assert [one.name for one in seen.spans] == ["POST /ask"]

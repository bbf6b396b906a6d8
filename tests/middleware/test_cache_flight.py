"""Many who ask the same at the same time are one call: who joins, who leaves, and what becomes of it."""

from __future__ import annotations

import asyncio
import gc
import json
from typing import Any

import pytest

from asgi_llm_gateway._closing import close_all
from asgi_llm_gateway.middleware._cache_flight import Flight, Reader
from asgi_llm_gateway.middleware._cache_inner import Inner
from asgi_llm_gateway.middleware.cache import CacheMiddleware

from ..caching import JSON, PATHS, SSE, TEXTS, Counting, asking, saying, streaming, text_of, text_of_stream
from ..conversation import Answer, Talk, ask, call
from ..upstream import until

CHAT = PATHS["chat"]


def talk(app: Any, dialect: str = "chat", headers: tuple[Any, ...] = (JSON,), **more: Any) -> Any:
    """A call under way."""
    return call(app, asking(dialect, **more), PATHS[dialect], headers=headers)


def nothing_is_left(app: CacheMiddleware) -> bool:
    """No call is under way, and none is remembered as such."""
    here = app._open.get()
    return here is None or not (here.flights or here.running)


@pytest.mark.parametrize("dialect", [*TEXTS, "embeddings"])
async def test_fifty_at_once_are_one_call(dialect: str) -> None:
    """Each gets the answer in the form that it asked for."""
    ready = asyncio.Event()
    model = Counting(before=ready)
    app = CacheMiddleware(model)
    forms: list[dict[str, Any]] = [
        {"stream": True} if at % 3 == 1 and dialect != "embeddings" else {} for at in range(50)
    ]
    tasks = [asyncio.ensure_future(ask(app, asking(dialect, **form), PATHS[dialect])) for form in forms]
    await until(lambda: model.calls == 1)
    await asyncio.sleep(0.05)
    ready.set()
    answers: list[Answer] = await asyncio.gather(*tasks)
    assert model.calls == 1
    assert sorted(one.headers["x-cache"] for one in answers) == ["joined"] * 49 + ["miss"]
    texts = set()
    for form, answer in zip(forms, answers, strict=True):
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("text/event-stream" if form else "application/json")
        texts.add(text_of_stream(dialect, answer.body) if form else text_of(dialect, answer.json()))
    assert len(texts) == 1
    assert nothing_is_left(app)


async def collect(talk: Talk) -> bytes:
    """The rest of a call's body."""
    return (await talk.answer()).body


async def started(talk: Talk, events: int) -> None:
    """So many messages have come, the start included."""
    for _ in range(events):
        await talk.next()


@pytest.mark.parametrize("at", range(10))
async def test_whoever_joins_a_stream_gets_all_of_it(at: int) -> None:
    """From its beginning, at whatever event it joined, and the rest as it comes."""
    step = asyncio.Semaphore(0)
    model = Counting(between=step)
    app = CacheMiddleware(model)
    async with talk(app, stream=True) as first:
        await started(first, 2)
        for _ in range(at):
            step.release()
            await first.next()
        async with talk(app, stream=True) as second:
            await started(second, 2)
            for _ in range(100):
                step.release()
            whole, other = await collect(first), await collect(second)
            assert whole == other
            assert whole.endswith(b"data: [DONE]\n\n")
            assert dict(second.messages[0]["headers"])[b"x-cache"] == b"joined"
    assert model.calls == 1


async def test_each_event_reaches_all_readers_when_it_comes() -> None:
    """Nobody waits for the end."""
    step = asyncio.Semaphore(0)
    app = CacheMiddleware(Counting(between=step))
    async with talk(app, stream=True) as first, talk(app, stream=True) as second:
        await started(first, 2)
        await started(second, 2)
        for _ in range(3):
            step.release()
            assert (await first.next())["body"] == (await second.next())["body"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("at", ["before", "middle"])
async def test_a_call_that_nobody_joined_ends_with_its_client(stream: bool, at: str) -> None:
    """At once, before the first byte and in the middle; and the next one asks anew."""
    ready, step = asyncio.Event(), asyncio.Semaphore(0)
    model = Counting(before=ready, between=step)
    app = CacheMiddleware(model)
    if at == "middle" and stream:
        ready.set()
    async with talk(app, stream=stream) as first:
        await until(lambda: model.calls == 1)
        if at == "middle" and stream:
            await started(first, 2)
        await first.hang_up()
    assert (model.cancelled, model.finished) == (1, 0)
    assert nothing_is_left(app)
    ready.set()
    for _ in range(100):
        step.release()
    assert (await ask(app, asking("chat", stream=stream))).headers["x-cache"] == "miss"


@pytest.mark.parametrize("how", ["hang_up", "cancel"])
@pytest.mark.parametrize(("stream", "at"), [(True, "before"), (True, "middle"), (False, "before")])
async def test_a_call_that_others_joined_outlives_its_client(how: str, stream: bool, at: str) -> None:
    """Also one whose task is cancelled; the others get all of it, and it is kept."""
    ready, step = asyncio.Event(), asyncio.Semaphore(0)
    model = Counting(before=ready, between=step)
    app = CacheMiddleware(model)
    if at == "middle":
        ready.set()
    async with talk(app, stream=stream) as first:
        await until(lambda: model.calls == 1)
        async with talk(app, stream=stream) as second:
            if at == "middle" and stream:
                await started(first, 2)
                await started(second, 2)
            else:
                await asyncio.sleep(0.05)
            if how == "cancel":
                first.task.cancel()
                await asyncio.wait({first.task})
            else:
                leaving = asyncio.ensure_future(first.hang_up())
                await asyncio.sleep(0.1)
            ready.set()
            for _ in range(100):
                step.release()
            answer = await second.answer()
            if how == "hang_up":
                await leaving
    assert (answer.status, answer.headers["x-cache"]) == (200, "joined")
    assert (model.calls, model.cancelled, model.finished) == (1, 0, 1)
    assert (await ask(app, asking("chat", stream=stream))).headers["x-cache"] == "hit"
    assert nothing_is_left(app)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
async def test_the_last_one_to_leave_ends_the_call(order: tuple[int, ...]) -> None:
    """In whatever order they leave; not one of them sooner."""
    step = asyncio.Semaphore(0)
    model = Counting(between=step)
    app = CacheMiddleware(model)
    async with talk(app, stream=True) as a, talk(app, stream=True) as b, talk(app, stream=True) as c:
        talks = [a, b, c]
        for one in talks:
            await started(one, 2)
        leaving = []
        for at in order:
            assert model.cancelled == 0
            leaving.append(asyncio.ensure_future(talks[at].hang_up()))
            await asyncio.sleep(0.1)
        await asyncio.gather(*leaving)
    assert (model.calls, model.cancelled) == (1, 1)
    assert nothing_is_left(app)


async def test_whoever_leaves_does_not_disturb_the_one_who_pays() -> None:
    """A follower that hangs up is nobody's business."""
    step = asyncio.Semaphore(0)
    app = CacheMiddleware(model := Counting(between=step))
    async with talk(app, stream=True) as first:
        await started(first, 2)
        async with talk(app, stream=True) as second:
            await started(second, 2)
            await second.hang_up()
        for _ in range(100):
            step.release()
        assert (await first.answer()).complete
    assert (model.cancelled, model.finished) == (0, 1)


async def test_all_get_the_same_error() -> None:
    """Once it has been asked for; and the next one asks anew."""
    ready = asyncio.Event()
    model = Counting(before=ready, status=503, headers=[(b"retry-after", b"7"), (b"x-request-id", b"r")])
    app = CacheMiddleware(model)
    tasks = [asyncio.ensure_future(ask(app, asking("chat", stream=bool(at % 2)))) for at in range(6)]
    await until(lambda: model.calls == 1)
    await asyncio.sleep(0.05)
    ready.set()
    answers = await asyncio.gather(*tasks)
    assert {(one.status, one.error["code"], one.headers["retry-after"]) for one in answers} == {(503, "c1", "7")}
    assert sum("x-request-id" in one.headers for one in answers) == 1
    assert (await ask(app, asking("chat"))).error["code"] == "c2"


class Breaking(Counting):
    """A model server that fails in the middle."""

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if self.before is not None:
            await self.before.wait()
        if self.length:
            await send({"type": "http.response.start", "status": 200, "headers": [SSE]})
            for one in streaming("chat", "abc")[: self.length]:
                await send({"type": "http.response.body", "body": one, "more_body": True})
        raise RuntimeError("a fault of the app's")


@pytest.mark.parametrize("after", [0, 1, 3])
async def test_a_call_that_breaks_off_is_broken_for_all_and_never_kept(after: int) -> None:
    """The one who pays gets what the app raised; the others an error, in the stream where that had begun."""
    ready = asyncio.Event()
    app = CacheMiddleware(model := Breaking(before=ready, length=after))
    async with talk(app, stream=True) as first, talk(app, stream=True) as second:
        await until(lambda: model.calls == 1)
        await asyncio.sleep(0.02)
        ready.set()
        with pytest.raises(RuntimeError, match="a fault"):
            await first.answer()
        answer = await second.answer()
    if after:
        assert (answer.status, answer.complete) == (200, True)
        assert b'"error"' in answer.body
        assert b"[DONE]" not in answer.body
    else:
        assert (answer.status, answer.error["code"]) == (502, "upstream_cut")
    assert nothing_is_left(app)
    with pytest.raises(RuntimeError):
        await ask(app, asking("chat", stream=True))


async def test_an_answer_that_is_one_callers_own_is_not_shared() -> None:
    """The others ask for themselves."""
    ready = asyncio.Event()
    model = Counting(before=ready, headers=[(b"set-cookie", b"a=b")])
    app = CacheMiddleware(model)
    tasks = [asyncio.ensure_future(ask(app, asking("chat"))) for _ in range(4)]
    await until(lambda: model.calls == 1)
    await asyncio.sleep(0.05)
    ready.set()
    assert [one.headers["x-cache"] for one in await asyncio.gather(*tasks)] == ["miss"] * 4
    assert model.calls == 4


async def test_usage_is_told_to_those_who_want_it_in_one_live_stream() -> None:
    """Whichever of them asked first."""
    wants: dict[str, Any] = {"stream_options": {"include_usage": True}}
    for first_wants in (True, False):
        ready = asyncio.Event()
        app = CacheMiddleware(model := Counting(before=ready))
        forms: list[dict[str, Any]] = [wants if first_wants else {}, {} if first_wants else wants]
        tasks = [asyncio.ensure_future(ask(app, asking("chat", stream=True, **form))) for form in forms]
        await until(lambda: model.calls == 1)
        await asyncio.sleep(0.02)
        ready.set()
        first, second = await asyncio.gather(*tasks)
        assert (b'"prompt_tokens"' in first.body) is first_wants
        if first_wants:
            assert b'"prompt_tokens"' not in second.body
        assert text_of_stream("chat", first.body) == text_of_stream("chat", second.body)


async def test_who_wants_a_fresh_answer_does_not_join_an_older_call() -> None:
    """``no-cache`` asks anew while another is under way; the later answer is kept."""
    ready = asyncio.Event()
    app = CacheMiddleware(model := Counting(before=ready))
    control = (JSON, (b"cache-control", b"no-cache"))
    async with talk(app) as first, talk(app, headers=control) as second, talk(app) as third:
        await until(lambda: model.calls == 2)
        ready.set()
        caches = [(await one.answer()).headers["x-cache"] for one in (first, second, third)]
    assert (model.calls, caches) == (2, ["miss", "miss", "joined"])
    assert nothing_is_left(app)


async def test_an_older_call_that_ends_takes_nothing_from_a_newer_one() -> None:
    """Those who come now join the newer one."""
    gates = [asyncio.Event(), asyncio.Event()]
    called: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        called.append(len(called))
        mine = called[-1]
        await receive()
        await gates[mine].wait()
        answer = saying("chat", "x", finish=None if mine else "length")  # the first one is not kept
        await send({"type": "http.response.start", "status": 200, "headers": [JSON]})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    cached = CacheMiddleware(app)
    async with talk(cached) as first:
        await until(lambda: len(called) == 1)
        async with talk(cached, headers=(JSON, (b"cache-control", b"no-cache"))) as second:
            await until(lambda: len(called) == 2)
            gates[0].set()
            await first.answer()
            async with talk(cached) as third:
                await asyncio.sleep(0.02)
                gates[1].set()
                assert (await third.answer()).headers["x-cache"] == "joined"
            await second.answer()


async def test_nothing_is_left_of_calls_that_are_over() -> None:
    """No task, no copy, whatever way they went."""
    app = CacheMiddleware(Counting(), max_bytes=50_000)
    before = len(asyncio.all_tasks())
    for at in range(300):
        await ask(app, asking("chat", text=str(at), stream=bool(at % 2)))
    await asyncio.sleep(0.05)
    assert nothing_is_left(app)
    assert len(asyncio.all_tasks()) == before
    assert app._memory is not None
    assert app._memory.size <= 50_000


async def test_the_app_hears_of_the_end_as_from_a_server() -> None:
    """``receive`` waits while somebody reads, and says so when nobody does any more, or the answer is out."""
    heard: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "http.request"
        await send({"type": "http.response.start", "status": 200, "headers": [JSON]})
        await send({"type": "http.response.body", "body": b"{}"})
        heard.append((await receive())["type"])

    await ask(CacheMiddleware(app), asking("chat"))
    assert heard == ["http.disconnect"]


async def test_messages_of_other_kinds_reach_the_one_who_asked() -> None:
    """In their place."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.debug", "info": {}})
        await send({"type": "http.response.start", "status": 200, "headers": [SSE]})
        await send({"type": "http.response.body", "body": b": a\n\n", "more_body": True})
        await send({"type": "http.response.of_a_day_to_come", "x": 1})
        await send({"type": "http.response.body", "body": b": b\n\n"})

    async with talk(CacheMiddleware(app), stream=True) as one:
        await one.answer()
    kinds = [message["type"].rpartition(".")[2] for message in one.messages]
    assert kinds[:2] == ["start", "debug"] or kinds[:2] == ["debug", "start"]
    assert "of_a_day_to_come" in kinds
    assert b"".join(message.get("body", b"") for message in one.messages) == b": a\n\n: b\n\n"


async def test_closing_ends_the_calls_under_way() -> None:
    """Whoever waits is told, and nothing runs on."""
    app = CacheMiddleware(model := Counting(before=asyncio.Event()))
    async with talk(app) as first, talk(app) as second:
        await until(lambda: model.calls == 1)
        await asyncio.sleep(0.02)
        await close_all()
        answers = [await first.answer(), await second.answer()]
    assert model.cancelled == 1
    assert [one.status for one in answers] == [503, 502]


class Forgetful(Counting):
    """Keeps nothing of what it was asked."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._answer(scope, receive, send)
        self.scopes.clear()


async def test_calls_leave_nothing_to_the_garbage_collector() -> None:
    """What a call was made of goes when it is over: a collector that has to look for it costs more than the call."""
    app = CacheMiddleware(Forgetful())
    gc.collect()
    before = _parts()  # of other tests' apps, which remember what they were asked
    gc.disable()
    try:
        for at in range(20):
            await ask(app, asking("chat", text=str(at), stream=bool(at % 2)))
        await asyncio.sleep(0.05)
        assert _parts() - before == set()
    finally:
        gc.enable()


def _parts() -> set[Any]:
    return {one for one in gc.get_objects() if type(one) in (Flight, Inner, Reader)}

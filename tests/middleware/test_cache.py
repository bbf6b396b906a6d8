"""What was answered before is answered again, for nothing, in every dialect and form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from asgi_llm_gateway import TraceLog, TracingMiddleware
from asgi_llm_gateway.middleware.cache import CacheMiddleware
from asgi_llm_gateway.middleware.policy import PolicyMiddleware

from ..caching import DONE, JSON, PATHS, TEXTS, Counting, asking, text_of, text_of_stream
from ..conversation import Answer, ask, get

DIALECTS = tuple(PATHS)


async def put(app: Any, dialect: str = "chat", *, headers: tuple[Any, ...] = (), **more: Any) -> Answer:
    """A call that asks for determinism."""
    return await ask(app, asking(dialect, **more), PATHS[dialect], headers=(JSON, *headers))


def said(dialect: str, answer: Answer) -> str:
    """The text of an answer in either form."""
    if answer.headers["content-type"].startswith("text/event-stream"):
        return text_of_stream(dialect, answer.body)
    return text_of(dialect, answer.json())


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_the_same_request_is_asked_once(dialect: str) -> None:
    """The same bytes again, with their age, at no cost; another request is another."""
    now = [1000.0]
    model = Counting()
    app = CacheMiddleware(model, clock=lambda: now[0])
    first = await put(app, dialect)
    now[0] += 7.9
    again = await put(app, dialect)
    assert (first.status, first.headers["x-cache"], "age" in first.headers) == (200, "miss", False)
    assert (again.status, again.headers["x-cache"], again.headers["age"]) == (200, "hit", "7")
    assert again.headers["x-llm-cost-usd"] == "0.0"
    assert again.headers["content-type"] == "application/json"
    assert again.body == first.body
    assert (await put(app, dialect, text="other")).headers["x-cache"] == "miss"
    assert model.calls == 2


@pytest.mark.parametrize("dialect", TEXTS)
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("usage", [True, False])
async def test_either_form_answers_the_other(dialect: str, kept: bool, usage: bool) -> None:
    """A kept stream answers a call for JSON with its usage, a kept document one for a stream."""
    model = Counting()
    app = CacheMiddleware(model)
    options = {"stream_options": {"include_usage": True}} if dialect in ("chat", "completions") else {}
    asked_kept: dict[str, Any] = {"stream": True, **options} if kept else {}
    first = await put(app, dialect, **asked_kept)
    wanted: dict[str, Any] = {} if kept else {"stream": True, **(options if usage else {})}
    again = await put(app, dialect, **wanted)
    assert (model.calls, again.headers["x-cache"]) == (1, "hit")
    assert said(dialect, again) == said(dialect, first)
    if kept:
        assert again.json()["usage"]
    elif dialect in ("chat", "completions"):
        assert (b'"prompt_tokens"' in again.body) is usage
        assert again.body.endswith(DONE)


@pytest.mark.parametrize("dialect", TEXTS)
async def test_a_kept_stream_is_told_as_it_came(dialect: str) -> None:
    """Event for event, less the signs of life."""
    app = CacheMiddleware(Counting())
    first, again = [await put(app, dialect, stream=True) for _ in range(2)]
    assert again.headers["x-cache"] == "hit"
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.body == b"".join(one + b"\n\n" for one in first.body.split(b"\n\n") if one and b"ping" not in one)


async def test_only_calls_that_ask_for_determinism_are_kept() -> None:
    """Unless all shall be."""
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    model = Counting()
    app = CacheMiddleware(model)
    assert [(await ask(app, body)).headers["x-cache"] for _ in range(2)] == ["bypass", "bypass"]
    assert [(await ask(app, {**body, "seed": 5})).headers["x-cache"] for _ in range(2)] == ["miss", "hit"]
    every = CacheMiddleware(model, calls="all")
    assert [(await ask(every, body)).headers["x-cache"] for _ in range(2)] == ["miss", "hit"]
    assert [(await ask(every, {**body, "store": True})).headers["x-cache"] for _ in range(2)] == ["bypass", "bypass"]


async def test_the_caller_has_a_say() -> None:
    """``cache-control``, as RFC 9111 has it."""
    now = [1000.0]
    model = Counting()
    app = CacheMiddleware(model, clock=lambda: now[0], ttl=100)

    async def with_(control: bytes) -> str:
        answer = await put(app, headers=((b"cache-control", control),))
        return answer.headers.get("x-cache") or str(answer.error["code"])

    assert await with_(b"only-if-cached") == "not_cached"
    assert await with_(b"no-store") == "bypass"
    assert await with_(b"only-if-cached") == "not_cached"
    assert await with_(b"no-cache") == "miss"
    now[0] += 10
    assert [await with_(b"max-age=10"), await with_(b"max-age=9")] == ["hit", "miss"]
    assert await with_(b"no-cache, only-if-cached") == "hit"
    assert await with_(b"no-store, only-if-cached") == "not_cached"
    assert await with_(b"max-age=0") == "miss"
    now[0] += 99
    assert await with_(b"only-if-cached") == "hit"
    now[0] += 1
    assert await with_(b"only-if-cached") == "not_cached"
    refused = await put(app, headers=((b"cache-control", b"only-if-cached"),))
    assert (refused.status, refused.error["param"]) == (504, "cache-control")


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Counting(status=500), "an error"),
        (Counting(status=201), "no plain success"),
        (Counting(finish="length"), "cut at a limit that the request did not name"),
        (Counting(finish="content_filter"), "filtered"),
        (Counting(headers=[(b"cache-control", b"private, max-age=60")]), "said to be one caller's"),
        (Counting(headers=[(b"Cache-Control", b"No-Store")]), "said not to be kept"),
        (Counting(headers=[(b"set-cookie", b"a=b")]), "a cookie"),
        (Counting(headers=[(b"vary", b"x-mood")]), "another for other headers"),
        (Counting(headers=[(b"content-encoding", b"br")]), "in a form that others may not read"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_no_answer_for_others_is_not_kept(model: Counting, why: str, stream: bool) -> None:
    """Errors, halves, and what the app says is private."""
    model.scopes.clear()
    app = CacheMiddleware(model)
    answers = [await put(app, stream=stream) for _ in range(2)]
    assert [one.headers["x-cache"] for one in answers] == ["miss", "miss"], why
    assert model.calls == 2


async def test_a_limit_that_the_request_names_is_its_own() -> None:
    """An answer that ends there is the whole answer."""
    app = CacheMiddleware(Counting(finish="length"))
    assert [(await put(app, max_tokens=5)).headers["x-cache"] for _ in range(2)] == ["miss", "hit"]


async def test_headers_of_one_call_are_not_told_with_anothers_answer() -> None:
    """Ids, costs, limits and times stay with the call that they are of; the answer's own go with it."""
    own = [(b"x-request-id", b"r1"), (b"openai-processing-ms", b"5"), (b"date", b"now"), (b"x-llm-cost-usd", b"9.0"),
           (b"x-ratelimit-remaining-requests", b"1"), (b"openai-model", b"m-1")]  # fmt: skip
    app = TracingMiddleware(CacheMiddleware(Counting(headers=own)), traces=TraceLog())
    first = await put(app)
    again = await put(app)
    assert first.headers["openai-processing-ms"] == "5"
    assert set(again.headers) == {
        "content-type", "openai-model", "age", "x-llm-cost-usd", "content-length", "x-request-id", "x-trace-id", "x-cache",
    }  # fmt: skip
    assert again.headers["x-request-id"] not in ("r1", first.headers["x-request-id"])
    assert again.headers["x-llm-cost-usd"] == "0.0"


async def test_the_trace_tells_what_was_done() -> None:
    """A hit used nothing; the record says that it was one."""
    log = TraceLog()
    app = TracingMiddleware(CacheMiddleware(Counting()), traces=log)
    await put(app)
    await put(app)
    await ask(app, {"model": "m", "messages": [{"role": "user", "content": "x"}]})
    bypass, hit, miss = log.recent(3)
    assert [one.cache for one in (miss, hit, bypass)] == ["miss", "hit", "bypass"]
    assert (hit.cost, hit.aborted, hit.status, hit.usage and hit.usage.total) == (0, False, 200, 0)
    assert miss.usage is not None
    assert (miss.usage.total, miss.saved) == (30, None)


async def test_the_app_is_asked_for_an_answer_that_can_be_read() -> None:
    """Not compressed, and not as a file."""
    model = Counting()
    app = CacheMiddleware(model)
    body, headers = asking("chat"), (JSON, (b"Accept-Encoding", b"gzip"), (b"x-other", b"1"))
    await ask(app, body, headers=headers, extensions={"http.response.pathsend": {}, "tls": {}})
    assert model.scopes[0]["headers"] == [JSON, (b"x-other", b"1")]
    assert model.scopes[0]["extensions"] == {"tls": {}}


async def test_other_paths_and_methods_pass_untouched() -> None:
    """What costs nothing or is not text is none of its business."""
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": [JSON]})
        await send({"type": "http.response.body", "body": b"{}"})

    cached = CacheMiddleware(app)
    for _ in range(2):
        assert "x-cache" not in (await get(cached, "/v1/models")).headers
        assert "x-cache" not in (await ask(cached, {"input": "x"}, "/v1/moderations")).headers
        assert "x-cache" not in (await ask(cached, {}, "/elsewhere")).headers
    assert len(seen) == 6


async def test_it_is_bounded_by_bytes() -> None:
    """Of one answer, and of all."""
    app = CacheMiddleware(Counting(length=3000), max_answer=2000)
    assert [(await put(app)).headers["x-cache"] for _ in range(2)] == ["miss", "miss"]
    assert [(await put(app, stream=True)).headers["x-cache"] for _ in range(2)] == ["miss", "miss"]
    app = CacheMiddleware(Counting(length=3000), max_bytes=9000)
    for text in "abc":
        await put(app, text=text)
    assert [(await put(app, text=text)).headers["x-cache"] for text in "cba"] == ["hit", "hit", "miss"]


async def test_what_a_layer_further_out_changed_counts() -> None:
    """A policy that gives another model gives another answer."""
    model = Counting()

    def decide(shown: dict[str, Any]) -> Any:
        return {"allow": True, "obligations": {"set": {"top_p": 0.5}} if shown["model"] == "m" else {}}

    app = PolicyMiddleware(CacheMiddleware(model), decide=decide)
    await put(app)
    plain = CacheMiddleware(model)
    await put(plain)
    assert [one.get("top_p") for one in model.asked] == [0.5, None]
    assert [(await put(app, top_p=p)).headers["x-cache"] for p in (0.5, 0.7)] == ["hit", "hit"]
    assert json.loads((await put(app)).body)["id"] == "c1"


@pytest.mark.parametrize(
    "wrong",
    [
        {"calls": "some"}, {"ttl": 0}, {"max_bytes": -1}, {"max_answer": 0}, {"shared": "a,b"}, {"ignore": ["model"]},
        {"headers": "x"}, {"redis_patience": 0},
    ],
)  # fmt: skip
def test_an_argument_that_cannot_be_meant_is_refused(wrong: dict[str, Any]) -> None:
    """When the stack is built."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CacheMiddleware(Counting(), **wrong)


async def test_the_settings_are_taken_where_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """``CacheMiddleware(app)`` alone works."""
    monkeypatch.setenv("CACHE_CALLS", "all")
    monkeypatch.setenv("CACHE_IGNORE_FIELDS", "user, metadata")
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    app = CacheMiddleware(Counting())
    assert [(await ask(app, {**body, "user": user})).headers["x-cache"] for user in "ab"] == ["miss", "hit"]
    monkeypatch.setenv("CACHE_IGNORE_FIELDS", "model")
    from asgi_llm_gateway import settings

    settings.forget()
    refused = await ask(CacheMiddleware(Counting()), body)
    assert (refused.status, refused.error["code"]) == (503, "misconfigured")


async def test_twice_in_a_stack_is_once() -> None:
    """An equal layer further in passes the call on."""
    model = Counting()
    app = CacheMiddleware(CacheMiddleware(model))
    assert [(await put(app)).headers["x-cache"] for _ in range(2)] == ["miss", "hit"]
    assert model.calls == 1

"""One call, shared by the whole stack: read once, amended, guarded, watched, ended once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_llm_gateway._asgi import Message, Receive, Scope, Send
from asgi_llm_gateway.calls import Call
from asgi_llm_gateway.errors import BadRequest, BudgetError, GatewayError, TooLarge
from asgi_llm_gateway.exchange import KEY, ClientGone, Exchange, exchange_of
from asgi_llm_gateway.records import Target, Usage
from asgi_llm_gateway.wire import METERED, Route

from .conversation import CHAT, JSON, scope_of

ROUTE = Route("metered", METERED["/v1/chat/completions"], "/v1/chat/completions")
TARGET = Target("echo", "echo")
RAW = json.dumps(CHAT).encode()


async def nobody(scope: Scope, receive: Receive, send: Send) -> None:
    """An entry that is never called."""
    raise AssertionError("called")


class Line:
    """A client's side: gives the body in pieces, then the disconnect; counts how often it was asked."""

    def __init__(self, pieces: Iterable[bytes], *, gone_after: int | None = None) -> None:
        self.pieces = list(pieces)
        self.asked = 0
        self._gone_after = gone_after

    async def receive(self) -> Message:
        """See ASGI."""
        self.asked += 1
        if (self._gone_after is not None and self.asked > self._gone_after) or self.asked > len(self.pieces):
            return {"type": "http.disconnect"}
        return {
            "type": "http.request",
            "body": self.pieces[self.asked - 1],
            "more_body": self.asked < len(self.pieces),
        }


def exchange_for(route: Route = ROUTE, *, max_body: int = 2**20) -> Exchange:
    """An exchange on its own."""
    return Exchange(nobody, route, scope_of(), max_body=max_body)


async def read(
    body: bytes = RAW, *, cut: int = 0, headers: Any = (JSON,), max_body: int = 2**20
) -> tuple[Exchange, Receive]:
    """An exchange whose body was read, and the ``receive`` for those further in."""
    exchange = exchange_for(max_body=max_body)
    pieces = [body[at : at + cut] for at in range(0, len(body), cut)] if cut else [body]
    return exchange, await exchange.read(Line(pieces or [b""]).receive, scope_of(headers=headers))


class Sent:
    """What went out to the client."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def send(self, message: Message) -> None:
        """See ASGI."""
        self.messages.append(message)


# -- reading -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, len(RAW)), max_size=10), st.text(max_size=20))
def test_the_body_is_replayed_whole_under_any_chunking(cuts: list[int], text: str) -> None:
    """However it came, whoever reads further in gets it once, whole and unchanged; then the truth."""
    body = json.dumps({**CHAT, "user": text}).encode()
    at = sorted(min(cut, len(body)) for cut in cuts)
    line = Line(body[start:end] for start, end in zip([0, *at], [*at, len(body)], strict=True))

    async def run() -> None:
        exchange = exchange_for()
        receive = await exchange.read(line.receive, scope_of(headers=[JSON]))
        assert exchange.request is not None
        assert exchange.request.raw == body
        assert await receive() == {"type": "http.request", "body": body, "more_body": False}
        assert (await receive())["type"] == "http.disconnect"

    asyncio.run(run())


async def test_the_body_is_read_once_however_many_ask() -> None:
    """The second asker gets its own ``receive`` back, and the client is not asked again."""
    exchange = exchange_for()
    line = Line([RAW[:10], RAW[10:]])
    first = await exchange.read(line.receive, scope_of(headers=[JSON]))
    request = exchange.request
    assert await exchange.read(first, scope_of(headers=[JSON])) == first
    assert exchange.request is request
    assert line.asked == 2


async def test_a_path_whose_body_is_not_read_keeps_its_receive() -> None:
    """The user's own paths and authenticated ones stream through."""
    exchange = exchange_for(Route("metered", None, "/ask"))
    line = Line([b"not json"])
    assert await exchange.read(line.receive, scope_of()) == line.receive
    assert line.asked == 0
    assert exchange.request is None


async def test_the_truth_is_the_servers_own_receive() -> None:
    """Who waits for the hang-up asks the server, and gets no body replayed later."""
    exchange = exchange_for()
    line = Line([RAW])
    receive = await exchange.read(line.receive, scope_of(headers=[JSON]))
    assert exchange.truth(receive) == line.receive
    assert (await receive())["type"] == "http.disconnect"

    async def foreign() -> Message:
        return {"type": "http.disconnect"}

    assert exchange.truth(foreign) is foreign  # one that stands before ours is asked itself


@pytest.mark.parametrize("gone_after", [0, 1])
async def test_a_client_that_leaves_while_its_body_is_read_is_gone(gone_after: int) -> None:
    """There is nobody to answer."""
    exchange = exchange_for()
    with pytest.raises(ClientGone):
        await exchange.read(Line([RAW[:5], RAW[5:]], gone_after=gone_after).receive, scope_of(headers=[JSON]))
    assert exchange.request is None


# -- what is refused before or while it is read ------------------------------------------------------------------------


@pytest.mark.parametrize("length", [b"100001", b"9999999999999999999"])
async def test_a_body_announced_as_too_long_is_refused_unread(length: bytes) -> None:
    """413 by the header alone."""
    exchange = exchange_for(max_body=100_000)
    line = Line([RAW])
    with pytest.raises(TooLarge, match="100000 bytes"):
        await exchange.read(line.receive, scope_of(headers=[JSON, (b"content-length", length)]))
    assert line.asked == 0


@pytest.mark.parametrize("headers", [[JSON], [JSON, (b"content-length", b"10")], [JSON, (b"Content-Length", b"junk")]])
async def test_a_body_that_is_too_long_is_refused_before_it_is_read_whole(headers: Any) -> None:
    """Also where content-length lies, is senseless or missing: no more is read than the limit and one piece."""
    exchange = exchange_for(max_body=5000)
    line = Line([b"x" * 1000] * 1000)
    with pytest.raises(TooLarge):
        await exchange.read(line.receive, scope_of(headers=headers))
    assert line.asked == 6


@pytest.mark.parametrize("cut", [0, 7])
async def test_a_body_of_just_the_limit_is_read(cut: int) -> None:
    """The limit is inclusive; one byte more is too long."""
    exchange, _ = await read(RAW, cut=cut, max_body=len(RAW))
    assert exchange.request is not None
    with pytest.raises(TooLarge):
        await read(RAW, cut=cut, max_body=len(RAW) - 1)


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ((b"content-type", b"text/plain"), "unsupported_media_type"),
        ((b"content-type", b"multipart/form-data; boundary=x"), "unsupported_media_type"),
        ((b"Content-Type", b"application/xml"), "unsupported_media_type"),
        ((b"content-type", b""), "unsupported_media_type"),
        ((b"content-encoding", b"gzip"), "unsupported_content_encoding"),
        ((b"Content-Encoding", b"br, gzip"), "unsupported_content_encoding"),
    ],
)
async def test_a_type_or_encoding_that_cannot_be_read_is_refused_unread(header: tuple[bytes, bytes], code: str) -> None:
    """415, saying what to send."""
    line = Line([RAW])
    with pytest.raises(BadRequest) as caught:
        await exchange_for().read(line.receive, scope_of(headers=[header]))
    assert (caught.value.http_status, caught.value.error_code) == (415, code)
    assert line.asked == 0


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"content-type", b"application/json; charset=utf-8")],
        [(b"CONTENT-TYPE", b"Application/JSON")],
        [(b"content-type", b"application/vnd.api+json")],
        [JSON, (b"content-encoding", b"identity")],
    ],
)
async def test_json_by_any_of_its_names_is_read(headers: Any) -> None:
    """A missing type is taken for JSON, as the SDKs' own tools send it."""
    exchange, _ = await read(headers=headers)
    assert exchange.request is not None


# -- amending ----------------------------------------------------------------------------------------------------------


async def test_an_amended_body_is_what_those_further_in_read() -> None:
    """``amend`` after ``read`` still counts: the body is written when it is asked for."""
    exchange, receive = await read()
    exchange.amend(max_tokens=5)
    exchange.amend(max_tokens=6, model="other")
    message = await receive()
    assert json.loads(message["body"]) == {**CHAT, "max_tokens": 6, "model": "other"}
    assert exchange.amended


async def test_an_unamended_body_stays_byte_for_byte() -> None:
    """Nothing is written anew without need."""
    raw = b'{"model":"m" ,  "messages":[{"role":"user","content":"\\u00e9"}]} '
    exchange, receive = await read(raw)
    assert (await receive())["body"] == raw
    assert not exchange.amended


async def test_the_gateways_own_field_is_always_taken_out() -> None:
    """``tenant`` never reaches the one that answers, ``null`` neither."""
    for tenant in ("a", None):
        exchange, receive = await read(json.dumps({**CHAT, "tenant": tenant}).encode())
        assert json.loads((await receive())["body"]) == CHAT
        assert exchange.request is not None
        assert exchange.request.tenant == tenant


async def test_a_sealed_scope_has_the_amended_bodys_length() -> None:
    """One content-length, no chunked; the scope that was given is left as it was."""
    exchange, _ = await read()
    exchange.amend(max_tokens=123456)
    scope = scope_of(
        headers=[JSON, (b"Content-Length", b"3"), (b"transfer-encoding", b"chunked"), (b"x", b"1"), (b"x", b"2")]
    )
    before = list(scope["headers"])
    sealed = exchange.sealed(scope)
    assert sealed["headers"] == [JSON, (b"x", b"1"), (b"x", b"2"), (b"content-length", b"%d" % len(exchange.body))]
    assert scope["headers"] == before
    assert sealed is not scope


# -- calls and guards --------------------------------------------------------------------------------------------------


class Watchman:
    """A guard that notes who came, and says no to some."""

    def __init__(self, refuse: str = "") -> None:
        self.seen: list[str] = []
        self._refuse = refuse

    async def begin(self, call: Call) -> None:
        """See Guard."""
        self.seen.append(call.target.model)
        await asyncio.sleep(0)
        if call.target.model == self._refuse:
            raise BudgetError("no money")


async def test_every_guard_is_asked_before_a_call_goes_out() -> None:
    """In the order in which they came; the call is then among the exchange's."""
    exchange = exchange_for()
    one, two = Watchman(), Watchman()
    exchange.guard(one)
    exchange.guard(two)
    first = await exchange.begin_call(TARGET)
    second = await exchange.begin_call(Target("echo", "other"))
    assert one.seen == two.seen == ["echo", "other"]
    assert exchange.calls == [first, second]


async def test_a_refused_call_is_no_call() -> None:
    """The guard's error is raised, later guards are not asked, and nothing is counted."""
    exchange = exchange_for()
    one, two = Watchman(refuse="dear"), Watchman()
    exchange.guard(one)
    exchange.guard(two)
    kept = await exchange.begin_call(TARGET)
    with pytest.raises(GatewayError, match="no money"):
        await exchange.begin_call(Target("echo", "dear"))
    assert exchange.calls == [kept]
    assert two.seen == ["echo"]


async def test_a_call_that_begins_is_seen_by_one_that_begins_beside_it() -> None:
    """A hedge must not be held as if it were alone."""
    exchange = exchange_for()
    together: list[int] = []

    class Counter:
        async def begin(self, call: Call) -> None:
            await asyncio.sleep(0)
            together.append(len(exchange.calls))

    exchange.guard(Counter())
    await asyncio.gather(exchange.begin_call(TARGET), exchange.begin_call(TARGET))
    assert together == [2, 2]


async def test_a_call_ends_once() -> None:
    """The first word on its usage stands; unknown stays unknown."""
    call = Call(TARGET, None)
    call.end(None)
    call.end(Usage(1, 2))
    assert call.ended
    assert call.usage is None


# -- the answer --------------------------------------------------------------------------------------------------------


async def test_layers_headers_stand_on_the_answer() -> None:
    """The entry adds them to the start; the message that was given is left as it was."""
    exchange, sent = exchange_for(), Sent()
    send = exchange.wrap(sent.send)
    exchange.headers.append((b"x-a", b"1"))
    start = {"type": "http.response.start", "status": 201}
    await send(start)
    await send({"type": "http.response.body", "body": b"", "more_body": True})
    assert exchange.first_byte_at is None
    await send({"type": "http.response.body", "body": b"x"})
    assert sent.messages[0]["headers"] == [(b"x-a", b"1")]
    assert "headers" not in start
    assert exchange.status == 201
    assert exchange.response_started
    assert exchange.first_byte_at is not None


async def test_unknown_messages_go_through() -> None:
    """Trailers and extensions are forwarded as they are."""
    exchange, sent = exchange_for(), Sent()
    send = exchange.watch(exchange.wrap(sent.send))
    strange = {"type": "http.response.debug", "info": {}}
    await send(strange)
    assert sent.messages == [strange]


async def test_a_strangers_json_answer_is_watched() -> None:
    """Its usage is read from the bytes, and every message goes on unchanged."""
    exchange, sent = exchange_for(), Sent()
    send = exchange.watch(exchange.wrap(sent.send))
    body = json.dumps({"usage": {"prompt_tokens": 3, "completion_tokens": 4}}).encode()
    messages = [
        {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]},
        {"type": "http.response.body", "body": body[:9], "more_body": True},
        {"type": "http.response.body", "body": body[9:]},
    ]
    for message in messages:
        await send(message)
    assert exchange.usage == Usage(3, 4)
    assert sent.messages == messages


async def test_a_strangers_event_stream_is_watched() -> None:
    """Each event goes out when it came in; the last counts reported stand."""
    exchange, sent = exchange_for(), Sent()
    send = exchange.watch(exchange.wrap(sent.send))
    events = [
        b'data: {"choices":[]}\n\n',
        b'data: {"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n',
        b"data: [DONE]\n\n",
    ]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"Content-Type", b"text/event-stream")]})
    for at, event in enumerate(events):
        await send({"type": "http.response.body", "body": event, "more_body": True})
        assert sent.messages[-1]["body"] == event, at
        assert exchange.ended == (at > 0), "the last news end it"
    await send({"type": "http.response.body", "body": b""})
    assert exchange.usage == Usage(3, 4)


@pytest.mark.parametrize("status", [400, 404, 500])
async def test_an_error_answer_is_not_read_for_usage(status: int) -> None:
    """Whatever an error's body says, nothing was used."""
    exchange, sent = exchange_for(), Sent()
    send = exchange.watch(exchange.wrap(sent.send))
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b'{"usage":{"prompt_tokens":3,"completion_tokens":4}}'})
    assert exchange.usage is None
    assert exchange.ended


async def test_usage_is_watched_once() -> None:
    """The second watcher gets its ``send`` back."""
    exchange, sent = exchange_for(), Sent()
    watched = exchange.watch(sent.send)
    assert watched != sent.send
    assert exchange.watch(watched) is watched


@pytest.mark.parametrize("itself", [True, False])
async def test_the_watcher_is_silent_where_somebody_knows_better(itself: bool) -> None:
    """``exact``: a handler sets the usage itself; ``ends_itself``: ProxyApp sees to the end, too."""
    exchange, sent = exchange_for(), Sent()
    send = exchange.watch(sent.send)
    exchange.exact = True
    exchange.ends_itself = itself
    exchange.usage = Usage(1, 1)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b'{"usage":{"prompt_tokens":3,"completion_tokens":4}}'})
    assert exchange.usage == Usage(1, 1)
    assert exchange.reader is None
    assert exchange.ended != itself


async def test_work_at_the_end_is_done_innermost_first_and_once() -> None:
    """Before the last message goes out, and never again."""
    exchange, sent = exchange_for(), Sent()
    done: list[str] = []

    def note(name: str) -> Any:
        async def work() -> None:
            assert sent.messages[-1]["type"] == "http.response.start"
            done.append(name)

        return work

    exchange.at_end(note("outer"))
    exchange.at_end(note("inner"))
    send = exchange.watch(exchange.wrap(sent.send))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})
    assert done == ["inner", "outer"]
    await exchange.end()
    assert done == ["inner", "outer"]
    assert exchange.ended


async def test_an_exchange_is_found_in_its_scope_only() -> None:
    """Under a private key that no client can set."""
    exchange = exchange_for()
    assert exchange_of({KEY: exchange}) is exchange
    assert exchange_of({}) is None
    assert exchange_of({KEY: "forged"}) is None


async def test_an_exchange_that_was_guarded_makes_no_call_after_its_end() -> None:
    """A task that outlives the call finds no way round; an unguarded one was never asked for leave."""
    exchange = exchange_for()
    exchange.guard(Watchman())
    exchange.close()
    with pytest.raises(GatewayError, match="is over"):
        await exchange.begin_call(TARGET)
    assert exchange.calls == []
    free = exchange_for()
    free.close()
    await free.begin_call(TARGET)

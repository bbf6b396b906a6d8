"""Each thing that a provider does wrong: what the client is told, what was tried, what it costs and what the trace says."""

from __future__ import annotations

import asyncio
import email.utils
import json
import time
from typing import Any, NamedTuple

import pytest

from asgi_llm_gateway.proxy import failures
from asgi_llm_gateway.proxy.routing import Model
from asgi_llm_gateway.proxy.transfer import Timeouts
from asgi_llm_gateway.settings import forget

from ..conversation import Answer
from ..upstream import (
    ANSWER,
    DONE,
    HOST,
    LAST_CHUNK,
    STREAM_HEAD,
    Peer,
    Script,
    always,
    chunk,
    event,
    head,
    once,
    silent,
    streaming,
    then_stall,
    until,
    usage_event,
    whole,
    word,
)
from .house import ASKED, COST, NOBODY, PATIENT, QUICK, SECRET, STREAMED, House, guessed, house

LEAK = f"no route to http://{HOST}:8000/v1 with key {SECRET} at llm.prod.internal"
GOOD = [word("good", "stop"), usage_event(), DONE]
BOTH = Model(["a/x", "b/x"])


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry waits a millisecond."""
    monkeypatch.setattr(failures, "BACKOFF", 0.001)


async def answering(peer: Peer) -> None:
    """A provider that works: JSON or a stream, as it is asked."""
    while True:
        asked = (await peer.request()).json()
        if asked.get("stream"):
            await peer.send(STREAM_HEAD, *(chunk(one) for one in GOOD), LAST_CHUNK)
        else:
            await peer.send(whole())


def error(kind: str, **more: Any) -> bytes:
    """A provider's error, with words in it that must not leave the house."""
    return json.dumps({"error": {"message": LEAK, "type": kind, **more}}).encode()


class Fault(NamedTuple):
    """What a provider does, and what becomes of it.

    Attributes:
        script: The provider's.
        status: The client's, where no other provider is there.
        code: Of the error.
        told: The provider's own status, in the trace.
        again: It is asked once more.
        free: It is certain that nothing was used.
        elsewhere: Another provider is asked.
    """

    script: Script | None
    status: int
    code: str
    told: int | None = None
    again: bool = True
    free: bool = False
    elsewhere: bool = True

    @property
    def timeouts(self) -> Timeouts:
        """Short ones, where it is they that end the attempt."""
        return QUICK if self.code == "upstream_timeout" else PATIENT


def first(kind: str, **more: Any) -> Script:
    """An error as the first event of a stream whose status is 200."""
    return once(STREAM_HEAD, chunk(b"data: " + error(kind, **more) + b"\n\n"), LAST_CHUNK)


ANY: dict[str, Fault] = {
    "refuses": Fault(NOBODY, 502, "upstream_unreachable", free=True),
    "hangs before the head": Fault(silent, 504, "upstream_timeout", again=False),
    "hangs in a JSON body": Fault(then_stall(whole()[:-9]), 504, "upstream_timeout", 200, again=False),
    "cuts before the head": Fault(once(), 502, "upstream_cut"),
    "cuts in the head": Fault(once(STREAM_HEAD[:20]), 502, "upstream_cut"),
    "cuts a JSON body": Fault(once(whole()[:-9]), 502, "upstream_cut", 200),
    "half a JSON body": Fault(once(whole(json.dumps(ANSWER).encode()[:40])), 502, "upstream_error", 200),
    "a length too small": Fault(
        once(head(200, ("Content-Type", "application/json"), ("Content-Length", "30")) + json.dumps(ANSWER).encode()),
        502, "upstream_protocol", 200,
    ),
    "a length that is none": Fault(
        once(head(200, ("Content-Type", "application/json"), ("Content-Length", "many")) + b"{}"), 502, "upstream_protocol",
    ),
    "HTML": Fault(once(whole(b"<html>hello</html>", kind="text/html")), 502, "upstream_error", 200),
    "an array": Fault(once(whole(b"[]")), 502, "upstream_error", 200),
    "no body": Fault(once(whole(b"")), 502, "upstream_error", 200),
    "no HTTP": Fault(once(b"220 smtp.example.com ESMTP\r\n"), 502, "upstream_protocol"),
    "500": Fault(once(whole(error("server_error"), 500)), 502, "upstream_error", 500, free=True),
    "500 in HTML": Fault(once(whole(b"<html>nginx</html>", 500, kind="text/html")), 502, "upstream_error", 500, free=True),
    "503": Fault(once(whole(error("x"), 503)), 503, "upstream_unavailable", 503, free=True),
    "529": Fault(once(whole(error("overloaded_error"), 529)), 503, "upstream_unavailable", 529, free=True),
    "429": Fault(once(whole(error("rate_limit_error"), 429)), 429, "upstream_rate_limited", 429, free=True),
    "429 that says no": Fault(
        once(whole(error("x"), 429, headers=[("x-should-retry", "false")])), 429, "upstream_rate_limited", 429,
        again=False, free=True,
    ),
    "429 of an account": Fault(
        once(whole(error("insufficient_quota", code="insufficient_quota"), 429)), 502, "upstream_account", 429,
        again=False, free=True,
    ),
    "401": Fault(once(whole(error("x"), 401)), 502, "upstream_auth", 401, again=False, free=True),
    "404": Fault(once(whole(error("x"), 404)), 404, "upstream_refused", 404, again=False, free=True),
    "400": Fault(once(whole(error("x"), 400)), 400, "upstream_refused", 400, again=False, free=True, elsewhere=False),
    "413": Fault(once(whole(error("x"), 413)), 413, "upstream_refused", 413, again=False, free=True, elsewhere=False),
    "a redirect": Fault(once(whole(b"", 302, headers=[("Location", "/v1")])), 502, "upstream_error", 302, free=True),
    "an error in a 200": Fault(once(whole(error("x"))), 502, "upstream_error", 200, free=True),
    "a 429 in a 200": Fault(once(whole(error("x", code=429))), 429, "upstream_rate_limited", 200, free=True),
}  # fmt: skip
OF_STREAMS: dict[str, Fault] = {
    "hangs after the head": Fault(then_stall(STREAM_HEAD), 504, "upstream_timeout", 200, again=False),
    "only comments, and hangs": Fault(then_stall(STREAM_HEAD, chunk(b": ping\n\n")), 504, "upstream_timeout", 200, again=False),
    "half an event, and hangs": Fault(then_stall(STREAM_HEAD, chunk(b"data: {")), 504, "upstream_timeout", 200, again=False),
    "cuts after the head": Fault(once(STREAM_HEAD), 502, "upstream_cut", 200),
    "cuts in the first event": Fault(once(STREAM_HEAD, chunk(word("a")[:-3])), 502, "upstream_cut", 200),
    "ends without an event": Fault(once(STREAM_HEAD, LAST_CHUNK), 502, "upstream_cut", 200),
    "ends after a comment": Fault(once(STREAM_HEAD, chunk(b": hi\n\n"), LAST_CHUNK), 502, "upstream_cut", 200),
    "ends in the first event": Fault(once(STREAM_HEAD, chunk(word("a")[:-3]), LAST_CHUNK), 502, "upstream_cut", 200),
    "begins with an error": Fault(first("server_error"), 502, "upstream_error", 200, free=True),
    "begins with 429": Fault(first("x", code=429), 429, "upstream_rate_limited", 200, free=True),
    "begins with overloaded": Fault(first("overloaded_error"), 503, "upstream_unavailable", 200, free=True),
    "begins with 400": Fault(
        first("invalid_request_error"), 400, "upstream_refused", 200, again=False, free=True, elsewhere=False
    ),
}  # fmt: skip
MATRIX = [(name, fault, stream) for name, fault in ANY.items() for stream in (False, True)]
MATRIX += [(name, fault, True) for name, fault in OF_STREAMS.items()]
CASES = pytest.mark.parametrize(
    ("fault", "stream"),
    [pytest.param(fault, stream, id=f"{name}, {'stream' if stream else 'json'}") for name, fault, stream in MATRIX],
)


def without_secrets(answer: Answer, at: House) -> None:
    """Nothing that the client gets names the key or the place."""
    shown = answer.body.decode("utf-8", "replace") + repr(answer.headers)
    for secret in (SECRET, HOST, "internal", "Traceback", *(str(server.port) for server in at.servers.values())):
        assert secret not in shown


@CASES
async def test_a_provider_that_fails_is_asked_once_more_where_that_may_help(fault: Fault, stream: bool) -> None:
    """And what it said last is the answer, with the money and the trace of all attempts."""
    async with house(fault.script, retries=1, timeouts=fault.timeouts) as at:
        answer = await at.ask(STREAMED if stream else ASKED)
        without_secrets(answer, at)
        tries = 2 if fault.again else 1
        assert (answer.status, answer.error["code"]) == (fault.status, fault.code)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers.get("x-llm-attempts") == ("2" if fault.again else None)
        assert at.attempts == [("a", fault.told, fault.code)] * tries
        assert (at.trace.error, at.trace.status) == (fault.code, fault.status)
        assert await at.settled() == (0 if fault.free else guessed(STREAMED if stream else ASKED) * tries)
        if fault.script is not NOBODY:
            assert at.servers["a"].connections == tries
            await until(lambda: at.servers["a"].open == 0)


@CASES
async def test_another_provider_answers_in_its_place_where_that_may_help(fault: Fault, stream: bool) -> None:
    """One answer, from the beginning; the failed attempt is paid for if it may have used something."""
    async with house(fault.script, answering, model=BOTH, timeouts=fault.timeouts) as at:
        answer = await at.ask(STREAMED if stream else ASKED)
        cost = 0 if fault.free else guessed(STREAMED if stream else ASKED)
        if not fault.elsewhere:
            assert (answer.status, at.asked("b")) == (fault.status, 0)
            assert await at.settled() == cost
            return
        assert (answer.status, answer.complete, at.asked("b")) == (200, True, 1)
        assert (answer.headers["x-llm-provider"], answer.headers["x-llm-attempts"]) == ("b", "2")
        if stream:
            assert answer.body == GOOD[0] + DONE
        else:
            assert answer.json() == ANSWER
            assert float(answer.headers["x-llm-cost-usd"]) * 1e9 == pytest.approx(cost + 10 * COST)
        assert at.attempts == [("a", fault.told, fault.code), ("b", 200, None)]
        assert (at.trace.error, at.trace.status, at.trace.provider) == (None, 200, "b")
        assert await at.settled() == cost + 10 * COST


# -- after the first byte ----------------------------------------------------------------------------------------------

LATE: dict[str, tuple[tuple[bytes, ...], str, int | None]] = {
    "cut": ((), "upstream_cut", None),
    "cut in an event": ((chunk(word("b")[:-4]),), "upstream_cut", None),
    "ended without an end": ((LAST_CHUNK,), "upstream_cut", None),
    "stalled": ((), "upstream_timeout", None),
    "broken framing": ((b"zz\r\n",), "upstream_protocol", None),
    "an error": ((chunk(b"data: " + error("x") + b"\n\n"),), "upstream_error", None),
    "an error and a [DONE]": (
        (chunk(b"data: " + error("x") + b"\n\n"), chunk(DONE), LAST_CHUNK),
        "upstream_error",
        None,
    ),
    "cut after its usage": ((chunk(usage_event()),), "upstream_cut", COST),
}
"""What comes after a first event; the error that the client is told; nano-USD, where they are known."""


@pytest.mark.parametrize("fault", LATE)
async def test_a_stream_that_has_begun_is_never_begun_anew(fault: str) -> None:
    """What came is kept, one error event follows, no [DONE] is made up, and no other provider is asked."""
    pieces, code, cost = LATE[fault]
    relayed = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM_HEAD, chunk(word("a")))
        await relayed.wait()
        await peer.send(*pieces)
        if fault == "stalled":
            await peer.stall()

    timeouts = QUICK if fault == "stalled" else PATIENT
    async with house(script, answering, model=BOTH, retries=2, timeouts=timeouts) as at, at.call(STREAMED) as talk:
        await talk.next()
        assert (await talk.next())["body"] == word("a")
        relayed.set()
        answer = await talk.answer()
        without_secrets(answer, at)
        assert (answer.status, at.asked("b"), at.servers["a"].connections) == (200, 0, 1)
        assert answer.body.startswith(word("a"))
        assert "[DONE]" not in answer.events
        (last,) = answer.events[1:]
        assert json.loads(last)["error"]["code"] == code
        assert (at.trace.error, at.trace.status) == (code, 200)
        assert answer.headers["x-llm-provider"] == "a"
        settled = await at.settled()
        assert settled == cost if cost is not None else settled > guessed(STREAMED)
        assert (await at.records())[0].usage.estimated is (cost is None)


async def test_fields_that_nobody_knows_go_up_and_come_down() -> None:
    """Of the request, the answer and the stream, also on the way to a second provider."""
    strange = {**ANSWER, "new_field": {"deep": [1, None, 2.50]}}
    odd = event({"choices": [{"index": 0, "delta": {"content": "a", "mood": "?"}, "finish_reason": "stop"}], "odd": 1})
    async with house(once(whole(error("x"), 500)), always(whole(strange)), model=BOTH) as at:
        answer = await at.ask({**ASKED, "brand_new": {"a": 1.50}})
        assert answer.json() == strange
        assert at.servers["b"].requests[0].json() == {**ASKED, "brand_new": {"a": 1.50}, "model": "x"}
    async with house(streaming(odd, usage_event(), DONE)) as at:
        assert (await at.ask(STREAMED)).body == odd + DONE


# -- when to come again ------------------------------------------------------------------------------------------------


def at_date(seconds: float) -> str:
    """An HTTP date so many seconds from now."""
    return email.utils.formatdate(time.time() + seconds, usegmt=True)


WISHES: dict[str, tuple[list[tuple[str, str]], bool]] = {
    "none": ([], True),
    "0": ([("Retry-After", "0")], True),
    "-1": ([("Retry-After", "-1")], True),
    "garbage": ([("Retry-After", "soon")], True),
    "nan": ([("Retry-After", "nan")], True),
    "ms": ([("Retry-After-Ms", "40")], True),
    "seconds": ([("Retry-After", "0.04")], True),
    "garbage in ms": ([("Retry-After-Ms", "?"), ("Retry-After", "0.04")], True),
    "a date that is past": ([("Retry-After", at_date(-1000))], True),
    "too many seconds": ([("Retry-After", "30")], False),
    "too many ms": ([("Retry-After-Ms", "30000")], False),
    "a far date": ([("Retry-After", at_date(1000))], False),
    "1e9": ([("Retry-After", "1000000000")], False),
}


@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("status", [429, 503])
async def test_a_retry_waits_as_long_as_the_provider_wishes(
    wish: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If that is no longer than GATEWAY_MAX_RETRY_WAIT_SECONDS; else its refusal is the answer, with its wish."""
    monkeypatch.setenv("GATEWAY_MAX_RETRY_WAIT_SECONDS", "1")
    forget()
    headers, waited = WISHES[wish]
    came: list[float] = []

    async def script(peer: Peer) -> None:
        await peer.request()
        came.append(time.monotonic())
        await peer.send(whole(error("x"), status, headers=headers) if len(came) == 1 else whole())

    async with house(script, retries=2) as at:
        answer = await at.ask()
        if waited:
            assert (answer.status, answer.headers["x-llm-attempts"]) == (200, "2")
            if "40" in repr(headers) or "0.04" in repr(headers):
                assert came[1] - came[0] >= 0.035
            assert await at.settled() == COST
            return
        assert (answer.status, len(came)) == (status, 1)
        for name, value in headers:
            assert answer.headers[name.lower()] == value
        # It is left alone for a while, and not for ever.
        assert 25 < at.health("a").opens_in(time.monotonic()) <= 120
        again = await at.ask()
        assert (again.status, again.error["code"], len(came)) == (503, "upstream_unavailable", 1)
        assert 25 < int(again.headers["retry-after"]) <= 120
        assert await at.settled() == 0


# -- a client that leaves ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [ASKED, STREAMED], ids=["json", "stream"])
@pytest.mark.parametrize("before", ["", "fails", "fails elsewhere"])
async def test_a_client_that_leaves_ends_the_call_upstream_at_once(body: Any, before: str) -> None:
    """Before a byte of the answer, in the first attempt and in a later one; what may have been used is paid for."""
    failing = once(whole(error("x"), 500))
    scripts: Any = {"": (silent, NOBODY), "fails": ([failing, silent], NOBODY), "fails elsewhere": (failing, silent)}
    a, b = scripts[before]
    model = BOTH if before == "fails elsewhere" else None
    name = "b" if before == "fails elsewhere" else "a"
    async with house(a, b, model=model, retries=1, timeouts=PATIENT) as at, at.call(body) as talk:
        wanted = 2 if before == "fails" else 1
        await until(lambda: at.servers[name].connections == wanted)
        await asyncio.sleep(0.05)
        await talk.hang_up()
        await until(lambda: at.servers[name].aborted == 1 and at.servers[name].open == 0)
        assert at.trace.aborted
        assert await at.settled() == guessed(body) * (10 if name == "b" else 1)
        assert (await at.records())[0].aborted


async def test_a_client_that_leaves_a_silent_stream_ends_it_upstream() -> None:
    """After the first event too."""
    async with house(then_stall(STREAM_HEAD, chunk(word("a")))) as at, at.call(STREAMED) as talk:
        await talk.next()
        await talk.next()
        await talk.hang_up()
        await until(lambda: at.servers["a"].aborted == 1)
        assert await at.settled() > 0


async def test_a_client_that_leaves_during_a_pause_asks_nobody_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause ends at once, not after its seconds."""
    monkeypatch.setattr(failures, "BACKOFF", 8.0)
    async with house(once(whole(error("x"), 500)), retries=2) as at, at.call() as talk:
        await until(lambda: at.asked("a") == 1 and at.servers["a"].open == 0)
        await asyncio.sleep(0.1)
        await talk.hang_up(timeout=2)
        assert at.asked("a") == 1
        assert at.attempts == [("a", 500, "upstream_error")]
        assert at.trace.aborted
        assert await at.settled() == 0


async def test_what_was_asked_after_a_refused_connection_is_the_same_call() -> None:
    """One trace, one record, one hold for all attempts."""
    async with house(NOBODY, answering, model=BOTH) as at:
        await at.ask(ASKED, headers=[(b"content-type", b"application/json"), (b"x-request-id", b"mine")])
        (record,) = await at.records()
        assert (record.request_id, record.provider, record.cost) == ("mine", "b", 10 * COST)
        assert [trace.request_id for trace in at.traces.recent()] == ["mine"]


async def test_the_server_that_hangs_is_let_go_of_when_another_answers() -> None:
    """No connection of a failed attempt stays open."""
    async with house(silent, answering, model=BOTH, timeouts=QUICK) as at:
        assert (await at.ask()).status == 200
        await until(lambda: at.servers["a"].open == 0)
        assert at.servers["a"].aborted == 1

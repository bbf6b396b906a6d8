"""One pass of a structured call through the app: its answer is held back and validated, or followed while it is relayed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import reduce
from typing import Any, Literal, NamedTuple

import orjson

from .._asgi import Message, Send, header
from .._counted import so_far, sum_of
from ..calls import Call
from ..errors import GatewayError, UpstreamError
from ..exchange import Exchange
from ..records import Target, Usage
from ..structured.form import Form, Format, Key, Unreadable
from ..structured.judge import Cut, Judging, Verdict, Wrong, invalid
from ..structured.limits import Limits
from ..structured.streams import Follower, Reading, rewritten
from ..usage import UsageReader, with_cost

Native = Literal["auto", "trust", "never"]
Streams = Literal["pass", "hold"]

_ERROR_BYTES = 64 * 1024  # of a refusal that is looked into


class Terms(NamedTuple):
    """How answers are validated: the settings of a StructuredOutputMiddleware, which explains them."""

    native: Native
    streams: Streams
    retries: int
    cut: Cut
    limits: Limits


class Shared:
    """What the passes of one call share.

    Attributes:
        marks: What was done to the answer, for ``x-llm-structured``.
        counted_inside: Whoever answers begins its upstream calls itself (ProxyApp, a metered client).
        changed: What is asked is no more what the entry hold was taken for.
        instructed: The format is asked for in words, or not at all.
    """

    def __init__(
        self, terms: Terms, form: Form, format: Format, exchange: Exchange, send: Send, *, inside: bool
    ) -> None:
        self.terms = terms
        self.form = form
        self.format = format
        self.exchange = exchange
        self.send = send
        self.marks: list[bytes] = []
        self.counted_inside = inside
        self.changed = False
        self.instructed = format.text is None

    def mark(self, word: bytes) -> None:
        """Note what was done, once."""
        if word not in self.marks:
            self.marks.append(word)

    async def end(self) -> None:
        """The answer is final: it is settled, where nobody further out sees to that."""
        exchange = self.exchange
        exchange.deferred = False
        ended = [call.usage for call in exchange.calls if call.usage is not None]
        if len(exchange.calls) > 1 and ended:
            exchange.usage = reduce(sum_of, ended)
        if exchange.ends_itself or exchange.exact:
            await exchange.end()


class Pass:
    """The ``send`` of one pass: it holds the answer back, or follows a stream that is relayed.

    Attributes:
        started: The app has begun to answer.
        complete: It has come to the answer's end.
        done: The answer has gone out, or is going.
        unsupported: The app refused the request's format.
        refusal: Why nothing was asked at all.
        answer: The answer, read.
        wrong: What does not match in it.
        hopeless: Asking again would not help.
        fault: The answer can't be read.
    """

    def __init__(self, run: Shared, *, correcting: bool) -> None:
        self._run = run
        self._exchange = run.exchange
        self._correcting = correcting
        self._before = len(run.exchange.calls)
        self._call: Call | None = None
        self._start: Message | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._through = False
        self._stream = False
        self._follower: Follower | None = None
        self._counting: UsageReader | None = None
        self._request = run.exchange.request
        self._accounted = self._judged = self._judging = False
        self.complete = self.done = self.unsupported = self.hopeless = False
        self.refusal: GatewayError | None = None
        self.fault: GatewayError | None = None
        self.answer: dict[str, Any] | None = None
        self.wrong: list[Wrong] = []

    @property
    def started(self) -> bool:
        """See the class."""
        return self._start is not None

    @property
    def answered(self) -> bool:
        """The model answered, whatever it said."""
        return self._start is not None and self._start["status"] == 200 and self.fault is None and self.complete

    @property
    def why(self) -> str:
        """Why there is no answer, for the refusal of the one before."""
        if self.refusal is not None:
            return str(self.refusal.error_code)
        return f"the second call ended in {self._start['status']}" if self._start is not None else "the client left"

    # -- the money of an app that does not count its calls itself -------------------------------------------------------

    async def begin(self) -> None:
        """Before a request that is not the client's own: the hold is raised for it. Raises GatewayError."""
        exchange, request = self._exchange, self._request
        if self._run.counted_inside or not self._run.changed or not exchange.guards or request is None:
            return
        self._call = await exchange.begin_call(Target("", request.model), request)
        exchange.exact = True  # whoever watches adds nothing to what is counted here

    def over(self) -> None:
        """The app has returned, or failed."""
        # While an answer is judged it is complete and nowhere else: the call may be cancelled then.
        if self.started and (self._judging or not (self.complete or self.done)) and not self._exchange.ended:
            self.book()
        self.account()

    def account(self) -> None:
        """What the pass used is known, for those calls that are counted here."""
        if self._accounted:
            return
        self._accounted = True
        exchange = self._exchange
        others = len(exchange.calls) - self._before - (self._call is not None)
        if others or exchange.ends_itself:
            self._run.counted_inside = True
            if self._call is not None:
                self._call.end(Usage())
            return
        if self._call is not None:
            self._call.end(self._used())
            exchange.usage = self._call.usage

    def book(self) -> None:
        """This answer won't be seen by whoever watches: its tokens are noted here."""
        self.account()
        exchange = self._exchange
        if self._run.counted_inside or self._call is not None or self._request is None:
            return
        call = Call(Target("", self._request.model), self._request)
        call.end(self._used())
        exchange.calls.append(call)
        exchange.usage = call.usage
        exchange.exact = True

    def _used(self) -> Usage:
        if self._start is not None and self._start["status"] >= 400:
            return Usage()
        reader = self._counting
        told = reader.end() if reader is not None and self.complete else None
        return told if told is not None else so_far(self._request, reader)

    # -- the answer ----------------------------------------------------------------------------------------------------

    async def __call__(self, message: Message) -> None:
        """One message of the app's answer."""
        kind = message["type"]
        if kind == "http.response.start":
            await self._begin_answer(message)
        elif self._through or kind != "http.response.body":
            await self._run.send(message)
        elif self._follower is not None:
            await self._follow(self._follower, message)
        else:
            await self._hold(message)

    async def _begin_answer(self, message: Message) -> None:
        # A second start takes the place of a first that never went out.
        self._start, self._size = message, 0
        self._parts.clear()
        status = message["status"]
        content = (header(message, b"content-type") or b"").lower()
        self._stream = content.startswith(b"text/event-stream")
        encoding = (header(message, b"content-encoding") or b"").strip().lower()
        if status < 400 and not self._run.counted_inside:
            self._counting = UsageReader(stream=self._stream)
        if status == 200 and encoding not in (b"", b"identity"):
            self.fault = broken("it is compressed", "upstream_protocol")
        elif status == 200 and self._stream and self._run.terms.streams == "pass":
            self._exchange.deferred = False  # what has gone out can't be asked for anew
            self._follower = Follower(self._run.form, self._run.terms.limits.answer_bytes)
            self._mark_headers()
            self.done = True
            await self._run.send(message)

    async def _hold(self, message: Message) -> None:
        assert self._start is not None
        body = message.get("body", b"")
        if self._counting is not None:
            self._counting.feed(body)
        if self.fault is None:
            self._parts.append(body)
            self._size += len(body)
            status = self._start["status"]
            if status != 200 and self._size > _ERROR_BYTES and not self._correcting:
                await self._let_through(message)
                return
            if self._size > self._run.terms.limits.answer_bytes:
                self._parts.clear()
                self.fault = broken(
                    f"it has more than {self._run.terms.limits.answer_bytes} bytes", "structured_output_too_long"
                )
        if not message.get("more_body"):
            self.complete = True
            await self._whole()

    async def _let_through(self, message: Message) -> None:
        """A refusal too long to look into, and what comes of it."""
        self._through = self.done = True
        self._exchange.deferred = False
        await self._run.send(self._start)
        await self._run.send({**message, "body": b"".join(self._parts)})

    async def _whole(self) -> None:
        """All of the answer is here."""
        assert self._start is not None
        if self._start["status"] != 200:
            await self._not_answered(b"".join(self._parts))
            return
        if self.fault is not None:
            self.book()
            return
        body = b"".join(self._parts)
        terms, form = self._run.terms, self._run.form
        try:
            if self._stream:
                reading = Reading(form, terms.limits.answer_bytes)
                reading.add(body)
                if reading.failed:  # it says itself that it failed
                    await self._deliver(body, changed=False)
                    return
                self.answer = reading.answer()
            else:
                self.answer = orjson.loads(body)
            if type(self.answer) is not dict:
                raise Unreadable("it is not complete" if self._stream else "it is no JSON object")
            verdict = await self._verdict(Judging(form.pieces(self.answer, self._run.format), terms.cut))
        except (Unreadable, orjson.JSONDecodeError, TypeError, AttributeError, LookupError) as error:
            why = str(error) if isinstance(error, Unreadable) else "it is no answer of this API"
            self.fault = broken(why, "upstream_protocol")
            self.book()
            return
        mended: bytes | None = body
        if verdict.mended and not verdict.wrong:
            mended = self._mended(body, verdict.mended)
        if verdict.wrong or mended is None:
            self.wrong = list(verdict.wrong)
            self.hopeless = any(one.piece.cut for one in verdict.wrong)
            self.book()
            return
        if verdict.mended:
            self._run.mark(b"repaired")
        await self._deliver(mended, changed=mended is not body)

    async def _verdict(self, judging: Judging) -> Verdict:
        """The verdict; a long validation does not hold up the other calls."""
        if not judging.heavy:
            return judging.verdict()
        self._judging = True
        verdict = await asyncio.to_thread(judging.verdict)
        self._judging = False
        return verdict

    def _mended(self, body: bytes, texts: Mapping[Key, str]) -> bytes | None:
        if self._stream:
            return rewritten(body, self._run.form, texts)
        assert self.answer is not None
        self._run.form.put(self.answer, texts)
        return orjson.dumps(self.answer)

    async def _not_answered(self, body: bytes) -> None:
        """The app refused, or failed."""
        assert self._start is not None
        form, run = self._run.form, self._run
        field = form.field.encode()
        refused = self._start["status"] in (400, 422) and field in body
        self.unsupported = refused and run.terms.native == "auto" and not run.instructed
        if self.unsupported or self._correcting:
            return
        self.account()
        self.done = True
        self._exchange.deferred = False
        await run.send(self._start)
        await run.send({"type": "http.response.body", "body": body})

    async def _deliver(self, body: bytes, *, changed: bool) -> None:
        """The answer is final: settled, and sent."""
        assert self._start is not None
        run, exchange = self._run, self._exchange
        self.done = True
        if exchange.calls:
            self.account()
        exchange.answering = self._start["status"]
        self._mark_headers()
        await run.end()
        request = self._request
        if self._stream and exchange.cost is not None and request is not None and request.wants_usage:
            body = with_cost(body, exchange.cost)
            changed = True
        start = self._start
        if changed:
            kept = [one for one in start.get("headers") or () if one[0].lower() != b"content-length"]
            if not self._stream:
                kept.append((b"content-length", b"%d" % len(body)))
            start = {**start, "headers": kept}
        await run.send(start)
        await run.send({"type": "http.response.body", "body": body})

    def _mark_headers(self) -> None:
        if self._run.marks:
            self._exchange.headers.append((b"x-llm-structured", b", ".join(self._run.marks)))

    # -- a stream that is relayed --------------------------------------------------------------------------------------

    async def _follow(self, follower: Follower, message: Message) -> None:
        data: bytes = message.get("body", b"")
        last = not message.get("more_body")
        if self._counting is not None:
            self._counting.feed(data)
        if self._judged:
            out = b"" if self.wrong or self.fault is not None else data
        else:
            out = follower.feed(data) if data else b""
            if follower.ended or last:
                self._judged = self.complete = True
                if self._call is not None:
                    self.account()
                out += await self._end_of(follower)
        if out or last:
            await self._run.send({**message, "body": out})

    async def _end_of(self, follower: Follower) -> bytes:
        """What ends the stream: its own end, or an error in its place."""
        reading = follower.reading
        try:
            if reading.too_long:
                raise Unreadable
            self.answer = None if reading.failed else reading.answer()
            if self.answer is None:  # it broke off, or told of an error: no client takes it for a whole answer
                return follower.rest()
            # What has gone out can't be mended any more.
            pieces = self._run.form.pieces(self.answer, self._run.format)
            verdict = await self._verdict(Judging(pieces, self._run.terms.cut, mend=False))
        except (Unreadable, TypeError, AttributeError, LookupError):
            if reading.too_long:
                self.fault = broken("it is too long to be validated", "structured_output_too_long")
            else:
                self.fault = broken("it is no answer of this API", "upstream_protocol")
            return self._told(self.fault, follower)
        if not verdict.wrong:
            return follower.rest()
        self.wrong = list(verdict.wrong)
        return self._told(invalid(self.wrong, tries=1), follower)

    def _told(self, error: GatewayError, follower: Follower) -> bytes:
        if not self._exchange.ended:  # the event that told the usage may be the one that goes no further
            self.book()
        if self._exchange.record is not None:
            self._exchange.record.error = error.error_code
        # It takes the place, and so the number, of the event that would have ended the stream.
        return self._run.form.failure(error, follower.reading.events - follower.ended)


def broken(why: str, code: str) -> GatewayError:
    """The refusal of an answer that can't be looked into."""
    return UpstreamError(f"The answer can't be validated: {why}.", code=code)


__all__ = ["Native", "Pass", "Shared", "Streams", "Terms", "broken"]

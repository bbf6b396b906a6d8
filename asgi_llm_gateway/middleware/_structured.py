"""One call whose answer must match a schema: asked, validated, and asked once more where that may help."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from .._asgi import Receive, Scope, Send
from .._hangup import Hangup
from ..errors import GatewayError
from ..exchange import Exchange
from ..structured.judge import correction, invalid, words_for
from ._structured_pass import Pass, Shared, broken

Forward = Callable[[Scope, Receive, Send], Awaitable[None]]


class Run(Shared):
    """The call, over as many passes through the app as it takes."""

    async def run(self, forward: Forward, scope: Scope, receive: Receive) -> None:
        """Ask until an answer may go out. Raises GatewayError."""
        exchange, terms = self.exchange, self.terms
        headers = len(exchange.headers)
        if terms.native == "never" and not self.instructed:
            self._instruct()
        corrections = 0
        last: Pass | None = None
        while True:
            passing = Pass(self, correcting=last is not None)
            exchange.deferred = True  # nothing is settled before the answer is final
            try:
                await passing.begin()
                await forward(scope, receive, passing)
            except GatewayError as error:
                if last is None or passing.started:
                    raise
                passing.refusal = error
            finally:
                passing.over()
                exchange.deferred = False
            if passing.done or exchange.gone or (not passing.started and passing.refusal is None):
                return  # it went out; or the client left, so that there is nobody to answer
            if passing.unsupported:
                self._instruct()
            elif last is not None and not passing.answered:
                raise await self._refused(last, corrections, passing.why)
            elif passing.fault is not None:
                raise await self._final(passing.fault)
            elif not passing.complete:
                raise await self._final(broken("it broke off before it was complete", "upstream_cut"))
            elif corrections == terms.retries or passing.hopeless:
                raise await self._refused(passing, corrections + 1)
            elif await _left(exchange, receive):
                return
            else:
                last = passing
                corrections += 1
                self._correct(passing)
            del exchange.headers[headers:]  # what an answer that is not sent had to say
            exchange.rewind()
            if exchange.record is not None:
                exchange.record.error = None

    def _instruct(self) -> None:
        """Ask in words, where the provider has no support of its own."""
        request = self.exchange.request
        assert request is not None
        self.exchange.amend(**self.form.instructed(request.data, words_for(self.format)))
        self.instructed = self.changed = True
        self.mark(b"instructed")

    def _correct(self, passing: Pass) -> None:
        request = self.exchange.request
        assert request is not None
        assert passing.answer is not None
        self.exchange.amend(**self.form.corrected(request.data, passing.answer, correction(passing.wrong)))
        self.changed = True
        self.mark(b"retried")

    async def _refused(self, passing: Pass, tries: int, why: str = "") -> GatewayError:
        """The refusal of an answer; ``why`` it could not be asked for again."""
        if self.exchange.record is not None:
            self.exchange.record.error = None
        more = f" It could not be asked for again: {why}." if why else ""
        return await self._final(invalid(passing.wrong, tries=tries, more=more))

    async def _final(self, error: GatewayError) -> GatewayError:
        """A refusal that has cost money: that is settled first, so that the refusal tells the cost."""
        self.exchange.answering = error.http_status
        await self.end()
        return error


async def _left(exchange: Exchange, receive: Receive) -> bool:
    """Whether the client has hung up meanwhile: then it is not asked again."""
    gone: list[bool] = []
    watch = Hangup(exchange.truth(receive), lambda: gone.append(True))
    try:
        await asyncio.sleep(0)
    finally:
        watch.stop()
    await asyncio.sleep(0)  # the watch lets go of ``receive`` before anybody else awaits it
    if gone:
        exchange.gone = True
    return bool(gone)


__all__ = ["Run"]

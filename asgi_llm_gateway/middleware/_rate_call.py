"""The end of a call that was admitted: what it took in truth, and its place among the running calls given back."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

from .._asgi import Message, Send, header
from .._counted import sane, so_far
from ..exchange import Exchange
from ..media_usage import reader_of
from ..prices import FREE
from ..rates.wants import Want
from ..records import Usage
from ..usage import UsageReader
from ..watching import Watched
from ._rate_desk import Desk, Ticket
from ._rate_queue import Lines


class Ending(Watched):
    """The ``send`` of an admitted call. It sees the last message, and reads the tokens of an answer that nobody else reads.

    Before the last message goes out, the limits of tokens are corrected to what the call took; after it, its place is free.
    It is a Watched so that the exchange may pass it by: a terminal that tells its own usage returns when its answer is out.

    Args:
        exchange: The call.
        inner: Where messages go.
        desk: Who admitted it.
        lines: Who is told that there may be room; ``None`` where nobody waits.
        ticket: What it was given.
        tokens: What it was admitted on of each limit of tokens.
    """

    __slots__ = ("_call", "_desk", "_lines", "_reader", "_ticket", "_tokens", "_whole")

    def __init__(
        self, exchange: Exchange, inner: Send, desk: Desk, lines: Lines | None, ticket: Ticket, tokens: Sequence[Want]
    ) -> None:
        self.inner = inner  # all that the exchange asks of a Watched
        self._call = exchange
        self._desk = desk
        self._lines = lines
        self._ticket: Ticket | None = ticket
        self._tokens = tokens
        self._reader: UsageReader | None = None
        self._whole: Usage | None = None

    def __call__(self, message: Message) -> Awaitable[None]:
        """One message of the answer."""
        kind = message["type"]
        if kind == "http.response.body":
            if self._reader is not None:
                self._reader.feed(message.get("body", b""))
            if not message.get("more_body"):
                return self._end(message)
        elif kind == "http.response.start" and self._tokens and not self._call.exact:
            self._begin(message)
        return self.inner(message)

    def _begin(self, message: Message) -> None:
        """Read the answer, unless somebody further in does."""
        call = self._call
        if message["status"] < 400 and call.reader is None and call.route.dialect is not None:
            content = (header(message, b"content-type") or b"").lower()
            self._reader = reader_of(call.request, content)

    async def _end(self, message: Message) -> None:
        if self._reader is not None:
            self._whole = self._reader.end()
        if self._tokens:
            self._settle()
        await self.inner(message)
        self.close()

    def close(self) -> None:
        """The call is over, whichever way it went. It may be said more than once."""
        ticket = self._ticket
        if ticket is None:
            return
        if self._tokens:
            self._settle()
        self._ticket = None
        self._desk.leave(ticket)
        if self._lines is not None:
            self._lines.poke(ticket.tenant)

    def _settle(self) -> None:
        """Correct the limits of tokens, once."""
        tokens, self._tokens = self._tokens, ()
        taken = self._taken()
        if taken is not None and self._ticket is not None:
            self._desk.correct(self._ticket, [(one.name, taken - one.amount) for one in tokens if one.amount])
            if self._lines is not None:
                self._lines.poke(self._ticket.tenant)

    def _taken(self) -> int | None:
        """Tokens that the call took; ``None`` while a part of it still runs: then what it was admitted on stands."""
        call = self._call
        if call.calls:
            total = 0
            for one in call.calls:
                if not one.ended:
                    return None
                total += sane(one.usage, one.request or call.request, FREE).total
            return total
        usage = call.usage or self._whole
        if usage is None and self._reader is not None:
            usage = so_far(call.request, self._reader)
        if usage is None:
            if call.exact or (call.answering is not None and call.answering >= 400):
                return 0  # refused further in, or answered from what is known already
            usage = so_far(call.request, call.reader)
        return sane(usage, call.request, FREE).total

"""The middle of a stream, pushed: from the upstream's reading callback straight into the server's ``send``.

No task wakes for an event and no await chain is walked: an event costs one scan and one write. Only where the server's
``send`` may be stepped by hand (see ``_stepping``), and with nothing but our own wrappers before it.
"""

from __future__ import annotations

from typing import Any

from .._asgi import Send
from .._stepping import Resumed
from ..adapters.base import StreamDecoder
from .http1 import Connection


class Push:
    """Pushes until there is something that needs a task: the stream's end or last news, an error, a slow client.

    Attributes:
        out: Bytes that are still to be sent, after the stream's last news were noted.
    """

    __slots__ = ("_connection", "_decoder", "_error", "_send", "_slow", "out")

    def __init__(self, connection: Connection, decoder: StreamDecoder, send: Send) -> None:
        self._connection = connection
        self._decoder = decoder
        self._send = send
        self._slow: Resumed | None = None
        self._error: Exception | None = None
        self.out = b""

    async def run(self) -> None:
        """Push; ``out`` is what is left to do. Raises what the decoder, the connection or the server raised."""
        await self._connection.push_to(self._sink)
        slow, self._slow = self._slow, None
        if slow is not None:
            await slow  # meanwhile the connection fills up, and is read no further
        if self._error is not None:
            raise self._error

    def _sink(self, data: bytes) -> bool:
        """One piece that came; whether to go on."""
        decoder = self._decoder
        try:
            out = decoder.feed(data)
            if decoder.ending:
                self.out = out
                return False
            if out:
                sending: Any = self._send({"type": "http.response.body", "body": out, "more_body": True})
                try:
                    waiting = sending.send(None)
                except StopIteration:
                    return True
                self._slow = Resumed(sending, waiting)
                return False
        except Exception as error:  # to be raised where the call is answered, not in the event loop
            self._error = error
            return False
        return True

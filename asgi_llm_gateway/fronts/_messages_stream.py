"""A chat stream in Anthropic's events. Source: Anthropic API reference, "Streaming messages", 2023-06-01.

A message is a row of blocks, one after the other; a chat stream names each piece's place itself and may mix them. Text and
thoughts go out as they come. Calls go out as they come too, one at a time: another call opens when the one before is a
whole JSON object; where it is not, what comes for others waits until the provider says why it ended.
"""

from __future__ import annotations

from typing import Any

import orjson

from .._sse import data_of, split
from ..errors import GatewayError, UpstreamError
from ..records import Usage
from ..tokens import estimate
from ..usage import usage_from
from ..wire import LLMRequest
from ._messages_answer import (
    call_id,
    ending,
    input_of,
    is_object,
    message_id,
    pieces,
    shows_thoughts,
    text_of_arguments,
    thought_in,
    usage_object,
)
from ._messages_failure import told_failure
from ._messages_words import Block, long_names

MAX_KEPT = 8 * 1024 * 1024
"""Characters of one stream that are held back, or kept to see whether a call is whole."""

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
_QUIET = 32  # thoughts that the client is not shown, for one ping
_DELTA = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%b_delta","%b":'
_BLOCK_STOP = b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n'
_FIELDS = {"text": b"text", "thinking": b"thinking", "input_json": b"partial_json"}


class _Part:
    """A block: what it is, what of it waits, and of a call what has gone out."""

    __slots__ = ("closed", "head", "id", "kept", "kind", "name", "odd", "queued", "size", "started", "tried", "waiting")

    def __init__(self, kind: str, id: str = "") -> None:
        self.kind = kind
        self.id = id
        self.name = ""
        self.head = b""  # of its deltas
        self.queued = False  # its turn will come, or has
        self.closed = False
        self.waiting: list[str] = []
        self.kept: list[str] = []
        self.size = 0  # characters of both
        self.started = False  # the first of a call's arguments has come
        self.odd = False  # they are no object, and are put into one in the end
        self.tried = False  # they were not whole when another call began, so nobody knows when they are

    def opener(self) -> Block:
        """The block as it begins."""
        if self.kind == "text":
            return {"type": "text", "text": ""}
        if self.kind == "thinking":
            return {"type": "thinking", "thinking": "", "signature": ""}
        return {"type": "tool_use", "id": self.id, "name": self.name, "input": {}}


class MessagesStream:
    """See FrontStream.

    Args:
        request: What was asked, in Anthropic's words.

    ``message_start`` goes out with the first chunk; why the answer ended and what it used, when no more can come.
    """

    __slots__ = ("_blank", "_by_id", "_by_index", "_called", "_choice", "_finish", "_index", "_kept", "_last", "_names",
                 "_open", "_over", "_pieces", "_queue", "_quiet", "_refusal", "_request", "_shows", "_started", "_tier",
                 "_usage")  # fmt: skip

    def __init__(self, request: LLMRequest) -> None:
        self._request = request
        self._shows = shows_thoughts(request)
        self._names = long_names(request.data)
        self._started = False
        self._over = False
        self._open: _Part | None = None
        self._index = -1  # of the last block that was opened
        self._queue: list[_Part] = []  # blocks that wait for the open one to end
        self._by_index: dict[int, _Part] = {}  # calls, as chat numbers them
        self._by_id: dict[str, _Part] = {}
        self._last: _Part | None = None  # the last call that was spoken of
        self._called = False
        self._blank = ("", "")  # white space at the beginning of a block, which does not make one
        self._refusal: list[str] = []
        self._finish: Any = None
        self._choice: Block = {}
        self._usage: Usage | None = None
        self._tier: Any = None
        self._pieces = 0
        self._quiet = 0
        self._kept = 0

    def feed(self, events: bytes) -> bytes:
        """See FrontStream. Raises UpstreamError for more than can be held back."""
        out: list[bytes] = []
        for event in split(events):
            if self._over:
                break
            data = data_of(event)
            if data is None:
                out.append(PING)  # a comment, by which a provider says that it is still there
            elif data.startswith(b"[DONE]"):
                self._end(out)
            else:
                self._read(data, out)
        return b"".join(out)

    def finish(self) -> bytes:
        """See FrontStream."""
        out: list[bytes] = []
        if not self._over:
            self._end(out)
        return b"".join(out)

    def failure(self, error: GatewayError) -> bytes:
        """See FrontStream."""
        self._over = True
        return error.event("anthropic")

    # -- what comes ----------------------------------------------------------------------------------------------------

    def _read(self, data: bytes, out: list[bytes]) -> None:
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError:
            return
        if type(chunk) is not dict:
            return
        choices = chunk.get("choices")
        choices = choices if type(choices) is list else []
        first = choices[0] if choices and type(choices[0]) is dict else {}
        error = chunk.get("error") or first.get("error")
        if error or first.get("finish_reason") == "error":
            out.append(self.failure(told_failure(error)))
            return
        if not self._started:
            self._begin(chunk, out)
        for choice in choices:
            # Of several answers, which a client of this dialect can't ask for, the first.
            if type(choice) is dict and not choice.get("index"):
                self._read_choice(choice, out)
        told = chunk.get("usage")
        if told is not None and (found := usage_from(told)) is not None:
            self._usage = found
            self._tier = chunk.get("service_tier")
            if not choices and self._finish is not None:  # the last word; some servers count with every piece
                self._end(out)

    def _read_choice(self, choice: Block, out: list[bytes]) -> None:
        delta = choice.get("delta")
        if type(delta) is dict:
            content = delta.get("content")
            more = len(delta) > 1 or content is None  # a plain piece of text has nothing else
            if more and (thought := thought_in(delta)):
                self._say("thinking", thought, out)
            if type(content) is str:
                if content:
                    self._say("text", content, out)
            elif content is not None:
                for kind, text in pieces(content):
                    self._say(kind, text, out)
            if more:
                self._read_more(delta, out)
        finish = choice.get("finish_reason")
        if finish is not None:  # it may come together with the last piece, which goes first
            self._finish = finish
            self._choice = choice
            self._close_all(out)

    def _read_more(self, delta: Block, out: list[bytes]) -> None:
        refusal = delta.get("refusal")
        if type(refusal) is str and refusal:
            self._keep(refusal)
            self._refusal.append(refusal)
            self._say("text", refusal, out)
        calls = delta.get("tool_calls")
        if type(calls) is list:
            for call in calls:
                if type(call) is dict:
                    self._call(call, out)
        elif type(delta.get("function_call")) is dict:  # before there were tools
            self._call({"index": 0, "function": delta["function_call"]}, out)

    def _say(self, kind: str, text: str, out: list[bytes]) -> None:
        """A piece of text or of thought."""
        self._pieces += 1
        if kind == "thinking" and not self._shows:
            if self._quiet % _QUIET == 0:  # the client shall not take a long thought for a dead line
                out.append(PING)
            self._quiet += 1
            return
        part = self._queue[-1] if self._queue else self._open
        if part is None or part.kind != kind:
            if text.isspace():
                self._keep(text)
                self._blank = (kind, self._blank[1] + text if self._blank[0] == kind else text)
                return
            if self._blank[0] == kind:
                text = self._blank[1] + text
            part = _Part(kind)
        self._blank = ("", "")
        self._add(part, text, out)
        if not part.queued:
            self._enter(part, out)

    def _call(self, call: Block, out: list[bytes]) -> None:
        """A piece of a call: its opener, a fragment of its arguments, or all of it."""
        told = call.get("function")
        function: Block = told if type(told) is dict else {}
        name, id = function.get("name"), call.get("id")
        part = self._part_of(call.get("index"), id if type(id) is str else "", name if type(name) is str else "")
        if text := text_of_arguments(function.get("arguments")):
            self._pieces += 1
            self._add(part, text, out)
        if part.name and not part.queued:
            self._called = True
            self._blank = ("", "")
            self._enter(part, out)

    def _part_of(self, index: Any, id: str, name: str) -> _Part:
        """Which call is meant: by its index. Servers that give none, or always 0, begin another by its id and name."""
        part: _Part | None
        if type(index) is int:
            part = self._by_index.get(index)
            if part is not None and id and name and part.id != id:
                part = None
        elif id:
            part = self._by_id.get(id)
        else:
            part = None if name else self._last
        if part is None:
            part = _Part("input_json", call_id(id))
            self._keep(part.id)
            self._by_id[part.id] = part
            if type(index) is int:
                self._by_index[index] = part
        if name and not part.name:
            self._keep(name)
            part.name = self._names.get(name, name)
        self._last = part
        return part

    # -- what goes out -------------------------------------------------------------------------------------------------

    def _begin(self, chunk: Block, out: list[bytes]) -> None:
        self._started = True
        model = chunk.get("model")
        message: Block = {
            "id": message_id(chunk.get("id")),
            "type": "message",
            "role": "assistant",
            "model": model if type(model) is str and model else self._request.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_object(Usage()),
        }
        _event("message_start", {"message": message}, out)

    def _add(self, part: _Part, text: str, out: list[bytes]) -> None:
        """A piece of a block: it goes out, if it is the block's turn."""
        if part is self._open:
            if part.kind == "input_json":
                self._argue(part, text, out)
            else:
                out.append(b"%b%b}}\n\n" % (part.head, orjson.dumps(text)))
        elif not part.closed:  # what comes after a call was whole can't belong to it
            self._keep(text, part)
            part.waiting.append(text)

    def _argue(self, part: _Part, text: str, out: list[bytes], *, counted: bool = False) -> None:
        """A piece of a call's arguments."""
        if not part.started:
            text = text.lstrip()
            if not text:
                return
            part.started = True
            part.odd = text[0] != "{"
        if not counted:
            self._keep(text, part)
        part.kept.append(text)
        if not part.odd:
            out.append(b"%b%b}}\n\n" % (part.head, orjson.dumps(text)))

    def _enter(self, part: _Part, out: list[bytes]) -> None:
        """A new block: at once, if the one before has come to its end."""
        part.queued = True
        if not self._queue and (self._open is None or _is_whole(self._open)):
            self._close(out)
            self._start(part, out)
        else:
            self._queue.append(part)

    def _start(self, part: _Part, out: list[bytes]) -> None:
        self._index += 1
        self._open = part
        part.head = _DELTA % (self._index, part.kind.encode(), _FIELDS[part.kind])
        _event("content_block_start", {"index": self._index, "content_block": part.opener()}, out)
        text = "".join(part.waiting)
        part.waiting.clear()
        if not text:
            return
        if part.kind == "input_json":
            self._argue(part, text, out, counted=True)
        else:
            self._add(part, text, out)

    def _close(self, out: list[bytes]) -> None:
        part = self._open
        if part is None:
            return
        if part.odd and (text := input_of("".join(part.kept))) != "{}":
            out.append(b"%b%b}}\n\n" % (part.head, orjson.dumps(text)))
        out.append(_BLOCK_STOP % self._index)
        part.closed = True
        self._kept -= part.size
        part.kept.clear()
        self._open = None

    def _close_all(self, out: list[bytes]) -> None:
        """No block goes on: end the open one, and let those that waited follow."""
        self._close(out)
        for part in self._queue:
            self._start(part, out)
            self._close(out)
        self._queue.clear()

    def _end(self, out: list[bytes]) -> None:
        """All that is left to say."""
        if not self._started:
            self._begin({}, out)
        self._close_all(out)
        usage = self._usage or estimate(self._request, self._pieces)
        delta = ending(self._request, self._choice, self._finish, self._called, "".join(self._refusal))
        _event("message_delta", {"delta": delta, "usage": usage_object(usage, self._tier)}, out)
        out.append(_STOP)
        self._over = True

    def _keep(self, text: str, part: _Part | None = None) -> None:
        """Count what is held. Raises UpstreamError where it is too much."""
        self._kept += len(text)
        if part is not None:
            part.size += len(text)
        if self._kept > MAX_KEPT:
            raise UpstreamError("The provider sent calls that are too long to be put in order.")


def _is_whole(part: _Part) -> bool:
    """Whether another block may begin. A call is looked at once: it would cost its length each time."""
    if part.kind != "input_json":
        return True
    if part.tried or part.odd or not part.started:
        part.tried = True
        return False
    part.tried = True
    return is_object("".join(part.kept))


def _event(kind: str, fields: Block, out: list[bytes]) -> None:
    out.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields})))

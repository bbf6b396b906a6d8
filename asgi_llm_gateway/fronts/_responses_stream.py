"""A chat stream as a Responses stream. Source: OpenAI API reference, "Streaming events" of both APIs, autumn 2026.

Chat tells the usage after it said why it ended, Responses with it: the last event waits for that.
"""

from __future__ import annotations

from typing import Any

import orjson

from .._sse import data_of, split
from ..adapters.base import clean
from ..errors import GatewayError, UpstreamError
from ..wire import LLMRequest
from ._responses_answer import (
    INCOMPLETE,
    Item,
    Names,
    annotations_in,
    arguments_in,
    dumps,
    ended,
    frame,
    logprobs_in,
    text_in,
    thoughts_in,
)
from ._responses_failure import error_event
from ._responses_output import Call, Output


class ResponsesEncoder:
    """One chat stream in the words of Responses. See FrontStream."""

    __slots__ = ("_around", "_calls", "_current", "_names", "_output", "_over", "_reason", "_request", "_usage")

    def __init__(self, request: LLMRequest) -> None:
        self._request = request
        self._names = Names()
        self._output = Output(self._names)
        self._around: Item | None = None  # the response without its output, once it has begun
        self._calls: list[Call] = []
        self._current: dict[Any, Call] = {}  # by chat's index
        self._reason: str | None = None
        self._usage: Any = None
        self._over = False

    def feed(self, events: bytes) -> bytes:
        """See FrontStream."""
        if events.startswith(b"data: {") and events.find(b"\n") == len(events) - 2 and events.find(b"\r") < 0:
            return self._read(events[6:-2])  # one event in one line, as most pieces are
        out = []
        for event in split(events):
            data = data_of(event)
            if data is not None:
                out.append(self._read(data))
            elif event.startswith(b":") and event.find(b"\n") == len(event) - 2:
                out.append(event)  # a comment keeps the connection alive
        return b"".join(out)

    def finish(self) -> bytes:
        """See FrontStream."""
        return b"" if self._over else self._end()

    def failure(self, error: GatewayError) -> bytes:
        """See FrontStream. Once the whole response was told there is nothing left that could fail."""
        if self._over:
            return b""
        self._over = True
        return self._error(error)

    # -- what chat says ------------------------------------------------------------------------------------------------

    def _read(self, data: bytes) -> bytes:
        if self._over:
            return b""
        if data.startswith(b"[DONE]"):
            return self._end()
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError:
            return b""
        if type(chunk) is not dict:
            return b""
        out = b"" if self._around is not None else self._begin(chunk)
        if chunk.get("error"):
            return out + self._fail(chunk["error"])
        usage = chunk.get("usage")
        if type(usage) is dict:
            self._usage = usage
        choices = chunk.get("choices")
        choice = choices[0] if type(choices) is list and choices else None
        if type(choice) is dict:
            return out + self._choice(choice)
        if self._reason is not None and self._usage is not None:
            return out + self._end()  # the last news of a chat stream; only [DONE] follows
        return out

    def _choice(self, choice: Item) -> bytes:
        delta, out = choice.get("delta"), b""
        if type(delta) is dict:
            content = delta.get("content")
            common = type(content) is str and len(delta) == 1  # as most are
            if not common and (thought := thoughts_in(delta)):
                out = self._output.say("reasoning", thought)
            if content and type(content) is str:
                out += self._output.say("text", content, logprobs_in(choice) if choice.get("logprobs") else ())
            if not common:
                out += self._less_common(delta)
        reason = choice.get("finish_reason")
        if reason is not None and self._reason is None:
            if reason == "error":
                return out + self._fail(choice.get("error"))
            self._reason = reason if type(reason) is str else "stop"
            out += self._close()
        return out

    def _less_common(self, delta: Item) -> bytes:
        """What a delta may have besides text and thoughts."""
        out, output = b"", self._output
        if type(delta.get("content")) is list and (told := text_in(delta["content"])):
            out += output.say("text", told)
        refusal = delta.get("refusal")
        if refusal and type(refusal) is str:
            out += output.say("refusal", refusal)
        if delta.get("annotations"):
            out += output.annotate(annotations_in(delta))
        calls = delta.get("tool_calls")
        for at, call in enumerate(calls if type(calls) is list else ()):
            if type(call) is dict:
                out += self._called(call, at)
        older = delta.get("function_call")
        if type(older) is dict:
            out += self._called({"index": "older", "function": older}, 0)
        return out

    def _called(self, told: Item, at: int) -> bytes:
        """A piece of a call."""
        index, id, function = told.get("index"), told.get("id"), told.get("function")
        index = index if type(index) in (int, str) else at
        id = id if type(id) is str else ""
        call = self._current.get(index)
        # Some servers give every call the same index: another id is another call.
        if call is None or (id and call.called and id != call.called):
            call = self._current[index] = Call()
            self._calls.append(call)
        call.called = call.called or id
        if type(function) is not dict:
            return b""
        name, arguments = function.get("name"), function.get("arguments")
        piece = arguments if type(arguments) is str else "" if arguments is None else arguments_in(arguments)
        if piece:
            call.pieces.append(piece)
        if call.told:
            return self._output.argue(call, piece) if piece else b""
        if type(name) is str:
            call.name += name
        return self._output.begin_call(call) if call.name and (call.called or piece) else b""

    # -- beginning and end ---------------------------------------------------------------------------------------------

    def _whole(self, kind: str, response: Item) -> bytes:
        return self._output.event(kind, b'"response":' + dumps(response))

    def _begin(self, chunk: Item) -> bytes:
        around = self._around = frame(self._request, self._names, chunk)
        return self._whole("response.created", around) + self._whole("response.in_progress", around)

    def _close(self) -> bytes:
        """End all that goes on."""
        cut = self._reason in INCOMPLETE
        out = self._output.end_said("incomplete" if cut else "completed")
        for call in self._calls:
            out += self._output.end_call(call, "incomplete" if cut else "completed")
        self._calls.clear()
        self._current.clear()
        return out

    def _end(self) -> bytes:
        """The last event, with the whole response."""
        out = b"" if self._around is not None else self._begin({})
        out += self._close()
        assert self._around is not None
        self._over = True
        response = ended(self._around, self._output.items, self._reason, self._usage)
        return out + self._whole(f"response.{response['status']}", response)

    def _error(self, error: GatewayError) -> bytes:
        number = self._output.number
        self._output.number += 1
        return error_event(error, number)

    def _fail(self, told: Any) -> bytes:
        """The provider said that it failed: as OpenAI does, ``error``, and then ``response.failed`` with the response."""
        fields: Item = told if type(told) is dict else {"message": told}
        message, code = fields.get("message"), fields.get("code")
        text = (
            clean(message) if type(message) is str and message else "The provider failed in the middle of its answer."
        )
        # The reference's list of a failed response's codes is closed.
        limited = code in (429, "429", "rate_limit_exceeded")
        why = {"code": "rate_limit_exceeded" if limited else "server_error", "message": text}
        out = self._error(UpstreamError(text, code=why["code"]))
        assert self._around is not None
        self._over = True
        failed = {**self._around, "status": "failed", "error": why, "output": self._output.items}
        return out + self._whole("response.failed", failed)

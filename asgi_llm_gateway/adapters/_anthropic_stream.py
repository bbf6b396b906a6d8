"""Anthropic's answers in OpenAI's words. Source: Anthropic API reference, "Messages" and "Streaming messages", 2023-06-01."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from .._sample import StreamSample, streamed_tokens
from .._sse import EventSplitter, EventTooLong, data_of
from ..errors import GatewayError, UpstreamError
from ..records import Usage
from ..wire import LLMRequest
from ._anthropic_usage import Tally

_DONE = b"data: [DONE]\n\n"
_PING = b": ping\n\n"
STOP_REASONS: Mapping[str, str] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "pause_turn": "length",
    "compaction": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
"""``stop_reason`` to ``finish_reason``."""


def finish_reason(stop_reason: Any, called: bool) -> str:
    """Why the answer ended, in OpenAI's words; never a word that its clients do not know."""
    found = STOP_REASONS.get(stop_reason) if type(stop_reason) is str else None
    return found or ("tool_calls" if called else "stop")


def usage_object(usage: Usage) -> dict[str, Any]:
    """Counts as OpenAI writes them."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.total,
        "prompt_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": usage.cache_write},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


class AnthropicStream:
    """One event stream: takes bytes cut anywhere, gives whole OpenAI events back.

    Args:
        name: The provider's name.
        request: What was asked.
        names: The tools whose names had to be changed, to what the client calls them.
        failed_with: What an error event is called towards the client.
        answer_tool: The tool whose input is the answer itself, see ``_anthropic_json``; ``None`` for no such tool.

    The reason of the end and the counts are told with the last event, for until then both may change.
    """

    __slots__ = ("_after", "_answer_tool", "_answered", "_before", "_begun", "_blocks", "_calls", "_failed_with", "_name",
                 "_names", "_splitter", "_stop", "_tally", "_thoughts", "_wants_usage", "complete", "ending", "failed",
                 "sample")  # fmt: skip

    def __init__(
        self,
        name: str,
        request: LLMRequest,
        names: Mapping[str, str],
        failed_with: Callable[[bytes], GatewayError],
        answer_tool: str | None = None,
    ) -> None:
        self.sample = StreamSample()
        self.ending = False
        self.complete = False
        self.failed = False
        self._name = name
        self._names = names
        self._failed_with = failed_with
        self._wants_usage = request.wants_usage
        self._splitter = EventSplitter()
        self._tally = Tally()
        self._answer_tool = answer_tool
        self._answered = False
        self._stop: dict[str, Any] | None = None
        self._blocks: dict[Any, dict[str, Any]] = {}
        self._calls = 0
        self._thoughts = 0
        self._begun = False
        self._frame("msg", request.model)

    @property
    def usage(self) -> Usage | None:
        """See StreamDecoder."""
        return self._tally.so_far(self._stop is not None, self.tokens)

    @property
    def events(self) -> int:
        """See StreamDecoder."""
        return self.sample.events

    def tokens(self, model: str | None = None) -> int:
        """See StreamDecoder."""
        return streamed_tokens(self.sample, model)

    def feed(self, data: bytes) -> bytes:
        """See StreamDecoder."""
        try:
            events = self._splitter.feed(data)
        except EventTooLong:
            raise UpstreamError(f"The provider '{self._name}' sent an event without an end.") from None
        out = []
        for event in events:
            told = data_of(event)
            if told:
                said = self._read(told)
                self.sample.add(event, int(said is not _PING))  # a sign of life is no part of an answer
                out.append(said)
        return b"".join(out)

    def finish(self) -> bytes:
        """See StreamDecoder. A stream may end without ``message_stop`` only where the answer said why it ended."""
        rest, out = self._splitter.rest, b""
        if rest.strip():
            try:  # a last event without its blank line counts, if there is no half of it missing
                out = self._read(data_of(rest) or b"")
            except UpstreamError:
                return b""
        if self.complete or self.failed or self._stop is None:
            return out
        return out + self._end()

    def failure(self, error: GatewayError) -> bytes:
        """See StreamDecoder."""
        return error.event()

    def _read(self, told: bytes) -> bytes:
        if self.complete or self.failed:
            return b""
        try:
            event = orjson.loads(told)
        except orjson.JSONDecodeError:
            event = None
        if type(event) is not dict:
            raise UpstreamError(f"The provider '{self._name}' sent an event that is not JSON.")
        match event.get("type"):
            case "content_block_delta":
                return self._more(self._blocks.get(_index(event)), _dict(event, "delta"))
            case "content_block_start":
                return self._start(_index(event), _dict(event, "content_block"))
            case "content_block_stop":
                return self._stopped(self._blocks.get(_index(event)))
            case "message_start":
                return self._begin(_dict(event, "message"))
            case "message_delta":
                self._tally.add(_dict(event, "usage"))
                delta = _dict(event, "delta")
                if delta.get("stop_reason") is not None:
                    self._stop = delta
                return b""
            case "message_stop":
                return self._end()
            case "error":
                self.failed = self.ending = True
                return self._failed_with(told).event()
            case "ping":  # a sign of life, while the model thinks: clients pass comments over
                return _PING
            case _:  # what may be new
                return b""

    def _begin(self, message: dict[str, Any]) -> bytes:
        self._tally.begin(message.get("usage"))
        if self._begun:
            return b""
        self._begun = True
        self._frame(_str(message, "id"), _str(message, "model"))
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def _frame(self, id: str, model: str) -> None:
        """What stands around the choices of each chunk."""
        head = {"id": id, "object": "chat.completion.chunk", "created": int(time.time()), "model": model}
        self._before = b"data: " + orjson.dumps(head)[:-1]
        self._after = b',"usage":null}\n\n' if self._wants_usage else b"}\n\n"

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return b'%b,"choices":[%b]%b' % (self._before, orjson.dumps(choice), self._after)

    def _start(self, index: Any, block: dict[str, Any]) -> bytes:
        self._blocks[index] = block
        match block.get("type"):
            case "text" | "thinking":
                kind = _str(block, "type")
                block["pieces"] = []
                return self._more(block, {"type": f"{kind}_delta", kind: block.get(kind)})
            case "redacted_thinking":
                return self._thought({"type": "redacted_thinking", "data": _str(block, "data")})
            case "tool_use" if self._answer_tool is not None and block.get("name") == self._answer_tool:
                if not self._answered:  # a second one would be a second answer
                    self._answered = True
                    block["call"] = None
                    block["input"] = self._whole_input(block.get("input"))
                return b""
            case "tool_use":
                # The client's index counts calls; the provider's counts blocks of all kinds.
                block["call"] = self._calls
                block["input"] = self._whole_input(block.get("input"))
                self._calls += 1
                name = _str(block, "name")
                opener = {
                    "index": block["call"],
                    "id": _str(block, "id") or f"call_{block['call']}",
                    "type": "function",
                    "function": {"name": self._names.get(name, name), "arguments": ""},
                }
                return self._chunk({"tool_calls": [opener]})
            case _:
                return b""

    def _whole_input(self, input: Any) -> str:
        """Arguments that come at once, as servers do that are only like Anthropic's."""
        try:
            return orjson.dumps(input or {}).decode()
        except orjson.JSONEncodeError:
            raise UpstreamError(f"The provider '{self._name}' sent a call that is nested too deeply.") from None

    def _more(self, block: dict[str, Any] | None, delta: dict[str, Any]) -> bytes:
        match delta.get("type"):
            case "text_delta" if text := _str(delta, "text"):
                return self._chunk({"content": text})
            case "input_json_delta" if block is not None and "call" in block and block.get("told") is not True:
                return self._arguments(block, _str(delta, "partial_json"))
            case "thinking_delta" if text := _str(delta, "thinking"):
                if block is not None and "pieces" in block:
                    block["pieces"].append(text)
                return self._chunk({"reasoning_content": text})
            case "signature_delta" if block is not None:
                block["signature"] = _str(block, "signature") + _str(delta, "signature")
        return b""

    def _arguments(self, block: dict[str, Any], text: str) -> bytes:
        if not text:
            return b""
        block["some"] = True
        if block["call"] is None:
            return self._chunk({"content": text})
        return self._chunk({"tool_calls": [{"index": block["call"], "function": {"arguments": text}}]})

    def _stopped(self, block: dict[str, Any] | None) -> bytes:
        """The end of a block: a call without a word of arguments has an empty object of them."""
        if block is None or block.get("told") is True:
            return b""
        if "call" in block and "some" not in block:
            block["told"] = True
            return self._arguments(block, block["input"])
        if block.get("type") == "thinking" and _str(block, "signature"):
            block["told"] = True
            whole = {"type": "thinking", "thinking": "".join(block["pieces"]), "signature": block["signature"]}
            return self._thought(whole)
        return b""

    def _thought(self, whole: dict[str, Any]) -> bytes:
        """A block of thinking as it must be sent back; with its index, by which clients put lists together."""
        self._thoughts += 1
        return self._chunk({"thinking_blocks": [{"index": self._thoughts - 1, **whole}]})

    def _end(self) -> bytes:
        """All that is left to say."""
        out = b"".join([self._stopped(block) for block in self._blocks.values()])
        stop = self._stop = self._stop or {}
        details = stop.get("stop_details")
        if type(details) is dict and _str(details, "explanation"):
            out += self._chunk({"refusal": details["explanation"]})
        reason = finish_reason(stop.get("stop_reason"), self._calls > 0)
        if reason == "tool_calls" and self._answered and not self._calls:
            reason = "stop"
        out += self._chunk({}, reason)
        usage = self.usage
        if self._wants_usage and usage is not None:
            out += b'%b,"choices":[],"usage":%b}\n\n' % (self._before, orjson.dumps(usage_object(usage)))
        self.ending = self.complete = True
        return out + _DONE


def _index(event: dict[str, Any]) -> Any:
    index = event.get("index")
    return index if type(index) is int else None


def _dict(event: dict[str, Any], name: str) -> dict[str, Any]:
    found = event.get(name)
    return found if type(found) is dict else {}


def _str(event: dict[str, Any], name: str) -> str:
    found = event.get(name)
    return found if type(found) is str else ""

"""Responses for providers that speak it themselves. Source: OpenAI API reference, "Responses", autumn 2026.

What comes back goes on byte for byte. What is asked is held to what a gateway of many tenants can answer for: nothing is
stored at the provider's account, nothing stored there is used, and no tool is run that costs what nobody meters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import orjson

from .._sample import StreamSample, streamed_tokens
from .._sse import EventSplitter, EventTooLong, count_data, data_of, split
from ..errors import GatewayError, Unsupported, UpstreamError
from ..fronts._responses_failure import error_event
from ..fronts._responses_rules import hosted, refuse_file_id, refuse_reference, refuse_stored, wrong
from ..records import Usage
from ..usage import usage_from
from ..wire import LLMRequest
from ._moved import fit_items
from .base import clean

# Tools that the client runs itself; a ``shell`` only where it is the client's.
_OWN = frozenset({"function", "custom", "namespace", "tool_search", "local_shell", "apply_patch", "computer",
                  "computer_use_preview"})  # fmt: skip
_TIERS = frozenset({"auto", "default", "flex", "scale", "priority", "fast"})
_INSTEAD = {
    "input_image": "the image itself, as a data: URL in 'image_url'",
    "input_file": "the file itself, as 'file_data'",
    "computer_screenshot": "the image itself, as a data: URL in 'image_url'",
}


def guarded(request: LLMRequest) -> dict[str, Any]:
    """The fields to change before a request goes to the provider: ``store`` is false, whatever was asked.

    ``input`` is written anew as it was read: of a member that stands twice in the client's bytes, the provider might read the
    other one. Raises Unsupported, BadRequest, naming the field and what to do.
    """
    data = request.data
    refuse_stored(data)
    tier = data.get("service_tier")
    if tier is not None and (type(tier) is not str or tier not in _TIERS):
        raise Unsupported("'service_tier' must be 'auto', 'default', 'flex', 'scale', 'priority' or 'fast': no price is "
                          "known for another.", param="service_tier")  # fmt: skip
    if data.get("tools") is not None:
        _look_at_tools(data["tools"], "tools")
    given = data.get("input")
    if type(given) is list:
        for at, item in enumerate(given):
            if type(item) is dict:
                _look_at(item, f"input[{at}]")
    changes: dict[str, Any] = {"store": False}
    if given is not None:
        changes["input"] = fit_items(given)
    return changes


def _look_at_tools(tools: Any, place: str) -> None:
    if type(tools) is not list:
        raise wrong(place, "an array", tools)
    for at, tool in enumerate(tools):
        here = f"{place}[{at}]"
        if type(tool) is not dict:
            raise wrong(here, "an object", tool)
        kind = tool.get("type")
        environment = tool.get("environment")
        locally = type(environment) is dict and environment.get("type") == "local"
        if not (type(kind) is str and (kind in _OWN or (kind == "shell" and locally))):
            raise hosted(kind, here)
        if kind == "namespace":
            _look_at_tools(tool.get("tools"), f"{here}.tools")


def _look_at(item: dict[str, Any], place: str) -> None:
    """Refuse what points at the provider's store; and tools, which may come among the items too."""
    refuse_reference(item, place)
    if item.get("tools") is not None:
        _look_at_tools(item["tools"], f"{place}.tools")
    for name in ("content", "output"):
        parts = item.get(name)
        for at, part in enumerate(parts if type(parts) is list else (parts,)):
            if type(part) is dict and part.get("file_id") is not None:
                kind = part.get("type")
                instead = _INSTEAD.get(kind) if type(kind) is str else None
                refuse_file_id(part, f"{place}.{name}[{at}]", instead or "its content")


# An event that is called so, or has one.
_ERROR_EVENT = re.compile(rb'"error"\s*(?:[,}]|:\s*[^\sn])')
_NUMBER = re.compile(rb'"sequence_number"\s*:\s*(\d{1,15})')


def _says_nothing_new(whole: bytes) -> bool:
    """Whether events hold neither the end nor an error. In a text the quotes round a word are escaped."""
    if whole.find(b"response.completed") >= 0 or whole.find(b"response.incomplete") >= 0:
        return False
    if whole.find(b"response.failed") >= 0:
        return False
    at = whole.find(b'"error"')
    return at < 0 or _ERROR_EVENT.search(whole, at) is None


class ResponsesStream:
    """One event stream of a provider's own, relayed byte for byte, but for the words of an error, which may hold what must
    not leave the house. See StreamDecoder.

    Args:
        name: The provider's name.
        secrets: What its words must not tell.
    """

    __slots__ = ("_name", "_secrets", "_splitter", "complete", "ending", "failed", "sample", "usage")

    def __init__(self, name: str, secrets: Sequence[str] = ()) -> None:
        self.usage: Usage | None = None
        self.sample = StreamSample()
        self.ending = False
        self.complete = False
        self.failed = False
        self._name = name
        self._secrets = secrets
        self._splitter = EventSplitter()

    def feed(self, data: bytes) -> bytes:
        """See StreamDecoder. Only whole events go on, so that an error can follow at any time."""
        try:
            whole = self._splitter.whole(data)
        except EventTooLong:
            raise UpstreamError(f"The provider '{self._name}' sent an event without an end.") from None
        if not whole:
            return b""
        self.sample.add(whole, count_data(whole))
        if _says_nothing_new(whole):
            return whole
        return b"".join([self._look(event) for event in split(whole)])

    def _look(self, event: bytes) -> bytes:
        """Look into one event; what of it the client shall have."""
        data = data_of(event)
        if data is None or _says_nothing_new(data):
            return event
        try:
            told = orjson.loads(data)
        except orjson.JSONDecodeError:
            return event
        if type(told) is not dict:
            return event
        kind, response = told.get("type"), told.get("response")
        response = response if type(response) is dict else {}
        if kind in ("response.completed", "response.incomplete", "response.failed"):
            self.usage = usage_from(response.get("usage")) or self.usage
            self.failed = self.failed or kind == "response.failed"
            self.ending = self.complete = True
        elif kind == "error" or (kind is None and told.get("error")):
            self.failed = True  # response.failed may follow, with the usage
        else:
            return event
        changed = [self._cleaned(one) for one in (told, told.get("error"), response.get("error"))]
        if any(changed):
            return b"event: %b\ndata: %b\n\n" % (str(kind or "error").encode(), orjson.dumps(told))
        return event

    def _cleaned(self, error: Any) -> bool:
        """Take out of an error's words what must not be told; whether there was any."""
        said = error.get("message") if type(error) is dict else None
        if type(said) is not str or (fit := clean(said, self._secrets)) == said:
            return False
        error["message"] = fit
        return True

    @property
    def events(self) -> int:
        """See StreamDecoder."""
        return self.sample.events

    def tokens(self, model: str | None = None) -> int:
        """See StreamDecoder."""
        return streamed_tokens(self.sample, model)

    def finish(self) -> bytes:
        """See StreamDecoder. Only the last event says that a response is whole; it may lack its blank line."""
        rest = self._splitter.rest
        if not rest.strip() or self.complete:
            return b""
        out = self._look(rest)
        return out.rstrip(b"\r\n") + b"\n\n" if self.complete else b""

    def failure(self, error: GatewayError) -> bytes:
        """See StreamDecoder. The event has the number after the last one that went on."""
        numbers = _NUMBER.findall(self.sample.tail)
        return error_event(error, int(numbers[-1]) + 1 if numbers else 0)

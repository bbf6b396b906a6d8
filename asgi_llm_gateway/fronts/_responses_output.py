"""The output of a Responses stream as events: items, their parts, and the pieces of both, numbered.

Source: OpenAI API reference, "Streaming events" of Responses, autumn 2026. Thoughts and messages begin and end one after the
other; calls stay open side by side, for their pieces may come in turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import orjson

from ._responses_answer import (
    Item,
    Names,
    arguments_in,
    call_item,
    message_item,
    reasoning_item,
    refusal_part,
    text_part,
)

Kind = Literal["reasoning", "text", "refusal"]
Status = Literal["completed", "incomplete"]

_WORDS = {
    "reasoning": ("response.reasoning_summary_text", "response.reasoning_summary_part", "text"),
    "text": ("response.output_text", "response.content_part", "text"),
    "refusal": ("response.refusal", "response.content_part", "refusal"),
}
"""Of a kind of part: its own events, those of its beginning and end, and the field of its whole text."""


class _Said:
    """An item that goes on, a message or thoughts, and its part that goes on."""

    __slots__ = ("annotations", "id", "index", "kind", "logprobs", "parts", "pieces", "place")

    def __init__(self, kind: Kind, id: str, index: int) -> None:
        self.id = id
        self.index = index
        self.parts: list[Item] = []  # that have ended
        self.begin(kind)

    def begin(self, kind: Kind) -> None:
        """A part of that kind begins."""
        self.kind = kind
        self.pieces: list[str] = []
        self.annotations: list[Item] = []
        self.logprobs: list[Item] = []
        field = b"summary_index" if kind == "reasoning" else b"content_index"
        where = (self.id.encode(), self.index, field, len(self.parts))
        self.place = b'"item_id":"%b","output_index":%d,"%b":%d' % where  # which each event of the part has

    @property
    def part(self) -> Item:
        """The part, as far as it has come."""
        text = "".join(self.pieces)
        if self.kind == "reasoning":
            return {"type": "summary_text", "text": text}
        return refusal_part(text) if self.kind == "refusal" else text_part(text, self.annotations, self.logprobs)


class Call:
    """A call that goes on.

    Attributes:
        called: The id that its output will be sent for; empty until it is known.
        name: The function's.
        pieces: Its arguments so far.
        told: Whether the client knows of it.
    """

    __slots__ = ("called", "id", "index", "name", "pieces", "place")

    def __init__(self) -> None:
        self.called = ""
        self.name = ""
        self.pieces: list[str] = []
        self.id = ""
        self.index = -1
        self.place = b""

    @property
    def told(self) -> bool:
        """Whether it was begun."""
        return self.index >= 0


class Output:
    """Writes the events. Every method gives those that it makes."""

    __slots__ = ("_items", "_names", "_said", "number")

    def __init__(self, names: Names) -> None:
        self.number = 0
        """The next event's ``sequence_number``."""
        self._names = names
        self._items: list[Item | None] = []  # by output_index; None while one goes on
        self._said: _Said | None = None

    @property
    def items(self) -> list[Item]:
        """The items that have ended, in order."""
        return [item for item in self._items if item is not None]

    def event(self, kind: str, fields: bytes) -> bytes:
        """One event; ``fields`` is the inside of a JSON object."""
        name, number = kind.encode(), self.number
        self.number += 1
        return b'event: %b\ndata: {"type":"%b","sequence_number":%d,%b}\n\n' % (name, name, number, fields)

    def _item(self, kind: str, index: int, item: Item) -> bytes:
        return self.event(f"response.output_item.{kind}", b'"output_index":%d,"item":%b' % (index, orjson.dumps(item)))

    # -- what is said --------------------------------------------------------------------------------------------------

    def say(self, kind: Kind, text: str, logprobs: Sequence[Item] = ()) -> bytes:
        """A piece of text, of a refusal or of thoughts."""
        said, out = self._said, b""
        if said is None or said.kind != kind:
            said, out = self._turn_to(kind)
        said.pieces.append(text)
        more = b""
        if kind == "text":
            said.logprobs += logprobs
            more = b',"logprobs":' + (orjson.dumps(logprobs) if logprobs else b"[]")
        return out + self.event(_WORDS[kind][0] + ".delta", b'%b,"delta":%b%b' % (said.place, orjson.dumps(text), more))

    def _turn_to(self, kind: Kind) -> tuple[_Said, bytes]:
        """End what goes on as far as it must, and begin a part of that kind."""
        said = self._said
        if said is not None and kind != "reasoning" and said.kind != "reasoning":
            out = self._end_part(said)  # the same message goes on
            said.begin(kind)
        else:
            out = self.end_said("completed")
            index = len(self._items)
            self._items.append(None)
            said = self._said = _Said(kind, self._names.item("rs" if kind == "reasoning" else "msg", index), index)
            item: Item = {"id": said.id, "type": "reasoning", "summary": []}
            out += self._item("added", index, item if kind == "reasoning" else message_item(said.id, "in_progress", ()))
        added = self.event(_WORDS[kind][1] + ".added", b'%b,"part":%b' % (said.place, orjson.dumps(said.part)))
        return said, out + added

    def annotate(self, annotations: Sequence[Item]) -> bytes:
        """Sources of the text that goes on."""
        said = self._said
        if said is None or said.kind != "text":
            return b""
        out = b""
        for one in annotations:
            at = len(said.annotations)
            said.annotations.append(one)
            fields = b'%b,"annotation_index":%d,"annotation":%b' % (said.place, at, orjson.dumps(one))
            out += self.event("response.output_text.annotation.added", fields)
        return out

    def _end_part(self, said: _Said) -> bytes:
        part = said.part
        said.parts.append(part)
        own, around, field = _WORDS[said.kind]
        told = b'%b,"%b":%b' % (said.place, field.encode(), orjson.dumps(part[field]))
        if said.kind == "text":
            told += b',"logprobs":' + orjson.dumps(said.logprobs)
        out = self.event(own + ".done", told)
        return out + self.event(around + ".done", b'%b,"part":%b' % (said.place, orjson.dumps(part)))

    def end_said(self, status: Status) -> bytes:
        """End the message or the thoughts that go on."""
        said = self._said
        if said is None:
            return b""
        self._said = None
        out = self._end_part(said)
        if said.kind == "reasoning":
            item = reasoning_item(said.id, said.parts[0]["text"])
        else:
            item = message_item(said.id, status, said.parts)
        self._items[said.index] = item
        return out + self._item("done", said.index, item)

    # -- calls ---------------------------------------------------------------------------------------------------------

    def begin_call(self, call: Call) -> bytes:
        """A call begins with what is known of its arguments; whatever was said before it ends."""
        out = self.end_said("completed")
        call.index = len(self._items)
        self._items.append(None)
        call.id = self._names.item("fc", call.index)
        call.called = call.called or f"call_{self._names.tail}{call.index:04x}"
        call.place = b'"item_id":"%b","output_index":%d' % (call.id.encode(), call.index)
        out += self._item("added", call.index, call_item(call.id, "in_progress", call.called, call.name, ""))
        known = "".join(call.pieces)
        return out + self.argue(call, known) if known else out

    def argue(self, call: Call, piece: str) -> bytes:
        """A piece of a call's arguments."""
        fields = b'%b,"delta":%b' % (call.place, orjson.dumps(piece))
        return self.event("response.function_call_arguments.delta", fields)

    def end_call(self, call: Call, status: Status) -> bytes:
        """A call ends. One that never got a name was none: nobody could answer it."""
        if not call.name:
            return b""
        out = b"" if call.told else self.begin_call(call)
        said = "".join(call.pieces)
        arguments = arguments_in(said)
        if arguments != said:
            out += self.argue(call, arguments)
        item = call_item(call.id, status, call.called, call.name, arguments)
        self._items[call.index] = item
        fields = b'%b,"arguments":%b' % (call.place, orjson.dumps(arguments))
        out += self.event("response.function_call_arguments.done", fields)
        return out + self._item("done", call.index, item)

"""Messages: a stream as the whole answer that it tells, and back.

Source: Anthropic API reference, "Messages" and "Streaming messages", 2023-06-01.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from ._chat import Untellable

Item = dict[str, Any]

_PIECES = {"text_delta": "text", "thinking_delta": "thinking"}
_EMPTY: dict[str, Item] = {"text": {"text": ""}, "thinking": {"thinking": "", "signature": ""}}


def whole(events: Iterable[Item]) -> Item:
    """The message that a stream's events tell. Raises Untellable."""
    message: Item = {}
    blocks: dict[int, Item] = {}
    pieces: dict[int, list[str]] = {}
    inputs: dict[int, list[str]] = {}
    for event in events:
        kind, index = event.get("type"), event.get("index")
        if kind == "message_start":
            message = dict(event["message"])
        elif kind == "content_block_start" and type(index) is int:
            blocks[index] = dict(event["content_block"])
        elif kind == "content_block_delta" and type(index) is int and index in blocks:
            _add(blocks[index], event["delta"], pieces.setdefault(index, []), inputs.setdefault(index, []))
        elif kind == "message_delta":
            message.update(event.get("delta") or {})
            told = event.get("usage") or {}
            # The counts are cumulative; those that are left out stay as the beginning told them.
            new = {name: value for name, value in told.items() if value is not None}
            message["usage"] = {**(message.get("usage") or {}), **new}
        elif kind not in ("content_block_stop", "message_stop", "ping"):
            raise Untellable
    if not message or sorted(blocks) != list(range(len(blocks))):
        raise Untellable
    for index, block in blocks.items():
        name = "text" if block.get("type") == "text" else "thinking"
        if pieces.get(index):
            block[name] = (block.get(name) or "") + "".join(pieces[index])
        if said := "".join(inputs.get(index, ())):
            try:
                block["input"] = orjson.loads(said)
            except orjson.JSONDecodeError:
                raise Untellable from None
    return {**message, "content": [blocks[index] for index in range(len(blocks))]}


def _add(block: Item, delta: Item, pieces: list[str], inputs: list[str]) -> None:
    kind = str(delta.get("type"))
    if kind in _PIECES and block.get("type") == _PIECES[kind]:
        pieces.append(delta[_PIECES[kind]])
    elif kind == "input_json_delta":
        inputs.append(delta["partial_json"])
    elif kind == "signature_delta":
        block["signature"] = delta["signature"]
    elif kind == "citations_delta":
        block["citations"] = [*(block.get("citations") or ()), delta["citation"]]
    else:
        raise Untellable


def events(message: Item) -> list[bytes]:
    """A stream that tells a whole message. Raises Untellable."""
    usage = message.get("usage")
    usage = usage if type(usage) is dict else {}
    ends = {
        name: message[name] for name in ("stop_reason", "stop_sequence", "stop_details", "container") if name in message
    }
    start = {
        **message,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {**usage, "output_tokens": 0},
    }
    found = [_event("message_start", message={**start, **dict.fromkeys(ends)})]
    for index, block in enumerate(message["content"]):
        if type(block) is not dict:
            raise Untellable
        opener, deltas = _pieces_of(block)
        found.append(_event("content_block_start", index=index, content_block=opener))
        found += [_event("content_block_delta", index=index, delta=delta) for delta in deltas]
        found.append(_event("content_block_stop", index=index))
    found.append(_event("message_delta", delta=ends, usage=usage))
    found.append(_event("message_stop"))
    return found


def _pieces_of(block: Item) -> tuple[Item, list[Item]]:
    """A block as it begins, and what is then said of it."""
    kind = block.get("type")
    if kind == "text":
        told = [{"type": "citations_delta", "citation": one} for one in block.get("citations") or ()]
        opener = {**block, "text": ""}
        if told:
            opener["citations"] = []
        return opener, [{"type": "text_delta", "text": block.get("text") or ""}, *told]
    if kind == "thinking":
        told = [{"type": "thinking_delta", "thinking": block.get("thinking") or ""}]
        if block.get("signature"):
            told.append({"type": "signature_delta", "signature": block["signature"]})
        return {**block, **_EMPTY["thinking"]}, told
    if kind in ("tool_use", "server_tool_use"):
        said = orjson.dumps(block.get("input") or {}).decode()
        return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": said}]
    return block, []


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))


__all__ = ["events", "whole"]

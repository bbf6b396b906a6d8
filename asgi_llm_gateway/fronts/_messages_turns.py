"""A Messages conversation in chat's words. Source: Anthropic API reference, "Messages", 2023-06-01.

Text stays text wherever it can: many servers take parts only beside images and files. A tool's result holds text alone in
chat, so what else it brought follows in the user's message, with a line that says whose it is.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

from ..errors import BadRequest
from ._messages_words import Block, Dropped, no_word_for, short_name, wrong

_IMAGES = {"image/jpeg": "image/jpeg", "image/jpg": "image/jpeg", "image/png": "image/png", "image/gif": "image/gif",
           "image/webp": "image/webp"}  # fmt: skip
_BETWEEN = "\n\n"  # paragraphs that were blocks of their own
# What is read of a block, and what is bookkeeping for the provider.
_READ = {
    "text": frozenset({"type", "text", "cache_control"}),
    "image": frozenset({"type", "source", "cache_control"}),
    "document": frozenset({"type", "source", "title", "context", "cache_control"}),
    "search_result": frozenset({"type", "source", "title", "content", "cache_control"}),
    "tool_use": frozenset({"type", "id", "name", "input", "cache_control"}),
    "tool_result": frozenset({"type", "tool_use_id", "content", "is_error", "cache_control"}),
}
_IDLE: tuple[Any, ...] = (None, False, [], {}, {"enabled": False}, {"type": "direct"})  # values that ask for nothing
_TOLD_ID = 64  # letters of an id that are told in words: whoever bounds the prompt by the body counts it once
_MESSAGE = frozenset({"role", "content"})


class Conversation:
    """Writes the messages of one request.

    Args:
        dropped: Told what is left out.
    """

    def __init__(self, dropped: Dropped) -> None:
        self._dropped = dropped

    def write(self, system: Any, messages: list[Block]) -> list[Block]:
        """The system's words first, then the turns. Raises BadRequest, Unsupported."""
        out: list[Block] = []
        said = self._text_alone(system, "system") if system is not None else ""
        if said:
            out.append({"role": "system", "content": said})
        led = len(out)
        for at, message in enumerate(messages):
            place = f"messages[{at}]"
            role, content = message["role"], message.get("content")
            if role == "user":
                self._user(content, f"{place}.content", out)
            elif role == "assistant":
                self._assistant(content, f"{place}.content", out)
            elif role == "system":  # in the middle of a conversation, where it stays
                if said := self._text_alone(content, f"{place}.content"):
                    out.append({"role": "system", "content": said})
            else:
                raise wrong(f"{place}.role", "'user', 'assistant' or 'system'")
            if len(message) > 2:
                for name in message.keys() - _MESSAGE:
                    self._dropped.add(name, "messages.")
        if len(out) == led:
            raise BadRequest("'messages' must have a message that says something.", param="messages")
        if out[-1]["role"] == "assistant":
            # Most of chat's servers would answer it instead of going on from it: the client would get another text.
            raise no_word_for("messages", "ends with an assistant message to go on from", "End with a user message.")
        return out

    # -- who speaks ----------------------------------------------------------------------------------------------------

    def _user(self, content: Any, place: str, out: list[Block]) -> None:
        """Results of tools first, each a message of its own, as chat wants them; then the rest."""
        if type(content) is str:
            if content.strip():
                out.append({"role": "user", "content": content})
            return
        parts: list[Block] = []
        brought: list[Block] = []
        for at, block in enumerate(_blocks(content, place)):
            here = f"{place}[{at}]"
            if block.get("type") == "tool_result":
                out.append(self._result(block, here, brought))
            else:
                parts += self._parts(block, here)
        if parts := brought + parts:
            out.append({"role": "user", "content": _plainest(parts)})

    def _assistant(self, content: Any, place: str, out: list[Block]) -> None:
        texts: list[str] = []
        calls: list[Block] = []
        if type(content) is str:
            texts.append(content)
        else:
            for at, block in enumerate(_blocks(content, place)):
                here = f"{place}[{at}]"
                kind = block.get("type")
                if kind == "text":
                    texts.append(self._text(block, here))
                elif kind == "tool_use":
                    calls.append(self._call(block, here))
                elif kind in ("thinking", "redacted_thinking"):
                    # Signed for the model that thought them, and without a signature where this gateway wrote them.
                    self._dropped.add(f"{kind}", "messages.")
                else:
                    raise _misplaced(kind, here)
        said = "".join(texts)  # citations cut one text into several blocks
        if calls:
            out.append({"role": "assistant", "content": said if said.strip() else None, "tool_calls": calls})
        elif said.strip():
            out.append({"role": "assistant", "content": said})

    def _call(self, block: Block, place: str) -> Block:
        self._look_for_more(block, "tool_use")
        called, name, given = block.get("id"), block.get("name"), block.get("input")
        if type(called) is not str or not called:
            raise wrong(f"{place}.id", "a string")
        if type(name) is not str or not name:
            raise wrong(f"{place}.name", "a string")
        if type(given) is not dict:
            raise wrong(f"{place}.input", "an object")
        return {"id": called, "type": "function", "function": {"name": short_name(name), "arguments": _json(given)}}

    def _result(self, block: Block, place: str, brought: list[Block]) -> Block:
        """One result as a message; ``brought`` gets what it holds beside text."""
        self._look_for_more(block, "tool_result")
        called, content, failed = block.get("tool_use_id"), block.get("content"), block.get("is_error")
        if type(called) is not str or not called:
            raise wrong(f"{place}.tool_use_id", "the id of a tool call")
        if failed is not None and type(failed) is not bool:
            raise wrong(f"{place}.is_error", "true or false")
        if content is None or type(content) is str:
            said = content or ""
        else:
            texts: list[str] = []
            more: list[Block] = []
            for at, inner in enumerate(_blocks(content, f"{place}.content")):
                for part in self._parts(inner, f"{place}.content[{at}]"):
                    if part["type"] == "text":
                        texts.append(part["text"])
                    else:
                        more.append(part)
            if more:
                brought += [{"type": "text", "text": f"What the tool call {called[:_TOLD_ID]} brought:"}, *more]
                texts = texts or ["See the user's next message."]
            said = _BETWEEN.join(texts)
        if failed:  # chat has no flag for it
            said = f"Error: {said}" if said else "Error"
        return {"role": "tool", "tool_call_id": called, "content": said}

    # -- what is said --------------------------------------------------------------------------------------------------

    def _text_alone(self, content: Any, place: str) -> str:
        if type(content) is str:
            return content if content.strip() else ""
        texts = []
        for at, block in enumerate(_blocks(content, place)):
            here = f"{place}[{at}]"
            if block.get("type") != "text":
                raise wrong(f"{here}.type", "'text'")
            texts.append(self._text(block, here))
        return _BETWEEN.join([text for text in texts if text.strip()])

    def _text(self, block: Block, place: str) -> str:
        text = block.get("text")
        if type(text) is not str:
            raise wrong(f"{place}.text", "a string")
        self._look_for_more(block, "text")
        return text

    def _parts(self, block: Block, place: str) -> list[Block]:
        """A block as chat's parts: none where it says nothing."""
        kind = block.get("type")
        if kind == "text":
            return _said(self._text(block, place))
        if kind == "image":
            self._look_for_more(block, kind)
            return [_image(_source(block, place), f"{place}.source")]
        if kind == "document":
            self._look_for_more(block, kind)
            return self._document(block, place)
        if kind == "search_result":
            self._look_for_more(block, kind)
            found = self._text_alone(block.get("content"), f"{place}.content")
            return _said(_BETWEEN.join([*_strings(block, place, "title", "source"), found]))
        raise _misplaced(kind, place)

    def _document(self, block: Block, place: str) -> list[Block]:
        """A PDF as a file; text and parts as what they are, under their title."""
        source = _source(block, place)
        kind, data = source.get("type"), source.get("data")
        place = f"{place}.source"
        if kind == "base64":
            if source.get("media_type") != "application/pdf":
                raise wrong(f"{place}.media_type", "application/pdf")
            if type(data) is not str or not data:
                raise wrong(f"{place}.data", "the file in base64")
            title = next(iter(_strings(block, place, "title")), "document.pdf")
            file = {"filename": title, "file_data": f"data:application/pdf;base64,{data}"}
            return [*_said(*_strings(block, place, "context")), {"type": "file", "file": file}]
        head = _BETWEEN.join(_strings(block, place, "title", "context"))
        if kind == "text":
            if type(data) is not str:
                raise wrong(f"{place}.data", "a string")
            return _said(_BETWEEN.join([head, data]) if head else data)
        if kind == "content":
            content = source.get("content")
            if type(content) is str:
                return _said(_BETWEEN.join([head, content]) if head else content)
            parts = _said(head)
            for at, inner in enumerate(_blocks(content, f"{place}.content")):
                here = f"{place}.content[{at}]"
                if inner.get("type") not in ("text", "image"):
                    raise wrong(f"{here}.type", "'text' or 'image'")
                parts += self._parts(inner, here)
            return parts
        raise no_word_for(f"{place}.type", f"is '{str(kind)[:40]}'", "Send the document itself, as 'base64' or 'text'.")

    def _look_for_more(self, block: Block, kind: str) -> None:
        if not _READ[kind].issuperset(block):
            for name in block.keys() - _READ[kind]:
                if block[name] not in _IDLE:
                    self._dropped.add(name, "messages.")


def _blocks(content: Any, place: str) -> list[Block]:
    if type(content) is not list:
        raise wrong(place, "a string or an array of blocks")
    for at, block in enumerate(content):
        if type(block) is not dict:
            raise wrong(f"{place}[{at}]", "an object")
    return content


def _misplaced(kind: Any, place: str) -> Exception:
    """A block that is not understood there: of the provider's own tools, of an upload, or of a kind that may be new."""
    return no_word_for(f"{place}.type", f"is '{str(kind)[:40]}'", "Leave the block out, or send what it says as text.")


def _said(*texts: str) -> list[Block]:
    return [{"type": "text", "text": text} for text in texts if text.strip()]


def _plainest(parts: list[Block]) -> Any:
    """Parts as one string where they are all text."""
    if any(part["type"] != "text" for part in parts):
        return parts
    return _BETWEEN.join([part["text"] for part in parts])


def _strings(block: Block, place: str, *names: str) -> list[str]:
    """The fields among ``names`` that say something."""
    found = []
    for name in names:
        value = block.get(name)
        if value is not None and type(value) is not str:
            raise wrong(f"{place}.{name}", "a string")
        if value:
            found.append(value)
    return found


def _source(block: Block, place: str) -> Block:
    source = block.get("source")
    if type(source) is not dict:
        raise wrong(f"{place}.source", "an object")
    return source


def _image(source: Block, place: str) -> Block:
    kind = source.get("type")
    if kind == "base64":
        media, data = source.get("media_type"), source.get("data")
        if type(media) is not str or media not in _IMAGES:
            raise wrong(f"{place}.media_type", "image/jpeg, image/png, image/gif or image/webp")
        if type(data) is not str or not data:
            raise wrong(f"{place}.data", "the image in base64")
        return {"type": "image_url", "image_url": {"url": f"data:{_IMAGES[media]};base64,{data}"}}
    if kind == "url":
        url = source.get("url")
        if type(url) is not str or not url[:8].lower().startswith(("http://", "https://")):
            raise wrong(f"{place}.url", "an http or https URL")
        return {"type": "image_url", "image_url": {"url": url}}
    raise no_word_for(f"{place}.type", f"is '{str(kind)[:40]}'", "Send the image itself, as 'base64' or 'url'.")


def _json(value: Block) -> str:
    """A call's input as text, with every digit: whole numbers that orjson does not write are the standard library's."""
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

"""Responses' input items as chat messages.

Chat wants what the items have apart put together: one assistant message a turn with all its calls, and each call's result
directly after it. Source: OpenAI API reference, "Create a model response" (``input``) and "Create chat completion".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import BadRequest, Unsupported
from ._responses_rules import refuse_file_id, refuse_reference, shown, wrong

Message = dict[str, Any]

_ROLES = frozenset({"user", "system", "developer", "assistant"})
_TEXTS = frozenset({"input_text", "output_text"})
_ATTACHED = "The result is attached in the next message."


class Conversation:
    """Writes the messages of one request.

    Args:
        drop: Told the name of each thing that is left out.
    """

    def __init__(self, drop: Callable[[str], None]) -> None:
        self._drop = drop
        self._messages: list[Message] = []
        self._turn: Message | None = None  # the assistant's, while it goes on
        self._open: dict[str, None] = {}  # calls without a result, in order
        self._attached: list[Message] = []  # what results have besides text
        self._waiting: list[Message] = []  # what must not stand between a call and its result

    def write(self, instructions: Any, given: Any) -> list[Message]:
        """The messages. Raises Unsupported, BadRequest."""
        if instructions is not None:
            if type(instructions) is not str:
                raise wrong("instructions", "a string", instructions)
            if instructions:
                self._messages.append({"role": "system", "content": instructions})
        if type(given) is str:
            self._add({"role": "user", "content": given})
        else:
            for at, item in enumerate(given):
                self._item(item, f"input[{at}]")
        self._settle()
        if not self._messages:
            raise BadRequest("'input' has nothing that a model could read.", param="input")
        return self._messages

    def _item(self, item: Any, place: str) -> None:
        if type(item) is not dict:
            raise wrong(place, "an object", item)
        refuse_reference(item, place)
        match item.get("type"):
            case None | "message":
                self._message(item, place)
            case "function_call":
                self._call(item, place)
            case "function_call_output":
                self._result(item, place)
            case "reasoning":
                # Made for the provider that encrypted it; chat has no place for it.
                if item.get("encrypted_content") is not None:
                    self._drop("input.reasoning.encrypted_content")
            case other:
                raise Unsupported(
                    f"'{place}' is of type {shown(other)}, which this model's API has no word for. Leave it out, or send "
                    "it as a message.",
                    param=f"{place}.type",
                )

    # -- messages ------------------------------------------------------------------------------------------------------

    def _message(self, item: dict[str, Any], place: str) -> None:
        role = item.get("role")
        if type(role) is not str or role not in _ROLES:
            raise BadRequest(f"'{place}.role' must be 'user', 'assistant', 'system' or 'developer'.",
                             param=f"{place}.role")  # fmt: skip
        content = item.get("content")
        if role == "user":
            self._add({"role": "user", "content": self._parts(content, f"{place}.content")})
        elif role == "assistant":
            if item.get("phase") is not None:
                self._drop("input.phase")
            self._said(self._text(content, f"{place}.content"))
        else:
            # Open models' templates do not know a developer; OpenAI's take either word for the same.
            self._instruct(self._text(content, f"{place}.content"))

    def _instruct(self, text: str) -> None:
        last = self._messages[-1] if self._messages else None
        if last is not None and last["role"] == "system" and len(self._messages) == 1 and self._turn is None:
            # Many templates take one system message, at the beginning.
            last["content"] += "\n\n" + text
        else:
            self._add({"role": "system", "content": text})

    def _add(self, message: Message) -> None:
        """A message that is not the assistant's; it waits while results of calls are due."""
        self._turn = None
        (self._waiting if self._open else self._messages).append(message)

    def _said(self, text: str) -> None:
        turn = self._speaking()
        turn["content"] = f"{turn['content']}\n\n{text}" if turn["content"] else text

    def _speaking(self) -> Message:
        """The assistant's message that goes on: what it says and calls in one turn is one message."""
        if self._turn is None:
            self._settle()
            self._turn = {"role": "assistant", "content": None}
            self._messages.append(self._turn)
        return self._turn

    def _settle(self) -> None:
        """All results must have come; what waited for them goes on."""
        if self._open:
            call = next(iter(self._open))
            raise BadRequest(f"No function_call_output was found in 'input' for the function_call with call_id "
                             f"'{call[:64]}'. Send one for each call.", param="input")  # fmt: skip
        self._messages += [*self._attached, *self._waiting]
        self._attached.clear()
        self._waiting.clear()

    # -- calls ---------------------------------------------------------------------------------------------------------

    def _call(self, item: dict[str, Any], place: str) -> None:
        called, name = _string(item, "call_id", place), _string(item, "name", place)
        arguments = item.get("arguments")
        if type(arguments) is not str:
            raise wrong(f"{place}.arguments", "a string of JSON", arguments)
        if item.get("namespace") is not None:
            self._drop("input.namespace")
        turn = self._speaking()
        if called in self._open:
            raise BadRequest(f"'{place}.call_id' is that of an earlier call.", param=f"{place}.call_id")
        function = {"name": name, "arguments": arguments}
        turn.setdefault("tool_calls", []).append({"id": called, "type": "function", "function": function})
        self._open[called] = None

    def _result(self, item: dict[str, Any], place: str) -> None:
        called = _string(item, "call_id", place)
        if called not in self._open:
            raise BadRequest(f"'{place}' is the output of no function_call before it: there is none with that call_id "
                             "that still waits for one.", param=f"{place}.call_id")  # fmt: skip
        output = item.get("output")
        content: Any = output
        attached: list[Message] = []
        if type(output) is not str:
            content = self._parts(output, f"{place}.output")
            if type(content) is list:  # a tool's message has text only: what is more follows after the last of them
                attached = [part for part in content if part["type"] != "text"]
                content = "\n".join(part["text"] for part in content if part["type"] == "text")
                content = content or (_ATTACHED if attached else "")
        self._turn = None
        self._messages.append({"role": "tool", "tool_call_id": called, "content": content})
        if attached:
            self._attached.append({"role": "user", "content": attached})
        del self._open[called]
        if not self._open:
            self._settle()

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _text(self, content: Any, place: str) -> str:
        """Content that is text alone. What the model once refused to say, it said."""
        if type(content) is str:
            return content
        if type(content) is not list:
            raise wrong(place, "a string or an array of parts", content)
        texts = []
        for at, part in enumerate(content):
            here = f"{place}[{at}]"
            kind = _kind(part, here)
            name = "refusal" if kind == "refusal" else "text"
            if kind != "refusal" and kind not in _TEXTS:
                raise _unknown(kind, here, "input_text, output_text, refusal")
            texts.append(_string(part, name, here, empty=True))
        return "\n".join(texts)

    def _parts(self, content: Any, place: str) -> str | list[Message]:
        """Content as chat has it: a string where it is one text, else parts."""
        if type(content) is str:
            return content
        if type(content) is not list:
            raise wrong(place, "a string or an array of parts", content)
        parts = [self._part(part, f"{place}[{at}]") for at, part in enumerate(content)]
        if len(parts) == 1 and parts[0]["type"] == "text":
            return str(parts[0]["text"])
        return parts or ""

    def _part(self, part: Any, place: str) -> Message:
        kind = _kind(part, place)
        if kind in _TEXTS:
            return {"type": "text", "text": _string(part, "text", place, empty=True)}
        if kind == "input_image":
            return self._image(part, place)
        if kind == "input_file":
            return self._file(part, place)
        if kind == "input_audio":
            audio = part.get("input_audio")
            if type(audio) is not dict:
                raise wrong(f"{place}.input_audio", "an object", audio)
            told = {name: _string(audio, name, f"{place}.input_audio") for name in ("data", "format")}
            return {"type": "input_audio", "input_audio": told}
        raise _unknown(kind, place, "input_text, input_image, input_file, input_audio")

    def _image(self, part: Message, place: str) -> Message:
        refuse_file_id(part, place, "the image itself, as a data: URL in 'image_url'")
        image: Message = {"url": _string(part, "image_url", place)}
        detail = part.get("detail")
        if detail is not None and detail != "auto":
            if type(detail) is not str:
                raise wrong(f"{place}.detail", "a string", detail)
            image["detail"] = detail
        return {"type": "image_url", "image_url": image}

    def _file(self, part: Message, place: str) -> Message:
        refuse_file_id(part, place, "the file itself, as 'file_data'")
        if part.get("file_url") is not None:
            raise Unsupported(f"'{place}.file_url' can't be put into this model's API. Send the file itself, as "
                              "'file_data'.", param=f"{place}.file_url")  # fmt: skip
        file: Message = {"file_data": _string(part, "file_data", place)}
        if part.get("filename") is not None:
            file["filename"] = _string(part, "filename", place)
        return {"type": "file", "file": file}


def _kind(part: Any, place: str) -> Any:
    if type(part) is not dict:
        raise wrong(place, "an object", part)
    kind = part.get("type")
    if type(kind) is not str:
        raise wrong(f"{place}.type", "a string", kind)
    return kind


def _unknown(kind: Any, place: str, known: str) -> Unsupported:
    return Unsupported(f"'{place}' is of type {shown(kind)}, which can't be put there; these can: {known}.",
                       param=f"{place}.type")  # fmt: skip


def _string(value: Message, name: str, place: str, *, empty: bool = False) -> str:
    found = value.get(name)
    if type(found) is not str:
        raise wrong(f"{place}.{name}", "a string", found)
    if not found and not empty:
        raise BadRequest(f"'{place}.{name}' must not be empty.", param=f"{place}.{name}")
    return found

"""The embedded provider: it says back what it was told. For first steps, demos and tests; it costs nothing.

Everything it does is determined by the request. Words are its tokens. ``metadata.echo_delay_ms`` paces a stream;
``metadata.echo_fault`` plays a failure: ``"429"`` or any other status from 400 on, ``"cut@N"`` (the answer ends after N
events, unfinished), ``"stall@N"`` (no more comes after N events), ``"html"``, ``"half"`` (half a JSON body).
"""

from __future__ import annotations

import base64
import hashlib
import re
import struct
import time
from collections.abc import Sequence
from typing import Any

import orjson

from ..errors import BadRequest, GatewayError, Header
from ..wire import Dialect, LLMRequest
from .base import Answer, Script, StreamDecoder, Unsupported, failure
from .openai import OpenAIAdapter

_JSON: tuple[Header, ...] = ((b"content-type", b"application/json"),)
_SSE: tuple[Header, ...] = ((b"content-type", b"text/event-stream; charset=utf-8"),)
_FAULT = re.compile(r"(?:(?P<status>[45]\d\d)|(?P<kind>cut|stall)@(?P<at>\d{1,6})|(?P<bad>html|half))\Z")
_FOREVER = 86_400.0
_MAX_DELAY_MS = 10_000


class EchoAdapter:
    """The scripted provider.

    Args:
        name: The provider's name.
        models: The models it claims to have.
        delay: Seconds before each event of a stream, where the request names no other.
        fault: The failure to play, where the request names none.
    """

    speaks: frozenset[Dialect] = frozenset({"chat", "completions", "embeddings"})
    translates: frozenset[Dialect] = frozenset()

    def __init__(
        self, name: str = "echo", *, models: Sequence[str] = ("echo",), delay: float = 0.0, fault: str | None = None
    ) -> None:
        if fault is not None and _FAULT.match(fault) is None:
            raise ValueError(f"fault={fault!r}: use a status, 'cut@N', 'stall@N', 'html' or 'half'")
        self.name = name
        self.models = tuple(models)
        self._delay = delay
        self._fault = fault
        # What comes out of a script is read like any other server's answer.
        self._reader = OpenAIAdapter(name, "http://echo.invalid/v1", models=models)

    def request(self, request: LLMRequest, model: str) -> Script:
        """See Adapter."""
        delay, fault = self._directions(request)
        dialect = request.route.dialect
        if dialect == "embeddings":
            script = _whole(_embeddings(request, model))
        elif dialect in ("chat", "completions"):
            answer = _Words(request, model)
            script = _streamed(answer.events(), delay) if request.stream else _whole(answer.whole(), delay)
        else:
            raise Unsupported(f"The provider '{self.name}' can't be asked in this API.", code="unsupported_api")
        return script if fault is None else _spoilt(script, fault)

    def _directions(self, request: LLMRequest) -> tuple[float, re.Match[str] | None]:
        """Pace and fault, from the request's metadata or the settings."""
        metadata = request.data.get("metadata")
        metadata = metadata if type(metadata) is dict else {}
        delay = self._delay
        asked = metadata.get("echo_delay_ms")
        if asked is not None:
            if re.fullmatch(r"[0-9]{1,5}", str(asked)) is None or int(asked) > _MAX_DELAY_MS:
                raise BadRequest(
                    f"'metadata.echo_delay_ms' must be a whole number from 0 to {_MAX_DELAY_MS}.", param="metadata"
                )
            delay = int(asked) / 1000
        fault = metadata.get("echo_fault", self._fault)
        if fault is None:
            return delay, None
        found = _FAULT.match(str(fault))
        if found is None:
            raise BadRequest(
                "'metadata.echo_fault' must be a status, 'cut@N', 'stall@N', 'html' or 'half'.", param="metadata"
            )
        return delay, found

    def response(self, request: LLMRequest, body: bytes) -> Answer:
        """See Adapter."""
        return self._reader.response(request, body)

    def stream(self, request: LLMRequest) -> StreamDecoder:
        """See Adapter."""
        return self._reader.stream(request)

    def error(self, status: int, headers: Sequence[Header], body: bytes) -> GatewayError:
        """See Adapter."""
        return failure(self.name, status, headers, body)


def _whole(answer: dict[str, Any], delay: float = 0.0) -> Script:
    return Script(200, _JSON, ((delay, orjson.dumps(answer)),))


def _streamed(events: Sequence[bytes], delay: float) -> Script:
    return Script(200, _SSE, tuple((delay, event) for event in events))


def _spoilt(script: Script, fault: re.Match[str]) -> Script:
    """The script with a failure in it."""
    if fault["status"]:
        error = GatewayError(f"The echo provider was told to answer {fault['status']}.", code=None, type="echo_fault")
        extra: tuple[Header, ...] = ((b"retry-after-ms", b"10"),) if fault["status"] in ("429", "503") else ()
        return Script(int(fault["status"]), (*_JSON, *extra), ((0.0, error.body()),))
    if fault["bad"] == "html":
        return Script(200, ((b"content-type", b"text/html"),), ((0.0, b"<html><body>Bad gateway</body></html>"),))
    if fault["bad"] == "half":
        (delay, body), *_ = script.steps
        return Script(200, script.headers, ((delay, body[: len(body) // 2]),), cut=True)
    at = int(fault["at"])
    kept = tuple(script.steps[:at])
    if fault["kind"] == "stall":
        return Script(200, script.headers, (*kept, (_FOREVER, b"")))
    return Script(200, script.headers, kept, cut=True)


class _Words:
    """One deterministic answer to a chat or a completion."""

    def __init__(self, request: LLMRequest, model: str) -> None:
        data = request.data
        self._chat = request.route.dialect == "chat"
        self._choices = request.choices
        self._tool = _tool_wanted(data) if self._chat else None
        text = _last_words(data)
        schema = _schema_of(data)
        if schema is not None:
            said = orjson.dumps(_instance(schema)).decode()
        else:
            said = text or "Hello from the echo model."
        words = re.findall(r"\s*\S+", said) or [""]
        limit = request.max_tokens
        self._cut = limit is not None and len(words) > limit and self._tool is None
        self._words = words[:limit] if self._cut else words
        prompt = _count(data.get("messages") if self._chat else data.get("prompt"))
        completion = (1 if self._tool else len(self._words)) * self._choices
        self.usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        digest = hashlib.sha256(request.raw).hexdigest()
        self._head = {
            "id": ("chatcmpl-" if self._chat else "cmpl-") + digest[:24],
            "object": "chat.completion" if self._chat else "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    @property
    def _reason(self) -> str:
        return "tool_calls" if self._tool else ("length" if self._cut else "stop")

    def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        text = "".join(self._words)
        choices: list[dict[str, Any]] = []
        for index in range(self._choices):
            choice: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": self._reason}
            if not self._chat:
                choice["text"] = text
            elif self._tool:
                choice["message"] = {"role": "assistant", "content": None, "tool_calls": [self._call(index)]}
            else:
                choice["message"] = {"role": "assistant", "content": text, "refusal": None}
            choices.append(choice)
        return {**self._head, "choices": choices, "usage": self.usage}

    def _call(self, index: int) -> dict[str, Any]:
        assert self._tool is not None
        return {"id": f"call_echo_{index}", "type": "function", "function": self._tool}

    def events(self) -> list[bytes]:
        """The answer as a stream: role, words, finish, usage, ``[DONE]``."""
        events = []
        for index in range(self._choices):
            if self._chat:
                events.append(self._chunk(index, {"role": "assistant", "content": None if self._tool else ""}))
            if self._tool:
                call = self._call(index)
                opener = {**call, "index": 0, "function": {**self._tool, "arguments": ""}}
                events.append(self._chunk(index, {"tool_calls": [opener]}))
                rest = {"index": 0, "function": {"arguments": self._tool["arguments"]}}
                events.append(self._chunk(index, {"tool_calls": [rest]}))
            else:
                events += [self._chunk(index, {"content": word}) for word in self._words]
            events.append(self._chunk(index, {}, self._reason))
        events.append(self._event({**self._event_head, "choices": [], "usage": self.usage}))
        return [*events, b"data: [DONE]\n\n"]

    @property
    def _event_head(self) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk"} if self._chat else self._head

    def _chunk(self, index: int, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": reason}
        if self._chat:
            choice["delta"] = delta
        else:
            choice["text"] = delta.get("content", "")
        return self._event({**self._event_head, "choices": [choice]})

    @staticmethod
    def _event(data: dict[str, Any]) -> bytes:
        return b"data: " + orjson.dumps(data) + b"\n\n"


def _texts(value: Any) -> list[str]:
    """All text in messages, prompts and inputs."""
    if type(value) is str:
        return [value]
    if type(value) is list:
        return [text for inner in value for text in _texts(inner)]
    if type(value) is dict:
        return _texts(value.get("content") if "content" in value else value.get("text"))
    return []


def _count(value: Any) -> int:
    return sum(len(text.split()) for text in _texts(value))


def _last_words(data: dict[str, Any]) -> str:
    """What the user said last."""
    messages = data.get("messages")
    if type(messages) is list:
        mine = [message for message in messages if message.get("role") in ("user", "tool")]
        return " ".join(_texts(mine[-1:]))
    return " ".join(_texts(data.get("prompt")))


def _tool_wanted(data: dict[str, Any]) -> dict[str, str] | None:
    """The function to call: the one that is named, or the first where one is required; a tool's result ends it."""
    tools, choice = data.get("tools"), data.get("tool_choice")
    listed: list[Any] = [tool.get("function") for tool in tools if type(tool) is dict] if type(tools) is list else []
    functions = [one for one in listed if type(one) is dict and type(one.get("name")) is str]
    if type(choice) is dict and type(choice.get("function")) is dict:
        functions = [one for one in functions if one["name"] == choice["function"].get("name")]
    elif choice != "required":
        return None
    if not functions:
        return None
    arguments = orjson.dumps(_instance(functions[0].get("parameters") or {"type": "object"})).decode()
    return {"name": functions[0]["name"], "arguments": arguments}


def _schema_of(data: dict[str, Any]) -> dict[str, Any] | None:
    wanted = data.get("response_format")
    if type(wanted) is not dict:
        return None
    if wanted.get("type") == "json_object":
        return {"type": "object"}
    schema = wanted.get("json_schema")
    found = schema.get("schema") if type(schema) is dict else None
    return found if type(found) is dict else None


def _instance(schema: Any, depth: int = 0) -> Any:
    """A plain value for a plain JSON Schema: enough for a demo."""
    if type(schema) is not dict or depth > 8:
        return None
    if schema.get("enum"):
        return schema["enum"][0]
    if "const" in schema:
        return schema["const"]
    kind = schema.get("type")
    kind = kind[0] if type(kind) is list and kind else kind
    properties = schema.get("properties")
    if kind == "object" or type(properties) is dict:
        inner = properties if type(properties) is dict else {}
        return {name: _instance(one, depth + 1) for name, one in inner.items()}
    if kind == "array":
        return [_instance(schema.get("items"), depth + 1)]
    return {"string": "echo", "integer": 1, "number": 1.0, "boolean": True}.get(str(kind))


def _embeddings(request: LLMRequest, model: str) -> dict[str, Any]:
    """Vectors that depend on the text alone."""
    given = request.data["input"]
    inputs = [given] if type(given) is str or (given and type(given[0]) is int) else given
    wanted = request.data.get("dimensions")
    size = wanted if type(wanted) is int and 1 <= wanted <= 4096 else 8
    encoding = request.data.get("encoding_format")
    if encoding not in (None, "float", "base64"):
        raise BadRequest("'encoding_format' must be 'float' or 'base64'.", param="encoding_format")
    as_base64 = encoding == "base64"
    rows = []
    for index, text in enumerate(inputs):
        vector = _vector(orjson.dumps(text), size)
        packed: Any = base64.b64encode(struct.pack(f"<{size}f", *vector)).decode() if as_base64 else vector
        rows.append({"object": "embedding", "index": index, "embedding": packed})
    count = sum(len(one) if type(one) is list else max(1, len(str(one).split())) for one in inputs)
    usage = {"prompt_tokens": count, "total_tokens": count}
    return {"object": "list", "data": rows, "model": model, "usage": usage}


def _vector(text: bytes, size: int) -> list[float]:
    raw = hashlib.shake_256(text).digest(size * 2)
    return [round((value - 32768) / 32768, 6) for value in struct.unpack(f"<{size}H", raw)]

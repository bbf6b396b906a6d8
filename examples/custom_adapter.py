"""A provider of your own in one file: an adapter for a model server that speaks its own dialect.

The server, "Parrot", takes ``POST {base_url}/generate`` with ``{"turns": [{"who", "says"}], "limit": 50, "live": false}``
and answers ``{"text": "...", "end": "done", "counted": [3, 5]}``; live, it sends events ``{"piece": "..."}`` and a last one
with ``end`` and ``counted``. ``end`` is ``done`` or ``limit``; a failure is ``{"problem": "..."}``.

Your package says where the adapter is by an entry point, and nothing else needs to know it:

    [project.entry-points."asgi_llm_gateway.adapters"]
    parrot = "custom_adapter:make"

The settings file then has one more type (the gateway routes, retries, holds, streams and meters as for any provider):

    [providers.house]
    type = "parrot"
    base_url = "http://10.0.0.7:9000"
    models = ["polly"]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from asgi_llm_gateway.adapters.base import Answer, Endpoint, Unsupported, UpstreamRequest, clean, failure
from asgi_llm_gateway.errors import GatewayError, Header, UpstreamError
from asgi_llm_gateway.records import Dialect, Usage
from asgi_llm_gateway.settings import ProviderConfig, secret
from asgi_llm_gateway.wire import LLMRequest

FINISH = {"done": "stop", "limit": "length"}
# What the adapter reads, and what means nothing to the server. Any other field is refused by name, not dropped in silence.
READ = {"model", "messages", "max_tokens", "max_completion_tokens", "stream", "stream_options"}
WITHOUT_EFFECT = {"user", "metadata", "store"}


def make(name: str, config: ProviderConfig) -> ParrotAdapter:
    """What the entry point names: the adapter for ``[providers.NAME]``. A ValueError stops the start and is shown."""
    if config.base_url is None:
        raise ValueError("base_url is needed")
    return ParrotAdapter(name, config.base_url, secret(config.api_key), config.models)


class ParrotAdapter:
    """See ``asgi_llm_gateway.adapters.base.Adapter``: plain functions of bytes, no waiting and no socket.

    It takes chat completions. Clients of the Messages and the Responses API are translated to those in front of it.
    """

    speaks: frozenset[Dialect] = frozenset({"chat"})
    translates: frozenset[Dialect] = frozenset({"chat"})

    def __init__(self, name: str, base_url: str, key: str | None, models: Sequence[str]) -> None:
        self.name = name
        self.models = tuple(models)
        headers: list[Header] = [(b"content-type", b"application/json"), (b"accept-encoding", b"identity")]
        if key:
            headers.append((b"x-parrot-key", key.encode("latin-1")))
        self._endpoint = Endpoint("POST", base_url.rstrip("/") + "/generate", headers)
        self._secrets = (key,) if key else ()

    def request(self, request: LLMRequest, model: str) -> UpstreamRequest:
        """The request to send. Raises Unsupported."""
        data = request.data
        for field in data.keys() - READ - WITHOUT_EFFECT:
            if data[field] is not None and not (field == "n" and data[field] == 1):
                raise Unsupported(f"'{field}' has no word at the provider '{self.name}'. Remove it.", param=field)
        turns = [{"who": turn["role"], "says": _text(turn.get("content"))} for turn in data["messages"]]
        body = {"parrot": model, "turns": turns, "limit": request.max_tokens, "live": request.stream}
        dropped = tuple(sorted(WITHOUT_EFFECT & data.keys()))  # the client is told: x-llm-dropped-fields
        return UpstreamRequest(self._endpoint, json.dumps(body).encode(), dropped)

    def response(self, request: LLMRequest, body: bytes) -> Answer:
        """A chat completion, and what it used. Raises UpstreamError for what is no answer."""
        try:
            told = json.loads(body)
            message = {"role": "assistant", "content": told["text"]}
            choice = {"index": 0, "message": message, "finish_reason": FINISH[told["end"]]}
            usage = _usage(told["counted"])
        except (ValueError, KeyError, TypeError):
            raise UpstreamError(f"The provider '{self.name}' sent what is no answer.") from None
        answer = {"id": "chatcmpl-parrot", "object": "chat.completion", "created": 0, "model": request.model,
                  "choices": [choice], "usage": _shown(usage)}  # fmt: skip
        return Answer(json.dumps(answer).encode(), usage)

    def stream(self, request: LLMRequest) -> ParrotStream:
        """A decoder for one stream."""
        return ParrotStream(self.name, request, self._secrets)

    def error(self, status: int, headers: Sequence[Header], body: bytes) -> GatewayError:
        """What a failure is called towards the client: the server's words, without its keys and hosts."""
        with suppress(ValueError, KeyError, TypeError):  # else it is what a proxy before the server said
            body = json.dumps({"error": {"message": json.loads(body)["problem"]}}).encode()
        return failure(self.name, status, headers, body, self._secrets)


class ParrotStream:
    """See ``asgi_llm_gateway.adapters.base.StreamDecoder``: bytes cut anywhere in, chat's events out."""

    def __init__(self, name: str, request: LLMRequest, secrets: Sequence[str]) -> None:
        self.usage: Usage | None = None
        self.events = 0
        self.ending = self.complete = self.failed = False
        self._name = name
        self._request = request
        self._secrets = secrets
        self._rest = b""
        self._bytes = 0

    def feed(self, data: bytes) -> bytes:
        """The events that are whole by now. Raises UpstreamError, which the client is told as the stream's last event."""
        *whole, self._rest = (self._rest + data).split(b"\n\n")
        return b"".join(self._event(one[5:]) for one in whole if one.startswith(b"data:"))

    def _event(self, data: bytes) -> bytes:
        try:
            told = json.loads(data)
            if "problem" in told:
                raise UpstreamError(clean(str(told["problem"]), self._secrets))
            self.events += 1
            if "piece" in told:
                self._bytes += len(told["piece"])
                return self._chunk({"content": told["piece"]})
            reason, self.usage = FINISH[told["end"]], _usage(told["counted"])
        except (ValueError, KeyError, TypeError):
            raise UpstreamError(f"The provider '{self._name}' sent an event that is none.") from None
        self.ending = self.complete = True  # the money is settled now, before the end goes out
        out = self._chunk({}, reason)
        if self._request.wants_usage:
            out += self._chunk(None, usage=_shown(self.usage))
        return out + b"data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, Any] | None, reason: str | None = None, **more: Any) -> bytes:
        choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": reason}]
        chunk = {"id": "chatcmpl-parrot", "object": "chat.completion.chunk", "created": 0, "model": self._request.model,
                 "choices": choices, **more}  # fmt: skip
        return b"data: " + json.dumps(chunk).encode() + b"\n\n"

    def tokens(self, model: str | None = None) -> int:
        """About so many tokens came, for a stream that broke off: a text's token has about four bytes."""
        return -(-self._bytes // 4)

    def finish(self) -> bytes:
        """The server closed the stream: without its last event that is no end, and none is made up."""
        return b""

    def failure(self, error: GatewayError) -> bytes:
        """A failure in the middle of the stream, as chat's clients know it."""
        return error.event()


def _text(content: Any) -> str:
    parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
    if any(part.get("type") != "text" for part in parts):
        raise Unsupported("Parrot reads text only. Remove images, audio and files.", param="messages")
    return "".join(part["text"] for part in parts)


def _usage(counted: Any) -> Usage:
    prompt, completion = counted
    return Usage(int(prompt), int(completion))


def _shown(usage: Usage) -> dict[str, int]:
    return {"prompt_tokens": usage.prompt, "completion_tokens": usage.completion, "total_tokens": usage.total}

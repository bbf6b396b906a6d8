"""Whose content is captured, where it goes, what of it may be told, and how much."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable
from typing import Any, Literal

import orjson

from ..wire import Dialect
from .fit import Fit
from .read import INPUT, OUTPUT, Content, answered, asked

log = logging.getLogger("asgi_llm_gateway")

Mode = Literal["NO_CONTENT", "SPAN_ONLY", "EVENT_ONLY", "SPAN_AND_EVENT"]
Redact = Callable[[str, list[dict[str, Any]]], "list[dict[str, Any]] | None"]
"""Gets an attribute's name (``gen_ai.input.messages``, ...) and its messages, gives them back changed, or ``None``."""

VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_MODES: dict[str, Mode] = {
    "": "NO_CONTENT", "FALSE": "NO_CONTENT", "NO_CONTENT": "NO_CONTENT",
    "TRUE": "SPAN_ONLY",  # what older instrumentations took
    "SPAN_ONLY": "SPAN_ONLY", "EVENT_ONLY": "EVENT_ONLY", "SPAN_AND_EVENT": "SPAN_AND_EVENT",
}  # fmt: skip

COLLECTED = 1024 * 1024
"""Bytes of an answer that are kept until it is read; a stream's text is a small part of its events."""


def mode_of(text: str) -> Mode:
    """The mode that a text names, in any case; ``NO_CONTENT`` for one that names none, which is logged."""
    found = _MODES.get(text.strip().upper())
    if found is None:
        log.warning("%s is none of NO_CONTENT, SPAN_ONLY, EVENT_ONLY, SPAN_AND_EVENT: no content is captured", VARIABLE)
    return found or "NO_CONTENT"


class ContentCapture:
    """What was said in the calls of certain tenants, for spans and events of OpenTelemetry.

    Nobody's content is captured unless both a mode and the tenant are named.

    Args:
        mode: Where content goes; ``None`` asks ``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT``.
        tenants: Ids of the tenants whose content is captured, ``"*"`` for all; ``None`` asks ``TRACE_CONTENT_TENANTS``.
        redact: Is called with an attribute's name and its messages, before anything is cut; it gives back what may be told
            of them, or ``None`` for nothing. If it raises, nothing of the call is told.
        max_bytes: Bytes of JSON for each attribute; ``None`` asks ``TRACE_CONTENT_MAX_BYTES``.

    Raises:
        ValueError: The mode is none of the four, or ``max_bytes`` is below 256.
        TypeError: ``redact`` is a coroutine function: nobody awaits it.
    """

    def __init__(
        self,
        mode: Mode | None = None,
        *,
        tenants: Iterable[str] | None = None,
        redact: Redact | None = None,
        max_bytes: int | None = None,
    ) -> None:
        if mode is not None and mode not in _MODES.values():
            raise ValueError(f"mode={mode!r}: use 'NO_CONTENT', 'SPAN_ONLY', 'EVENT_ONLY' or 'SPAN_AND_EVENT'")
        if max_bytes is not None and max_bytes < 256:
            raise ValueError(f"max_bytes={max_bytes}: give at least 256")
        if inspect.iscoroutinefunction(redact):
            raise TypeError("redact is a coroutine function; give a plain one, it is not awaited")
        if isinstance(tenants, str):
            raise TypeError(f"tenants={tenants!r}: give a list of ids")
        self._mode = mode
        self._tenants = None if tenants is None else frozenset(tenants)
        self._redact = redact
        self._max_bytes = max_bytes
        self._settled: tuple[bool, bool, frozenset[str], int] | None = None
        self._told = False

    @property
    def _terms(self) -> tuple[bool, bool, frozenset[str], int]:
        """Spans, events, tenants and bytes; the settings are read on first use."""
        if self._settled is None:
            from ..settings import current, otel_variables

            mode, tenants, limit = self._mode, self._tenants, self._max_bytes
            if mode is None:
                mode = mode_of(otel_variables().get(VARIABLE, ""))
            if tenants is None:
                named = current().trace_content_tenants.split(",")
                tenants = frozenset(one.strip() for one in named if one.strip())
            if limit is None:
                limit = current().trace_content_max_bytes
            self._settled = (
                mode in ("SPAN_ONLY", "SPAN_AND_EVENT"),
                mode in ("EVENT_ONLY", "SPAN_AND_EVENT"),
                tenants,
                limit,
            )
        return self._settled

    @property
    def on(self) -> bool:
        """Whether anybody's content is captured at all. Raises SettingsError where a setting is wrong."""
        spans, events, tenants, _ = self._terms
        return (spans or events) and bool(tenants)

    @property
    def spans(self) -> bool:
        """Content goes onto spans."""
        return self._terms[0]

    @property
    def events(self) -> bool:
        """Content goes into events."""
        return self._terms[1]

    def wants(self, tenant: str) -> bool:
        """Whether that tenant's content is captured."""
        tenants = self._terms[2]
        return self.on and (tenant in tenants or "*" in tenants)

    def content(self, dialect: Dialect | None, data: dict[str, Any], answer: Heard) -> Content:
        """What was said, redacted and bounded; empty where the hook failed, or nothing can be read.

        For a tenant that ``wants`` says yes to, and no other.

        Args:
            dialect: That of the call.
            data: The request's body.
            answer: What came back.
        """
        limit = self._terms[3]
        try:
            content = asked(dialect, data, limit)
            said = answered(dialect, answer.bytes, stream=answer.stream, limit=limit)
            if said:
                content.said[OUTPUT] = said
            content.truncated = content.truncated or answer.cut
            content.said = self._fitted(self._redacted(content.said), limit, content)
        except Exception as error:  # hostile shapes, or a hook: the content is left out and the call goes on
            self.failed(error)
            return Content()
        return content

    def failed(self, error: Exception) -> None:
        """A call's content could not be told. Of the error only its kind is logged: what it says may be what was said."""
        self._warn(f"a call's content could not be told ({type(error).__name__}), and is left out")

    def _redacted(self, said: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
        if self._redact is None:
            return said
        found = {}
        for name, messages in said.items():
            try:
                kept = self._redact(name, messages)
                if kept is not None and type(kept) is not list:
                    raise TypeError
            except Exception as error:  # the operator's hook may raise anything: fail closed
                self._warn(f"redact= failed ({type(error).__name__}): the content of such calls is left out")
                return {}
            if kept:
                found[name] = kept
        return found

    def _fitted(
        self, said: dict[str, list[dict[str, Any]]], limit: int, content: Content
    ) -> dict[str, list[dict[str, Any]]]:
        found = {}
        for name, messages in said.items():
            fit = Fit(limit)
            if kept := fit.list(messages, newest_first=name == INPUT):
                found[name] = kept
            content.truncated = content.truncated or fit.cut
        return found

    def _warn(self, text: str) -> None:
        """Say it once: the next call fails in the same way."""
        if not self._told:
            self._told = True
            log.warning("content capture: %s", text)


class Heard:
    """The bytes of a request or an answer as they pass by, bounded.

    Attributes:
        stream: They are events; else a JSON document.
        cut: There were more than are kept.
    """

    __slots__ = ("_left", "_parts", "cut", "stream")

    def __init__(self, *, stream: bool = False, limit: int = COLLECTED) -> None:
        self.stream = stream
        self.cut = False
        self._parts: list[bytes] = []
        self._left = limit

    def add(self, data: bytes) -> None:
        """The next bytes."""
        if len(data) > self._left:
            data = data[: self._left]
            self.cut = True
        self._left -= len(data)
        if data:
            self._parts.append(data)

    @property
    def bytes(self) -> bytes:
        """What is kept of it; nothing of a JSON document that was cut, which nobody can read."""
        return b"" if self.cut and not self.stream else b"".join(self._parts)


def as_json(content: Content) -> dict[str, str]:
    """The attributes for a span: each a JSON text."""
    return {name: orjson.dumps(messages).decode() for name, messages in content.said.items()}


__all__ = ["VARIABLE", "ContentCapture", "Heard", "Mode", "Redact", "as_json", "mode_of"]

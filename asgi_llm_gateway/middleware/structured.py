"""Answers that match their schema: checked before money is spent, validated before they are believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from .._asgi import ASGIApp, Receive, Scope, Send
from ..exchange import MAX_BODY, Exchange
from ..structured.compiled import SchemaCache
from ..structured.judge import FORMS, Cut, format_of
from ..structured.limits import DEFAULT_LIMITS, Limits
from ._structured import Run
from ._structured_pass import Native, Streams, Terms
from .base import LLMMiddleware, Rank


class StructuredOutputMiddleware(LLMMiddleware):
    """Validate what a request asks to be structured: an answer in a JSON schema, any JSON object, arguments of strict tools.

    Chat (``response_format``, ``tools[].function.strict``), Responses (``text.format``, ``tools[].strict``) and Messages
    (``output_config.format``, ``tools[].strict``). A schema that is none, or could cost too much, is refused with 400 and
    its place before anything is asked. An answer that does not match is mended where there is one way to do so (code fences,
    prose around it, trailing commas), else asked for again with what was wrong, under the same hold, and refused at last
    with 422 ``structured_output_invalid`` and the place. Refusals, and answers that ended at their limit, pass as they are.

    The standard is JSON Schema 2020-12, whatever ``$schema`` says; ``format`` is an annotation. ``x-llm-structured`` on the
    answer says what was done: ``repaired``, ``retried``, ``instructed``. ``jsonschema`` validates (extra ``structured``), or
    ``jsonschema-rs`` where it is installed (extra ``structured-fast``), with the same verdicts.

    Args:
        app: The ASGI app further in.
        native: Whether the upstream enforces formats itself. ``"auto"``: it is asked to, and asked in words where it
            refuses the field. ``"trust"``: its refusal is the answer. ``"never"``: it is asked in words from the start, the
            field is taken out.
        streams: ``"pass"``: a stream is relayed, and ends in an error event in place of its own end where it does not match.
            ``"hold"``: it is held until it is valid, mended or asked for again like any answer. ``None`` takes
            STRUCTURED_STREAMS.
        retries: How often an answer that does not match is asked for again, 0 to 3; ``None`` takes STRUCTURED_RETRIES.
        truncated: What happens to an answer that ended at its limit (``length``) and does not match: ``"pass"``,
            ``"repair"`` (closed where that makes it match, else refused) or ``"refuse"``.
        limits: What schemas and answers may cost.
        paths: See LLMMiddleware.
        govern: See LLMMiddleware.
        max_body: See LLMMiddleware.
    """

    rank = Rank.STRUCTURED

    def __init__(
        self,
        app: ASGIApp,
        *,
        native: Native = "auto",
        streams: Streams | None = None,
        retries: int | None = None,
        truncated: Cut = "pass",
        limits: Limits = DEFAULT_LIMITS,
        paths: Mapping[str, str] | None = None,
        govern: Literal["v1", "all"] = "v1",
        max_body: int = MAX_BODY,
    ) -> None:
        for name, value, allowed in (
            ("native", native, ("auto", "trust", "never")),
            ("streams", streams, (None, "pass", "hold")),
            ("truncated", truncated, ("pass", "repair", "refuse")),
        ):
            if value not in allowed:
                raise ValueError(f"{name}={value!r}: use one of {', '.join(map(repr, filter(None, allowed)))}")
        if retries is not None and not 0 <= retries <= 3:
            raise ValueError(f"retries={retries}: from 0 to 3")
        same = (native, streams, retries, truncated, limits)
        super().__init__(app, settings=same, paths=paths, govern=govern, max_body=max_body)
        self._given = same
        self._terms: Terms | None = None
        self._cache = SchemaCache(limits)
        self._inside = bool(getattr(type(app), "ends_exchange", False))

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """See LLMMiddleware."""
        form = FORMS.get(exchange.route.dialect)
        if form is None or scope["method"] != "POST":
            await self.forward(exchange, scope, receive, send)
            return
        if exchange.request is None:
            receive = await exchange.read(receive, scope)
        request = exchange.request
        assert request is not None
        format = format_of(form, request.data, self._cache)
        if format is None:
            await self.forward(exchange, scope, receive, send)
            return
        run = Run(self._terms or self._take_terms(), form, format, exchange, send, inside=self._inside)

        async def forward(scope: Scope, receive: Receive, send: Send) -> None:
            await self.forward(exchange, scope, receive, send)

        await run.run(forward, _readable(scope) if self._seals else scope, receive)

    def _take_terms(self) -> Terms:
        native, streams, retries, truncated, limits = self._given
        if streams is None or retries is None:
            from ..settings import current

            settings = current()
            streams = streams or settings.structured_streams
            retries = settings.structured_retries if retries is None else retries
        self._terms = Terms(native, streams, retries, truncated, limits)
        return self._terms


_FILES = ("http.response.pathsend", "http.response.zerocopysend")


def _readable(scope: Scope) -> Scope:
    """The scope for an app whose answer must be read here: it shall not compress it, nor hand over a file."""
    headers = [one for one in scope.get("headers") or () if one[0].lower() != b"accept-encoding"]
    changed: dict[str, Any] = {**scope, "headers": headers}
    extensions = scope.get("extensions")
    if extensions:
        changed["extensions"] = {name: value for name, value in extensions.items() if name not in _FILES}
    return changed


__all__ = ["StructuredOutputMiddleware"]

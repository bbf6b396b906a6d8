"""Which path is which dialect, and what a request says: the one place that parses a request's body.

Paths and fields: OpenAI API reference ("Chat", "Completions", "Embeddings", "Responses", "Moderations", "Audio",
"Images") and Anthropic API reference ("Messages"), as of autumn 2026.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote

import orjson

from . import multipart
from ._form_fields import changes_to, fields_of
from .errors import BadRequest, Envelope
from .multipart import Form
from .records import Dialect as Dialect
from .validation import check, check_form, kind_of, refuse_twins

Kind = Literal["metered", "authenticated", "open", "misspelt"]


@dataclass(frozen=True, slots=True)
class Route:
    """What the gateway does for a path: ``dialect`` is ``None`` where no body is read."""

    kind: Kind
    dialect: Dialect | None
    path: str

    @property
    def envelope(self) -> Envelope:
        """The shape that errors take there."""
        return "anthropic" if self.path.startswith("/v1/messages") else "openai"


METERED: Mapping[str, Dialect] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
    "/v1/moderations": "moderations",
    "/v1/audio/transcriptions": "transcriptions",
    "/v1/audio/translations": "translations",
    "/v1/audio/speech": "speech",
    "/v1/images/generations": "images",
    "/v1/images/edits": "image_edits",
}
"""Paths whose POST costs money: parsed, held and settled."""

MEDIA: frozenset[Dialect | None] = frozenset(
    {"moderations", "transcriptions", "translations", "speech", "images", "image_edits"}
)
"""Dialects without an output limit, that are not (only) charged by text tokens."""

FORM_ONLY: frozenset[Dialect | None] = frozenset({"transcriptions", "translations"})
"""Dialects whose requests are forms (multipart/form-data), because a file comes with them."""

FORMS: frozenset[Dialect | None] = FORM_ONLY | {"image_edits"}
"""Dialects whose requests may be forms."""

DEFAULT_MODERATION = "omni-moderation-latest"
"""The model of a moderation that names none. Source: OpenAI API reference, "Create moderation"."""

_LIMIT_FIELDS: Mapping[Dialect | None, tuple[str, ...]] = {
    "chat": ("max_completion_tokens", "max_tokens"),
    "completions": ("max_tokens",),
    "responses": ("max_output_tokens",),
    "messages": ("max_tokens",),
}
"""Where a dialect's output limit sits. Under another dialect's name a provider passes it over, so it is no limit."""

PASS = Route("open", None, "")
_EXACT = {path: Route("metered", dialect, path) for path, dialect in METERED.items()}
# Anything that a lenient server might take for another path. Quick: most paths have none of it.
_ODD = re.compile(r"[^a-z0-9/_.~@:+,-]|//|/\.")
# What may lead to another path altogether; without it only the letters differ (``/v1/models/Qwen3`` is a fair name).
_TRICK = re.compile(r"[%;\\\s]|//|/\.")


class Table:
    """The closed table of paths.

    Args:
        paths: The user's own additions: a path (or a prefix, ending in ``/*``) to ``"metered"`` (authenticated, rate
            limited and held; the body is not read), ``"authenticated"`` or ``"open"``.
        govern: ``"v1"`` governs what lies below ``/v1``; ``"all"`` authenticates everything but ``/health``.
    """

    def __init__(self, paths: Mapping[str, str] | None = None, govern: Literal["v1", "all"] = "v1") -> None:
        if govern not in ("v1", "all"):
            raise ValueError(f"govern={govern!r}: use 'v1' or 'all'")
        self._exact: dict[str, Route] = dict(_EXACT)
        self._prefixes: list[tuple[str, Route]] = []
        self._lower: list[tuple[str, Route]] = []  # the user's own paths in lower case
        self._all = govern == "all"
        for path, kind in (paths or {}).items():
            if kind not in ("metered", "authenticated", "open"):
                raise ValueError(f"paths[{path!r}]={kind!r}: use 'metered', 'authenticated' or 'open'")
            if not path.startswith("/"):
                raise ValueError(f"paths[{path!r}]: a path starts with '/'")
            if path.endswith("/*"):
                self._prefixes.append((path[:-1], Route(kind, None, path[:-2])))  # type: ignore[arg-type]
            else:
                self._exact[path] = Route(kind, None, path)  # type: ignore[arg-type]
            self._lower.append((path.lower(), self._named(path)))
        self.settings = (tuple(sorted((paths or {}).items())), govern)

    def match(self, scope: Any) -> Route:
        """The route of an ASGI http or websocket scope. Decided on its ``path`` less ``root_path``, never on Host or URL."""
        path: str = scope["path"]
        root: str = scope.get("root_path") or ""
        if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("/", ""):
            route = self._match(path[len(root) :], scope)
            # Mounted at /v1 itself, the prefix is part of the API's paths.
            return route if route.kind != "open" else self._match(path, scope)
        return self._match(path, scope)

    def _match(self, path: str, scope: Any) -> Route:
        found = self._exact.get(path)
        if found is not None:
            return found
        if path.endswith("/") and slash_of_the_host(scope):
            path = path[:-1]
        route = self._named(path)
        plain = PASS
        if _ODD.search(path) is not None:
            plain = self._plainly(_canonical(path))
        elif path.endswith("/") and route.kind != "metered":
            plain = self._plainly(path.rstrip("/"))
            if plain.kind != "metered":
                plain = PASS
        if plain.kind != "open" and (
            (plain.kind, plain.dialect) != (route.kind, route.dialect) or _TRICK.search(path) is not None
        ):
            # Another spelling of a guarded path: a server further in may read it as that path, so it is no path at all.
            return Route("misspelt", None, path)
        return route

    def _plainly(self, path: str) -> Route:
        """The route of a path in its plain spelling, whatever case the user's own paths are written in."""
        route = self._named(path)
        if route.kind == "open":
            for own, row in self._lower:
                if path == own or (own.endswith("/*") and path.startswith(own[:-1])):
                    return row
        return route

    def _named(self, path: str) -> Route:
        found = self._exact.get(path)
        if found is not None:
            return found
        for prefix, route in self._prefixes:
            if path.startswith(prefix):
                return route
        if path.startswith("/v1/") or path == "/v1":
            return Route("authenticated", None, path)
        for known in METERED:
            # The same API under a prefix of the host app is no way round.
            if path.endswith(known):
                return Route("metered", METERED[known], known)
        if self._all and path != "/health":
            return Route("authenticated", None, path)
        return PASS


def slash_of_the_host(scope: Any) -> bool:
    """Whether the slash at a path's end is not the client's: Litestar puts one on every path of an app that it mounts."""
    raw: bytes = scope.get("raw_path") or b"/"
    return not unquote(raw.decode("latin-1")).endswith("/")


def _canonical(path: str) -> str:
    """The plainest spelling of a path: unescaped, lower case, no parameters, no empty or dot segments."""
    for _ in range(3):
        path = unquote(path)
    segments: list[str] = []
    for segment in path.replace("\\", "/").lower().split("/"):
        name = segment.partition(";")[0].strip().rstrip(".") if segment not in (".", "..") else segment
        if name == "..":
            del segments[-1:]
        elif name not in ("", "."):
            segments.append(name)
    return "/" + "/".join(segments)


class LLMRequest:
    """One request's body, read once. Not to be changed: ``with_fields`` gives a changed one.

    Attributes:
        route: The path's row in the table.
        raw: The body as it came.
        data: The parsed body; of a form the fields that the gateway reads.
        form: Where the parts of a form stand in ``raw``; ``None`` for JSON.
        added: Fields that the gateway put in and the client had not sent.
        model: The model asked for.
        stream: Whether the answer is to be a stream.
        max_tokens: The output limit in tokens, for one choice; ``None`` where none is given.
        choices: How many answers are asked for (``n``).
        tenant: The tenant that the body named; the gateway's own field.
        header: The first value of a header of the client's by its lower-case name; ``None`` for one that it did not send.
        as_chat: The same request in the words of chat completions, once an adapter needed it so.
    """

    __slots__ = ("_body", "_rewritten", "added", "as_chat", "choices", "data", "form", "header", "max_tokens", "model",
                 "raw", "route", "stream", "tenant")  # fmt: skip

    def __init__(self, route: Route, raw: bytes, data: dict[str, Any], form: Form | None = None) -> None:
        self.route = route
        self.raw = raw
        self.data = data
        self.form = form
        self.added: Mapping[str, Any] = _NOTHING
        self.model: str = data["model"]
        self.stream: bool = data.get("stream") is True or (
            route.dialect == "speech" and data.get("stream_format") == "sse"
        )
        self.max_tokens: int | None = _limit_of(route.dialect, data)
        self.choices: int = data.get("n") or 1
        self.tenant: str | None = data.get("tenant")
        self.header: Callable[[bytes], bytes | None] = _no_header
        self.as_chat: LLMRequest | None = None
        self._rewritten = False
        self._body: bytes | None = raw

    @property
    def wants_usage(self) -> bool:
        """Whether the client is to see a stream's usage: it asked for it, or its dialect always tells it."""
        if self.route.dialect in _ALWAYS_TELL_USAGE:
            return True
        options = self.data.get("stream_options")
        return isinstance(options, dict) and options.get("include_usage") is True and "stream_options" not in self.added

    def with_fields(self, **fields: Any) -> LLMRequest:
        """The request with other values; ``None`` takes a field out."""
        data = {name: value for name, value in self.data.items() if name not in fields}
        data.update((name, value) for name, value in fields.items() if value is not None)
        changed = LLMRequest(self.route, self.raw, data, self.form)
        changed.header = self.header
        changed.tenant = self.tenant  # taken out of the body, and still what the client asked for
        changed.added = {
            name: value
            for name, value in {**self.added, **fields}.items()
            if value is not None and (name in self.added or name not in self.data)
        }
        # What the gateway put in itself it may change without touching the client's own bytes.
        changed._rewritten = self._rewritten or any(name in self.data and name not in self.added for name in fields)
        changed._body = None if changed._rewritten or changed.added else self.raw
        return changed

    @property
    def amended(self) -> bool:
        """Whether the body to send is another one than came."""
        return self._rewritten or bool(self.added)

    @property
    def body(self) -> bytes:
        """The body to send: as it came, byte for byte, where nothing was changed; written at most once where it was.

        What was only added is put at the end, so that the client's own bytes stay as they are.
        """
        if self._body is None:
            if self.form is not None:
                self._body = multipart.rewrite(self.form, self.raw, changes_to(self.form, self.raw, self.data))
            elif self._rewritten:
                self._body = rewrite(self.raw, self.data)
            else:
                self._body = self.raw.rstrip()[:-1] + b"," + orjson.dumps(dict(self.added))[1:]
        return self._body


_NOTHING: Mapping[str, Any] = {}
_ALWAYS_TELL_USAGE = MEDIA | {"messages", "responses"}


def _no_header(name: bytes) -> bytes | None:
    """Of a request that came without headers, as one made by hand does."""
    return None


_DIGITS = bytes(0x31 if 0x30 <= byte <= 0x39 else 0x30 for byte in range(256))
_RUN = b"1" * 19


def may_be_huge(raw: bytes) -> bool:
    """Whether a body may hold a whole number that does not fit 64 bits, which orjson reads as a float: 19 digits in a row.

    A regex takes as long as reading the body does, twenty times over. Of 19 digits every ninth byte has two in a row.
    """
    return raw[::9].translate(_DIGITS).find(b"11") >= 0 and raw.translate(_DIGITS).find(_RUN) >= 0


def rewrite(raw: bytes, data: dict[str, Any]) -> bytes:
    """Write ``data``, which was read from ``raw`` and changed at its top level, without losing a digit."""
    try:
        if not may_be_huge(raw):
            return orjson.dumps(data)
    except orjson.JSONEncodeError:
        pass  # it reads deeper than it writes
    try:
        exact, rounded = json.loads(raw), orjson.loads(raw)
        kept = {
            name: exact[name] if name in exact and rounded[name] == value else value for name, value in data.items()
        }
        return json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode()
    except RecursionError:
        raise BadRequest("The body is nested too deeply.", code="invalid_json") from None


def limit_names(dialect: Dialect | None) -> tuple[str, ...]:
    """What the output limit is called in a dialect; the last is the one that every server of it understands."""
    return _LIMIT_FIELDS.get(dialect) or ("max_tokens",)


def _limit_of(dialect: Dialect | None, data: dict[str, Any]) -> int | None:
    for name in _LIMIT_FIELDS.get(dialect, ()):
        value = data.get(name)
        if value is not None:
            return int(value)
    return None


def check_content_type(dialect: Dialect | None, kind: bytes | None) -> None:
    """Refuse (415) what a dialect's requests are not written in. Raises BadRequest; also for a form without a boundary."""
    if dialect in FORMS and multipart.boundary_of(kind) is not None:
        return
    if dialect not in FORM_ONLY and (kind is None or kind.lower().find(b"json") >= 0):
        return
    wanted = "application/json or multipart/form-data" if dialect in FORMS else "application/json"
    raise BadRequest(f"The content type must be {'multipart/form-data' if dialect in FORM_ONLY else wanted}.", status=415,
                     param="content-type", code="unsupported_media_type")  # fmt: skip


def parse(route: Route, raw: bytes, content_type: bytes | None = None) -> LLMRequest:
    """Read a request's body. Raises BadRequest, saying what to do.

    Args:
        route: The path's row in the table.
        raw: The body.
        content_type: That of the request; it tells a form from JSON, and where its parts end.
    """
    dialect = route.dialect
    if dialect in FORMS:
        check_content_type(dialect, content_type)
        boundary = multipart.boundary_of(content_type)
        if boundary is not None:
            form = multipart.read(raw, boundary)
            data = fields_of(form, raw)
            check_form(dialect, form)
            check(dialect, data)
            return LLMRequest(route, raw, data, form)
    data = _object_of(raw)
    if dialect == "moderations" and data.get("model") is None:
        return _moderation(route, raw, data)
    check(dialect, data)
    refuse_twins(raw, data, media=dialect in MEDIA)
    return LLMRequest(route, raw, data)


def _moderation(route: Route, raw: bytes, data: dict[str, Any]) -> LLMRequest:
    """A moderation that names no model: it is asked for by name, so that what was allowed is what answers."""
    named = {**data, "model": DEFAULT_MODERATION}
    check("moderations", named)
    refuse_twins(raw, named, media=True)
    request = LLMRequest(route, raw, named)
    if "model" in data:  # as null, which is written over
        return request.with_fields(model=DEFAULT_MODERATION)
    request.added = {"model": DEFAULT_MODERATION}
    request._body = None
    return request


def _object_of(raw: bytes) -> dict[str, Any]:
    """A JSON body. Raises BadRequest."""
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequest(_json_fault(raw, error), code="invalid_json") from None
    if type(data) is not dict:
        raise BadRequest(f"The body must be a JSON object, not {kind_of(data)}.", code="invalid_json")
    return data


def _json_fault(raw: bytes, error: orjson.JSONDecodeError) -> str:
    if not raw:
        return "The body is empty. Send a JSON object."
    reason = str(error).partition(": line")[0]
    return f"The body is not valid JSON: {reason} (line {error.lineno}, column {error.colno})."

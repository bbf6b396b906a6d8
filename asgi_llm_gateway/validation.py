"""Which requests are refused before anybody is asked: wrong types, cheating limits, fields named twice.

Ranges: OpenAI API reference, "Create chat completion", as of autumn 2026.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from operator import itemgetter
from typing import Any

from .errors import BadRequest
from .multipart import Form
from .records import Dialect

MAX_MODEL_LENGTH = 256
"""Characters that a model's name may have."""

MAX_CHOICES = 128
"""The most answers (``n``) to one request. Source: OpenAI API reference, "Create chat completion"."""

REFUSED_FIELDS = frozenset(
    {
        "api_base", "api_key", "api_type", "api_version", "aws_access_key_id", "aws_secret_access_key",
        "aws_session_token", "azure_ad_token", "azure_endpoint", "base_url", "custom_llm_provider", "default_headers",
        "extra_headers", "headers", "http_client", "organization", "proxies", "proxy", "vertex_credentials",
    }
)  # fmt: skip
"""Body fields by which routers let a caller choose where money and trust go. Here only the operator does."""

_KINDS = {dict: "an object", list: "an array", str: "a string", int: "a number", float: "a number", bool: "a boolean"}


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    return _KINDS.get(type(value), "null")


def _wrong(name: str, wanted: str, value: Any) -> BadRequest:
    shown = f"{kind_of(value)}" if not isinstance(value, int) or isinstance(value, bool) else str(value)[:40]
    return BadRequest(f"'{name}' must be {wanted}, not {shown}.", param=name, code="invalid_value")


def _not_allowed(name: str) -> BadRequest:
    return BadRequest(
        f"'{name}' is not allowed in a request: providers, keys and headers are configured by the gateway's operator. "
        "Remove the field.",
        param=name,
        code="unsupported_parameter",
    )


def check(dialect: Dialect | None, data: dict[str, Any]) -> None:
    """Validate the fields that the gateway acts on; all others pass through as they are. Raises BadRequest."""
    if not REFUSED_FIELDS.isdisjoint(data):
        raise _not_allowed(sorted(REFUSED_FIELDS & data.keys())[0])
    model = data.get("model")
    if type(model) is not str or not model or len(model) > MAX_MODEL_LENGTH or not model.isprintable():
        if model is None:
            raise BadRequest("'model' is required.", param="model", code="missing_required_parameter")
        if type(model) is not str:
            raise _wrong("model", "a string", model)
        raise BadRequest(f"'model' must be 1 to {MAX_MODEL_LENGTH} printable characters.", param="model")
    stream = data.get("stream")
    if stream is not None and type(stream) is not bool:
        raise _wrong("stream", "true or false", stream)
    tenant = data.get("tenant")
    if tenant is not None and type(tenant) is not str:
        raise _wrong("tenant", "a string", tenant)
    if not _LIMITING.isdisjoint(data):
        _check_limits(data)
    if dialect in ("chat", "messages"):
        _check_messages(data.get("messages"))
    elif dialect == "embeddings":
        _check_text(data, "input")
    elif dialect == "completions":
        _check_text(data, "prompt")
    elif dialect == "responses":
        if "input" in data:
            _check_text(data, "input")
    elif dialect in _CHECKS:
        _CHECKS[dialect](data)


_OUTPUT_LIMITS = frozenset({"max_completion_tokens", "max_tokens", "max_output_tokens"})
_COUNTS = frozenset({"n", "best_of"})
_LIMITING = _OUTPUT_LIMITS | _COUNTS | {"stream_options"}


def _check_limits(data: dict[str, Any]) -> None:
    found: int | None = None
    for name in sorted(_LIMITING.intersection(data)):
        value = data[name]
        if value is None:
            continue
        if name in _OUTPUT_LIMITS:
            if type(value) is not int or not 1 <= value <= 2**31 - 1:
                raise _wrong(name, "a whole number of at least 1", value)
            if found is not None and found != value:
                raise BadRequest(f"'{name}' disagrees with the other output limit. Send one of them.", param=name)
            found = value
        elif name in _COUNTS:
            if type(value) is not int or not 1 <= value <= MAX_CHOICES:
                raise _wrong(name, f"a whole number from 1 to {MAX_CHOICES}", value)
        elif type(value) is not dict:
            raise _wrong("stream_options", "an object", value)
        elif data.get("stream") is not True:
            raise BadRequest("'stream_options' is only allowed with 'stream': true.", param="stream_options")
        else:
            wanted = value.get("include_usage")
            if wanted is not None and type(wanted) is not bool:
                raise _wrong("stream_options.include_usage", "true or false", wanted)


_ROLE_AND_CONTENT = itemgetter("role", "content")
_STRINGS = {str}
_CONTENTS = frozenset({str, list, type(None)})


def _check_messages(messages: Any) -> None:
    if messages is None:
        raise BadRequest("'messages' is required.", param="messages", code="missing_required_parameter")
    if type(messages) is not list:
        raise _wrong("messages", "an array", messages)
    if not messages:
        raise BadRequest("'messages' must have at least one message.", param="messages", code="invalid_value")
    try:  # most are so, and are seen to be so in one go; only where one is not, it is looked for
        roles, contents = zip(*map(_ROLE_AND_CONTENT, messages), strict=True)
        if {*map(type, roles)} == _STRINGS and all(roles) and _CONTENTS.issuperset(map(type, contents)):
            return
    except (KeyError, TypeError):
        pass
    for at, message in enumerate(messages):
        if type(message) is not dict:
            raise _wrong(f"messages[{at}]", "an object", message)
        role = message.get("role")
        if type(role) is not str or not role:
            raise BadRequest(f"'messages[{at}].role' must be a string.", param=f"messages[{at}].role")
        content = message.get("content")
        if content is not None and type(content) is not str and type(content) is not list:
            raise _wrong(f"messages[{at}].content", "a string or an array of parts", content)


def _check_text(data: dict[str, Any], name: str) -> None:
    value = data.get(name)
    if value is None:
        raise BadRequest(f"'{name}' is required.", param=name, code="missing_required_parameter")
    if type(value) is not str and type(value) is not list:
        raise _wrong(name, "a string or an array", value)
    if not value:
        raise BadRequest(f"'{name}' must not be empty.", param=name)


# -- what is not text --------------------------------------------------------------------------------------------------

SLOWEST, FASTEST = 0.25, 4.0
"""How fast speech may be asked for. Source: OpenAI API reference, "Create speech"."""

MAX_PARTIAL_IMAGES = 3
"""Previews of an image that is streamed. Source: OpenAI API reference, "Create image"."""


def _check_moderation(data: dict[str, Any]) -> None:
    _check_text(data, "input")


def _check_speech(data: dict[str, Any]) -> None:
    _check_text(data, "input")
    if type(data["input"]) is not str:
        raise _wrong("input", "a string", data["input"])
    _check_strings(data, "stream_format", "response_format", "instructions")
    speed = data.get("speed")
    if speed is not None and (type(speed) not in (int, float) or not SLOWEST <= speed <= FASTEST):
        raise BadRequest(f"'speed' must be a number from {SLOWEST} to {FASTEST}.", param="speed")


def _check_images(data: dict[str, Any]) -> None:
    _check_strings(data, "prompt", "size", "quality", "response_format", "input_fidelity")
    partial = data.get("partial_images")
    if partial is not None and (type(partial) is not int or not 0 <= partial <= MAX_PARTIAL_IMAGES):
        raise _wrong("partial_images", f"a whole number from 0 to {MAX_PARTIAL_IMAGES}", partial)


def _check_strings(data: dict[str, Any], *names: str) -> None:
    for name in names:
        value = data.get(name)
        if value is not None and type(value) is not str:
            raise _wrong(name, "a string", value)


_CHECKS: dict[Dialect | None, Callable[[dict[str, Any]], None]] = {
    "moderations": _check_moderation,
    "speech": _check_speech,
    "images": _check_images,
    "image_edits": _check_images,
}


def check_form(dialect: Dialect | None, form: Form) -> None:
    """Validate which parts a form has. Raises BadRequest."""
    names = {part.name for part in form.parts}
    refused = sorted((REFUSED_FIELDS | {"_charset_"}) & names)  # the latter would have texts read in another way
    if refused:
        raise _not_allowed(refused[0])
    wanted = ("image", "image[]") if dialect == "image_edits" else ("file",)
    if not any(part.file and part.name in wanted for part in form.parts):
        raise BadRequest(f"A file named '{wanted[0]}' is required.", param=wanted[0], code="missing_required_parameter")


# What the gateway decides on: named twice, it and the provider could each read another one (first wins, last wins).
_DECIDING = (
    "model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "max_output_tokens", "n", "best_of",
    "tenant",
)  # fmt: skip
_DECIDED = frozenset(_DECIDING)
_MEDIA_DECIDED = _DECIDED | {"input", "size", "quality", "partial_images", "speed", "stream_format", "images", "mask"}
_NEEDLES = {name: b'"%s"' % name.encode() for name in _MEDIA_DECIDED}
# An escape for an ASCII character: it may spell a key in disguise.
_DISGUISE = re.compile(rb"\\u00[2-7]")


def refuse_twins(raw: bytes, data: dict[str, Any], *, media: bool = False) -> None:
    """Refuse a body whose top level names a deciding field twice; of ``media``, what is charged decides, too.

    Counting the name's bytes settles almost every body; only where they occur more often are the keys read one by one.
    """
    deciding = _MEDIA_DECIDED if media else _DECIDED
    doubtful = raw.find(b"\\u00") >= 0 and _DISGUISE.search(raw) is not None
    if not doubtful:
        for name in deciding.intersection(data):
            if raw.count(_NEEDLES[name]) > 1:
                doubtful = True
                break
    if not doubtful:
        return
    seen: set[str] = set()
    for name in _top_level_keys(raw):
        if name in seen and name in deciding:
            raise BadRequest(f"'{name}' is given twice. Send it once.", param=name, code="duplicate_field")
        seen.add(name)


def _top_level_keys(raw: bytes) -> list[str]:
    """The keys of the outermost object, in order, twins included."""
    last: list[list[str]] = [[]]

    def keep(pairs: list[tuple[str, Any]]) -> None:
        last[0] = [key for key, _ in pairs]  # inner objects come first, the outermost comes last

    try:
        json.loads(raw, object_pairs_hook=keep, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        raise BadRequest("The body is nested too deeply.", code="invalid_json") from None
    return last[0]

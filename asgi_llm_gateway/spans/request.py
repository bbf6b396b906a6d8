"""What a request asks for, in the attributes of the convention. Never what it says: no message, no prompt.

Source: OpenTelemetry semantic conventions, "Generative AI client spans" and "OpenAI" (see ``names``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..wire import LLMRequest
from .names import OUTPUT_TYPE, REQUEST_MODEL, short

_NUMBERS = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
}
_WHOLE = {
    "top_k": "gen_ai.request.top_k",
    "seed": "gen_ai.request.seed",
    "dimensions": "gen_ai.embeddings.dimension.count",
}
_PLAIN = frozenset({"model", "messages", "stream", "input", "prompt", "max_tokens", "max_completion_tokens", "system"})
_STOPS = 16  # stop sequences that are told
_OUTPUTS = {"images": "image", "image_edits": "image", "speech": "speech", "chat": "text", "messages": "text"}
_FORMATS = {"text": "text", "json_object": "json", "json_schema": "json"}
_OPENAI = frozenset({"chat", "responses"})
_FITS = 2**63  # a span's whole numbers have 64 bits


def request_attributes(request: LLMRequest) -> dict[str, Any]:
    """The attributes of a request that were sent and are well-formed; the others are left out."""
    dialect, data = request.route.dialect, request.data
    found: dict[str, Any] = {REQUEST_MODEL: short(request.model)}
    if request.stream:
        found["gen_ai.request.stream"] = True
    if request.max_tokens is not None and request.max_tokens < _FITS:
        found["gen_ai.request.max_tokens"] = request.max_tokens
    if request.choices != 1:
        found["gen_ai.request.choice.count"] = request.choices
    if dialect in ("images", "image_edits", "speech"):
        found[OUTPUT_TYPE] = _OUTPUTS[dialect]
    if not _PLAIN.issuperset(data):  # what most requests do without
        _sampling(data, found)
        _form(dialect, data, found)
    return found


def _sampling(data: Mapping[str, Any], found: dict[str, Any]) -> None:
    for field, name in _NUMBERS.items():
        value = data.get(field)
        if (type(value) is float or type(value) is int) and -_FITS < value < _FITS:
            found[name] = float(value)
    for field, name in _WHOLE.items():
        value = data.get(field)
        if type(value) is int and -_FITS <= value < _FITS:
            found[name] = value
    stops = data.get("stop") if data.get("stop") is not None else data.get("stop_sequences")
    if type(stops) is str:
        stops = [stops]
    if type(stops) is list and stops:
        found["gen_ai.request.stop_sequences"] = [short(one) for one in stops[:_STOPS] if type(one) is str]


def _form(dialect: str | None, data: Mapping[str, Any], found: dict[str, Any]) -> None:
    format = data.get("response_format")
    if dialect == "responses":
        format = _inner(data, "text", "format")
    elif dialect == "messages":
        format = _inner(data, "output_config", "format") or data.get("output_format")
    if type(format) is dict and type(kind := format.get("type")) is str and kind in _FORMATS:
        found[OUTPUT_TYPE] = _FORMATS[kind]
    encoding = data.get("encoding_format")
    if type(encoding) is str:
        found["gen_ai.request.encoding_formats"] = [short(encoding)]
    level = (
        data.get("reasoning_effort") or _inner(data, "reasoning", "effort") or _inner(data, "output_config", "effort")
    )
    if type(level) is str:
        found["gen_ai.request.reasoning.level"] = short(level)
    for field, name in (
        ("previous_response_id", "gen_ai.request.previous_response.id"),
        ("service_tier", "openai.request.service_tier"),
    ):
        value = data.get(field)
        if type(value) is str and (field != "service_tier" or dialect in _OPENAI):
            found[name] = short(value)


def _inner(data: Mapping[str, Any], outer: str, name: str) -> Any:
    found = data.get(outer)
    return found.get(name) if type(found) is dict else None

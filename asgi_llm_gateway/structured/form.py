"""What a dialect must say of itself for its answers to be validated."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import orjson

from ..errors import BadRequest, GatewayError
from .compiled import Schema

Key = tuple[Hashable, ...]
"""Where in an answer a text stands, in the dialect's own way of counting."""

ANY_OBJECT: dict[str, Any] = {"type": "object"}


class Unreadable(Exception):
    """What came with status 200 is no answer of the dialect."""


class Wanted(NamedTuple):
    """A schema that a request gives. ``tool`` is the function whose arguments it is for, ``None`` for the answer's text."""

    tool: str | None
    schema: Any
    param: str


class Format(NamedTuple):
    """What a request wants its answers to be: compiled.

    Attributes:
        text: The schema of the answer's text; ``None`` where it may be any text.
        tools: The schemas of the arguments of strict functions, by name.
        only_json: The text's schema was not given: any JSON object will do.
    """

    text: Schema | None
    tools: Mapping[str, Schema]
    only_json: bool = False


class Piece(NamedTuple):
    """One text of an answer, and the schema that it is for.

    Attributes:
        key: Where it stands.
        where: The same as a client would write it.
        text: The JSON text; ``None`` where the answer holds the value itself.
        value: That value.
        schema: What it must match.
        cut: It ended at its limit, or was filtered: not the model's whole answer.
        repairable: A changed text may take its place.
    """

    key: Key
    where: str
    text: str | None
    value: Any
    schema: Schema
    cut: bool = False
    repairable: bool = True


class Reader(Protocol):
    """Puts a stream's events together to the answer that they tell."""

    failed: bool
    """The stream itself told of an error."""

    def add(self, event: dict[str, Any]) -> None:
        """One event's data."""
        ...

    def answer(self) -> dict[str, Any] | None:
        """The answer in the form of a whole one; ``None`` where the stream did not come to its end."""
        ...


class Form(Protocol):
    """One dialect."""

    field: str
    """The request's field that asks for a format; a provider's refusal names it."""

    endings: tuple[bytes, ...]
    """What an event holds that ends a stream; only such events are looked into."""

    def wanted(self, data: Mapping[str, Any]) -> Sequence[Wanted]:
        """The schemas that the request gives. Raises BadRequest."""
        ...

    def instructed(self, data: Mapping[str, Any], words: str) -> dict[str, Any]:
        """The fields that ask for the format in words, and no more by the field for it."""
        ...

    def corrected(self, data: Mapping[str, Any], answer: Mapping[str, Any], words: Words) -> dict[str, Any]:
        """The fields that show the model its answer and what was wrong with it."""
        ...

    def pieces(self, answer: Mapping[str, Any], format: Format) -> Sequence[Piece]:
        """The texts to validate. Raises Unreadable."""
        ...

    def put(self, answer: dict[str, Any], texts: Mapping[Key, str]) -> None:
        """Put other texts into a whole answer."""
        ...

    def reader(self) -> Reader:
        """For one stream."""
        ...

    def rewrite(self, event: dict[str, Any], texts: Mapping[Key, str], told: set[Key]) -> bool:
        """Put other texts into an event of a stream; whether it changed. ``told``: texts that earlier events have told."""
        ...

    def ends(self, data: bytes) -> bool:
        """Whether an event's data ends the stream."""
        ...

    def failure(self, error: GatewayError, events: int) -> bytes:
        """A failure as a stream's last event, after so many."""
        ...


class Words(NamedTuple):
    """What the model is told of its answer.

    Attributes:
        text: Of its text, or of the answer as a whole.
        tools: Of its calls' arguments, by key.
        other: Of a call that was fine, beside one that was not.
    """

    text: str
    tools: Mapping[Key, str]
    other: str


def objects(value: Any) -> list[dict[str, Any]]:
    """The objects in an array; none where it is no array."""
    return [one for one in value if type(one) is dict] if type(value) is list else []


def listed(value: Any) -> list[Any]:
    """An array; an empty one for anything else, which is for the provider to refuse."""
    return value if type(value) is list else []


def object_at(data: Mapping[str, Any], name: str, param: str) -> dict[str, Any] | None:
    """A field that is an object or absent. Raises BadRequest."""
    value = data.get(name)
    if value is None or type(value) is dict:
        return value
    raise BadRequest(f"'{param}' must be an object.", param=param)


def kind_at(data: Mapping[str, Any], param: str) -> str:
    """The ``type`` of a format. Raises BadRequest."""
    kind = data.get("type")
    if type(kind) is not str:
        raise BadRequest(f"'{param}.type' must be a string.", param=f"{param}.type")
    return kind


def schema_at(data: Mapping[str, Any], name: str, param: str, otherwise: Any = None) -> Any:
    """The schema in a field; ``otherwise`` where there is none, which must not be where that is ``None``."""
    value = data.get(name)
    if value is None:
        if otherwise is None:
            raise BadRequest(f"'{param}.{name}' is required.", param=f"{param}.{name}",
                             code="missing_required_parameter")  # fmt: skip
        return otherwise
    return value


def to_text(value: Any) -> str:
    """JSON, where it can be written."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return ""


__all__ = ["ANY_OBJECT", "Form", "Format", "Key", "Piece", "Reader", "Unreadable", "Wanted", "Words"]

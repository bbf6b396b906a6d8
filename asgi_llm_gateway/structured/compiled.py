"""Schemas compiled once, and values held against them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice
from threading import Lock
from typing import Any, NamedTuple

import orjson

from ..errors import Unavailable
from .check import check, deeper, refuse
from .engines import Found, Maker
from .limits import DEFAULT_LIMITS, INLINE, Limits
from .steps import TooCostly, steps

_FAULTS = 5  # told of one value
_LOOKED_AT = 200  # faults of one value, of which those are told that come first in it
_SHOWN = 120  # characters of a keyword's value that a fault tells
_KEPT = 500  # compiled schemas
_KEPT_BYTES = 64 * 1024 * 1024  # their memory, estimated
_PER_BYTE = 120  # bytes of memory for one of a schema


def best() -> type[Maker]:
    """The fastest engine that is installed. Raises Unavailable where none is."""
    try:
        from .plain import Plain
    except ImportError:
        raise Unavailable(
            "Structured outputs can't be validated: run pip install 'asgi-llm-gateway[structured]'.",
            code="extra_missing",
        ) from None
    try:
        from .fast import Fast
    except ImportError:
        return Plain
    return Fast


class Fault(NamedTuple):
    """What is wrong with a value.

    Attributes:
        path: A JSON pointer into the value; empty for all of it.
        why: In words of the schema. What the value holds is not told, for errors are logged.
    """

    path: str
    why: str


class Schema:
    """One compiled schema, safe to share between event loops and threads."""

    __slots__ = ("_checked", "_limits", "_validator", "bytes", "most", "source", "tells")

    def __init__(self, schema: dict[str, Any], source: bytes, param: str, limits: Limits, engine: type[Maker]) -> None:
        maker = engine()
        self.source = source
        """The schema as the client sent it, as compact JSON."""
        self.most = limits.steps // maker.slowness
        """Steps that the validation of an answer may take."""
        self.tells = maker.tells
        """It is compiled by ``jsonschema``: to validate takes long, and to say what is wrong takes no longer."""
        self._limits = limits
        self._checked = check(schema, param, limits, maker.cost)
        try:
            self._validator: Any = maker.compile(self._checked)
        except ValueError:  # larger than it compiles
            raise refuse(param, "the schema can't be compiled. Make it smaller.", "schema_too_complex") from None
        self.bytes = _PER_BYTE * len(source) + maker.bytes
        """Memory that it takes at most, about."""

    def accepts(self, value: Any, size: int) -> bool:
        """Whether a value read from ``size`` bytes of JSON is valid; one too costly to look at is not."""
        return not self.faults(value, size)

    def faults(self, value: Any, size: int) -> Sequence[Fault]:
        """What is wrong with a value read from ``size`` bytes of JSON; empty if nothing is."""
        try:
            self.steps(value, size, self.most)
        except TooCostly as error:
            return (Fault("", str(error)),)
        return () if not self.tells and self.valid(value) else self.told(value)

    def foreseen(self, size: int) -> int | None:
        """Steps at most for any value read from ``size`` bytes of JSON; ``None`` where that depends on the value."""
        checked = self._checked
        if checked.whole is None:
            return None
        # A value has at most half as many nodes as its JSON has bytes: most are settled by that.
        return checked.whole * (size // 2 + 1) + (checked.whole_chars * size >> 4) + self._copied(size)

    def _copied(self, size: int) -> int:
        return size >> 6 if self.tells else 0

    def steps(self, value: Any, size: int, most: int) -> int:
        """Steps at most for a value read from ``size`` bytes of JSON. Raises TooCostly where that may be more than ``most``."""
        limits = self._limits
        if size > limits.answer_depth and deeper(value, limits.answer_depth):
            raise TooCostly(f"is nested more than {limits.answer_depth} levels deep")
        foreseen = self.foreseen(size)
        # It is mostly far too many, so that no more than a part of what is left is given for it.
        if foreseen is not None and foreseen <= (min(most // 4, INLINE) if self.tells else most // 4):
            return foreseen
        copied = self._copied(size)
        return steps(self._checked.root, value, most - copied) + copied

    def valid(self, value: Any) -> bool:
        """Whether a value is valid that is not too costly."""
        try:
            return bool(self._validator.valid(value))
        except RecursionError:
            return False

    def told(self, value: Any) -> Sequence[Fault]:
        """What is wrong with a value that is not too costly: the first few faults, in order of their places."""
        if not self.tells:
            return self._told_by_another(value)
        try:
            found = {(_place(one), _fault(one)) for one in islice(self._validator.found(value), _LOOKED_AT)}
        except RecursionError:  # deep in a value, through many schemas at each level
            return (Fault("", "is nested too deeply for its schema"),)
        return [fault for _, fault in sorted(found)[:_FAULTS]]

    def _told_by_another(self, value: Any) -> Sequence[Fault]:
        from .plain import Plain

        # Made anew each time: few answers are wrong, and it would take more memory than the schema itself.
        other = Schema(orjson.loads(self.source), self.source, "", self._limits, Plain)
        try:
            steps(other._checked.root, value, other.most)
        except TooCostly:
            return (_SOMEWHERE,)
        return other.told(value) or (_SOMEWHERE,)


_SOMEWHERE = Fault("", "does not match the schema")


def _place(found: Found) -> tuple[tuple[bool, Any], ...]:
    return tuple((type(part) is str, part) for part in found.path)


def _fault(found: Found) -> Fault:
    path = "".join("/" + str(part).replace("~", "~0").replace("/", "~1")[:64] for part in found.path[:32])
    if found.missing:
        return Fault(path, f"{orjson.dumps(found.missing).decode()} is a required property"[:_SHOWN])
    if not found.keyword:
        return Fault(path, "must not be there")
    shown = orjson.dumps(found.wanted).decode()
    return Fault(path, f"must meet '{found.keyword}': {shown if len(shown) <= _SHOWN else shown[:_SHOWN] + '...'}")


class SchemaCache:
    """Compiled schemas by their text; those least used are let go.

    Args:
        limits: What a schema may cost.
        engine: What validates; ``None`` takes the fastest that is installed, when the first schema comes.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS, engine: type[Maker] | None = None) -> None:
        self._limits = limits
        self._engine = engine
        self._kept: OrderedDict[bytes, Schema] = OrderedDict()
        self._size = 0
        self._lock = Lock()
        self.compiled = 0
        """How many were compiled so far."""

    def get(self, schema: Any, param: str) -> Schema:
        """The compiled schema; ``param`` is its place in the request.

        Raises BadRequest for what is no schema, or one that may cost too much, naming the place; Unavailable where the
        package for it is not installed.
        """
        if type(schema) is not dict:
            raise refuse(param, "a schema must be a JSON object.")
        try:
            source = orjson.dumps(schema)
        except TypeError:
            raise refuse(param, "the schema is nested too deeply. Flatten it.", "schema_too_complex") from None
        if len(source) > self._limits.schema_bytes:
            raise refuse(param, f"the schema has {len(source)} bytes; {self._limits.schema_bytes} are allowed.",
                         "schema_too_complex")  # fmt: skip
        with self._lock:
            known = self._kept.get(source)
            if known is not None:
                self._kept.move_to_end(source)
                return known
        if self._engine is None:
            self._engine = best()
        made = Schema(schema, source, param, self._limits, self._engine)
        with self._lock:
            self.compiled += 1
            if source not in self._kept:
                self._kept[source] = made
                self._size += made.bytes
            while len(self._kept) > 1 and (len(self._kept) > _KEPT or self._size > _KEPT_BYTES):
                self._size -= self._kept.popitem(last=False)[1].bytes
        return made


__all__ = ["Fault", "Schema", "SchemaCache", "best"]

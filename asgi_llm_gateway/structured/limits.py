"""How large and how costly a schema may be, and an answer that is held against it."""

from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    """What a client's schema and a model's answer may cost the gateway.

    Attributes:
        schema_bytes: Bytes of one schema, written as compact JSON.
        schema_depth: Schemas within schemas.
        keywords: Keywords in all of one schema's subschemas together.
        patterns: Regular expressions in one schema.
        answer_bytes: Bytes of an answer (of a stream: with its framing) that are held for validation.
        answer_depth: Arrays and objects within each other in an answer.
        steps: Schema nodes times answer nodes that the validation of one answer may look at; a character of a text that a
            pattern is matched with counts a quarter at least. With ``jsonschema-rs``, at most some 100 ns each;
            ``jsonschema`` takes some 3 us each and may look at an eighth of them, in a thread where they are many.
    """

    schema_bytes: int = 64 * 1024
    schema_depth: int = 32
    keywords: int = 4096
    patterns: int = 32
    answer_bytes: int = 8 * 1024 * 1024
    answer_depth: int = 64
    steps: int = 2_000_000


DEFAULT_LIMITS = Limits()

PATTERN_WEIGHT = 8192
"""States that the patterns of a schema may have: their characters, each as often as it is repeated."""

PATTERN_BYTES = 64 * 1024 * 1024
"""Bytes that one compiled pattern of ``jsonschema-rs`` may have: more than as many states ever take."""

INLINE = 7_000
"""Steps of ``jsonschema`` up to which a validation may hold up the event loop: some 20 ms."""

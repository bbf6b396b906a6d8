"""What one validation can cost at most, known before it begins: a validator can't be stopped once it runs."""

from __future__ import annotations

from typing import Any

from .check import Node, size

_PAIRS = 100_000  # schema and value looked at together; some 0.3 us each


class TooCostly(Exception):
    """Validating could take more steps than allowed. Says so of a value."""

    def __init__(
        self, why: str = "takes too long to validate: the value, or the schema's alternatives, are too many"
    ) -> None:
        super().__init__(why)


def steps(root: Node, value: Any, most: int) -> int:
    """How often a schema of ``root`` can be applied to a part of ``value``, all alternatives tried to their end.

    Alternatives that each lead to the same part multiply from level to level, so a small recursive schema can cost more
    than any computer has time for. Here each pair of schema and part is looked at once. Raises TooCostly.
    """
    try:
        return _Count(most).of(root, value)
    except RecursionError:
        raise TooCostly from None


class _Count:
    def __init__(self, most: int) -> None:
        self._most = most
        self._known: dict[tuple[int, int], int] = {}

    def of(self, node: Node, value: Any) -> int:
        kind = type(value)
        if kind is not dict and kind is not list:
            return node.cost + (len(value) * node.cost_chars >> 4 if kind is str else 0)
        pair = (id(node), id(value))
        known = self._known.get(pair)
        if known is not None:
            return known
        if len(self._known) >= _PAIRS:
            raise TooCostly
        self._known[pair] = 0  # counted before its parts are: the bound on pairs holds on the way down, too
        inner = 0
        for one in node.in_place:
            inner += self.of(one, value)
        if node.parts:
            inner += self._object(node, value) if kind is dict else self._array(node.parts, value)
        total = node.own + node.times * inner
        if node.unique and kind is list:
            total += size(value)
        if total > self._most:
            raise TooCostly
        self._known[pair] = total
        return total

    def _object(self, node: Node, value: dict[str, Any]) -> int:
        parts = node.parts
        named = parts.get("properties") or {}
        # Which of these match is not asked: all of them may.
        every = list((parts.get("patternProperties") or {}).values())
        every += [parts[name] for name in ("additionalProperties", "unevaluatedProperties") if name in parts]
        names: Node | None = parts.get("propertyNames")
        total = 0
        for key, one in value.items():
            if key in named:
                total += self.of(named[key], one)
            for other in every:
                total += self.of(other, one)
            if names is not None:
                total += names.cost + (len(key) * names.cost_chars >> 4)
            if node.key_chars:
                total += len(key) * node.key_chars >> 4
        return total

    def _array(self, parts: dict[str, Any], value: list[Any]) -> int:
        first: list[Node] = parts.get("prefixItems") or []
        every = [parts[name] for name in ("items", "contains", "unevaluatedItems") if name in parts]
        total = sum(self.of(node, one) for node, one in zip(first, value, strict=False))
        for one in value:
            for node in every:
                total += self.of(node, one)
        return total


__all__ = ["TooCostly", "steps"]

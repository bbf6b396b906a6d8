"""The engine ``jsonschema-rs`` (extra ``structured-fast``): some 25 times as fast, patterns in linear time.

It gives verdicts only: each of its errors holds a copy of the value that it is about, which can come to any amount of memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import jsonschema_rs

from .chars import Chars
from .check import NAMING, Checked
from .decimals import is_multiple
from .limits import PATTERN_BYTES
from .patterns import Chain, Choice, Place, Repeat, Tree, weight

_SETS_BYTES = 2 * 1024 * 1024  # what a pattern keeps of the sets of its states
_MULTIPLE = "a multiple of"  # a keyword of ours


class Fast:
    """See Maker."""

    slowness = 1
    tells = False

    def __init__(self) -> None:
        self.bytes = 0
        self._patterns: dict[str, str] = {}

    def cost(self, pattern: str, tree: Tree) -> int:
        """See Maker."""
        if pattern not in self._patterns:
            # Patterns that mean the same must stay apart: they are keys.
            self._patterns[pattern] = written(tree) + "(?:)" * len(self._patterns)
            self.bytes += 16_384 + 2048 * weight(tree)
        return weight(tree)  # some 5 ns a state, where a step takes 100

    def compile(self, checked: Checked) -> FastValidator:
        """See Maker."""
        schema = _Copy(checked, self._patterns).schema
        linear = jsonschema_rs.RegexOptions(size_limit=PATTERN_BYTES, dfa_size_limit=_SETS_BYTES)
        try:
            validator = jsonschema_rs.Draft202012Validator(
                schema,
                pattern_options=linear,
                retriever=_nothing,
                validate_formats=False,
                mask="the value",
                keywords={_MULTIPLE: _Multiple},
            )
        except jsonschema_rs.ValidationError as error:
            raise ValueError(error.kind.name) from None
        return FastValidator(validator)


class FastValidator:
    """See Validator."""

    def __init__(self, validator: Any) -> None:
        self._validator = validator

    def valid(self, value: Any) -> bool:
        """See Validator."""
        return bool(self._validator.is_valid(value))


class _Multiple:
    """Multiples, of which the package takes some for none where numbers are large, other ones in other versions."""

    def __init__(self, schema: Any, wanted: float, path: Any) -> None:
        self._wanted = wanted

    def validate(self, value: Any) -> None:
        if isinstance(value, int | float) and not isinstance(value, bool) and not is_multiple(value, self._wanted):
            raise ValueError("no multiple")


class _Copy:
    """The schema with other patterns, and without the keywords that give it names; data stays as it is."""

    def __init__(self, checked: Checked, patterns: Mapping[str, str]) -> None:
        self._nodes = checked.nodes
        self._patterns = patterns
        self._root = checked.schema
        self.schema: dict[str, Any] = self._of(checked.schema)

    def _of(self, value: Any) -> Any:
        if type(value) is list:
            return [self._of(one) for one in value]
        if type(value) is not dict:
            return value
        if id(value) not in self._nodes:
            return {name: self._of(one) for name, one in value.items()}
        out: dict[str, Any] = {}
        for name, one in value.items():
            if name == "pattern":
                out[name] = self._patterns[one]
            elif name == "patternProperties":
                out[name] = {self._patterns[pattern]: self._of(schema) for pattern, schema in one.items()}
            elif name == "$ref":
                out[name] = self._reference(self._nodes[id(value)].tokens)
            elif name == "multipleOf":
                out[_MULTIPLE] = one
            elif name not in NAMING and name != _MULTIPLE:
                out[name] = self._of(one)
        return out

    def _reference(self, tokens: tuple[str, ...]) -> str:
        """The pointer, through patterns as they are now."""
        told: list[str] = []
        target: Any = self._root
        inside = False  # of a schema: the container stands in one, so that "patternProperties" is its keyword
        for token in tokens:
            after: Any = target[int(token)] if type(target) is list else target[token]
            patterns = inside and told[-1] == "patternProperties"
            told.append(self._patterns[token] if patterns else token)
            inside = type(target) is dict and id(target) in self._nodes
            target = after
        return "#" + "".join("/" + quote(one.replace("~", "~0").replace("/", "~1"), safe="$") for one in told)


def written(tree: Tree) -> str:
    """The tree as a pattern that has one meaning only. Source: the syntax of the Rust crate ``regex``, 1.x."""
    match tree:
        case Chars():
            return _class(tree)
        case Place(kind):
            return kind if kind in "^$" else rf"(?-u:\{kind})"
        case Chain(items):
            return "".join(f"(?:{written(one)})" if type(one) is Choice else written(one) for one in items)
        case Choice(items):
            return "|".join(map(written, items)) if items else ""
        case Repeat(item, least, most):
            counts = f"{{{least}}}" if least == most else f"{{{least},{'' if most is None else most}}}"
            return f"(?:{written(item)}){counts}"


def _class(chars: Chars) -> str:
    # Surrogates are no characters, in JSON's text neither: a set of them is empty.
    ranges = [(0xE000 if 0xD800 <= first < 0xE000 else first, 0xD7FF if 0xD800 <= last < 0xE000 else last)
              for first, last in chars.ranges if not 0xD800 <= first <= last < 0xE000]  # fmt: skip
    if not ranges and not chars.groups:
        return r"[\s\S]" if chars.negated else r"[^\s\S]"
    inside = "".join(_char(first) + ("" if first == last else "-" + _char(last)) for first, last in ranges)
    inside += "".join(rf"\{'p' if meant else 'P'}{{{name}}}" for name, meant in chars.groups)
    return f"[{'^' if chars.negated else ''}{inside}]"


def _char(code: int) -> str:
    return chr(code) if chr(code).isascii() and chr(code).isalnum() else f"\\u{{{code:x}}}"


def _nothing(uri: str) -> Any:
    """Nothing outside a schema is ever looked up; the check has refused what would need it."""
    raise ValueError("not looked up")


__all__ = ["Fast"]

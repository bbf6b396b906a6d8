"""A client's schema before it is compiled: how large, how deep, which references, and what validating by it can cost.

Source: JSON Schema 2020-12, "Core" (sections 7.7, 8.2, 10) for which keywords hold schemas and where they apply.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

from ..errors import BadRequest
from .limits import PATTERN_WEIGHT, Limits
from .meta import complaint
from .patterns import BadPattern, Tree, parse, weight

_ONE = frozenset(
    {"additionalProperties", "items", "contains", "propertyNames", "unevaluatedItems", "unevaluatedProperties"}
)
_ONE_IN_PLACE = frozenset({"not", "if", "then", "else"})
_LISTS_IN_PLACE = frozenset({"allOf", "anyOf", "oneOf"})
_MAPS = frozenset({"properties", "patternProperties"})
_DEFINITIONS = frozenset({"$defs", "definitions"})
NAMING = frozenset({"$id", "$schema", "$anchor", "$vocabulary", "$dynamicAnchor", "$recursiveAnchor"})
"""Keywords that give a schema a name in the world outside; here they mean nothing."""
_DYNAMIC = ("$dynamicRef", "$recursiveRef")
_CHAIN = 200  # in-place steps from schema to schema; each is a frame of ours and of the validator's
_INTEGER = 8  # steps to divide, which the fast engine has Python do
_DECIMAL = 32  # steps to divide decimal numbers, which may have hundreds of digits
_COSTLY = 10_000  # steps for one value, wherever it stands


class Node:
    """One schema: what it costs for a value, and which schemas it applies to the value and to its parts.

    Attributes:
        path: Where the client wrote it.
        own: Steps for a value, without what other schemas take.
        chars: Sixteenths of a step for each character of a text.
        key_chars: The same of each character of an object's keys.
        unique: All parts of an array are looked into once more.
        in_place: Schemas applied to the same value.
        parts: Schemas applied to its parts, as the keyword has them.
        target: What ``$ref`` leads to, and the way to it.
        times: How often the others may be looked at: to know what is left over, they are asked again.
        cost: Steps for a value without parts, those of the schemas in place included.
        cost_chars: The same for each character.
        height: Schemas in place within each other.
    """

    __slots__ = ("chars", "cost", "cost_chars", "height", "in_place", "key_chars", "left_over", "own", "parts", "path", "ref",
                 "state", "target", "times", "tokens", "unique", "whole", "whole_chars")  # fmt: skip

    def __init__(self, schema: dict[str, Any], path: str) -> None:
        self.path = path
        self.own = 1 + len(schema)
        self.chars = self.key_chars = 0
        self.unique = self.left_over = False
        self.in_place: list[Node] = []
        self.parts: dict[str, Any] = {}
        self.ref: str | None = None
        self.target: Any = None
        self.tokens: tuple[str, ...] = ()
        self.times = 1
        self.cost = self.cost_chars = self.height = 0
        self.whole = self.whole_chars = 0
        self.state = 0  # of a walk: not seen, being seen, seen


class Checked:
    """A schema that may be compiled.

    Attributes:
        schema: The schema as the client sent it.
        nodes: Its schemas by their ids; what is none of them is data.
        trees: Its patterns, read.
        root: The first node.
        whole: Steps at most for each node of an answer; ``None`` where the schema contains itself.
        whole_chars: Sixteenths of a step for each character of it.
    """

    __slots__ = ("nodes", "root", "schema", "trees", "whole", "whole_chars")

    def __init__(
        self,
        schema: dict[str, Any],
        nodes: Mapping[int, Node],
        trees: Mapping[str, Tree],
        root: Node,
        whole: int | None,
    ) -> None:
        self.schema = schema
        self.nodes = nodes
        self.trees = trees
        self.root = root
        self.whole = whole
        self.whole_chars = root.whole_chars


def refuse(param: str, why: str, code: str = "invalid_json_schema") -> BadRequest:
    """A refusal that names the place in the request."""
    return BadRequest(f"'{param}': {why}", param=param, code=code)


def check(schema: dict[str, Any], param: str, limits: Limits, cost: Callable[[str, Tree], int]) -> Checked:
    """Look at a schema, which is small enough already. Raises BadRequest with the place in ``param``.

    ``cost`` says what a pattern costs a character, as Maker has it.
    """
    if deeper(schema, 3 * limits.schema_depth):  # a level of objects takes up to three of JSON
        raise refuse(param, f"the schema is nested more than {limits.schema_depth} levels deep. Flatten it.",
                     "schema_too_complex")  # fmt: skip
    walk = _Walk(schema, param, limits, cost)
    root = walk.node(schema, param, 1)
    walk.connect()
    nodes = list(walk.nodes.values())
    for node in nodes:
        _cost(node, 0)
    for node in nodes:
        node.state = 0
    return Checked(schema, walk.nodes, walk.trees, root, _whole(root, 0, limits.answer_depth))


def deeper(value: Any, levels: int) -> bool:
    """Whether arrays and objects stand within each other more than so many levels deep."""
    here = [value]
    for _ in range(levels):
        here = [
            one
            for outer in here
            for one in (outer.values() if type(outer) is dict else outer if type(outer) is list else ())
            if type(one) is dict or type(one) is list
        ]
        if not here:
            return False
    return True


def size(value: Any) -> int:
    """How many values there are in a value: so many are compared, at most."""
    found, waiting = 0, [value]
    while waiting:
        one = waiting.pop()
        found += 1
        if type(one) is dict:
            waiting += one.values()
        elif type(one) is list:
            waiting += one
    return found


class _Walk:
    """Visits every subschema once."""

    def __init__(self, root: dict[str, Any], param: str, limits: Limits, cost: Callable[[str, Tree], int]) -> None:
        self.nodes: dict[int, Node] = {}
        self.trees: dict[str, Tree] = {}
        self._patterns = self._states = 0
        self._cost = cost
        self._root = root
        self._param = param
        self._limits = limits
        self._keywords = 0
        self._waiting: list[Node] = []

    def node(self, schema: Any, path: str, depth: int) -> Node:
        known = self.nodes.get(id(schema))
        if known is not None:
            return known
        if type(schema) is bool:
            plain = Node({}, path)
            plain.cost = plain.whole = plain.height = 1
            plain.state = 2
            return plain
        if type(schema) is not dict:
            raise refuse(path, "a schema is an object, true or false.")
        if depth > self._limits.schema_depth:
            raise refuse(path, f"the schema is nested more than {self._limits.schema_depth} levels deep. Flatten it.",
                         "schema_too_complex")  # fmt: skip
        self._keywords += len(schema)
        if self._keywords > self._limits.keywords:
            raise refuse(self._param, f"the schema has more than {self._limits.keywords} keywords. Make it smaller.",
                         "schema_too_complex")  # fmt: skip
        node = self.nodes[id(schema)] = Node(schema, path)
        for name, value in schema.items():
            self._keyword(node, name, value, f"{path}.{name}", depth + 1)
        return node

    def _keyword(self, node: Node, name: str, value: Any, path: str, depth: int) -> None:
        why = complaint(name, value)
        if why:
            raise refuse(path, why)
        if name in _ONE:
            node.parts[name] = self.node(value, path, depth)
            node.left_over = node.left_over or name.startswith("unevaluated")
        elif name in _ONE_IN_PLACE:
            node.in_place.append(self.node(value, path, depth))
        elif name in _LISTS_IN_PLACE or name == "prefixItems":
            if type(value) is not list or not value:
                raise refuse(path, "this must be an array of schemas.")
            found = [self.node(one, f"{path}[{at}]", depth) for at, one in enumerate(value)]
            if name == "prefixItems":
                node.parts[name] = found
            else:
                node.in_place += found
        elif name in _MAPS or name in _DEFINITIONS or name == "dependentSchemas":
            if type(value) is not dict:
                raise refuse(path, "this must be an object of schemas.")
            if name == "patternProperties":
                # They are asked for their own, for additional and for what is left over.
                node.key_chars = 3 * sum(self._pattern(pattern, path) for pattern in value)
            schemas = {inner: self.node(one, f"{path}.{inner[:64]}", depth) for inner, one in value.items()}
            if name == "dependentSchemas":
                node.in_place += schemas.values()
            elif name in _MAPS:
                node.parts[name] = schemas
        elif name == "contentSchema":
            self.node(value, path, depth)  # an annotation, which is never applied
        elif name == "pattern":
            node.chars = self._pattern(value, path)
        elif name in ("enum", "const", "required", "dependentRequired"):
            node.own += size(value)
        elif name == "multipleOf":
            node.own += _DECIMAL if type(value) is float else _INTEGER
        elif name == "uniqueItems":
            node.unique = value
        elif name == "$ref":
            node.ref = self._local(value, path)
            self._waiting.append(node)
        elif name in _DYNAMIC:
            raise refuse(path, f"'{name}' is not supported. Use '$ref' with '#/$defs/NAME'.")
        elif name == "dependencies":
            raise refuse(path, "'dependencies' is not supported. Use 'dependentRequired' or 'dependentSchemas'.")

    def _pattern(self, value: Any, path: str) -> int:
        if type(value) is not str:
            raise refuse(path, "a pattern must be a string.")
        self._patterns += 1
        if self._patterns > self._limits.patterns:
            raise refuse(path, f"the schema has more than {self._limits.patterns} patterns. Use fewer.",
                         "schema_too_complex")  # fmt: skip
        tree = self.trees.get(value)
        if tree is None:
            try:
                tree = self.trees[value] = parse(value)
            except BadPattern as error:
                raise refuse(path, f"the pattern can't be used: {error}.") from None
        self._states += weight(tree)
        if self._states > PATTERN_WEIGHT:
            raise refuse(path, "the pattern is too costly, with those before it: their counted repetitions come to too many "
                         "states. Use smaller counts, or 'maxLength'.", "schema_too_complex")  # fmt: skip
        return self._cost(value, tree)

    def _local(self, ref: Any, path: str) -> str:
        if type(ref) is not str:
            raise refuse(path, "'$ref' must be a string.")
        if ref != "#" and not ref.startswith("#/"):
            raise refuse(path, "only references within the schema are followed. Use '#/$defs/NAME'.")
        return ref

    def connect(self) -> None:
        """Follow the references; what one of them leads to may have references itself."""
        while self._waiting:
            node = self._waiting.pop()
            assert node.ref is not None
            target: Any = self._root
            tokens = tuple(unquote(part).replace("~1", "/").replace("~0", "~") for part in node.ref.split("/")[1:])
            for part in tokens:
                if type(target) is dict and part in target:
                    target = target[part]
                elif (
                    type(target) is list
                    and part.isascii()
                    and part.isdigit()
                    and len(part) < 6
                    and int(part) < len(target)
                ):
                    target = target[int(part)]
                else:
                    raise refuse(
                        f"{node.path}.$ref", "the reference leads nowhere. Define what it names under '$defs'."
                    )
            node.target, node.tokens = target, tokens
            node.in_place.append(self.node(target, f"{node.path}.$ref", 1))


def _cost(node: Node, chain: int) -> int:
    """The steps for a value that has no parts. Raises BadRequest for a schema that applies itself to the same value."""
    if node.state == 2:
        return node.cost
    if node.state == 1:
        raise refuse(node.path, "the reference leads back to itself without going into the value.")
    if chain > _CHAIN:
        raise refuse(node.path, f"more than {_CHAIN} references follow one another. Shorten the chain.",
                     "schema_too_complex")  # fmt: skip
    node.state = 1
    inner = sum(_cost(one, chain + 1) for one in node.in_place)
    node.height = 1 + max((one.height for one in node.in_place), default=0)
    if node.left_over:  # each schema in place is asked for its verdict, and then those in it
        node.times = 1 + node.height
    node.cost = node.own + node.times * inner
    node.cost_chars = node.chars + node.times * sum(one.cost_chars for one in node.in_place)
    if node.cost > _COSTLY:
        raise refuse(node.path, "the schema is too complex: its alternatives multiply. Use fewer or flatter ones.",
                     "schema_too_complex")  # fmt: skip
    node.state = 2
    return node.cost


def parts_of(node: Node) -> list[Node]:
    """All schemas for parts of the value."""
    found: list[Node] = []
    for value in node.parts.values():
        found += value.values() if type(value) is dict else value if type(value) is list else (value,)
    return found


def _whole(node: Node, chain: int, depth: int) -> int | None:
    """The steps of a schema and all it leads to, each as often as it is led to; ``None`` where that has no end."""
    if node.state == 2:
        return node.whole
    if node.state == 1 or chain > _CHAIN:
        return None
    node.state = 1
    total = node.own + (depth if node.unique else 0)  # each value stands in so many arrays at most
    chars = node.chars + node.times * node.key_chars
    for one in (*node.in_place, *parts_of(node)):
        more = _whole(one, chain + 1, depth)
        if more is None:
            return None
        total += node.times * more
        chars += node.times * one.whole_chars
    node.state, node.whole, node.whole_chars = 2, total, chars
    return total


__all__ = ["NAMING", "Checked", "Node", "check", "deeper", "parts_of", "refuse", "size"]

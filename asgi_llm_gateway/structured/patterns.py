r"""Regular expressions read into trees, so that every engine matches the same and none of them backtracks.

Source: ECMA-262, "RegExp", unicode mode, less look-around and back-references; and as its Annex B has it, braces and brackets
that mean nothing stand for themselves. What languages understand differently (``\A``, ``(?i)``, ``a++``) is refused.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from .chars import ANY_BUT_LINE_ENDS, CLASSES, GROUPS, LAST, LONG_NAMES, Chars, ranges_of

_MOST = 1 << 30
_DEEPEST = 50  # groups within each other
_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "0": 0}
_HEX = frozenset("0123456789abcdefABCDEF")


class Chain(NamedTuple):
    """One after the other; none of them is the empty text."""

    items: tuple[Tree, ...]


class Choice(NamedTuple):
    """One or another."""

    items: tuple[Tree, ...]


class Repeat(NamedTuple):
    """From ``least`` to ``most`` times; ``None`` for as often as you like."""

    item: Tree
    least: int
    most: int | None


class Place(NamedTuple):
    """A place between characters: the text's beginning or end, a word's edge or none."""

    kind: Literal["^", "$", "b", "B"]


Tree: TypeAlias = Chars | Chain | Choice | Repeat | Place


class BadPattern(Exception):
    """No pattern, or one that can't be matched in linear time. Says what to do."""


def parse(pattern: str) -> Tree:
    """Read a pattern. Raises BadPattern."""
    return _Parser(pattern).whole()


def weight(tree: Tree) -> int:
    """How many states a matcher makes of the tree at most: its parts, each as often as a count lets it come."""
    match tree:
        case Chars():
            # A set of many ranges is as large as many small ones, in a matcher of bytes.
            return 1 + len(tree.ranges) // 8 + 16 * len(tree.groups)
        case Place():
            return 1
        case Repeat(item, least, most):
            if most is None:
                return min(weight(item) * (least + 1) + 1, _MOST)
            return min(weight(item) * max(1, most) + most - least, _MOST)
        case Choice(items):
            return min(sum(map(weight, items)) + 1, _MOST)
        case Chain(items):
            return min(max(1, sum(map(weight, items))), _MOST)


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0

    def whole(self) -> Tree:
        tree = self._choice()
        if self._at < len(self._text):
            raise BadPattern("a ')' closes nothing. Write '\\)' for the character")
        return tree

    def _take(self, expected: str) -> bool:
        if self._text.startswith(expected, self._at):
            self._at += len(expected)
            return True
        return False

    def _next(self, what: str) -> str:
        if self._at >= len(self._text):
            raise BadPattern(f"it ends within {what}")
        self._at += 1
        return self._text[self._at - 1]

    def _choice(self) -> Tree:
        found = [self._chain()]
        while self._take("|"):
            found.append(self._chain())
        return found[0] if len(found) == 1 else Choice(tuple(found))

    def _chain(self) -> Tree:
        found: list[Tree] = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            found.append(self._repeated(self._text[self._at] == "(", self._atom()))
        return found[0] if len(found) == 1 else Chain(tuple(found))

    def _repeated(self, grouped: bool, item: Tree) -> Tree:
        counts = self._counts()
        if counts is None:
            return item
        if type(item) is Place and not grouped:
            raise BadPattern("a place ('^', '$', '\\b') can't be repeated")
        self._take("?")  # which of several matches is found first does not matter here
        return Repeat(item, *counts)

    def _counts(self) -> tuple[int, int | None] | None:
        for sign, counts in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                return counts
        text, at = self._text, self._at
        end = text.find("}", at) if text.startswith("{", at) else -1
        least, comma, most = text[at + 1 : end].partition(",") if end > 0 else ("", "", "")
        if not _digits(least) or (most and not _digits(most)):
            return None  # a brace of its own
        self._at = end + 1
        low = _number(least)
        high = low if not comma else _number(most) if most else None
        if high is not None and high < low:
            raise BadPattern(f"the counts in '{{{least},{most}}}' are in the wrong order"[:120])
        return low, high

    def _atom(self) -> Tree:
        char = self._next("nothing")
        match char:
            case "(":
                return self._group()
            case "[":
                return self._set()
            case ".":
                return ANY_BUT_LINE_ENDS
            case "^" | "$":
                return Place("^" if char == "^" else "$")
            case "*" | "+" | "?":
                raise BadPattern(f"there is nothing before '{char}' to repeat. Write '\\{char}' for the character")
            case "\\":
                return self._escape()
        return _one(ord(char))

    def _group(self) -> Tree:
        for sign in ("?=", "?!", "?<=", "?<!"):
            if self._take(sign):
                raise BadPattern(
                    f"look-around ('({sign}') can't be matched in linear time. Say it without, or in 'allOf'"
                )
        if self._take("?<"):
            end = self._text.find(">", self._at)
            if end < 0 or not self._text[self._at : end].isidentifier():
                raise BadPattern("a group has a broken name")
            self._at = end + 1
        elif self._text.startswith("?", self._at) and not self._take("?:"):
            raise BadPattern("flags and other '(?' groups are not supported. Use '(?:...)', and '[aA]' for both cases")
        self._depth += 1
        if self._depth > _DEEPEST:
            raise BadPattern(f"more than {_DEEPEST} groups stand within each other")
        tree = self._choice()
        self._depth -= 1
        if not self._take(")"):
            raise BadPattern("a '(' is never closed. Write '\\(' for the character")
        return tree

    def _escape(self) -> Tree:
        if self._take("b"):
            return Place("b")
        if self._take("B"):
            return Place("B")
        found = self._escaped()
        return found if isinstance(found, Chars) else _one(found)

    def _escaped(self) -> Chars | int:
        """What stands after a backslash: a set, or one character."""
        char = self._next("an escape")
        if char in CLASSES:
            return Chars(CLASSES[char])
        if char in _CONTROLS:
            if char == "0" and self._text[self._at : self._at + 1].isdigit():
                raise BadPattern("octal escapes are not supported. Use '\\xHH'")
            return _CONTROLS[char]
        if char in "123456789k":
            raise BadPattern("back-references can't be matched in linear time. Say it without")
        if char in "pP":
            return self._property(char == "p")
        if char == "x":
            return self._hex(2)
        if char == "u":
            return self._code_point()
        if char == "c" and self._text[self._at : self._at + 1].isascii():
            letter = self._next("an escape")
            if letter.isalpha():
                return ord(letter) % 32
        if char.isalnum() or char == "_":
            raise BadPattern(f"'\\{char}' has no meaning that all matchers share. Use '^' and '$' for the text's ends, or "
                             "the character itself")  # fmt: skip
        return ord(char)

    def _hex(self, digits: int) -> int:
        text = self._text[self._at : self._at + digits]
        if len(text) < digits or not _HEX.issuperset(text):
            raise BadPattern("an escape needs more hexadecimal digits")
        self._at += digits
        return int(text, 16)

    def _code_point(self) -> int:
        if self._take("{"):
            end = self._text.find("}", self._at, self._at + 9)
            text = self._text[self._at : end] if end > 0 else ""
            if not text or not _HEX.issuperset(text) or int(text, 16) > LAST:
                raise BadPattern("'\\u{...}' holds the hexadecimal digits of a character")
            self._at = end + 1
            return int(text, 16)
        code = self._hex(4)
        if 0xD800 <= code < 0xDC00 and self._text.startswith("\\u", self._at):
            before = self._at
            self._at += 2
            low = self._hex(4)
            if 0xDC00 <= low < 0xE000:
                return 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
            self._at = before
        return code

    def _property(self, meant: bool) -> Chars:
        end = self._text.find("}", self._at)
        if not self._take("{") or end < 0:
            raise BadPattern("'\\p' needs a category in braces, as in '\\p{L}'")
        name = self._text[self._at : end]
        name = name.removeprefix("gc=").removeprefix("General_Category=")
        name = LONG_NAMES.get(name, name)
        if name not in GROUPS:
            raise BadPattern(
                "of Unicode's properties only general categories ('\\p{L}', '\\p{Nd}') are supported. Use ranges"
            )
        self._at = end + 1
        return Chars((), ((name, meant),))

    def _set(self) -> Chars:
        negated = self._take("^")
        ranges: list[tuple[int, int]] = []
        groups: set[tuple[str, bool]] = set()
        while not self._take("]"):
            first = self._member()
            last: Chars | int = first
            dash = False
            if self._text.startswith("-", self._at) and self._text[self._at + 1 : self._at + 2] not in ("", "]"):
                self._at += 1
                dash = True
                last = self._member()
            if isinstance(first, int) and isinstance(last, int):
                if last < first:
                    raise BadPattern("a range in '[...]' is in the wrong order. Write '\\-' for the character")
                ranges.append((first, last))
                continue
            if dash:  # a set at one end: the dash stands for itself
                ranges.append((0x2D, 0x2D))
            for one in (first, last):
                if isinstance(one, int):
                    ranges.append((one, one))
                else:
                    ranges += one.ranges
                    groups.update(one.groups)
        return Chars(ranges_of(ranges), tuple(sorted(groups)), negated)

    def _member(self) -> Chars | int:
        char = self._next("'[...]'")
        if char != "\\":
            return ord(char)
        return 8 if self._take("b") else self._escaped()


def _one(code: int) -> Chars:
    return Chars(((code, code),))


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _number(digits: str) -> int:
    return int(digits) if len(digits) < 9 else _MOST


__all__ = ["BadPattern", "Chain", "Choice", "Place", "Repeat", "Tree", "parse", "weight"]

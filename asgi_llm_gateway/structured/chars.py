"""Sets of characters, as the patterns of a schema name them.

Source: ECMA-262, "RegExp" (CharacterClassEscape, unicode mode); Unicode, "General Category".
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple
from unicodedata import category

LAST = 0x10FFFF

Ranges = tuple[tuple[int, int], ...]


class Chars(NamedTuple):
    """A set of characters.

    Attributes:
        ranges: Code points, first and last of each run; in order and apart from each other.
        groups: Unicode general categories by the beginning of their names, each with whether its members are meant, or
            all others.
        negated: The set is of all characters but these.
    """

    ranges: Ranges
    groups: tuple[tuple[str, bool], ...] = ()
    negated: bool = False

    def has(self, code: int, group: str) -> bool:
        """Whether the character, whose category is ``group``, is one of them."""
        at = bisect_right(self.ranges, (code, LAST + 1)) - 1
        found = at >= 0 and code <= self.ranges[at][1]
        found = found or any(group.startswith(name) is meant for name, meant in self.groups)
        return found is not self.negated

    def has_char(self, char: str) -> bool:
        """The same of a character whose category is not known yet."""
        return self.has(ord(char), category(char) if self.groups else "")


def ranges_of(found: Iterable[tuple[int, int]]) -> Ranges:
    """Ranges in any order, overlapping, as Chars has them."""
    out: list[tuple[int, int]] = []
    for first, last in sorted(found):
        if out and first <= out[-1][1] + 1:
            out[-1] = out[-1][0], max(out[-1][1], last)
        else:
            out.append((first, last))
    return tuple(out)


def others(ranges: Ranges) -> Ranges:
    """All code points that are not in them."""
    out, begin = [], 0
    for first, last in ranges:
        if begin < first:
            out.append((begin, first - 1))
        begin = last + 1
    if begin <= LAST:
        out.append((begin, LAST))
    return tuple(out)


DIGITS: Ranges = ((0x30, 0x39),)
WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
SPACES: Ranges = (
    (0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029), (0x202F, 0x202F),
    (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF),
)  # fmt: skip
LINE_ENDS: Ranges = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))

CLASSES: dict[str, Ranges] = {
    "d": DIGITS, "D": others(DIGITS), "w": WORD, "W": others(WORD), "s": SPACES, "S": others(SPACES),
}  # fmt: skip
"""What ``\\d`` and its like mean: ASCII, whatever a language makes of them elsewhere."""

ANY_BUT_LINE_ENDS = Chars(LINE_ENDS, negated=True)

GROUPS = frozenset(
    ("L", "Lu", "Ll", "Lt", "Lm", "Lo", "M", "Mn", "Mc", "Me", "N", "Nd", "Nl", "No", "P", "Pc", "Pd", "Ps", "Pe", "Pi",
     "Pf", "Po", "S", "Sm", "Sc", "Sk", "So", "Z", "Zs", "Zl", "Zp", "Cc", "Cf")
)  # fmt: skip
"""General categories that ``\\p{...}`` may name; those of code points without characters change with each Unicode."""

CATEGORIES = (*sorted(name for name in GROUPS if len(name) == 2), "Cn", "Co", "Cs")
"""All categories that a code point can have."""

LONG_NAMES: dict[str, str] = {
    "Letter": "L", "Uppercase_Letter": "Lu", "Lowercase_Letter": "Ll", "Mark": "M", "Number": "N", "Decimal_Number": "Nd",
    "Punctuation": "P", "Symbol": "S", "Separator": "Z",
}  # fmt: skip


def is_word(char: str) -> bool:
    """Whether ``\\b`` takes the character for a part of a word."""
    return char.isascii() and (char.isalnum() or char == "_")


__all__ = [
    "ANY_BUT_LINE_ENDS", "CATEGORIES", "CLASSES", "GROUPS", "LAST", "LONG_NAMES", "WORD", "Chars", "Ranges", "is_word",
    "ranges_of",
]  # fmt: skip

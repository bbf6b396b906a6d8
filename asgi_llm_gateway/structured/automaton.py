"""A matcher that never backtracks: a pattern's states, all followed at once, and each set of them computed once.

Python's own matcher tries one way after another, so that a small pattern can take for ever, and a check for those that
do would refuse many that people write. This one takes a look-up a character where the sets are few, which is known before,
and at most a walk through all states where they are not.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from unicodedata import category

from .chars import CATEGORIES, LAST, WORD, Chars, Ranges, is_word
from .patterns import Chain, Choice, Place, Repeat, Tree

_BEGIN, _OTHER, _IN_WORD, _END = range(4)  # what stands before, or after, a place
AHEAD = 20_000  # states visited to compute all sets before the first text comes; some 5 ms
_KEPT = 20_000  # states in all sets, and ways between them, that are kept of a pattern whose sets are too many
_KEPT_CHARS = 4096  # ways by a character, in all sets; of others the class is asked for first
_BYTES = 100  # for each of these

_Node = tuple[Chars | Place | None, tuple[int, ...]]  # what it takes to go on (nothing: no more), and where to


class _Builder:
    """A tree to numbered nodes. Source: K. Thompson, "Regular Expression Search Algorithm" (1968)."""

    def __init__(self) -> None:
        self.nodes: list[_Node] = [(None, ())]  # the first is the end of the match

    def add(self, tree: Tree, then: int) -> int:
        """The node that begins ``tree`` and goes on to ``then``."""
        match tree:
            case Chars() | Place():
                return self._put(tree, then)
            case Chain(items):
                for item in reversed(items):
                    then = self.add(item, then)
                return then
            case Choice(items):
                return self._put(None, *[self.add(item, then) for item in items])
            case Repeat(item, least, most):
                if most is None:
                    loop = self._put(None, then)
                    self.nodes[loop] = None, (self.add(item, loop), then)
                    then = loop
                else:
                    end = then
                    for _ in range(most - least):
                        then = self._put(None, self.add(item, then), end)
                for _ in range(least):
                    then = self.add(item, then)
                return then

    def _put(self, what: Chars | Place | None, *then: int) -> int:
        self.nodes.append((what, then))
        return len(self.nodes) - 1


class _Set(dict[str, "_Set"]):
    """Nodes that a text can have led to, and where each character leads from here."""

    __slots__ = ("_by_class", "_ends", "_matcher", "before", "nodes")

    def __init__(self, matcher: Automaton, nodes: frozenset[int], before: int) -> None:
        self.nodes = nodes
        self.before = before
        self._matcher = matcher
        self._by_class: dict[int, _Set] = {}
        self._ends: bool | None = None

    def __missing__(self, char: str) -> _Set:
        matcher = self._matcher
        found = self.after(matcher.class_of(char))
        if matcher.room > 0:
            matcher.room -= 1
            self[char] = found
        return found

    def after(self, kind: int) -> _Set:
        """Where a character of the class leads."""
        found = self._by_class.get(kind)
        if found is None:
            found = self._by_class[kind] = self._matcher.step(self, kind)
        return found

    @property
    def ends(self) -> bool:
        """Whether a text that ends here has a match."""
        if self._ends is None:
            self._ends = 0 in self._matcher.reach(self.nodes, self.before, _END)
        return self._ends


class Automaton:
    """One pattern, safe to share between threads.

    Args:
        tree: The pattern.
        ahead: States that may be visited to compute all sets of them at once.

    Attributes:
        per_char: What a character of a text costs at most, in sixteenths of a step (see Limits).
        bytes: Memory that it takes at most, about.
        visited: States visited so far.
        room: Ways by a character that may still be kept.
    """

    def __init__(self, tree: Tree, ahead: int = AHEAD) -> None:
        builder = _Builder()
        self._start = builder.add(tree, 0)
        self._nodes = builder.nodes
        self.visited = 0
        self.room = _KEPT_CHARS
        self._hit = _Set(self, frozenset(), _OTHER)
        self._sets: dict[tuple[frozenset[int], int], _Set] = {}
        self._size = 0
        wanted = [what for what, _ in self._nodes if isinstance(what, Chars)]
        self._chars = list(dict.fromkeys(wanted))
        self._grouped = any(one.groups for one in self._chars)
        self._words = any(isinstance(what, Place) and what.kind in "bB" for what, _ in self._nodes)
        # By class: which of the sets of characters it is in, and whether it is part of a word.
        self._classes: dict[tuple[frozenset[int], int], int] = {}
        self._taken: list[tuple[frozenset[int], int]] = []
        self._edges = sorted({0, *_edges(WORD), *(edge for one in self._chars for edge in _edges(one.ranges))})
        self._kinds: dict[tuple[int, str], int] = {}
        self._members = {chars: at for at, chars in enumerate(self._chars)}
        self._first = self._set(frozenset((self._start,)), _BEGIN)
        whole = self._ahead(ahead)
        self.per_char = 4 + len(self._chars) + (0 if whole else 2 * len(self._nodes))
        kept = self._size + min(_KEPT_CHARS, 32 * len(self._sets)) if whole else _KEPT + _KEPT_CHARS
        self.bytes = _BYTES * (len(self._nodes) + kept)

    def search(self, text: str) -> bool:
        """Whether the pattern matches somewhere in the text."""
        here, hit = self._first, self._hit
        for char in text:
            here = here[char]
            if here is hit:
                return True
        return here.ends

    def class_of(self, char: str) -> int:
        """Characters of one class lead the same ways."""
        code = ord(char)
        kind = bisect_right(self._edges, code), category(char) if self._grouped else ""
        known = self._kinds.get(kind)
        if known is None:
            known = self._kinds[kind] = self._class(code, kind[1])
        return known

    def step(self, here: _Set, kind: int) -> _Set:
        """Where a character of the class leads from here."""
        members, after = self._taken[kind]
        reached = self.reach(here.nodes, here.before, after)
        if 0 in reached:
            return self._hit
        nodes = {self._start}  # a match may begin after every character
        for at in reached:
            what, then = self._nodes[at]
            if isinstance(what, Chars) and self._members[what] in members:
                nodes.update(then)
        self._size += 1
        return self._set(frozenset(nodes), after)

    def reach(self, nodes: Iterable[int], before: int, after: int) -> set[int]:
        """The nodes and what they lead to without a character, at a place between two."""
        found = set(nodes)
        waiting = list(found)
        while waiting:
            what, then = self._nodes[waiting.pop()]
            self.visited += 1
            if what is None or (isinstance(what, Place) and _holds(what, before, after)):
                for one in then:
                    if one not in found:
                        found.add(one)
                        waiting.append(one)
        return found

    def _set(self, nodes: frozenset[int], before: int) -> _Set:
        if self._size > _KEPT:  # begun anew; a search under way keeps what it stands on
            self._sets, self._size, self.room = {}, 0, _KEPT_CHARS
            self._first = self._set(frozenset((self._start,)), _BEGIN)
        key = (nodes, before)
        known = self._sets.get(key)
        if known is None:
            self._size += len(nodes) + 1
            known = self._sets[key] = _Set(self, nodes, before)
        return known

    def _class(self, code: int, group: str) -> int:
        self.visited += len(self._chars)
        members = frozenset(at for at, one in enumerate(self._chars) if one.has(code, group))
        key = members, _IN_WORD if self._words and is_word(chr(code)) else _OTHER
        known = self._classes.get(key)
        if known is None:
            self._taken.append(key)
            known = self._classes[key] = len(self._taken) - 1
        return known

    def _ahead(self, most: int) -> bool:
        """Compute all sets; whether that came to an end."""
        # A character for each way in which characters can differ here, and some that there are not.
        for edge in self._edges:
            for group in CATEGORIES if self._grouped else ("",):
                self._class(edge, group)
                if self.visited > most:
                    return False
        kinds = range(len(self._taken))
        waiting, seen = [self._first], {id(self._first), id(self._hit)}
        while waiting:
            here = waiting.pop()
            for kind in kinds:
                if self.visited > most or self._size > _KEPT:
                    return False
                then = here.after(kind)
                if id(then) not in seen:
                    seen.add(id(then))
                    waiting.append(then)
        return True


def _edges(ranges: Ranges) -> Iterator[int]:
    """Code points at which it changes whether one is in the ranges."""
    for first, last in ranges:
        yield first
        yield min(last + 1, LAST)


def _holds(place: Place, before: int, after: int) -> bool:
    if place.kind == "^":
        return before == _BEGIN
    if place.kind == "$":
        return after == _END
    return ((before == _IN_WORD) != (after == _IN_WORD)) is (place.kind == "b")


__all__ = ["AHEAD", "Automaton"]

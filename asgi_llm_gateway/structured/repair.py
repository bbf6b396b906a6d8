"""Mends what models do to JSON, where there is one way to do so: fences and prose around it, commas too many, a cut end.

What parses as it stands is never touched: it is right, or its value would have to be changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import orjson

_LONGEST = 128 * 1024  # characters of a text that is mended; at the worst that takes some 0.1 s
_STARTS = 8  # places where JSON may begin that are tried before prose is given up on
_DEEPEST = 64  # of what is open at a cut end
_FENCE = "```"
_TAG = 40  # characters of a fence's first line, its language
_OPENING = re.compile(r"[{\[]")
_BEGINNING = re.compile(r'\{\s*+["}]|\[\s*+(?:[\[{"\]\d-]|true|false|null)')
_MARKS = re.compile(r'["{}\[\]]')
_MARKS_AND_COMMAS = re.compile(r'["{}\[\],]')
_STRING_OR_COMMA = re.compile(r'"|,')
_LAST_COMMA = re.compile(r",[ \t\r\n]*+[}\]]")


def repair(text: str, accepts: Callable[[Any, int], bool], *, cut: bool = False) -> str | None:
    """The JSON in ``text`` whose value ``accepts`` says yes to, if there is just one; ``None`` otherwise.

    Takes time linear in the text.

    Args:
        text: What the model wrote.
        accepts: Given a value and the bytes of its JSON.
        cut: The text ended at its limit: what is open at its end may be closed.
    """
    text = text.strip("\ufeff \t\r\n")
    if len(text) > _LONGEST or _read(text) is not _NONE:
        return None
    found: dict[bytes, str] = {}
    for candidate in _candidates(text):
        for tried in (candidate, _without_commas(candidate)):
            value = _read(tried)
            if value is _NONE:
                continue
            if accepts(value, len(tried)):
                found.setdefault(orjson.dumps(value, option=orjson.OPT_SORT_KEYS), tried)
            break
    if len(found) == 1:
        return next(iter(found.values()))
    if cut and not found:
        closed = _close(text)
        if closed is not None:
            value = _read(closed)
            if value is not _NONE and accepts(value, len(closed)):
                return closed
    return None


_NONE = object()


def _read(text: str) -> Any:
    try:
        value = orjson.loads(text)
        orjson.dumps(value)  # what is too deep to be written is too deep
    except (ValueError, TypeError):
        return _NONE
    return value


def _candidates(text: str) -> Iterator[str]:
    """What may be the JSON: the text, what stands in fences, and what stands in brackets of its own."""
    yield text
    start = _BEGINNING.search(text)
    at = text.find(_FENCE)
    if start is not None and start.start() < at:
        at = -1  # it stands within the JSON, in a string
    while at >= 0:
        line = text.find("\n", at, at + _TAG)
        begin = line + 1 if line >= 0 and _OPENING.search(text, at, line) is None else at + len(_FENCE)
        end = text.find(_FENCE, begin)
        if end < 0:
            break
        yield text[begin:end].strip()
        at = text.find(_FENCE, end + len(_FENCE))
    yield from _spans(text)


def _spans(text: str) -> Iterator[str]:
    """Balanced brackets, strings respected; an opening in prose that is never closed is passed over, a few times.

    One that looks like JSON ends the search: what stands within it is a part, and no answer of its own.
    """
    at, failed = 0, 0
    while failed < _STARTS:
        opening = _OPENING.search(text, at)
        if opening is None:
            return
        begin = opening.start()
        end = _balanced(text, begin)
        if end < 0:
            if _BEGINNING.match(text, begin) is not None:
                return
            failed += 1
            at = begin + 1
        else:
            yield text[begin:end]
            at = end


def _balanced(text: str, begin: int) -> int:
    """Where the bracket at ``begin`` is closed; -1 where it never is."""
    depth, at = 0, begin
    while (mark := _MARKS.search(text, at)) is not None:
        char, at = mark[0], mark.end()
        if char == '"':
            at = _string_end(text, at - 1)
            if at < 0:
                return -1
        elif char in "{[":
            depth += 1
        else:
            depth -= 1
            if depth == 0:
                return at
    return -1


def _string_end(text: str, at: int) -> int:
    """The place after the string that begins at ``at``; -1 where it has no end."""
    at += 1
    while True:
        quote = text.find('"', at)
        if quote < 0:
            return -1
        slash = text.find("\\", at, quote)
        if slash < 0:
            return quote + 1
        at = slash + 2


def _without_commas(text: str) -> str:
    """The text less each comma that only blanks and a closing bracket follow, outside of strings."""
    out: list[str] = []
    kept = at = 0
    while (mark := _STRING_OR_COMMA.search(text, at)) is not None:
        at = mark.start()
        if mark[0] == '"':
            at = _string_end(text, at)
            if at < 0:
                break
        elif _LAST_COMMA.match(text, at) is not None:
            out.append(text[kept:at])
            kept = at = at + 1
        else:
            at += 1
    out.append(text[kept:])
    return "".join(out)


def _close(text: str) -> str | None:
    """The text with what is open at its end closed; a number or a name that was cut is left out, for it may be another."""
    opening = _OPENING.search(text)
    if opening is None:
        return None
    begin = at = opening.start()
    closers: list[str] = []
    safe: tuple[int, str] | None = None  # so far, and closed so, the text is whole
    while (mark := _MARKS_AND_COMMAS.search(text, at)) is not None:
        char, start, at = mark[0], mark.start(), mark.end()
        if char == '"':
            end = _string_end(text, start)
            if end < 0:
                whole = text[begin:start] + _closed_string(text[start:]) + "".join(reversed(closers))
                if _read(whole) is not _NONE:
                    return whole
                break
            at = end
        elif char in "{[":
            if len(closers) >= _DEEPEST:
                return None
            closers.append("}" if char == "{" else "]")
            safe = at, "".join(reversed(closers))
        elif char == ",":
            safe = start, "".join(reversed(closers))
        elif not closers or closers.pop() != char:
            return None
        else:
            safe = at, "".join(reversed(closers))
    if safe is None:
        return None
    whole = text[begin : safe[0]] + safe[1]
    last = text[begin:] + "".join(reversed(closers))
    # A string that was finished is whole; anything else at the end may have been meant longer.
    return last if text.rstrip().endswith('"') and _read(last) is not _NONE else whole


def _closed_string(opened: str) -> str:
    """A string that was cut, less the escape that it was cut in, and closed."""
    slash = opened.rfind("\\", max(0, len(opened) - 6))
    run = len(opened[: slash + 1]) - len(opened[: slash + 1].rstrip("\\")) if slash >= 0 else 0
    if run % 2 and (len(opened) - slash < 2 or (opened[slash + 1] == "u" and len(opened) - slash < 6)):
        opened = opened[:slash]
    return opened + '"'


__all__ = ["repair"]

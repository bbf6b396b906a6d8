"""Messages cut to what there is room for, before they are written down."""

from __future__ import annotations

from typing import Any

import orjson

_DEEPEST = 40
_INT64 = 2**63


class Fit:
    """Room for one attribute: what is put in takes of it what its JSON takes.

    Args:
        limit: Bytes of JSON.

    Attributes:
        cut: Something had no room.
    """

    def __init__(self, limit: int) -> None:
        self.cut = False
        self._left = limit - 2

    def list(self, values: list[Any], *, newest_first: bool = False) -> list[Any]:
        """As many of the values as there is room for, the last one of them perhaps in part.

        Raises TypeError or ValueError for what JSON has no form of.
        """
        found = []
        for value in reversed(values) if newest_first else values:
            if self._left < 32:  # less is a husk of a message
                self.cut = True
                break
            found.append(self._value(value, 0))
            self._left -= 1
        if newest_first:
            found.reverse()
        return found

    def _value(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind is str:
            return self._text(value)
        if value is None or kind is bool:
            self._left -= 5
            return value
        if kind is int and not -_INT64 <= value < _INT64:  # the protocol has no such number
            return self._text(str(value) if value.bit_length() < 4096 else "")
        if kind is int or kind is float:
            if self._left >= 24:
                self._left -= 24
                return value
            return self._left_out()
        if depth >= _DEEPEST:
            return self._left_out()
        if kind is dict:
            return self._object(value, depth)
        if kind is list or kind is tuple:
            self._left -= 2
            found = []
            for one in value:
                if self._left < 8:
                    self.cut = True
                    break
                found.append(self._value(one, depth + 1))
                self._left -= 1
            return found
        raise TypeError(f"{kind.__name__} is nothing that JSON has a form of")

    def _object(self, value: dict[Any, Any], depth: int) -> dict[str, Any]:
        self._left -= 2
        found: dict[str, Any] = {}
        blob = value.get("type") == "blob"
        for name, one in value.items():
            if type(name) is not str:
                raise TypeError("a name is a text")
            size = len(orjson.dumps(name)) + 2 if len(name) < self._left else len(name)
            if self._left < size + 8:
                self.cut = True
                break
            self._left -= size
            if blob and name == "content" and type(one) is str and len(one) > self._left:
                self.cut = True  # half of an image is none
                one = ""
            found[name] = self._value(one, depth + 1)
        return found

    def _left_out(self) -> None:
        self.cut = True
        self._left -= 4

    def _text(self, value: str) -> str:
        room = max(self._left - 2, 0)
        cut = value[:room]
        size = len(orjson.dumps(cut)) - 2
        while size > room and cut:  # quotes, control characters and other scripts take more bytes than characters
            cut = cut[: min(len(cut) - 1, len(cut) * room // size)]
            size = len(orjson.dumps(cut)) - 2
        self.cut = self.cut or len(cut) < len(value)
        self._left -= size + 2
        return cut


__all__ = ["Fit"]

"""Whether an answer is what was asked for, what of it can be mended, and what is to be said of the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import orjson

from ..errors import GatewayError
from ..wire import Dialect
from .chat import ChatForm
from .compiled import Fault, Schema, SchemaCache
from .form import Form, Format, Key, Piece, Words
from .limits import INLINE
from .messages import MessagesForm
from .repair import repair
from .responses import ResponsesForm
from .steps import TooCostly

FORMS: Mapping[Dialect | None, Form] = {
    "chat": ChatForm(),
    "responses": ResponsesForm(),
    "messages": MessagesForm(),
}
"""The dialects that can ask for a format; the others have no word for one."""

Cut = Literal["pass", "repair", "refuse"]
_TOLD = 1200  # characters of all faults together
_LONG = 16 * 1024  # characters of a text whose mending may take more than some 10 ms
_TRY = 8  # steps for each value that is tried, however small


def format_of(form: Form, data: Mapping[str, Any], cache: SchemaCache) -> Format | None:
    """What a request wants, compiled; ``None`` where it wants nothing. Raises BadRequest, Unavailable."""
    wanted = form.wanted(data)
    if not wanted:
        return None
    text: Schema | None = None
    tools: dict[str, Schema] = {}
    only_json = False
    for tool, schema, param in wanted:
        compiled = cache.get(schema, param)
        if tool is None:
            text, only_json = compiled, schema == {"type": "object"}
        else:
            tools.setdefault(tool, compiled)
    return Format(text, tools, only_json)


class Wrong(NamedTuple):
    """A piece that does not match."""

    piece: Piece
    faults: Sequence[Fault]

    @property
    def told(self) -> str:
        """The faults in words, without what the answer holds."""
        return "; ".join(f"at '{fault.path}': {fault.why}" if fault.path else fault.why for fault in self.faults)


class Verdict(NamedTuple):
    """What became of an answer.

    Attributes:
        wrong: What does not match and can't be mended.
        mended: Texts to put in place of those that came.
    """

    wrong: Sequence[Wrong]
    mended: Mapping[Key, str]


class Judging:
    """The pieces of an answer, read and weighed, before they are validated.

    Args:
        pieces: Of one answer; together they may take as many steps as one.
        cut: What happens to a text that ended at its limit and does not match: it passes, it is closed where that makes it
            match, or it is refused.
        mend: Whether a text may be mended.
    """

    def __init__(self, pieces: Sequence[Piece], cut: Cut, *, mend: bool = True) -> None:
        self._cut = cut
        self._mend = mend
        self._left = min((piece.schema.most for piece in pieces), default=0)
        self._steps = 0  # that are left to take
        self._read = [(piece, *self._reading(piece)) for piece in pieces]
        self.heavy = self._steps > INLINE or any(
            faults and self._mendable(piece) and _slow_to_mend(piece) for piece, _, faults in self._read
        )
        """It would hold up the event loop for long: ``verdict`` belongs in a thread."""

    def verdict(self) -> Verdict:
        """Validate each piece, and mend what can be mended."""
        wrong: list[Wrong] = []
        mended: dict[Key, str] = {}
        for piece, value, faults in self._read:
            if faults is None:
                faults = piece.schema.told(value)
            if not faults:
                continue
            if self._mendable(piece):
                better = self._mended(piece)
                if better is not None:
                    mended[piece.key] = better
                    continue
            if not piece.cut or self._cut != "pass":
                wrong.append(Wrong(piece, faults))
        return Verdict(wrong, mended)

    def _mendable(self, piece: Piece) -> bool:
        return self._mend and piece.text is not None and piece.repairable

    def _reading(self, piece: Piece) -> tuple[Any, Sequence[Fault] | None]:
        """The value, and what is wrong with it where that is known."""
        value, text = piece.value, piece.text
        if text is None:
            try:
                size = len(orjson.dumps(value))
            except TypeError:
                return None, (Fault("", "is nested too deeply"),)
        elif not text.strip():
            return None, (Fault("", "is empty"),)
        else:
            try:
                value, size = orjson.loads(text), len(text.encode())
            except (orjson.JSONDecodeError, UnicodeEncodeError):
                return None, (Fault("", "is not JSON" + (": it ended at its limit" if piece.cut else "")),)
        schema = piece.schema
        try:
            steps = schema.steps(value, size, self._left)
        except TooCostly as error:
            return None, (Fault("", str(error)),)
        self._left -= steps
        if not schema.tells and schema.valid(value):
            return None, ()
        self._steps += steps
        return value, None

    def _mended(self, piece: Piece) -> str | None:
        def accepts(value: Any, size: int) -> bool:
            # Each of the pieces that a text falls into costs a little: what they cost together is bounded as one answer's.
            self._left -= piece.schema.steps(value, size, self._left) + _TRY
            return piece.schema.valid(value)

        assert piece.text is not None
        try:
            return repair(piece.text, accepts, cut=piece.cut and self._cut == "repair")
        except TooCostly:
            return None


def judge(pieces: Sequence[Piece], cut: Cut, *, mend: bool = True) -> Verdict:
    """Validate each piece, and mend what can be mended. See Judging."""
    return Judging(pieces, cut, mend=mend).verdict()


def _slow_to_mend(piece: Piece) -> bool:
    assert piece.text is not None
    foreseen = piece.schema.foreseen(len(piece.text))
    return len(piece.text) > _LONG or (piece.schema.tells and (foreseen is None or foreseen > INLINE))


def words_for(format: Format) -> str:
    """The instruction that stands in for a provider's own support."""
    assert format.text is not None
    if format.only_json:
        return "Answer with one JSON object and nothing else: no text before or after it, no code fence."
    return (
        "Answer with JSON only, valid against the following JSON Schema: no text before or after it, no code fence.\n"
        + format.text.source.decode()
    )


def correction(wrong: Sequence[Wrong]) -> Words:
    """What the model is told of its answer."""
    tools = {
        one.piece.key: f"Not carried out: the arguments {_short(one.told)}. Make the call again with valid arguments."
        for one in wrong
        if one.piece.key[0] == "tool"
    }
    texts = [one.told for one in wrong if one.piece.key[0] != "tool"]
    return Words(
        f"Your answer was not accepted: the JSON {_short(' '.join(texts))}. "
        "Answer again with the whole corrected JSON and nothing else.",
        tools,
        "Not carried out: another call beside it had invalid arguments. Make it again.",
    )


def invalid(wrong: Sequence[Wrong], *, tries: int, more: str = "") -> GatewayError:
    """The refusal of an answer. It names places and rules, never what the model wrote."""
    first = wrong[0]
    path = first.faults[0].path
    told = "; ".join(f"'{one.piece.where}' {one.told}" for one in wrong)
    tried = "The model's answer does not match the schema" + (f" after {tries} tries" if tries > 1 else "")
    return GatewayError(
        f"{tried}: {_short(told)}.{more}",
        status=422,
        type="invalid_response_error",
        code="structured_output_invalid",
        param=first.piece.where + ("#" + path if path else ""),
    )


def _short(text: str) -> str:
    return text if len(text) <= _TOLD else text[:_TOLD] + "..."


__all__ = ["FORMS", "Cut", "Judging", "Verdict", "Wrong", "correction", "format_of", "invalid", "judge", "words_for"]

"""All that judging an answer may cost is bounded together, and what takes long is known before."""

from __future__ import annotations

import json
from typing import Any

import pytest

from asgi_llm_gateway.structured.compiled import Schema, SchemaCache
from asgi_llm_gateway.structured.engines import Maker
from asgi_llm_gateway.structured.fast import Fast
from asgi_llm_gateway.structured.form import Piece
from asgi_llm_gateway.structured.judge import Judging, judge
from asgi_llm_gateway.structured.limits import Limits
from asgi_llm_gateway.structured.plain import Plain

from . import BAD, GOOD, PERSON
from .engines import ENGINES

PEOPLE = {"type": "array", "items": PERSON}


def compiled(engine: type[Maker], schema: Any, **limits: int) -> Schema:
    """A schema, compiled."""
    return SchemaCache(Limits(**limits), engine).get(schema, "schema")


def piece(schema: Schema, text: str, at: int = 0) -> Piece:
    """One text of an answer."""
    return Piece(("text", at), f"choices[{at}]", text, None, schema)


def people(count: int, last: str = GOOD) -> str:
    """So many of them, as JSON."""
    return "[" + ",".join([GOOD] * (count - 1) + [last]) + "]"


@pytest.mark.parametrize("engine", ENGINES)
def test_the_pieces_of_an_answer_share_what_it_may_cost(engine: type[Maker]) -> None:
    """Many choices of moderate cost are as costly as a long one."""
    schema = compiled(engine, {"enum": [[1] * 40 for _ in range(40)]}, steps=80_000)
    text = json.dumps([1] * 40)
    few = judge([piece(schema, text, at) for at in range(3)], "pass")
    assert not few.wrong
    many = judge([piece(schema, text, at) for at in range(100)], "pass")
    assert {fault.why[:22] for one in many.wrong for fault in one.faults} == {"takes too long to vali"}
    assert len(many.wrong) < 100


@pytest.mark.parametrize("engine", ENGINES)
def test_many_values_in_one_text_are_not_all_tried(engine: type[Maker]) -> None:
    """Each takes little, and together they would take for ever: the text is not mended."""
    costly = {"anyOf": [*({"required": [f"k{at}"]} for at in range(2000)), {"required": ["a"]}]}
    schema = compiled(engine, costly)
    tried: list[Any] = []

    class Counting:
        """The compiled schema, counting."""

        def __init__(self, validator: Any) -> None:
            self._validator = validator

        def valid(self, value: Any) -> bool:
            """See Validator."""
            tried.append(value)
            return bool(self._validator.valid(value))

    schema._validator = Counting(schema._validator)
    text = " ".join(["x", *(f'{{"b": {at}}}' for at in range(5000)), '{"a": 1}'])
    verdict = judge([piece(schema, text)], "pass")
    assert [one.faults[0].why for one in verdict.wrong] == ["is not JSON"]
    assert 0 < len(tried) <= schema.most // 2000
    short = " ".join(["x", *(f'{{"b": {at}}}' for at in range(9)), '{"a": 1}'])
    assert judge([piece(schema, short)], "pass").mended == {("text", 0): '{"a": 1}'}


def test_a_long_validation_is_heavy_with_the_slow_engine() -> None:
    """And a short one is not; the fast engine knows the verdict at once."""
    slow, fast = compiled(Plain, PEOPLE), compiled(Fast, PEOPLE)
    assert not Judging([piece(slow, people(100))], "pass").heavy
    assert Judging([piece(slow, people(3000))], "pass").heavy
    assert not Judging([piece(fast, people(3000))], "pass").heavy
    pieces = [piece(slow, people(300), at) for at in range(5)]
    assert Judging(pieces, "pass").heavy


def test_a_long_explanation_is_heavy_with_either_engine() -> None:
    """What is wrong takes the slow one to say."""
    for engine in ENGINES:
        judging = Judging([piece(compiled(engine, PEOPLE), people(3000, BAD))], "pass")
        assert judging.heavy
        (wrong,) = judging.verdict().wrong
        assert wrong.faults[0].path == "/2999/age"


@pytest.mark.parametrize("engine", ENGINES)
def test_long_text_that_is_no_json_is_heavy(engine: type[Maker]) -> None:
    """To look for JSON in it takes its time, too."""
    schema = compiled(engine, PERSON)
    assert Judging([piece(schema, "prose " * 4000 + GOOD)], "pass").heavy
    assert not Judging([piece(schema, "prose " * 4000 + GOOD)], "pass", mend=False).heavy
    assert not Judging([piece(schema, "prose " + GOOD)], "pass").heavy
    assert judge([piece(schema, "prose " * 4000 + GOOD)], "pass").mended == {("text", 0): GOOD}

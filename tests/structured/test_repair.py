"""What models do to JSON is undone where there is one way to do so; what is JSON is left alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_llm_gateway.structured.repair import repair

from . import GOOD
from .schemas import VALUES


def anything(value: Any, size: int) -> bool:
    """Accepts every object and array."""
    return isinstance(value, (dict, list))


def nothing(value: Any, size: int) -> bool:
    """Accepts no value."""
    return False


def fixed(text: str, **more: Any) -> Any:
    """The value of the mended text; ``None`` where it was not mended."""
    mended = repair(text, anything, **more)
    return None if mended is None else json.loads(mended)


GOOD_VALUE = json.loads(GOOD)


@pytest.mark.parametrize(
    "text",
    [
        f"```json\n{GOOD}\n```",
        f"```\n{GOOD}\n```",
        f"```{GOOD}```",
        f"``` json\r\n{GOOD}\r\n```\r\n",
        f"Here is the JSON:\n\n{GOOD}\n\nAnything else?",
        f"Use {{ and }} as here: {GOOD}",
        f"An opening {{ and then {GOOD}",
        f'She said "hi [x" {GOOD}',
        GOOD[:-1] + ",}",
        GOOD[:-1] + " , \n }",
        f"```json\n{GOOD[:-1]},}}\n```",
        f"{GOOD}\n```",
        f"<think>maybe {{}}?</think>{GOOD[:-1]}}}",
        f"\ufeff{GOOD}.",
    ],
)
def test_one_value_in_other_text_is_found(text: str) -> None:
    """Fences, prose, commas; brackets that belong to neither are passed over."""

    def person(value: Any, size: int) -> bool:
        return isinstance(value, dict) and "name" in value

    mended = repair(text, person)
    assert mended is not None
    assert json.loads(mended) == GOOD_VALUE


@pytest.mark.parametrize(
    "text",
    ["", " ", "no", "{", "[", '"', "{}{", f'{GOOD} or {GOOD[:-1]}, "x": 1}}', "[1] and [2]", "{'a': 1}", '{"a" 1}'],
)
def test_what_has_no_one_reading_is_left(text: str) -> None:
    """Two different values, or none."""
    assert repair(text, anything) in (None, "{}")
    assert repair(text, nothing) is None


@pytest.mark.parametrize(
    "text",
    [
        '{"a": {"name": 1}',  # the last bracket is missing
        '[{"name": 1}, {"x": "y"}',
        '{"a": "see ```{}``` and',
        '{"doc": "```[{}]```", "b": [1, 2',
    ],
)
def test_a_part_of_an_answer_is_never_taken_for_it(text: str) -> None:
    """What stands within JSON that does not close is no answer of its own."""
    assert repair(text, anything) is None


def test_the_same_value_twice_is_one_value() -> None:
    """In a fence and in words, whatever the order of its keys."""
    assert fixed(f'{GOOD} that is:\n```json\n{{"age": 36, "name": "Ada"}}\n```') == GOOD_VALUE


def test_commas_in_strings_stay() -> None:
    """Only those that stand before a closing bracket go."""
    assert fixed('{"a": "x,}", "b": ["\\",]", ], }') == {"a": "x,}", "b": ['",]']}


@settings(max_examples=300, deadline=None)
@given(VALUES, st.booleans())
def test_what_is_json_is_never_touched(value: Any, cut: bool) -> None:
    """Whoever accepts what: a valid answer keeps its value, an invalid one is not made another."""
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=2), f" \n{json.dumps(value)} "):
        assert repair(text, anything, cut=cut) is None


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.text(max_size=4), VALUES, max_size=4),
    st.text("abc \n.,:\"'é", max_size=12),
    st.text("xyz \n.!", max_size=9),
)
def test_a_value_in_prose_or_fences_keeps_its_value(value: dict[str, Any], before: str, after: str) -> None:
    """However it is written, and whatever stands around it."""
    for raw in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        assert fixed(f"x{before.replace(chr(34), '')}{raw}{after}x") == value
        assert fixed(f"{before}```json\n{raw}\n```{after}x") == value
        if value:
            assert fixed(f"{raw[:-1]},}}") == value


@settings(max_examples=300, deadline=None)
@given(VALUES.filter(lambda one: isinstance(one, (dict, list))), st.data())
def test_a_cut_text_is_closed_to_a_part_of_what_it_was(value: Any, data: Any) -> None:
    """Nothing is made up: what is there was there, but for a string that is shorter."""
    text = json.dumps(value)
    cut = text[: data.draw(st.integers(1, len(text) - 1))]
    mended = repair(cut, anything, cut=True)
    assert mended is not None
    assert _part(json.loads(mended), value)


def _part(some: Any, whole: Any) -> bool:
    if isinstance(some, dict) and isinstance(whole, dict):
        return all(key in whole and _part(one, whole[key]) for key, one in some.items())
    if isinstance(some, list) and isinstance(whole, list):
        return len(some) <= len(whole) and all(map(_part, some, whole))
    if isinstance(some, str) and isinstance(whole, str):
        return whole.encode("utf-16-le", "surrogatepass").startswith(some.encode("utf-16-le", "surrogatepass"))
    return bool(some == whole) and type(some) is type(whole)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": "hel', {"a": "hel"}),
        ('{"a": "x\\', {"a": "x"}),
        ('{"a": "x\\\\', {"a": "x\\"}),
        ('{"a": "x\\u00', {"a": "x"}),
        ('{"a": 1, "b": 12', {"a": 1}),
        ('{"a": tru', {}),
        ('{"a": [1, {"b": 2}', {"a": [1, {"b": 2}]}),
        ('{"a": 1, "b', {"a": 1}),
        ('{"a": 1, "b":', {"a": 1}),
        ('```json\n{"a": "x", "b": [', {"a": "x", "b": []}),
    ],
)
def test_a_cut_end_is_closed(text: str, value: Any) -> None:
    """A number that was cut may have been another: it goes. A string is kept as far as it came."""
    assert fixed(text, cut=True) == value
    assert repair(text, anything) is None


@pytest.mark.parametrize("text", ["{}}", "[}", "x", "[" * 200, '{"a": 1}}, {'])
def test_what_cannot_be_closed_is_left(text: str) -> None:
    """Or is too deep."""
    assert repair(text, nothing, cut=True) is None


@settings(max_examples=300, deadline=None)
@given(st.text('{}[]",:\\`\n 1tu', max_size=60), st.booleans())
def test_any_text_is_mended_or_left(text: str, cut: bool) -> None:
    """Never an exception; what is mended is what was accepted."""
    seen: list[Any] = []

    def note(value: Any, size: int) -> bool:
        seen.append(value)
        return True

    mended = repair(text, note, cut=cut)
    if mended is not None:
        assert json.loads(mended) in seen


@pytest.mark.parametrize(
    "text", ["[] ", "{", "```a", '"', '{"', ",", "{, ", "[1,", '{"a":"\\', "[[],", ",   ", "}", '{"a":1}', "\\"]
)
def test_the_work_grows_with_the_text(text: str) -> None:
    """Twice the text is looked at by a call a bounded number of times: what is tried is counted."""
    short, long = (text * (60_000 // len(text)), text * (120_000 // len(text)))
    tried: list[int] = []

    def note(value: Any, size: int) -> bool:
        tried.append(size)
        return False

    repair(short, note, cut=True)
    once = sum(tried)
    tried.clear()
    repair(long, note, cut=True)
    assert sum(tried) <= 3 * max(once, 60_000)
    assert repair(text * 60_000, anything) in (None,) or len(text) * 60_000 <= 128 * 1024

"""Patterns are read once, mean the same to both engines, and are matched without backtracking."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_llm_gateway.errors import BadRequest
from asgi_llm_gateway.structured.automaton import Automaton
from asgi_llm_gateway.structured.compiled import SchemaCache
from asgi_llm_gateway.structured.engines import Maker
from asgi_llm_gateway.structured.patterns import BadPattern, parse, weight

from .engines import ENGINES


def matches(engine: type[Maker], pattern: str, text: str) -> bool:
    """Whether an engine finds the pattern in the text."""
    return SchemaCache(engine=engine).get({"pattern": pattern}, "schema").valid(text)


# -- what patterns mean ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("", ["", "x"], []),
        ("b", ["abc"], ["", "ac"]),
        ("^a$", ["a"], ["a\n", "ba"]),
        ("^(a|bc){2}$", ["aa", "abc", "bcbc"], ["a", "aaa"]),
        ("^a{2,}$", ["aa", "aaaa"], ["a"]),
        ("^a{0}$", [""], ["a"]),
        ("^(a*)*$", ["", "aaa"], ["b"]),
        ("^(|a)+$", ["", "aa"], ["b"]),
        (r"^\d$", ["7"], ["\u0663", "x"]),
        (r"^\w$", ["_", "Z"], ["é", "-"]),
        (r"^\s$", ["\ufeff", "\u2003", "\t"], ["\u200b", "x"]),
        (r"^\S\D\W$", ["ab-"], ["a1-", " b-"]),
        ("^.$", ["x", "\x00", "\U0001f600"], ["\n", "\r", "\u2028", "\u2029", "xy"]),
        (r"\bcat\b", ["a cat.", "cat", "é" + "cat"], ["cats", "_cat"]),
        (r"^\B$", [""], []),
        ("[^a]", ["b", "\n"], ["a", ""]),
        ("^[^]$", ["\n", "x"], ["", "xy"]),
        ("[]", [], ["", "x", "[]"]),
        (r"^[\d-]$", ["7", "-"], ["a"]),
        (r"^[\w-z]$", ["-", "q"], ["."]),
        (r"^[a-c\]]+$", ["a]c"], ["d"]),
        (r"^[[:alpha:]]$", ["a]", ":]"], ["a", "b]"]),
        (r"^[\b]$", ["\b"], ["b"]),
        (r"^[^\W\d]$", ["a"], ["1", "-"]),
        (r"^\u0041\x41\u{1F600}\uD83D\uDE00\cA\0\.\/\-$", ["AA\U0001f600\U0001f600\x01\x00./-"], ["AA"]),
        (r"^\t\n\v\f\r$", ["\t\n\v\f\r"], ["tnvfr"]),
        ("^a{b}]}$", ["a{b}]}"], ["ab"]),
        ("^a{,3}$", ["a{,3}"], ["aa"]),
        ("^(?:a)(?<name>b)$", ["ab"], ["a"]),
        ("^a+?b*?c??$", ["aabbc", "a"], ["b"]),
        (r"^\p{L}\p{Lu}\p{gc=Nd}\P{L}\p{Letter}$", ["éÉ\u0663-z"], ["éé\u0663-z", "éÉxxz"]),
        (r"^[\p{L}'-]+$", ["O'Neil-Müller"], ["a1"]),
        (r"^[^\p{L}1]$", ["2", "-"], ["1", "é"]),
        (r"^[\ud800-\udfff]$", [], ["x", "\U0001f600"]),
        ("^\U0001f600{2}$", ["\U0001f600\U0001f600"], ["\U0001f600"]),
        ("^[0-9]{4}-[0-9]{2}-[0-9]{2}$", ["2026-01-31"], ["2026-1-31", "2026-01-31 "]),
        (r"^[^@\s]+@[^@\s]+\.[^@\s]+$", ["a@b.de"], ["a@b", "a@@b.de"]),
    ],
)
def test_a_pattern_means_what_ecma_262_says(engine: type[Maker], pattern: str, yes: list[str], no: list[str]) -> None:
    """In ASCII, at the text's own ends, by characters and not by halves of them; to each engine."""
    assert [text for text in yes if not matches(engine, pattern, text)] == []
    assert [text for text in no if matches(engine, pattern, text)] == []


ATOMS = st.sampled_from(
    [*"abc1 _é\n", ".", r"\d", r"\w", r"\W", r"\s", "[ab]", "[^a]", "[a-c1]", r"\b", r"\B", "^", "$", r"\.", r"\u0061",
     r"[\d-]", r"[^\s]", r"\n", "", r"\p{L}", r"\P{Lu}", r"[^\p{L}1]", "[]", "[^]"]
)  # fmt: skip
PLAIN_ATOMS = st.sampled_from([*"abc1 _é\n", "[ab]", "[^a]", "[a-c1]", "^", ""])
COUNTS = st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{0,2}", "{2,}", "*?", "{0}"])


def grown(atoms: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Patterns of these atoms."""
    return st.recursive(
        atoms,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4).map("".join),
            st.lists(inner, min_size=1, max_size=3).map(lambda many: f"(?:{'|'.join(many)})"),
            st.builds("(?:{}){}".format, inner, COUNTS),
        ),
        max_leaves=8,
    )


TEXTS = st.text("abc1 _é\nA-.\u0663", max_size=8)


@settings(max_examples=600, deadline=None)
@given(grown(ATOMS), TEXTS)
def test_both_engines_match_the_same(pattern: str, text: str) -> None:
    """Whatever the pattern; and ours the same, whether its sets are computed before or as they come."""
    tree = parse(pattern)
    ours = Automaton(tree).search(text)
    assert Automaton(tree, 0).search(text) is ours
    assert [matches(engine, pattern, text) for engine in ENGINES] == [ours, ours]


@settings(max_examples=400, deadline=None)
@given(grown(PLAIN_ATOMS), TEXTS)
def test_a_matcher_that_backtracks_finds_the_same(pattern: str, text: str) -> None:
    """Where languages agree on what a pattern means."""
    assert Automaton(parse(pattern)).search(text) is (re.search(pattern, text) is not None)


# -- what is no pattern here -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("(?=a)b", "look-around"), ("a(?!b)", "look-around"), ("(?<=a)b", "look-around"), ("(?<!a)b", "look-around"),
        (r"(a)\1", "back-references"), (r"(?<n>a)\k<n>", "back-references"), ("(?i)a", "flags"), ("(?>a)", "flags"),
        ("a++", "nothing before '+'"), ("*a", "nothing before '*'"), ("a|?", "nothing before '?'"), ("^*", "can't be repeated"),
        (r"\b+", "can't be repeated"), ("a{2,1}", "wrong order"), ("[b-a]", "wrong order"), ("(a", "never closed"),
        ("a)", "closes nothing"), ("[a", "ends within"), ("\\", "ends within"), (r"\Aa", "no meaning"), (r"a\Z", "no meaning"),
        (r"\q", "no meaning"), (r"\x4", "hexadecimal"), (r"\u00", "hexadecimal"), (r"\u{110000}", "hexadecimal"),
        (r"\01", "octal"), (r"\p{Script=Greek}", "general categories"), (r"\pL", "in braces"), ("(?<1>a)", "broken name"),
        ("(" * 60 + "a" + ")" * 60, "groups stand within"),
    ],
)  # fmt: skip
def test_what_cannot_be_matched_alike_is_refused(engine: type[Maker], pattern: str, told: str) -> None:
    """With its place and what to do, in a pattern and in the pattern of a property."""
    for schema, place in (
        ({"properties": {"a": {"pattern": pattern}}}, "schema.properties.a.pattern"),
        ({"patternProperties": {pattern: True}}, "schema.patternProperties"),
    ):
        with pytest.raises(BadRequest) as caught:
            SchemaCache(engine=engine).get(schema, "schema")
        error = caught.value
        assert (error.error_code, error.param) == ("invalid_json_schema", place)
        assert told in error.message


@settings(max_examples=300, deadline=None)
@given(st.text("(){}[]|*+?^$\\abdpux0,5<:=-", max_size=30))
def test_any_text_may_be_a_pattern(pattern: str) -> None:
    """It is read or refused, by both engines, and then they agree."""
    with contextlib.suppress(BadPattern):
        tree = parse(pattern)
        if weight(tree) < 1000:
            assert len({matches(engine, pattern, "a5-[bu" * 3) for engine in ENGINES}) == 1


# -- what it costs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "states"),
    [
        ("", 1), ("abc", 3), ("a{3}", 3), ("a{2,5}", 8), ("a{2,}", 4), ("(ab){10}", 20), ("((ab){10}c){10}", 210),
        ("[a-z]{4}", 4), (r"[\]a]{4}", 4), (r"\d{4}-\d{2}", 7), ("a{b}", 4), ("a|b", 3), (r"\{3}", 3),
        ("^[0-9a-f]{8}(-[0-9a-f]{4}){3}$", 25), (r"\p{L}{10}", 170), ("a{99999999999999999999999999}", 2**30),
        ("((((a{999}){999}){999}){999}){999}", 2**30), ("((((){999}){999}){999}){999}", 999**4), ("(a{0}){5}", 5),
    ],
)  # fmt: skip
def test_a_patterns_states_are_counted(pattern: str, states: int) -> None:
    """Before any is made: parts, as often as counts let them come; what is no count is text."""
    assert weight(parse(pattern)) == min(states, 2**30)


RUNS = "".join(f"{chr(0x3000 + 37 * at)}-{chr(0x3000 + 37 * at + 9)}" for at in range(160))


@pytest.mark.parametrize(
    "pattern",
    [r"\p{L}{480}", r"\P{Lu}{480}", "[^a]{8000}", r"[^\p{L}\p{N}]{240}", "(?:[^a]?){2700}", f"[{RUNS}]{{380}}"],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_each_engine_takes_what_the_limit_allows(engine: type[Maker], pattern: str) -> None:
    """At its end."""
    assert weight(parse(pattern)) > 5000
    assert matches(engine, pattern, "-" * 10) is ("?" in pattern)


@settings(max_examples=200, deadline=None)
@given(grown(ATOMS))
def test_no_pattern_has_more_states_than_were_counted(pattern: str) -> None:
    """Less the one that is the end."""
    tree = parse(pattern)
    assert len(Automaton(tree)._nodes) - 1 <= weight(tree)


EXPLOSIVE = ["(a+)+$", "(a|a)*$", r"^(\w+\s?)*$", "(.*)*x", "(a|b|ab)*c", "^(a?){60}a{60}$", "a*a*a*a*a*b", "(x+x+)+y"]


@pytest.mark.parametrize("pattern", EXPLOSIVE)
def test_a_pattern_that_backtracks_elsewhere_takes_a_look_up_a_character(pattern: str) -> None:
    """Its sets are known before the text comes: states are visited once more at its end, however long it is."""
    automaton = Automaton(parse(pattern))
    before = automaton.visited
    automaton.search("a" * 100_000 + "!")
    assert automaton.visited - before <= 2 * len(automaton._nodes)
    assert automaton.per_char < 16


@settings(max_examples=300, deadline=None)
@given(grown(ATOMS), TEXTS)
def test_a_character_costs_a_walk_through_all_states_at_most(pattern: str, text: str) -> None:
    """Also where none of the sets is known before."""
    automaton = Automaton(parse(pattern), 0)
    before = automaton.visited
    automaton.search(text)
    assert automaton.visited - before <= len(text) * automaton.per_char + 2 * len(automaton._nodes)


@pytest.mark.parametrize("pattern", ["(a|b)*a(a|b){40}c", "foo.{0,40}bar", "^(.|[abc])*z$", r"(\p{L}|a)*\p{Lu}{30}!"])
def test_a_pattern_with_too_many_sets_keeps_but_some_of_them(pattern: str) -> None:
    """Its memory is bounded, whatever text comes."""
    automaton = Automaton(parse(pattern))
    text = "".join(chr(0x4E00 + at % 9000) if at % 3 else "abfo"[(at * at // 7) % 4] for at in range(30_000))
    assert not automaton.search(text)
    kept: Any = automaton._sets.values()
    assert sum(len(one.nodes) + len(one._by_class) for one in kept) <= 21_000
    assert sum(map(len, kept)) <= 4096

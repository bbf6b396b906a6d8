"""Input that nobody sane sends, in numbers: no 5xx from input alone, no traceback, no hang.

Each test makes a few examples, always the same ones, so that all of them take seconds and a failure is nobody's bad luck.
``FUZZ_EXAMPLES`` sets how many each makes, at random then: ``make test-real`` looks further that way.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from asgi_llm_gateway.errors import GatewayError

T = TypeVar("T")
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))


def examples(few: int) -> settings:
    """So many examples, or as many as the environment asks for. Their time decides nothing."""
    return settings(
        max_examples=EXAMPLES or few,
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    )


# Texts, names and numbers that mean something to somebody on the way.
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from([
        "", " ", "\0", "\r\n", "\u200b", "\ufeff", "e\u0301", "null", "true", "NaN", "-1", "1e999", "0x10", "../..", "${x}",
        "%s%n", "data: [DONE]\n\n", "http://169.254.169.254/", "data:image/png;base64,AAAA", "user", "system", "assistant",
        "tool", "function", "text", "image_url", "input_text", "json_schema", "json_object", "auto", "none", "required",
    ]),
)  # fmt: skip
NUMBERS = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([2**31 - 1, 2**31, 2**53, 2**63, 2**64, 10**30, -(2**63), 0.5, 1e308, -0.0]),
    st.floats(allow_nan=False, allow_infinity=False),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
JUNK = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
"""Any JSON."""


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value, the whole of it left out."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = []
    for key, one in inner:
        found += [(*at, key), *places(one, (*at, key))]
    return found


def changed(value: Any, at: tuple[Any, ...], new: Any, *, drop: bool = False) -> Any:
    """The value with another one at a place; with none there, if ``drop``."""
    key, rest = at[0], at[1:]
    made: Any = dict(value) if isinstance(value, dict) else list(value)
    if rest:
        made[key] = changed(made[key], rest, new, drop=drop)
    elif drop:
        del made[key]
    else:
        made[key] = new
    return made


@st.composite
def spoilt(draw: st.DrawFn, whole: Any, most: int = 3) -> Any:
    """A good JSON value with a few places changed to junk, to something from elsewhere in it, or taken out."""
    value = draw(st.sampled_from(whole)) if isinstance(whole, tuple) else whole
    for _ in range(draw(st.integers(1, most))):
        there = places(value)
        if not there:
            break
        at = draw(st.sampled_from(there))
        how = draw(st.integers(0, 9))
        if how == 0:
            value = changed(value, at, None, drop=True)
        elif how == 1:
            other = draw(st.sampled_from(there))
            new = value
            for key in other:
                new = new[key]
            value = changed(value, at, new)
        else:
            value = changed(value, at, draw(JUNK))
    return value


def outcome(work: Callable[[], T]) -> tuple[T | None, GatewayError | None]:
    """What the work gives, or the refusal that it ends with; nothing else may be raised."""
    try:
        return work(), None
    except GatewayError as refusal:
        return None, refusal


@contextmanager
def ended(seconds: int = 30) -> Iterator[None]:
    """A hang is a failure. The time is no measure: what is right takes a thousandth of it."""

    def give_up(*_: Any) -> None:
        raise AssertionError(f"it did not come to an end within {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)

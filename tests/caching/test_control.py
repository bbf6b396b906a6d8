"""What a caller says of the cache."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.caching.control import Control, control_of

ANY = Control()


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (None, ANY),
        (b"", ANY),
        (b"no-cache", Control(lookup=False)),
        (b"No-Cache", Control(lookup=False)),
        (b"no-store", Control(lookup=False, store=False)),
        (b"max-age=60", Control(max_age=60)),
        (b'max-age="60"', Control(max_age=60)),
        (b"max-age = 5 , only-if-cached", Control(max_age=5, only=True)),
        (b"max-age=0", Control(lookup=False, max_age=0)),
        (b"max-age=", Control(lookup=False, max_age=0)),
        (b"max-age=-1", Control(lookup=False, max_age=0)),
        (b"max-age=soon", Control(lookup=False, max_age=0)),
        (b"max-age=" + b"9" * 5000, Control(max_age=2**31)),
        (b"max-age=7, max-age=9", Control(max_age=7)),
        (b"no-transform, stale-while-revalidate=3", ANY),
        (b"no-cache, no-store", Control(lookup=False, store=False)),
    ],
)
def test_directives_are_read_as_the_standard_says(said: bytes | None, meant: Control) -> None:
    """RFC 9111, section 5.2.1; a malformed age is too old for anything."""
    assert control_of(said) == meant


def test_pragma_counts_where_nothing_else_is_said() -> None:
    """RFC 9111, section 5.4."""
    assert control_of(None, b"no-cache") == Control(lookup=False)
    assert control_of(b"max-age=5", b"no-cache") == Control(max_age=5)
    assert control_of(None, b"x") == ANY


@given(st.binary(max_size=300))
def test_no_header_makes_it_fail(said: bytes) -> None:
    """Whatever a client sends means something."""
    control = control_of(said)
    assert control.max_age is None or 0 <= control.max_age <= 2**31
    assert control.store or not control.lookup


def test_a_long_header_is_read_in_one_pass() -> None:
    """No directive makes the reader go back: a pattern that did would not be through in a day."""
    assert control_of(b"a=" + b" " * 500_000 + b'"' + b"=," * 500_000 + b"max-age=4") == Control(max_age=4)

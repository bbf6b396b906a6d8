"""What Anthropic's streams cost: counts that are cumulative, told where asked for, estimated where they are missing."""

from __future__ import annotations

from typing import Any

import pytest

from asgi_llm_gateway.records import Usage
from asgi_llm_gateway.usage import with_cost

from .anthropic_events import (
    ADAPTER,
    STOP,
    chunks,
    delta,
    event,
    read,
    reason,
    request,
    start,
    words,
)


def test_usage_is_told_where_it_was_asked_for() -> None:
    """Before ``[DONE]``, without choices; every earlier chunk has a null."""
    found, _ = read(start(), words(0, "a"), delta(), STOP, usage=True)
    *before, last, done = found
    assert (done, last["choices"]) == ("[DONE]", [])
    assert last["usage"] == {
        "prompt_tokens": 135,
        "completion_tokens": 7,
        "total_tokens": 142,
        "prompt_tokens_details": {"cached_tokens": 100, "cache_write_tokens": 10},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    assert all(chunk["usage"] is None for chunk in before)


def test_the_gateways_cost_finds_its_place() -> None:
    """Beside the usage, in the same piece that settles the money."""
    stream = ADAPTER.stream(request(usage=True))
    stream.feed(start() + words(0, "a") + delta())
    assert not stream.ending
    out = stream.feed(STOP)
    assert stream.ending
    assert chunks(with_cost(out, 1_000))[-2]["cost_usd"] == pytest.approx(1e-6)


@pytest.mark.parametrize(
    ("first", "later", "expected"),
    [
        ({"input_tokens": 5, "output_tokens": 1}, [{"output_tokens": 4}, {"output_tokens": 9}], Usage(5, 9)),
        ({"input_tokens": 5, "output_tokens": 1}, [{"input_tokens": 5, "output_tokens": 9}], Usage(5, 9)),
        ({"input_tokens": 0, "output_tokens": 0}, [{"input_tokens": 5, "output_tokens": 9}], Usage(5, 9)),
        ({"input_tokens": 5, "output_tokens": 1}, [{"input_tokens": 0, "output_tokens": 9}], Usage(5, 9)),
        ({"input_tokens": 5, "output_tokens": 1}, [{"input_tokens": None, "output_tokens": 9}], Usage(5, 9)),
        ({"input_tokens": 5, "cache_read_input_tokens": 20, "output_tokens": 1}, [{"output_tokens": 9}],
         Usage(25, 9, 20)),
        ({"input_tokens": 25, "cache_read_input_tokens": 0, "output_tokens": 1},
         [{"input_tokens": 5, "cache_read_input_tokens": 20, "output_tokens": 9}], Usage(25, 9, 20)),
        ({"input_tokens": 5, "cache_creation_input_tokens": 3, "output_tokens": 1},
         [{"output_tokens": 9, "output_tokens_details": {"thinking_tokens": 6}}], Usage(8, 9, 0, 3, 6)),
        ({"input_tokens": 5, "output_tokens": 1}, [{"output_tokens": 9, "iterations": [
            {"input_tokens": 5, "output_tokens": 9}, {"input_tokens": 7, "output_tokens": 2}]}], Usage(12, 11)),
    ],
)  # fmt: skip
def test_counts_are_cumulative(first: dict[str, Any], later: list[dict[str, Any]], expected: Usage) -> None:
    """The latest holds; they are never added up, and none is lost that a later event leaves out."""
    news = [event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage) for usage in later]
    found, stream = read(start(**first), words(0, "a"), *news, STOP, usage=True)
    assert stream.usage == expected
    assert found[-2]["usage"]["total_tokens"] == expected.total
    assert len(reason(found)) == 1


def test_what_was_made_until_a_cut_is_paid_for() -> None:
    """The first event counts one token: the words say more. Without any counts it is all estimated elsewhere."""
    text = "many different words " * 20
    stream = ADAPTER.stream(request())
    stream.feed(start() + words(0, *([text] * 5)))
    assert stream.usage is not None
    assert (stream.usage.prompt, stream.usage.estimated) == (135, True)
    assert stream.usage.completion == stream.tokens() > 250
    for said in (
        words(0, text),
        event("message_start", message={}) + words(0, text),
        event("message_start", message=None),
    ):
        stream = ADAPTER.stream(request())
        stream.feed(said)
        assert stream.usage is None


def test_an_end_without_counts_is_estimated() -> None:
    """The provider told of the prompt only."""
    for said in (delta(output=None) + STOP, STOP):
        _, stream = read(start(), words(0, "some words are here"), said)
        assert stream.complete
        assert stream.usage is not None
        assert (stream.usage.estimated, stream.usage.completion > 1) == (True, True)

"""Embeddings: the client gets the encoding that it asked for, whatever the provider sent."""

from __future__ import annotations

import base64
import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.adapters._embeddings import encoded
from asgi_llm_gateway.adapters.anthropic import AnthropicAdapter
from asgi_llm_gateway.adapters.base import Unsupported
from asgi_llm_gateway.adapters.echo import EchoAdapter
from asgi_llm_gateway.adapters.openai import OpenAIAdapter
from asgi_llm_gateway.errors import BadRequest, UpstreamError
from asgi_llm_gateway.proxy.app import ProxyApp
from asgi_llm_gateway.proxy.routing import Router
from asgi_llm_gateway.records import Usage
from asgi_llm_gateway.wire import LLMRequest, Route, parse

from ..conversation import ask
from ..upstream import always, upstream, whole

ROUTE = Route("metered", "embeddings", "/v1/embeddings")
VECTORS = [[0.5, -1.25, 3.0], [0.0, 1.0, -2.5]]


def packed(vector: list[float]) -> str:
    """Little-endian float32 in base64."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def answer(vectors: list[Any], **more: Any) -> bytes:
    """An answer as OpenAI writes it."""
    rows = [{"object": "embedding", "index": at, "embedding": one} for at, one in enumerate(vectors)]
    usage = {"prompt_tokens": 4, "total_tokens": 4}
    return json.dumps({"object": "list", "data": rows, "model": "m", "usage": usage, **more}).encode()


def asked(**fields: Any) -> LLMRequest:
    """A request for embeddings."""
    return parse(ROUTE, json.dumps({"model": "m", "input": ["a", "b"], **fields}).encode())


FLOATS, PACKED = answer(VECTORS), answer([packed(one) for one in VECTORS])
ADAPTER = OpenAIAdapter("x", "http://h/v1")


@pytest.mark.parametrize(
    ("fields", "came", "expected"),
    [
        ({}, PACKED, VECTORS),
        ({"encoding_format": "float"}, PACKED, VECTORS),
        ({"encoding_format": "base64"}, FLOATS, [packed(one) for one in VECTORS]),
        ({"encoding_format": None}, PACKED, VECTORS),
    ],
)
def test_the_other_encoding_is_put_into_the_one_that_was_asked_for(
    fields: dict[str, Any], came: bytes, expected: list[Any]
) -> None:
    """Nothing asked is numbers. All else of the answer stays, and the usage is read."""
    made = ADAPTER.response(asked(**fields), came)
    told = json.loads(made.body)
    assert [row["embedding"] for row in told["data"]] == expected
    assert [(row["object"], row["index"]) for row in told["data"]] == [("embedding", 0), ("embedding", 1)]
    assert (told["model"], told["usage"]) == ("m", {"prompt_tokens": 4, "total_tokens": 4})
    assert made.usage == Usage(4, 0)


@pytest.mark.parametrize(
    ("fields", "came"),
    [
        ({}, FLOATS),
        ({"encoding_format": "float"}, FLOATS),
        ({"encoding_format": "base64"}, PACKED),
        ({"encoding_format": "int8"}, answer([[1, 2], [3, 4]])),
        ({"encoding_format": "base64"}, answer([])),
        ({}, b'{"data": [ {"embedding" : [ 1 ]} ], "usage": {"prompt_tokens": 4}}'),
    ],
)
def test_what_is_right_already_goes_on_byte_for_byte(fields: dict[str, Any], came: bytes) -> None:
    """Also an encoding of the vendor's own."""
    assert ADAPTER.response(asked(**fields), came).body is came


@given(st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1), min_size=1))
def test_there_and_back_no_number_changes(vectors: list[list[float]]) -> None:
    """Float32 values survive both ways, bit for bit."""
    there = encoded(answer(vectors), "base64")
    back = json.loads(encoded(there, "float"))
    got = [row["embedding"] for row in back["data"]]
    assert got == vectors
    assert all(
        math.copysign(1, a) == math.copysign(1, b)
        for x, y in zip(got, vectors, strict=True)
        for a, b in zip(x, y, strict=True)
    )


@pytest.mark.parametrize(
    ("wanted", "vector"),
    [("float", "%%%"), ("float", "AAA"), ("float", "AAAAAAA="), ("float", "é"), ("base64", [[1.0]]), ("base64", ["x"]),
     ("base64", [1e300]), ("base64", [None])],
)  # fmt: skip
def test_vectors_that_are_none_are_an_upstream_error(wanted: str, vector: Any) -> None:
    """502, not nonsense and not a traceback."""
    with pytest.raises(UpstreamError, match="can't be read"):
        encoded(answer([vector]), wanted)


def test_an_answer_of_megabytes_is_not_parsed_where_it_is_right() -> None:
    """The first vector tells: what stands behind it is not looked at, and may be anything."""
    body = b'{"data":[{"object":"embedding","embedding":[1,' + b"0," * 2_000_000 + b'oh]}],"usage":{"prompt_tokens":4}}'
    assert ADAPTER.response(asked(), body).body is body


def test_who_has_no_embeddings_says_so_by_name() -> None:
    """Anthropic has none."""
    with pytest.raises(Unsupported, match="claude"):
        AnthropicAdapter("claude", "https://api.anthropic.com").request(asked(), "m")


async def test_a_client_gets_what_it_asked_for_through_the_app() -> None:
    """A server that knows no base64, behind the gateway; the length is that of the new body."""
    async with upstream(always(whole(FLOATS))) as server:
        app = ProxyApp(router=Router([OpenAIAdapter("own", server.url())]))
        got = await ask(app, {"model": "own/m", "input": "a", "encoding_format": "base64"}, "/v1/embeddings")
        await app.aclose()
    assert [row["embedding"] for row in got.json()["data"]] == [packed(one) for one in VECTORS]
    assert int(got.headers.get("content-length", len(got.body))) == len(got.body)


def test_echo_keeps_the_encoding_too() -> None:
    """And refuses one that it does not know, by the field's name."""
    echo = EchoAdapter()
    ((_, numbers),) = echo.request(asked(), "echo").steps
    ((_, text),) = echo.request(asked(encoding_format="base64"), "echo").steps
    rows = json.loads(numbers)["data"]
    for row, other in zip(rows, json.loads(encoded(text, "float"))["data"], strict=True):
        assert row["embedding"] == pytest.approx(other["embedding"], abs=1e-6)
    with pytest.raises(BadRequest) as caught:
        echo.request(asked(encoding_format="int8"), "echo")
    assert caught.value.param == "encoding_format"

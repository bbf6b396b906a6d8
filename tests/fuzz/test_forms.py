"""Forms that no client sends, at the whole stack."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.multipart import read

from ..conversation import Answer
from ..conversation import ask as ask_app
from ..forms import B, form
from ..security.house import house
from . import ended, examples, outcome

LINES = st.sampled_from([
    b"--xYz", b"--xYz--", b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"--xY", b"Content-Disposition: form-data", b'; name="model"',
    b'; name="file"', b'; filename="a.wav"', b'; filename*=utf-8\'\'x', b"Content-Type: audio/wav", b"; charset=utf-16",
    b"Content-Transfer-Encoding: base64", b"echo", b"\0", b"\xff", b": ", b'"', b"x" * 200, b'; name="tenant"', b"a",
])  # fmt: skip
BODIES = st.one_of(
    st.lists(LINES, max_size=25).map(b"".join),
    st.binary(max_size=200),
    st.lists(st.lists(LINES, max_size=6).map(b"".join), min_size=1, max_size=5).map(lambda parts: form(*parts)),
)


@examples(300)
@given(body=BODIES)
def test_any_bytes_are_a_form_or_refused(body: bytes) -> None:
    """A40: each part lies within the body, after the one before it."""
    with ended():
        found, refusal = outcome(lambda: read(body, B))
    assert refusal is None or refusal.http_status == 400
    at = 0
    for part in found.parts if found is not None else ():
        assert at <= part.opens <= part.start <= part.end <= len(body)
        at = part.end


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/audio/translations", "/v1/images/edits"])
@examples(60)
@given(
    body=BODIES,
    kind=st.sampled_from([b"multipart/form-data; boundary=xYz", b'multipart/form-data; charset=x; boundary="xYz"',
                          b"multipart/form-data", b"multipart/mixed; boundary=xYz", b"application/json"]),
    cut=st.integers(0, 7),
)  # fmt: skip
def test_any_form_at_the_whole_stack_is_no_5xx(path: str, body: bytes, kind: bytes, cut: int) -> None:
    """A40: however it comes; nothing stays held."""

    async def asked() -> tuple[Answer, int]:
        made = await house()
        headers: list[Any] = [pair for pair in made.headers() if pair[0] != b"content-type"]
        async with asyncio.timeout(20):
            answer = await ask_app(made.app, body, path, headers=[*headers, (b"content-type", kind)], cut=cut)
        await made.proxy.aclose()
        return answer, await made.held()

    answer, held = asyncio.run(asked())
    assert 200 <= answer.status < 500, (answer.status, answer.body[:300])
    assert held == 0

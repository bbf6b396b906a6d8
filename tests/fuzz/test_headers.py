"""Heads of requests that no client sends: refused or served, by the whole stack, in the caller's envelope."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.keys import MAX_KEY_LENGTH, digest_of
from asgi_llm_gateway.middleware._security_incoming import host_of
from asgi_llm_gateway.multipart import boundary_of
from asgi_llm_gateway.wire import METERED, Table

from ..conversation import CHAT, Answer, scope_of
from ..conversation import ask as ask_app
from ..security.house import house
from . import ended, examples, outcome

NAMES = st.sampled_from([
    b"authorization", b"Authorization", b"x-api-key", b"X-API-KEY", b"x-tenant-id", b"content-type", b"content-length",
    b"transfer-encoding", b"content-encoding", b"host", b"x-request-id", b"traceparent", b"tracestate", b"baggage",
    b"anthropic-version", b"anthropic-beta", b"x-llm-gateway-hop", b"x-forwarded-for", b"x-forwarded-host", b"accept",
    b"expect", b"connection", b"upgrade", b"te", b"cookie", b"idempotency-key", b"openai-organization", b"",
])  # fmt: skip
VALUES = st.one_of(
    st.binary(max_size=24),
    st.sampled_from([
        b"", b"Bearer", b"Bearer ", b"bearer  x", b"Basic eDp5", b"Bearer a, Bearer b", b"\x00", b"\r\nx: y", b"\xff\xfe",
        b"a", b"b", b"-1", b"1e3", b"9" * 40, b"+5", b" 5", b"0x5", b"chunked", b"gzip, chunked", b"identity", b"br",
        b"application/json", b"application/json; charset=utf-16", b"text/json", b"multipart/form-data",
        b'multipart/form-data; boundary="x"', b"multipart/form-data; boundary=" + b"x" * 80, b"[::1]:80", b"x/health?", b"x#",
        b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01", b"ff-" + b"0" * 32 + b"-" + b"0" * 16 + b"-zz", b"2023-06-01",
        b"x" * 5000,
    ]),
)  # fmt: skip
PATHS = st.sampled_from([*METERED, "/v1/models", "/v1/models/echo", "/v1/models/%2e", "/v1/messages/count_tokens", "/v1",
                         "/v1/realtime/sessions", "/v1/files", "/v1/responses/resp_1"])  # fmt: skip


@examples(250)
@given(
    headers=st.lists(st.tuples(NAMES, VALUES), max_size=6),
    path=PATHS,
    method=st.sampled_from(["POST", "GET", "HEAD", "PUT", "DELETE", "PATCH", "TRACE", "BREW"]),
    keyed=st.booleans(),
    query=st.binary(max_size=12),
)
def test_any_head_is_answered(
    headers: list[tuple[bytes, bytes]], path: str, method: str, keyed: bool, query: bytes
) -> None:
    """A03, A04, A28: no 5xx, and every refusal has a message and a code; without its key nobody is served."""

    async def asked() -> tuple[Answer, int]:
        made = await house()
        shown = [(b"authorization", b"Bearer " + made.secrets["a"].encode())] if keyed else []
        async with asyncio.timeout(20):
            answer = await ask_app(made.app, CHAT, path, method=method, headers=[*shown, *headers], query_string=query)
        await made.proxy.aclose()
        return answer, await made.held()

    answer, held = asyncio.run(asked())
    assert 200 <= answer.status < 500, (answer.status, answer.body[:300])
    assert held == 0
    if not keyed:
        assert answer.status >= 400
    if answer.status >= 400 and method != "HEAD":
        error = json.loads(answer.body)["error"]
        assert error["message"]
        assert error["code"]


@examples(300)
@given(
    path=st.text(st.sampled_from("/v1chatomplensmodi.%;\\ \x00AZ2eE~?#"), max_size=30),
    root=st.sampled_from(["", "/v1", "/llm"]),
)
def test_any_path_has_a_route(path: str, root: str) -> None:
    """A02: and what a lenient server would take for a metered path is one, or none."""
    route = Table().match(scope_of("/" + path, root_path=root))
    assert route.kind in ("metered", "authenticated", "open", "misspelt")
    if ("/" + path).lower().rstrip("/") in METERED:
        assert route.kind != "open"


@examples(300)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_key_or_none(secret: bytes) -> None:
    """A03, A05: what has a digest is of the alphabet and the length that keys have."""
    digest = digest_of(secret)
    if digest is not None:
        assert 8 <= len(secret) <= MAX_KEY_LENGTH
        assert secret.isascii()
        assert not set(secret) & set(b" \t\r\n\0,;'\"\\%*(){}<>:$")


@examples(400)
@given(
    st.binary(max_size=60)
    | st.lists(st.sampled_from(b"[ ] : . - % a 1 :: 127.0.0.1 x.example @ \xff".split()), max_size=8).map(b"".join)
)
def test_any_host_is_a_name_or_none(value: bytes) -> None:
    """A01: a name has nothing in it that could start a path, a query or another host."""
    name = host_of(value)
    if name is not None:
        assert not set(name) & set("/?#@\\ %\t\r\n")
        assert name == name.lower()


@examples(400)
@given(st.one_of(
    st.binary(max_size=60),
    st.lists(st.sampled_from([b"multipart/form-data", b";", b" boundary", b"=", b'"', b"\\", b"x", b"Boundary=a", b"\t", b"\0",
                              b"x" * 70, b"=?", b"charset=utf-8"]), max_size=9).map(b"".join),
))  # fmt: skip
def test_any_content_type_has_a_boundary_or_none_or_is_refused(value: bytes) -> None:
    """A40: in time that grows with its length."""
    with ended():
        boundary, refusal = outcome(lambda: boundary_of(value))
    assert refusal is None or refusal.http_status == 400
    assert boundary is None or 1 <= len(boundary) <= 70


def test_long_content_types_take_no_time() -> None:
    """Every place of a text where a repetition could begin anew is in here."""
    with ended():
        for part in (b";" * 10, b"; a=" * 10, b'; a="', b'; a="\\', b" \t", b"; " + b"a" * 64, b"=", b'"'):
            value: Any = b"multipart/form-data" + part * 20_000
            boundary, refusal = outcome(partial(boundary_of, value))
            assert boundary is None
            assert refusal is None or refusal.http_status == 400

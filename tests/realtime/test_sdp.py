"""What a peer offers: read, checked and cleaned, whatever comes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.errors import GatewayError
from asgi_llm_gateway.realtime.sdp import LONGEST, MOST_CANDIDATES, read, sdp_of

HEAD = ["v=0", "o=- 1 2 IN IP4 127.0.0.1", "s=-", "t=0 0", "a=group:BUNDLE 0"]
BODY = [
    "m=application 9 UDP/DTLS/SCTP webrtc-datachannel",
    "c=IN IP4 0.0.0.0",
    "a=ice-ufrag:abcd",
    "a=ice-pwd:0123456789abcdef0123456789",
    "a=fingerprint:sha-256 AA:BB",
    "a=setup:actpass",
    "a=mid:0",
    "a=sctp-port:5000",
    "a=max-message-size:262144",
]


def lines(*more: str, without: str = "nothing") -> str:
    """An offer."""
    return "\r\n".join([*(line for line in [*HEAD, *BODY] if not line.startswith(without)), *more, ""])


def candidate(address: str, port: object = 5000, kind: str = "udp") -> str:
    """The line of a candidate."""
    return f"a=candidate:1 1 {kind} 2113937151 {address} {port} typ host generation 0"


def check(error: GatewayError) -> None:
    """It is the caller's fault, and says so."""
    assert 400 <= error.http_status < 500
    assert error.message


def refused(text: str) -> tuple[int, str | None, str | None, str]:
    """Status, code, field and words of an offer's refusal."""
    with pytest.raises(GatewayError) as caught:
        read(text)
    return caught.value.http_status, caught.value.error_code, caught.value.param, caught.value.message


def test_candidates_that_name_a_host_are_left_out() -> None:
    """Names of browsers resolve nowhere, and no other name is to be looked up; what is left is an address and UDP."""
    names = [candidate("d1a1-22.local"), candidate("internal.example"), candidate("localhost")]
    odd = [candidate("192.0.2.1", kind="tcp"), candidate("192.0.2.1", 0), candidate("192.0.2.1", 70000),
           candidate("224.0.0.1"), candidate("0.0.0.0"), "a=candidate:x"]  # fmt: skip
    kept = [candidate("192.0.2.1"), candidate("2001:db8::1")]
    found = read(lines(*names, *kept, *odd, "a=end-of-candidates")).sdp
    assert [line for line in found.split("\r\n") if "candidate" in line] == kept


def test_an_offer_has_some_candidates_and_no_more() -> None:
    """Each address of an offer is sent packets to."""
    found = read(lines(*(candidate(f"192.0.2.{number}") for number in range(1, 200)))).sdp
    assert found.count("a=candidate:") == MOST_CANDIDATES


@pytest.mark.parametrize(("told", "most"), [("262144", 262144), ("0", 0), ("1024", 1024), (None, 65536)])
def test_the_peers_message_size_is_read(told: str | None, most: int) -> None:
    """Where none is told, it is 64 KiB (RFC 8841)."""
    more = () if told is None else (f"a=max-message-size:{told}",)
    assert read(lines(*more, without="a=max-message-size")).most == most


def test_line_feeds_alone_are_taken() -> None:
    """As scripts write them."""
    assert read(lines().replace("\r\n", "\n")) == read(lines())


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("", "invalid_sdp", "v=0"),
        ("hello", "invalid_sdp", "v=0"),
        (lines().replace("\r\n", "\r"), "invalid_sdp", "v=0"),
        (lines("a=\x00"), "invalid_sdp", "printable"),
        (lines(without="m="), "invalid_sdp", "one media section"),
        (lines(BODY[0]), "invalid_sdp", "one media section"),
        (lines("m=audio 9 UDP/TLS/RTP/SAVPF 111"), "media_not_supported", "m=audio"),
        (lines("m=video 9 UDP/TLS/RTP/SAVPF 96"), "media_not_supported", "m=video"),
        (lines("m=application 9 TCP something", without="m="), "invalid_sdp", "webrtc-datachannel"),
        (lines("m=application 0 UDP/DTLS/SCTP webrtc-datachannel", without="m="), "invalid_sdp", "port"),
        (lines(without="a=ice-ufrag"), "invalid_sdp", "ice-ufrag"),
        (lines(without="a=ice-pwd"), "invalid_sdp", "ice-pwd"),
        (lines(without="a=fingerprint"), "invalid_sdp", "fingerprint"),
        (lines("a=fingerprint:sha-1 AA", without="a=fingerprint"), "invalid_sdp", "sha-256"),
        (lines("a=max-message-size:100", without="a=max-message-size"), "invalid_sdp", "1024"),
        (lines("a=max-message-size:many", without="a=max-message-size"), "invalid_sdp", "1024"),
    ],
)
def test_a_wrong_offer_is_refused_in_words(text: str, code: str, says: str) -> None:
    """400 that names the field and what is missing."""
    status, found, param, message = refused(text)
    assert (status, found, param) == (400, code, "sdp")
    assert says in message


@pytest.mark.parametrize(
    ("body", "kind", "status", "param"),
    [
        (b"v=0", b"text/plain", 415, "content-type"),
        (b"v=0", None, 415, "content-type"),
        (b"\xff", b"application/sdp", 400, "sdp"),
        (b"x" * (LONGEST + 1), b"application/sdp", 413, "sdp"),
        (b"{", b"application/json", 400, None),
        (b"[]", b"application/json", 400, None),
        (b'{"type": "offer"}', b"application/json", 400, "sdp"),
        (b'{"sdp": 1}', b"application/json", 400, "sdp"),
        (b'{"sdp": "v=0", "type": "answer"}', b"application/json", 400, "type"),
        (b'{"sdp": "v=0", "audio": true}', b"application/json", 400, "audio"),
    ],
)
def test_a_wrong_body_is_refused_in_words(body: bytes, kind: bytes | None, status: int, param: str | None) -> None:
    """A 4xx that names the field."""
    with pytest.raises(GatewayError) as caught:
        sdp_of(body, kind)
    assert (caught.value.http_status, caught.value.param) == (status, param)


def test_both_forms_say_the_same() -> None:
    """SDP as it is, and within JSON."""
    text = lines()
    assert sdp_of(text.encode(), b"application/sdp; charset=utf-8") == (text, False)
    assert sdp_of(json.dumps({"sdp": text, "type": "offer"}).encode(), b"Application/JSON") == (text, True)
    assert sdp_of(json.dumps({"sdp": text}).encode(), b"application/json") == (text, True)


LINES = st.sampled_from(
    [*HEAD, *BODY, "a=end-of-candidates", "m=audio 9 x 1", "", "m=", "a=max-message-size:", "a=candidate:"]
)
ODD = st.builds(candidate, st.text(max_size=20), st.one_of(st.integers(), st.text(max_size=5)))


@given(st.lists(st.one_of(LINES, ODD, st.text(max_size=40)), max_size=40), st.sampled_from(["\r\n", "\n"]))
def test_any_text_is_read_or_refused(found: list[Any], end: str) -> None:
    """Nothing else comes of it; what is read names no host, and reads the same again."""
    text = end.join(["v=0", *BODY, *found])
    try:
        offer = read(text)
    except GatewayError as error:
        check(error)
        return
    assert ".local" not in "".join(line for line in offer.sdp.split("\r\n") if line.startswith("a=candidate:"))
    assert read(offer.sdp) == offer


@given(st.binary(max_size=200), st.sampled_from([b"application/sdp", b"application/json", b"x", None]))
def test_any_body_is_read_or_refused(body: bytes, kind: bytes | None) -> None:
    """Nothing else comes of it."""
    try:
        sdp_of(body, kind)
    except GatewayError as error:
        check(error)

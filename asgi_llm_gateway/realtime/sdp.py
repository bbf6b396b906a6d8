"""What a peer offers (SDP), read and cleaned before a WebRTC stack sees it.

Source: RFC 8866 (SDP), RFC 8839 (ICE), RFC 8841 and 8864 (data channels), RFC 8122 (fingerprints).
"""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

import orjson

from ..errors import BadRequest, TooLarge, Unsupported
from ..validation import kind_of
from .frames import LEAST_MESSAGE

LONGEST = 64 * 1024
"""Bytes of an offer's body. A browser's has about two thousand for a data channel."""

MOST_CANDIDATES = 32
"""Addresses of an offer that are tried: each is sent some packets."""

_DEFAULT_MESSAGE = 64 * 1024
"""Bytes of a message where the offer says nothing. Source: RFC 8841, 6.1."""

_NEEDED = {
    "a=ice-ufrag:": "the ICE user name fragment",
    "a=ice-pwd:": "the ICE password",
    "a=fingerprint:": "the fingerprint of the DTLS certificate",
}
_DIGESTS = frozenset({"sha-256", "sha-384", "sha-512"})
"""Digests of a certificate that are taken; the older ones can be forged. Source: RFC 8122, 5."""


class Offer(NamedTuple):
    """An offer as the WebRTC stack gets it, and the bytes that one message to this peer may have; 0: any number."""

    sdp: str
    most: int


class BadOffer(BadRequest):
    """An offer that can't be taken."""

    code = "invalid_sdp"

    def __init__(self, message: str, *, code: str | None = None, param: str | None = "sdp") -> None:
        super().__init__(message, param=param, code=code)


def sdp_of(body: bytes, content_type: bytes | None) -> tuple[str, bool]:
    """The offer's text from a request's body, and whether it came as JSON. Raises BadRequest."""
    kind = (content_type or b"").partition(b";")[0].strip().lower()
    if len(body) > LONGEST:
        raise TooLarge(f"The body is over the limit of {LONGEST} bytes.", param="sdp")
    if kind == b"application/sdp":
        try:
            return body.decode(), False
        except UnicodeDecodeError:
            raise BadOffer("The offer must be UTF-8 text.") from None
    if kind != b"application/json":
        raise BadRequest("Send the offer as 'application/sdp', or as JSON: {\"sdp\": \"...\", \"type\": \"offer\"}.",
                         status=415, param="content-type", code="unsupported_media_type")  # fmt: skip
    return _of_json(body), True


def _of_json(body: bytes) -> str:
    try:
        asked = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        reason = str(error).partition(": line")[0]
        raise BadRequest(f"The body is not valid JSON: {reason}.", code="invalid_json") from None
    if type(asked) is not dict:
        raise BadRequest(f"The body must be a JSON object, not {kind_of(asked)}.", code="invalid_json")
    for name in asked:
        if name not in ("sdp", "type"):
            shown = name[:40].encode("ascii", "backslashreplace").decode()
            raise Unsupported(f"'{shown}' is not known here; send 'sdp' and 'type'.", param=shown)
    if asked.get("type", "offer") != "offer":
        raise BadOffer("'type' must be 'offer': the answer is ours.", param="type")
    if type(asked.get("sdp")) is not str:
        raise BadOffer(f"'sdp' must be a text, the offer, not {kind_of(asked.get('sdp'))}.")
    text: str = asked["sdp"]
    return text


def read(text: str) -> Offer:
    """Check an offer and clean it. Raises BadRequest.

    Candidates that name a host are left out: browsers hide their addresses behind ``.local`` names that nobody else can
    resolve (draft-ietf-mmusic-mdns-ice-candidates), and a lookup takes a second; the peer is found by the packets that it
    sends itself (a peer-reflexive candidate, RFC 8445, 7.3.1.3).
    """
    lines = text.replace("\r\n", "\n").split("\n")
    if lines[0] != "v=0":
        raise BadOffer("The offer must be SDP; its first line is 'v=0'.")
    if "\r" in text.replace("\r\n", "") or not text.replace("\r\n", "").replace("\n", "").isprintable():
        raise BadOffer("The offer must be lines of printable characters.")
    media = [line for line in lines if line.startswith("m=")]
    for line in media:
        _check_media(line)
    if len(media) != 1:
        raise BadOffer("The offer must have one media section, 'm=application', that of the data channel. "
                       "Make a data channel before the offer.")  # fmt: skip
    for start, what in _NEEDED.items():
        if not any(line.startswith(start) and len(line) > len(start) for line in lines):
            raise BadOffer(f"The offer lacks {what} ('{start.removeprefix('a=')[:-1]}').")
    digests = {line[14:].split(" ")[0].lower() for line in lines if line.startswith("a=fingerprint:")}
    if not digests & _DIGESTS:
        raise BadOffer(f"The offer's fingerprint must be made with {', '.join(sorted(_DIGESTS))}.")
    kept = [line for line in lines if line and not line.startswith(("a=candidate:", "a=end-of-candidates"))]
    candidates = [line for line in lines if line.startswith("a=candidate:") and _is_reachable(line)]
    return Offer("\r\n".join([*kept, *candidates[:MOST_CANDIDATES], ""]), _most(lines))


def _check_media(line: str) -> None:
    kind, _, rest = line[2:].partition(" ")
    if kind != "application":
        shown = kind[:20].encode("ascii", "backslashreplace").decode()
        raise BadOffer(f"The offer has 'm={shown}', and no sound or picture is carried here. Offer a data channel only.",
                       code="media_not_supported")  # fmt: skip
    if "webrtc-datachannel" not in rest.split(" "):
        raise BadOffer("'m=application' of the offer must be 'UDP/DTLS/SCTP webrtc-datachannel'.")
    port = rest.split(" ")[0]
    if not port.isdecimal() or port == "0":
        raise BadOffer("'m=application' of the offer must have a port other than 0: it is the only section.")


def _is_reachable(line: str) -> bool:
    parts = line.split(" ")
    if len(parts) < 8 or parts[2].lower() != "udp" or not (parts[5].isdecimal() and 0 < int(parts[5]) < 65536):
        return False
    try:
        address = ipaddress.ip_address(parts[4])
    except ValueError:
        return False
    return not (address.is_multicast or address.is_unspecified)


def _most(lines: list[str]) -> int:
    for line in lines:
        if line.startswith("a=max-message-size:"):
            told = line.partition(":")[2].strip()
            if not told.isdecimal() or len(told) > 18 or 0 < int(told) < LEAST_MESSAGE:
                raise BadOffer(
                    f"'max-message-size' of the offer must be 0 or a number of at least {LEAST_MESSAGE} bytes."
                )
            return int(told)
    return _DEFAULT_MESSAGE


__all__ = ["LONGEST", "MOST_CANDIDATES", "BadOffer", "Offer", "read", "sdp_of"]

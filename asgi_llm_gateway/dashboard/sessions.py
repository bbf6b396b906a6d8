"""A session as a signed token: nothing is kept of it, and every worker that knows the secret can read it.

The token holds an id, the time of its end and the digest of the key that signed in, masked; never the key. Role and tenant
are not in it: they are the key's, which is looked up again and again.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import struct
from typing import NamedTuple

_HEAD = struct.Struct(">B16sQ")
"""The layout's number, the session's id, and the Unix second of its end."""

_LAYOUT = 1
_SIZE = 32  # bytes of a SHA-256
_LENGTH = _HEAD.size + 2 * _SIZE


class Session(NamedTuple):
    """Who is signed in, until when.

    Attributes:
        id: This session's name; it is no secret that opens anything.
        until: Unix seconds.
        digest: SHA-256 of the key that signed in.
        csrf: What each change must bring along in ``x-csrf-token``.
    """

    id: str
    until: int
    digest: bytes
    csrf: str

    def __repr__(self) -> str:
        return f"Session({self.id!r})"  # the rest would open the dashboard, or tell a key that can be guessed


class Seal:
    """Makes and reads tokens.

    Args:
        secret: What only this gateway's workers know: at least 32 bytes.

    Raises:
        ValueError: The secret is too short.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) < 32:
            raise ValueError("a secret has at least 32 bytes")
        # A key for each use, so that no output of one is an output of another (RFC 5869).
        self._sign, self._mask, self._csrf = (_hmac(secret, use) for use in (b"sign", b"mask", b"csrf"))

    def issue(self, digest: bytes, *, now: float, seconds: int) -> tuple[str, Session]:
        """A new session for the key with that SHA-256, and its token."""
        name, until = secrets.token_bytes(16), int(now) + seconds
        # Keys that an operator chose can be guessed: whoever finds a cookie must not be able to try them against a digest.
        body = _HEAD.pack(_LAYOUT, name, until) + self._masked(name, digest)
        token = base64.urlsafe_b64encode(body + _hmac(self._sign, body)).rstrip(b"=").decode()
        return token, self._session(name, until, digest)

    def read(self, token: str, now: float) -> Session | None:
        """The session that a token stands for; ``None`` where it is no token of ours, or its time is over."""
        try:
            data = base64.b64decode(token.encode("ascii") + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except ValueError:
            return None
        body, mark = data[:-_SIZE], data[-_SIZE:]
        if len(data) != _LENGTH or not hmac.compare_digest(_hmac(self._sign, body), mark):
            return None
        # One session, one token: another spelling of it (spare bits of the last character) is none of ours.
        if base64.urlsafe_b64encode(data).rstrip(b"=").decode() != token:
            return None
        layout, name, until = _HEAD.unpack_from(body)
        if layout != _LAYOUT or until <= now:
            return None
        return self._session(name, until, self._masked(name, body[_HEAD.size :]))

    def _session(self, name: bytes, until: int, digest: bytes) -> Session:
        csrf = base64.urlsafe_b64encode(_hmac(self._csrf, name)).rstrip(b"=").decode()
        return Session(name.hex(), until, digest, csrf)

    def _masked(self, name: bytes, digest: bytes) -> bytes:
        """The digest under a pad that is used once, since each session has an id of its own; done twice it is plain."""
        return bytes(one ^ other for one, other in zip(digest, _hmac(self._mask, name), strict=True))


def derived(admin_key: str) -> bytes:
    """A secret from the admin key, the same in every worker. Takes about 50 ms and 16 MiB: for a thread, once.

    Slow on purpose (RFC 7914): a tenant has tokens that it could try guesses of an operator's key against.
    """
    return hashlib.scrypt(admin_key.encode(), salt=b"asgi_llm_gateway dashboard 1", n=2**14, r=8, p=1, dklen=_SIZE)


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")


__all__ = ["Seal", "Session", "derived"]

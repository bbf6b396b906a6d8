"""``POST /v1/realtime/client_secrets``: what may be asked, and what is answered.

Source: OpenAI API reference, "Create client secret": ``expires_after`` with the anchor ``created_at`` and seconds from 10 on;
the answer has ``value`` and ``expires_at`` (Unix seconds).
"""

from __future__ import annotations

from typing import Any

import orjson

from ..errors import BadRequest, Unsupported
from ..records import ApiKey
from ..validation import kind_of
from .limits import Limits

SHORTEST = 10
"""Seconds that a client secret lives at least."""

LONGEST_BODY = 64 * 1024
"""Bytes of the request's body."""


def seconds_of(body: bytes, limits: Limits) -> int:
    """Seconds for which a client secret is asked. An empty body takes the default. Raises BadRequest."""
    if not body.strip():
        return limits.secret_seconds
    try:
        asked = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        reason = str(error).partition(": line")[0]
        raise BadRequest(f"The body is not valid JSON: {reason}.", code="invalid_json") from None
    if type(asked) is not dict:
        raise BadRequest(f"The body must be a JSON object, not {kind_of(asked)}.", code="invalid_json")
    for name in asked:
        if name not in ("expires_after", "session"):
            shown = name[:40].encode("ascii", "backslashreplace").decode()
            raise Unsupported(f"'{shown}' is not known here; send 'expires_after'.", param=shown)
    _check_session(asked.get("session"))
    return _seconds(asked.get("expires_after"), limits)


def _check_session(session: Any) -> None:
    """What OpenAI's sessions are made of has no meaning here: each message says what it wants itself."""
    if session is None:
        return
    if type(session) is not dict or set(session) - {"type"} or session.get("type", "realtime") != "realtime":
        raise Unsupported(
            '\'session\' may hold {"type": "realtime"} only: each message of a session names its own model and settings.',
            param="session",
        )


def _seconds(after: Any, limits: Limits) -> int:
    if after is None:
        return limits.secret_seconds
    if (
        type(after) is not dict
        or set(after) - {"anchor", "seconds"}
        or after.get("anchor", "created_at") != "created_at"
    ):
        raise BadRequest('\'expires_after\' must be {"anchor": "created_at", "seconds": N}.', param="expires_after")
    seconds = after.get("seconds", limits.secret_seconds)
    if type(seconds) is not int or not SHORTEST <= seconds <= limits.secret_longest:
        raise BadRequest(
            f"'expires_after.seconds' must be a whole number from {SHORTEST} to {limits.secret_longest}.",
            param="expires_after.seconds",
        )
    return seconds


def answer(key: ApiKey, secret: str) -> bytes:
    """The one time that a client secret is shown."""
    assert key.expires is not None
    told = {"object": "realtime.client_secret", "id": key.id, "value": secret, "expires_at": int(key.expires)}
    return orjson.dumps({**told, "session": {"type": "realtime"}})


__all__ = ["LONGEST_BODY", "SHORTEST", "answer", "seconds_of"]

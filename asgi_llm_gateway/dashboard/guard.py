"""Who is at the dashboard: the cookie, what it stands for, and whether a change was asked for by our own page."""

from __future__ import annotations

import hmac
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple
from urllib.parse import quote, urlsplit

from starlette.requests import Request

from ..admin.access import Access, Caller
from ..errors import Forbidden, GatewayError, InvalidKey
from ..stores.base import EndedSessions
from .secret import Secret
from .sessions import Session

COOKIE = "llmgw_session"

SECONDS = 8 * 3600
"""How long a session lasts; it is not prolonged by use."""

FRESH = 2.0
"""Seconds for which what the store said of a key and a session is believed: a page asks for several things at once."""

_MOST = 1000  # sessions that this is remembered of
_PORTS = {"http": 80, "https": 443}


class NotSignedIn(GatewayError):
    """No session, or one that is over, or whose key is."""

    status, type, code = 401, "invalid_request_error", "not_signed_in"


class Visitor(NamedTuple):
    """A session, and what its key may do."""

    session: Session
    caller: Caller


class Guard:
    """Makes, reads and ends sessions.

    Args:
        access: Whose key it is, and whether it still opens anything.
        secret: What tokens are signed with.
        ended: Opens the sessions that were signed out.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        access: Access,
        secret: Secret,
        ended: Callable[[], Awaitable[EndedSessions]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._access = access
        self._secret = secret
        self._ended = ended
        self._clock = clock
        self._seen: dict[str, tuple[float, Caller]] = {}

    async def sign_in(self, key: str) -> tuple[Visitor, str]:
        """A new session for a key, and its token. Raises InvalidKey, Forbidden, StoreError."""
        now = self._clock()
        raw = key.encode("utf-8", "surrogatepass")
        caller = await self._access.holder(raw, now)
        seal = await self._secret.seal()
        token, session = seal.issue(self._access.digest(raw), now=now, seconds=SECONDS)
        return Visitor(session, caller), token

    async def visitor(self, request: Request) -> Visitor:
        """Who asks. Raises NotSignedIn; Forbidden where the key's tenant is disabled; StoreError."""
        now = self._clock()
        session = await self._session(request, now)
        then, caller = self._seen.get(session.id, (-FRESH, None))
        if caller is None or not 0 <= now - then < FRESH:
            self._seen.pop(session.id, None)
            if await (await self._ended()).ended(session.id):
                raise NotSignedIn("You have signed out. Sign in again.")
            try:
                caller = await self._access.known(session.digest, now)
            except GatewayError as refusal:
                if not isinstance(refusal, InvalidKey) and refusal.error_code != "admin_disabled":
                    raise
                raise NotSignedIn("The key that you signed in with is no longer good. Sign in with another.") from None
            if len(self._seen) >= _MOST:
                self._seen.clear()  # which costs a look-up each
            self._seen[session.id] = (now, caller)
        return Visitor(session, caller)

    async def _session(self, request: Request, now: float) -> Session:
        """The session that the cookie stands for. Two cookies may come (another site of the domain can set one): one counts."""
        tokens = _cookies(request)
        if not tokens:
            raise NotSignedIn("Sign in with a key: POST dashboard/api/login.")
        seal = await self._secret.seal()
        found = {session.id: session for token in tokens if (session := seal.read(token, now)) is not None}
        if len(found) != 1:
            raise NotSignedIn("Your session has ended. Sign in again.")
        return found.popitem()[1]

    async def sign_out(self, session: Session) -> None:
        """End a session, for all workers. Raises StoreError."""
        await (await self._ended()).end(session.id, until=session.until, now=self._clock())
        self._seen.pop(session.id, None)

    def forget(self) -> None:
        """Ask the store anew about everybody: something was changed."""
        self._seen.clear()


def check_change(request: Request, session: Session) -> None:
    """Let a change pass that our own page asks for. Raises Forbidden."""
    check_origin(request)
    shown = request.headers.get("x-csrf-token", "")
    if not hmac.compare_digest(shown.encode(), session.csrf.encode()):
        raise Forbidden(
            "Send the session's token as 'x-csrf-token'; 'GET dashboard/api/me' tells it.", code="csrf_token_wrong"
        )


def check_origin(request: Request) -> None:
    """Refuse what a browser says comes from another site. Raises Forbidden.

    Sources: Fetch Standard, "Origin header"; Fetch Metadata Request Headers, "Sec-Fetch-Site", which no script can set and
    which stands where a proxy in front of us has put its own name into Host.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        if site not in ("same-origin", "none"):
            raise _foreign()
        if site == "same-origin":
            return
    origin = request.headers.get("origin")
    if origin is None:
        return
    scheme, _, _ = origin.partition("://")
    place = _place(origin)
    if place is None or place != _place(f"{scheme}://{request.headers.get('host', '')}"):  # "null" is nobody's
        raise _foreign()


def _foreign() -> Forbidden:
    return Forbidden(
        "This was asked for by another site's page. Behind a proxy, let it pass the Host header on.",
        code="wrong_origin",
    )


def _place(url: str) -> tuple[str, int | None] | None:
    """Host and port of an origin. The scheme is left out: TLS may end in front of us."""
    try:
        parts = urlsplit(url)
        if not parts.hostname:
            return None
        return parts.hostname, parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return None


def cookie(request: Request, token: str | None) -> str:
    """The ``set-cookie`` of a token; ``None`` takes it away. Source: RFC 6265bis, "Set-Cookie"."""
    root = request.scope.get("root_path") or ""
    # TLS may end at a proxy that says nothing of it; the browser then does.
    secure = request.scope["scheme"] == "https" or request.headers.get("origin", "").startswith("https://")
    parts = [
        f"{COOKIE}={token or ''}",
        f"Path={quote(root.rstrip('/'), safe='/~!$&+@:')}/dashboard",
        f"Max-Age={SECONDS if token else 0}",
        "HttpOnly",
        "SameSite=Strict",
    ]
    return "; ".join([*parts, "Secure"] if secure else parts)


def _cookies(request: Request) -> list[str]:
    """Every value of our cookie. No value of ours has a quote or a space."""
    found = []
    for header in request.headers.getlist("cookie"):
        for pair in header.split(";"):
            name, mark, value = pair.strip().partition("=")
            if mark and name == COOKIE:
                found.append(value)
    return found


__all__ = ["COOKIE", "FRESH", "SECONDS", "Guard", "NotSignedIn", "Visitor", "check_change", "check_origin", "cookie"]

"""Where a peer finds its way through networks: STUN and TURN servers, with credentials that end by themselves.

Source: "A REST API For Access To TURN Services", draft-uberti-behave-turn-rest-00, section 2.2: the user name is
``expiry:user`` (Unix seconds), the password the base64 of HMAC-SHA1 over it with a secret that the TURN server knows (coturn:
``use-auth-secret``, ``static-auth-secret``).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Any

from ..errors import SettingsError
from ..settings import Settings, secret

_STUN = ("stun:", "stuns:")
_TURN = ("turn:", "turns:")


@dataclass(frozen=True, slots=True)
class IceServers:
    """The servers that a peer is told of.

    Args:
        stun: ``stun:`` URLs (RFC 7064).
        turn: ``turn:`` URLs (RFC 7065).
        secret: What the TURN servers share with us.
        ttl: Seconds that a credential is good for. Only new relays need one: those that stand go on.
    """

    stun: tuple[str, ...] = ()
    turn: tuple[str, ...] = ()
    secret: str | None = field(default=None, repr=False)
    ttl: int = 3600

    def __post_init__(self) -> None:
        for name, urls, schemes in (("STUN_URLS", self.stun, _STUN), ("TURN_URLS", self.turn, _TURN)):
            for url in urls:
                if not url.startswith(schemes) or len(url.partition(":")[2]) < 1 or "/" in url or "@" in url:
                    raise SettingsError(f"{name}: each is {schemes[0]}host:port or {schemes[1]}host:port")
        if self.turn and not self.secret:
            raise SettingsError("TURN_URLS is set; set TURN_SECRET, too: the TURN server's static-auth-secret")

    @classmethod
    def of(cls, settings: Settings) -> IceServers:
        """As the settings say. Raises SettingsError."""
        return cls(
            stun=_listed(settings.stun_urls),
            turn=_listed(settings.turn_urls),
            secret=secret(settings.turn_secret),
            ttl=settings.turn_ttl_seconds,
        )

    def credential(self, user: str, now: float) -> tuple[str, str]:
        """User name and password for ``user``, good for ``ttl`` seconds from ``now`` (Unix seconds)."""
        assert self.secret is not None
        name = f"{int(now) + self.ttl}:{user}"
        # SHA-1 is what the draft says and coturn checks; as a keyed hash it is sound.
        mac = hmac.new(self.secret.encode(), name.encode(), hashlib.sha1)
        return name, base64.b64encode(mac.digest()).decode()

    def told(self, user: str, now: float) -> dict[str, Any]:
        """The answer: ``iceServers`` as RTCPeerConnection takes them (W3C WebRTC, RTCIceServer), and when they end."""
        servers: list[dict[str, Any]] = []
        if self.stun:
            servers.append({"urls": list(self.stun)})
        if self.turn:
            name, password = self.credential(user, now)
            servers.append({"urls": list(self.turn), "username": name, "credential": password})
        return {"iceServers": servers, "expires_at": int(now) + self.ttl, "ttl": self.ttl}


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


__all__ = ["IceServers"]

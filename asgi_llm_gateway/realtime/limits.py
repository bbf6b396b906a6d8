"""What a session may take, and how many of them a tenant may have in this process."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from ..errors import RateLimited
from ..settings import Settings


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of sessions.

    Attributes:
        sessions: Sessions of a tenant at once, in this process.
        messages: Calls of a session in flight; a further one is refused.
        frame_bytes: Bytes of a frame, joined; and of an answer that is no stream.
        idle: Seconds for which nothing may happen: no call runs and no frame comes, or the peer does not read.
        total: Seconds that a session may last.
        ping: Seconds of the peer's silence after which it is asked for a sign of life; 0 asks never.
        secrets: Client secrets that a tenant may make in a minute, in this process.
        secret_seconds: Seconds that a client secret lives where the request names none.
        secret_longest: The most that it may name.
        handshake: Seconds that a WebRTC peer has to connect.
        half_open: WebRTC peers of a tenant, in this process, that have an answer and have not connected.
    """

    sessions: int = 100
    messages: int = 16
    frame_bytes: int = 4 * 1024 * 1024
    idle: float = 300.0
    total: float = 3600.0
    ping: float = 15.0
    secrets: int = 120
    secret_seconds: int = 600
    secret_longest: int = 7200
    handshake: float = 10.0
    half_open: int = 64

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """As the settings say. What is counted by tenant is shared by the processes that there are."""
        parts = settings.web_concurrency * settings.replicas
        return cls(
            sessions=max(1, settings.realtime_max_sessions // parts),
            messages=settings.realtime_max_messages,
            frame_bytes=settings.realtime_max_frame_bytes,
            idle=settings.realtime_idle_seconds,
            total=settings.realtime_total_seconds,
            ping=settings.realtime_ping_seconds,
            secrets=max(1, settings.realtime_max_secrets // parts),
            secret_seconds=min(settings.realtime_secret_seconds, settings.realtime_secret_max_seconds),
            secret_longest=settings.realtime_secret_max_seconds,
            handshake=settings.realtime_handshake_seconds,
            half_open=max(1, settings.realtime_max_handshakes // parts),
        )


class Census:
    """How many sessions each tenant has. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._here: dict[str, int] = {}

    def enter(self, tenant: str, most: int) -> None:
        """Count a session. Raises RateLimited (429 ``too_many_sessions``)."""
        with self._lock:
            now = self._here.get(tenant, 0)
            if now >= most:
                raise RateLimited(
                    f"The tenant has {now} realtime sessions, as many as it may. End one, or try again later.",
                    code="too_many_sessions",
                    headers=((b"retry-after", b"5"),),
                )
            self._here[tenant] = now + 1

    def leave(self, tenant: str) -> None:
        """A session has ended."""
        with self._lock:
            now = self._here[tenant] - 1
            if now:
                self._here[tenant] = now
            else:
                del self._here[tenant]

    def count(self, tenant: str) -> int:
        """A tenant's sessions."""
        return self._here.get(tenant, 0)


__all__ = ["Census", "Limits"]

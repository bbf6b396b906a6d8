"""Whether a peer is still there: asked often while calls run, seldom while none does.

Source: RFC 7675 (consent freshness), which allows 30 seconds; the library's own loop takes about 40. Calls of a peer that was
killed hold money and an upstream, so theirs is asked for more often.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any

log = logging.getLogger("asgi_llm_gateway")

TICK = 1.0
"""Seconds between two questions while calls run."""

IDLE_TICKS = 4
"""Ticks between two questions while none does."""

FAILURES = 3
"""Questions without an answer after which the peer is lost; each waits 1.5 seconds, and is sent twice."""


def watch(connection: Any, busy: Callable[[], bool]) -> None:
    """Let an ICE connection (of aioice), before it connects, ask for consent in our rhythm.

    It closes when the peer is lost, which its owner is told of. A version of aioice that we don't know keeps its own.
    """
    if not (hasattr(connection, "query_consent") and hasattr(connection, "_nominated")):
        log.warning("this version of aioice is not known: a lost peer is noticed after about 40 seconds")
        return

    async def query_consent() -> None:
        from aioice.stun import TransactionError

        failures = ticks = 0
        while failures < FAILURES:
            # Not all sessions at the same time. Source: RFC 7675, 5.1.
            await asyncio.sleep(TICK * (0.8 + 0.4 * random.random()))
            ticks += 1
            if ticks < IDLE_TICKS and not failures and not busy():
                continue
            ticks = 0
            for pair in list(connection._nominated.values()):
                request = connection.build_request(pair, nominate=False)
                try:
                    await pair.protocol.request(
                        request,
                        pair.remote_addr,
                        integrity_key=connection.remote_password.encode(),
                        retransmissions=1,
                    )
                    failures = 0
                except TransactionError:
                    failures += 1
        connection._query_consent_task = None  # else closing would wait for this task, which closes
        await connection.close()

    connection.query_consent = query_consent


__all__ = ["FAILURES", "IDLE_TICKS", "TICK", "watch"]

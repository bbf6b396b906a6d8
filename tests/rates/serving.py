"""An app for worker processes: ``uvicorn tests.rates.serving:app``. Its limits come from the environment."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from asgi_llm_gateway.middleware.ratelimit import RateLimitMiddleware

SLOW = float(os.environ.get("SLOW_SECONDS", "0"))
LEASE = float(os.environ.get("LEASE_SECONDS", "30"))


async def terminal(scope: Any, receive: Any, send: Any) -> None:
    """Answer, after a while where that is wanted."""
    if scope["type"] != "http":
        return
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    if scope["path"].endswith("/slow"):
        await asyncio.sleep(SLOW)
    await send({"type": "http.response.body", "body": b'{"usage":{"prompt_tokens":1,"completion_tokens":2}}'})


app = RateLimitMiddleware(terminal, lease_seconds=LEASE)

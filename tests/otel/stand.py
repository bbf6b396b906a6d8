"""A real gateway process whose spans go to a real receiver."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..servers import KEY, Reply, Server, environment, fetch, uvicorn
from .provider import Provider, provider
from .receiver import Received, Span

CHATS = "/v1/chat/completions"
PROVIDER_KEY = "sk-no-span-may-show-this"
POOR = "gw-poor-key-for-the-tests"
FILE = """
[providers.openai]
base_url = "${UPSTREAM_URL}/v1"
api_key = "${UPSTREAM_KEY}"

[tenants.team]
keys = ["${TEAM_KEY}"]

[tenants.poor]
keys = ["${POOR_KEY}"]
budget_usd = 0.000000001
""" + "".join(
    f"""
[models."{name}"]
targets = ["openai/{name}"]
usd_per_million_in = 2.5
usd_per_million_out = 10
"""
    for name in ("gpt-4o", "slow", "flaky")
)


class Stand:
    """The gateway, its provider and who gets its spans."""

    def __init__(self, server: Server, received: Received, asked: Provider) -> None:
        self.server = server
        self.received = received
        self.provider = asked

    def ask(self, prompt: str, *, key: str = KEY, headers: Any = None, **more: Any) -> Reply:
        """One chat."""
        body = {"model": "gpt-4o", "max_tokens": 50, "messages": [{"role": "user", "content": prompt}], **more}
        return fetch(self.server.url + CHATS, body, key=key, headers=headers or {})

    def spans(self, reply: Reply) -> list[Span]:
        """The trace that a reply names."""
        return self.received.tree(reply.headers["x-trace-id"])

    def hang_up(self, prompt: str) -> str:
        """A stream that is left after its first event; the trace's id."""
        parts = urlsplit(self.server.url)
        body = {"model": "slow", "stream": True, "messages": [{"role": "user", "content": prompt}]}
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
        headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
        connection.request("POST", CHATS, json.dumps(body), headers)
        answer = connection.getresponse()
        while b"It" not in answer.readline():
            pass
        trace = str(answer.getheader("x-trace-id"))
        answer.close()
        connection.close()
        return trace


@contextmanager
def standing(folder: Path, received: Received, endpoint: str, **more: str) -> Iterator[Stand]:
    """A gateway that exports quickly to ``endpoint``; ``more`` are further variables."""
    with provider() as asked:
        variables = {
            "UPSTREAM_URL": asked.url,
            "UPSTREAM_KEY": PROVIDER_KEY,
            "POOR_KEY": POOR,
            "ENABLE_CACHE": "true",
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "OTEL_BLRP_SCHEDULE_DELAY": "50",
            "OTEL_METRIC_EXPORT_INTERVAL": "200",
            **more,
        }
        env = environment(folder, file=FILE, **variables)
        with uvicorn("examples:app", env, folder) as server:
            yield Stand(server, received, asked)

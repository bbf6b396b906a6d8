"""The example of metered SDK calls, as its docstring runs it."""

from __future__ import annotations

import json
from pathlib import Path

from .. import servers
from ..servers import KEY, environment, fetch
from ..upstream import DONE, event
from .host import CHAT_STREAM


def test_the_example_is_metered(tmp_path: Path) -> None:
    """``examples/metered_fastapi.py`` as its docstring runs it: a key, a stream, and a spent budget."""
    chunks = b"".join(
        event({"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "gpt-4", **json.loads(one[6:])})
        for one in CHAT_STREAM[:4]
    )
    good = (200, {"content-type": "text/event-stream"}, chunks + DONE)
    # A hold for 4,096 tokens of gpt-4 is 0.25 USD: enough for one at a time.
    file = '[tenants.team]\nkeys = ["${TEAM_KEY}"]\nbudget_usd = "0.26"\n'
    file += '[tenants.poor]\nkeys = ["${POOR_KEY}"]\nbudget_usd = "0.1"\n'
    with servers.upstream(good) as provider:
        env = environment(
            tmp_path,
            file=file,
            POOR_KEY="gw-a-key-of-the-poor-for-the-tests",
            OPENAI_API_KEY="sk-of-the-operator",
            OPENAI_BASE_URL=provider.url + "/v1",
        )
        with servers.uvicorn("examples.metered_fastapi:app", env, tmp_path) as server:
            assert fetch(server.url + "/ask", {"question": "?"}, key=None).status == 401
            answer = fetch(server.url + "/ask", {"question": "?"}, key=KEY)
            assert (answer.status, answer.body) == (200, b"one two")
            assert len(answer.headers["x-trace-id"]) == 32
            refused = fetch(server.url + "/ask", {"question": "?"}, key="gw-a-key-of-the-poor-for-the-tests")
            assert (refused.status, refused.json()["error"]["code"]) == (402, "would_exceed_budget")
            assert "Traceback" not in server.err
    assert len(provider.asked) == 1
    assert provider.asked[0].body["max_tokens"] == 4096

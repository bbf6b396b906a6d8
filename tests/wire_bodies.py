"""Chat bodies as clients send them, read or refused: what the tests of the reading begin with."""

from __future__ import annotations

import json
from typing import Any

import pytest

from asgi_llm_gateway.errors import GatewayError
from asgi_llm_gateway.wire import METERED, LLMRequest, Route, parse

ROUTES = {dialect: Route("metered", dialect, path) for path, dialect in METERED.items()}
MESSAGES = '"messages":[{"role":"user","content":"hi"}]'


def chat(body: str | bytes | dict[str, Any]) -> LLMRequest:
    """A chat request, read."""
    if isinstance(body, dict):
        body = json.dumps(body)
    return parse(ROUTES["chat"], body.encode() if isinstance(body, str) else body)


def with_chat(**fields: Any) -> dict[str, Any]:
    """A good chat body with other fields."""
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}


def refused(body: str | bytes | dict[str, Any]) -> GatewayError:
    """What a chat body is refused with."""
    with pytest.raises(GatewayError) as caught:
        chat(body)
    assert caught.value.http_status == 400
    assert len(caught.value.message) < 600
    return caught.value

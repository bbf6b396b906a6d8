"""A model with the middleware of structured output round it."""

from __future__ import annotations

from typing import Any

from asgi_llm_gateway.middleware.structured import StructuredOutputMiddleware

from ..conversation import Answer, ask
from ..structured import PATHS, Model, asking

MARK = "x-llm-structured"


async def told(model: Model, dialect: str, body: Any = None, **more: Any) -> Answer:
    """The answer of a model with the middleware round it."""
    layer = StructuredOutputMiddleware(model, **more)
    return await ask(layer, asking(dialect) if body is None else body, PATHS[dialect])

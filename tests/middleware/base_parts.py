"""The layers that share their craft, and one that only reads the body."""

from __future__ import annotations

from asgi_llm_gateway._asgi import Receive, Scope, Send
from asgi_llm_gateway.exchange import Exchange
from asgi_llm_gateway.middleware.base import LLMMiddleware, Rank
from asgi_llm_gateway.middleware.budget import BudgetMiddleware
from asgi_llm_gateway.middleware.ratelimit import RateLimitMiddleware
from asgi_llm_gateway.middleware.tenant import TenantMiddleware
from asgi_llm_gateway.middleware.tracing import TracingMiddleware

ALL = [TracingMiddleware, TenantMiddleware, RateLimitMiddleware, BudgetMiddleware]
GATEKEEPERS = ALL[1:]


class Layer(LLMMiddleware):
    """A layer that reads the body and does nothing with it."""

    rank = Rank.POLICY

    async def handle(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """See LLMMiddleware."""
        receive = await exchange.read(receive, scope)
        await self.forward(exchange, scope, receive, send)

"""Your own LLM endpoint behind the cache: ``uvicorn examples.cached:app``.

The same question with ``"temperature": 0`` is answered once; the second answer has ``x-cache: hit``, streamed or not.
"""

from __future__ import annotations

from asgi_llm_gateway import ProxyApp
from asgi_llm_gateway.adapters.echo import EchoAdapter
from asgi_llm_gateway.middleware.cache import CacheMiddleware
from asgi_llm_gateway.proxy.routing import Router

app = CacheMiddleware(ProxyApp(router=Router([EchoAdapter()], {})), ttl=600)

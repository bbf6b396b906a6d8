"""llama-cpp-python's own FastAPI server, with the gateway's middlewares round it and no ProxyApp.

``LLAMA_GGUF=tiny.gguf uvicorn tests.real.llama_wrapped:app``: the middlewares take their settings from the environment.
"""

# mypy: disable-error-code="import-not-found, import-untyped"

from __future__ import annotations

import os

from llama_cpp.server.app import create_app
from llama_cpp.server.settings import ModelSettings, ServerSettings

from asgi_llm_gateway import BudgetMiddleware, RateLimitMiddleware, TenantMiddleware, TracingMiddleware

server = create_app(
    server_settings=ServerSettings(host="127.0.0.1"),
    model_settings=[
        ModelSettings(model=os.environ["LLAMA_GGUF"], model_alias="tiny", n_ctx=2048, n_threads=1, verbose=False)
    ],
)
app = TracingMiddleware(TenantMiddleware(RateLimitMiddleware(BudgetMiddleware(server)), govern="all"))

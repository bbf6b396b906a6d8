"""A gateway for browsers of other origins: ``uvicorn examples.cors_fastapi:app``.

CORS is Starlette's own middleware. It stands outside the gatekeepers, so that a page can read their refusals too, and inside
the security headers, so that the answers to its preflights have them.
"""

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from asgi_llm_gateway import ProxyApp, RateLimitMiddleware, TenantMiddleware, TracingMiddleware, lifespan
from asgi_llm_gateway.middleware.security import SecurityHeadersMiddleware

app = FastAPI(lifespan=lifespan)


@app.get("/hello")
async def hello() -> dict[str, str]:
    """A route that has nothing to do with LLMs."""
    return {"hello": "world"}


app.mount("/llm", ProxyApp())

# The one added last is the outermost: read the list from the bottom up.
app.add_middleware(RateLimitMiddleware)
app.add_middleware(TenantMiddleware)
app.add_middleware(TracingMiddleware)
app.add_middleware(
    CORSMiddleware,
    allow_origins=["https://app.example.com"],
    allow_methods=["GET", "POST"],
    allow_headers=["authorization", "content-type"],
    expose_headers=["x-request-id", "x-trace-id", "retry-after"],
    max_age=600,
)
app.add_middleware(SecurityHeadersMiddleware)

"""Wrap a FastAPI app that answers LLM calls itself: ``uvicorn examples.wrap_fastapi:app``.

Only the LLM paths are guarded; ``/hello`` and the docs stay as they are. The host's lifespan closes what the gateway
opened.
"""

from typing import Any

from fastapi import FastAPI

from asgi_llm_gateway import (
    BudgetMiddleware,
    RateLimitMiddleware,
    TenantMiddleware,
    TracingMiddleware,
    lifespan,
)

app = FastAPI(lifespan=lifespan)


@app.get("/hello")
async def hello() -> dict[str, str]:
    """A route that has nothing to do with LLMs."""
    return {"hello": "world"}


@app.post("/v1/chat/completions")
async def chat(body: dict[str, Any]) -> dict[str, Any]:
    """An own model: it counts the words it was told."""
    words = sum(len(str(message.get("content") or "").split()) for message in body["messages"])
    return {
        "id": "chatcmpl-counted",
        "object": "chat.completion",
        "created": 0,
        "model": body["model"],
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": f"You sent {words} words."},
            }
        ],
        "usage": {"prompt_tokens": words, "completion_tokens": 4, "total_tokens": words + 4},
    }


# The one added last is the outermost: read the list from the bottom up.
app.add_middleware(BudgetMiddleware)
app.add_middleware(RateLimitMiddleware)
app.add_middleware(TenantMiddleware)
app.add_middleware(TracingMiddleware)

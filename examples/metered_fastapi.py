"""A FastAPI handler that calls an LLM with the official SDK: ``OPENAI_API_KEY=... uvicorn examples.metered_fastapi:app``.

``POST /ask`` asks for a key of this gateway, and what its handler's calls cost is held, booked and traced for that key's
tenant, streams included. Where the tenant's money does not suffice, the SDK raises its own error, and nothing was sent.
"""

from collections.abc import AsyncIterator

import httpx2
import openai
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

from asgi_llm_gateway import BudgetMiddleware, MeteredTransport, TenantMiddleware, TracingMiddleware, lifespan

app = FastAPI(lifespan=lifespan)
client = openai.AsyncOpenAI(http_client=httpx2.AsyncClient(transport=MeteredTransport()))


class Question(BaseModel):
    """What ``/ask`` is asked."""

    question: str


@app.post("/ask")
async def ask(body: Question) -> StreamingResponse:
    """The answer's text, as it comes."""
    stream = await client.chat.completions.create(
        model="gpt-4", messages=[{"role": "user", "content": body.question}], stream=True
    )

    async def text() -> AsyncIterator[str]:
        async for chunk in stream:
            for choice in chunk.choices:
                yield choice.delta.content or ""

    return StreamingResponse(text(), media_type="text/plain")


@app.exception_handler(openai.APIStatusError)
async def refused(request: Request, error: openai.APIStatusError) -> JSONResponse:
    """The provider's refusal, or the budget's, as the caller's."""
    return JSONResponse({"error": error.body}, error.status_code)


# The one added last is the outermost. Each layer is told that /ask costs money.
METERED = {"/ask": "metered"}
app.add_middleware(BudgetMiddleware, paths=METERED)
app.add_middleware(TenantMiddleware, paths=METERED)
app.add_middleware(TracingMiddleware, paths=METERED)

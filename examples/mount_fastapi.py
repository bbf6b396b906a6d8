"""Mount the whole gateway in a FastAPI app: ``uvicorn examples.mount_fastapi:app``, then ``/llm/v1/...``."""

from fastapi import FastAPI

from asgi_llm_gateway import create_app, lifespan

app = FastAPI(lifespan=lifespan)


@app.get("/hello")
async def hello() -> dict[str, str]:
    """A route of the host app."""
    return {"hello": "world"}


app.mount("/llm", create_app())

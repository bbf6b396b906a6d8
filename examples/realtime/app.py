"""A page that streams over WebRTC, and the gateway beside it: ``uvicorn examples.realtime.app:app``, with ENABLE_WEBRTC=true.

The browser never sees an API key: the page asks this app for a client secret, which lives some minutes. PLAYGROUND_KEY is the
API key that pays for it. Put your own login before ``/token``: who reaches it spends that key's budget.
"""

import os
from pathlib import Path

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route

from asgi_llm_gateway import create_app, lifespan

HERE = Path(__file__).parent

gateway = create_app()


async def page(request: Request) -> Response:
    """The page."""
    return FileResponse(HERE / "index.html")


async def script(request: Request) -> Response:
    """The page's script."""
    return FileResponse(HERE / "playground.js")


async def token(request: Request) -> Response:
    """A client secret for the page, made by the gateway in this process."""
    headers = {"authorization": f"Bearer {os.environ['PLAYGROUND_KEY']}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(gateway), base_url=str(request.base_url)) as client:
        made = await client.post("/v1/realtime/client_secrets", headers=headers)
    return Response(made.content, made.status_code, {"cache-control": "no-store"}, "application/json")


app = Starlette(
    routes=[
        Route("/", page),
        Route("/playground.js", script),
        Route("/token", token, methods=["POST"]),
        Mount("/", app=gateway),
    ],
    lifespan=lifespan,
)

"""Mount the whole gateway under a prefix of an existing app: ``uvicorn examples.mount_starlette:app``.

Point an SDK at ``http://127.0.0.1:8000/llm/v1``. A mounted app gets no lifespan, so the host's closes what it opened.
"""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from asgi_llm_gateway import create_app, lifespan


async def home(request: Request) -> PlainTextResponse:
    """The host app's own page."""
    return PlainTextResponse("The gateway is under /llm/v1")


app = Starlette(routes=[Route("/", home), Mount("/llm", app=create_app())], lifespan=lifespan)

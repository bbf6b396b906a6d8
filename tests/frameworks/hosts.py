"""The host apps: each framework with a route of its own, an LLM handler of its own, and the gateway inside.

Each is built as that framework's own documentation says; none knows more of the gateway than its public names.
"""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from functools import cache
from typing import Any, NamedTuple

from asgi_llm_gateway import (
    BudgetMiddleware,
    CacheMiddleware,
    PolicyMiddleware,
    ProxyApp,
    RateLimitMiddleware,
    SecurityHeadersMiddleware,
    StructuredOutputMiddleware,
    TenantMiddleware,
    TracingMiddleware,
    create_app,
)

HELLO = {"hello": "world"}
CHAT = "/v1/chat/completions"


def allowing(_: dict[str, Any]) -> bool:
    """A policy of the host's own."""
    return True


LAYERS: tuple[tuple[Any, dict[str, Any]], ...] = (
    (StructuredOutputMiddleware, {}),
    (BudgetMiddleware, {}),
    (CacheMiddleware, {}),
    (PolicyMiddleware, {"decide": allowing}),
    (RateLimitMiddleware, {}),
    (TenantMiddleware, {}),
    (TracingMiddleware, {}),
    (SecurityHeadersMiddleware, {}),
)
"""The middlewares, innermost first."""


def guarded(app: Any) -> Any:
    """The middlewares round an app, as a user stacks them."""
    for layer, how in LAYERS:
        app = layer(app, **how)
    return app


def answer(body: dict[str, Any]) -> dict[str, Any]:
    """What an LLM handler of the host's own says: it counts the words it was told, and saw of the request."""
    words = sum(len(str(message["content"]).split()) for message in body["messages"])
    message = {"role": "assistant", "content": f"{words} words, {body.get('max_tokens')} at most, {sorted(body)}"}
    return {
        "id": "chatcmpl-own",
        "object": "chat.completion",
        "created": 0,
        "model": body["model"],
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {"prompt_tokens": words, "completion_tokens": 2, "total_tokens": words + 2},
    }


async def events(body: dict[str, Any]) -> AsyncIterator[bytes]:
    """The same as a stream."""
    whole = answer(body)
    head = {key: whole[key] for key in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    delta = {"content": whole["choices"][0]["message"]["content"]}
    yield b"data: " + json.dumps({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": "stop"}]}).encode()
    yield b"\n\n"
    yield b"data: " + json.dumps({**head, "choices": [], "usage": whole["usage"]}).encode() + b"\n\ndata: [DONE]\n\n"


def dispatching(host: Any, inner: Any, prefix: str) -> Any:
    """For frameworks that mount nothing: paths below ``prefix`` go to ``inner``, as ASGI's root_path says, else to the host."""

    async def dispatch(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].startswith(prefix + "/"):
            root = scope.get("root_path", "") + (prefix if prefix != "/v1" else "")
            await inner({**scope, "root_path": root}, receive, send)
        else:
            await host(scope, receive, send)

    return dispatch


# -- Starlette ---------------------------------------------------------------------------------------------------------


def _starlette(*more: Any) -> Any:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    async def hello(request: Request) -> Response:
        return JSONResponse(HELLO)

    async def chat(request: Request) -> Response:
        body = await request.json()
        if body.get("stream"):
            return StreamingResponse(events(body), media_type="text/event-stream")
        return JSONResponse(answer(body))

    own = () if more else (Route(CHAT, chat, methods=["POST"]),)
    return Starlette(routes=[Route("/hello", hello), *own, *more])


def starlette_own() -> Any:
    """A Starlette app that answers LLM calls itself."""
    return _starlette()


def starlette_wrapped() -> Any:
    """Our middlewares by ``add_middleware``, the proxy behind the host's routes."""
    from starlette.routing import Mount

    app = _starlette(Mount("", app=ProxyApp()))
    for layer, how in LAYERS:
        app.add_middleware(layer, **how)
    return app


def starlette_mounted() -> Any:
    """The gateway by ``Mount``."""
    from starlette.routing import Mount

    return _starlette(Mount("/llm", app=create_app()))


# -- FastAPI -----------------------------------------------------------------------------------------------------------


def _fastapi(*, own: bool) -> Any:
    from fastapi import FastAPI
    from fastapi.responses import StreamingResponse

    app = FastAPI()

    @app.get("/hello")
    async def hello() -> dict[str, str]:
        return HELLO

    if own:

        @app.post(CHAT, response_model=None)
        async def chat(body: dict[str, Any]) -> dict[str, Any] | StreamingResponse:
            if body.get("stream"):
                return StreamingResponse(events(body), media_type="text/event-stream")
            return answer(body)

    return app


def fastapi_own() -> Any:
    """A FastAPI app that answers LLM calls itself."""
    return _fastapi(own=True)


def fastapi_wrapped() -> Any:
    """Our middlewares by ``add_middleware``, the proxy mounted behind the host's routes."""
    app = _fastapi(own=False)
    app.mount("", ProxyApp())
    for layer, how in LAYERS:
        app.add_middleware(layer, **how)
    return app


def fastapi_mounted() -> Any:
    """The gateway by ``app.mount``."""
    app = _fastapi(own=False)
    app.mount("/llm", create_app())
    return app


# -- Quart -------------------------------------------------------------------------------------------------------------


def _quart() -> Any:
    from quart import Quart, Response, request

    app = Quart(__name__)

    @app.get("/hello")
    async def hello() -> dict[str, str]:
        return HELLO

    @app.post(CHAT)
    async def chat() -> Any:
        body = await request.get_json()
        if body.get("stream"):
            return Response(events(body), mimetype="text/event-stream")
        return answer(body)

    return app


def quart_own() -> Any:
    """A Quart app that answers LLM calls itself."""
    return _quart()


def quart_wrapped() -> Any:
    """Our middlewares by ``asgi_app``, which is Quart's way; ``/v1`` goes to the proxy."""
    app = _quart()
    app.asgi_app = guarded(dispatching(app.asgi_app, ProxyApp(), "/v1"))
    return app


def quart_mounted() -> Any:
    """The gateway beside Quart by Hypercorn's dispatcher, which Quart's documentation names."""
    from hypercorn.middleware import DispatcherMiddleware

    return DispatcherMiddleware({"/llm": create_app(), "": _quart()})


# -- Litestar ----------------------------------------------------------------------------------------------------------


def _litestar(*more: Any, own: bool = False) -> Any:
    from litestar import Litestar, Request, get, post
    from litestar.response import Stream

    @get("/hello")
    async def hello() -> dict[str, str]:
        return HELLO

    @post(CHAT, status_code=200)
    async def chat(request: Request[Any, Any, Any]) -> Any:
        body = await request.json()
        if body.get("stream"):  # its own media type would give way to the handler's, which is JSON
            return Stream(events(body), headers={"content-type": "text/event-stream"})
        return answer(body)

    return Litestar([hello, *([chat] if own else []), *more], openapi_config=None)


def litestar_own() -> Any:
    """A Litestar app that answers LLM calls itself."""
    return _litestar(own=True)


def litestar_wrapped() -> Any:
    """Our middlewares round the app, the proxy mounted behind the host's routes."""
    from litestar import asgi

    return guarded(_litestar(asgi("/", is_mount=True, copy_scope=True)(ProxyApp())))


def litestar_mounted() -> Any:
    """The gateway by ``asgi(path, is_mount=True)``."""
    from litestar import asgi

    return _litestar(asgi("/llm", is_mount=True, copy_scope=True)(create_app()))


# -- Django ------------------------------------------------------------------------------------------------------------


@cache
def _django() -> Any:
    import django
    from django.conf import settings
    from django.core.asgi import get_asgi_application
    from django.http import HttpRequest, HttpResponseBase, JsonResponse, StreamingHttpResponse
    from django.urls import path

    async def hello(request: HttpRequest) -> JsonResponse:
        return JsonResponse(HELLO)

    async def chat(request: HttpRequest) -> HttpResponseBase:
        body = json.loads(request.body)
        if body.get("stream"):
            return StreamingHttpResponse(events(body), content_type="text/event-stream")
        return JsonResponse(answer(body))

    class Urls:
        urlpatterns = (path("hello", hello), path(CHAT[1:], chat))

    settings.configure(ROOT_URLCONF=Urls, ALLOWED_HOSTS=["*"], SECRET_KEY="x", MIDDLEWARE=[], LOGGING_CONFIG=None)
    django.setup()
    return get_asgi_application()


def _without_lifespan(app: Any) -> Any:
    """Django's handler knows http only; a server takes its refusal of a lifespan for "not supported"."""

    async def http_only(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise ValueError("Django can only handle ASGI/HTTP connections, not lifespan.")
        await app(scope, receive, send)

    return http_only


def django_own() -> Any:
    """A Django project that answers LLM calls itself."""
    return _django()


def django_wrapped() -> Any:
    """``asgi.py`` with our middlewares round the handler; ``/v1`` goes to the proxy."""
    return _without_lifespan(guarded(dispatching(_django(), ProxyApp(), "/v1")))


def django_mounted() -> Any:
    """``asgi.py`` that sends a prefix to the gateway."""
    return _without_lifespan(dispatching(_django(), create_app(), "/llm"))


# -- all of them -------------------------------------------------------------------------------------------------------


class Framework(NamedTuple):
    """A framework: its app with an own LLM handler, wrapped with the proxy inside, and with the gateway mounted."""

    name: str
    own: Callable[[], Any]
    wrapped: Callable[[], Any]
    mounted: Callable[[], Any]


FRAMEWORKS = (
    Framework("starlette", starlette_own, starlette_wrapped, starlette_mounted),
    Framework("fastapi", fastapi_own, fastapi_wrapped, fastapi_mounted),
    Framework("quart", quart_own, quart_wrapped, quart_mounted),
    Framework("litestar", litestar_own, litestar_wrapped, litestar_mounted),
    Framework("django", django_own, django_wrapped, django_mounted),
)

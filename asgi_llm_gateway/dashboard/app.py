"""``/dashboard``: the page, its files, its sessions, and the admin API's operations for who is signed in."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..admin.app import Admin
from ..admin.openapi import Operation
from ..admin.routes import OPERATIONS
from ..admin.visit import error_reply, read_body, reply
from ..errors import GatewayError, InvalidKey, MethodNotAllowed, NotFound, StoreError, Unavailable
from ..stores.base import EndedSessions
from . import live, pages, prices
from .course import course
from .guard import COOKIE, Guard, NotSignedIn, Visitor, check_change, check_origin, cookie
from .models import (
    CourseAnswer,
    CourseQuery,
    LiveAnswer,
    LiveQuery,
    Me,
    Nothing,
    Overview,
    OverviewQuery,
    PricesAnswer,
    SignIn,
)
from .overview import overview
from .prices import PriceList
from .secret import Secret

log = logging.getLogger("asgi_llm_gateway")

Endpoint = Callable[[Request], Awaitable[Response]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
"""The ``content-security-policy`` of every answer: our own files, nothing inline, nobody else. Source: CSP Level 3."""

_HEADERS = {"content-security-policy": POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
_API = "/dashboard/api"


class Dashboard:
    """The endpoints. An operation of the admin API at ``/api/X`` is here at ``/dashboard/api/X``, by the session's key.

    Args:
        admin: The admin API, whose operations these are.
        admin_key: GATEWAY_ADMIN_KEY, which sessions are signed by; ``None``: by a secret in the folder.
        folder: GATEWAY_DATA_DIR.
        ended: Opens the sessions that were signed out.
        prices: The price list.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        admin: Admin,
        *,
        admin_key: str | None,
        folder: Path,
        ended: Callable[[], Awaitable[EndedSessions]],
        prices: PriceList,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._admin = admin
        self._guard = Guard(admin.access, Secret(admin_key, folder), ended, clock)
        self._prices = prices

    def operations(self) -> tuple[Operation, ...]:
        """What there is for who is signed in: the admin API's, and the page's own."""
        listed = partial(prices.listed, self._prices)
        own = (
            Operation("GET", "/api/overview", overview, answer=Overview, query=OverviewQuery, tenant=True),
            Operation("GET", "/api/course", course, answer=CourseAnswer, query=CourseQuery, tenant=True),
            Operation("GET", "/api/live", live.newest, answer=LiveAnswer, query=LiveQuery, tenant=True),
            Operation("GET", "/api/prices", listed, answer=PricesAnswer, tenant=True),
        )
        return (*OPERATIONS, *own)

    def app(self) -> Starlette:
        """The Starlette app."""
        by_path: dict[str, dict[str, Operation]] = {}
        for operation in self.operations():
            by_path.setdefault("/dashboard" + operation.path, {})[operation.method] = operation
        routes = [
            Route("/dashboard", self._told(pages.page), methods=["GET"]),
            Route("/dashboard/", self._told(_without_slash), methods=["GET"]),
            Route("/dashboard/static/{name}", self._told(pages.static), methods=["GET"]),
            Route(_API + "/login", self._told(self._sign_in), methods=["POST"]),
            Route(_API + "/logout", self._told(self._sign_out), methods=["POST"]),
            Route(_API + "/me", self._told(self._me), methods=["GET"]),
        ]
        routes += [
            Route(path, self._told(partial(self._perform, by)), methods=list(by)) for path, by in by_path.items()
        ]
        handlers: Any = {HTTPException: self._refused, Exception: self._failed}
        app = Starlette(routes=routes, exception_handlers=handlers)
        app.router.redirect_slashes = False
        return app

    def _told(self, work: Endpoint) -> Endpoint:
        """What ``work`` answers, or why it does not; with the headers that all answers have."""

        async def endpoint(request: Request) -> Response:
            try:
                response = await work(request)
            except GatewayError as refusal:
                response = error_reply(refusal)
                if isinstance(refusal, NotSignedIn) and COOKIE in request.cookies:
                    response.headers["set-cookie"] = cookie(request, None)  # it opens nothing any more
            except StoreError as fault:
                log.error("the dashboard can't reach the store: %s", fault)
                response = error_reply(
                    Unavailable("The store does not answer. The gateway's log says why.", code="store_unavailable")
                )
            return _dressed(response)

        return endpoint

    # -- sessions ------------------------------------------------------------------------------------------------------

    async def _sign_in(self, request: Request) -> Response:
        check_origin(request)
        wanted = await read_body(request, SignIn)
        try:
            visitor, token = await self._guard.sign_in(wanted.key.get_secret_value())
        except InvalidKey as refusal:
            await self._admin.damp(request)
            # In words of its own: the API's tell of headers, and would have the browser ask for a password.
            raise GatewayError(
                "This key is unknown, revoked or expired.", status=401, type=refusal.type, code=refusal.code
            ) from None
        response = _me(visitor)
        response.headers["set-cookie"] = cookie(request, token)
        return response

    async def _sign_out(self, request: Request) -> Response:
        visitor = await self._guard.visitor(request)
        check_change(request, visitor.session)
        await read_body(request, Nothing)
        await self._guard.sign_out(visitor.session)
        response = Response(status_code=204)
        response.headers["set-cookie"] = cookie(request, None)
        return response

    async def _me(self, request: Request) -> Response:
        return _me(await self._guard.visitor(request))

    # -- operations ----------------------------------------------------------------------------------------------------

    async def _perform(self, by_method: dict[str, Operation], request: Request) -> Response:
        operation = by_method["GET" if request.method == "HEAD" else request.method]
        visitor = await self._guard.visitor(request)
        if operation.method == "GET":
            return await self._admin.perform(request, operation, visitor.caller)
        check_change(request, visitor.session)
        try:
            return await self._admin.perform(request, operation, visitor.caller)
        finally:
            self._guard.forget()  # it may have ended a key

    async def _refused(self, request: Request, error: Exception) -> Response:
        """Starlette's own refusals (404, 405) in the envelope; below the API for those only who are signed in."""
        refusal: GatewayError = NotFound(f"No such path: {request.method} {request.scope['path'][:200]}.")
        if isinstance(error, HTTPException) and error.status_code == 405:
            allow = (error.headers or {}).get("Allow", "")
            refusal = MethodNotAllowed(f"Use {allow} here.", headers=((b"allow", allow.encode()),))

        async def refuse(request: Request) -> Response:
            path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
            if path.startswith(_API) and path not in (f"{_API}/login", f"{_API}/logout", f"{_API}/me"):
                visitor = await self._guard.visitor(request)
                return await self._admin.perform(request, None, visitor.caller, refusal)
            raise refusal

        return await self._told(refuse)(request)

    async def _failed(self, request: Request, error: Exception) -> Response:
        return _dressed(await self._admin.failed(request, error))


async def _without_slash(request: Request) -> Response:
    """The page's links are relative: they are right without the slash only."""
    root = request.scope.get("root_path") or ""
    return Response(status_code=308, headers={"location": quote(root.rstrip("/"), safe="/~!$&+@:") + "/dashboard"})


def _me(visitor: Visitor) -> Response:
    session, caller = visitor
    role: Any = "admin" if caller.tenant is None else "tenant"
    return reply(Me(role=role, tenant=caller.tenant, csrf=session.csrf, expires=session.until))


def _dressed(response: Response) -> Response:
    """With the headers that every answer has; what is not a file of ours is kept by nobody."""
    for name, value in _HEADERS.items():
        response.headers[name] = value
    response.headers.setdefault("cache-control", "no-store")
    return response


__all__ = ["POLICY", "Dashboard"]

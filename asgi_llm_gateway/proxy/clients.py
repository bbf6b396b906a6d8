"""Which client carries the upstream calls: our own, an httpx client, or httpx because the environment names a proxy."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

from ..adapters.base import Script, UpstreamRequest
from ..errors import Header
from .scripted import ScriptedFlight
from .transfer import Flight, Timeouts
from .upstream import UpstreamClient


class HTTPXClient:
    """Upstream calls over an ``httpx.AsyncClient`` (httpx2's too). Slower by far, and able to do what ours is not.

    Args:
        client: The client; who made it closes it.
        timeouts: Seconds for each phase; connect, write and pool are the client's own.
    """

    def __init__(self, client: Any, *, timeouts: Timeouts | None = None) -> None:
        self.timeouts = timeouts or Timeouts()
        self._client = client

    def open(
        self, request: UpstreamRequest | Script, extra: tuple[Header, ...] = (), *, stream: bool = False
    ) -> Flight:
        """See UpstreamClient."""
        if isinstance(request, Script):
            return ScriptedFlight(request)
        from .httpx_flight import HTTPXFlight

        return HTTPXFlight(self._client, request, extra, self.timeouts.of_stream() if stream else self.timeouts)

    async def close(self) -> None:
        """The client is its maker's."""


class _OwnHTTPXClient(HTTPXClient):
    """One that the gateway made itself, because the environment names a proxy."""

    async def close(self) -> None:
        """Close the client."""
        await self._client.aclose()


Client = UpstreamClient | HTTPXClient


def open_client(
    *, http_client: Any = None, timeouts: Timeouts | None = None, max_connections: int = 1000, urls: Sequence[str] = ()
) -> Client:
    """The client for the settings: the caller's own, httpx where the environment names a proxy for ``urls``, else ours."""
    if http_client is not None:
        return HTTPXClient(http_client, timeouts=timeouts)
    if proxied(urls, os.environ):
        try:
            import httpx
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                "a proxy is set in the environment; that needs: pip install 'asgi-llm-gateway[httpx]'"
            ) from None
        limits = httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections)
        waits = timeouts or Timeouts()
        own = httpx.Timeout(waits.first_byte, connect=waits.connect, write=waits.write, pool=waits.connect)
        return _OwnHTTPXClient(httpx.AsyncClient(limits=limits, timeout=own), timeouts=timeouts)
    return UpstreamClient(timeouts=timeouts, max_connections=max_connections)


def proxied(urls: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether the environment's proxy variables (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY) concern one of ``urls``."""
    proxies = getproxies_environment() if environ is os.environ else _proxies_in(environ)
    if not proxies:
        return False
    for url in urls:
        parts = urlsplit(url)
        if (parts.scheme in proxies or "all" in proxies) and not _bypassed(parts.hostname or "", proxies):
            return True
    return False


def _proxies_in(environ: Mapping[str, str]) -> dict[str, str]:
    found = {name.lower(): value for name, value in environ.items() if value}
    return {name[: -len("_proxy")]: value for name, value in found.items() if name.endswith("_proxy")}


def _bypassed(host: str, proxies: dict[str, str]) -> bool:
    try:
        if ipaddress.ip_address(host).is_loopback:
            return True
    except ValueError:
        if host == "localhost":
            return True
    return bool(proxy_bypass_environment(host, proxies))

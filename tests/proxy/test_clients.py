"""Which upstream client is taken: the caller's own, httpx where a proxy is named, else ours."""

from __future__ import annotations

import httpx
import pytest

from asgi_llm_gateway.proxy.clients import HTTPXClient, open_client, proxied
from asgi_llm_gateway.proxy.upstream import UpstreamClient

from ..upstream import HOST, always, upstream, whole
from .clients import BODY, GENEROUS, fetch, request_to


@pytest.mark.parametrize(
    ("environ", "url", "expected"),
    [
        ({}, "https://api.openai.com/v1", False),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "https://api.openai.com/v1", True),
        ({"https_proxy": "http://proxy:3128"}, "https://api.openai.com/v1", True),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "http://api.openai.com/v1", False),
        ({"ALL_PROXY": "socks5://proxy"}, "http://api.openai.com/v1", True),
        ({"HTTPS_PROXY": ""}, "https://api.openai.com/v1", False),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "openai.com"}, "https://api.openai.com/v1", False),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "*"}, "https://api.openai.com/v1", False),
        ({"HTTP_PROXY": "http://proxy:3128"}, "http://127.0.0.1:8000/v1", False),
        ({"HTTP_PROXY": "http://proxy:3128"}, "http://localhost:8000/v1", False),
    ],
)
def test_a_proxy_in_the_environment_is_seen(environ: dict[str, str], url: str, expected: bool) -> None:
    """For the scheme that it is for, and not for this machine."""
    assert proxied([url], environ) is expected


async def test_the_client_follows_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller's own first, httpx where a proxy is named, else ours."""
    ours = open_client(urls=["https://api.openai.com/v1"])
    assert isinstance(ours, UpstreamClient)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    through_proxy = open_client(urls=["https://api.openai.com/v1"])
    assert isinstance(through_proxy, HTTPXClient)
    await through_proxy.close()
    async with httpx.AsyncClient() as inner:
        given_one = open_client(http_client=inner)
        await given_one.close()
        assert not inner.is_closed  # its maker closes it


async def test_a_proxy_in_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request goes to the proxy, with the whole URL in its first line."""
    async with upstream(always(whole())) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://{HOST}:{proxy.port}")
        client = open_client(urls=["http://api.example.com/v1"], timeouts=GENEROUS)
        assert (await fetch(client, request_to("http://api.example.com/v1")))[2] == BODY
        await client.close()
        assert proxy.requests[0].path == "http://api.example.com/v1"

"""The upstream client: how it connects, and TLS."""

from __future__ import annotations

from pathlib import Path

import pytest

from asgi_llm_gateway.adapters.base import Endpoint
from asgi_llm_gateway.proxy.upstream import prepare

from ..upstream import HOST, Authority, always, refused_port, upstream, whole
from .clients import BODY, client_of, every_client, failure_of, fetch, request_to


@every_client
async def test_a_refused_connection_is_told_apart(kind: str) -> None:
    """Nobody listens: nothing was sent."""
    taken, port = refused_port()
    with taken:
        async with client_of(kind) as client:
            error = await failure_of(client, request_to(f"http://{HOST}:{port}/v1"))
    assert (error.kind, error.received) == ("connect", False)


@every_client
async def test_an_unknown_host_is_told_apart(kind: str) -> None:
    """A name that no resolver knows, and one that is no name."""
    async with client_of(kind) as client:
        for host in ("no-such-host.invalid", "a" * 70 + ".invalid"):
            assert (await failure_of(client, request_to(f"http://{host}/v1"))).kind == "connect"


@every_client
@pytest.mark.parametrize(
    ("certificate_for", "asked_host", "trusted", "kind_of_error"),
    [
        (HOST, HOST, True, None),
        ("localhost", "localhost", True, None),
        (HOST, HOST, False, "connect"),
        ("api.example.com", HOST, True, "connect"),
        ("api.example.com", "localhost", True, "connect"),
    ],
)
async def test_a_certificate_is_verified(
    kind: str, certificate_for: str, asked_host: str, trusted: bool, kind_of_error: str | None, tmp_path: Path
) -> None:
    """The right authority and the right host, or no request goes out."""
    theirs, stranger = Authority(tmp_path), Authority(tmp_path)
    context = (theirs if trusted else stranger).trusting()
    async with (
        upstream(always(whole()), tls=theirs.serving(certificate_for)) as server,
        client_of(kind, tls=context) as client,
    ):
        request = request_to(server.url(host=asked_host))
        if kind_of_error is None:
            assert (await fetch(client, request))[2] == BODY
            assert (await fetch(client, request))[2] == BODY
            assert server.connections == 1
        else:
            assert (await failure_of(client, request)).kind == kind_of_error
            assert server.requests == []


@every_client
async def test_the_systems_authorities_are_asked_by_default(kind: str, tmp_path: Path) -> None:
    """Without a context of one's own a stranger's certificate is refused."""
    async with (
        upstream(always(whole()), tls=Authority(tmp_path).serving()) as server,
        client_of(kind) as client,
    ):
        assert (await failure_of(client, request_to(server.url()))).kind == "connect"
        assert server.requests == []


@pytest.mark.parametrize(
    "url",
    ["ftp://host/v1", "http:///v1", "http://user:pw@host/v1", "http://host/a b", "http://host/\u00e9", "host/v1"],
)
def test_what_is_no_http_url_is_refused(url: str) -> None:
    """Also one with a password in it, which would end up in logs."""
    with pytest.raises(ValueError, match="upstream URL"):
        prepare(Endpoint("POST", url, ()))


def test_a_header_with_a_line_break_is_refused() -> None:
    """Nothing can be smuggled into the head."""
    with pytest.raises(ValueError, match="line break"):
        prepare(Endpoint("POST", "http://host/v1", [(b"x-a", b"1\r\nx-b: 2")]))

"""Answers written in one piece are those that the server's own ``send`` writes."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from asgi_llm_gateway._asgi import Receive, Scope, Send, whole
from asgi_llm_gateway._stepping import server_of, write_whole

Header = tuple[bytes, bytes]

NAMES = st.sampled_from([b"content-type", b"x-llm-provider", b"x-request-id", b"retry-after", b"connection", b"date"])
VALUES = st.binary(max_size=12).filter(lambda value: value == value.strip())
STATUSES = st.sampled_from([200, 201, 204, 304, 400, 401, 402, 404, 429, 500, 502, 503, 529])


class Told:
    """Answers as it is told, in one piece or by ``send``; and how many it could write in one piece."""

    def __init__(self) -> None:
        self.status = 200
        self.headers: list[Header] = []
        self.body = b""
        self.at_once = False
        self.written = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        if self.at_once and write_whole(server_of(send), self.status, self.body, self.headers):
            self.written += 1
            return
        for message in whole(self.status, self.body, self.headers):
            await send(message)


class Quiet(HttpToolsProtocol):
    """Without a log of accesses: pytest listens to all loggers, which to uvicorn is one."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.access_log = False


@contextmanager
def served(app: Any, http: Any = Quiet, **more: Any) -> Iterator[int]:
    """The app in a real uvicorn; its port."""
    config = uvicorn.Config(app, port=0, http=http, log_level="critical", lifespan="off", **more)
    server = uvicorn.Server(config)
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)


Answer = tuple[bytes, list[bytes], bytes]


def asked(port: int, method: bytes = b"GET", times: int = 2) -> list[Answer]:
    """What comes for some calls over one connection, the last of which ends it: status line, sorted header lines, body."""
    found: list[Answer] = []
    with socket.create_connection(("127.0.0.1", port), timeout=10) as wire, wire.makefile("rb") as reader:
        for left in reversed(range(times)):
            ending = b"" if left else b"connection: close\r\n"
            wire.sendall(method + b" / HTTP/1.1\r\nhost: a\r\n" + ending + b"\r\n")
            lines = []
            while line := reader.readline().rstrip(b"\r\n"):
                lines.append(line)
            if not lines:  # the server hung up without a word
                break
            status, *headers = lines
            lengths = [int(one.split(b":")[1]) for one in headers if one.startswith(b"content-length:")]
            bodiless = method == b"HEAD" or status[9:12] in (b"204", b"304")
            body = b"" if bodiless else reader.read(lengths[0]) if lengths else reader.read()
            found.append((status, sorted(headers), body))
            if any(one.startswith(b"connection:") for one in headers):
                break
        else:
            assert reader.read() == b""
    return found


@pytest.fixture(scope="module")
def told() -> Iterator[tuple[Told, int]]:
    """An app and where it is served."""
    app = Told()
    with served(app, date_header=False) as port:
        yield app, port


@settings(max_examples=150, deadline=None)
@given(STATUSES, st.lists(st.tuples(NAMES, VALUES), max_size=6), st.binary(max_size=300))
def test_whatever_is_answered_the_client_gets_the_same(
    told: tuple[Told, int], status: int, headers: list[Header], body: bytes
) -> None:
    """Two calls over one connection: status, headers, body, and whether the connection goes on."""
    app, port = told
    if status in (204, 304):
        body = b""
    app.status, app.headers, app.body = status, headers, body
    app.at_once = False
    by_send = asked(port)
    app.at_once = True
    at_once = asked(port)
    assert at_once == by_send


def test_an_ordinary_answer_is_written_in_one_piece(told: tuple[Told, int]) -> None:
    """Else the short cut is gone, and nobody would see it: a new release of the server may have moved its parts."""
    app, port = told
    app.status, app.headers, app.body, app.at_once = 200, [(b"content-type", b"application/json")], b"{}", True
    before = app.written
    assert [line for line, _, _ in asked(port)] == [b"HTTP/1.1 200 OK"] * 2
    assert app.written == before + 1  # the second call ends the connection, which is left to the server


def test_what_is_out_of_the_ordinary_is_left_to_the_server(told: tuple[Told, int]) -> None:
    """No body for HEAD; a header that splits the answer is refused as the server refuses it, without a word."""
    app, port = told
    app.status, app.headers, app.body, app.at_once = 200, [], b"body", True
    before = app.written
    assert [body for _, _, body in asked(port, b"HEAD")] == [b"", b""]
    app.headers = [(b"x-bad", b"a\r\nx-split: b")]
    assert asked(port) == []
    assert app.written == before


def test_a_log_of_accesses_sees_every_answer() -> None:
    """Where the server keeps one, its own way is taken."""
    app = Told()
    app.at_once, app.body = True, b"body"
    with served(app, HttpToolsProtocol) as port:
        assert [body for _, _, body in asked(port)] == [b"body", b"body"]
    assert app.written == 0


def test_a_server_that_is_not_known_is_not_touched() -> None:
    """Nor one whose parts are not those that are known."""
    assert not write_whole(SimpleNamespace(), 200, b"", [])
    other = type("RequestResponseCycle", (), {"__module__": "uvicorn.protocols.http.httptools_impl"})
    assert not write_whole(other(), 200, b"", [])

"""A scripted upstream: a real TCP server on loopback that does what a provider should, or should not.

A script is a coroutine that drives one connection; the test holds the events that it waits for.
"""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HOST = "127.0.0.1"
Lines = Iterable[tuple[str, str]]

USAGE: dict[str, Any] = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
ANSWER: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": USAGE,
}
DONE = b"data: [DONE]\n\n"


class Gone(Exception):
    """The other side has closed the connection."""


class Request(NamedTuple):
    """What was asked. Header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Peer:
    """The server's end of one connection."""

    def __init__(self, server: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer
        self.sent = 0
        """Bytes that have left this process."""

    async def request(self) -> Request:
        """The next request, noted at the server. Raises Gone."""
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
            first, *lines = head[:-4].decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        except (asyncio.IncompleteReadError, ConnectionError):
            raise Gone from None
        method, path, _ = first.split(" ")
        asked = Request(method, path, headers, body)
        self._server.requests.append(asked)
        return asked

    async def begun(self) -> None:
        """The first byte of a request has come. Raises Gone."""
        if not await self._reader.read(1):
            raise Gone

    async def send(self, *pieces: bytes, gap: float = 0.0) -> None:
        """Write the pieces, each in a segment of its own, ``gap`` seconds apart. Waits while the other side is not reading.

        Raises Gone.
        """
        for piece in pieces:
            try:
                self._writer.write(piece)
                await self._writer.drain()
            except ConnectionError:
                self._server.aborted += 1
                raise Gone from None
            self.sent += len(piece)
            await asyncio.sleep(gap)

    async def drip(self, data: bytes, gap: float = 0.0) -> None:
        """Write byte by byte."""
        await self.send(*(data[at : at + 1] for at in range(len(data))), gap=gap)

    async def stall(self) -> None:
        """Say nothing more, until the other side has left."""
        try:
            while await self._reader.read(65536):
                pass
        except ConnectionError:
            pass
        self._server.aborted += 1
        raise Gone

    def half_close(self) -> None:
        """Say no more, but listen."""
        self._writer.write_eof()

    def close(self) -> None:
        """Close in the ordinary way."""
        self._writer.close()

    def reset(self) -> None:
        """Break the connection: what is under way is lost."""
        wire: socket.socket = self._writer.get_extra_info("socket")
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def narrow(self) -> None:
        """Keep next to nothing on the way out, so that ``sent`` tells what the other side holds."""
        wire: socket.socket = self._writer.get_extra_info("socket")
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**18)
        self._writer.transport.set_write_buffer_limits(high=0)


Script = Callable[[Peer], Awaitable[None]]


class Upstream:
    """A running server.

    Attributes:
        port: Where it listens.
        connections: Connections accepted.
        requests: What was asked, in order.
        aborted: Connections that the other side closed while an answer was due.
        open: Connections that are open now.
        faults: What went wrong in a script; there should be none.
    """

    def __init__(self, scripts: tuple[Script, ...], *, scheme: str) -> None:
        self._scripts = scripts
        self._tasks: set[asyncio.Task[Any]] = set()
        self._scheme = scheme
        self.port = 0
        self.connections = 0
        self.requests: list[Request] = []
        self.aborted = 0
        self.open = 0
        self.faults: list[BaseException] = []

    def url(self, path: str = "/v1", *, host: str = HOST) -> str:
        """An absolute URL here."""
        return f"{self._scheme}://{host}:{self.port}{path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Play the script of the next connection; the last one is for all that follow."""
        script = self._scripts[min(self.connections, len(self._scripts) - 1)]
        self.connections += 1
        self.open += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await script(Peer(self, reader, writer))
        except (Gone, asyncio.CancelledError):
            pass
        except Exception as error:
            self.faults.append(error)
        finally:
            self.open -= 1
            self._tasks.discard(task)
            writer.close()

    async def stop(self) -> None:
        """End all scripts."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def upstream(*scripts: Script, tls: ssl.SSLContext | None = None, port: int = 0) -> AsyncIterator[Upstream]:
    """A server that plays one script a connection, in order; a script that went wrong fails the test."""
    state = Upstream(scripts, scheme="https" if tls else "http")
    server = await asyncio.start_server(state.serve, HOST, port, ssl=tls, limit=2**20)
    state.port = server.sockets[0].getsockname()[1]
    try:
        yield state
    finally:
        server.close()
        await state.stop()
    assert state.faults == []


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in another process or thread
            await asyncio.sleep(0.005)


# -- what is said ------------------------------------------------------------------------------------------------------


def head(status: int = 200, *lines: tuple[str, str], reason: str = "OK") -> bytes:
    """A status line and headers."""
    text = "".join(f"{name}: {value}\r\n" for name, value in lines)
    return f"HTTP/1.1 {status} {reason}\r\n{text}\r\n".encode("latin-1")


def whole(body: Any = None, status: int = 200, *, kind: str = "application/json", headers: Lines = ()) -> bytes:
    """An answer of known length; ``body`` is bytes, or JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(ANSWER if body is None else body).encode()
    return head(status, ("Content-Type", kind), ("Content-Length", str(len(raw))), *headers) + raw


def chunk(data: bytes) -> bytes:
    """One piece of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
STREAM_HEAD = head(200, ("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked"))


def event(value: Any) -> bytes:
    """One server-sent event of JSON."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def word(text: str, finish: str | None = None) -> bytes:
    """An event with a piece of content."""
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]})


def usage_event() -> bytes:
    """The event that ``include_usage`` asks for."""
    return event({"choices": [], "usage": USAGE})


# -- scripts that many tests need --------------------------------------------------------------------------------------


def always(answer: bytes) -> Script:
    """The same answer to each request."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(answer)

    return script


def once(*pieces: bytes, gap: float = 0.0) -> Script:
    """One answer, then the connection is closed."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*pieces, gap=gap)

    return script


def then_stall(*pieces: bytes) -> Script:
    """The beginning of an answer, and nothing more."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*pieces)
        await peer.stall()

    return script


def streaming(*events: bytes, gap: float = 0.0) -> Script:
    """Each request gets the same event stream, its events ``gap`` seconds apart."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(STREAM_HEAD, *(chunk(one) for one in events), LAST_CHUNK, gap=gap)

    return script


async def silent(peer: Peer) -> None:
    """Takes the connection and says nothing."""
    await peer.stall()


def refused_port() -> tuple[socket.socket, int]:
    """A port where nobody listens, kept by the socket so that nobody else can."""
    taken = socket.socket()
    taken.bind((HOST, 0))
    return taken, taken.getsockname()[1]


# -- TLS ---------------------------------------------------------------------------------------------------------------


class Authority:
    """A throw-away certificate authority.

    Args:
        folder: Where keys are put: the ssl module reads files only.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test's authority")])
        self._own = self._sign(self._name, self._key, authority=True)

    def _sign(
        self, name: x509.Name, key: ec.EllipticCurvePrivateKey, *, authority: bool, host: str | None = None
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )  # fmt: skip
        if host is not None:
            try:
                named: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
            except ValueError:
                named = x509.DNSName(host)
            builder = builder.add_extension(x509.SubjectAlternativeName([named]), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def serving(self, host: str = HOST) -> ssl.SSLContext:
        """A server's context, with a certificate for ``host``."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test's server")])
        certificate = self._sign(name, key, authority=False, host=host)
        path = self._folder / f"{x509.random_serial_number():x}.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context

    def file(self) -> Path:
        """The authority's own certificate, as a file."""
        path = self._folder / "authority.pem"
        path.write_bytes(self._own.public_bytes(serialization.Encoding.PEM))
        return path

    def trusting(self) -> ssl.SSLContext:
        """A client's context that believes this authority alone."""
        context = ssl.create_default_context(cadata=self._own.public_bytes(serialization.Encoding.PEM).decode())
        context.check_hostname = True
        return context

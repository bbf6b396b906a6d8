"""A stranger's app that speaks OpenAI's other endpoints, and a server of it: what the gateway's layers stand round."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from asgi_llm_gateway import multipart

from .upstream import until

PNG = base64.b64encode(b"\x89PNG" + bytes(600)).decode()
SOUND = bytes(range(256)) * 8
IMAGE_USAGE = {
    "input_tokens": 50,
    "output_tokens": 272,
    "total_tokens": 322,
    "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
}
HEARD = {
    "type": "tokens",
    "input_tokens": 110,
    "input_token_details": {"text_tokens": 10, "audio_tokens": 100},
    "output_tokens": 20,
    "total_tokens": 130,
}
SPOKEN = {"input_tokens": 5, "output_tokens": 60, "total_tokens": 65}


class Provider:
    """Answers what it is asked, by path.

    Attributes:
        bodies: The bodies that came.
        kinds: Their content types.
        gate: Set: sound goes on after its first piece.
        silent: Nothing is said of usage.
        breaks: Sound breaks off after its first piece.
    """

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.kinds: list[bytes] = []
        self.lengths: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.silent = False
        self.breaks = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The ASGI application."""
        assert scope["type"] == "http"
        message = await receive()
        body = message["body"]
        while message["more_body"]:
            message = await receive()
            body += message["body"]
        headers = dict(scope["headers"])
        self.bodies.append(body)
        self.kinds.append(headers[b"content-type"])
        self.lengths.append(int(headers[b"content-length"]))
        await getattr(self, scope["path"].rpartition("/")[2])(Asked(body, headers[b"content-type"]), Out(send))

    async def moderations(self, asked: Asked, out: Out) -> None:
        """A verdict."""
        verdict = {"flagged": False, "categories": {}, "category_scores": {}}
        await out.json({"id": "modr-1", "model": asked.fields["model"], "results": [verdict]})

    async def generations(self, asked: Asked, out: Out) -> None:
        """Images, by URL without usage, or in base64 with it; or one in events."""
        count = int(asked.fields.get("n") or 1)
        usage = {} if self.silent else {"usage": IMAGE_USAGE}
        if asked.fields.get("stream"):
            partial = {"type": "image_generation.partial_image", "b64_json": PNG, "partial_image_index": 0}
            done = {"type": "image_generation.completed", "b64_json": PNG, **usage}
            await out.events(partial, done, wait=self.gate)
        elif asked.fields["model"].startswith("gpt-image"):
            await out.json({"created": 1, "data": [{"b64_json": PNG}] * count, **usage})
        else:
            await out.json({"created": 1, "data": [{"url": "https://x/y.png", "revised_prompt": "p"}] * count})

    edits = generations

    async def transcriptions(self, asked: Asked, out: Out) -> None:
        """What was said, in the format asked for."""
        form = asked.fields.get("response_format", "json")
        usage = (
            {"usage": {"type": "duration", "seconds": 7}} if asked.fields["model"] == "whisper-1" else {"usage": HEARD}
        )
        if asked.fields.get("stream"):
            done = {"type": "transcript.text.done", "text": "a b", **usage}
            await out.events({"type": "transcript.text.delta", "delta": "a"}, done, wait=self.gate)
        elif form in ("text", "srt", "vtt"):
            await out.whole(b"a b\n", b"text/plain; charset=utf-8")
        elif form == "verbose_json":
            await out.json(
                {"task": "transcribe", "language": "english", "duration": 6.2, "text": "a b", "segments": []}
            )
        else:
            await out.json({"text": "a b", **({} if self.silent else usage)})

    async def translations(self, asked: Asked, out: Out) -> None:
        """No word of usage."""
        await out.json({"text": "a b"})

    async def speech(self, asked: Asked, out: Out) -> None:
        """Sound in pieces, or in events."""
        if asked.fields.get("stream_format") == "sse":
            delta = {"type": "speech.audio.delta", "audio": base64.b64encode(SOUND).decode()}
            await out.events(delta, {"type": "speech.audio.done", "usage": SPOKEN}, wait=self.gate)
            return
        await out.start(b"audio/mpeg")
        await out.piece(SOUND[:512])
        await self.gate.wait()
        if self.breaks:
            raise ConnectionAbortedError("the provider broke off")
        await out.piece(SOUND[512:])
        await out.piece(b"", last=True)


class Asked:
    """A request, read by other means than the gateway's own where it is JSON."""

    def __init__(self, body: bytes, kind: bytes) -> None:
        self.files: dict[str, bytes] = {}
        if kind.startswith(b"application/json"):
            self.fields: dict[str, Any] = json.loads(body)
            return
        form = multipart.read(body, multipart.boundary_of(kind) or b"")
        self.fields = {}
        for part in form.parts:
            content = body[part.start : part.end]
            if part.file:
                self.files[part.name] = content
            else:
                self.fields[part.name] = {"true": True, "false": False}.get(content.decode(), content.decode())


class Out:
    """An answer."""

    def __init__(self, send: Any) -> None:
        self._send = send

    async def start(self, kind: bytes) -> None:
        """Its head."""
        await self._send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})

    async def piece(self, body: bytes, *, last: bool = False) -> None:
        """A piece of it."""
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})

    async def whole(self, body: bytes, kind: bytes) -> None:
        """All of it."""
        await self.start(kind)
        await self.piece(body, last=True)

    async def json(self, answer: Any) -> None:
        """An object."""
        await self.whole(json.dumps(answer).encode(), b"application/json")

    async def events(self, *events: dict[str, Any], wait: asyncio.Event) -> None:
        """A stream; the gate stands after its first event."""
        await self.start(b"text/event-stream")
        for number, event in enumerate(events):
            if number:
                await wait.wait()
            await self.piece(b"event: %b\ndata: %b\n\n" % (event["type"].encode(), json.dumps(event).encode()))
        await self.piece(b"", last=True)


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    """An ASGI app behind a real server in this event loop; its URL."""
    config = uvicorn.Config(app, port=0, log_level="warning", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    task = asyncio.ensure_future(server._serve())  # without its signal handlers, which are pytest's here
    try:
        await until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        server.force_exit = True
        await task

"""The page and its files, as they came with the package: a fixed list, read once; what is asked for never names a path."""

from __future__ import annotations

import asyncio
import hashlib
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from ..errors import NotFound

INDEX = "index.html"

_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "ico": "image/x-icon",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "png": "image/png",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
    "woff2": "font/woff2",
}
"""By the ending of a name; a file with another one is not served."""


class File(NamedTuple):
    """A file as it is served. ``etag`` is of its content: it changes with the file and nothing else."""

    body: bytes
    type: str
    etag: str


@cache
def served() -> dict[str, File]:
    """All files by name. Reads some 200 kB: for a thread, once."""
    found = {}
    for one in (files(__package__) / "static").iterdir():
        kind = _TYPES.get(one.name.rpartition(".")[2])
        if kind is not None and one.is_file():
            body = one.read_bytes()
            found[one.name] = File(body, kind, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
    return found


async def page(request: Request) -> Response:
    """The page; it is for everybody, and shows a form to sign in."""
    return await _answer(request, INDEX)


async def static(request: Request) -> Response:
    """One of its files. Raises NotFound."""
    return await _answer(request, request.path_params["name"])


async def _answer(request: Request, name: str) -> Response:
    file = (await asyncio.to_thread(served)).get(name)
    if file is None:
        raise NotFound("There is no such file of the dashboard.")
    # Asked for again each time, and sent only where it changed: an upgrade shows at once, with all parts of one version.
    headers = {"etag": file.etag, "cache-control": "no-cache"}
    if file.etag in request.headers.get("if-none-match", "") or request.headers.get("if-none-match") == "*":
        return Response(status_code=304, headers=headers)
    return Response(file.body, headers={**headers, "content-type": file.type})


__all__ = ["INDEX", "File", "page", "served", "static"]

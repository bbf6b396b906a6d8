"""The secret that sessions are signed with: from the admin key, else a random one in a file that a machine's workers share."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import tempfile
from pathlib import Path

from ..errors import StoreError
from .sessions import Seal, derived

NAME = "dashboard.secret"
"""The file, in GATEWAY_DATA_DIR."""

_SIZE = 32


class Secret:
    """Finds the seal on first use, and keeps it.

    Args:
        admin_key: GATEWAY_ADMIN_KEY: all workers on all machines then have the same secret, and another key ends all
            sessions. ``None``: the file.
        folder: GATEWAY_DATA_DIR.
    """

    def __init__(self, admin_key: str | None, folder: Path) -> None:
        self._admin_key = admin_key
        self._folder = folder
        self._seal: Seal | None = None

    async def seal(self) -> Seal:
        """The seal. Raises StoreError."""
        if self._seal is None:
            self._seal = Seal(await asyncio.to_thread(self._find))
        return self._seal

    def _find(self) -> bytes:
        return derived(self._admin_key) if self._admin_key is not None else shared_secret(self._folder)


def shared_secret(folder: Path) -> bytes:
    """The secret in a folder's file, made where it is not there; many processes at once get the same. Raises StoreError."""
    path = folder / NAME
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _make(path)
        found = path.read_bytes()
    except OSError as error:
        raise StoreError(
            f"GATEWAY_DATA_DIR={folder}: {NAME} can't be used: {error.strerror or 'not readable'}"
        ) from None
    if len(found) != _SIZE:
        raise StoreError(f"{path} is damaged: delete it, and everybody signs in again")
    return found


def _make(path: Path) -> None:
    """A whole file or none, readable by its owner only (mkstemp); where another process is faster, its file stays."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{NAME}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(_SIZE))
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
    finally:
        os.unlink(name)


__all__ = ["NAME", "Secret", "shared_secret"]

"""The scripts that count rate limits in Redis, and the wire that carries them.

The ``limits`` package has scripts of its own. They take one limit at a time, so that a call refused by one of several has eaten
of the others; they can't give back; and a call of some thousand tokens would be as many entries. Its client costs three times
what ours does. So the scripts are ours, and the wire is the ledger's.
"""

from __future__ import annotations

from hashlib import sha1
from importlib.resources import files
from typing import Any

from ..stores._redis_wire import Script, Single, Wire, wire_to


class _RateScript(Script):
    """A script of ours, which does without the ledger's common part."""

    __slots__ = ()

    def __init__(self, name: str) -> None:
        folder = files("asgi_llm_gateway.rates") / "lua"
        self.source = "".join((folder / f"{each}.lua").read_text("utf-8") for each in ("log", name))
        self.digest = sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        Script.all[self.digest] = self


_SCRIPTS = ADMIT, SETTLE, RENEW = tuple(map(_RateScript, ("admit", "settle", "renew")))


class _Line(Single):
    """One server. Windows may be dropped by it when it is full, unlike money: its memory policy is not looked at."""

    async def _connect(self) -> Any:
        connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        self._connection = connection
        try:
            await connection.connect()
            await self._pipeline(connection, [("SCRIPT", "LOAD", script.source) for script in _SCRIPTS])
        except BaseException:
            await self._hang_up()
            raise
        return connection


def rate_wire(url: str, patience: float) -> Wire:
    """A wire to Redis as the ledger's has it (see ``wire_to``), for the scripts of rate limits."""
    if url.partition("://")[0].endswith("+cluster"):
        return wire_to(url, patience)
    return _Line(url, patience)

"""The scripts that count rate limits in Redis, and the wire that carries them.

The ``limits`` package has scripts of its own. They take one limit at a time, so that a call refused by one of several has eaten
of the others; they can't give back; and a call of some thousand tokens would be as many entries. Its client costs three times
what ours does. So the scripts are ours, and the wire is the ledger's.
"""

from __future__ import annotations

from hashlib import sha1
from importlib.resources import files

from ..stores._redis_wire import Plain, Script, Wire, wire_to


class _RateScript(Script):
    """A script of ours, which does without the ledger's common part."""

    __slots__ = ()

    def __init__(self, name: str) -> None:
        folder = files("asgi_llm_gateway.rates") / "lua"
        self.source = "".join((folder / f"{each}.lua").read_text("utf-8") for each in ("log", name))
        self.digest = sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        Script.all[self.digest] = self


_SCRIPTS = ADMIT, SETTLE, RENEW = tuple(map(_RateScript, ("admit", "settle", "renew")))


def rate_wire(url: str, patience: float) -> Wire:
    """A wire to Redis as the ledger's has it (see ``wire_to``), for the scripts of rate limits."""
    if url.partition("://")[0].endswith("+cluster"):
        return wire_to(url, patience)
    return Plain(url, patience, _SCRIPTS)

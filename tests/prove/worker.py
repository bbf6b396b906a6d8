"""One worker process: ``python -m tests.prove.worker HISTORY SEED LANES TTL``, with the gateway's settings in the environment.

Told on its standard input: ``clock SECONDS`` (its clock is wrong by so much from now on), ``stop``.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from asgi_llm_gateway._closing import close_all
from asgi_llm_gateway.errors import StoreError
from asgi_llm_gateway.stores.base import Ledger
from asgi_llm_gateway.stores.shared import shared_ledger

from .callers import Callers
from .history import Recorded


async def _opened() -> Ledger:
    """The ledger of the settings, as a middleware would get it, when the store answers."""
    while True:
        try:
            return await shared_ledger()
        except StoreError:
            await asyncio.sleep(0.1)


async def _main(history: Path, seed: int, lanes: int, ttl: float) -> None:
    callers = Callers(Recorded(await _opened(), history), seed, ttl=ttl)

    def told() -> None:
        words = os.read(0, 4096).decode().split()
        if not words:
            os._exit(1)  # whoever started us is gone
        for at, word in enumerate(words):
            if word == "clock":
                callers.skew = float(words[at + 1])
            elif word == "stop":
                callers.stopping = True

    asyncio.get_running_loop().add_reader(0, told)
    await callers.run(lanes)
    await close_all()


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))

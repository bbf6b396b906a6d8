"""What the tests of the command line share: a gateway that serves, and what a command's run gives back."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..servers import Server, environment, free_port, running

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]}
ADMIN_KEY = "an-admin-key-of-thirty-two-characters-or-more"
SERVE = [sys.executable, "-m", "asgi_llm_gateway", "serve"]


@contextmanager
def serving(folder: Path, **settings: str) -> Iterator[Server]:
    """``python -m asgi_llm_gateway serve`` on a free port."""
    folder.mkdir(parents=True, exist_ok=True)
    env = environment(folder, PORT=str(free_port()), **settings)
    with running(SERVE, env, folder) as server:
        yield server


Typed = Callable[..., tuple[int, str, str]]

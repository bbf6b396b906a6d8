"""A process under load is told to end: nothing is lost, whoever serves it. Real servers, real signals, the books audited."""

from __future__ import annotations

import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from .graceful_parts import Load, audited, ended, provider, settings
from .servers import Server, running, uvicorn

Started = Callable[[Mapping[str, str], Path], AbstractContextManager[Server]]


def by_uvicorn(*options: str, app: str = "examples:app") -> Started:
    """``uvicorn APP``."""
    return lambda env, folder: uvicorn(app, env, folder, *options)


def by_command(env: Mapping[str, str], folder: Path) -> AbstractContextManager[Server]:
    """``python -m asgi_llm_gateway serve``."""
    return running([sys.executable, "-m", "asgi_llm_gateway", "serve"], {**env, "PORT": "0"}, folder)


def by_command_with_workers(env: Mapping[str, str], folder: Path) -> AbstractContextManager[Server]:
    """The same with two workers."""
    return by_command({**env, "WEB_CONCURRENCY": "2"}, folder)


def by_hypercorn(*options: str) -> Started:
    """``hypercorn`` with a graceful time-out of its own."""
    command = [sys.executable, "-m", "hypercorn", "examples:app", "-b", "127.0.0.1:0", "--graceful-timeout", "20"]
    return lambda env, folder: running([*command, *options], env, folder, ready=r"Running on (http://\S+)")


def by_gunicorn(env: Mapping[str, str], folder: Path) -> AbstractContextManager[Server]:
    """``gunicorn`` with two of uvicorn's workers."""
    command = [sys.executable, "-m", "gunicorn", "examples:app", "-k", "uvicorn_worker.UvicornWorker", "-w", "2"]
    return running([*command, "-b", "127.0.0.1:0"], env, folder, ready=r"Listening at: (http://\S+)")


WAYS: dict[str, Started] = {
    "serve": by_command,
    "serve, 2 workers": by_command_with_workers,
    "uvicorn": by_uvicorn(),
    "uvicorn, 2 workers": by_uvicorn("--workers", "2"),
    "mounted": by_uvicorn(app="tests.graceful_host:mounted"),
    "wrapped": by_uvicorn(app="tests.graceful_host:wrapped"),
    "hypercorn": by_hypercorn("--workers", "0"),
    "gunicorn": by_gunicorn,
}

# Its workers hear no signal: how long calls may take is said by its own time-out alone.
WITHOUT_SIGNAL: dict[str, Started] = {"hypercorn, 1 worker": by_hypercorn()}


def marked(way: str) -> Any:
    """The ways that most take in every run; the others where there is time."""
    heavy = way in ("wrapped", "hypercorn", "gunicorn")
    return pytest.param(way, marks=pytest.mark.real) if heavy else way


def path_of(way: str) -> str:
    """Where the way serves chat completions."""
    return "/llm/v1/chat/completions" if way == "mounted" else "/v1/chat/completions"


@pytest.mark.parametrize(
    "way", [*map(marked, WAYS), *(pytest.param(way, marks=pytest.mark.real) for way in WITHOUT_SIGNAL)]
)
def test_running_calls_end_whole_and_nothing_is_lost(way: str, tmp_path: Path) -> None:
    """Streams under way at SIGTERM come to their own end; the process leaves, and its books are right."""
    with provider() as slow:
        env = settings(tmp_path, slow)
        started = WAYS.get(way) or WITHOUT_SIGNAL[way]
        with started(env, tmp_path) as server, Load(server.url, path=path_of(way)) as load:
            load.until(streams=3)
            server.process.send_signal(signal.SIGTERM)
            told = time.monotonic()
            ended(server, 15)
        assert "Traceback" not in server.err
        kinds = Counter(one.kind for one in load.outcomes)
        assert kinds["in band"] == 0, kinds
        assert kinds["whole"] > 3, kinds
        assert [one for one in load.outcomes if one.stream and one.kind == "whole" and one.began < told]
        audited(env, load.outcomes)


@pytest.mark.parametrize("way", [*map(marked, WAYS)])
def test_calls_that_take_longer_than_their_time_end_in_band(way: str, tmp_path: Path) -> None:
    """After the grace a stream ends with an error event, a JSON call with 503; both are booked, and the process leaves."""
    with provider(events=100_000, gap=0.02, pause=0.05) as slow:
        env = settings(tmp_path, slow, SHUTDOWN_GRACE_SECONDS="0.7")
        with WAYS[way](env, tmp_path) as server, Load(server.url, path=path_of(way)) as load:
            load.until(streams=3)
            server.process.send_signal(signal.SIGTERM)
            ended(server, 15)
        assert "Traceback" not in server.err
        kinds = Counter((one.stream, one.kind) for one in load.outcomes)
        assert kinds[True, "in band"] == 3, kinds
        assert kinds[True, "whole"] == 0, kinds
        audited(env, load.outcomes)


@pytest.mark.real
@pytest.mark.parametrize("seed", range(12))
def test_whenever_it_is_told_the_books_are_right(seed: int, tmp_path: Path) -> None:
    """Any server, any moment, any time that calls have and take: nothing is lost, and nobody gets half an answer."""
    draw = random.Random(seed)
    way = draw.choice(list(WAYS))
    with provider(events=draw.choice([5, 60, 100_000]), gap=0.01, pause=draw.choice([0.0, 0.2])) as slow:
        env = settings(
            tmp_path,
            slow,
            SHUTDOWN_GRACE_SECONDS=str(draw.choice([0, 0.2, 2])),
            SHUTDOWN_DELAY_SECONDS=str(draw.choice([0, 0.5])),
        )
        with WAYS[way](env, tmp_path) as server, Load(server.url, path=path_of(way), callers=16) as load:
            load.until(streams=1)
            time.sleep(draw.uniform(0, 1))
            server.process.send_signal(signal.SIGTERM)
            ended(server, 20)
        assert "Traceback" not in server.err
        audited(env, load.outcomes)

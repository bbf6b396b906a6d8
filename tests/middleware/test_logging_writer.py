"""A log that nobody reads stops no call; what can't be written is counted; what was put is written in order."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway._log_writer import Line, LogWriter, to_descriptor, to_stream
from asgi_llm_gateway.logs import Lines, renderer
from asgi_llm_gateway.middleware.logging import LoggingMiddleware

from ..conversation import CHAT, ask
from . import Stranger


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe's ends."""
    read, write = os.pipe()
    yield read, write
    os.close(read)
    os.close(write)


def numbered(line: Line) -> bytes:
    return b"%d %s\n" % (line.fields.get("n", -1), line.event[:20].encode())


def drain(read: int, until: bytes) -> bytes:
    """What the pipe has, to the line that ends so."""
    found = b""
    while not found.endswith(until):
        found += os.read(read, 65536)
    return found


@pytest.mark.parametrize("blocking", [True, False])
async def test_a_pipe_that_is_full_stops_no_call(pipe: tuple[int, int], blocking: bool) -> None:
    """Calls go on, lines that do not fit are dropped and counted, and the reader is told when it comes back."""
    read, write = pipe
    os.set_blocking(write, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, b"\n" * 4096)
    os.set_blocking(write, blocking)
    writer = LogWriter(renderer("json", None), to_descriptor(write), most=100)
    layer = LoggingMiddleware(Stranger(), logger=Lines(writer, time.time))
    async with asyncio.timeout(60):
        for _ in range(1000):
            assert (await ask(layer, CHAT)).status == 200
    assert not writer.flush(0.05)
    dropped = writer.dropped
    assert dropped >= 800  # the queue's, and those in the thread's hands
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(drain(read, b"END\n")), daemon=True)
    thread.start()
    assert await asyncio.to_thread(writer.flush, 10)
    os.write(write, b"END\n")
    thread.join(10)
    lines = [json.loads(line) for line in found[0].splitlines()[:-1] if line]
    calls = [line for line in lines if line["event"] == "call"]
    told = [line["lines"] for line in lines if "dropped" in line["event"]]
    assert sum(told) == dropped
    assert len(told) < 10
    assert len(calls) + dropped == 1000


async def test_a_reader_that_is_gone_stops_no_call() -> None:
    """There is nowhere left to say so."""
    read, write = os.pipe()
    os.close(read)
    writer = LogWriter(numbered, to_descriptor(write))
    layer = LoggingMiddleware(Stranger(), logger=Lines(writer, time.time))
    for _ in range(5):
        assert (await ask(layer, CHAT)).status == 200
    assert await asyncio.to_thread(writer.flush, 10)
    os.close(write)
    assert writer.dropped == 5


def test_lines_come_out_in_the_order_they_were_put(pipe: tuple[int, int]) -> None:
    """Each once, whole, in pieces that a pipe takes at once."""
    read, write = pipe
    sizes: list[int] = []
    put = to_descriptor(write)

    def noting(data: bytes) -> None:
        sizes.append(len(data))
        assert data.endswith(b"\n")
        put(data)

    writer = LogWriter(numbered, noting, most=5000)
    for at in range(3000):
        writer.put(Line(0.0, "info", "line", {"n": at}))
    assert drain(read, b"2999 line\n").splitlines() == [b"%d line" % at for at in range(3000)]
    assert max(sizes) <= 4096
    assert len(sizes) < 100


def test_lines_of_many_threads_are_all_written() -> None:
    """None is lost between a thread that goes to sleep and one that puts a line."""
    out: list[bytes] = []
    writer = LogWriter(numbered, out.append, most=100_000)

    def put(start: int) -> None:
        for at in range(start, start + 500):
            writer.put(Line(0.0, "info", "line", {"n": at}))
            if at % 50 == 0:
                time.sleep(0.001)

    threads = [threading.Thread(target=put, args=(start * 500,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writer.flush(10)
    found = [int(line.split()[0]) for line in b"".join(out).splitlines()]
    assert sorted(found) == list(range(4000))


def test_a_line_that_can_not_be_written_is_replaced_by_one_that_can() -> None:
    """And the next ones are written."""
    out: list[bytes] = []
    writer = LogWriter(renderer("json", None), out.append)
    writer.put(Line(0.0, "info", "call", {"bad": {object(): 1}}))
    writer.put(Line(0.0, "info", "call", {"good": 1}))
    assert writer.flush(10)
    first, second = (json.loads(line) for line in b"".join(out).splitlines())
    assert (first["event"], first["error"]) == ("a log line could not be written", "TypeError")
    assert second["good"] == 1


def test_a_stream_without_a_descriptor_is_written_to_as_text() -> None:
    """As a test's or an IDE's stderr is."""
    import io

    text = io.StringIO()
    writer = LogWriter(numbered, to_stream(text))
    writer.put(Line(0.0, "info", "line", {"n": 1}))
    assert writer.flush(10)
    assert text.getvalue() == "1 line\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_writes_its_own_lines_and_none_of_its_parents(pipe: tuple[int, int]) -> None:
    """A thread does not live on in a child; its queue would be written twice."""
    read, write = pipe
    gate = threading.Event()
    put = to_descriptor(write)

    def waiting(data: bytes) -> None:
        gate.wait(30)
        put(data)

    writer = LogWriter(numbered, waiting)
    writer.put(Line(0.0, "info", "parent", {"n": 1}))
    child = os.fork()
    if child == 0:  # pragma: no cover - in the child
        gate.set()
        writer.put(Line(0.0, "info", "child", {"n": 2}))
        os._exit(0 if writer.flush(10) else 1)
    assert os.waitpid(child, 0)[1] == 0
    gate.set()
    assert writer.flush(10)
    assert drain(read, b"parent\n") == b"2 child\n1 parent\n"


@given(st.lists(st.integers(0, 10**6), max_size=200), st.integers(1, 50))
def test_every_line_is_written_or_counted(numbers: list[int], most: int) -> None:
    """Whatever the queue's size: none is lost in silence."""
    out: list[bytes] = []
    writer = LogWriter(numbered, out.append, most=most)
    for number in numbers:
        writer.put(Line(0.0, "info", "line", {"n": number}))
    assert writer.flush(10)
    written = [line for line in b"".join(out).splitlines() if line.endswith(b" line")]
    assert len(written) + writer.dropped == len(numbers)

"""Kept answers as bytes, and in memory."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_llm_gateway.caching.kept import KEPT_HEADERS, Kept, read, written
from asgi_llm_gateway.caching.memory import MemoryAnswers

KEY, OTHER = b"k" * 32, b"o" * 32
VALUE = st.binary(max_size=8).filter(lambda value: b"\n" not in value and b"\r" not in value)
KEPT = st.builds(
    Kept,
    st.booleans(),
    st.lists(st.tuples(st.sampled_from(sorted(KEPT_HEADERS)), VALUE), max_size=3).map(tuple),
    st.binary(max_size=50),
    st.binary(max_size=20),
    st.sampled_from([b"", b"data: [DONE]\n\n"]),
    st.booleans(),
    st.floats(0, 2e9),
    st.none() | st.integers(0, 2**62),
)


@given(KEPT)
def test_what_is_written_is_read(kept: Kept) -> None:
    """Byte for byte."""
    assert read(written(kept, KEY), KEY) == kept


@given(KEPT, st.integers(0, 400))
def test_anothers_answer_and_half_of_one_are_none(kept: Kept, cut: int) -> None:
    """An entry that lies under the wrong key is not believed."""
    data = written(kept, KEY)
    assert read(data, OTHER) is None
    if cut < len(data):
        assert read(data[:cut], KEY) is None
        assert read(data + b"x", KEY) is None


@given(st.binary(max_size=100))
def test_no_bytes_make_it_fail(data: bytes) -> None:
    """What others wrote into the store."""
    assert read(data, KEY) is None


@pytest.mark.parametrize(("name", "value"), [(b"set-cookie", b"a=b"), (b"content-type", b"x\r\nset-cookie: a=b")])
def test_an_entry_cannot_bring_headers_of_its_own(name: bytes, value: bytes) -> None:
    """A poisoned store sets no cookies and splits no answer."""
    assert read(written(Kept(False, ((name, value),), b"{}"), KEY), KEY) is None


def kept(size: int, made: float = 0.0) -> Kept:
    """An answer of that many bytes."""
    return Kept(False, (), b"x" * size, made=made)


def test_freshness_is_its_age_and_what_the_caller_allows() -> None:
    """A clock that was set back makes it stale, not eternal."""
    one = kept(1, made=100.0)
    assert [one.fresh(now, 10) for now in (99.0, 100.0, 109.9, 110.0)] == [False, True, True, False]
    assert [one.fresh(now, 10, 5) for now in (105.0, 105.1)] == [True, False]


def test_memory_is_bounded_by_time() -> None:
    """Each answer by its own age, also one that came from elsewhere."""
    now = [1000.0]
    memory = MemoryAnswers(max_bytes=10**6, ttl=10, clock=lambda: now[0])
    memory.put(KEY, kept(5, made=1000.0))
    memory.put(OTHER, kept(5, made=994.0))
    now[0] = 1004.5
    assert (memory.get(KEY) is not None, memory.get(OTHER)) == (True, None)
    now[0] = 1010.0
    assert (len(memory), memory.size) == (0, 0)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4000)), max_size=60))
def test_memory_is_bounded_by_bytes(puts: list[tuple[int, int]]) -> None:
    """Whatever is put, also what is larger than all the room; the last one that fits is there."""
    memory = MemoryAnswers(max_bytes=9000, ttl=10, clock=lambda: 5.0)
    for name, size in puts:
        memory.put(b"%d" % name, kept(size, made=5.0))
        assert memory.size <= 9000
        assert (memory.get(b"%d" % name) is not None) is (kept(size).size <= 9000)


def test_what_was_used_stays() -> None:
    """The least recently used goes first."""
    memory = MemoryAnswers(max_bytes=kept(0).size * 3, ttl=10, clock=lambda: 0.0)
    for name in (b"a", b"b", b"c"):
        memory.put(name, kept(0))
    assert memory.get(b"a") is not None
    memory.put(b"d", kept(0))
    assert [memory.get(name) is not None for name in (b"a", b"b", b"c", b"d")] == [True, False, True, True]


def test_threads_may_share_it() -> None:
    """One instance serves the event loops of several threads."""
    memory = MemoryAnswers(max_bytes=20_000, ttl=10, clock=lambda: 0.0)
    faults: list[BaseException] = []

    def work(mine: int) -> None:
        try:
            for at in range(2000):
                memory.put(b"%d" % (at * mine % 40), kept(at % 900))
                memory.get(b"%d" % (at % 40))
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in (1, 3, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert memory.size <= 20_000

"""Sessions that were signed out, over every kind of store."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from asgi_llm_gateway.errors import StoreError
from asgi_llm_gateway.stores.base import EndedSessions
from asgi_llm_gateway.stores.migrate import upgrade
from asgi_llm_gateway.stores.sessions import MemorySessions, SQLSessions


class Place:
    """A store of one kind; a second opening of it is another process's."""

    def __init__(self, url: str | None) -> None:
        self._url = url
        self._memory = MemorySessions()
        self._opened: list[EndedSessions] = []
        if url is not None:
            upgrade(url)

    def opened(self) -> EndedSessions:
        """One more opening."""
        self._opened.append(self._memory if self._url is None else SQLSessions(self._url))
        return self._opened[-1]

    async def close(self) -> None:
        """All of them."""
        for one in self._opened:
            await one.close()


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Each kind of store in turn."""
    if request.param == "memory":
        return Place(None)
    return Place(
        f"sqlite:///{tmp_path}/gateway.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    )


async def test_what_one_worker_ended_the_others_know(place: Place) -> None:
    """And no other session."""
    here, there = place.opened(), place.opened()
    assert not await here.ended("one")
    await here.end("one", until=100.0, now=10.0)
    assert await here.ended("one")
    assert await there.ended("one")
    assert not await there.ended("two")
    await place.close()


async def test_a_session_may_end_twice_and_at_once(place: Place) -> None:
    """By one worker and by many."""
    stores = [place.opened() for _ in range(5)]
    await asyncio.gather(*(one.end("one", until=100.0, now=10.0) for one in stores for _ in range(3)))
    assert await stores[0].ended("one")
    await place.close()


async def test_what_would_have_ended_by_itself_is_forgotten(place: Place) -> None:
    """When the next one ends: the list stays as short as a few hours of signing out."""
    store = place.opened()
    await store.end("old", until=100.0, now=10.0)
    await store.end("young", until=200.0, now=50.0)
    assert await store.ended("old")
    await store.end("new", until=300.0, now=100.0)
    assert [await store.ended(name) for name in ("old", "young", "new")] == [False, True, True]
    await place.close()


async def test_a_database_without_tables_is_a_store_error(database_url: str) -> None:
    """Every verb, and no word of the URL."""
    store = SQLSessions(database_url)
    with pytest.raises(StoreError) as told:
        await store.ended("one")
    assert database_url not in str(told.value)
    with pytest.raises(StoreError):
        await store.end("one", until=1.0, now=0.0)
    await store.close()

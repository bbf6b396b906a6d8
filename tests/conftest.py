"""Fixtures for all tests: async tests without a plugin, clean settings, a store of their own."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asgi_llm_gateway import settings
from asgi_llm_gateway._closing import close_all

_OURS = tuple(name.upper() for name in settings.Settings.model_fields)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an ``async def`` test in an event loop of its own, and close what it opened there."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}

    async def closing() -> None:
        try:
            async with asyncio.timeout(120):
                await pyfuncitem.obj(**arguments)
        finally:
            await close_all()

    asyncio.run(closing())
    return True


@pytest.fixture(autouse=True)
def clean_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """No setting of the machine reaches a test, and each has a data folder of its own."""
    telemetry = [name for name in os.environ if name.startswith("OTEL_")]
    for name in (
        *_OURS,
        *telemetry,
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GATEWAY_DATA_DIR", str(tmp_path / "data"))
    settings.forget()
    yield
    settings.forget()

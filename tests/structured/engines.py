"""Both engines, for tests that must come out the same with each."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from asgi_llm_gateway.structured.engines import Maker
from asgi_llm_gateway.structured.fast import Fast
from asgi_llm_gateway.structured.plain import Plain

_IMPORTING = {"jsonschema_rs": ("fast",), "jsonschema": ("plain", "keywords")}

ENGINES: tuple[type[Maker], ...] = (Plain, Fast)


def uninstall(patch: pytest.MonkeyPatch, *packages: str) -> None:
    """As if packages were not installed, until the patch is undone."""
    for name in packages:
        patch.setitem(sys.modules, name, None)
        for module in _IMPORTING[name]:
            patch.delitem(sys.modules, f"asgi_llm_gateway.structured.{module}", raising=False)


@pytest.fixture(scope="module", params=["jsonschema", "jsonschema-rs"])
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """The whole module with the one package, and then with the other beside it."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "jsonschema":
            uninstall(patch, "jsonschema_rs")
        yield request.param


__all__ = ["ENGINES", "engine", "uninstall"]

"""A dashboard of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..stores.conftest import database_url as database_url
from ..stores.conftest import postgres_server as postgres_server
from ..stores.conftest import postgres_url as postgres_url
from .desk import Desk


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A dashboard over a store in memory."""
    return Desk(tmp_path / "data")

"""The stage of a whole file, and an account for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .stage import Account, Stage, playing, staged


@pytest.fixture(scope="module")
def whole_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The gateway's process and its providers."""
    with staged(tmp_path_factory.mktemp("matrix")) as made:
        yield made


@pytest.fixture
def stage(whole_stage: Stage) -> Iterator[Stage]:
    """The same for one test."""
    with playing(whole_stage):
        yield whole_stage


@pytest.fixture
def account(stage: Stage) -> Account:
    """A tenant that nobody else uses."""
    return Account(stage)

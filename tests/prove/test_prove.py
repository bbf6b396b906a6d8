"""The proof, short: three processes a store, some seconds of faults. ``make prove`` runs it long."""

from __future__ import annotations

import os
import random

import pytest

from .run import prove
from .stages import NAMES

SEED = 20_261_124


@pytest.mark.parametrize(
    "backend", [name if name == "sqlite" else pytest.param(name, marks=pytest.mark.real) for name in NAMES]
)
def test_no_budget_is_passed_and_no_call_is_lost(backend: str) -> None:
    """P1 to P3 and I1 to I9, over killed, frozen and ill-timed processes, and a store that is locked, frozen or killed.

    GATEWAY_PROVE_SEED chooses other faults; 0 chooses by chance.
    """
    seed = int(os.environ.get("GATEWAY_PROVE_SEED", SEED)) or random.randrange(1, 2**31)
    report = prove(backend, seconds=3.0, workers=3, seed=seed, ttl=1.0, longest=1.3)
    text = report.text()
    assert not report.verdict.violations, text
    assert report.faults["worker killed"], text
    assert report.verdict.checked["P1 for every grant"] > 100, text
    assert report.verdict.checked["P3 sum of records = balance"], text


@pytest.mark.real
@pytest.mark.parametrize("backend", NAMES)
def test_it_holds_for_longer_with_faults_by_chance(backend: str) -> None:
    """The same for half a minute, with another seed each time; a failure tells its seed."""
    report = prove(backend, seconds=30.0, workers=4, seed=random.randrange(1, 2**31))
    text = report.text()
    print(text)
    assert not report.verdict.violations, text

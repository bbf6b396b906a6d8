"""All of it at length: other examples each time, and many more of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..servers import ROOT

pytestmark = pytest.mark.real
MANY = "1500"


def test_nothing_is_found_by_looking_longer() -> None:
    """``FUZZ_EXAMPLES`` sets how long; what is found is printed with the example that shows it."""
    environment = {**os.environ, "FUZZ_EXAMPLES": os.environ.get("FUZZ_EXAMPLES") or MANY}
    command = [sys.executable, "-m", "pytest", "-m", "not real", str(Path(__file__).parent), "-n", "2"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3000, check=False)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5000:]

"""``python -m tests.prove [--backend sqlite|postgresql|redis|all] [--seconds 60] [--workers 3] [--seed N]``."""

from __future__ import annotations

import argparse
import random
import sys

from .run import prove
from .stages import NAMES


def main() -> int:
    """Run, print the reports; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.prove", description=sys.modules["tests.prove"].__doc__)
    parser.add_argument("--backend", choices=(*NAMES, "all"), default="all")
    parser.add_argument("--seconds", type=float, default=60.0, help="of faults, for each backend")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = random.randrange(2**31) if options.seed is None else options.seed
    broken = 0
    for backend in NAMES if options.backend == "all" else (options.backend,):
        report = prove(backend, seconds=options.seconds, workers=options.workers, seed=seed)
        sys.stdout.write(report.text() + "\n")
        sys.stdout.flush()
        broken += len(report.verdict.violations)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

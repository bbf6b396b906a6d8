"""What all commands share: how they speak, how they run, how they read what was typed."""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from collections.abc import Coroutine, Sequence
from typing import Any

from .._closing import close_all
from ..keys import check_tenant_id
from ..periods import seconds_of

Commands = Any
"""argparse's collection of subcommands, which has no public name."""


class Mistake(Exception):
    """What was asked can't be done; the message is for whoever typed it."""


def say(text: str) -> None:
    """Print to the terminal, never through logging: a key may be in it."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def put(data: bytes) -> None:
    """Print JSON or CSV as it is."""
    sys.stdout.write(data.decode())


def fail(text: str) -> int:
    """Say what went wrong on stderr, in one line; the exit code."""
    sys.stderr.write(f"error: {' '.join(text.split())}\n")
    return 1


def run(work: Coroutine[Any, Any, int]) -> int:
    """Run a command to its end, and close what it opened."""

    async def closing() -> int:
        try:
            return await work
        finally:
            await close_all()

    return asyncio.run(closing())


def table(rows: Sequence[Sequence[str]], numbers: int) -> str:
    """Rows in columns, the last ``numbers`` of them to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    first = len(widths) - numbers
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if at >= first else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def number(name: str, text: str) -> int | None:
    """A whole number; ``none`` is no limit. Raises Mistake."""
    if text == "none":
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise Mistake(f"{name}: a whole number, or 'none' for no limit")
    return int(text)


def names(text: str) -> list[str] | None:
    """Names with commas between; ``all`` is no limit."""
    return None if text == "all" else [part.strip() for part in text.split(",") if part.strip()]


def seconds(option: str, text: str) -> int:
    """The seconds of a duration as typed. Raises Mistake."""
    try:
        return seconds_of(text)
    except ValueError:
        raise Mistake(f"{option}: a duration such as 90s, 30m, 12h or 30d") from None


def tenant_id(text: str) -> str:
    """A tenant's id as typed. Raises Mistake."""
    try:
        return check_tenant_id(text)
    except ValueError as error:
        raise Mistake(str(error)) from None


def add_json(command: argparse.ArgumentParser) -> None:
    """The option ``--json``."""
    command.add_argument("--json", action="store_true", help="print JSON for machines")

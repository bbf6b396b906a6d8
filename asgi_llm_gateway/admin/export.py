"""Rows as CSV that a spreadsheet may open without running what a client wrote."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from ..records import usd_number
from .answers import RecordAnswer

COLUMNS = tuple(RecordAnswer.model_fields)
"""The columns of a call's record: those of its JSON."""

# OWASP, "CSV Injection": what a spreadsheet takes for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def csv_lines(rows: Iterable[Sequence[Any]]) -> bytes:
    """Rows as CSV (RFC 4180). Text that would be a formula gets a ``'`` in front; numbers stay numbers."""
    out = io.StringIO()
    csv.writer(out).writerows([_cell(value) for value in row] for row in rows)
    return out.getvalue().encode("utf-8", "backslashreplace")


def csv_of(records: Iterable[RecordAnswer]) -> bytes:
    """Records as lines of CSV; amounts are exact decimals, flags are separated by spaces."""
    return csv_lines([_value(name, value) for name, value in record] for record in records)


class Exact(str):
    """A number as text, digit by digit."""

    __slots__ = ()


def _value(name: str, value: Any) -> Any:
    if name.endswith("_usd") and value is not None:
        return Exact(usd_number(value))
    return " ".join(value) if isinstance(value, tuple) else value


def _cell(value: Any) -> Any:
    if isinstance(value, str) and not isinstance(value, Exact) and value.startswith(_FORMULA):
        return "'" + value
    return value


HEAD = csv_lines([COLUMNS])
"""The first line of a file of records."""

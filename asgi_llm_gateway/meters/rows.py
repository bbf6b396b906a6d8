"""Counts by label, in plain integers; where several processes share a folder, written through to a file of this one.

The file is what ``prometheus_client`` itself keeps there in its multi-process mode, so that its ``MultiProcessCollector``
(ours, or that of the host app's own page) adds all processes up. Source: prometheus_client documentation, "Multiprocess Mode".
"""

from __future__ import annotations

import logging
import os
import time
from bisect import bisect_left
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Protocol

try:
    from prometheus_client.mmap_dict import MmapedDict, mmap_key
    from prometheus_client.utils import floatToGoString
except ModuleNotFoundError as error:  # pragma: no cover - tried in a bare environment by the packaging test
    raise ModuleNotFoundError("metrics need: pip install 'asgi-llm-gateway[metrics]'", name=error.name) from None

from .bounds import OTHER
from .families import Family

log = logging.getLogger("asgi_llm_gateway")

MOST_ROWS = 10_000
"""Label sets of one metric; all beyond are counted as ``other``."""

_INF = float("inf")
_serial = count()
# The client library has no hints for these.
_mapped: Callable[[Path], File] = MmapedDict
bound_text: Callable[[float], str] = floatToGoString
"""A bucket's upper bound as the formats write it."""


class File(Protocol):
    """Where values are written through to (MmapedDict)."""

    def read_value(self, key: str) -> tuple[float, float]:
        """The value of a key, and a time."""
        ...

    def write_value(self, key: str, value: float, timestamp: float) -> None:
        """Keep a value."""
        ...

    def close(self) -> None:
        """Write no more."""
        ...


class Files:
    """This process's files in the shared folder; opened when the first value is counted.

    A process that dies leaves its counts there, as it should: they were counted. A file of the same name, left by a
    process that had this one's number, is gone on with.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._name = f"gateway{next(_serial)}"  # others in this process may have files of their own
        self._open: dict[str, File | None] = {}

    def of(self, kind: str) -> File | None:
        """The file of counters or histograms; ``None`` where there can be none, which is logged once."""
        if kind not in self._open:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._open[kind] = _mapped(self._folder / f"{kind}_{self._name}_{os.getpid()}.db")
            except OSError as error:
                log.error("PROMETHEUS_MULTIPROC_DIR=%s: %s; this process's metrics are not counted there", self._folder,
                          error.strerror)  # fmt: skip
                self._open[kind] = None
        return self._open[kind]

    def close(self) -> None:
        """Let go of the files, which stay."""
        for file in self._open.values():
            if file is not None:
                file.close()
        self._open.clear()


class Row:
    """One counter: an exact integer, and the key under which it is written through."""

    __slots__ = ("key", "value")

    def __init__(self) -> None:
        self.value = 0
        self.key: str | None = None


class Counts:
    """A counter family. Not locked: whoever adds holds the meters' lock."""

    def __init__(self, family: Family, files: Files | None) -> None:
        self.family = family
        self.rows: dict[tuple[str, ...], Row] = {}
        self._files = files
        self._file: File | None = None
        self._rest = (OTHER,) * len(family.labels)

    def add(self, labels: tuple[str, ...], amount: int = 1) -> None:
        """Count ``amount`` (in the family's own unit) on these labels' row."""
        row = self.rows.get(labels)
        if row is None:
            row = self._begin(labels)
        row.value += amount
        if row.key is not None and self._file is not None:
            # One division, rounded once: the sum of a million small amounts is as exact as a float can be.
            self._file.write_value(row.key, row.value / self.family.scale, 0.0)

    def _begin(self, labels: tuple[str, ...]) -> Row:
        if len(self.rows) >= MOST_ROWS:
            labels = self._rest
            if labels in self.rows:
                return self.rows[labels]
        row = Row()
        family = self.family
        if self._files is not None and (file := self._files.of("counter")) is not None:
            self._file = file
            row.key = mmap_key(family.base, family.name, list(family.labels), list(labels), family.help)
            row.value = round(file.read_value(row.key)[0] * family.scale)
        self.rows[labels] = row
        return row


class Spread:
    """One histogram's counts: not added up, one for each bucket, the last without an upper bound."""

    __slots__ = ("buckets", "exemplars", "keys", "sum")

    def __init__(self, buckets: int) -> None:
        self.sum = 0.0
        self.buckets = [0] * buckets
        self.exemplars: list[tuple[str, float, float] | None] = [None] * buckets
        self.keys: list[str] | None = None
        """Of each bucket, and of the sum."""


class Histograms:
    """A histogram family. Not locked, as Counts."""

    def __init__(self, family: Family, files: Files | None) -> None:
        self.family = family
        self.rows: dict[tuple[str, ...], Spread] = {}
        self.bounds = family.bounds
        self._files = files
        self._file: File | None = None
        self._rest = (OTHER,) * len(family.labels)

    def observe(self, labels: tuple[str, ...], value: float, trace_id: str = "") -> None:
        """Count one value in seconds; the trace's id is the bucket's latest exemplar."""
        row = self.rows.get(labels)
        if row is None:
            row = self._begin(labels)
        at = bisect_left(self.bounds, value)
        row.buckets[at] += 1
        row.sum += value
        if row.keys is not None and self._file is not None:
            self._file.write_value(row.keys[at], row.buckets[at], 0.0)
            self._file.write_value(row.keys[-1], row.sum, 0.0)
        elif trace_id:
            row.exemplars[at] = (trace_id, value, time.time())

    def _begin(self, labels: tuple[str, ...]) -> Spread:
        if len(self.rows) >= MOST_ROWS:
            labels = self._rest
            if labels in self.rows:
                return self.rows[labels]
        family = self.family
        row = Spread(len(self.bounds) + 1)
        if self._files is not None and (file := self._files.of("histogram")) is not None:
            self._file = file
            names, values = list(family.labels), list(labels)
            row.keys = [
                mmap_key(
                    family.name, f"{family.name}_bucket", [*names, "le"], [*values, bound_text(bound)], family.help
                )
                for bound in (*self.bounds, _INF)
            ]
            row.keys.append(mmap_key(family.name, f"{family.name}_sum", names, values, family.help))
            row.buckets = [int(file.read_value(key)[0]) for key in row.keys[:-1]]
            row.sum = file.read_value(row.keys[-1])[0]
        self.rows[labels] = row
        return row


__all__ = ["MOST_ROWS", "Counts", "Files", "Histograms", "Row", "Spread"]

"""What this process counts: one set of metrics for all its event loops, stacks and threads."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from ..records import CallRecord, Usage
from . import families as f
from .bounds import Bound
from .families import Family
from .rows import Counts, Files, Histograms

MOST_LABELS = 200
"""Distinct tenants, and as many models, that are told apart where the settings say nothing else."""

_CODES = 100  # error codes that are told apart; a provider may make up any number of them


class Reading(NamedTuple):
    """A value that somebody else keeps, asked for when metrics are read. A counter's is the sum since the process began."""

    family: Family
    labels: tuple[str, ...]
    value: float


Source = Callable[[], Iterable[Reading]]


class Meters:
    """The counts, and who is asked for more when they are read.

    Money and tokens come from ``booked`` alone: each record that the ledger has acknowledged, once. Whoever adds by hand
    holds ``lock``.

    Args:
        max_tenants: Tenants that are told apart; all later ones are ``other``.
        max_models: Models that are told apart.
        folder: Where the processes of one gateway share their counts (PROMETHEUS_MULTIPROC_DIR); ``None``: this is the
            only one.
    """

    def __init__(
        self, *, max_tenants: int = MOST_LABELS, max_models: int = MOST_LABELS, folder: Path | None = None
    ) -> None:
        self.max_tenants = max_tenants
        self.max_models = max_models
        self.folder = folder
        self.sources: list[Source] = []
        self._begin()
        _all.add(self)

    def _begin(self) -> None:
        """All counts at zero."""
        self.lock = threading.Lock()
        self.tenants = Bound(self.max_tenants)
        self.models = Bound(self.max_models)
        self.providers = Bound(self.max_models)
        self.codes = Bound(_CODES)
        self.in_flight = 0
        files = self._files = Files(self.folder) if self.folder is not None else None
        self.requests, self.tokens, self.details, self.cost, self.calls, self.budget, self.limited, self.errors, \
            self.attempts, self.cache, self.saved, self.aborted = (Counts(one, files) for one in f.COUNTED)  # fmt: skip
        self._told: dict[str, Counts] = {}
        self._before: dict[tuple[str, tuple[str, ...]], int] = {}
        self.duration, self.first, self.per_output = (Histograms(one, files) for one in f.OBSERVED)

    @property
    def counted(self) -> tuple[Counts, ...]:
        """The counters."""
        return (self.requests, self.tokens, self.details, self.cost, self.calls, self.budget, self.limited, self.errors,
                self.attempts, self.cache, self.saved, self.aborted)  # fmt: skip

    @property
    def observed(self) -> tuple[Histograms, ...]:
        """The histograms."""
        return self.duration, self.first, self.per_output

    def booked(self, record: CallRecord) -> None:
        """The ledger has taken a call: its money and its tokens are counted."""
        if record.lapsed:
            return
        with self.lock:
            tenant = self.tenants.known.get(record.tenant) or self.tenants.admit(record.tenant)
            model = self.models.known.get(record.model or "") or self.model_of(record.model, record.status)
            self.cost.add((tenant,), record.cost)
            self.calls.add((model, tenant))
            self.used(model, tenant, record.usage)

    def model_of(self, model: str | None, status: int | None) -> str:
        """A model's label. What a client asked for in vain takes up no room."""
        known = self.models.known.get(model) if model is not None else None
        if known is not None:
            return known
        return self.models.admit(model) if status is not None and status < 400 else self.models.find(model)

    def used(self, model: str, tenant: str, usage: Usage) -> None:
        """Count tokens."""
        prompt, completion, cached, cache_write, reasoning, *_ = usage
        if prompt:
            self.tokens.add((model, tenant, "prompt"), prompt)
        if completion:
            self.tokens.add((model, tenant, "completion"), completion)
        if cached:
            self.details.add((model, tenant, "cached"), cached)
        if cache_write:
            self.details.add((model, tenant, "cache_write"), cache_write)
        if reasoning:
            self.details.add((model, tenant, "reasoning"), reasoning)

    def readings(self) -> list[Reading]:
        """What the sources tell now; of two that tell of the same thing the larger value, as a series stands there once."""
        found: dict[tuple[str, tuple[str, ...]], Reading] = {}
        for source in tuple(self.sources):
            for reading in source():
                place = (reading.family.name, reading.labels)
                known = found.get(place)
                if known is None or known.value < reading.value:
                    found[place] = reading
        return list(found.values())

    def tell(self, family: Family, labels: tuple[str, ...], value: float) -> None:
        """Share a counter that somebody else keeps: what it has come to since it was told last."""
        with self.lock:
            told = self._told.get(family.name)
            if told is None:
                told = self._told[family.name] = Counts(family, self._files)
            before = self._before.get((family.name, labels), 0)
            self._before[family.name, labels] = int(value)
            told.add(labels, int(value) - before)

    def reset(self) -> None:
        """Begin anew, as in a process that was forked: its parent's counts are the parent's."""
        self._begin()

    def close(self) -> None:
        """Let go of the shared files; the counts stay there."""
        _all.discard(self)
        if self._files is not None:
            self._files.close()


_all: weakref.WeakSet[Meters] = weakref.WeakSet()


def _forked() -> None:
    for meters in tuple(_all):
        meters.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)

__all__ = ["MOST_LABELS", "Meters", "Reading", "Source"]

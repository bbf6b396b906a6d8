"""The counts as Prometheus reads them: of this process, or of all that share a folder.

Formats: Prometheus documentation, "Exposition formats" (text 0.0.4) and OpenMetrics 1.0 (which has exemplars), as the
reader's ``Accept`` asks.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Gauge
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.metrics_core import Metric
    from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
    from prometheus_client.registry import Collector
    from prometheus_client.samples import Exemplar
except ModuleNotFoundError as error:  # tried in a bare environment by the packaging test
    raise ModuleNotFoundError(
        "MetricsMiddleware needs: pip install 'asgi-llm-gateway[metrics]'", name=error.name
    ) from None

from .families import IN_FLIGHT, OBSERVED, Family
from .meters import Meters, Reading
from .rows import Counts, Histograms, Spread, bound_text

log = logging.getLogger("asgi_llm_gateway")

_INF = float("inf")
# The client library has no hints for these.
_collect_all: Callable[[CollectorRegistry, str], Collector] = MultiProcessCollector
_forget: Callable[[int, str], None] = mark_process_dead


def metric_of(family: Family) -> Metric:
    """The family without its samples."""
    return Metric(family.base, family.help, family.kind)


def counts_of(counts: Counts) -> Metric:
    """A counter's samples."""
    family = counts.family
    metric = metric_of(family)
    for labels, row in list(counts.rows.items()):
        metric.add_sample(family.name, dict(zip(family.labels, labels, strict=True)), row.value / family.scale)
    return metric


def histogram_of(histograms: Histograms) -> Metric:
    """A histogram's samples: buckets added up, as the formats want them."""
    family = histograms.family
    metric = metric_of(family)
    bounds = [bound_text(bound) for bound in (*family.bounds, _INF)]
    for values, row in list(histograms.rows.items()):
        labels = dict(zip(family.labels, values, strict=True))
        _spread(metric, family.name, labels, bounds, row)
    return metric


def _spread(metric: Metric, name: str, labels: dict[str, str], bounds: Sequence[str], row: Spread) -> None:
    total, added = row.sum, 0
    for bound, counted, exemplar in zip(bounds, list(row.buckets), list(row.exemplars), strict=True):
        added += counted
        shown = None if exemplar is None else Exemplar({"trace_id": exemplar[0]}, exemplar[1], exemplar[2])
        metric.add_sample(f"{name}_bucket", {**labels, "le": bound}, added, exemplar=shown)
    metric.add_sample(f"{name}_count", labels, added)
    metric.add_sample(f"{name}_sum", labels, total)


def gathered(readings: Iterable[Reading]) -> list[Metric]:
    """Readings as metrics, one for each family."""
    found: dict[str, Metric] = {}
    for family, labels, value in readings:
        metric = found.get(family.name)
        if metric is None:
            metric = found[family.name] = metric_of(family)
        metric.add_sample(family.name, dict(zip(family.labels, labels, strict=True)), value)
    return list(found.values())


class MetersCollector(Collector):
    """The counts of one process, for a registry of ``prometheus_client``."""

    def __init__(self, meters: Meters) -> None:
        self._meters = meters

    def describe(self) -> Iterator[Metric]:
        """The names, so that the registry can tell when they are taken."""
        for counts in self._meters.counted:
            yield metric_of(counts.family)
        for family in (*OBSERVED, IN_FLIGHT):
            yield metric_of(family)

    def collect(self) -> Iterator[Metric]:
        """The samples now."""
        meters = self._meters
        for counts in meters.counted:
            yield counts_of(counts)
        for histograms in meters.observed:
            yield histogram_of(histograms)
        yield from gathered([*meters.readings(), Reading(IN_FLIGHT, (), meters.in_flight)])


class _Page:
    """What a page shows: all that ``registry`` has, and some readings beside it."""

    def __init__(self, registry: Collector, more: Sequence[Reading]) -> None:
        self._registry = registry
        self._more = more

    def collect(self) -> Iterator[Metric]:
        """The metrics, each name once."""
        yield from self._registry.collect()
        yield from gathered(self._more)


def render(meters: Meters, accept: str, more: Sequence[Reading] = ()) -> tuple[bytes, str]:
    """The page and its content type. It takes milliseconds for every few hundred samples: not for an event loop.

    Args:
        meters: Where several processes share a folder, all of them are added up.
        accept: The ``Accept`` header, which chooses the format.
        more: Shown beside them.
    """
    encode, content_type = choose_encoder(accept)
    if meters.folder is not None and _there(meters.folder):
        _bury(meters.folder)
        share(meters)
        registry: Collector = _together(meters.folder)
    else:
        registry = REGISTRY if registered(meters) else _alone(meters)
    return encode(_Page(registry, more)), content_type


def _alone(meters: Meters) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(MetersCollector(meters))
    return registry


def _together(folder: Path) -> CollectorRegistry:
    registry = CollectorRegistry()
    _collect_all(registry, str(folder))
    return registry


def _there(folder: Path) -> bool:
    """Whether the folder is there, or could be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # logged when the first value was to be written
        return False
    return True


# -- the host app's own page -------------------------------------------------------------------------------------------

_registered: dict[int, MetersCollector] = {}


def register(meters: Meters) -> None:
    """Show the counts on the host app's own page of ``prometheus_client`` too. In multi-process mode its page has them anyway.

    Raises ValueError where the host app has metrics of those names.
    """
    if meters.folder is None and id(meters) not in _registered:
        collector = MetersCollector(meters)
        REGISTRY.register(collector)
        _registered[id(meters)] = collector


def registered(meters: Meters) -> bool:
    """Whether the default registry has them."""
    return id(meters) in _registered


# -- gauges of several processes ---------------------------------------------------------------------------------------

_gauges: dict[str, Gauge] = {}


def share(meters: Meters) -> None:
    """Tell the other processes what only this one can tell: its gauges, and the counters that others keep."""
    if meters.folder is None or not _there(meters.folder):
        return
    _gauge(IN_FLIGHT, "livesum").set(meters.in_flight)
    for family, labels, value in meters.readings():
        if family.kind == "gauge":
            gauge = _gauge(family, "livemax")
            (gauge.labels(*labels) if labels else gauge).set(value)
        else:
            meters.tell(family, labels, value)


def _gauge(family: Family, mode: Literal["livesum", "livemax"]) -> Gauge:
    found = _gauges.get(family.name)
    if found is None:
        name, told, labels = family.name, family.help, family.labels
        found = _gauges[name] = Gauge(name, told, labels, registry=None, multiprocess_mode=mode)
    return found


def _bury(folder: Path) -> None:
    """Take away the gauges of processes that are no more: what they had open, nobody has open."""
    for file in folder.glob("gauge_live*.db"):
        pid = file.stem.rpartition("_")[2]
        if pid.isdigit() and not _lives(int(pid)):
            _forget(int(pid), str(folder))


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


__all__ = ["MetersCollector", "counts_of", "gathered", "histogram_of", "register", "registered", "render", "share"]

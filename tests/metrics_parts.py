"""Meters of a test's own, and what they show when Prometheus asks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from asgi_llm_gateway import booked
from asgi_llm_gateway.meters.exposition import render
from asgi_llm_gateway.meters.meters import Meters

Labels = tuple[tuple[str, str], ...]
Samples = Mapping[str, Mapping[Labels, float]]


@contextmanager
def counting(*, max_tenants: int = 200, max_models: int = 200, folder: Path | None = None) -> Iterator[Meters]:
    """Meters that are told of every booked call, for so long as the block lasts."""
    meters = Meters(max_tenants=max_tenants, max_models=max_models, folder=folder)
    booked.listen(meters.booked)
    try:
        yield meters
    finally:
        booked.ignore(meters.booked)
        meters.close()


def samples(text: str) -> Samples:
    """A page's values by the sample's name and its labels, sorted."""
    found: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def shown(meters: Meters) -> Samples:
    """What a page of these meters shows, in Prometheus's plain text format."""
    return samples(render(meters, "")[0].decode())


def value(found: Samples, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels; 0 where there are none."""
    wanted = set(labels.items())
    return sum(one for had, one in found.get(name, {}).items() if wanted <= set(had))

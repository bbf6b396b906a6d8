"""The meters of this process's settings: made on first use, and shared by all who are given none."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import lru_cache

from .. import booked
from ..logs import lost_lines
from ..rates.tally import TALLY
from ..settings import current
from ..traces.writer import lost_traces
from .exposition import register
from .families import LOG_DROPPED, RATE_EVENTS, RATE_REDIS_DOWN, TRACES_LOST
from .meters import Meters, Reading

log = logging.getLogger("asgi_llm_gateway")


@lru_cache(maxsize=1)
def shared_meters() -> Meters:
    """The process's meters. They count every call that the process books, and stand on the host app's own page too."""
    settings = current()
    meters = Meters(
        max_tenants=settings.metrics_max_tenants,
        max_models=settings.metrics_max_models,
        folder=settings.prometheus_multiproc_dir,
    )
    meters.sources += (rate_events, log_lines, traces)
    booked.listen(meters.booked)
    try:
        register(meters)
    except ValueError as error:  # names that the host app has taken: our own page has ours all the same
        log.warning("the metrics do not stand in prometheus_client's registry: %s", error)
    return meters


def rate_events() -> Iterator[Reading]:
    """What the rate limits of this process did."""
    for event in ("admitted", "queued", "gave_up", "left", "local", "shared_lost"):
        yield Reading(RATE_EVENTS, (event,), getattr(TALLY, event))
    for measure, refused in TALLY.refused.items():
        yield Reading(RATE_EVENTS, (f"refused_{measure}",), refused)
    yield Reading(RATE_REDIS_DOWN, (), min(1, TALLY.shared_down))


def log_lines() -> Iterator[Reading]:
    """What the log of this process could not take."""
    yield Reading(LOG_DROPPED, (), lost_lines())


def traces() -> Iterator[Reading]:
    """Calls of which this process could keep no trace."""
    yield Reading(TRACES_LOST, (), lost_traces())


__all__ = ["log_lines", "rate_events", "shared_meters", "traces"]

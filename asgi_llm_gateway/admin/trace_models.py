"""What ``/api/traces`` takes and gives."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from ..settings import TenantId
from ..traces.base import Step, Trace, TraceQuery
from .answers import Usd
from .models import MAX_PAGE, ModelName, Moment, Name

_STATUS = re.compile(r"[1-5](?:xx|[0-9][0-9])")
_MILLISECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,3})?")


def status_range(value: Any) -> tuple[int, int]:
    """From which HTTP status to which, of ``200`` or ``5xx``. Raises ValueError."""
    text = str(value)
    if not _STATUS.fullmatch(text):
        raise ValueError("an HTTP status such as 429, or a class such as 5xx")
    if text.endswith("xx"):
        return int(text[0]) * 100, int(text[0]) * 100 + 99
    return int(text), int(text)


def milliseconds(value: Any) -> float:
    """Milliseconds in seconds. Raises ValueError."""
    text = str(value)
    if not _MILLISECONDS.fullmatch(text):
        raise ValueError("milliseconds, at most 3 decimals")
    return float(text) / 1000


Statuses = Annotated[
    tuple[int, int],
    BeforeValidator(status_range),
    WithJsonSchema({"type": "string", "pattern": f"^{_STATUS.pattern}$", "description": "429, or 5xx for a class."}),
]
Milliseconds = Annotated[
    float, BeforeValidator(milliseconds), WithJsonSchema({"type": "number", "minimum": 0, "maximum": 999_999_999.999})
]
ErrorCode = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.-]+$")]


class TracesQuery(BaseModel):
    """Which calls, newest first."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=100, ge=1, le=MAX_PAGE)
    cursor: Name | None = Field(default=None, description="The ``next`` of the page before.")
    tenant: TenantId | None = Field(default=None, description="A tenant's own key gets its own in any case.")
    model: ModelName | None = Field(default=None, description="The name that was asked for.")
    status: Statuses | None = None
    min_ms: Milliseconds | None = Field(default=None, description="Calls that took so long or longer.")
    since: Moment | None = Field(default=None, description="Begun at or after.")
    until: Moment | None = Field(default=None, description="Begun before.")
    error: ErrorCode | None = Field(default=None, description="An error code; ``any`` for any.")

    def for_store(self, tenant: str | None) -> TraceQuery:
        """As the store is asked, for the calls of ``tenant``, or of all."""
        return TraceQuery(
            limit=self.limit,
            cursor=self.cursor,
            tenant=tenant,
            model=self.model,
            status=self.status,
            min_duration=self.min_ms,
            since=self.since,
            until=self.until,
            error=self.error,
        )


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StepAnswer(_Answer):
    """A part of a call: when it began after the call did, and how long it took (0: a moment), in milliseconds.

    ``detail`` is of an attempt: ``provider``, ``model``, ``status``, ``error``.
    """

    name: str
    start_ms: float
    ms: float
    detail: dict[str, str | int | None] | None


class TraceAnswer(_Answer):
    """A call as it went. ``null`` is what was not known when it ended. ``started`` is Unix seconds."""

    trace_id: str
    request_id: str
    started: float
    tenant: str | None
    key_id: str | None
    model: str | None
    provider: str | None
    method: str
    path: str
    status: int | None
    stream: bool
    duration_ms: float | None
    first_byte_ms: float | None
    tokens_in: int | None
    tokens_out: int | None
    tokens_cached: int | None
    cost_usd: Usd | None
    saved_usd: Usd | None
    error: str | None
    aborted: bool
    cache: str | None
    attempts: int


class TraceSteps(TraceAnswer):
    """A call with its steps, in the order in which they began."""

    steps: list[StepAnswer]


class TracesAnswer(_Answer):
    """Calls, newest first; ``next`` is the ``cursor`` of the next page."""

    data: list[TraceAnswer]
    next: str | None


class TraceCallsAnswer(_Answer):
    """All calls of one trace, oldest first."""

    data: list[TraceSteps]


def trace_answer(trace: Trace) -> TraceAnswer:
    """A call as a row of a list."""
    return TraceAnswer(**_fields(trace))


def trace_steps(trace: Trace) -> TraceSteps:
    """A call with its steps."""
    return TraceSteps(**_fields(trace), steps=[_step(step) for step in trace.steps])


def _fields(trace: Trace) -> dict[str, Any]:
    found = trace._asdict()
    found["key_id"] = found.pop("key")
    found["cost_usd"], found["saved_usd"] = found.pop("cost"), found.pop("saved")
    found["duration_ms"], found["first_byte_ms"] = _ms(found.pop("duration")), _ms(found.pop("first_byte"))
    del found["seq"], found["steps"]
    return found


def _step(step: Step) -> StepAnswer:
    detail = None if step.detail is None else dict(step.detail)
    return StepAnswer(name=step.name, start_ms=_ms(step.start) or 0, ms=_ms(step.seconds) or 0, detail=detail)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)

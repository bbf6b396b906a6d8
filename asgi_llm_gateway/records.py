"""What the parts hand to each other: plain records without behaviour.

Money is integer nano-USD (1e-9 USD), time is Unix seconds as float, tokens are int.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

NANO_PER_USD = 1_000_000_000
"""Nano-USD in one US dollar."""

Dialect = Literal["chat", "completions", "embeddings", "responses", "messages"]
"""The APIs whose requests are read."""

DEFAULT_TENANT = "default"
"""The tenant of a stack that has no TenantMiddleware."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """A team that spends money. ``budget`` is nano-USD for the tenant's lifetime, ``None`` is no limit."""

    id: str
    name: str = ""
    budget: int | None = None
    enabled: bool = True
    allowed_models: tuple[str, ...] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    created: float = 0.0


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A virtual key as it is stored: ``digest`` is the SHA-256 of the secret, in hex. The secret itself is nowhere."""

    id: str
    tenant: str
    digest: str
    name: str = ""
    created: float = 0.0
    expires: float | None = None
    revoked: float | None = None
    also_tenants: tuple[str, ...] = ()
    allowed_models: tuple[str, ...] | None = None


class Identity(NamedTuple):
    """Who is calling: the key, and the tenant that it acts for."""

    tenant: Tenant
    key: ApiKey | None


class Usage(NamedTuple):
    """Tokens of one call. ``cached`` and ``cache_write`` are part of ``prompt``, ``reasoning`` is part of ``completion``.

    ``estimated`` marks counts that the provider did not report.
    """

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    cache_write: int = 0
    reasoning: int = 0
    estimated: bool = False

    @property
    def total(self) -> int:
        """Prompt and completion tokens together."""
        return self.prompt + self.completion


class Price(NamedTuple):
    """What a model costs, in nano-USD per million tokens. ``local`` marks a model that runs on own machines."""

    prompt: int
    completion: int
    local: bool = False


class Target(NamedTuple):
    """Where one upstream call goes: a configured provider, and the model's name there."""

    provider: str
    model: str


class Hold(NamedTuple):
    """Money set aside for one call. ``amount`` is nano-USD; the hold lapses by itself at ``expires`` (Unix seconds)."""

    id: str
    tenant: str
    amount: int
    expires: float


class Balance(NamedTuple):
    """A tenant's account in nano-USD: ``spent`` is settled, ``held`` is set aside for calls that run."""

    spent: int
    held: int


class CallRecord(NamedTuple):
    """What is booked of one call, in the same step as its money. ``cost`` is nano-USD."""

    request_id: str
    trace_id: str
    tenant: str
    key: str | None
    model: str | None
    provider: str | None
    usage: Usage
    cost: int
    status: int | None
    started: float
    aborted: bool = False
    overdraft: int = 0


@dataclass(slots=True)
class TraceRecord:
    """One call as it went: who, what, how long. It holds no prompt, no answer and no secret."""

    trace_id: str
    request_id: str
    started: float
    method: str
    path: str
    tenant: str | None = None
    model: str | None = None
    provider: str | None = None
    status: int | None = None
    stream: bool = False
    duration: float | None = None
    first_byte: float | None = None
    usage: Usage | None = None
    cost: int | None = None
    error: str | None = None
    aborted: bool = False

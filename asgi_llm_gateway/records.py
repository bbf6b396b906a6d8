"""What the parts hand to each other: plain records without behaviour.

Money is integer nano-USD (1e-9 USD), time is Unix seconds as float, tokens are int.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

NANO_PER_USD = 1_000_000_000
"""Nano-USD in one US dollar."""


def usd_number(nano: int) -> str:
    """Nano-USD as the text of a JSON number of at most nine decimals, exact."""
    sign, nano = ("-", -nano) if nano < 0 else ("", nano)
    whole, part = divmod(nano, NANO_PER_USD)
    return f"{sign}{whole}.{f'{part:09d}'.rstrip('0') or '0'}"


Dialect = Literal[
    "chat", "completions", "embeddings", "responses", "messages",
    "moderations", "transcriptions", "translations", "speech", "images", "image_edits",
]  # fmt: skip
"""The APIs whose requests are read."""

DEFAULT_TENANT = "default"
"""The tenant of a stack that has no TenantMiddleware."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """A team that spends money.

    Attributes:
        budget: Nano-USD for one period; ``None`` is no limit.
        budget_tokens: Tokens (prompt and completion) for one period; ``None`` is no limit.
        period: When the budgets begin anew: ``none`` (never), ``daily``, ``weekly``, ``monthly`` (UTC), or a duration
            such as ``12h`` (see ``periods``).
        soft_limit: Nano-USD in a period, from which on answers carry a warning; nothing is refused for it.
        max_output_tokens: The output limit chosen for a request that names none; an explicit one is never changed.
        rate_requests: Requests in a rate limit's window; ``None`` takes the settings'.
        rate_tokens: Tokens in a rate limit's window; ``None`` is no limit.
        concurrency: Calls at once; ``None`` is no limit.
        allowed_models: Names that may be asked for; ``None`` is all.
    """

    id: str
    name: str = ""
    budget: int | None = None
    enabled: bool = True
    allowed_models: tuple[str, ...] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    created: float = 0.0
    budget_tokens: int | None = None
    period: str = "none"
    soft_limit: int | None = None
    max_output_tokens: int | None = None
    rate_requests: int | None = None
    rate_tokens: int | None = None
    concurrency: int | None = None


KeyKind = Literal["tenant", "admin", "ephemeral"]


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A virtual key as it is stored: ``digest`` is the SHA-256 of the secret, in hex. The secret itself is nowhere.

    ``budget`` is nano-USD that this key may spend of its tenant's budget, in the tenant's period; it is counted on
    ``account``, which a key that takes another's place at a rotation goes on with (empty: the key's own id). An ``admin``
    key opens the admin API and nothing else; its tenant is empty. ``rate_requests``, ``rate_tokens`` (in a rate limit's
    window) and ``concurrency`` (calls at once) limit this key within its tenant's limits; ``None`` is no limit of its own.
    An ``ephemeral`` key is a client secret: until it expires it opens realtime sessions for its tenant, which speak for the
    key whose digest is ``parent``; it does nothing else.
    """

    id: str
    tenant: str
    digest: str
    name: str = ""
    created: float = 0.0
    expires: float | None = None
    revoked: float | None = None
    also_tenants: tuple[str, ...] = ()
    allowed_models: tuple[str, ...] | None = None
    budget: int | None = None
    kind: KeyKind = "tenant"
    account: str = ""
    rate_requests: int | None = None
    rate_tokens: int | None = None
    concurrency: int | None = None
    parent: str = ""


class Identity(NamedTuple):
    """Who is calling: the key, and the tenant that it acts for."""

    tenant: Tenant
    key: ApiKey | None


class Units(NamedTuple):
    """What a call used beside text tokens.

    Attributes:
        images: Images that were made.
        seconds: Seconds of audio that were listened to, begun ones counted whole.
        characters: Characters that were spoken.
        media_in: The part of the prompt's tokens that is audio or images.
        media_out: The part of the answer's tokens that is audio or images.
    """

    images: int = 0
    seconds: int = 0
    characters: int = 0
    media_in: int = 0
    media_out: int = 0


class Usage(NamedTuple):
    """Tokens of one call. ``cached`` and ``cache_write`` are part of ``prompt``, ``reasoning`` is part of ``completion``.

    ``estimated`` marks counts that the provider did not report; ``provider_cost`` is what it says that the call cost, in
    nano-USD, where it does say so. ``units`` is what is measured otherwise than in text tokens; ``None`` where nothing is.
    """

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    cache_write: int = 0
    reasoning: int = 0
    estimated: bool = False
    provider_cost: int | None = None
    units: Units | None = None

    @property
    def total(self) -> int:
        """Prompt and completion tokens together."""
        return self.prompt + self.completion


class Tier(NamedTuple):
    """Prices of a call whose prompt has more than ``above`` tokens, in nano-USD per million tokens."""

    above: int
    prompt: int
    completion: int
    cached: int | None = None
    cache_write: int | None = None


class UnitPrice(NamedTuple):
    """What a model costs beside its text tokens, in nano-USD; ``None``: that costs nothing more.

    Attributes:
        image: An image.
        minute: A minute of audio that is listened to; charged by the second.
        characters: A million characters that are spoken.
        request: A call, whatever it used.
        media_in: A million tokens of the prompt that are audio or images; ``None``: as other tokens.
        media_out: The same of the answer.
        images: Prices of an image by quality and size, where they differ; ``image`` is the dearest then.
    """

    image: int | None = None
    minute: int | None = None
    characters: int | None = None
    request: int | None = None
    media_in: int | None = None
    media_out: int | None = None
    images: tuple[tuple[str, str, int], ...] = ()


class Price(NamedTuple):
    """What a model costs, in nano-USD per million tokens. ``local`` marks a model that runs on own machines.

    ``cached`` and ``cache_write`` are for that part of the prompt; ``None``: as ``prompt``. ``tiers``, in ascending order,
    replace all of it for long prompts. ``context`` is the model's context window in tokens, where it is known. ``units`` is
    what is charged beside text tokens, and comes on top of them.
    """

    prompt: int
    completion: int
    local: bool = False
    cached: int | None = None
    cache_write: int | None = None
    tiers: tuple[Tier, ...] = ()
    context: int | None = None
    units: UnitPrice | None = None


class Target(NamedTuple):
    """Where one upstream call goes: a configured provider, and the model's name there."""

    provider: str
    model: str


# -- the ledger --------------------------------------------------------------------------------------------------------


class Amount(NamedTuple):
    """Money in nano-USD, and tokens: held and settled together."""

    money: int
    tokens: int


class Limit(NamedTuple):
    """What one account may spend in one window, nano-USD and tokens; ``None`` is no limit (and is counted all the same).

    ``account`` is empty for the tenant's own, else the id of a key with a budget. ``window`` is the Unix second at which
    the period began, 0 for a lifetime.
    """

    account: str
    window: int
    money: int | None
    tokens: int | None


class About(NamedTuple):
    """Whose call a hold is for: what is recorded of it if nobody comes back to settle it."""

    request_id: str = ""
    trace_id: str = ""
    key: str | None = None
    model: str | None = None
    started: float = 0.0


class Hold(NamedTuple):
    """Money and tokens set aside for one call, on all ``accounts`` (account and window) alike.

    The hold lapses by itself at ``expires`` (Unix seconds). ``spent`` is what the first account had settled, in nano-USD,
    when the hold was taken.
    """

    id: str
    tenant: str
    money: int
    tokens: int
    expires: float
    accounts: tuple[tuple[str, int], ...] = (("", 0),)
    spent: int = 0


class Refusal(NamedTuple):
    """Which limit a hold would pass, in which of its two measures, and where the account stands in that measure.

    ``what`` is ``ended`` where a hold was to be raised that is no longer there.
    """

    limit: Limit
    what: Literal["money", "tokens", "ended"]
    spent: int
    held: int
    credit: int = 0


class Balance(NamedTuple):
    """An account in one window: ``spent`` is settled, ``held`` is set aside for calls that run, both in nano-USD.

    ``credit`` is what an operator's adjustments add to the limit, in nano-USD (negative: a debit).
    """

    spent: int = 0
    held: int = 0
    tokens_spent: int = 0
    tokens_held: int = 0
    credit: int = 0


class CallRecord(NamedTuple):
    """What is booked of one call, in the same step as its money. ``cost`` is nano-USD.

    ``usage`` counts tokens. A call that is charged by the image, the second, the character or the request has none where
    its provider tells none, and its money all the same.

    ``hold`` is the hold's id, and unlike that of any other record. ``overdraft`` is the part of ``cost`` above what was
    held. ``lapsed``: nobody settled the call (its process died), so that the whole hold was charged. ``provider_cost`` is
    what the provider says that the call cost, in nano-USD.
    """

    hold: str
    tenant: str
    request_id: str = ""
    trace_id: str = ""
    key: str | None = None
    model: str | None = None
    provider: str | None = None
    usage: Usage = Usage()
    cost: int = 0
    status: int | None = None
    started: float = 0.0
    ended: float = 0.0
    aborted: bool = False
    overdraft: int = 0
    lapsed: bool = False
    local: bool = False


AdjustmentKind = Literal["credit", "debit", "overdraft"]


class Adjustment(NamedTuple):
    """A row for each exception from "settled and held never pass the budget".

    ``credit`` and ``debit`` are an operator's, and change what the tenant may spend in ``window``; ``overdraft`` says by how
    much a call cost more than was held, which its record's cost contains. ``amount`` is nano-USD, never negative.
    """

    id: str
    tenant: str
    kind: AdjustmentKind
    amount: int
    reason: str = ""
    window: int = 0
    created: float = 0.0
    by: str = ""


class Stats(NamedTuple):
    """Sums over call records: ``cost`` in nano-USD."""

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: int = 0


class Attempted(NamedTuple):
    """One attempt of a call that needed several: where, the provider's status, the failure's code, seconds since the start."""

    provider: str
    model: str
    status: int | None
    error: str | None
    after: float


@dataclass(slots=True)
class TraceRecord:
    """One call as it went: who, what, how long. It holds no prompt, no answer and no secret.

    ``cache`` is ``hit``, ``joined`` (another's answer, live), ``miss`` or ``bypass``; ``None`` where no cache stands. ``saved``
    is what an answer from the cache had cost, in nano-USD. ``began`` is the ``time.perf_counter()`` at which the call came in.
    ``steps`` is what the call waited for, each with the ``time.perf_counter()`` of its begin and end; ``calls`` are its
    upstream calls: provider, model, begin and end by the same clock (0.0 where there was none), HTTP status, failure's
    code.
    """

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
    attempts: tuple[Attempted, ...] = ()
    cache: str | None = None
    saved: int | None = None
    steps: list[tuple[str, float, float]] = field(default_factory=list)
    key: str | None = None
    began: float = 0.0
    calls: tuple[tuple[str, str, float, float, int | None, str | None], ...] = ()

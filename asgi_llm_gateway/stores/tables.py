"""The tables of every SQL store, in one place; the migrations make them, and a test compares the two.

Money is integer nano-USD, times are Unix seconds, lists and mappings are JSON in a text.
"""

from __future__ import annotations

try:
    import sqlalchemy as sa
except ImportError as error:  # pragma: no cover - tried in a bare environment by the packaging test
    raise ModuleNotFoundError("a SQL store needs: pip install 'asgi-llm-gateway[sql]'", name=error.name) from None

METADATA = sa.MetaData()

TENANTS = sa.Table(
    "tenants",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("budget", sa.BigInteger, nullable=True),
    sa.Column("enabled", sa.Boolean, nullable=False),
    sa.Column("allowed_models", sa.Text, nullable=True),
    sa.Column("metadata", sa.Text, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("budget_tokens", sa.BigInteger, nullable=True),
    sa.Column("period", sa.Text, nullable=False, server_default="none"),
    sa.Column("soft_limit", sa.BigInteger, nullable=True),
    sa.Column("max_output_tokens", sa.BigInteger, nullable=True),
    sa.Column("rate_requests", sa.BigInteger, nullable=True),
    sa.Column("rate_tokens", sa.BigInteger, nullable=True),
    sa.Column("concurrency", sa.BigInteger, nullable=True),
)
"""records.Tenant, field by field."""

KEYS = sa.Table(
    "api_keys",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    # No foreign key: an admin key has no tenant, and keys outlive theirs.
    sa.Column("tenant", sa.String(64), nullable=False, index=True),
    sa.Column("digest", sa.String(64), nullable=False, unique=True),
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("expires", sa.Float, nullable=True),
    sa.Column("revoked", sa.Float, nullable=True),
    sa.Column("also_tenants", sa.Text, nullable=False),
    sa.Column("allowed_models", sa.Text, nullable=True),
    sa.Column("budget", sa.BigInteger, nullable=True),
    sa.Column("kind", sa.Text, nullable=False, server_default="tenant"),
    sa.Column("account", sa.Text, nullable=True),
    sa.Column("rate_requests", sa.BigInteger, nullable=True),
    sa.Column("rate_tokens", sa.BigInteger, nullable=True),
    sa.Column("concurrency", sa.BigInteger, nullable=True),
    sa.Column("parent", sa.String(64), nullable=True),
    sa.Index("ix_api_keys_kind_expires", "kind", "expires"),  # client secrets that have ended are found by it
)
"""records.ApiKey, field by field."""

BALANCES = sa.Table(
    "balances",
    METADATA,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("account", sa.Text, primary_key=True),
    sa.Column("period_start", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("spent", sa.BigInteger, nullable=False),
    sa.Column("held", sa.BigInteger, nullable=False),
    sa.Column("tokens_spent", sa.BigInteger, nullable=False),
    sa.Column("tokens_held", sa.BigInteger, nullable=False),
    sa.Column("credit", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
"""records.Balance, for an account (see records.Limit) in the window that began at ``period_start``."""

HOLDS = sa.Table(
    "holds",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("money", sa.BigInteger, nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("expires", sa.Float, nullable=False),
    sa.Column("spent", sa.BigInteger, nullable=False),
    sa.Column("accounts", sa.Text, nullable=False),  # [[account, window], ...]
    sa.Column("about", sa.Text, nullable=False),  # [...], in the order of About
    sa.Column("lapsed", sa.Boolean, nullable=False),
    sa.Column("charged_money", sa.BigInteger, nullable=True),
    sa.Column("charged_tokens", sa.BigInteger, nullable=True),
    sa.Index("ix_holds_lapsed_expires", "lapsed", "expires"),  # a sweep passes the many by that lapsed before
)
"""Holds that run, and those that lapsed and may yet be settled (see book.Open)."""

RECORDS = sa.Table(
    "records",
    METADATA,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("hold", sa.Text, nullable=False, unique=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Column("trace_id", sa.Text, nullable=False),
    sa.Column("key_id", sa.Text, nullable=True),
    sa.Column("model", sa.Text, nullable=True),
    sa.Column("provider", sa.Text, nullable=True),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    sa.Column("cached_tokens", sa.BigInteger, nullable=False),
    sa.Column("cache_write_tokens", sa.BigInteger, nullable=False),
    sa.Column("reasoning_tokens", sa.BigInteger, nullable=False),
    sa.Column("estimated", sa.Boolean, nullable=False),
    sa.Column("provider_cost", sa.BigInteger, nullable=True),
    sa.Column("cost", sa.BigInteger, nullable=False),
    sa.Column("status", sa.Integer, nullable=True),
    sa.Column("started", sa.Float, nullable=False),
    sa.Column("ended", sa.Float, nullable=False),
    sa.Column("aborted", sa.Boolean, nullable=False),
    sa.Column("overdraft", sa.BigInteger, nullable=False),
    sa.Column("lapsed", sa.Boolean, nullable=False),
    sa.Column("local", sa.Boolean, nullable=False),
    # The very order in which a tenant's records are read, so that a page is one walk along it.
    sa.Index("ix_records_tenant_started", "tenant", "started", "seq"),
    sqlite_autoincrement=True,
)
"""records.CallRecord; ``seq`` is the order of booking."""

SUMS = sa.Table(
    "sums",
    METADATA,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("tokens_in", sa.BigInteger, nullable=False),
    sa.Column("tokens_out", sa.BigInteger, nullable=False),
    sa.Column("cost", sa.BigInteger, nullable=False),
)
"""records.Stats over all records of a tenant, booked with each."""

ADJUSTMENTS = sa.Table(
    "adjustments",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("period_start", sa.BigInteger, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("created_by", sa.Text, nullable=False),
    sa.Index("ix_adjustments_tenant_created", "tenant", "created"),
)
"""records.Adjustment."""

TRACES = sa.Table(
    "traces",
    METADATA,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("trace_id", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Column("started", sa.Float, nullable=False),
    sa.Column("tenant", sa.Text, nullable=True),
    sa.Column("key_id", sa.Text, nullable=True),
    sa.Column("model", sa.Text, nullable=True),
    sa.Column("provider", sa.Text, nullable=True),
    sa.Column("method", sa.Text, nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("status", sa.Integer, nullable=True),
    sa.Column("stream", sa.Boolean, nullable=False),
    sa.Column("duration", sa.Float, nullable=True),
    sa.Column("first_byte", sa.Float, nullable=True),
    sa.Column("tokens_in", sa.BigInteger, nullable=True),
    sa.Column("tokens_out", sa.BigInteger, nullable=True),
    sa.Column("tokens_cached", sa.BigInteger, nullable=True),
    sa.Column("cost", sa.BigInteger, nullable=True),
    sa.Column("saved", sa.BigInteger, nullable=True),
    sa.Column("error", sa.Text, nullable=True),
    sa.Column("aborted", sa.Boolean, nullable=False),
    sa.Column("cache", sa.Text, nullable=True),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("steps", sa.Text, nullable=False),  # [[name, start, length, ...], ...]: see traces.steps.Plain
    # The very orders in which pages are read, of all tenants and of one.
    sa.Index("ix_traces_started", "started", "seq"),
    sa.Index("ix_traces_tenant_started", "tenant", "started", "seq"),
    sa.Index("ix_traces_trace_id", "trace_id"),
    sa.Index("ix_traces_request_id", "request_id"),
    sqlite_autoincrement=True,  # a number is never given twice: cursors tell rows by it
)
"""traces.base.Trace; ``seq`` is the order of writing."""

ENDED_SESSIONS = sa.Table(
    "ended_sessions",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("until", sa.Float, nullable=False),
)
"""Sessions of the dashboard that were signed out, until they would have ended by themselves."""

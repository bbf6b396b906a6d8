"""All tables; those of the development version (tenants and keys, made without Alembic) are taken over with their rows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """From nothing, or from the two tables that there were before there were migrations."""
    there = set(sa.inspect(op.get_bind()).get_table_names())
    if "tenants" in there:
        _extend_tenants()
    else:
        _make_tenants()
    if "api_keys" in there:
        _extend_keys()
    else:
        _make_keys()
    _make_ledger()
    _make_records()


def _make_tenants() -> None:
    op.create_table(
        "tenants",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("budget", sa.BigInteger, nullable=True),
        sa.Column("enabled", sa.Boolean, nullable=False),
        sa.Column("allowed_models", sa.Text, nullable=True),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        *_new_in_tenants(),
    )


def _new_in_tenants() -> list[sa.Column[object]]:
    return [
        sa.Column("budget_tokens", sa.BigInteger, nullable=True),
        sa.Column("period", sa.Text, nullable=False, server_default="none"),
        sa.Column("soft_limit", sa.BigInteger, nullable=True),
        sa.Column("max_output_tokens", sa.BigInteger, nullable=True),
        sa.Column("rate_requests", sa.BigInteger, nullable=True),
        sa.Column("rate_tokens", sa.BigInteger, nullable=True),
        sa.Column("concurrency", sa.BigInteger, nullable=True),
    ]


def _extend_tenants() -> None:
    for column in _new_in_tenants():
        op.add_column("tenants", column)


def _old_keys() -> list[sa.Column[object]]:
    return [
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False, index=True),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("expires", sa.Float, nullable=True),
        sa.Column("revoked", sa.Float, nullable=True),
        sa.Column("also_tenants", sa.Text, nullable=False),
        sa.Column("allowed_models", sa.Text, nullable=True),
    ]


def _new_in_keys() -> list[sa.Column[object]]:
    return [
        sa.Column("budget", sa.BigInteger, nullable=True),
        sa.Column("kind", sa.Text, nullable=False, server_default="tenant"),
        sa.Column("account", sa.Text, nullable=True),
    ]


def _make_keys() -> None:
    op.create_table("api_keys", *_old_keys(), *_new_in_keys())


def _extend_keys() -> None:
    """Also takes the foreign key to tenants away: an admin key has no tenant."""
    bind = op.get_bind()
    if bind.dialect.name == "sqlite":
        # SQLite can drop no constraint: the rows move to a table that is copied from one without it.
        bare = sa.Table("api_keys", sa.MetaData(), *_old_keys())
        with op.batch_alter_table("api_keys", recreate="always", copy_from=bare) as batch:
            for column in _new_in_keys():
                batch.add_column(column)
        op.create_index("ix_api_keys_tenant", "api_keys", ["tenant"])
        return
    for key in sa.inspect(bind).get_foreign_keys("api_keys"):
        op.drop_constraint(str(key["name"]), "api_keys", type_="foreignkey")
    for column in _new_in_keys():
        op.add_column("api_keys", column)


def _make_ledger() -> None:
    op.create_table(
        "balances",
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
    op.create_table(
        "holds",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("money", sa.BigInteger, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("expires", sa.Float, nullable=False),
        sa.Column("spent", sa.BigInteger, nullable=False),
        sa.Column("accounts", sa.Text, nullable=False),
        sa.Column("about", sa.Text, nullable=False),
        sa.Column("lapsed", sa.Boolean, nullable=False),
        sa.Column("charged_money", sa.BigInteger, nullable=True),
        sa.Column("charged_tokens", sa.BigInteger, nullable=True),
    )
    op.create_index("ix_holds_lapsed_expires", "holds", ["lapsed", "expires"])
    op.create_table(
        "adjustments",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("period_start", sa.BigInteger, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("created_by", sa.Text, nullable=False),
    )
    op.create_index("ix_adjustments_tenant_created", "adjustments", ["tenant", "created"])


def _make_records() -> None:
    op.create_table(
        "records",
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
        sqlite_autoincrement=True,
    )
    op.create_index("ix_records_tenant_started", "records", ["tenant", "started", "seq"])
    op.create_table(
        "sums",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("tokens_in", sa.BigInteger, nullable=False),
        sa.Column("tokens_out", sa.BigInteger, nullable=False),
        sa.Column("cost", sa.BigInteger, nullable=False),
    )

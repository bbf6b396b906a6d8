"""Calls as they went are kept in the database: ``traces``."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A table of its own: nothing that is there changes."""
    op.create_table(
        "traces",
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
        sa.Column("steps", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_traces_started", "traces", ["started", "seq"])
    op.create_index("ix_traces_tenant_started", "traces", ["tenant", "started", "seq"])
    op.create_index("ix_traces_trace_id", "traces", ["trace_id"])
    op.create_index("ix_traces_request_id", "traces", ["request_id"])

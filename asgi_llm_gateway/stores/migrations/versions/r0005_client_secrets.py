"""Client secrets in the table of keys: short-lived ones, each of which speaks for another."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Keys that are there speak for themselves."""
    op.add_column("api_keys", sa.Column("parent", sa.String(64), nullable=True))
    op.create_index("ix_api_keys_kind_expires", "api_keys", ["kind", "expires"])

"""Keys get limits of rate of their own, within their tenant's."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Keys that are there have none."""
    for name in ("rate_requests", "rate_tokens", "concurrency"):
        op.add_column("api_keys", sa.Column(name, sa.BigInteger, nullable=True))

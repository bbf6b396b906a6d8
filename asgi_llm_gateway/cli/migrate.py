"""``migrate``: the database brought to what this version needs."""

from __future__ import annotations

import argparse
from urllib.parse import urlsplit

from ..settings import current
from ..stores.shared import store_url
from .terminal import Commands, say


def add(commands: Commands) -> None:
    """Put the command into the parser."""
    migrate = commands.add_parser(
        "migrate",
        help="bring the database to what this version needs",
        description="Bring the database (DATABASE_URL, or the file in GATEWAY_DATA_DIR) to what this version needs. It may "
        "be run again, and while gateways run. SQLite is brought there by serve as well, PostgreSQL only by this.",
    )
    migrate.set_defaults(run=_migrate)


def _migrate(options: argparse.Namespace) -> int:
    from ..stores.migrate import HEAD, upgrade  # SQLAlchemy and Alembic load with it

    url = store_url(current())
    upgrade(url)
    say(f"{place(url)} is at revision {HEAD}")
    return 0


def place(url: str) -> str:
    """Where a database is, without who may enter it."""
    parts = urlsplit(url)
    where = parts.path.removeprefix("/") if parts.scheme.startswith("sqlite") else f"{parts.hostname or ''}{parts.path}"
    return f"{parts.scheme.partition('+')[0]}: {where}"

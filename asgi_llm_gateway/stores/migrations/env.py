"""Alembic runs this file for each command: on the connection, and in the transaction, that ``migrate`` hands over."""

from __future__ import annotations

from alembic import context

from asgi_llm_gateway.stores.tables import METADATA

if __name__ == "env_py":  # as Alembic calls it; whoever merely imports it runs nothing
    context.configure(
        connection=context.config.attributes["connection"], target_metadata=METADATA, render_as_batch=True
    )
    with context.begin_transaction():
        context.run_migrations()

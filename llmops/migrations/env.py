"""Run by Alembic for every migration command; uses the engine that `llmops.db` hands over."""

from __future__ import annotations

from alembic import context

from llmops.db import metadata

with context.config.attributes["engine"].connect() as connection:
    context.configure(connection=connection, target_metadata=metadata)
    with context.begin_transaction():
        context.run_migrations()

"""Run by Alembic for every migration command, inside the write that `llmops.db` hands over."""

from __future__ import annotations

from alembic import context

from llmops.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()

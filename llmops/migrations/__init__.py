"""Alembic migrations of the workspace database, packaged so that an installed wheel can run them."""

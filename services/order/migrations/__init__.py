"""Alembic revisions, in order; each with the SQL beside it."""

"""Alembic revisions of the boarding service's database."""

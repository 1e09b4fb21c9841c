"""Alembic revisions of the admin service's database."""

"""Alembic revisions of the review service's database."""

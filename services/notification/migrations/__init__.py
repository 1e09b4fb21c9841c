"""Alembic revisions of the notification service's database."""

"""Alembic revisions of the user service's tables, for every shard."""

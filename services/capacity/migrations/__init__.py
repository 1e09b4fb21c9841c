"""The capacity database, revision by revision."""

"""The pet database, revision by revision."""

"""Fixtures that every test may ask for: real servers, made once a run, and a fresh database for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.servers import TestPostgres, postgres_server, valkey_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[TestPostgres]:
    """The PostgreSQL server of this test run: `.dsn(database, user)`, `.create_database(name)`."""
    with postgres_server() as server:
        yield server


@pytest.fixture
def database(postgres: TestPostgres) -> Iterator[str]:
    """A fresh, empty database; yields its DSN. It is dropped after the test, whoever is still connected."""
    dsn = postgres.create_database()
    try:
        yield dsn
    finally:
        postgres.drop_database(dsn.rsplit("/", 1)[1])


@pytest.fixture(scope="session")
def valkey() -> Iterator[str]:
    """The Valkey server of this test run: yields ``redis://127.0.0.1:PORT/0``. Tests share it: use keys of your own."""
    with valkey_server() as server:
        yield server.url()

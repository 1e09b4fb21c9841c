"""What each program is told about the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coordinator.protocol.tokens import TokenVerifier, read_key_set
from deploy.embedded.binaries import Binaries
from deploy.embedded.keeper import RESTART_DELAY_MAX_S, restart_delay_s
from deploy.embedded.layout import Layout
from deploy.embedded.topology import (
    DATABASES,
    DOCUMENTED_PORTS,
    LOCK_DATABASES,
    ROLES,
    SHARDS,
    Topology,
    inherited_environment,
)
from services.catalog import SERVICES
from services.kit.settings import Settings


@pytest.fixture
def topology(tmp_path: Path) -> Topology:
    layout = Layout(tmp_path / "data")
    layout.prepare()
    nowhere = Path("/nonexistent")
    found = Topology(layout, Binaries(nowhere, nowhere, nowhere), DOCUMENTED_PORTS, 8080)
    found.secrets.ensure([spec.name for spec in SERVICES], [*ROLES, "postgres", "valkey"])
    return found


@pytest.mark.parametrize("name", [spec.name for spec in SERVICES])
def test_every_service_can_read_its_settings_from_what_it_is_told(topology: Topology, name: str) -> None:
    """The environment is exactly what the service's settings understand."""
    settings = Settings.from_env(topology.service_environment(name))
    assert settings.service == name
    assert settings.port == DOCUMENTED_PORTS[name]
    assert len(settings.lock_redis_urls) == len(LOCK_DATABASES)
    assert settings.url_of("order") == "http://127.0.0.1:8084"
    assert settings.key_file.exists()
    sharded = next(spec for spec in SERVICES if spec.name == name).storage == "sharded"
    assert (settings.database_url is None) == sharded
    assert set(settings.shard_urls) == (set(SHARDS) if sharded else set())
    assert (settings.shard_map_url is not None) == sharded


def test_each_database_has_a_role_of_its_own_and_its_own_password(topology: Topology) -> None:
    """No service can log in as another."""
    passwords = {topology.secrets.password(role) for role in (*ROLES, "postgres", "valkey")}
    assert len(passwords) == len(ROLES) + 2
    assert {database.resource for database in DATABASES} >= {"capacity", "order@shard-0", "user@shard-1"}


def test_secrets_are_made_once_and_the_key_set_speaks_for_each_owner(topology: Topology) -> None:
    """A second start keeps every key; the operator's token is valid for whom it is addressed to."""
    before = {path.name: path.read_text() for path in topology.layout.secrets.iterdir()}
    topology.secrets.ensure([spec.name for spec in SERVICES], [*ROLES, "postgres", "valkey"])
    assert before == {path.name: path.read_text() for path in topology.layout.secrets.iterdir()}
    keys = read_key_set(topology.secrets.keys_file.read_text())
    verifier = TokenVerifier("coordinator", keys)
    assert verifier.caller_of(topology.secrets.operator_token("coordinator")) == "operator"
    assert "d" not in json.loads(topology.secrets.keys_file.read_text())["keys"][0]


def test_what_describes_a_process_is_not_inherited(topology: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's PAWSTAY_DATABASE_URL reaches no service; a tuning variable does."""
    monkeypatch.setenv("PAWSTAY_DATABASE_URL", "postgresql://elsewhere/db")
    monkeypatch.setenv("PAWSTAY_LOG_LEVEL", "DEBUG")
    found = inherited_environment()
    assert "PAWSTAY_DATABASE_URL" not in found
    assert found["PAWSTAY_LOG_LEVEL"] == "DEBUG"


def test_the_delay_before_a_restart_grows_and_is_bounded() -> None:
    """Doubling, then constant, also after a very long series of failures."""
    delays = [restart_delay_s(failures) for failures in range(40)]
    assert delays == sorted(delays)
    assert delays[1] == 2 * delays[0]
    assert delays[-1] == RESTART_DELAY_MAX_S
    assert restart_delay_s(10_000) == RESTART_DELAY_MAX_S

"""Settings from the environment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coordinator.protocol.tokens import SigningKey
from coordinator.tc.config import CoordinatorSettings, SettingsError


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """What a coordinator needs and no more."""
    key = SigningKey.generate("coordinator")
    (tmp_path / "key.json").write_text(key.private_jwk())
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [key.public_jwk()]}))
    return {
        "PAWSTAY_DATABASE_URL": "postgresql://localhost/coordinator",
        "PAWSTAY_KEY_FILE": str(tmp_path / "key.json"),
        "PAWSTAY_KEYS_FILE": str(tmp_path / "keys.json"),
    }


def test_the_least_environment_is_enough(environ: dict[str, str]) -> None:
    """Everything else has a default: loopback, port 8090, every known key."""
    settings = CoordinatorSettings.from_env(environ)
    assert (settings.host, settings.port, settings.callers) == ("127.0.0.1", 8090, frozenset())
    assert settings.signing_key.kid == "coordinator"
    assert set(settings.keys) == {"coordinator"}


def test_what_is_set_counts(environ: dict[str, str]) -> None:
    """Address, callers and limits come from the environment."""
    more = {"PAWSTAY_PORT": "9", "PAWSTAY_CALLERS": '["order"]', "PAWSTAY_NUDGE_WAIT_S": "0.5"}
    settings = CoordinatorSettings.from_env(environ | more)
    assert (settings.port, settings.callers, settings.limits.nudge_wait_s) == (9, {"order"}, 0.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PAWSTAY_DATABASE_URL", ""),
        ("PAWSTAY_KEY_FILE", "/nowhere"),
        ("PAWSTAY_KEYS_FILE", ""),
        ("PAWSTAY_PORT", "http"),
        ("PAWSTAY_PORT", "nan"),
        ("PAWSTAY_CALLERS", "order"),
        ("PAWSTAY_CALLERS", '{"order": 1}'),
        ("PAWSTAY_HISTORY_KEEP_S", "1"),
        ("PAWSTAY_LOG_LEVEL", "LOUD"),
        ("PAWSTAY_SILENT_ALERT_S", "1"),
        ("PAWSTAY_ALERT_WEBHOOK_URL", "hooks.example"),
        ("PAWSTAY_ALERT_WEBHOOK_SECRET_FILE", "/nowhere"),
    ],
)
def test_a_wrong_variable_is_named(environ: dict[str, str], name: str, value: str) -> None:
    """The error says which variable it is."""
    with pytest.raises(SettingsError, match=name):
        CoordinatorSettings.from_env(environ | {name: value})


def test_a_file_that_is_no_key_is_named(environ: dict[str, str]) -> None:
    """A public key set in the place of the private key is not taken."""
    with pytest.raises(SettingsError, match="PAWSTAY_KEY_FILE"):
        CoordinatorSettings.from_env(environ | {"PAWSTAY_KEY_FILE": environ["PAWSTAY_KEYS_FILE"]})


def test_alerts_go_where_the_settings_say(environ: dict[str, str], tmp_path: Path) -> None:
    """Address and secret; the secret is shown nowhere, and an empty one is no secret."""
    secret = tmp_path / "secret"
    secret.write_text("between us\n")
    more = {"PAWSTAY_ALERT_WEBHOOK_URL": "https://hooks.example/x", "PAWSTAY_ALERT_WEBHOOK_SECRET_FILE": str(secret)}
    settings = CoordinatorSettings.from_env(environ | more | {"PAWSTAY_SILENT_ALERT_S": "90"})
    assert (settings.alert_webhook_url, settings.alert_webhook_secret) == ("https://hooks.example/x", "between us")
    assert settings.limits.silent_alert_s == 90
    assert "between us" not in repr(settings)
    secret.write_text(" \n")
    with pytest.raises(SettingsError, match=r"SECRET_FILE.*empty"):
        CoordinatorSettings.from_env(environ | more)

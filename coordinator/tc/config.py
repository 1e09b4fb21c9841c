"""Settings of the coordinator: one frozen object, read once in a composition root."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from coordinator.protocol.tokens import SigningKey, read_key_set
from coordinator.tc.core.backoff import Backoff

T = TypeVar("T")
PREFIX = "PAWSTAY_"
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
ISSUER = "coordinator"
"""As what the coordinator signs its nudges, and the audience that its callers' tokens must name."""

OPERATOR = "operator"
"""The caller whose rollbacks are recorded as a person's."""


STORE_RETRY = Backoff(first_s=0.02, cap_s=1.0)
WEBHOOK_RETRY = Backoff(first_s=1.0, cap_s=300.0, attempts_max=12)
RENUDGE = Backoff(first_s=2.0, cap_s=600.0, attempts_max=12)


class SettingsError(ValueError):
    """The environment does not describe a coordinator: says which variable, and why."""


@dataclass(frozen=True)
class Limits:
    """Every bound of the coordinator, each with its unit."""

    store_pool_connections_max: int = 8
    store_timeout_s: float = 10.0
    """A write that takes longer gives its connection up; whether it was done is found out by repeating it."""
    store_retry_s: float = 5.0
    """How long a batch is tried again while the store is away, before its callers hear 503."""
    store_retry: Backoff = STORE_RETRY
    group_messages_max: int = 2000
    """Messages in one database transaction."""
    queue_messages_max: int = 20_000
    """Messages that wait for their database transaction; beyond it callers hear 503."""
    body_bytes_max: int = 16 * 1024 * 1024
    nudge_wait_s: float = 2.0
    """How long the answer to a rollback waits for its resources to undo."""
    nudge_wait_shared_s: float = 0.05
    """The same where other questions travel in the same list, which must not wait for a slow resource."""
    nudge_timeout_s: float = 5.0
    nudge_own_delay_s: float = 0.5
    """Who commits settles its own resources; they hear a nudge only of what is not confirmed by then."""
    nudge_settle_max: int = 500
    """Decisions in one nudge."""
    nudge_queue_max: int = 20_000
    """Decisions that wait for one resource; more are dropped, for they are told again."""
    nudge_answer_bytes_max: int = 8 * 1024 * 1024
    nudge_urls_max: int = 3
    """Addresses of one resource that are tried for one nudge."""
    nudge_warn_interval_s: float = 60.0
    renudge: Backoff = RENUDGE
    """When an unsettled transaction's resources hear of the decision once more."""
    resource_lapse_s: float = 180.0
    """A resource not announced for this long is not nudged, and its name is free for another owner."""
    resource_cache_s: float = 5.0
    wait_max_s: float = 30.0
    wait_poll_s: float = 0.25
    wait_lease_s: float = 3.0
    """The waits of a replica that vanished count for this long."""
    wait_renew_s: float = 1.0
    waits_max: int = 5000
    """Waits that one replica holds open; beyond it callers hear 503."""
    sweep_interval_s: float = 0.5
    sweep_transactions_max: int = 500
    unsettled_alert_s: float = 60.0
    """How long after its decision a transaction may stay unsettled before a person is told, once."""
    silent_alert_s: float = 60.0
    """How long a resource with unsettled branches may say nothing before a person is told, once."""
    alerts_max: int = 100
    """Alerts opened in one round."""
    webhook_timeout_s: float = 5.0
    webhook_at_once_max: int = 8
    webhook_retry: Backoff = WEBHOOK_RETRY
    """When an alert that the webhook did not take is sent again; after the last try the log says so."""
    webhook_lease_s: float = 30.0
    """How long an alert belongs to the replica that is sending it."""
    history_keep_s: float = 7 * 86400.0
    purge_interval_s: float = 60.0
    purge_transactions_max: int = 5000
    page_max: int = 200
    read_timeout_s: float = 5.0
    start_wait_s: float = 10.0
    """How long the start waits for the store before it goes on without, live and not ready."""
    stop_wait_s: float = 3.0


@dataclass(frozen=True)
class CoordinatorSettings:
    """What one replica needs to know. `callers` empty lets every known key in."""

    database_url: str
    signing_key: SigningKey
    keys: Mapping[str, Ed25519PublicKey]
    callers: frozenset[str] = frozenset()
    host: str = "127.0.0.1"
    port: int = 8090
    log_level: str = "INFO"
    alert_webhook_url: str | None = None
    alert_webhook_secret: str | None = field(default=None, repr=False)
    limits: Limits = field(default_factory=Limits)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> CoordinatorSettings:
        """Reads and checks the environment and the key files. Raises SettingsError that names the variable."""
        callers = _json_list(environ, "CALLERS")
        keep_s = _number(environ, "HISTORY_KEEP_S", Limits.history_keep_s, least=60.0)
        nudge_wait_s = _number(environ, "NUDGE_WAIT_S", Limits.nudge_wait_s, least=0.0)
        alert_s = _number(environ, "UNSETTLED_ALERT_S", Limits.unsettled_alert_s, least=1.0)
        silent_s = _number(environ, "SILENT_ALERT_S", Limits.silent_alert_s, least=30.0)
        return cls(
            database_url=_text(environ, "DATABASE_URL"),
            signing_key=_file(environ, "KEY_FILE", SigningKey.from_jwk),
            keys=_file(environ, "KEYS_FILE", read_key_set),
            callers=frozenset(callers),
            host=environ.get(f"{PREFIX}HOST") or "127.0.0.1",
            port=int(_number(environ, "PORT", 8090, least=0)),
            log_level=_level(environ),
            alert_webhook_url=_url(environ, "ALERT_WEBHOOK_URL"),
            alert_webhook_secret=_secret(environ, "ALERT_WEBHOOK_SECRET_FILE"),
            limits=Limits(
                history_keep_s=keep_s, nudge_wait_s=nudge_wait_s, unsettled_alert_s=alert_s, silent_alert_s=silent_s
            ),
        )


def _text(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(PREFIX + name)
    if not value:
        raise SettingsError(f"{PREFIX}{name} is not set")
    return value


def _url(environ: Mapping[str, str], name: str) -> str | None:
    text = environ.get(PREFIX + name) or None
    if text is not None and not (text.startswith(("http://", "https://")) and urlsplit(text).hostname):
        raise SettingsError(f"{PREFIX}{name} is {text!r}, which is no absolute http or https URL")
    return text


def _secret(environ: Mapping[str, str], name: str) -> str | None:
    if not environ.get(PREFIX + name):
        return None
    text = _file(environ, name, str.strip)
    if not text:
        raise SettingsError(f"{PREFIX}{name}: {environ[PREFIX + name]} is empty")
    return text


def _number(environ: Mapping[str, str], name: str, default: float, *, least: float) -> float:
    text = environ.get(PREFIX + name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError as error:
        raise SettingsError(f"{PREFIX}{name} is {text!r}, which is no number") from error
    if not value >= least:
        raise SettingsError(f"{PREFIX}{name} is {text}; the least is {least:g}")
    return value


def _level(environ: Mapping[str, str]) -> str:
    level = (environ.get(f"{PREFIX}LOG_LEVEL") or "INFO").upper()
    if level not in LOG_LEVELS:
        raise SettingsError(f"{PREFIX}LOG_LEVEL is {level}; send one of {', '.join(LOG_LEVELS)}")
    return level


def _json_list(environ: Mapping[str, str], name: str) -> list[str]:
    text = environ.get(PREFIX + name) or "[]"
    try:
        value = json.loads(text)
    except ValueError as error:
        raise SettingsError(f"{PREFIX}{name} is no JSON: {error}") from error
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise SettingsError(f"{PREFIX}{name} is {text}, which is no JSON list of names")
    return value


def _file(environ: Mapping[str, str], name: str, read: Callable[[str], T]) -> T:
    path = Path(_text(environ, name))
    try:
        return read(path.read_text())
    except (OSError, ValueError, KeyError, TypeError, jwt.PyJWTError) as error:
        raise SettingsError(f"{PREFIX}{name}: {path} cannot be used: {error}") from error

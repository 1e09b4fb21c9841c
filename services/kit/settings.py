"""Settings: one frozen object, read once from the environment in a composition root. Nothing at import time.

Every field is read from ``PAWSTAY_`` and its name in capitals; lists and maps are JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Json, ValidationError

PREFIX = "PAWSTAY_"


class SettingsError(ValueError):
    """The environment does not describe a service: says which variable and why."""


class Settings(BaseModel):
    """What one service needs to know about where it runs."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    service: str
    host: str = "127.0.0.1"
    port: int
    database_url: str | None = None
    shard_urls: Json[dict[str, str]] | dict[str, str] = {}
    shard_map_url: str | None = None
    redis_url: str = "redis://127.0.0.1:6379/0"
    lock_redis_urls: Json[list[str]] | list[str] = []
    redlock: bool = True
    coordinator_urls: Json[list[str]] | list[str] = ["http://127.0.0.1:8090"]
    service_urls: Json[dict[str, str]] | dict[str, str] = {}
    key_file: Path
    keys_file: Path
    mail_dir: Path | None = None
    admin_password_file: Path | None = None
    log_level: str = "INFO"
    pool_size: int = 8
    """Connections to each database, at most."""
    pay_window_s: int = 900
    """How long a booking waits for its payment."""
    early_check_in_days: int = 0
    """How many days before its first night a stay may begin."""
    owner_auto_approve: bool = False
    """Whether a registration is active at once, without an administrator's approval."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """Reads and checks the environment. Raises SettingsError with one line per wrong variable."""
        values = {
            key.removeprefix(PREFIX).lower(): value
            for key, value in environ.items()
            if key.startswith(PREFIX) and value
        }
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            lines = [f"{PREFIX}{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors()]
            raise SettingsError("\n".join(lines)) from error

    def url_of(self, service: str) -> str:
        """Where another service is reached. Raises SettingsError when PAWSTAY_SERVICE_URLS does not say."""
        urls: dict[str, str] = dict(self.service_urls)
        try:
            return urls[service].rstrip("/")
        except KeyError:
            raise SettingsError(f"PAWSTAY_SERVICE_URLS has no address for {service!r}") from None

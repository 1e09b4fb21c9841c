"""Settings: one frozen object, read once from the environment in a composition root. Nothing at import time.

Every field is read from ``PAWSTAY_`` and its name in capitals; lists and maps are JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FilePath, Json, ValidationError

PREFIX = "PAWSTAY_"
PAY_WINDOW_MAX_S = 7 * 86_400

Level = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(str.upper)]
PostgresUrl = Annotated[str, Field(pattern=r"^postgres(ql)?(\+\w+)?://")]
RedisUrl = Annotated[str, Field(pattern=r"^(rediss?|unix)://")]


class SettingsError(ValueError):
    """The environment does not describe a service: says which variable and why."""


class Settings(BaseModel):
    """What one service needs to know about where it runs."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    service: str
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65_535)]
    database_url: PostgresUrl | None = None
    shard_urls: Json[dict[str, PostgresUrl]] | dict[str, PostgresUrl] = {}
    shard_map_url: PostgresUrl | None = None
    redis_url: RedisUrl = "redis://127.0.0.1:6379/0"
    lock_redis_urls: Json[list[RedisUrl]] | list[RedisUrl] = []
    redlock: bool = True
    coordinator_urls: Json[list[str]] | list[str] = ["http://127.0.0.1:8090"]
    service_urls: Json[dict[str, str]] | dict[str, str] = {}
    key_file: FilePath
    keys_file: FilePath
    mail_dir: Path | None = None
    admin_password_file: FilePath | None = None
    log_level: Level = "INFO"
    pool_size: Annotated[int, Field(ge=1)] = 8
    """Connections to each database, at most."""
    pay_window_s: Annotated[int, Field(ge=1, le=PAY_WINDOW_MAX_S)] = 900
    """How long a booking waits for its payment."""
    early_check_in_days: Annotated[int, Field(ge=0, le=365)] = 0
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
            wrong: dict[str, str] = {}
            for e in error.errors():
                wrong.setdefault(str(e["loc"][0]), e["msg"])
            raise SettingsError("\n".join(f"{PREFIX}{name.upper()}: {said}" for name, said in wrong.items())) from error

    def url_of(self, service: str) -> str:
        """Where another service is reached. Raises SettingsError when PAWSTAY_SERVICE_URLS does not say."""
        urls: dict[str, str] = dict(self.service_urls)
        try:
            return urls[service].rstrip("/")
        except KeyError:
            raise SettingsError(f"PAWSTAY_SERVICE_URLS has no address for {service!r}") from None

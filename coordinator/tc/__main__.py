"""Serves the coordinator from the environment: ``python -m coordinator.tc``."""

from __future__ import annotations

import os
import sys

import uvicorn

from coordinator.tc.app import create_app
from coordinator.tc.config import CoordinatorSettings, SettingsError
from coordinator.tc.logs import configure

STOP_GRACE_S = 3
"""How long open calls may go on after the signal to stop; long polls end earlier."""


def main() -> int:
    """Runs until told to stop. Returns 2 when the environment does not describe a coordinator."""
    try:
        settings = CoordinatorSettings.from_env(os.environ)
        configure(settings.log_level)
    except SettingsError as error:
        print(f"coordinator: {error}", file=sys.stderr)  # noqa: T201
        return 2
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=STOP_GRACE_S,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

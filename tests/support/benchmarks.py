"""What benchmarks share: a coordinator in a process of its own, and the object that they print."""

from __future__ import annotations

import http.client
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from coordinator.client import SigningKey
from tests.support.servers import free_port

ROOT = Path(__file__).resolve().parents[2]

DURABLE = {"fsync": "on", "full_page_writes": "on", "shared_buffers": "256MB"}
"""Settings of a server that keeps what it says it has kept."""


def report(name: str, figures: Mapping[str, float], goals: Mapping[str, list[object]], runs: int) -> None:
    """Prints a benchmark's object; `goals` are pairs of a comparison and a number."""
    machine = f"{os.cpu_count()} x {platform.machine()}, Python {platform.python_version()}, {platform.system()}"
    print(json.dumps({"name": name, "figures": figures, "goals": goals, "runs": runs, "machine": machine}))


def start_coordinator(dsn: str, folder: Path, keys: dict[str, SigningKey]) -> tuple[subprocess.Popen[bytes], str]:
    """The coordinator in a process of its own; returns when it is ready."""
    (folder / "keys.json").write_text(json.dumps({"keys": [key.public_jwk() for key in keys.values()]}))
    (folder / "coordinator.jwk").write_text(keys["coordinator"].private_jwk())
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "coordinator.tc"],
        cwd=ROOT,
        env={
            **os.environ,
            "PAWSTAY_DATABASE_URL": dsn,
            "PAWSTAY_KEY_FILE": str(folder / "coordinator.jwk"),
            "PAWSTAY_KEYS_FILE": str(folder / "keys.json"),
            "PAWSTAY_PORT": str(port),
            "PAWSTAY_LOG_LEVEL": "WARNING",
        },
    )
    for _ in range(200):
        if is_ready(port):
            return process, f"http://127.0.0.1:{port}"
        time.sleep(0.1)
    process.kill()
    raise RuntimeError("the coordinator did not become ready")


def is_ready(port: int) -> bool:
    """Whether the coordinator on this port says that it is ready."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()

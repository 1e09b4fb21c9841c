"""Questions whether a process does its work, asked without waiting long."""

from __future__ import annotations

import http.client
from pathlib import Path

PROBE_TIMEOUT_S = 2.0


def http_ready(port: int, path: str = "/ready") -> bool:
    """Whether 127.0.0.1:`port` answers 200 at `path`."""
    return http_status(port, path) == 200


def http_status(port: int, path: str = "/ready") -> int | None:
    """The status with which 127.0.0.1:`port` answers at `path`, or None when it does not answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def said_ready(file: Path, pid: int) -> bool:
    """Whether the process `pid` wrote its id to `file`, as one without a port does when it is ready."""
    try:
        return file.read_text().strip() == str(pid)
    except OSError:
        return False

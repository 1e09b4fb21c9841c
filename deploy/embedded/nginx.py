"""One Nginx server over a folder of its own: the gateway."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from deploy.embedded.problems import ExitCode, RuntimeProblem
from deploy.embedded.programs import Program
from gateway.check import CONFIG_NAME, ConfigRefused, check, command, install

PROBE_TIMEOUT_S = 0.5
STOP_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class NginxServer:
    """An Nginx server with the whole text of its configuration; it writes into `folder` and `log_dir` only."""

    name: str
    binary: Path
    folder: Path
    log_dir: Path
    port: int
    log: Path
    configuration: str

    def prepare(self) -> None:
        """Writes the configuration and has Nginx check it. Raises RuntimeProblem with what Nginx says."""
        config = install(self.configuration, prefix_dir=self.folder, log_dir=self.log_dir)
        try:
            check(config, prefix_dir=self.folder, binary=self.binary)
        except ConfigRefused as error:
            raise RuntimeProblem(str(error), ExitCode.START_FAILED) from error

    def program(self) -> Program:
        """The server in the foreground; SIGTERM stops it at once, open answers included."""
        return Program(
            name=self.name,
            argv=tuple(command(self.binary, self.folder / CONFIG_NAME, self.folder)),
            log=self.log,
            cwd=self.folder,
            stop_timeout_s=STOP_TIMEOUT_S,
        )

    def ready(self) -> bool:
        """Whether it takes connections."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), PROBE_TIMEOUT_S):
                return True
        except OSError:
            return False

"""One Valkey (or Redis) server over a folder of its own, on loopback."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from deploy.embedded.problems import ExitCode, RuntimeProblem
from deploy.embedded.programs import Program

PROBE_TIMEOUT_S = 0.5
APPEND_FOLDER = "appendonly"


@dataclass(frozen=True)
class ValkeyServer:
    """A Valkey server in `folder`, on 127.0.0.1:`port` alone. `durable` keeps every write of the last second."""

    name: str
    binary: Path
    folder: Path
    port: int
    log: Path
    password: str | None = field(default=None, repr=False)
    durable: bool = True

    def prepare(self) -> None:
        """Writes the configuration. Raises RuntimeProblem when the folder cannot be written."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self.folder / "valkey.conf"
            path.touch(mode=0o600)
            path.write_text(self._configuration())
        except OSError as error:
            raise RuntimeProblem(
                f"Valkey cannot write its folder {self.folder}: {error.strerror}.", ExitCode.FOLDER_UNUSABLE
            ) from error

    def _configuration(self) -> str:
        lines = [
            "bind 127.0.0.1",
            f"port {self.port}",
            "protected-mode yes",
            "daemonize no",
            'save ""',
            f"appendonly {'yes' if self.durable else 'no'}",
            f"appenddirname {APPEND_FOLDER}",
            "appendfsync everysec",
            # The queue shares this server with the cache: a full memory must refuse, never drop a message.
            "maxmemory-policy noeviction",
            "databases 16",
        ]
        if self.password is not None:
            lines.append(f"requirepass {self.password}")
        return "\n".join(lines) + "\n"

    def program(self) -> Program:
        """The server in the foreground, in its own folder, so that no path needs quoting."""
        return Program(name=self.name, argv=(str(self.binary), "valkey.conf"), log=self.log, cwd=self.folder)

    def ready(self) -> bool:
        """Whether the server answers PING."""
        hello = b"" if self.password is None else f"AUTH {self.password}\r\n".encode()
        try:
            with socket.create_connection(("127.0.0.1", self.port), PROBE_TIMEOUT_S) as connection:
                connection.sendall(hello + b"PING\r\nQUIT\r\n")
                answer = b""
                while part := connection.recv(512):
                    answer += part
        except OSError:
            return False
        return b"+PONG" in answer

    def url(self, database: int = 0) -> str:
        """The address of one numbered database."""
        login = "" if self.password is None else f":{quote(self.password, safe='')}@"
        return f"redis://{login}127.0.0.1:{self.port}/{database}"

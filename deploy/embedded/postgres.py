"""One PostgreSQL server over a folder of its own, on loopback."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGINT
from urllib.parse import quote

import psutil

from deploy.embedded.privileges import before_exec, give_to_nobody, needs_nobody
from deploy.embedded.problems import ExitCode, RuntimeProblem
from deploy.embedded.programs import Program

SUPERUSER = "postgres"
INITDB_TIMEOUT_S = 120
STOP_TIMEOUT_S = 20.0
BACKENDS_END_WITHIN_S = 10.0
BACKENDS_POLL_S = 0.05

DURABLE: Mapping[str, str] = {
    "wal_level": "logical",
    "max_connections": "300",
    "max_prepared_transactions": "0",
    "max_wal_senders": "10",
    "max_replication_slots": "10",
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%u@%d ",
    # A row that another transaction holds is refused, waited for and asked again: told in a line, not in a page of SQL.
    "log_error_verbosity": "terse",
    "log_min_error_statement": "fatal",
}
"""The settings of a server whose data matters."""

THROWAWAY: Mapping[str, str] = {**DURABLE, "fsync": "off", "full_page_writes": "off", "shared_buffers": "64MB"}
"""The settings of a server whose data dies with a test run."""


@dataclass(frozen=True)
class PostgresServer:
    """A PostgreSQL server in `folder`, on 127.0.0.1:`port` alone.

    With `password`, every connection proves itself by SCRAM-SHA-256; without one everybody on this machine is let
    in, which is for tests only. No Unix socket is opened: the path of the folder may be of any length.
    """

    name: str
    binaries: Path
    folder: Path
    port: int
    log: Path
    password: str | None = field(default=None, repr=False)
    settings: Mapping[str, str] = field(default_factory=lambda: DURABLE)

    def prepare(self) -> None:
        """Initialises the folder when it is new and clears what a crash left. Raises RuntimeProblem."""
        if not (self.folder / "PG_VERSION").exists():
            self._initdb()
        elif needs_nobody():
            give_to_nobody(self.folder)
        self._clear_stale_lock()

    def _initdb(self) -> None:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        if self.folder.exists() and any(self.folder.iterdir()):
            raise RuntimeProblem(
                f"{self.folder} is not empty and holds no PostgreSQL database: move it away.", ExitCode.FOLDER_FOREIGN
            )
        # An initialisation that was cut off leaves a folder without PG_VERSION or with half a catalog; initdb writes
        # into a sibling that is renamed when it is whole.
        with tempfile.TemporaryDirectory(prefix=f".{self.folder.name}-", dir=self.folder.parent) as scratch:
            fresh = Path(scratch) / "new"
            fresh.mkdir(mode=0o700)
            arguments = [str(self.binaries / "initdb"), "-D", str(fresh), "-U", SUPERUSER, "-E", "UTF8"]
            arguments += ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-instructions"]
            if self.settings.get("fsync") == "off":
                arguments.append("--no-sync")
            if self.password is None:
                arguments.append("--auth=trust")
            else:
                secret = Path(scratch) / "secret"
                secret.touch(mode=0o600)
                secret.write_text(self.password)
                arguments += ["--auth=scram-sha-256", f"--pwfile={secret}"]
            if needs_nobody():
                give_to_nobody(Path(scratch))
            done = subprocess.run(
                arguments,
                capture_output=True,
                text=True,
                env=self._environment(),
                preexec_fn=before_exec(unprivileged=True, death_signal=None),
                timeout=INITDB_TIMEOUT_S,
                check=False,
            )
            if done.returncode != 0:
                reason = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no reason given"]
                raise RuntimeProblem(
                    f"PostgreSQL cannot make its folder {self.folder}: {reason[0]}", ExitCode.FOLDER_UNUSABLE
                )
            os.rename(fresh, self.folder)

    def _clear_stale_lock(self) -> None:
        """Removes a lock file that PostgreSQL would believe although nobody runs in the folder.

        PostgreSQL itself clears the file of a process that is gone. But an id that was given to another program since
        (after a reboot, in a container), or a dead process that nobody reaps (a container without an init), would
        keep it from starting. Backends that outlive their postmaster for a moment are waited for: with the file goes
        PostgreSQL's own knowledge of the shared memory that they still use.
        """
        pid = self._locked_by()
        if pid is None or not psutil.pid_exists(pid) or pid in self._processes():
            return
        deadline = time.monotonic() + BACKENDS_END_WITHIN_S
        while self._processes():
            if time.monotonic() > deadline:
                return  # PostgreSQL refuses, and says why
            time.sleep(BACKENDS_POLL_S)
        (self.folder / "postmaster.pid").unlink(missing_ok=True)

    def _processes(self) -> set[int]:
        """The living processes that stand in this folder: a postmaster and its backends do."""
        folder = self.folder.resolve()
        found = set()
        for process in psutil.process_iter():
            try:
                if Path(process.cwd()) == folder and process.status() != psutil.STATUS_ZOMBIE:
                    found.add(process.pid)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def _locked_by(self) -> int | None:
        try:
            return int((self.folder / "postmaster.pid").read_text().splitlines()[0])
        except (OSError, IndexError, ValueError):
            return None

    def program(self) -> Program:
        """The server in the foreground; SIGINT stops it fast and in good order."""
        settings = {
            **self.settings,
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
        }
        argv = [str(self.binaries / "postgres"), "-D", str(self.folder)]
        for key, value in settings.items():
            argv += ["-c", f"{key}={value}"]
        return Program(
            name=self.name,
            argv=tuple(argv),
            log=self.log,
            cwd=self.folder.parent,
            env=self._environment(),
            stop_signal=SIGINT,
            stop_timeout_s=STOP_TIMEOUT_S,
            unprivileged=True,
        )

    def _environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "PAWSTAY_"))}
        return {**kept, "LC_ALL": "C", "TZ": "UTC"}

    def ready(self) -> bool:
        """Whether the server takes connections, as its own lock file says (the test that pg_ctl makes)."""
        try:
            lines = (self.folder / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[7].strip() == "ready" and psutil.pid_exists(int(lines[0]))

    def dsn(self, database: str = "postgres", user: str = SUPERUSER, password: str | None = None) -> str:
        """The address of one database as a URL. `password` is the superuser's when it is the superuser."""
        secret = password if password is not None else (self.password if user == SUPERUSER else None)
        login = quote(user, safe="") if secret is None else f"{quote(user, safe='')}:{quote(secret, safe='')}"
        return f"postgresql://{login}@127.0.0.1:{self.port}/{quote(database, safe='')}"

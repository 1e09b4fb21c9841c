"""The data folder: what lies where, whose it is, and that one system at a time runs in it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deploy.embedded.privileges import needs_nobody
from deploy.embedded.problems import ExitCode, RuntimeProblem

LAYOUT_VERSION = 1
"""Raised when what lies where changes; a folder of another version is refused, never guessed at."""

PROGRAM = "pawstay"
PROBE_NAME = ".probe"
PROBE_BYTES = 4096
NEW_FREE_MIN_MB = 300
"""Less than this free on the disk, and a new system is not started: three databases need it to begin with."""

FREE_MIN_MB = 50
"""Less than this free on the disk, and a system that is there is not started: each server may ask for 16 MB at once."""


@dataclass(frozen=True)
class Layout:
    """The paths inside one data folder."""

    root: Path

    @property
    def version_file(self) -> Path:
        """Says that the folder is ours, and of which layout."""
        return self.root / "pawstay.json"

    @property
    def lock_file(self) -> Path:
        """Held by the supervisor as long as it lives."""
        return self.root / "lock"

    @property
    def secrets(self) -> Path:
        """Keys and passwords."""
        return self.root / "secrets"

    @property
    def logs(self) -> Path:
        """One file for each program."""
        return self.root / "logs"

    @property
    def mail(self) -> Path:
        """Where e-mail is delivered: one file a message."""
        return self.root / "mail"

    @property
    def run(self) -> Path:
        """What is true only while the system runs."""
        return self.root / "run"

    @property
    def state_file(self) -> Path:
        """The supervisor's record of its programs."""
        return self.run / "state.json"

    @property
    def ports_file(self) -> Path:
        """The ports that were chosen; kept, so that addresses survive a restart."""
        return self.root / "ports.json"

    @property
    def overrides_file(self) -> Path:
        """Environment variables that the services get on top of their own while the system runs."""
        return self.run / "overrides.json"

    @property
    def environments_file(self) -> Path:
        """The environment of every service, for a process that runs several."""
        return self.run / "environments.json"

    @property
    def nginx(self) -> Path:
        """Nginx's own folder."""
        return self.root / "nginx"

    @property
    def valkey(self) -> Path:
        """Valkey's data."""
        return self.root / "valkey"

    def postgres(self, server: str) -> Path:
        """The data of one PostgreSQL server."""
        return self.root / "postgres" / server

    def log_of(self, program: str) -> Path:
        """The log of one program."""
        return self.logs / f"{program}.log"

    def prepare(self) -> None:
        """Makes the folder, or takes it over when it is one of ours. Raises RuntimeProblem with one clear sentence."""
        self.check_version()
        with _clear_words(self.root):
            if not self.root.exists():
                self.root.mkdir(mode=0o700, parents=True)
            # Where PostgreSQL has to run as nobody, that user passes this folder; what is in it stays closed.
            if needs_nobody():
                self.root.chmod(self.root.stat().st_mode | 0o011)
            self._check_space()
            for folder in (self.secrets, self.logs, self.mail, self.run, self.nginx):
                folder.mkdir(mode=0o700, exist_ok=True)
            (self.root / "postgres").mkdir(mode=0o711 if needs_nobody() else 0o700, exist_ok=True)
            for folder in (self.root, self.run, self.logs):
                probe = folder / PROBE_NAME
                write_private(probe, "x" * PROBE_BYTES)
                probe.unlink()
            if not self.version_file.exists():
                write_private(self.version_file, json.dumps({"program": PROGRAM, "layout": LAYOUT_VERSION}))

    def check_access(self) -> None:
        """Raises RuntimeProblem when the folder is there and this user may not look into it."""
        with _clear_words(self.root):
            if self.root.is_dir():
                os.stat(self.root / ".")
                os.listdir(self.root)

    def check_version(self) -> None:
        """Raises RuntimeProblem when this is no folder that can be read, or that of another program or version."""
        with _clear_words(self.root):
            self._check_version()

    def _check_version(self) -> None:
        if not self.root.exists():
            return
        if not self.root.is_dir():
            raise RuntimeProblem(
                f"{self.root} is a file, not a folder: name another one with --data.", ExitCode.FOLDER_UNUSABLE
            )
        if not self.version_file.exists():
            # A first start that was killed early leaves only these.
            early = {"lock", "run", "logs", "secrets", "mail", "nginx", "postgres"}
            if any(path.name not in early and PROBE_NAME not in path.name for path in self.root.iterdir()):
                raise RuntimeProblem(
                    f"{self.root} holds files that are not PawStay's: name an empty or new folder with --data.",
                    ExitCode.FOLDER_FOREIGN,
                )
            return
        try:
            found = json.loads(self.version_file.read_text())
            layout = found["layout"] if found["program"] == PROGRAM else None
        except (ValueError, KeyError, TypeError):
            layout = None
        if layout is None:
            raise RuntimeProblem(
                f"{self.version_file} cannot be read: name another folder with --data.", ExitCode.FOLDER_FOREIGN
            )
        if layout != LAYOUT_VERSION:
            age = "an older" if layout < LAYOUT_VERSION else "a newer"
            raise RuntimeProblem(
                f"{self.root} was made by {age} PawStay (layout {layout}, this one writes {LAYOUT_VERSION}):"
                " name another folder with --data, or use the version that made it.",
                ExitCode.FOLDER_FOREIGN,
            )

    def _check_space(self) -> None:
        free_mb = shutil.disk_usage(self.root).free // 1_000_000
        needed_mb = FREE_MIN_MB if any((self.root / "postgres").glob("*/PG_VERSION")) else NEW_FREE_MIN_MB
        if free_mb < needed_mb:
            raise RuntimeProblem(
                f"the disk of {self.root} is full ({free_mb} MB free, {needed_mb} needed):"
                " make room, or name a folder on another disk with --data.",
                ExitCode.FOLDER_UNUSABLE,
            )

    def lock(self) -> int | None:
        """Takes the folder for this process until it ends; a file descriptor, or None when somebody else has it."""
        with _clear_words(self.root):
            descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def locked(self) -> bool:
        """Whether a supervisor lives in this folder."""
        if not self.lock_file.exists():
            return False
        try:
            descriptor = self.lock()
        except RuntimeProblem:  # not ours to open: then not ours to stop either
            return False
        if descriptor is None:
            return True
        os.close(descriptor)
        return False


@contextlib.contextmanager
def _clear_words(root: Path) -> Iterator[None]:
    """Turns what the file system answers into a sentence with a way out."""
    try:
        yield
    except OSError as error:
        reasons = {
            errno.EACCES: "may not be used by this user",
            errno.EPERM: "may not be changed by this user",
            errno.EROFS: "is read-only",
            errno.ENOSPC: "is on a full disk",
            errno.EDQUOT: "is on a disk whose quota is used up",
            errno.ENOTDIR: "leads through a file",
            errno.ENAMETOOLONG: "has a name that is too long",
        }
        reason = reasons.get(error.errno or 0, f"cannot be used ({error.strerror})")
        raise RuntimeProblem(
            f"the data folder {root} {reason}: name another one with --data.", ExitCode.FOLDER_UNUSABLE
        ) from error


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner may read, whole or not at all."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(scratch, path)

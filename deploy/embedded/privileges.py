"""What happens in a child between fork and exec: who it is, and that it dies with its parent.

PostgreSQL refuses to run as root. A user namespace in which root is mapped to `nobody` satisfies it and changes no
owner, no permission and no user database; where the kernel or a container forbids user namespaces, the child becomes
the real `nobody`, and the folders that it needs are given to it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

from deploy.embedded.problems import ExitCode, RuntimeProblem

NOBODY_ID = 65534
CLONE_NEWUSER = 0x10000000
PR_SET_PDEATHSIG = 1
PROBE_TIMEOUT_S = 5


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def is_root() -> bool:
    """Whether this process would be refused by PostgreSQL."""
    return os.geteuid() == 0


def _enter_namespace() -> None:
    """Maps this process's root to `nobody` in a user namespace of its own. Raises OSError where that is forbidden."""
    if _libc().unshare(CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    for name, value in (("setgroups", b"deny"), ("uid_map", b"65534 0 1"), ("gid_map", b"65534 0 1")):
        descriptor = os.open(f"/proc/self/{name}", os.O_WRONLY)
        os.write(descriptor, value)
        os.close(descriptor)


def _become_nobody() -> None:
    os.setgroups([])
    os.setgid(NOBODY_ID)
    os.setuid(NOBODY_ID)


@cache
def namespaces_allowed() -> bool:
    """Whether a user namespace can be made here: asked once, by making one in a short-lived child."""
    if not sys.platform.startswith("linux"):
        return False
    _libc()
    try:
        probe = subprocess.run(["true"], preexec_fn=_enter_namespace, timeout=PROBE_TIMEOUT_S, check=False)
    except (subprocess.SubprocessError, OSError):
        return False
    return probe.returncode == 0


def needs_nobody() -> bool:
    """Whether an unprivileged program has to run as the real `nobody` here, so that its folders must be given to it."""
    return is_root() and not namespaces_allowed()


def give_to_nobody(folder: Path) -> None:
    """Gives `folder` and all in it to `nobody`. Raises RuntimeProblem when `nobody` could not reach it anyway."""
    for parent in folder.resolve().parents:
        if not parent.stat().st_mode & 0o001:
            raise RuntimeProblem(
                f"PostgreSQL does not run as root, this machine allows no user namespaces, and the user nobody may not"
                f" pass {parent}: run pawstay as an ordinary user, or name a folder open to everybody with --data.",
                ExitCode.FOLDER_UNUSABLE,
            )
    os.chown(folder, NOBODY_ID, NOBODY_ID)
    for path in folder.rglob("*"):
        os.chown(path, NOBODY_ID, NOBODY_ID, follow_symlinks=False)


def before_exec(*, unprivileged: bool, death_signal: signal.Signals | None) -> Callable[[], None]:
    """What a child does before it executes its program; the result goes to `preexec_fn`.

    `unprivileged`: stop being root. `death_signal` is sent to the child by the kernel when the thread that started
    it ends (Linux only), so that a killed supervisor leaves nothing behind.
    """
    linux = sys.platform.startswith("linux")
    in_namespace = unprivileged and is_root() and namespaces_allowed()
    as_nobody = unprivileged and is_root() and not in_namespace
    libc = _libc() if linux else None  # loaded before the fork: the child must not take the loader's locks
    parent = os.getpid()

    def prepare() -> None:
        if in_namespace:
            _enter_namespace()
        if as_nobody:
            _become_nobody()
        # After the change of credentials, which would clear it.
        if libc is not None and death_signal is not None:
            libc.prctl(PR_SET_PDEATHSIG, int(death_signal))
            if os.getppid() != parent:  # the parent died before the kernel was told
                os._exit(1)

    return prepare

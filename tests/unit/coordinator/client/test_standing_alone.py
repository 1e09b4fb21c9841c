"""The client can be taken elsewhere: its door is pinned, and it needs nothing but `coordinator/` and a few packages."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import coordinator.client

ROOT = Path(__file__).resolve().parents[4]
ALLOWED = {
    "asyncpg", "sqlalchemy", "aiohttp", "httptools", "msgspec", "structlog", "jwt", "cryptography", "coordinator",
}  # fmt: skip
CONTRIB_ALLOWED = {*ALLOWED, "litestar", "dramatiq"}

DOOR = """
Branch BranchAborted BranchConnection BranchId BranchRef BranchRefused BranchRepeated CallFailed CallNotSent
CallOutcomeUnknown CallerRefused Coordinator CoordinatorError CoordinatorUnavailable Deadlock DeadlinePassed
GlobalTransaction LockConflict NoGlobalTransaction OutcomeUnknown Participant Propagation Resource ResourceName Scope
SigningKey Step StepCall TokenMaker TokenVerifier Transaction TransactionRolledBack UnmanagedTable Xid
branch_connect_args committed current lock read_key_set
"""

ALONE = """
import sys, asyncio
sys.path[:0] = [{path!r}, {packages!r}]
if {hide!r}:
    class Hidden:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in ("sqlalchemy", "litestar", "dramatiq", "services", "sharding"):
                raise ModuleNotFoundError(name)
    sys.meta_path.insert(0, Hidden())
from coordinator.client import Coordinator, current
import coordinator.client.contrib.http
async def main():
    coordinator = Coordinator(["http://127.0.0.1:1"])
    async with coordinator:
        async with coordinator.global_transaction("alone") as tx:
            assert current() is not None and tx.branches == ()
asyncio.run(main())
assert coordinator.__file__.startswith({path!r})
assert not set(sys.modules) & {{"services", "sharding", "litestar", "dramatiq", "sqlalchemy"}}, "imported too much"
print("stands alone")
"""


def imported_packages(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found - sys.stdlib_module_names


def test_the_door_is_pinned() -> None:
    """Names come and go here first, on purpose."""
    assert coordinator.client.__all__ == sorted(DOOR.split())
    assert all(hasattr(coordinator.client, name) for name in coordinator.client.__all__)


def test_the_client_imports_only_what_it_says() -> None:
    """Litestar and dramatiq only in the module of that name under contrib; SQLAlchemy only where it is used."""
    client = ROOT / "coordinator" / "client"
    for path in client.rglob("*.py"):
        allowed = CONTRIB_ALLOWED if path.parent.name == "contrib" else ALLOWED
        assert imported_packages(path) <= allowed, path
        if path.parent.name == "contrib":
            assert imported_packages(path) & {"litestar", "dramatiq"} <= {path.stem}, path


def test_a_copy_of_the_folder_alone_runs_without_the_rest_and_without_sqlalchemy(tmp_path: Path) -> None:
    """`python -I` with the copy and the packages on the path: nothing of this repository leaks in."""
    shutil.copytree(ROOT / "coordinator", tmp_path / "coordinator", ignore=shutil.ignore_patterns("__pycache__"))
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    script = ALONE.format(path=str(tmp_path), packages=packages, hide=True)
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False
    )
    assert done.stdout == "stands alone\n", done.stderr

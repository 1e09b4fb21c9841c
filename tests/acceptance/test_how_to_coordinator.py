"""docs/how-to/use-the-coordinator.md works when it is followed word for word, with the coordinator's own wheel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
import zipfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.servers import TestPostgres, free_port

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "how-to" / "use-the-coordinator.md"
BLOCK = re.compile(r"^```(python|sh server|sh|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SERVER_START_TIMEOUT_S = 30
COMMAND_TIMEOUT_S = 60


def wait_until_it_answers(url: str, server: subprocess.Popen[bytes]) -> None:
    """Any HTTP answer will do, also a 404."""
    until = time.monotonic() + SERVER_START_TIMEOUT_S
    while True:
        try:
            urllib.request.urlopen(url, timeout=1).close()  # noqa: S310 - http, made here
            return
        except urllib.error.HTTPError as answer:
            if answer.code < 500:
                return
        except OSError:
            pass
        assert server.poll() is None, f"the server for {url} ended"
        assert time.monotonic() < until, f"nothing answers at {url}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The coordinator as others install it, built from its folder."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT / "coordinator", capture_output=True, text=True, check=True)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture
def reader(postgres: TestPostgres, wheel: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of somebody who has the wheel, three databases and two free ports."""
    with zipfile.ZipFile(wheel) as content:
        content.extractall(tmp_path)
    return {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path),
        "EAST": postgres.create_database(),
        "WEST": postgres.create_database(),
        "STORE": postgres.create_database(),
        "COORDINATOR_URL": f"http://127.0.0.1:{free_port()}",
        "SHOP_URL": f"http://127.0.0.1:{free_port()}",
    }


def test_the_page_works_when_followed_word_for_word(reader: dict[str, str], tmp_path: Path) -> None:
    """Every Python block is saved under its name, every command is run, and what is printed is what the page says."""
    urls = iter([reader["COORDINATOR_URL"] + "/ready", reader["SHOP_URL"] + "/"])
    printed = ""
    compared = 0
    with ExitStack() as stack:
        for kind, content in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
            if kind == "python":
                name = content.splitlines()[0].removeprefix("# ")
                (tmp_path / name).write_text(content)
            elif kind == "sh server":
                server = subprocess.Popen(["sh", "-c", content], cwd=tmp_path, env=reader)
                stack.callback(server.wait)
                stack.callback(server.kill)
                wait_until_it_answers(next(urls), server)
            elif kind == "sh":
                done = subprocess.run(
                    ["sh", "-c", content],
                    cwd=tmp_path,
                    env=reader,
                    capture_output=True,
                    text=True,
                    timeout=COMMAND_TIMEOUT_S,
                    check=False,
                )
                assert done.returncode == 0, done.stderr
                printed = done.stdout
            else:
                assert printed == content
                compared += 1
    assert compared == 4


def test_the_wheel_is_what_the_page_runs_on(reader: dict[str, str], tmp_path: Path) -> None:
    """`coordinator.client` comes from it, it holds all of the folder, and nothing else of the repository."""
    program = "import coordinator.client; print(coordinator.client.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=reader, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)
    assert {path.name for path in tmp_path.iterdir() if not path.name.endswith(".dist-info")} == {"coordinator"}
    there, whole = (
        {
            path.relative_to(root)
            for path in (root / "coordinator").rglob("*")
            if path.suffix in (".py", ".sql", ".typed")
        }
        for root in (tmp_path, ROOT)
    )
    assert there == whole


def test_the_wheel_needs_what_the_whole_needs_and_no_other_versions() -> None:
    """Each of its requirements is one of the project's."""
    whole, alone = (
        tomllib.loads((ROOT / path / "pyproject.toml").read_text())["project"] for path in (".", "coordinator")
    )
    assert f"pawstay_coordinator-{alone['version']}-py3-none-any.whl" in PAGE.read_text(encoding="utf-8")
    asked = {*alone["dependencies"], *(one for extra in alone["optional-dependencies"].values() for one in extra)}
    assert asked <= set(whole["dependencies"])
    assert (alone["version"], alone["requires-python"]) == (whole["version"], whole["requires-python"])

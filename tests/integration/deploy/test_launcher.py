"""The launcher, in a copy of the tree: from a bare machine to the command line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest

from deploy.embedded.privileges import NOBODY_ID, is_root
from deploy.embedded.topology import CHECKOUT

TIMEOUT_S = 90

# Stands in for uv: makes a real environment, and "installs" by pointing it at the packages that are here already.
FAKE_UV = """#!/bin/sh
echo "$@" >> "$UV_CALLS"
case $1 in
    venv) shift; for last; do :; done; "{python}" -m venv --without-pip "$last" ;;
    pip) sleep 0.3; for last; do :; done  # the lock file, beside .venv
        site=$(dirname "$last")/.venv/lib/python{version}/site-packages
        printf '%s\\n' "{site}" > "$site/installed.pth" ;;
esac
"""

TOOLS = ("sh", "cat", "dirname", "basename", "readlink", "mkdir", "rmdir", "rm", "cksum", "sleep", "id", "tail", "kill")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the launcher needs, in a folder with a space in its name."""
    copy = tmp_path / "my checkout"
    copy.mkdir()
    for name in ("pawstay", "requirements.lock"):
        shutil.copy(CHECKOUT / name, copy / name)
    for name in ("deploy", "coordinator", "services", "gateway", "sharding"):
        shutil.copytree(CHECKOUT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """The environment of a bare machine that has POSIX tools, Python and uv, and nothing else on PATH."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        if found is not None:
            (tools / tool).symlink_to(found)
    (tools / "python3").write_text(f'#!/bin/sh\nexec "{Path(sys.executable).resolve()}" "$@"\n')
    uv = FAKE_UV.format(
        python=Path(sys.executable).resolve(),
        version=f"{sys.version_info.major}.{sys.version_info.minor}",
        site=sysconfig.get_path("purelib"),
    )
    (tools / "uv").write_text(uv)
    for program in ("python3", "uv"):
        (tools / program).chmod(0o755)
    (tmp_path / "home").mkdir()
    return {"PATH": str(tools), "HOME": str(tmp_path / "home"), "UV_CALLS": str(tmp_path / "uv-calls")}


def launch(program: Path, *arguments: str, environ: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program), *arguments], env=environ, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


def uv_calls(environ: dict[str, str]) -> list[str]:
    calls = Path(environ["UV_CALLS"])
    return calls.read_text().splitlines() if calls.exists() else []


def test_the_first_start_installs_and_the_second_does_not(
    checkout: Path, machine: dict[str, str], tmp_path: Path
) -> None:
    """One install, then straight to the command line, whose code comes from the checkout itself."""
    first = launch(checkout / "pawstay", "--help", environ=machine, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "Usage: pawstay" in first.stdout
    assert len(uv_calls(machine)) == 3  # --version, venv, pip install
    second = launch(checkout / "pawstay", "--help", environ=machine, cwd=tmp_path)
    assert (second.returncode, second.stderr) == (0, "")
    assert len(uv_calls(machine)) == 3


def test_it_works_through_a_link_from_another_folder(checkout: Path, machine: dict[str, str], tmp_path: Path) -> None:
    """A relative link in a folder on PATH is enough."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "paw").symlink_to(Path("..") / "my checkout" / "pawstay")
    done = launch(elsewhere / "paw", "status", "--data", "no such", environ=machine, cwd=elsewhere)
    assert done.returncode == 3, done.stderr
    assert "Nothing runs" in done.stdout


def test_a_changed_lock_is_installed_again(checkout: Path, machine: dict[str, str], tmp_path: Path) -> None:
    """The stamp is the lock's checksum."""
    launch(checkout / "pawstay", "--help", environ=machine, cwd=tmp_path)
    with (checkout / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    launch(checkout / "pawstay", "--help", environ=machine, cwd=tmp_path)
    assert len([call for call in uv_calls(machine) if call.startswith("pip")]) == 2


def test_an_environment_that_is_there_is_added_to_and_never_emptied(
    checkout: Path, machine: dict[str, str], tmp_path: Path
) -> None:
    """A developer's own .venv keeps what its owner put there, and is not made again."""
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(checkout / ".venv")], check=True, timeout=TIMEOUT_S
    )
    own = checkout / ".venv" / "my-own-tool"
    own.write_text("mine")
    done = launch(checkout / "pawstay", "--help", environ=machine, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert own.read_text() == "mine"
    assert not [call for call in uv_calls(machine) if call.startswith("venv") or " sync " in call]


def test_two_that_start_at_once_install_once(checkout: Path, machine: dict[str, str], tmp_path: Path) -> None:
    """One installs, the other waits for it; both end at the command line."""
    both = [
        subprocess.Popen(
            [str(checkout / "pawstay"), "--help"],
            env=machine,
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(2)
    ]
    assert [one.wait(TIMEOUT_S) for one in both] == [0, 0]
    assert len([call for call in uv_calls(machine) if call.startswith("pip")]) == 1
    assert not (checkout / ".venv-claim").exists()


def test_an_install_that_was_killed_does_not_block_the_next(
    checkout: Path, machine: dict[str, str], tmp_path: Path
) -> None:
    """A claim whose owner is dead is taken over."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    (checkout / ".venv-claim").mkdir()
    (checkout / ".venv-claim" / "pid").write_text(f"{gone.pid}\n")
    assert launch(checkout / "pawstay", "--help", environ=machine, cwd=tmp_path).returncode == 0


def test_without_python_it_says_what_to_install(checkout: Path, machine: dict[str, str], tmp_path: Path) -> None:
    """One sentence with the way out for Debian and macOS."""
    (tmp_path / "bin" / "python3").unlink()
    done = launch(checkout / "pawstay", "up", environ=machine, cwd=tmp_path)
    assert done.returncode == 7
    assert "Python 3.11 or newer is needed" in done.stderr
    assert "apt install python3" in done.stderr
    assert not (checkout / ".venv-claim").exists()


def test_with_an_old_python_it_says_what_to_install(checkout: Path, machine: dict[str, str], tmp_path: Path) -> None:
    """A Python that is too old is not used."""
    (tmp_path / "bin" / "python3").write_text("#!/bin/sh\nexit 1\n")
    done = launch(checkout / "pawstay", "up", environ=machine, cwd=tmp_path)
    assert done.returncode == 7
    assert "Python 3.11 or newer is needed" in done.stderr


def test_without_the_venv_module_it_says_what_to_install(
    checkout: Path, machine: dict[str, str], tmp_path: Path
) -> None:
    """A Python that can make no environment is named, with the way out."""
    (tmp_path / "bin" / "uv").unlink()
    python = f'#!/bin/sh\ncase "$*" in *venv*) exit 1 ;; esac\nexec "{Path(sys.executable).resolve()}" "$@"\n'
    (tmp_path / "bin" / "python3").write_text(python)
    done = launch(checkout / "pawstay", "up", environ=machine, cwd=tmp_path)
    assert done.returncode == 7
    assert "apt install python3-venv" in done.stderr


def test_where_pip_cannot_be_had_it_says_what_to_install(
    checkout: Path, machine: dict[str, str], tmp_path: Path
) -> None:
    """Debian's python3 comes without pip and ensurepip; the environment that is there is left as it is."""
    without_pip(checkout, tmp_path)
    done = launch(checkout / "pawstay", "up", environ=machine, cwd=tmp_path)
    assert done.returncode == 7
    assert "comes without pip" in done.stderr
    assert "apt install python3-venv" in done.stderr
    assert not (checkout / ".venv" / ".pawstay-stamp").exists()


def without_pip(checkout: Path, tmp_path: Path) -> None:
    """Makes the machine one without uv, and the environment one whose Python can bring no pip of its own."""
    (tmp_path / "bin" / "uv").unlink()
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(checkout / ".venv")], check=True, timeout=TIMEOUT_S
    )
    site = next((checkout / ".venv" / "lib").glob("python*/site-packages"))
    (site / "none.pth").write_text("import sys; sys.modules['ensurepip'] = None\n")


def test_without_uv_pip_installs(checkout: Path, machine: dict[str, str], tmp_path: Path) -> None:
    """With an empty lock pip has nothing to fetch, so only the way there is shown; the packages come by hand."""
    (tmp_path / "bin" / "uv").unlink()
    (checkout / "requirements.lock").write_text("# nothing\n")
    done = launch(checkout / "pawstay", "--help", environ=machine, cwd=tmp_path)
    assert "No module named 'typer'" in done.stderr
    assert (checkout / ".venv" / ".pawstay-stamp").exists()
    assert (checkout / ".venv" / "bin" / "pip").exists()


def test_it_says_so_when_the_packages_are_missing_and_the_folder_is_closed(machine: dict[str, str]) -> None:
    """An ordinary user in somebody else's checkout hears whose turn it is."""
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder) / "checkout"
        checkout.mkdir()
        for name in ("pawstay", "requirements.lock"):
            shutil.copy(CHECKOUT / name, checkout / name)
        Path(folder).chmod(0o755)
        checkout.chmod(0o555)
        done = subprocess.run(
            [str(checkout / "pawstay"), "up"],
            env={**machine, "PATH": os.defpath},
            cwd="/",
            user=NOBODY_ID if is_root() else None,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        checkout.chmod(0o755)
    assert done.returncode == 7
    assert "may not be written" in done.stderr

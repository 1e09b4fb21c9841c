"""The rendered configuration, as text and in Nginx's own opinion."""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from gateway.check import ConfigRefused, check, command, install, wheel_binary, worker_user
from gateway.nginx import PROBLEMS, TRANSACTION_HEADERS, RenderError, problem_body, render
from gateway.routes import ROUTES

ROOT = Path(__file__).resolve().parents[3]
NOBODY = 65534
ONE = {service: ["127.0.0.1:8081"] for service in ROUTES.services}
SEVERAL = {service: ["127.0.0.1:8081", "[::1]:8082", "10.0.0.3:8081"] for service in ROUTES.services}


def _render(folder: Path, upstreams: Any = ONE, **options: Any) -> str:
    folders = {"prefix_dir": folder / "run", "log_dir": folder / "log", "docs_dir": folder / "docs"}
    return render(ROUTES, upstreams, **{"port": 18080, **folders, **options})


@pytest.mark.parametrize(
    ("upstreams", "options"),
    [
        (ONE, {}),
        (SEVERAL, {"workers": 2, "host": "[::1]"}),
        ({s: [f"{s}:80"] for s in ONE}, {"resolver": "127.0.0.11"}),
        ({s: [f"{s}-a:80", f"{s}-b:80"] for s in ONE}, {"resolver": "127.0.0.11"}),
    ],
    ids=["one server", "several servers", "resolved names", "resolved names, several"],
)
def test_nginx_accepts_every_variant(tmp_path: Path, upstreams: Any, options: dict[str, Any]) -> None:
    """`nginx -t` passes without a warning, in a folder whose name has a space, a quote and a semicolon."""
    folder = tmp_path / "a 'folder'; with \"odd\" {name} #1 宠物"
    config = install(_render(folder, upstreams, **options), prefix_dir=folder / "run", log_dir=folder / "log")
    assert "[warn]" not in check(config, prefix_dir=folder / "run")


def test_the_workers_user_may_be_named(tmp_path: Path) -> None:
    """A user with its group is taken as given."""
    user = f"{pwd.getpwuid(os.getuid()).pw_name} {grp.getgrgid(os.getgid()).gr_name}"
    text = _render(tmp_path, user=user)
    assert f"\nuser {user};\n" in text
    check(install(text, prefix_dir=tmp_path / "run", log_dir=tmp_path / "log"), prefix_dir=tmp_path / "run")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else; every other test covers the rest")
def test_nginx_accepts_the_configuration_as_an_ordinary_user() -> None:
    """Without any privilege, and without a warning, everything is written inside the given folders."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        folder.chmod(0o711)
        binary = shutil.copy(wheel_binary(), folder / "nginx")
        config = install(_render(folder), prefix_dir=folder / "run", log_dir=folder / "log")
        for path in (folder / "run", folder / "log"):
            os.chown(path, NOBODY, NOBODY)
        argv = [*command(Path(binary), config, folder / "run"), "-t"]
        done = subprocess.run(
            argv, user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, text=True, timeout=20
        )
        assert done.returncode == 0, done.stderr
        assert "[warn]" not in done.stderr
        assert (folder / "run" / "proxy").stat().st_uid == NOBODY


def test_a_refused_configuration_says_what_nginx_said(tmp_path: Path) -> None:
    """ConfigRefused carries Nginx's message with the line."""
    config = install("events {}\nhttp { no_such_directive on; }\n", prefix_dir=tmp_path, log_dir=tmp_path)
    with pytest.raises(ConfigRefused, match=r'unknown directive "no_such_directive".*nginx\.conf:2'):
        check(config, prefix_dir=tmp_path)


def test_the_same_input_gives_the_same_text(tmp_path: Path) -> None:
    """Rendering is a function: nothing of clock, dice or environment is in the text."""
    assert _render(tmp_path) == _render(tmp_path, dict(reversed(ONE.items())))


def test_nothing_of_this_machine_but_the_given_folders_is_named(tmp_path: Path) -> None:
    """Every absolute path in the configuration lies in a folder that was passed in."""
    text = _render(tmp_path)
    named = re.findall(r'^\s*(?:pid|error_log|access_log|alias|\w+_temp_path) "([^"]+)"', text, re.MULTILINE)
    assert len(named) == 9
    assert all(path.startswith(str(tmp_path)) for path in named)


@pytest.mark.parametrize("servers", [[], ["http://127.0.0.1:8081"], ["127.0.0.1"], ["a:1; evil"], "127.0.0.1:8081"])
def test_a_service_without_a_proper_server_is_refused(tmp_path: Path, servers: Any) -> None:
    """Each routed service needs a list of host:port; the message names the service."""
    with pytest.raises(RenderError, match="order"):
        _render(tmp_path, {**ONE, "order": servers})


@pytest.mark.parametrize("folder", ["relative/folder", "/with/$variable", "/with/\nnewline"])
def test_a_folder_that_nginx_cannot_name_is_refused(tmp_path: Path, folder: str) -> None:
    """A relative folder, and one whose name would be read as something else, raise with the folder's role."""
    with pytest.raises(RenderError, match="docs_dir"):
        _render(tmp_path, docs_dir=folder)


def test_services_that_are_not_routed_get_no_upstream(tmp_path: Path) -> None:
    """An address of the coordinator, passed in along with the rest, stays out of the configuration."""
    assert "8090" not in _render(tmp_path, {**ONE, "coordinator": ["127.0.0.1:8090"]})


def test_a_write_is_never_allowed_to_be_repeated(tmp_path: Path) -> None:
    """`non_idempotent` stands nowhere but in the comment that forbids it."""
    code = "\n".join(line for line in _render(tmp_path).splitlines() if not line.strip().startswith("#"))
    assert "non_idempotent" not in code
    assert "proxy_next_upstream error timeout;" in code


def test_every_transaction_header_that_the_code_knows_is_removed() -> None:
    """A new X-Tx-* header in the sources is noticed here before a client can forge it."""
    known = {name.lower() for name in TRANSACTION_HEADERS}
    for package in ("coordinator", "services"):
        for source in (ROOT / package).rglob("*.py"):
            names = re.findall(r"(?i)\bx-tx-[a-z-]*[a-z]", source.read_text(encoding="utf-8"))
            assert {name.lower() for name in names} <= known, source


@pytest.mark.parametrize("status", PROBLEMS)
def test_each_problem_is_what_rfc_9457_says(status: int) -> None:
    """Type, title, status and detail are there, with our code and ids; the text survives Nginx's quoting."""
    body = problem_body(status)
    problem = json.loads(body)
    assert problem["status"] == status
    assert problem["type"] == f"urn:pawstay:problem:{problem['code']}"
    assert problem["title"] and problem["detail"]
    assert "'" not in body and "\\" not in body
    assert re.findall(r"\$\w+", body) == ["$gateway_request_id", "$gateway_trace_id"]


def test_workers_stay_root_only_where_nobody_else_could_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary user names no user; root names itself only for folders that others cannot walk into."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert worker_user(tmp_path) is None
    monkeypatch.setattr("os.geteuid", lambda: 0)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    assert worker_user(closed / "not yet there") == "root"
    assert worker_user(Path("/usr/share")) is None

"""What the command line says when something is wrong: one sentence, an exit code, no traceback."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from coordinator.tc.config import Limits
from deploy.cli import TRANSACTIONS_MAX
from deploy.commands.bench import reached
from deploy.console import table
from deploy.embedded.problems import ExitCode
from tests.support.commands import pawstay


def test_help_names_every_command_and_the_exit_codes(tmp_path: Path) -> None:
    """What can be done is one `--help` away."""
    said = pawstay("--help", folder=tmp_path)
    assert said.code == 0
    for command in ("up", "down", "status", "logs", "serve", "test", "bench", "demo", "shards", "transactions"):
        assert command in said.out
    for code in ExitCode:
        assert f"{int(code)} " in said.text


def test_a_taken_gateway_port_is_refused_at_once(tmp_path: Path) -> None:
    """Nothing is started, and the way out is named."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        said = pawstay("up", "--detach", "--port", str(port), "--data", "data", folder=tmp_path)
    assert said.code == ExitCode.PORT_TAKEN
    assert f"Port {port} is taken by another program" in said.text
    assert "Traceback" not in said.text
    assert not (tmp_path / "data" / "run" / "state.json").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["down"], ExitCode.OK, "Nothing runs in"),
        (["status"], ExitCode.NOT_RUNNING, "start it with 'pawstay up'"),
        (["logs"], ExitCode.NOT_RUNNING, "nothing was started there yet"),
        (["shards", "status"], ExitCode.NOT_RUNNING, "start it with 'pawstay up'"),
        (["transactions", "list"], ExitCode.NOT_RUNNING, "start it with 'pawstay up'"),
        (["up", "--port", "0"], ExitCode.USAGE, "--port"),
        (["up", "--prot", "1"], ExitCode.USAGE, "No such option"),
        (["bench", "nothing-of-the-kind"], ExitCode.USAGE, "no benchmark nothing-of-the-kind"),
    ],
)
def test_a_command_that_cannot_be_done_says_why(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    """The sentence, the exit code, and nothing else."""
    data = [] if arguments[0] == "bench" else ["--data", "data"]
    said = pawstay(*arguments, *data, folder=tmp_path)
    assert (said.code, words in said.text) == (code, True), said
    assert "Traceback" not in said.text


def test_serve_names_the_services_when_asked_for_another(tmp_path: Path) -> None:
    """A misspelt name leads to the right one."""
    said = pawstay("serve", "oder", folder=tmp_path)
    assert said.code == ExitCode.USAGE
    assert "There is no service 'oder'" in said.text
    assert "order" in said.text


def test_serve_names_the_variable_that_is_missing(tmp_path: Path) -> None:
    """Wrong settings are told by their names."""
    said = pawstay("serve", "pet", folder=tmp_path, environ={"PAWSTAY_PORT": "many"})
    assert said.code == ExitCode.SETTING_WRONG
    assert "PAWSTAY_PORT" in said.text
    assert "PAWSTAY_KEY_FILE" in said.text
    assert "Traceback" not in said.text


@pytest.mark.parametrize("service", ["coordinator", "all", "worker", "order"])
def test_whatever_is_served_without_its_settings_names_one_and_ends_alike(tmp_path: Path, service: str) -> None:
    """One sentence and one exit code for a service, the coordinator, the worker and all at once."""
    said = pawstay("serve", service, folder=tmp_path)
    assert said.code == ExitCode.SETTING_WRONG
    assert "The settings are wrong: PAWSTAY_" in said.text


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("st", ["status"]),
        ("shards ", ["status"]),
        ("serve o", ["order"]),
        ("demo --scene c", ["coordinator-killed", "cancelled-stay"]),
        ("bench first", ["first-booking"]),
        ("logs --data data ", ["gateway", "main"]),
        ("logs --data nowhere ", []),
    ],
)
def test_a_shell_completes_commands_and_their_values(tmp_path: Path, words: str, completed: list[str]) -> None:
    """As bash asks, by the name of the launcher; what cannot be known completes nothing and is no error."""
    for name in ("main", "gateway"):
        (tmp_path / "data" / "logs").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "logs" / f"{name}.log").write_text("")
    environ = {
        "_PAWSTAY_COMPLETE": "complete_bash",
        "COMP_WORDS": f"./pawstay {words}",
        "COMP_CWORD": str(len(words.split(" "))),
    }
    said = pawstay(folder=tmp_path, environ=environ)
    assert (said.code, said.out.split(), said.err) == (0, completed, "")


def test_the_key_of_a_row_stays_whole_in_a_narrow_window() -> None:
    """An xid that is cut off could not be asked for."""
    from rich.console import Console

    xid = "01a21248-280c-7e81-acff-2ba8d04d1984"
    shown = table("xid", "name", "caller", "decision", "settlement", "begun")
    shown.add_row(xid, "book", "order", "ROLLED_BACK (timeout)", "SETTLED", "11-25 10:37:28")
    console = Console(width=70)
    with console.capture() as captured:
        console.print(shown)
    assert xid in captured.get()


def test_no_more_transactions_can_be_asked_for_than_the_coordinator_gives() -> None:
    """The flag's bound is the coordinator's own, so no --limit ends in its refusal."""
    assert Limits().page_max == TRANSACTIONS_MAX


def test_a_named_server_that_is_no_program_is_refused(tmp_path: Path) -> None:
    """The setting and the path are named, before anything starts."""
    environ = {"PAWSTAY_NGINX_BIN": "/nonexistent/nginx"}
    said = pawstay("up", "--detach", "--data", "data", "--port", "18099", folder=tmp_path, environ=environ)
    assert said.code == ExitCode.SETTING_WRONG
    assert "PAWSTAY_NGINX_BIN leads to /nonexistent/nginx" in said.text


def test_the_data_folder_can_be_named_by_a_variable(tmp_path: Path) -> None:
    """PAWSTAY_DATA stands where no --data is given."""
    said = pawstay("status", "--json", folder=tmp_path, environ={"PAWSTAY_DATA": str(tmp_path / "there")})
    assert json.loads(said.out) == {"phase": "down", "data": str(tmp_path / "there"), "programs": []}


def test_a_benchmark_reaches_its_goal_or_misses_it() -> None:
    """Both relations; a figure that was not measured is a miss."""
    result = {
        "figures": {"ratio": 0.5, "trips": 0},
        "goals": {"ratio": [">=", 0.5], "trips": ["<=", 0], "p99": ["<=", 1]},
    }
    assert reached(result, "ratio")
    assert reached(result, "trips")
    assert not reached(result, "p99")
    assert not reached({"figures": {"ratio": 0.4}, "goals": {"ratio": [">=", 0.5]}}, "ratio")


def test_postgres_older_than_the_oldest_supported_is_refused(tmp_path: Path) -> None:
    """The sentence names both versions."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for program in ("initdb", "postgres"):
        (folder / program).write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 15.18 (Debian)'\n")
        (folder / program).chmod(0o700)
    environ = {"PAWSTAY_POSTGRES_BIN": str(folder)}
    said = pawstay("up", "--detach", "--data", "data", "--port", "18098", folder=tmp_path, environ=environ)
    assert said.code == ExitCode.SETTING_WRONG
    assert "PostgreSQL 15; 17 or newer is needed" in said.text


@pytest.mark.parametrize(
    ("setting", "answer", "words"),
    [
        ("PAWSTAY_REDIS_BIN", "Redis server v=6.2.14 sha=00000000:0", "names Redis 6; 7 or newer is needed"),
        ("PAWSTAY_REDIS_BIN", "", "is no Redis or Valkey server"),
        ("PAWSTAY_NGINX_BIN", "nginx version: nginx/1.18.0", "names Nginx 1.18; 1.20 or newer is needed"),
        ("PAWSTAY_NGINX_BIN", "hello", "is no Nginx server"),
    ],
)
def test_a_named_redis_or_nginx_that_is_old_or_another_program_is_refused(
    tmp_path: Path, setting: str, answer: str, words: str
) -> None:
    """Before anything starts, and not by the silence of a server that never comes up."""
    program = tmp_path / "server"
    program.write_text(f"#!/bin/sh\necho '{answer}' >&2\n")
    program.chmod(0o700)
    environ = {setting: str(program)}
    said = pawstay("up", "--detach", "--data", "data", "--port", "18097", folder=tmp_path, environ=environ)
    assert said.code == ExitCode.SETTING_WRONG
    assert words in said.text


def test_a_named_postgres_that_cannot_be_executed_is_refused(tmp_path: Path) -> None:
    """A program of another machine is one sentence, no traceback in a log."""
    for program in ("initdb", "postgres"):
        (tmp_path / program).write_bytes(b"\x7fELF of elsewhere")
        (tmp_path / program).chmod(0o700)
    environ = {"PAWSTAY_POSTGRES_BIN": str(tmp_path)}
    said = pawstay("up", "--detach", "--data", "data", "--port", "18096", folder=tmp_path, environ=environ)
    assert said.code == ExitCode.SETTING_WRONG
    assert "is no PostgreSQL server that runs here" in said.text


def test_down_of_a_file_is_refused_in_words(tmp_path: Path) -> None:
    """A wrong --data is told, whatever the command."""
    (tmp_path / "data").write_text("")
    said = pawstay("down", "--data", "data", folder=tmp_path)
    assert (said.code, "is a file, not a folder" in said.text) == (ExitCode.FOLDER_UNUSABLE, True), said

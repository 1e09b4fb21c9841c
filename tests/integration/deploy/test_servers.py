"""The embedded servers one by one: they start, stop, survive, and leave nothing behind."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest
import redis

from deploy.embedded import privileges
from deploy.embedded.binaries import find_binaries, find_postgres
from deploy.embedded.nginx import NginxServer
from deploy.embedded.postgres import DURABLE, SUPERUSER, THROWAWAY, PostgresServer
from deploy.embedded.privileges import NOBODY_ID, is_root
from deploy.embedded.problems import ExitCode, RuntimeProblem
from deploy.embedded.programs import ProcessRecord, Running, stop_process
from deploy.embedded.valkey import ValkeyServer
from tests.support.commands import processes_below
from tests.support.servers import free_port

GONE_TIMEOUT_S = 15
PASSWORD = "secret"
as_root = pytest.mark.skipif(not is_root(), reason="what happens to root")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user may pass, with a space in its name."""
    made = Path(tempfile.mkdtemp(prefix="pawstay test "))
    made.chmod(0o711)
    yield made
    assert processes_below(made) == []
    shutil.rmtree(made)


def postgres_in(folder: Path, *, password: str | None = PASSWORD) -> PostgresServer:
    return PostgresServer(
        name="postgres",
        binaries=find_postgres(os.environ),
        folder=folder / "data",
        port=free_port(),
        log=folder / "postgres.log",
        password=password,
        settings=THROWAWAY,
    )


def fetch(dsn: str, sql: str) -> object:
    """One value, on a loop of its own: usable in a forked child as well."""

    async def ask() -> object:
        connection = await asyncpg.connect(dsn)
        try:
            return await connection.fetchval(sql)
        finally:
            await connection.close()

    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(ask())
    finally:
        loop.close()


def test_postgres_starts_serves_and_stops_with_its_folder_closed_to_others(folder: Path) -> None:
    """The folder keeps mode 700, its owner stays, and the configured settings hold."""
    server = postgres_in(folder)
    running = Running.start(server)
    try:
        assert fetch(server.dsn(), "SELECT current_setting('wal_level')") == DURABLE["wal_level"]
        assert fetch(server.dsn(), "SELECT current_setting('max_prepared_transactions')") == "0"
        assert server.folder.stat().st_mode & 0o777 == 0o700
        if privileges.namespaces_allowed():
            assert server.folder.stat().st_uid == os.geteuid()
    finally:
        running.stop()
    assert not (server.folder / "postmaster.pid").exists()


def test_postgres_tells_a_refused_statement_in_one_line(folder: Path) -> None:
    """Rows that are locked are refused all day long: the log stays readable, and names who was refused."""
    server = postgres_in(folder)
    running = Running.start(server)
    try:
        with pytest.raises(asyncpg.exceptions.RaiseError):
            fetch(server.dsn(), "DO $$ BEGIN RAISE EXCEPTION 'a row is held' USING DETAIL = 'by whom'; END $$")
    finally:
        running.stop()
    told = server.log.read_text().split("ERROR:  a row is held")
    assert len(told) == 2
    assert told[0].endswith(f"{SUPERUSER}@postgres ")
    assert "by whom" not in told[1] and "CONTEXT" not in told[1] and "STATEMENT" not in told[1]


def test_postgres_lets_nobody_in_without_the_password(folder: Path) -> None:
    """A neighbour on the same machine who knows the port but not the password is refused."""
    server = postgres_in(folder)
    running = Running.start(server)
    try:
        with pytest.raises(asyncpg.InvalidPasswordError):
            fetch(server.dsn(password="guessed"), "SELECT 1")
        assert "password" not in repr(server)
    finally:
        running.stop()


@as_root
def test_postgres_runs_as_nobody_where_user_namespaces_are_forbidden(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container that refuses user namespaces the server runs as the real nobody, who owns its folder only."""
    monkeypatch.setattr(privileges, "namespaces_allowed", lambda: False)
    server = postgres_in(folder)
    running = Running.start(server)
    try:
        assert fetch(server.dsn(), "SELECT 1") == 1
        assert psutil.Process(running.popen.pid).uids().real == NOBODY_ID
        assert server.folder.stat().st_uid == NOBODY_ID
        assert folder.stat().st_uid == 0
    finally:
        running.stop()


@as_root
def test_postgres_says_what_to_do_where_nobody_cannot_reach_its_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without user namespaces, below a folder that is closed to others, the sentence names that folder."""
    monkeypatch.setattr(privileges, "namespaces_allowed", lambda: False)
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(RuntimeProblem, match=f"may not pass {closed}") as refused:
        Running.start(postgres_in(closed))
    assert refused.value.code is ExitCode.FOLDER_UNUSABLE


@as_root
def test_postgres_runs_for_an_ordinary_user(folder: Path) -> None:
    """The same code, started by somebody who is not root."""
    mine = folder / "mine"
    mine.mkdir(mode=0o700)
    os.chown(mine, NOBODY_ID, NOBODY_ID)
    server = postgres_in(mine)
    privileges._libc()  # a forked child that gave up root may not read the interpreter's folder any more

    def as_nobody() -> None:
        os.setgroups([])
        os.setgid(NOBODY_ID)
        os.setuid(NOBODY_ID)
        os.environ["HOME"] = str(mine)
        running = Running.start(server)
        answer = fetch(server.dsn(), "SELECT 1")
        running.stop()
        os._exit(0 if answer == 1 else 1)

    child = multiprocessing.get_context("fork").Process(target=as_nobody)
    child.start()
    child.join(60)
    assert child.exitcode == 0


def test_postgres_comes_back_after_kill_9_with_what_was_committed(folder: Path) -> None:
    """A crash of the postmaster loses no committed row, and the next start needs no help."""
    server = postgres_in(folder)
    running = Running.start(server)
    fetch(server.dsn(), "CREATE TABLE kept AS SELECT 42 AS n")
    running.kill()
    running = Running.start(server)
    try:
        assert fetch(server.dsn(), "SELECT n FROM kept") == 42
    finally:
        running.stop()


def test_postgres_is_not_kept_down_by_a_lock_file_with_a_strangers_process_id(folder: Path) -> None:
    """After a reboot the id in the lock file may be another program's; that program is left alone."""
    server = postgres_in(folder)
    Running.start(server).stop()
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        lock = server.folder / "postmaster.pid"
        lock.write_text(f"{stranger.pid}\n{server.folder}\n1\n{server.port}\n\n127.0.0.1\n0 0\nready\n")
        running = Running.start(server)
        try:
            assert fetch(server.dsn(), "SELECT 1") == 1
            assert stranger.poll() is None
        finally:
            running.stop()
    finally:
        stranger.kill()
        stranger.wait()


def test_postgres_refuses_a_folder_that_holds_something_else(folder: Path) -> None:
    """Nothing is written over."""
    server = postgres_in(folder)
    server.folder.mkdir()
    (server.folder / "thesis.txt").write_text("mine")
    with pytest.raises(RuntimeProblem, match="is not empty") as refused:
        server.prepare()
    assert refused.value.code is ExitCode.FOLDER_FOREIGN
    assert (server.folder / "thesis.txt").read_text() == "mine"


def test_valkey_keeps_what_was_written_and_asks_for_its_password(folder: Path) -> None:
    """A clean stop and start keeps the data; without the password nothing is answered."""
    binaries = find_binaries(os.environ)
    server = ValkeyServer("valkey", binaries.redis, folder / "valkey", free_port(), folder / "valkey.log", "secret")
    running = Running.start(server)
    with redis.Redis.from_url(server.url()) as client:
        client.set("kept", "42")
    running.stop()
    running = Running.start(server)
    try:
        with redis.Redis.from_url(server.url()) as client:
            assert client.get("kept") == b"42"
        with (
            pytest.raises(redis.AuthenticationError),
            redis.Redis.from_url(f"redis://127.0.0.1:{server.port}/0") as intruder,
        ):
            intruder.get("kept")
    finally:
        running.stop()


def test_nginx_says_what_is_wrong_with_its_configuration(folder: Path) -> None:
    """A configuration that Nginx refuses is refused before anything starts."""
    binaries = find_binaries(os.environ)
    server = NginxServer(
        "gateway", binaries.nginx, folder / "nginx", folder / "logs", free_port(), folder / "nginx.log", "nonsense;"
    )
    with pytest.raises(RuntimeProblem, match="nonsense"):
        Running.start(server)


def test_a_process_is_never_stopped_under_a_recycled_id() -> None:
    """A record whose instant of start differs is another process, and is left alone."""
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        record = ProcessRecord.of(stranger.pid)
        assert record is not None
        older = ProcessRecord(record.pid, record.started_at - 100)
        assert older.replaced()
        assert stop_process(older, signal.SIGKILL, timeout_s=0.2)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_servers_die_with_whoever_started_them(folder: Path) -> None:
    """kill -9 of the parent ends PostgreSQL in good order (Linux tells it)."""
    server = postgres_in(folder)

    def parent() -> None:
        Running.start(server)
        time.sleep(60)

    process = multiprocessing.get_context("fork").Process(target=parent)
    process.start()
    deadline = time.monotonic() + GONE_TIMEOUT_S
    while not server.ready():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.join()
    while processes_below(folder):
        assert time.monotonic() < deadline
        time.sleep(0.05)

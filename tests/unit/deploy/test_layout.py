"""The data folder: what is refused, and in which words."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.embedded import layout as layout_module
from deploy.embedded.layout import LAYOUT_VERSION, Layout, write_private
from deploy.embedded.privileges import NOBODY_ID, is_root
from deploy.embedded.problems import ExitCode, RuntimeProblem
from deploy.embedded.system import data_folder


def refused(root: Path) -> RuntimeProblem:
    with pytest.raises(RuntimeProblem) as caught:
        Layout(root).prepare()
    return caught.value


def test_a_new_folder_is_made_closed_to_others_and_prepared_again_without_change(tmp_path: Path) -> None:
    """Preparing twice is preparing once."""
    found = Layout(tmp_path / "a b" / "data")
    found.prepare()
    found.prepare()
    assert found.root.stat().st_mode & 0o077 in (0, 0o011)
    assert found.secrets.stat().st_mode & 0o777 == 0o700
    assert json.loads(found.version_file.read_text()) == {"program": "pawstay", "layout": LAYOUT_VERSION}


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    """The sentence says that it is a file."""
    (tmp_path / "data").write_text("")
    problem = refused(tmp_path / "data")
    assert problem.code is ExitCode.FOLDER_UNUSABLE
    assert "is a file, not a folder" in str(problem)
    with pytest.raises(RuntimeProblem, match="is a file, not a folder"):
        Layout(tmp_path / "data").check_version()


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    """Nobody's home is turned into a database."""
    (tmp_path / "thesis.txt").write_text("mine")
    problem = refused(tmp_path)
    assert problem.code is ExitCode.FOLDER_FOREIGN
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(("version", "word"), [(LAYOUT_VERSION - 1, "an older"), (LAYOUT_VERSION + 1, "a newer")])
def test_a_folder_of_another_version_is_refused(tmp_path: Path, version: int, word: str) -> None:
    """The sentence says which of the two is older."""
    (tmp_path / "pawstay.json").write_text(json.dumps({"program": "pawstay", "layout": version}))
    problem = refused(tmp_path)
    assert problem.code is ExitCode.FOLDER_FOREIGN
    assert f"made by {word} PawStay" in str(problem)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"program": "other", "layout": 1}'])
def test_a_version_file_that_is_not_ours_is_refused(tmp_path: Path, text: str) -> None:
    """Garbage is not guessed at."""
    (tmp_path / "pawstay.json").write_text(text)
    assert refused(tmp_path).code is ExitCode.FOLDER_FOREIGN


def test_a_full_disk_is_refused_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence says how much is free and how much is needed."""
    monkeypatch.setattr(layout_module, "NEW_FREE_MIN_MB", 10**9)
    problem = refused(tmp_path / "data")
    assert problem.code is ExitCode.FOLDER_UNUSABLE
    assert "is full" in str(problem)


def test_a_system_that_is_there_needs_less_room_than_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a new system would need does not keep one from coming back; an entirely full disk does."""
    Layout(tmp_path / "data").prepare()
    (tmp_path / "data" / "postgres" / "main").mkdir()
    (tmp_path / "data" / "postgres" / "main" / "PG_VERSION").write_text("18")
    monkeypatch.setattr(layout_module, "NEW_FREE_MIN_MB", 10**9)
    Layout(tmp_path / "data").prepare()
    monkeypatch.setattr(layout_module, "FREE_MIN_MB", 10**9)
    assert "is full" in str(refused(tmp_path / "data"))


def test_a_folder_below_a_read_only_file_system_is_refused() -> None:
    """Whatever the system answers becomes one sentence with a way out."""
    problem = refused(Path("/proc/pawstay"))
    assert problem.code is ExitCode.FOLDER_UNUSABLE
    assert "name another one with --data" in str(problem)


def test_a_folder_that_its_owner_closed_is_refused_and_stays_closed() -> None:
    """A read-only folder is nobody's to reopen, not even one that was ours before.

    Asked as an ordinary user, for root may write everywhere.
    """
    folder = Path(tempfile.mkdtemp(prefix="pawstay-closed-"))
    Layout(folder).prepare()
    for path in (folder, *folder.iterdir()):
        os.chown(path, NOBODY_ID if is_root() else -1, -1)
    folder.chmod(0o500)
    assert "may not be used by this user" in words_for_an_ordinary_user(Layout(folder).prepare)
    assert folder.stat().st_mode & 0o777 == 0o500
    folder.chmod(0o700)
    shutil.rmtree(folder)


def test_a_folder_that_may_not_be_looked_into_is_refused_by_every_command() -> None:
    """Whether something runs in somebody else's folder cannot be said, and is not guessed at."""
    outer = Path(tempfile.mkdtemp(prefix="pawstay-closed-"))
    inner = outer / "data"
    inner.mkdir()
    outer.chmod(0o000)
    for folder in (outer, inner):
        assert "may not be used by this user" in words_for_an_ordinary_user(lambda folder=folder: data_folder(folder))
    outer.chmod(0o700)
    shutil.rmtree(outer)


def words_for_an_ordinary_user(act: Callable[[], object]) -> str:
    """The RuntimeProblem that `act` raises in a child that is not root; empty when it raises none."""
    reading, writing = multiprocessing.get_context("fork").Pipe(duplex=False)

    def ask() -> None:
        if is_root():
            os.setgroups([])
            os.setgid(NOBODY_ID)
            os.setuid(NOBODY_ID)
        try:
            act()
            writing.send("")
        except RuntimeProblem as problem:
            writing.send(str(problem))

    child = multiprocessing.get_context("fork").Process(target=ask)
    child.start()
    child.join(30)
    return str(reading.recv()) if reading.poll() else f"the child ended with {child.exitcode}"


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    """The lock is exclusive, and free again when its holder lets go."""
    found = Layout(tmp_path)
    held = found.lock()
    assert held is not None
    assert found.lock() is None
    assert found.locked()
    os.close(held)
    assert not found.locked()


def test_a_private_file_is_never_open_to_others(tmp_path: Path) -> None:
    """Not even one that was open before."""
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o600)

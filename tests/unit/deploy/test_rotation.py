"""Logs stay below a bound, whatever the disk says."""

from __future__ import annotations

from pathlib import Path

from deploy.embedded.supervisor import rotate_logs


def test_a_log_above_the_bound_is_moved_aside_while_its_writer_goes_on(tmp_path: Path) -> None:
    """The old lines are in the copy, the new ones in the file, also in a program's own folder; small ones are left."""
    (tmp_path / "gateway").mkdir()
    large, small, inner = tmp_path / "main.log", tmp_path / "worker.log", tmp_path / "gateway" / "access.log"
    large.write_text("old\n")
    inner.write_text("old\n")
    small.write_text("-\n")
    with large.open("ab", buffering=0) as writer:
        writer.write(b"last\n")
        rotate_logs(tmp_path, max_bytes=3)
        writer.write(b"new\n")
    assert (tmp_path / "main.log.1").read_text() == "old\nlast\n"
    assert large.read_text() == "new\n"
    assert (inner.read_text(), (tmp_path / "gateway" / "access.log.1").read_text()) == ("", "old\n")
    assert (small.read_text(), (tmp_path / "worker.log.1").exists()) == ("-\n", False)


def test_a_log_that_cannot_be_copied_keeps_its_lines_and_stops_nothing(tmp_path: Path) -> None:
    """The others are moved aside all the same."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.log").write_text("lines\n")
    (tmp_path / "a.log.1").mkdir()
    rotate_logs(tmp_path, max_bytes=3)
    assert (tmp_path / "a.log").read_text() == "lines\n"
    assert (tmp_path / "b.log").read_text() == ""

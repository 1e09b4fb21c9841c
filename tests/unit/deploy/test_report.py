"""What the demo writes, for a person and for a program."""

from __future__ import annotations

import io
import json

from rich.console import Console

from deploy.demo.report import Report, SceneResult

WIDTH = 40


def told(report: Report) -> None:
    report.begin(1, "race", "fifty at once for three places")
    report.say("With Redlock: 3 of 50 booked [47 were refused], and each night is full.")
    report.add(SceneResult("race", "fifty at once", "ok", {"seconds": 2.4}, "Exactly three."))
    report.begin(2, "stay", "a whole stay")
    report.add(SceneResult("stay", "a whole stay", "failed", {"seconds": 0.1}, "The wallet has 7 cents."))
    report.end()


def test_a_person_reads_indented_lines_and_in_the_end_which_scenes_failed() -> None:
    """Wrapped lines stay below their scene, brackets are no markup, and the last line sums up."""
    written = io.StringIO()
    told(Report(console=Console(file=written, width=WIDTH)))
    lines = written.getvalue().splitlines()
    assert "  With Redlock: 3 of 50 booked [47 were" in lines
    assert "  refused], and each night is full." in lines
    assert all(line == line.rstrip() and len(line) <= WIDTH for line in lines)
    assert " ".join(lines).endswith("1 of 2 scenes hold, in 2 s: failed: stay")


def test_a_program_reads_one_object_while_a_person_hears_the_steps() -> None:
    """Without a console nothing is written; `step` is told which scene is played."""
    steps: list[str] = []
    report = Report(console=None, step=steps.append)
    told(report)
    scenes = json.loads(report.as_json())["scenes"]
    assert [(scene["name"], scene["verdict"]) for scene in scenes] == [("race", "ok"), ("stay", "failed")]
    assert steps[0] == "Scene 1, race: fifty at once for three places"
    assert report.failed

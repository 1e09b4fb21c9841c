"""The two commands of the README do what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.commands.demo import Target
from deploy.demo import SCENES, Report, run
from deploy.embedded.system import EmbeddedSystem


def pawstay(root: Path, *arguments: str, timeout_s: float = 420) -> subprocess.CompletedProcess[str]:
    """The command line, as the launcher starts it."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "deploy.cli", *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@pytest.mark.timeout(480)
def test_the_demo_tells_its_story_and_every_scene_holds(system: EmbeddedSystem, root: Path) -> None:
    """`pawstay demo --json` prints one verdict for each scene and ends with 0; what ran before still runs."""
    done = pawstay(root, "demo", "--json", "--data", str(system.folder))
    assert done.stdout, done.stderr
    scenes = json.loads(done.stdout)["scenes"]
    assert [(s["name"], s["verdict"], s["detail"]) for s in scenes if s["verdict"] != "ok"] == []
    assert [s["name"] for s in scenes] == [*(scene.name for scene in SCENES), "nothing-left"]
    assert all(set(s) == {"name", "proves", "verdict", "figures", "detail"} for s in scenes)
    assert done.returncode == 0
    race = next(s for s in scenes if s["name"] == "race")["figures"]
    assert race["with_redlock"]["201"] == race["without_redlock"]["201"] == race["places"] == 3
    stay = next(s for s in scenes if s["name"] == "stay")["figures"]
    assert len(stay["branches"]) >= 4
    assert stay["locks"] >= 6, "nights, claims, order and its index row were locked before the decision"
    assert system.state() is not None


@pytest.mark.parametrize("scene", [scene.name for scene in SCENES if scene.name not in ("accounts", "race")])
async def test_a_scene_can_be_told_alone(system: EmbeddedSystem, scene: str) -> None:
    """`--scene NAME` needs none of the scenes before it but the accounts, and the closing check still holds."""
    report = Report(console=None)
    await run(Target(system, system.gateway_url, system.admin_password), report, (scene,))
    assert [(s.name, s.verdict, s.detail) for s in report.scenes if s.verdict != "ok"] == []
    assert [s.name for s in report.scenes] == ["accounts", scene, "nothing-left"]


def test_an_unknown_scene_is_refused_with_the_names_of_all(system: EmbeddedSystem, root: Path) -> None:
    """A wrong flag's value gets one line that says what may stand there."""
    done = pawstay(root, "demo", "--scene", "opera", "--data", str(system.folder), timeout_s=60)
    assert done.returncode != 0
    assert "opera" in done.stderr
    assert "failing-booking" in done.stderr
    assert "Traceback" not in done.stderr

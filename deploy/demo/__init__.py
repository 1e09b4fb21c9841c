"""The story that `pawstay demo` tells: each scene says what it proves, does it through the gateway, and checks it."""

from __future__ import annotations

from deploy.demo.report import Report, SceneResult
from deploy.demo.story import SCENES, run
from deploy.demo.world import DemoSystem, Failed

__all__ = ["SCENES", "DemoSystem", "Failed", "Report", "SceneResult", "run"]

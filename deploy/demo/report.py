"""What a demo run found, for a person and for a program."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape


@dataclass(frozen=True)
class SceneResult:
    """One scene: `verdict` is ``ok`` or ``failed``, `detail` says in words what was seen."""

    name: str
    proves: str
    verdict: str
    figures: dict[str, Any]
    detail: str


@dataclass
class Report:
    """Collects scenes; writes them as they come (console) or at the end (JSON)."""

    console: Console | None
    scenes: list[SceneResult] = field(default_factory=list)

    def say(self, line: str) -> None:
        """One line of the story, for a person."""
        if self.console is not None:
            self.console.print(f"  {escape(line)}")

    def begin(self, number: int, name: str, proves: str) -> None:
        """A scene starts."""
        if self.console is not None:
            self.console.print(f"\n[bold]{number}. {escape(name)}[/bold]  [dim]{escape(proves)}[/dim]")

    def add(self, result: SceneResult) -> None:
        """A scene ended."""
        self.scenes.append(result)
        if self.console is not None:
            mark = "[green]ok[/green]" if result.verdict == "ok" else "[bold red]FAILED[/bold red]"
            self.console.print(f"  {mark} {escape(result.detail)}")

    @property
    def failed(self) -> bool:
        """Whether any scene failed."""
        return any(scene.verdict != "ok" for scene in self.scenes)

    def as_json(self) -> str:
        """`{"scenes": [{"name", "proves", "verdict", "figures", "detail"}]}`."""
        scenes = [
            {
                "name": scene.name,
                "proves": scene.proves,
                "verdict": scene.verdict,
                "figures": scene.figures,
                "detail": scene.detail,
            }
            for scene in self.scenes
        ]
        return json.dumps({"scenes": scenes}, ensure_ascii=False, indent=2)

"""What a demo run found, for a person and for a program."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.text import Text

INDENT = "  "


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
    """Collects scenes; writes them as they come (console) or at the end (JSON). `step` hears which scene is played."""

    console: Console | None
    step: Callable[[str], None] = lambda _: None
    scenes: list[SceneResult] = field(default_factory=list)

    def say(self, line: str) -> None:
        """One line of the story, for a person."""
        self._print(escape(line))

    def begin(self, number: int, name: str, proves: str) -> None:
        """A scene starts."""
        self.step(f"Scene {number}, {name}: {proves}")
        if self.console is not None:
            self.console.print(f"\n[bold]{number}. {escape(name)}[/bold]  [dim]{escape(proves)}[/dim]")

    def add(self, result: SceneResult) -> None:
        """A scene ended."""
        self.scenes.append(result)
        mark = "[green]ok[/green]" if result.verdict == "ok" else "[bold red]FAILED[/bold red]"
        self._print(f"{mark} {escape(result.detail)}")

    def end(self) -> None:
        """The story is over: how many scenes held, and which did not."""
        if self.console is None:
            return
        held = [scene.name for scene in self.scenes if scene.verdict == "ok"]
        failed = [scene.name for scene in self.scenes if scene.verdict != "ok"]
        seconds = sum(float(scene.figures.get("seconds", 0)) for scene in self.scenes)
        verdict = f"[bold red]failed: {escape(', '.join(failed))}[/bold red]" if failed else "[green]all hold[/green]"
        self.console.print(
            f"\n[bold]{len(held)} of {len(self.scenes)} scenes hold[/bold], in {seconds:.0f} s: {verdict}"
        )

    def _print(self, line: str) -> None:
        """One line, the lines that it is wrapped into indented alike."""
        if self.console is not None:
            for part in Text.from_markup(line).wrap(self.console, self.console.width - len(INDENT)):
                part.rstrip()
                self.console.print(Text(INDENT) + part)

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

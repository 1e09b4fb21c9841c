"""`demo`: brings a system up if none runs, has the story told against it, and stops what it started."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from deploy.console import err, out, plain_words, progress
from deploy.embedded.problems import ExitCode, RuntimeProblem
from deploy.embedded.system import EmbeddedSystem, data_folder


@dataclass
class Target:
    """A running system in the form that the story takes it (`deploy.demo.DemoSystem`)."""

    system: EmbeddedSystem
    gateway_url: str
    admin_password: str

    def databases(self) -> Mapping[str, str]:
        """Every service's database with an administrator's DSN."""
        return self.system.databases()

    def coordinator_pid(self) -> int:
        """The process id of the coordinator that runs now."""
        return self.system.coordinator_pid()

    async def coordinator_json(self, path: str) -> Any:
        """What the coordinator answers an operator at `path`."""
        return await self.system.coordinator_json(path)

    async def restart_with(self, environment: Mapping[str, str]) -> None:
        """Starts the service processes anew with `environment` on top of theirs."""
        await self.system.restart_with(environment)


def run(data: Path | None, port: int, split: bool, as_json: bool, keep: bool, scenes: tuple[str, ...]) -> None:
    """Plays the scenes; exit code 1 when one fails."""
    with plain_words():
        from deploy.demo import SCENES, Report
        from deploy.demo import run as play

        unknown = set(scenes) - {scene.name for scene in SCENES}
        if unknown:
            known = ", ".join(scene.name for scene in SCENES)
            raise RuntimeProblem(
                f"there is no scene {', '.join(sorted(unknown))}: choose from {known}.", ExitCode.USAGE
            )
        system = EmbeddedSystem(data_folder(data))
        started = system.state() is None
        if started:
            with progress("Starting PawStay") as step:
                state = system.up(port, split=split, detached=keep, step=step)
            err.print(f"PawStay is up at {state.gateway_url} after {state.up_after_s:.1f} s.", soft_wrap=True)
        target = Target(system, system.gateway_url, system.admin_password)
        try:
            if as_json:
                with progress("Telling the story") as step:
                    report = Report(console=None, step=step)
                    asyncio.run(play(target, report, scenes))
            else:
                report = Report(console=out)
                asyncio.run(play(target, report, scenes))
                report.end()
        finally:
            if started and not keep:
                with progress("Stopping PawStay"):
                    system.down()
                err.print("PawStay is down: what the demo started is stopped.")
            elif started:
                err.print(
                    f"PawStay is left up at {target.gateway_url} (data in {escape(str(system.folder))});"
                    " stop it with 'pawstay down'.",
                    soft_wrap=True,
                )
        if as_json:
            print(report.as_json())
        raise SystemExit(int(ExitCode.FAILED if report.failed else ExitCode.OK))

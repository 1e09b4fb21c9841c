"""Inside a service's process: wraps the steps, and lets the fault that is armed happen once.

What is armed stands in the file `arms.json` of the process's control folder; `fired-0`, `fired-1` are made there, by
who comes first, when the fault happens. The second fault is live only after the first.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.faults.crash.vocabulary import LOSSES, Arm, Fault, Step

ARMS = "arms.json"
OURS = ("coordinator", "services")


def write_arms(folder: Path, arms: Sequence[Arm]) -> None:
    """Arms faults for all processes of a folder, in this order; what was armed or fired before is forgotten."""
    disarm(folder)
    draft = folder / f".{ARMS}"
    draft.write_text(json.dumps([[arm.step, arm.process, arm.fault.value, arm.nth] for arm in arms]))
    draft.replace(folder / ARMS)


def disarm(folder: Path) -> None:
    """Nothing happens any more."""
    (folder / ARMS).unlink(missing_ok=True)
    for path in folder.glob("fired-*"):
        path.unlink()


def fired(folder: Path, number: int) -> bool:
    """Whether the fault with this number in the list has happened."""
    return (folder / f"fired-{number}").exists()


def takes(processes: str, process: str) -> bool:
    """Whether `process` is one of those in a list such as ``order+worker``: whichever comes first."""
    return process in processes.split("+")


class Control:
    """What is armed, as this process sees it."""

    def __init__(self, folder: Path, process: str) -> None:
        self.process = process
        self._folder = folder
        self._arms_file = str(folder / ARMS)
        self._version: tuple[int, int] | None = None
        self._arms: list[Arm] = []
        self._passes = [0, 0]

    def armed(self, step: str, faults: Sequence[Fault]) -> int | None:
        """The number of the fault that waits for `step` in this process, if it is live and one of `faults`."""
        self._read()
        for number, arm in enumerate(self._arms):
            if fired(self._folder, number):
                continue
            mine = arm.step == step and takes(arm.process, self.process) and arm.fault in faults
            return number if mine else None
        return None

    def is_due(self, number: int) -> bool:
        """Counts a pass; whether it is the one."""
        self._passes[number] += 1
        return self._passes[number] == self._arms[number].nth

    def fire(self, number: int) -> bool:
        """Lets a kill happen; True when something is to be lost by the caller, False when it was done before."""
        try:
            os.close(os.open(self._folder / f"fired-{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except OSError:
            return False  # another thread or process was first, or it was disarmed meanwhile
        if self._arms[number].fault in LOSSES:
            return True
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # the signal is on its way; nothing more may happen here
        return False

    def _read(self) -> None:
        try:
            seen = os.stat(self._arms_file)
        except OSError:
            self._version, self._arms = None, []
            return
        version = (seen.st_ino, seen.st_mtime_ns)
        if version == self._version:
            return
        with suppress(OSError, ValueError):
            read = json.loads(Path(self._arms_file).read_text())
            self._arms = [Arm(step, process, Fault(fault), nth) for step, process, fault, nth in read]
            self._version, self._passes = version, [0] * len(self._arms)


def resolve(target: str) -> tuple[Any, str, Any]:
    """The module or class that holds a dotted name, its last part, and what is there. Raises LookupError."""
    parts = target.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            holder: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        try:
            for part in parts[cut:-1]:
                holder = getattr(holder, part)
            return holder, parts[-1], inspect.getattr_static(holder, parts[-1])
        except AttributeError:
            break
    raise LookupError(f"there is no {target} any more: correct the list of steps")


def install(control: Control, steps: Sequence[Step]) -> None:
    """Wraps those of `steps` that this process takes. Raises LookupError for a name that is not there."""
    for step in steps:
        if any(takes(processes, control.process) for processes in step.by):
            holder, name, found = resolve(step.target)
            plain = found.__func__ if isinstance(found, staticmethod) else found
            wrapped = _wrapped(plain, control, step)
            setattr(holder, name, staticmethod(wrapped) if isinstance(found, staticmethod) else wrapped)
            if inspect.ismodule(holder):
                _replace_everywhere(plain, wrapped)


def _replace_everywhere(plain: Callable[..., Any], wrapped: Callable[..., Any]) -> None:
    """Whoever imported a function by its name gets the wrapped one as well."""
    for module_name, module in list(sys.modules.items()):
        if module_name.split(".")[0] in OURS:
            for name, value in list(vars(module).items()):
                if value is plain:
                    setattr(module, name, wrapped)


def _wrapped(plain: Callable[..., Any], control: Control, step: Step) -> Callable[..., Any]:
    before, after = (Fault.KILL_BEFORE, Fault.LOSE_REQUEST), (Fault.KILL_AFTER, Fault.LOSE_REPLY)

    def happens(faults: tuple[Fault, ...], arguments: tuple[Any, ...]) -> bool:
        number = control.armed(step.name, faults)
        return number is not None and step.where(arguments) and control.is_due(number) and control.fire(number)

    def lost(arguments: tuple[Any, ...]) -> Exception:
        assert step.lost is not None, f"nothing can be lost at {step.name}"
        return step.lost(arguments)

    if inspect.iscoroutinefunction(plain):

        @functools.wraps(plain)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            if happens(before, args):
                raise lost(args)
            # What a call is may not be seen any more once it has been made.
            meant = control.armed(step.name, after) is not None and step.where(args)
            result = await plain(*args, **kwargs)
            if meant and step.done(result) and _late(control, step, after):
                raise lost(args)
            return result

        return call_async

    @functools.wraps(plain)
    def call(*args: Any, **kwargs: Any) -> Any:
        if happens(before, args):
            raise lost(args)
        meant = control.armed(step.name, after) is not None and step.where(args)
        result = plain(*args, **kwargs)
        if meant and step.done(result) and _late(control, step, after):
            raise lost(args)
        return result

    return call


def _late(control: Control, step: Step, after: tuple[Fault, ...]) -> bool:
    number = control.armed(step.name, after)
    return number is not None and control.is_due(number) and control.fire(number)

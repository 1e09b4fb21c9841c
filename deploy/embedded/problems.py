"""What can keep the system from running, each as one sentence and an exit code of the command line."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of `pawstay`. Scripts rely on them: they never change their meaning."""

    OK = 0
    FAILED = 1  # a test, a scene or a benchmark failed
    USAGE = 2  # a wrong flag or argument
    NOT_RUNNING = 3  # the command needs a running system and there is none
    PORT_TAKEN = 4
    FOLDER_UNUSABLE = 5  # full, read-only, not a folder, not ours to write
    FOLDER_FOREIGN = 6  # made by another version, or by another program
    START_FAILED = 7  # a program did not come up
    BUSY = 8  # another command is starting or stopping the same system
    SETTING_WRONG = 9  # a PAWSTAY_ variable names something that cannot be used


class RuntimeProblem(Exception):
    """An operating error: its text is one sentence for a person, with the way out; `code` is the exit code."""

    def __init__(self, message: str, code: ExitCode) -> None:
        super().__init__(message)
        self.code = code

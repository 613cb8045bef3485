"""What the exit code of a command says."""

from __future__ import annotations

from enum import IntEnum

from etl_dagster.errors import ErrorKind


class ExitCode(IntEnum):
    """A command that a signal ends has 128 and the signal's number instead, as shells do."""

    OK = 0
    FAILED = 1
    USAGE = 2
    QUARANTINED = 3


def exit_code_for(kind: ErrorKind) -> ExitCode:
    """The code of a command that this error ended."""
    return ExitCode.USAGE if kind is ErrorKind.CONFIG else ExitCode.FAILED

"""Processes that the demo starts: each in a session of its own, with a log, and none left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from etl_dagster.errors import EtlError
from etl_dagster.testing.processes import die_with_this_process

# A code server waits for its runs, and a run for the batch in hand.
GRACE_SECONDS = 10.0
_POLL_SECONDS = 0.1
_TAIL_LINES = 25


class Service:
    """A long-lived program with all that it starts in turn.

    Args:
        log: Where its output goes.
        grace_seconds: How long it may take to end in order.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        log: Path,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self.name = name
        self._command = command
        self._env = dict(env)
        self._cwd = cwd
        self._log = log
        self._grace_seconds = grace_seconds
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._cwd,
                env=self._env,
                start_new_session=True,  # Ctrl-C is for the demo, which then stops its services in order
                preexec_fn=die_with_this_process(signal.SIGTERM),  # noqa: PLW1509  one C call
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def check(self) -> None:
        """Raise when it has ended by itself."""
        code = self._process.poll() if self._process else None
        if code is not None:
            raise EtlError(
                f"{self.name} ended with code {code}. The end of its log, {self._log}:\n{self.tail()}",
                hint="Mend what the log says, and start the demo again",
            )

    def tail(self) -> str:
        """The last lines of its log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])

    def stop(self) -> None:
        """End it in order, and by force whatever it leaves behind; safe to call twice."""
        process, self._process = self._process, None
        if process is None:
            return
        deadline = time.monotonic() + self._grace_seconds
        _signal_group(process.pid, signal.SIGTERM)
        while _lives(process) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()


def _lives(leader: subprocess.Popen[bytes]) -> bool:
    """Whether the process, or any that it has started, is still there; a leader that ended is reaped first."""
    return leader.poll() is None or _signal_group(leader.pid, 0)


def _signal_group(group: int, number: int) -> bool:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
        return True
    return False

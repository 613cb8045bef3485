"""Runs one contender as a process of its own and measures exactly that process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import IO, Any

from benchmarks.clients.clock import peak_mb

ROOT = Path(__file__).resolve().parents[1]
_SAMPLE_SECONDS = 0.02
_SHOWN_OF_AN_ERROR = 2000


class ContenderError(RuntimeError):
    """A contender ended with an error."""


@dataclass(frozen=True)
class Measured:
    """One run of one contender.

    Attributes:
        seconds: What is compared: the work from opening connections to having closed them. Programs that are not
            Python count from start to end.
        process_seconds: From the start of the process to its end.
        cpu_seconds: Processor time of the process, user and system.
        peak_mb: Most memory resident at once.
        facts: What else the contender said of itself.
        server_cpu_seconds: Processor time of the server's backends that ended meanwhile.
    """

    seconds: float
    process_seconds: float
    cpu_seconds: float
    peak_mb: float
    facts: Mapping[str, Any] = field(default_factory=dict)
    server_cpu_seconds: float = 0.0


@dataclass
class Samples:
    """All runs of one contender at one task."""

    name: str
    units: int
    runs: list[Measured] = field(default_factory=list)
    note: str = ""

    @property
    def seconds(self) -> float:
        return median(run.seconds for run in self.runs)

    @property
    def process_seconds(self) -> float:
        return median(run.process_seconds for run in self.runs)

    @property
    def cpu_seconds(self) -> float:
        return median(run.cpu_seconds for run in self.runs)

    @property
    def server_cpu_seconds(self) -> float:
        return median(run.server_cpu_seconds for run in self.runs)

    @property
    def rate(self) -> float:
        return self.units / self.seconds

    @property
    def peak_mb(self) -> float:
        return max(run.peak_mb for run in self.runs)

    @property
    def spread(self) -> str:
        return f"{min(run.seconds for run in self.runs):.2f}-{max(run.seconds for run in self.runs):.2f}"


def run_python(module: str, arguments: Sequence[str], *, python: str = sys.executable) -> Measured:
    """Run one of our client modules, which prints what it measured as its last line."""
    with tempfile.TemporaryFile() as out:
        whole = run_program(
            [python, "-m", f"benchmarks.clients.{module}", *arguments], stdout=out, env={"PYTHONPATH": str(ROOT)}
        )
        out.seek(0)
        facts = json.loads(out.read().splitlines()[-1])
    seconds, peak = facts.pop("seconds"), facts.pop("peak_mb")
    return Measured(seconds, whole.process_seconds, whole.cpu_seconds, max(peak, whole.peak_mb), facts)


def run_program(
    argv: Sequence[str],
    *,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Measured:
    """Run any program to its end."""
    with tempfile.TemporaryFile() as errors:
        began = time.perf_counter()
        environment = {**os.environ, **(env or {})}
        process = subprocess.Popen(argv, stdout=stdout, stderr=errors, env=environment, cwd=cwd or ROOT)
        memory = _Memory(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            errors.seek(0)
            text = errors.read().decode(errors="replace")[-_SHOWN_OF_AN_ERROR:]
            raise ContenderError(f"{argv[0]} ended with {process.returncode}: {text}")
    # The kernel counts the memory of the process that forked as the child's, so a smaller figure says nothing.
    told = usage.ru_maxrss / 1024
    peak = max(memory.stop(), told if told > peak_mb() else 0.0)
    return Measured(seconds, seconds, usage.ru_utime + usage.ru_stime, peak)


def run_piped(argv: Sequence[str], into: Sequence[str]) -> tuple[Measured, bytes]:
    """Run ``argv | into``, measuring the first; also returns what the second printed."""
    with subprocess.Popen(into, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as sink:
        assert sink.stdin is not None
        assert sink.stdout is not None
        measured = run_program(argv, stdout=sink.stdin)
        sink.stdin.close()
        return measured, sink.stdout.read()


def children_cpu_seconds(pid: int) -> float:
    """Processor time of all children of a process that have ended, theirs included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


class _Memory:
    """Samples the high-water mark of a process while it lives."""

    def __init__(self, pid: int) -> None:
        self._pid = str(pid)
        self._peak = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(_SAMPLE_SECONDS):
            self._peak = max(self._peak, peak_mb(self._pid))

    def stop(self) -> float:
        self._ended.set()
        self._thread.join()
        return self._peak

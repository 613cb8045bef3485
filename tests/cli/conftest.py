"""The command line as its users run it: a process of its own, in a folder of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TIMEOUT_SECONDS = 60.0


@dataclass
class Result:
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The result that ``--json`` printed."""
        return json.loads(self.out)


@dataclass
class CommandLine:
    """Runs ``etl-dagster`` in a folder."""

    folder: Path
    environ: dict[str, str] = field(default_factory=dict)
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def __call__(self, *args: object, timeout: float = TIMEOUT_SECONDS) -> Result:
        process = self.start(*args)
        out, err = process.communicate(timeout=timeout)
        return Result(process.returncode, out, err)

    def start(self, *args: object) -> subprocess.Popen[str]:
        """Begin a command and return at once."""
        process = subprocess.Popen(
            [sys.executable, "-m", "etl_dagster.cli", *map(str, args)],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.running.append(process)
        return process

    @property
    def environment(self) -> Mapping[str, str]:
        """The test's own, without what would decide for the command."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ETL_DAGSTER")}
        return {
            **inherited,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "COLUMNS": "200",
            **self.environ,
        }

    def write_config(self, dsn: str, *, name: str = "etl-dagster.yaml", publication: str = "", more: str = "") -> Path:
        """A pipeline of its own on this database, into DuckDB."""
        database = re.sub(r"[^a-z0-9_].*", "", dsn.rsplit("/", 1)[1])
        path = self.folder / name
        path.write_text(
            f"name: {database}\n"
            f"source:\n"
            f"  connection: {{dsn: {json.dumps(dsn)}}}\n"
            f"  publication: {{{publication or 'schemas: [public]'}}}\n"
            f"destination: {{type: duckdb, path: {in_yaml(self.folder / 'warehouse.duckdb')}}}\n"
            f"{more}"
        )
        return path


def in_yaml(path: Path) -> str:
    """The path in quotes, and no reference to the environment in it."""
    return json.dumps(str(path)).replace("${", "$${")


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[CommandLine]:
    """The command line in an empty folder; what still runs at the test's end is killed."""
    command = CommandLine(tmp_path)
    yield command
    for process in command.running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_until(condition: Callable[[], bool], seconds: float = TIMEOUT_SECONDS) -> None:
    """Look again and again; what is waited for happens in another process that cannot call back."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not happen within {seconds:.0f} s"
        time.sleep(0.05)

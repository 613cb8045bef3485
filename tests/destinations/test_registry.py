"""Destinations are found by name and loaded late."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from etl_dagster.destinations import destination_types, open_destination, parse_destination
from etl_dagster.destinations.duckdb import DuckDbConfig, DuckDbDestination
from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.errors import ConfigError


def test_a_destination_is_opened_by_the_type_of_its_config(tmp_path: Path) -> None:
    assert isinstance(open_destination(parse_destination({"type": "memory"})), MemoryDestination)
    config = parse_destination({"type": "duckdb", "path": str(tmp_path / "x.duckdb")})
    assert isinstance(config, DuckDbConfig)
    assert isinstance(open_destination(config), DuckDbDestination)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({}, "destination.type"),
        ({"type": "oracle"}, "oracle"),
        ({"type": "duckdb"}, "destination.path"),
        ({"type": "duckdb", "path": "x", "colour": "red"}, "destination.colour"),
        ({"type": "duckdb", "path": "x", "memory_limit": "much"}, "destination.memory_limit"),
    ],
)
def test_a_wrong_config_names_the_field(config: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        parse_destination(config)


def test_reading_a_config_loads_no_sdk(tmp_path: Path) -> None:
    code = (
        "import sys; from etl_dagster.destinations import open_destination, parse_destination;"
        "open_destination(parse_destination({'type': 'duckdb', 'path': 'x'}));"
        "sys.exit('duckdb' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_sdk_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['duckdb'] = None\n"
        "from etl_dagster.destinations import open_destination, parse_destination\n"
        "open_destination(parse_destination({'type': 'duckdb', 'path': 'x'})).startup()\n"
    )
    found = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=Path.cwd())
    assert "ConfigError" in found.stderr
    assert "etl-dagster[duckdb]" in found.stderr


PLUGIN_CODE = """
from etl_dagster.destinations import DestinationConfig, DestinationPlugin
from etl_dagster.destinations.memory import MemoryDestination
class Config(DestinationConfig):
    colour: str
PLUGIN = DestinationPlugin(config=Config, factory=lambda config: MemoryDestination())
"""


@pytest.fixture
def foreign_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution with entry points, on the path."""
    (tmp_path / "their_destination.py").write_text(PLUGIN_CODE)
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    entries = "[etl_dagster.destinations]\ntheirs = their_destination:PLUGIN\nbroken = their_destination:NOTHING\n"
    (info / "entry_points.txt").write_text(entries)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("their_destination", None)


@pytest.mark.usefixtures("foreign_package")
def test_another_package_adds_a_destination() -> None:
    assert "theirs" in destination_types()
    config = parse_destination({"type": "theirs", "colour": "red"})
    assert isinstance(open_destination(config), MemoryDestination)


@pytest.mark.usefixtures("foreign_package")
def test_a_broken_entry_point_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="broken"):
        parse_destination({"type": "broken"})

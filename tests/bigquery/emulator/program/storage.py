"""Keeps tables in plain DuckDB files instead of DuckLake: the same semantics, some thirty times faster.

Without DuckLake, its extension need not be installed; without geography, neither need the spatial one. What is lost
(time travel, geography) is not used by anything here.
"""

from __future__ import annotations

import functools
from pathlib import Path

import duckdb
import duckdb_extension_httpfs
from local_bigquery.engine import database
from local_bigquery.engine.database import quote
from local_bigquery.settings import settings
from local_bigquery.sql import native
from local_bigquery.sql.dialect import FUNCTIONS, MACRO

SUFFIX = ".project.duckdb"


def apply() -> None:
    """Replace how the emulator opens its files."""
    database._connect = _connect
    database._attach = _attach
    database.projects = _projects


@functools.cache
def _connect() -> duckdb.DuckDBPyConnection:
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    con = duckdb.connect(config={"threads": 2, "autoinstall_known_extensions": False})
    con.execute("SET GLOBAL TimeZone = 'UTC'")
    con.execute(f"LOAD '{_httpfs()}'")
    con.execute(f"ATTACH '{settings.data_dir / 'emulator.duckdb'}' AS emulator")
    con.execute(database.EMULATOR_SCHEMA)
    con.execute("ATTACH ':memory:' AS bq")
    native.register(con)
    for path in FUNCTIONS:
        if path.stem != "geography":
            con.execute(MACRO.sub(r"CREATE MACRO bq.main.\1", path.read_text()))
    known = {path.name.removesuffix(SUFFIX) for path in settings.data_dir.glob(f"*{SUFFIX}")}
    for project in known | {settings.default_project_id}:
        _attach(con, project)
    default = quote(settings.default_project_id, settings.default_dataset_id)
    con.execute(f"CREATE SCHEMA IF NOT EXISTS {default}")
    return con


def _httpfs() -> Path:
    """The extension that reads gs://, from its wheel; DuckDB would fetch it at run time."""
    (wheel,) = duckdb_extension_httpfs.__path__
    (file,) = Path(wheel).rglob("*.duckdb_extension")
    return file


def _attach(con: duckdb.DuckDBPyConnection, project: str) -> None:
    con.execute(f"ATTACH IF NOT EXISTS '{settings.data_dir / project}{SUFFIX}' AS {quote(project)}")
    database._attached.add(project)


def _projects() -> list[str]:
    return sorted(database._attached)

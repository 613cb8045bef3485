"""DuckDB: one database file, tables mirrored as schema.table."""

from etl_dagster.destinations.duckdb.config import DuckDbConfig
from etl_dagster.destinations.duckdb.core import PLUGIN, DuckDbDestination
from etl_dagster.destinations.duckdb.file import open_reader

__all__ = ["PLUGIN", "DuckDbConfig", "DuckDbDestination", "open_reader"]

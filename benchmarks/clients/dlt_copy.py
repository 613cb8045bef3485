"""dlt's `sql_table` into DuckDB; runs in the virtual environment of the peers. Arguments: DSN, folder, backend."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import dlt
from dlt.sources.sql_database import sql_table

from benchmarks.clients.clock import Clock


def main(dsn: str, folder: Path, backend: str) -> None:
    """Measure one copy."""
    clock = Clock()
    connectorx = {"return_type": "arrow", "conn": dsn}
    table = sql_table(
        dsn.replace("postgresql://", "postgresql+psycopg2://"),
        table="bench",
        schema="public",
        backend=backend,
        reflection_level="full_with_precision",
        chunk_size=100_000,
        backend_kwargs=connectorx if backend == "connectorx" else {},
    )
    destination = dlt.destinations.duckdb(str(folder / "dlt.duckdb"))
    pipeline = dlt.pipeline("bench", pipelines_dir=str(folder), destination=destination, dataset_name="public")
    pipeline.run(table, write_disposition="replace")
    clock.report(rows=pipeline.last_trace.last_normalize_info.row_counts["bench"])


if __name__ == "__main__":
    os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])

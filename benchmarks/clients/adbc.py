"""What a good script does without us: ADBC reads by COPY in C, DuckDB takes its record batches as they are.

Each connection reads its share of the table's pages. Values arrive as ADBC gives them: numeric as text.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import adbc_driver_postgresql.dbapi as adbc
import duckdb
import pyarrow as pa  # noqa: F401  # ADBC imports it when it hands out batches
import pyarrow.dataset  # noqa: F401  # DuckDB imports it, and it pandas, when it first reads Arrow data

from benchmarks.clients.clock import Clock


def copy_share(dsn: str, target: duckdb.DuckDBPyConnection, first: int, end: int) -> None:
    """Append the rows of some pages."""
    with adbc.connect(dsn) as source, source.cursor() as cursor, target.cursor() as session:
        cursor.execute(f"SELECT * FROM bench WHERE ctid >= '({first},0)' AND ctid < '({end},0)'")
        session.register("rows", cursor.fetch_record_batch())
        session.execute("INSERT INTO bench SELECT * FROM rows")


def main(dsn: str, path: str, connections: int, pages: int, memory_limit: str, threads: int) -> None:
    """Measure one copy."""
    clock = Clock()
    settings: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": memory_limit,
        "threads": threads,
        "preserve_insertion_order": False,
    }
    with duckdb.connect(path, config=settings) as target:
        with adbc.connect(dsn) as source, source.cursor() as cursor:
            cursor.execute("SELECT * FROM bench LIMIT 0")
            target.register("head", cursor.fetch_record_batch())
            target.execute("CREATE TABLE bench AS SELECT * FROM head")
        ends = [pages * k // connections for k in range(connections)] + [2**32 - 1]
        with ThreadPoolExecutor(connections) as pool:
            for share in [pool.submit(copy_share, dsn, target, *ends[k : k + 2]) for k in range(connections)]:
                share.result()
        counted = target.execute("SELECT count(*) FROM bench").fetchall()
    clock.report(rows=counted[0][0])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5], int(sys.argv[6]))

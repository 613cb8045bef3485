"""Whether a DuckDB file holds what the source holds; arguments: path, the source's sums as JSON."""

from __future__ import annotations

import json
import math
import sys

import duckdb

from benchmarks.clients.clock import Clock
from benchmarks.workload import SUMS


def main(path: str, expected: list[float]) -> None:
    """Compare column by column; floats by their first digits, because sums depend on the order of rows."""
    clock = Clock()
    with duckdb.connect(path, read_only=True) as database:
        found = database.execute(SUMS).fetchall()[0]
    if not all(math.isclose(a, b, rel_tol=1e-12) for a, b in zip(found, expected, strict=True)):
        raise SystemExit(f"the source sums up to {expected}, {path} to {list(found)}")
    clock.report()


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))

"""What it takes to load the Dagster definitions of thousands of tables.

`python -m benchmarks.scale`: in a process of its own for each size, given schemas of ten columns, without a database.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from time import perf_counter, process_time

_SIZES = ((2_000, 0), (10_000, 0), (10_000, 100))
_COLUMNS = 10
_PROMISE_SECONDS = 10.0


def main() -> None:
    """Measure every size; fails when the largest takes longer than promised."""
    parser = argparse.ArgumentParser(prog="benchmarks.scale", description=__doc__)
    parser.add_argument("--load", nargs=2, type=int, metavar=("TABLES", "PARTITIONED"), help="in this process")
    options = parser.parse_args()
    if options.load:
        print(json.dumps(_load(*options.load)))
        return
    found = [_in_a_process(*size) for size in _SIZES]
    for figures in found:
        print(json.dumps(figures))
    slow = [figures for figures in found if figures["load_cpu_s"] > _PROMISE_SECONDS]
    if slow:
        sys.exit(f"loading took longer than {_PROMISE_SECONDS:g} s: {slow}")


def _in_a_process(tables: int, partitioned: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.scale", "--load", str(tables), str(partitioned)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _load(tables: int, partitioned: int) -> dict[str, float]:
    """Figures of one size: definitions with their asset graph and repository, then what Dagster validates besides."""
    import dagster as dg

    from etl_dagster.orchestration import build_replication_defs

    config, schemas = _config(tables, partitioned), _schemas(tables)
    wall, cpu = perf_counter(), process_time()
    defs = build_replication_defs(config, tables=schemas)
    repository = defs.get_repository_def()
    assets = len(repository.asset_graph.get_all_asset_keys())
    load, load_cpu = perf_counter() - wall, process_time() - cpu
    dg.Definitions.validate_loadable(defs)
    return {
        "tables": tables,
        "partitioned": partitioned,
        "assets": assets,
        "load_s": round(load, 2),
        "load_cpu_s": round(load_cpu, 2),
        "validated_s": round(perf_counter() - wall, 2),
        "validated_cpu_s": round(process_time() - cpu, 2),
        "rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def _config(tables: int, partitioned: int) -> object:
    from etl_dagster.config import PipelineConfig

    rules: list[dict[str, object]] = [
        {"type": "range", "column": "c0"},
        {"type": "time", "column": "at", "every": "day", "start": "2020-01-01"},
    ]
    step = tables // partitioned if partitioned else 1
    choices = {f"s.t{number * step}": {"partitions": rules[number % 2]} for number in range(partitioned)}
    return PipelineConfig.model_validate(
        {
            "name": "scale",
            "source": {"connection": {"host": "127.0.0.1", "port": 1}, "publication": {"all_tables": True}},
            "destination": {"type": "memory"},
            "store": {"type": "memory"},
            "tables": choices,
        }
    )


def _schemas(tables: int) -> dict[object, object]:
    from etl_dagster.model import Column, PgType, TableId, TableSchema

    number, moment = PgType(oid=20, name="bigint"), PgType(oid=1184, name="timestamp with time zone")
    columns = [Column(attnum=1, name="c0", type=number, key_ordinal=0), Column(attnum=2, name="at", type=moment)]

    def of(table: int) -> TableSchema:
        own = [Column(attnum=n, name=f"c{table}_{n}", type=number) for n in range(3, _COLUMNS + 1)]
        return TableSchema(id=TableId("s", f"t{table}"), oid=table + 1, columns=(*columns, *own))

    return {schema.id: schema for schema in map(of, range(tables))}


if __name__ == "__main__":
    main()

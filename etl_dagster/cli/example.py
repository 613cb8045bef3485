"""`init`: a config to start from."""

from __future__ import annotations

from pathlib import Path

from etl_dagster.cli import render
from etl_dagster.cli.exits import ExitCode
from etl_dagster.errors import ConfigError

EXAMPLE = """\
# One pipeline: a PostgreSQL database, replicated into a warehouse.
# ${NAME} stands for an environment variable, ${NAME:-default} for one with a default. Relative paths start here.

name: shop

source:
  connection:
    # Or host, port, database, user and password, each in a line of its own.
    dsn: ${SOURCE_DSN:-postgresql://postgres@localhost:5432/postgres}
    # tls:
    #   mode: verify-full
    #   root_cert: ca.pem
  publication:
    # Made, and kept as it is written here; with `create: false` it has to exist.
    schemas: [public]
    # tables: [public.orders, sales.*]
    # exclude: [public.audit_*]
  # slot:
  #   name: etl_shop

destination:
  type: duckdb
  path: shop.duckdb
# Or BigQuery, where `pip install 'etl-dagster[bigquery]'` was run; without credentials those of the environment:
# destination:
#   type: bigquery
#   project: my-project
#   dataset: shop
#   location: EU
#   credentials: {type: file, path: key.json}
#   batch_seconds: 60
#   staging: {bucket: my-bucket}
#   tables:
#     public.orders:
#       partition_by: {type: time, column: created_at, granularity: month}

# What has to outlive the process: positions, table states, schemas. This is the default:
# store:
#   type: sqlite
#   path: .etl/shop.sqlite

# How changes land (mirror, soft_delete, changelog), what becomes of values that cannot be held (fail, null, clamp,
# text), and how numeric without declared precision arrives. These are the defaults:
# defaults: {landing: mirror, values: fail, numeric: text}
# tables:
#   sales.audit_*: {landing: changelog}
#   public.orders:
#     landing: soft_delete
#     columns: {amount: {numeric: "decimal(38,9)"}}
#     # Slices that can be copied again by themselves, Dagster's partitions: windows of time, or ranges of a key.
#     partitions: {type: time, column: created_at, every: day, start: 2026-01-01}
#   public.items:
#     partitions: {type: range, column: id, rows: 1000000}

# replication:
#   copy_connections: 4
"""


def write_example(path: Path) -> int:
    """Write the example, never over a file that is there."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(EXAMPLE)
    except FileExistsError as error:
        raise ConfigError(f"{path} exists", hint="Name another file: etl-dagster init other.yaml") from error
    except OSError as error:
        raise ConfigError(f"Cannot write {path}: {error.strerror}", hint="Name another file") from error
    render.results_console().print(
        f"Wrote {path}. Adapt it, then: etl-dagster check -c {path}", markup=False, soft_wrap=True
    )
    return ExitCode.OK

"""How tables are stored: what the configuration says of one, by its physical columns, and that as DDL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from etl_dagster.destinations.bigquery.config import BigQueryConfig, RangePartition, TimePartition
from etl_dagster.destinations.bigquery.naming import Names, quoted
from etl_dagster.destinations.bigquery.types import native_type
from etl_dagster.errors import TableError
from etl_dagster.model import Column, TableSchema

_CLUSTERED = ("BIGNUMERIC", "BOOL", "DATE", "DATETIME", "INT64", "NUMERIC", "STRING", "TIMESTAMP")
_MOST_CLUSTERED = 4
_TIMES = ("DATE", "DATETIME", "TIMESTAMP")


@dataclass(frozen=True, slots=True)
class Field:
    """A column by its physical name, and its type as DDL writes it: ``NUMERIC(10, 2)``, ``ARRAY<INT64>``."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Layout:
    """How a table is stored.

    Attributes:
        partition_by: By its physical column name.
        expiration_days: When a partition is removed, or a table without partitions as a whole.
    """

    partition_by: TimePartition | RangePartition | None = None
    cluster_by: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    expiration_days: float | None = None


def layout_of(table: TableSchema, names: Names, config: BigQueryConfig) -> Layout:
    """The layout of a table.

    Raises:
        TableError: A column that it is partitioned or clustered by is missing, or of a type that cannot be.
    """
    options = config.options_for(table.id)
    partition = options.partition_by
    if partition is not None:
        wanted = _TIMES if isinstance(partition, TimePartition) else ("INT64",)
        column = _column(table, partition.column, wanted, config, "partition_by")
        partition = partition.model_copy(update={"column": names.column(column.name)})
    if options.cluster_by is None:
        keys = [column for column in table.key if _base_type(column, config) in _CLUSTERED][:_MOST_CLUSTERED]
    else:
        keys = [_column(table, name, _CLUSTERED, config, "cluster_by") for name in options.cluster_by]
    return Layout(
        partition_by=partition,
        cluster_by=tuple(names.column(column.name) for column in keys),
        labels={**config.labels, **options.labels},
        expiration_days=options.expiration_days,
    )


def partitioning(layout: Layout, table: TableSchema, names: Names, config: BigQueryConfig) -> str:
    """What stands behind ``PARTITION BY``; empty for a table that is not partitioned."""
    by = layout.partition_by
    if by is None:
        return ""
    name = quoted(by.column)
    if isinstance(by, RangePartition):
        return f"RANGE_BUCKET({name}, GENERATE_ARRAY({by.start}, {by.end}, {by.interval}))"
    column = next(each for each in table.columns if names.column(each.name) == by.column)
    type_ = _base_type(column, config)
    if type_ == "DATE" and by.granularity == "day":
        return name
    return f"{type_}_TRUNC({name}, {by.granularity.upper()})"


def layout_ddl(layout: Layout, partitioned: str) -> str:
    """The clauses of a CREATE TABLE statement."""
    clauses = [f"PARTITION BY {partitioned}"] if partitioned else []
    if layout.cluster_by:
        clauses.append(f"CLUSTER BY {', '.join(map(quoted, layout.cluster_by))}")
    return " ".join([*clauses, *([f"OPTIONS({options})"] if (options := options_ddl(layout)) else [])])


def options_ddl(layout: Layout) -> str:
    """Labels and expiration as DDL writes them."""
    found = []
    if layout.labels:
        pairs = ", ".join(f"('{key}', '{value}')" for key, value in sorted(layout.labels.items()))
        found.append(f"labels = [{pairs}]")
    if layout.expiration_days is not None and layout.partition_by is not None:
        found.append(f"partition_expiration_days = {layout.expiration_days}")
    elif layout.expiration_days is not None:
        hours = round(layout.expiration_days * 24)
        found.append(f"expiration_timestamp = TIMESTAMP_ADD(CURRENT_TIMESTAMP(), INTERVAL {hours} HOUR)")
    return ", ".join(found)


def _column(table: TableSchema, name: str, types: tuple[str, ...], config: BigQueryConfig, setting: str) -> Column:
    column = next((column for column in table.columns if column.name == name), None)
    if column is None:
        raise _unfit(table, f"{setting} names {name!r}, which is no column of it", setting)
    if (type_ := _base_type(column, config)) not in types:
        raise _unfit(
            table, f"{setting} names {name!r}, which is {type_} there and not one of {', '.join(types)}", setting
        )
    return column


def _unfit(table: TableSchema, why: str, setting: str) -> TableError:
    hint = f"Correct destination.tables.{table.id}.{setting}, then re-sync the table"
    return TableError(f"{table.id} cannot be laid out in BigQuery: {why}", hint=hint, table=str(table.id))


def _base_type(column: Column, config: BigQueryConfig) -> str:
    return native_type(column, config).native.partition("(")[0]

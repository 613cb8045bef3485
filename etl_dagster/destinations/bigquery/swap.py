"""Staged rows take the live table's place.

That is a copy job, which is free and replaces a table at one instant, or a query where columns have to be converted;
neither can be part of a transaction. So the state says before it that the table is being replaced, and by what; whoever
finds that said waits for the very same job, which may have outlived its process.
"""

from __future__ import annotations

from etl_dagster.destinations.bigquery.layout import Layout, layout_ddl, layout_of, options_ddl, partitioning
from etl_dagster.destinations.bigquery.live import Context
from etl_dagster.destinations.bigquery.naming import bare, quoted
from etl_dagster.destinations.bigquery.staging import cdc_names, converts, leftovers
from etl_dagster.destinations.bigquery.state import (
    COPY,
    SNAPSHOT,
    Change,
    CopyBody,
    Entry,
    TableBody,
    table_key,
)
from etl_dagster.destinations.bigquery.types import CDC_TYPES, native_type
from etl_dagster.model import (
    Lsn,
    TableSchema,
)

_DOING = "finish a copy"


def swap(context: Context, copy_id: str, copy: CopyBody) -> int:
    """Let the staged rows take the live table's place; returns how many they are."""
    ledger = context.ledger
    table = copy.table_schema
    assert table is not None
    assert copy.swapping is not None
    layout = layout_of(table, context.names, context.config)
    partitioned = partitioning(layout, table, context.names, context.config)
    live, staging = context.names.live(table.id), ledger.staging(copy)
    rows = _count(context, staging, copy)
    change = Change()
    key = f"{copy.token}-{copy.swapping}"
    _make_replaceable(context, table, layout, partitioned, key)
    if converts(table, context):
        conversion = _conversion(context, table, copy, layout_ddl(layout, partitioned))
        context.client.run(conversion, doing=_DOING, table=str(table.id), job_key=f"{key}-swap")
    else:
        context.client.copy(bare(staging), bare(live), job_key=f"{key}-swap", doing=_DOING, table=str(table.id))
        change.ddl += _options(live, layout)
    position = Lsn(copy.swapping)
    body = table_body(table, layout, partitioned).model_copy(update={"begun": ledger.begun})
    done = CopyBody(table=copy.table, token=copy.token, finished_rows=rows)
    change.state[table_key(table.id)] = Entry(position, body)
    change.state[COPY, copy_id] = Entry(position, done)
    for digest in ledger.snapshots(copy_id):
        change.state[SNAPSHOT, f"{copy_id}/{digest}"] = None
    change.afterwards += leftovers(context, copy)
    ledger.commit(change, doing=_DOING, table=table.id)
    return rows


def _make_replaceable(context: Context, table: TableSchema, layout: Layout, partitioned: str, key: str) -> None:
    """BigQuery replaces tables only by ones that are partitioned and clustered alike."""
    former, live = context.ledger.table(table.id), bare(context.names.live(table.id))
    if former is None:
        return
    columns = {context.names.column(column.name) for column in (former.physical or former.table_schema).columns}
    if former.partitioning != partitioned or not set(layout.cluster_by) <= columns:
        drop = f"DROP TABLE IF EXISTS {context.names.live(table.id)}"
        context.client.run(drop, doing=_DOING, table=str(table.id), job_key=f"{key}-drop")
    elif former.clustering != layout.cluster_by:
        context.client.cluster(live, layout.cluster_by, doing=_DOING, table=str(table.id))


def table_body(table: TableSchema, layout: Layout, partitioned: str) -> TableBody:
    """What is known of a live table that has just been made."""
    by = layout.partition_by
    return TableBody(
        table_schema=table,
        partitioning=partitioned,
        partition_column="" if by is None else by.column,
        clustering=layout.cluster_by,
    )


def _count(context: Context, staging: str, copy: CopyBody) -> int:
    """How many rows are staged; what the API says of it may be from before a change."""
    if not copy.changed:
        return context.client.rows(bare(staging)) or 0
    return int(context.client.run(f"SELECT COUNT(*) FROM {staging}", doing=_DOING, table=str(copy.table))[0][0])


def _conversion(context: Context, table: TableSchema, copy: CopyBody, layout: str) -> str:
    names = context.names
    types = [(column.name, native_type(column, context.config)) for column in table.columns]
    types += [(name, CDC_TYPES[name]) for name in cdc_names(table)]
    quoted_types = [(quoted(names.column(name)), type_) for name, type_ in types]
    values = ", ".join(f"{type_.from_staged(f's.{name}')} AS {name}" for name, type_ in quoted_types)
    columns = ", ".join(f"{name} {type_.native}" for name, type_ in quoted_types)
    return (
        f"CREATE OR REPLACE TABLE {names.live(table.id)} ({columns}) {layout}"
        f" AS SELECT {values} FROM {context.ledger.staging(copy)} AS s"
    )


def _options(live: str, layout: Layout) -> list[str]:
    options = options_ddl(layout)
    return [f"ALTER TABLE {live} SET OPTIONS({options})"] if options else []

"""Where the rows of a copy wait until it is finished."""

from __future__ import annotations

from etl_dagster.destinations.bigquery.layout import Field
from etl_dagster.destinations.bigquery.live import Context
from etl_dagster.destinations.bigquery.merge import Place
from etl_dagster.destinations.bigquery.state import (
    CopyBody,
)
from etl_dagster.destinations.bigquery.types import CDC_TYPES, native_type
from etl_dagster.model import (
    CDC_COLUMNS,
    UNCHANGED_COLUMN,
    Landing,
    TableSchema,
)

SNAPSHOT_LABEL = "etl_snapshot"


def converts(table: TableSchema, context: Context) -> bool:
    """Whether rows cannot be staged as they will live."""
    types = [native_type(column, context.config) for column in table.columns]
    return table.landing is Landing.CHANGELOG or any(type_.native != type_.staged for type_ in types)


def staged_place(table: TableSchema, copy: CopyBody, context: Context) -> Place:
    return Place(context.ledger.staging(copy), table, context.names, context.config, converted=False)


def chunk_key(copy: CopyBody, chunk_id: str) -> str:
    """Names the load job of one chunk, for ever."""
    return f"{copy.token}-{chunk_id}"


def columns_of(table: TableSchema, context: Context, *, staged: bool) -> list[Field]:
    """The columns of a staging area or of a live table."""
    names = context.names
    types = [(column.name, native_type(column, context.config)) for column in table.columns]
    types += [(name, CDC_TYPES[name]) for name in cdc_names(table)]
    return [Field(names.column(name), type_.staged if staged else type_.native) for name, type_ in types]


def cdc_names(table: TableSchema) -> list[str]:
    """Our names of the columns that a table has beside the source's."""
    return [*CDC_COLUMNS, *([UNCHANGED_COLUMN] if table.landing is Landing.CHANGELOG else [])]


def leftovers(context: Context, copy: CopyBody) -> list[str]:
    """Statements that remove what a copy has in BigQuery."""
    ledger = context.ledger
    return [f"DROP TABLE IF EXISTS {ref}" for ref in (ledger.staging(copy), ledger.log(copy), ledger.reread(copy))]

"""What a materialization says: row counts, column schema, LSN range, lag. Never a row's values."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from etl_dagster.model import Column, Lsn, TableSchema
from etl_dagster.orchestration.names import LANDING_TAG
from etl_dagster.replication.report import RunSummary, TableSummary

Metadata = Mapping[str, Any]


def column_schema(schema: TableSchema) -> dg.TableSchema:
    """The table's columns as Dagster shows them."""
    key = ", ".join(column.name for column in schema.key)
    return dg.TableSchema(
        columns=[_column(column, sole=len(schema.key) == 1) for column in schema.columns],
        constraints=dg.TableConstraints(other=[f"primary key ({key})"] if key else ["no key"]),
    )


def _column(column: Column, sole: bool) -> dg.TableColumn:
    key = column.key_ordinal is not None
    return dg.TableColumn(
        column.name,
        type=column.type.name,
        constraints=dg.TableColumnConstraints(
            nullable=column.nullable, unique=key and sole, other=["primary key"] if key else []
        ),
    )


def live_metadata(
    summary: TableSummary | None, schema: TableSchema | None, rows: int | None, replaced: Mapping[str, int]
) -> Metadata:
    """Of a live table after a run; ``replaced`` are the values that the policy replaced since the last copy."""
    found: dict[str, object] = {"etl/changes": summary.changes if summary else 0}
    if summary is not None and summary.first is not None:
        found |= {"etl/lsn_start": str(summary.first), "etl/lsn_end": str(summary.last)}
    if summary is not None:
        found["etl/lag_seconds"] = round(summary.lag_seconds, 3)
    if summary is not None and summary.copied_rows is not None:
        found["etl/copied_rows"] = summary.copied_rows
    return found | _replaced(replaced) | _rows(rows) | _columns(schema)


def sync_metadata(
    rows: int | None, schema: TableSchema | None, position: Lsn | None, seconds: float, replaced: Mapping[str, int]
) -> Metadata:
    """Of a finished copy."""
    found: dict[str, object] = {"etl/lsn_end": str(position), "etl/seconds": round(seconds, 3)}
    if rows is not None:
        found |= {"dagster/partition_row_count": rows, "etl/rows_per_second": round(rows / max(seconds, 0.001))}
    return found | _replaced(replaced) | _rows(rows) | _columns(schema)


def run_metadata(summary: RunSummary, position: Lsn) -> Metadata:
    """Of the whole run, for the slot's observation."""
    return {
        "etl/position": str(position),
        "etl/changes": summary.changes,
        "etl/transactions": summary.transactions,
        "etl/batches": summary.batches,
        "etl/max_lag_seconds": round(summary.max_lag_seconds, 3),
        "etl/tables": len(summary.tables),
        "etl/notices": "\n".join(summary.notices[-20:]),
    }


def _replaced(replaced: Mapping[str, int]) -> dict[str, object]:
    if not any(replaced.values()):
        return {}
    return {"etl/replaced_values": sum(replaced.values()), "etl/replaced_by_column": dict(replaced)}


def _rows(rows: int | None) -> dict[str, object]:
    return {} if rows is None else {"dagster/row_count": rows}


def _columns(schema: TableSchema | None) -> dict[str, object]:
    if schema is None:
        return {}
    return {"dagster/column_schema": column_schema(schema), LANDING_TAG: schema.landing.value}

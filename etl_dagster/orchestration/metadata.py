"""What a materialization says: row counts, column schema, LSN range, lag. Never a row's values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

import dagster as dg

from etl_dagster.model import Lsn, TableId, TableSchema
from etl_dagster.orchestration.names import LANDING_TAG
from etl_dagster.orchestration.partitions import WHOLE_TABLE
from etl_dagster.replication import CopyProgress, RunSummary, TableSummary
from etl_dagster.store import TableRecord

Metadata = Mapping[str, Any]


def column_schema(schema: TableSchema) -> dg.TableSchema:
    """The table's columns as Dagster shows them."""
    key = ", ".join(column.name for column in schema.key)
    return dg.TableSchema(
        columns=[
            _column(
                column.name, column.type.name, column.nullable, column.key_ordinal is not None, len(schema.key) == 1
            )
            for column in schema.columns
        ],
        constraints=dg.TableConstraints(other=[f"primary key ({key})"] if key else ["no key"]),
    )


@lru_cache(maxsize=10_000)  # most tables have an id and a time of creation
def _column(name: str, kind: str, nullable: bool, key: bool, sole: bool) -> dg.TableColumn:
    return dg.TableColumn(
        name,
        type=kind,
        constraints=dg.TableColumnConstraints(
            nullable=nullable, unique=key and sole, other=["primary key"] if key else []
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


@dataclass(frozen=True)
class TableCopy:
    """A copy that is finished, of a whole table or of slices.

    Attributes:
        progress: How it went; None when another process made it.
        position: What the destination has by now.
        started_at: When the run began.
    """

    record: TableRecord
    progress: CopyProgress | None
    schema: TableSchema | None
    position: Lsn | None
    started_at: datetime

    @property
    def table(self) -> TableId:
        """Whose copy."""
        return self.record.table

    @property
    def slices(self) -> Sequence[str]:
        """Those that were copied; none: the whole table was."""
        return () if self.progress is None else self.progress.slices


def sync_metadata(copy: TableCopy, partitions: Sequence[str], whole: bool) -> Metadata:
    """Of a finished copy of these partitions, which may be the whole table."""
    found: dict[str, object] = {"etl/lsn_end": str(copy.position)}
    if copy.progress is not None:  # another process has its own clock, and may have copied more than was asked for here
        found |= _own(copy, copy.progress, partitions, whole)
    return found | _partitions(partitions) | _replaced(copy.record.replaced) | _columns(copy.schema)


def _own(copy: TableCopy, progress: CopyProgress, partitions: Sequence[str], whole: bool) -> dict[str, object]:
    """What is known of a copy that the run made itself."""
    seconds = max(0.0, (copy.record.updated_at - copy.started_at).total_seconds())
    found: dict[str, object] = {"etl/seconds": round(seconds, 3)}
    if (rows := copy.record.copied_rows) is not None:
        found["etl/copied_rows"] = rows
        # Of the time it read; nobody knows how many of the rows another process had staged before.
        if progress.seconds > 0 and not progress.skipped_bytes:
            found["etl/rows_per_second"] = round(rows / progress.seconds)
        found |= _rows(rows) if whole else {}
        is_all_of_it = list(partitions) == [WHOLE_TABLE] if whole else tuple(partitions) == progress.slices
        found |= {"dagster/partition_row_count": rows} if is_all_of_it and len(partitions) == 1 else {}
    return found | _volume(progress)


def _partitions(names: Sequence[str]) -> dict[str, object]:
    if len(names) == 1:
        return {}
    return {"etl/partitions": len(names), "etl/first_partition": names[0], "etl/last_partition": names[-1]}


def _volume(copy: CopyProgress) -> dict[str, object]:
    """Without a rate when another process had staged everything already."""
    read = {"etl/bytes_per_second": round(copy.bytes_per_second), "etl/copy_seconds": round(copy.seconds, 3)}
    return {
        "etl/copied_bytes": copy.bytes_done,
        **(read if copy.bytes_per_second > 0 else {}),
        "etl/barrier_seconds": round(copy.barrier_seconds, 3),
    }


def run_metadata(summary: RunSummary, position: Lsn) -> Metadata:
    """Of the whole run, for the slot's observation."""
    return {
        "etl/position": str(position),
        "etl/changes": summary.changes,
        "etl/transactions": summary.transactions,
        "etl/batches": summary.batches,
        "etl/max_lag_seconds": round(summary.max_lag_seconds, 3),
        "etl/tables": len(summary.tables),
        **{f"etl/{name}": count for name, count in summary.usage.items()},
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

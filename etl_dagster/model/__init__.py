"""The vocabulary: positions, tables, changes."""

from etl_dagster.model.changes import (
    CDC_COLUMNS,
    CHANGE_TYPE_COLUMN,
    LSN_COLUMN,
    TIMESTAMP_COLUMN,
    UNCHANGED_COLUMN,
    ChangeKind,
    ChangeSet,
    ChangeType,
    CopyTarget,
    EventBatch,
    RawChanges,
    Route,
    TableEvents,
)
from etl_dagster.model.choices import TableChoices, with_limits
from etl_dagster.model.chunks import ChunkPlan
from etl_dagster.model.findings import CheckResult
from etl_dagster.model.lsn import ZERO_LSN, Lsn
from etl_dagster.model.patterns import TablePattern
from etl_dagster.model.slices import KeyRanges, NoPartitions, PartitionRule, RangePlan, Slice, TimeWindows
from etl_dagster.model.table import (
    Column,
    FrozenModel,
    Landing,
    PgType,
    ReplicaIdentity,
    TableId,
    TableSchema,
    TypeKind,
    ValueLimits,
    ValuePolicy,
)

__all__ = [
    "CDC_COLUMNS",
    "CHANGE_TYPE_COLUMN",
    "LSN_COLUMN",
    "TIMESTAMP_COLUMN",
    "UNCHANGED_COLUMN",
    "ZERO_LSN",
    "ChangeKind",
    "ChangeSet",
    "ChangeType",
    "CheckResult",
    "ChunkPlan",
    "Column",
    "CopyTarget",
    "EventBatch",
    "FrozenModel",
    "KeyRanges",
    "Landing",
    "Lsn",
    "NoPartitions",
    "PartitionRule",
    "PgType",
    "RangePlan",
    "RawChanges",
    "ReplicaIdentity",
    "Route",
    "Slice",
    "TableChoices",
    "TableEvents",
    "TableId",
    "TablePattern",
    "TableSchema",
    "TimeWindows",
    "TypeKind",
    "ValueLimits",
    "ValuePolicy",
    "with_limits",
]

"""The engine: table lifecycle, copies, the stream."""

from etl_dagster.replication.copying import told
from etl_dagster.replication.engine import Replicator, Stop
from etl_dagster.replication.pace import seconds_until_due
from etl_dagster.replication.policy import POLICY, Action, action_for
from etl_dagster.replication.report import (
    BatchReport,
    CopyProgress,
    FanOut,
    LogReporter,
    Reporter,
    RunSummary,
    TableSummary,
)

__all__ = [
    "POLICY",
    "Action",
    "BatchReport",
    "CopyProgress",
    "FanOut",
    "LogReporter",
    "Replicator",
    "Reporter",
    "RunSummary",
    "Stop",
    "TableSummary",
    "action_for",
    "seconds_until_due",
    "told",
]

"""What Dagster's event log says of a pipeline's runs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import dagster as dg

from etl_dagster.model import TableId
from etl_dagster.orchestration.names import PIPELINE_TAG
from etl_dagster.orchestration.translator import ReplicationTranslator

# More materializations of one table than a demo makes; a longer history is summed up from its newest part.
_NEWEST = 1000
_FAILED = {dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}


@dataclass(frozen=True)
class RunCounts:
    """Runs of one pipeline by how they ended."""

    succeeded: int = 0
    failed: int = 0
    active: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.succeeded + self.failed + self.active


@dataclass(frozen=True)
class LiveTableLog:
    """What the materializations of one live table say.

    Attributes:
        copied_rows: Rows that the newest copy brought; None without one.
        changes: Changes applied, over all runs.
    """

    copied_rows: int | None
    changes: int


class RunLog:
    """Reads the event log of one pipeline.

    Args:
        home: The ``DAGSTER_HOME`` of the instance.
    """

    def __init__(self, home: Path, pipeline: str) -> None:
        self._instance = dg.DagsterInstance.from_config(str(home))
        self._pipeline = pipeline
        self._translator = ReplicationTranslator(pipeline, destination_kind="")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._instance.dispose()

    def prepare(self) -> None:
        """Create the instance's databases: Dagster's processes, started together on a new home, would do it all at once
        and trip over each other."""
        self.runs()
        self._instance.fetch_materializations(self._translator.slot_key, limit=1)
        self._instance.all_instigator_state()

    def runs(self) -> RunCounts:
        """How many runs there were and are."""
        runs = self._instance.get_runs(dg.RunsFilter(tags={PIPELINE_TAG: self._pipeline}))
        succeeded = sum(run.status is dg.DagsterRunStatus.SUCCESS for run in runs)
        failed = sum(run.status in _FAILED for run in runs)
        return RunCounts(succeeded, failed, len(runs) - succeeded - failed)

    def live_tables(self, tables: Iterable[TableId]) -> Mapping[TableId, LiveTableLog]:
        """What was materialized, per table."""
        return {table: self._live_table(table) for table in tables}

    def _live_table(self, table: TableId) -> LiveTableLog:
        key = self._translator.live_key(table)
        found = self._instance.fetch_materializations(key, limit=_NEWEST).records
        entries = [record.asset_materialization for record in found]
        metadata = [entry.metadata for entry in entries if entry is not None]
        changes = [_number(entry, "etl/changes") or 0 for entry in metadata]
        copied = (_number(entry, "etl/copied_rows") for entry in metadata)
        newest = next((int(rows) for rows in copied if rows is not None), None)
        return LiveTableLog(copied_rows=newest, changes=int(sum(changes)))


def _number(metadata: Mapping[str, dg.MetadataValue], name: str) -> float | None:
    value = metadata[name].value if name in metadata else None
    return float(value) if isinstance(value, int | float) else None

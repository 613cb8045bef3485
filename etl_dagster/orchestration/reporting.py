"""What a run tells Dagster of what it did, read off the engine's summary."""

from collections.abc import Collection, Iterator, Mapping, Sequence

import dagster as dg

from etl_dagster.model import TableId
from etl_dagster.orchestration.checks import quarantine_evaluation
from etl_dagster.orchestration.metadata import Metadata, TableCopy, live_metadata, run_metadata, sync_metadata
from etl_dagster.orchestration.partitions import WHOLE_TABLE
from etl_dagster.orchestration.session import ReplicationSession
from etl_dagster.orchestration.translator import ReplicationTranslator
from etl_dagster.replication import Replicator, TableSummary
from etl_dagster.store import TableState

# Each is an event of 6 to 25 ms, told after the pipeline is free for the next run.
MAX_PARTITION_EVENTS = 1000
Event = dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation


class RunReport:
    """The report of one run that held the pipeline."""

    def __init__(self, translator: ReplicationTranslator, session: ReplicationSession, replicator: Replicator) -> None:
        self._translator = translator
        self._session = session
        self._replicator = replicator
        self._summary = session.summary

    def is_live(self, table: TableId) -> bool:
        """The table follows the source."""
        record = self._replicator.records.get(table)
        return record is not None and record.state is TableState.READY

    def changed(self) -> list[TableId]:
        """Live tables that the run brought something."""
        tables = self._summary.tables.items()
        return [table for table, done in tables if _says_something(done) and self.is_live(table)]

    def live(self, table: TableId) -> Metadata:
        """Metadata of a live table."""
        done, schema = self._summary.tables.get(table), self._replicator.schemas.get(table)
        replaced = self._replicator.records[table].replaced
        return live_metadata(done, schema, self._session.row_count(table), replaced)

    def copies(self) -> list[TableCopy]:
        """Copies that the run finished."""
        return [self._copy(table) for table in self.changed() if self._summary.tables[table].copied_rows is not None]

    def _copy(self, table: TableId) -> TableCopy:
        return TableCopy(
            self._replicator.records[table],
            self._summary.tables[table].copy,
            self._replicator.schemas.get(table),
            self._replicator.position,
            self._summary.started_at,
        )

    def live_event(self, table: TableId) -> Event:
        """Materialization of a live table that Dagster did not plan for."""
        return dg.AssetMaterialization(self._translator.live_key(table), metadata=self.live(table))

    def pipeline_events(self) -> Iterator[Event]:
        """What concerns the pipeline, and the tables that it had to take out."""
        for table, record in self._summary.quarantined.items():
            metadata = {"etl/state": str(record.state), "etl/reason": record.reason, "etl/hint": record.hint}
            yield dg.AssetObservation(self._translator.live_key(table), metadata=metadata)
        position = self._replicator.position
        yield dg.AssetObservation(self._translator.slot_key, metadata=run_metadata(self._summary, position))
        yield quarantine_evaluation(self._translator, self._replicator.records.values())


def _says_something(done: TableSummary) -> bool:
    return bool(done.changes) or done.copied_rows is not None or done.schema is not None


def partition_events(
    session: ReplicationSession,
    translator: ReplicationTranslator,
    copies: Sequence[TableCopy],
    told: Mapping[TableId, Collection[str]],
) -> Iterator[Event]:
    """Materializations of the partitions that were copied, the newest of each table first.

    Args:
        told: Partitions that Dagster tells of by itself, because the run was asked for them.
    """
    share = max(1, MAX_PARTITION_EVENTS // max(1, len(copies)))
    for copy in copies:
        slices = [each.name for each in session.pipeline.slices(copy.table)] or [WHOLE_TABLE]
        names = [name for name in slices if not copy.slices or name in set(copy.slices)]
        untold = [name for name in reversed(names) if name not in told.get(copy.table, ())]
        metadata = sync_metadata(copy, names, whole=not copy.slices)
        for name in untold[:share]:
            yield dg.AssetMaterialization(translator.sync_key(copy.table), partition=name, metadata=metadata)
        if len(untold) > share:
            session.log.info(
                "%s: the newest %s of %s copied partitions are shown as materialized", copy.table, share, len(untold)
            )


def log_event(context: dg.OpExecutionContext, event: Event) -> None:
    """Put an event into the run's log."""
    context.log_event(event)  # type: ignore[arg-type]  # takes check evaluations too, whatever its annotation says

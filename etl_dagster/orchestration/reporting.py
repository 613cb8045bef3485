"""What a run tells Dagster of what it did, read off the engine's summary."""

from collections.abc import Iterator

import dagster as dg

from etl_dagster.model import TableId
from etl_dagster.orchestration.checks import quarantine_evaluation
from etl_dagster.orchestration.metadata import Metadata, live_metadata, run_metadata, sync_metadata
from etl_dagster.orchestration.session import ReplicationSession
from etl_dagster.orchestration.translator import WHOLE_TABLE, ReplicationTranslator
from etl_dagster.replication import Replicator
from etl_dagster.replication.report import TableSummary
from etl_dagster.store import TableState

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

    def copied(self) -> Iterator[tuple[TableId, Metadata]]:
        """Tables whose copy the run finished."""
        for table in self.changed():
            rows = self._summary.tables[table].copied_rows
            if rows is not None:
                record = self._replicator.records[table]
                seconds = (record.updated_at - self._summary.started_at).total_seconds()
                schema = self._replicator.schemas.get(table)
                yield table, sync_metadata(rows, schema, self._replicator.position, seconds, record.replaced)

    def copy_events(self) -> Iterator[Event]:
        """Materializations of the syncs."""
        for table, metadata in self.copied():
            key = self._translator.sync_key(table)
            yield dg.AssetMaterialization(key, partition=WHOLE_TABLE, metadata=metadata)

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


def log_event(context: dg.OpExecutionContext, event: Event) -> None:
    """Put an event into the run's log."""
    context.log_event(event)  # type: ignore[arg-type]  # takes check evaluations too, whatever its annotation says

"""Table syncs: materializing one copies its table afresh, while the table changes and stays readable."""

from collections.abc import Iterator, Sequence

import dagster as dg

from etl_dagster.model import TableId
from etl_dagster.orchestration.live_assets import Tables
from etl_dagster.orchestration.metadata import sync_metadata
from etl_dagster.orchestration.parts import PipelineParts
from etl_dagster.orchestration.reporting import RunReport, log_event
from etl_dagster.orchestration.session import PATIENCE_SECONDS, ReplicationSession, enter_session, errors_as_failures
from etl_dagster.orchestration.translator import ReplicationTranslator
from etl_dagster.store import TableRecord, TableState

RETRIES = dg.RetryPolicy(max_retries=3, delay=10, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.FULL)
_ENDS = (TableState.READY, TableState.QUARANTINED, TableState.REMOVED)


def build_sync_assets(
    parts: PipelineParts, translator: ReplicationTranslator, tables: Tables, patience_seconds: float = PATIENCE_SECONDS
) -> dg.AssetsDefinition:
    """One multi-asset over all tables, each key with partitions of its own; a backfill makes a run per partition."""
    by_key = {translator.sync_key(table): table for table in tables}

    @dg.multi_asset(
        name=parts.names.sync,
        specs=[translator.sync_spec(table, schema) for table, schema in tables.items()],
        can_subset=True,
        required_resource_keys={parts.names.session},
        backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=1),
        retry_policy=RETRIES,
        pool=parts.names.pool,
    )
    def sync_tables(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
        """Ask for fresh copies, and see them through."""
        session = enter_session(context.op_execution_context, parts)
        wanted = sorted(by_key[key] for key in context.selected_asset_keys)
        with errors_as_failures():
            if context.retry_number == 0:  # a retry goes on with the copy that was begun
                _request(session, wanted)
            see_through(session, wanted, patience_seconds)
            try:
                for table in wanted:
                    yield _result(session, translator, table)
            finally:
                # Last, or the live tables would seem older than what they were made from.
                report_bystanders(context.op_execution_context, session, translator)

    return sync_tables


def _request(session: ReplicationSession, tables: Sequence[TableId]) -> None:
    for table in tables:
        if session.pipeline.record(table) is not None:  # one that never ran is copied anyway
            session.pipeline.request_resync(table)


def see_through(session: ReplicationSession, tables: Sequence[TableId], patience_seconds: float) -> None:
    """Do what was asked for the tables, or wait while another process that holds the pipeline does."""
    replicator = session.replicator_or_work_done(lambda: _done(session, tables), patience_seconds)
    if replicator is not None:
        replicator.sync()


def _done(session: ReplicationSession, tables: Sequence[TableId]) -> bool:
    records = map(session.pipeline.record, tables)
    return all(record is not None and record.state in _ENDS and not record.resume for record in records)


def report_bystanders(
    context: dg.OpExecutionContext,
    session: ReplicationSession,
    translator: ReplicationTranslator,
    also: Sequence[TableId] = (),
) -> None:
    """The live tables were brought up to date on the way, and those of ``also`` in any case."""
    if (replicator := session.opened) is None:
        return
    report = RunReport(translator, session, replicator)
    for table in dict.fromkeys([*report.changed(), *filter(report.is_live, also)]):
        log_event(context, report.live_event(table))
    for event in report.pipeline_events():
        log_event(context, event)


def _result(
    session: ReplicationSession, translator: ReplicationTranslator, table: TableId
) -> dg.MaterializeResult[None]:
    record = session.pipeline.record(table)
    if record is None or record.state is not TableState.READY:
        raise dg.Failure(_not_copied(table, record), allow_retries=False)
    seconds = (record.updated_at - session.summary.started_at).total_seconds()
    metadata = sync_metadata(record.rows, session.schemas().get(table), session.position(), seconds, record.replaced)
    return dg.MaterializeResult(asset_key=translator.sync_key(table), metadata=metadata)


def _not_copied(table: TableId, record: TableRecord | None) -> str:
    if record is None:
        return f"{table} is unknown to the pipeline — reload the code location"
    return f"{table} is {record.state}: {record.reason} — {record.hint}"

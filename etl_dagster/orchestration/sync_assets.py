"""Table syncs: materializing one copies its table afresh, or those of its slices that are the partitions asked for,
while the table changes and stays readable.

The first step asks for the copies, the second sees them through. So a retry never asks twice; and since a step has one
pool and a run counts against the pools of all its steps, a run takes part in the pool of its source and in that of its
destination.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import dagster as dg

from etl_dagster.errors import EtlError
from etl_dagster.model import TableId
from etl_dagster.orchestration.metadata import TableCopy, sync_metadata
from etl_dagster.orchestration.partitions import WHOLE_TABLE, publish_ranges
from etl_dagster.orchestration.parts import PipelineParts
from etl_dagster.orchestration.pools import PoolNames
from etl_dagster.orchestration.reporting import Event, RunReport, log_event, partition_events
from etl_dagster.orchestration.session import PATIENCE_SECONDS, ReplicationSession, enter_session, errors_as_retries
from etl_dagster.orchestration.succession import hand_over
from etl_dagster.orchestration.translator import ReplicationTranslator, Tables, output_name, ranges_of, rule_of
from etl_dagster.orchestration.waiting import Onlooker
from etl_dagster.orchestration.wide_graph import assets_of, chain
from etl_dagster.store import TableRecord, TableState
from etl_dagster.store.base import Request, RequestKind

ASK, COPY = "ask_for_copies", "copy_tables"
# A run costs three seconds besides its work; one with this many days or ranges is still worth repeating when it fails.
BACKFILL_POLICY = dg.BackfillPolicy.multi_run(max_partitions_per_run=100)


@dataclass(frozen=True)
class TableSyncs:
    """The syncs of one pipeline: one subsettable asset definition over all tables, each with its own partitions."""

    parts: PipelineParts
    translator: ReplicationTranslator
    tables: Tables
    pools: PoolNames
    backfill_policy: dg.BackfillPolicy = BACKFILL_POLICY
    patience_seconds: float = PATIENCE_SECONDS

    def assets(self) -> dg.AssetsDefinition:
        """The syncs of all tables."""
        steps = {ASK: self._ask(), COPY: self._copy()}
        about = f"Copies of tables of pipeline {self.parts.name}"
        graph = chain(self.parts.names.sync, about, steps, self._outputs())
        specs = {
            name: self.translator.sync_spec(table, schema, rule_of(self.parts.choices, table, schema))
            for name, table in self._outputs().items()
            for schema in [self.tables[table]]
        }
        return assets_of(graph, specs, self.backfill_policy)

    def _outputs(self) -> Mapping[str, TableId]:
        return {output_name(self.translator.sync_key(table)): table for table in self.tables}

    def _selected(self, context: dg.OpExecutionContext) -> list[TableId]:
        by_key = {self.translator.sync_key(table): table for table in self.tables}
        return sorted(by_key[key] for key in context.selected_asset_keys)

    def _op_name(self, step: str) -> str:
        return f"{self.parts.names.sync}__{step}"

    def _ask(self) -> dg.OpDefinition:
        @dg.op(
            name=self._op_name(ASK),
            out=dg.Out(dg.Nothing),
            required_resource_keys={self.parts.names.session},
            pool=self.pools.destination,
        )
        def ask_for_copies(context: dg.OpExecutionContext) -> None:
            """Put what is to be copied into the pipeline's queue; tables that never ran are copied anyway."""
            session = enter_session(context, self.parts)
            with errors_as_retries(context):
                for table in self._selected(context):
                    if session.pipeline.record(table) is not None:
                        slices = _slices(context.partition_keys)
                        session.pipeline.request_resync(table, slices, request_id=_request(context, table).request_id)

        return ask_for_copies

    def _copy(self) -> dg.OpDefinition:
        @dg.op(
            name=self._op_name(COPY),
            ins={"start": dg.In(dg.Nothing)},
            out={name: dg.Out(dg.Nothing, is_required=False) for name in self._outputs()},
            required_resource_keys={self.parts.names.session},
            pool=self.pools.source,
        )
        def copy_tables(context: dg.OpExecutionContext) -> Iterator[dg.Output[None]]:
            """See the copies through; then tell Dagster, which need not keep the pipeline from others."""
            session, tables = enter_session(context, self.parts), self._selected(context)
            with errors_as_retries(context):
                requests = [self._asked(context, session, table) for table in tables]
                onlooker = Onlooker(context, session.pipeline, tables)
                done = partial(_are_done, session, requests)
                see_through(session, done, onlooker, self.patience_seconds)
                outcome = _Outcome.of(session, self.translator, tables)
                pass_on(context, session)  # which may take up what others ask for, of the same tables too
                outcome = outcome.ended(session, self.translator)
                session.release()
            ranges = ranges_of(
                self.translator, self.parts.choices, {each.table: each.schema for each in outcome.all_copies}
            )
            keys = _slices(context.partition_keys)
            copied = {each.table: each.slices for each in outcome.made} | {each.table: keys for each in outcome.asked}
            publish_ranges(context, session.pipeline, ranges, copied)
            yield from self._told(context, session, outcome)

        return copy_tables

    def _asked(self, context: dg.OpExecutionContext, session: ReplicationSession, table: TableId) -> Request:
        """What the first step has asked for; asked again by a run that takes up one that ended in quarantine."""
        request = _request(context, table)
        record = session.pipeline.record(table)
        begins_here = context.retry_number == 0 and context.run.parent_run_id is not None
        if not (begins_here and record and record.state is TableState.QUARANTINED and _is_done(session, request)):
            return request
        slices = _slices(context.partition_keys)
        return session.pipeline.request_resync(table, slices, request_id=f"{context.run_id}/{table}")

    def _told(
        self, context: dg.OpExecutionContext, session: ReplicationSession, outcome: "_Outcome"
    ) -> Iterator[dg.Output[None]]:
        """Outputs of the tables that were copied, and events of all that came of it on the way."""
        keys = list(context.partition_keys)
        for copy in outcome.asked:
            whole = not _slices(keys) or len(keys) >= len(session.pipeline.slices(copy.table))
            metadata = sync_metadata(copy, keys, whole)
            yield dg.Output(None, output_name(self.translator.sync_key(copy.table)), metadata=metadata)
        told = {copy.table: set(keys) for copy in outcome.asked}
        for event in partition_events(session, self.translator, outcome.made, told):
            log_event(context, event)
        for event in outcome.bystanders:
            # Last, or the live tables would seem older than what they were made from.
            log_event(context, event)
        if outcome.failures:
            raise dg.Failure("; ".join(outcome.failures), allow_retries=False)


@dataclass(frozen=True)
class _Outcome:
    """What came of a run, taken down while it held the pipeline, and completed before it lets go.

    Attributes:
        asked: Copies that were asked for.
        made: Copies that this run made: some of those, and maybe others.
        failures: What became of tables that were not copied.
        bystanders: What the run did to live tables on the way, and to the pipeline.
    """

    asked: Sequence[TableCopy]
    made: Sequence[TableCopy]
    failures: Sequence[str]
    bystanders: Sequence[Event]

    @classmethod
    def of(
        cls, session: ReplicationSession, translator: ReplicationTranslator, tables: Sequence[TableId]
    ) -> "_Outcome":
        """Of the run that has this session."""
        schemas, position, summary = session.schemas(), session.position(), session.summary
        records = {table: session.pipeline.record(table) for table in tables}
        asked = [
            TableCopy(record, progress, schemas.get(table), position, summary.started_at)
            for table, record in records.items()
            if record is not None and record.state is TableState.READY and not record.reason
            for progress in [summary.tables[table].copy if table in summary.tables else None]
        ]
        done = {copy.table for copy in asked}
        failures = [_not_copied(table, record) for table, record in records.items() if table not in done]
        return cls(asked, _copies_made(session, translator), failures, [])

    def ended(self, session: ReplicationSession, translator: ReplicationTranslator) -> "_Outcome":
        """With what the run did since."""
        made = {copy.table: copy for copy in (*self.made, *_copies_made(session, translator))}
        return replace(self, made=list(made.values()), bystanders=bystander_events(session, translator))

    @property
    def all_copies(self) -> Sequence[TableCopy]:
        """Asked for or not."""
        return [*self.asked, *self.made]


def _copies_made(session: ReplicationSession, translator: ReplicationTranslator) -> list[TableCopy]:
    replicator = session.opened
    return RunReport(translator, session, replicator).copies() if replicator else []


def see_through(
    session: ReplicationSession,
    done: Callable[[], bool],
    onlooker: Onlooker,
    patience_seconds: float = PATIENCE_SECONDS,
) -> None:
    """Do what was asked for, or wait while another process that holds the pipeline does."""
    replicator = session.replicator_or_work_done(done, patience_seconds, onlooker.tell)
    if replicator is None:
        onlooker.tell_end()
        return
    try:
        replicator.sync()
    except EtlError:
        session.release()  # a retry begins with new connections
        raise


def pass_on(context: dg.OpExecutionContext, session: ReplicationSession) -> None:
    """Have a successor started if the source is busy: without one, nobody would replicate for a while."""
    if (replicator := session.opened) is None or not session.summary.changes:
        return
    try:
        hand_over(context, session.pipeline.name, replicator, session.summary)
    except EtlError as error:  # what was asked for is done
        context.log.warning("The stream is left to the next run: %s", error)
        session.release()


def bystander_events(
    session: ReplicationSession, translator: ReplicationTranslator, also: Sequence[TableId] = ()
) -> list[Event]:
    """The live tables were brought up to date on the way, and those of ``also`` in any case."""
    if (replicator := session.opened) is None:
        return []
    report = RunReport(translator, session, replicator)
    live = dict.fromkeys([*report.changed(), *filter(report.is_live, also)])
    return [*map(report.live_event, live), *report.pipeline_events()]


def _slices(keys: Sequence[str]) -> Sequence[str]:
    """As a request names them: none for a table without slices."""
    return () if list(keys) == [WHOLE_TABLE] else keys


def _request(context: dg.OpExecutionContext, table: TableId) -> Request:
    """What the run, or the one that it is the re-execution of, asks for; the same in both steps and all retries."""
    run_id = context.run.root_run_id or context.run_id
    return Request(request_id=f"{run_id}/{table}", table=table, kind=RequestKind.RESYNC)


def _are_done(session: ReplicationSession, requests: Sequence[Request]) -> bool:
    return all(_is_done(session, each) for each in requests)


def _is_done(session: ReplicationSession, request: Request) -> bool:
    return session.pipeline.record(request.table) is not None and session.pipeline.is_done(request)


def _not_copied(table: TableId, record: TableRecord | None) -> str:
    if record is None:
        return f"{table} is unknown to the pipeline — reload the code location"
    return f"{table} is {record.state}: {record.reason} — {record.hint}"

"""The live tables: one subsettable multi-asset per pipeline, backed by the three ops of a micro-batch.

The ops run in one process on one open replicator: truncate (tables that wait for a copy get an empty staging area),
bulk write (their rows), event write (the stream). The stream has one order for all tables, so a run always moves the
whole pipeline; the selection says only which tables Dagster plans to see materialized.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg

from etl_dagster.model import Lsn, TableId
from etl_dagster.orchestration.metadata import TableCopy, live_metadata
from etl_dagster.orchestration.names import HELD_TAG, UNTIL_TAG
from etl_dagster.orchestration.partitions import publish_ranges
from etl_dagster.orchestration.parts import PipelineParts
from etl_dagster.orchestration.reporting import Event, RunReport, log_event, partition_events
from etl_dagster.orchestration.session import ReplicationSession, enter_session, errors_as_failures
from etl_dagster.orchestration.succession import bury_dead, hand_over
from etl_dagster.orchestration.translator import ReplicationTranslator, Tables, output_name, ranges_of
from etl_dagster.orchestration.waiting import Onlooker
from etl_dagster.orchestration.wide_graph import assets_of, chain
from etl_dagster.store import TableState

TRUNCATE, BULK_WRITE, EVENT_WRITE = "truncate_tables", "write_table_rows", "write_events"
Events = Iterator[dg.Output[None]]


@dataclass(frozen=True)
class MicroBatch:
    """The ops of one pipeline's micro-batch.

    Attributes:
        budget_seconds: How long a run that the sensor asked for goes on after it has reached what was asked.
    """

    parts: PipelineParts
    translator: ReplicationTranslator
    tables: Tables
    budget_seconds: float

    def graph(self) -> dg.GraphDefinition:
        """truncate_tables -> write_table_rows -> write_events, with an output for every live table."""
        steps = {TRUNCATE: self._truncate(), BULK_WRITE: self._bulk_write(), EVENT_WRITE: self._event_write()}
        return chain(self.parts.names.live, f"Micro-batch of pipeline {self.parts.name}", steps, self._outputs())

    def assets(self) -> dg.AssetsDefinition:
        """The live tables."""
        specs = {name: self.translator.live_spec(table, self.tables[table]) for name, table in self._outputs().items()}
        return assets_of(self.graph(), specs)

    def _op_name(self, step: str) -> str:
        """Two ops of one name must not meet in a code location of several pipelines."""
        return f"{self.parts.names.group}__{step}"

    def _outputs(self) -> Mapping[str, TableId]:
        return {output_name(self.translator.live_key(table)): table for table in self.tables}

    def _truncate(self) -> dg.OpDefinition:
        @dg.op(name=self._op_name(TRUNCATE), out=dg.Out(dg.Nothing), required_resource_keys={self.parts.names.session})
        def truncate_tables(context: dg.OpExecutionContext) -> None:
            """Give every table that waits for its copy an empty staging area."""
            with errors_as_failures():
                session = enter_session(context, self.parts)
                by_hand = UNTIL_TAG not in context.run.tags
                onlooker = Onlooker(context, session.pipeline, ())
                replicator = session.catch_up(onlooker.tell) if by_hand else session.replicator()
                if replicator is None and by_hand:
                    context.log.info("Another process runs this pipeline, and has caught up with the source")
                elif replicator is None:
                    context.instance.add_run_tags(context.run_id, {HELD_TAG: context.run_id})
                    context.log.warning("Another process runs this pipeline, and does what is to do")
                elif begun := replicator.begin_copies():
                    context.log.info("copies begin: %s", ", ".join(map(str, begun)))

        return truncate_tables

    def _bulk_write(self) -> dg.OpDefinition:
        @dg.op(
            name=self._op_name(BULK_WRITE),
            ins={"start": dg.In(dg.Nothing)},
            out=dg.Out(dg.Nothing),
            required_resource_keys={self.parts.names.session},
        )
        def write_table_rows(context: dg.OpExecutionContext) -> None:
            """Write the rows of the tables being copied; the stream is applied meanwhile."""
            with errors_as_failures():
                if replicator := enter_session(context, self.parts).replicator():
                    replicator.copy()

        return write_table_rows

    def _event_write(self) -> dg.OpDefinition:
        @dg.op(
            name=self._op_name(EVENT_WRITE),
            ins={"start": dg.In(dg.Nothing)},
            out={name: dg.Out(dg.Nothing, is_required=False) for name in self._outputs()},
            required_resource_keys={self.parts.names.session},
            config_schema={"budget_seconds": dg.Field(float, default_value=float(self.budget_seconds))},
        )
        def write_events(context: dg.OpExecutionContext) -> Events:
            """Apply the stream up to the position asked for, and on within the budget."""
            session = enter_session(context, self.parts)
            until = context.run.tags.get(UNTIL_TAG)
            with errors_as_failures():
                work = self._write(context, session, Lsn.parse(until) if until else None)
                # Telling Dagster takes up to a tenth of a second for each table; the successor need not wait for it.
                session.release()
            yield from self._told(context, session, work)

        return write_events

    def _write(self, context: dg.OpExecutionContext, session: ReplicationSession, until: Lsn | None) -> "_Work":
        """Apply the stream, and note what came of it."""
        replicator = session.replicator()
        if replicator is None:
            return _Work([], list(self._others_work(context, session, until)), held=False)
        budget = context.op_config["budget_seconds"] if until else 0.0
        replicator.apply(until=until, budget_seconds=budget)
        if budget:
            hand_over(context, self.parts.name, replicator, session.summary)
        for run_id in bury_dead(context.instance, self.parts.name, context.run_id, datetime.now(UTC)):
            context.log.warning("Run %s was taken for active, but its process is gone", run_id)
        report = RunReport(self.translator, session, replicator)
        return _Work(report.copies(), list(self._report(context, report)), held=True)

    def _told(
        self, context: dg.OpExecutionContext, session: ReplicationSession, work: "_Work"
    ) -> Iterator[dg.Output[None]]:
        """What Dagster is to know: partitions, copies, live tables, in this order."""
        if work.held:
            copied = {copy.table: copy.schema for copy in work.copies}
            ranges = ranges_of(self.translator, self.parts.choices, {**self.tables, **copied})
            publish_ranges(context, session.pipeline, ranges, {copy.table: copy.slices for copy in work.copies})
        for event in (*partition_events(session, self.translator, work.copies, {}), *work.events):
            if isinstance(event, dg.Output):
                yield event
            else:
                log_event(context, event)

    def _report(self, context: dg.OpExecutionContext, report: RunReport) -> Iterator[dg.Output[None] | Event]:
        """Materialize what changed, and what was asked for by hand."""
        selected = self._outputs_of(context.selected_output_names)
        by_hand = [t for t in selected.values() if UNTIL_TAG not in context.run.tags and report.is_live(t)]
        for table in dict.fromkeys([*report.changed(), *by_hand]):
            name = output_name(self.translator.live_key(table))
            if name in selected:
                yield dg.Output(None, name, metadata=report.live(table))
            else:
                yield report.live_event(table)
        yield from report.pipeline_events()

    def _others_work(self, context: dg.OpExecutionContext, session: ReplicationSession, until: Lsn | None) -> Events:
        """Materialize what was asked for by hand and another process brought; a run of the sensor leaves it to that."""
        if until is not None:
            return
        schemas = session.schemas()
        for name, table in self._outputs_of(context.selected_output_names).items():
            record = session.pipeline.record(table)
            if record is not None and record.state is TableState.READY:
                yield dg.Output(None, name, metadata=live_metadata(None, schemas.get(table), None, record.replaced))

    def _outputs_of(self, names: Iterable[str]) -> Mapping[str, TableId]:
        outputs = self._outputs()
        return {name: outputs[name] for name in names}


@dataclass(frozen=True)
class _Work:
    """What a run did, taken down while it held the pipeline.

    Attributes:
        held: It held the pipeline; otherwise another process does what is to do.
    """

    copies: Sequence[TableCopy]
    events: Sequence[dg.Output[None] | Event]
    held: bool


def selection_for(
    translator: ReplicationTranslator, known: Sequence[TableId], to_copy: Sequence[TableId], changes: bool, limit: int
) -> list[dg.AssetKey]:
    """Live tables that a run is planned to materialize.

    Each planned table costs some 10 ms before the run begins, and which tables have changed is known only once the
    stream is read; so with many tables only those that wait for a copy are planned, and the others that turn out to
    have changed are reported by the run all the same.
    """
    planned = [table for table in to_copy if table in set(known)]
    if changes and len(known) <= limit:
        planned = list(known)
    return [translator.live_key(table) for table in planned[:limit] or known[:1]]

"""A job that has quarantined tables go on where they were taken out, once the cause is mended."""

from collections.abc import Sequence

import dagster as dg

from etl_dagster.model import TableId
from etl_dagster.orchestration.names import PIPELINE_TAG
from etl_dagster.orchestration.parts import PipelineParts
from etl_dagster.orchestration.reporting import log_event
from etl_dagster.orchestration.session import ReplicationSession, enter_session, errors_as_failures
from etl_dagster.orchestration.sync_assets import bystander_events, pass_on, see_through
from etl_dagster.orchestration.translator import ReplicationTranslator
from etl_dagster.orchestration.waiting import Onlooker
from etl_dagster.store import TableState

_TABLES = {"tables": dg.Field([str], description="Quarantined tables, schema.table")}


def build_resume(parts: PipelineParts, translator: ReplicationTranslator, pool: str) -> dg.JobDefinition:
    """The job, whose whole config is ``tables``; it takes its turn in the source's pool."""
    op_name = f"{parts.names.resume}_tables"

    @dg.op(
        name=op_name,
        config_schema=_TABLES,
        out=dg.Out(dg.Nothing),
        required_resource_keys={parts.names.session},
        pool=pool,
    )
    def resume_tables(context: dg.OpExecutionContext) -> None:
        """Ask for the tables to go on, and see them through."""
        session = enter_session(context, parts)
        wanted = [TableId.parse(name) for name in context.op_config["tables"]]
        with errors_as_failures():
            asked = [session.pipeline.request_resume(table) for table in wanted]
            onlooker = Onlooker(context, session.pipeline, wanted)
            see_through(session, lambda: all(map(session.pipeline.is_done, asked)), onlooker)
            pass_on(context, session)
            for event in bystander_events(session, translator, also=wanted):
                log_event(context, event)
            _require_back(session, wanted)

    @dg.job(
        name=parts.names.resume,
        description=f"Has quarantined tables of pipeline {parts.name} go on where they stopped",
        tags={PIPELINE_TAG: parts.name},
        executor_def=dg.in_process_executor,
        config=dg.ConfigMapping(
            config_schema=_TABLES, config_fn=lambda config: {"ops": {op_name: {"config": dict(config)}}}
        ),
    )
    def resume() -> None:
        resume_tables()

    return resume


def _require_back(session: ReplicationSession, tables: Sequence[TableId]) -> None:
    records = [record for record in map(session.pipeline.record, tables) if record is not None]
    still = [record for record in records if record.state is TableState.QUARANTINED]
    if still:
        causes = "; ".join(f"{record.table} is still quarantined: {record.reason} — {record.hint}" for record in still)
        raise dg.Failure(causes, allow_retries=False)

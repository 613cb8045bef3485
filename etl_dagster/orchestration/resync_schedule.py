"""A schedule that copies tables afresh, for instance every night."""

from collections.abc import Iterable

import dagster as dg

from etl_dagster.model import TableId
from etl_dagster.orchestration.names import PIPELINE_TAG, PipelineNames
from etl_dagster.orchestration.translator import WHOLE_TABLE, ReplicationTranslator


def build_resync_schedule(
    pipeline: str,
    tables: Iterable[TableId | str],
    cron_schedule: str,
    *,
    name: str | None = None,
    translator: ReplicationTranslator | None = None,
    running: bool = True,
) -> dg.ScheduleDefinition:
    """A schedule to merge with the definitions of its pipeline; the tables stay readable, and go on changing.

    Args:
        pipeline: The pipeline's name.
        tables: Tables to copy, ``schema.table``.
        cron_schedule: When.
        name: The schedule's name, when a pipeline has several.
        translator: The one that the pipeline's definitions were built with, if not the plain one.
        running: On from the start, without a click in the UI.
    """
    translator, names = translator or ReplicationTranslator(pipeline, ""), PipelineNames(pipeline)
    wanted = [TableId.parse(table) if isinstance(table, str) else table for table in tables]
    keys = [translator.sync_key(table) for table in wanted]

    @dg.schedule(
        name=name or f"{names.sync_job}_schedule",
        job_name=names.sync_job,
        cron_schedule=cron_schedule,
        default_status=dg.DefaultScheduleStatus.RUNNING if running else dg.DefaultScheduleStatus.STOPPED,
        description=f"Copies afresh: {', '.join(map(str, wanted))}",
    )
    def resync(_context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        return dg.RunRequest(asset_selection=keys, partition_key=WHOLE_TABLE, tags={PIPELINE_TAG: pipeline})

    return resync

"""The sensor that asks for micro-batches: it looks, and never writes."""

import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import takewhile

import dagster as dg

from etl_dagster.config import PipelineConfig
from etl_dagster.model import FrozenModel, TableId
from etl_dagster.orchestration.live_assets import selection_for
from etl_dagster.orchestration.names import HELD_TAG, MAX_RUNTIME_TAG, PIPELINE_TAG, UNTIL_TAG
from etl_dagster.orchestration.parts import PipelineParts
from etl_dagster.orchestration.translator import ReplicationTranslator
from etl_dagster.pipeline import Pending, Pipeline

ACTIVE = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
# A run costs seconds of work, so one that fails for a lasting reason is not repeated at every tick.
MAX_PAUSE_SECONDS = 300.0
_REMEMBERED_FAILURES = 7


class SensorSettings(FrozenModel):
    """How the source is watched.

    Attributes:
        interval_seconds: Least time between two looks. Dagster's loop makes one every five seconds at most; exactly
            five would be missed by a hair at every other turn of that loop.
        running: On from the start, without a click in the UI.
        max_run_seconds: After which a run is taken for dead and ended; a copy that was under way goes on in the next.
        planned_tables: Most live tables that a run plans to materialize.
    """

    interval_seconds: int = 1
    running: bool = True
    max_run_seconds: int = 4 * 3600
    planned_tables: int = 25


class SourceWatch:
    """Keeps a pipeline's connections open between ticks, so that an idle tick costs one query and not a login."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pipeline: Pipeline | None = None

    def pending(self, config: PipelineConfig) -> Pending | None:
        """What there is to do; None while another tick still asks (Dagster repeats a tick that takes too long)."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            if self._pipeline is None or self._pipeline.config != config:
                self._pipeline = Pipeline(config)
            return self._pipeline.pending()
        except BaseException:
            self._forget()
            raise
        finally:
            self._lock.release()

    def _forget(self) -> None:
        """The connection may be what failed: the next tick begins anew."""
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            pipeline.close()


def build_sensor(
    parts: PipelineParts,
    translator: ReplicationTranslator,
    tables: Sequence[TableId],
    settings: SensorSettings,
) -> dg.SensorDefinition:
    """The pipeline's sensor; its evaluation is a function of Dagster's runs and the source, and changes neither."""
    watch = SourceWatch()
    status = dg.DefaultSensorStatus.RUNNING if settings.running else dg.DefaultSensorStatus.STOPPED

    @dg.sensor(
        name=parts.names.sensor,
        job_name=parts.names.micro_batch,
        minimum_interval_seconds=settings.interval_seconds,
        default_status=status,
        required_resource_keys=parts.resource_keys,
        description=f"Requests a micro-batch of pipeline {parts.name} when there is something to do",
    )
    def changes(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        if reason := reason_to_wait(context.instance, parts.name, datetime.now(UTC)):
            return dg.SkipReason(reason)
        pending = watch.pending(parts.config(context.resources))
        if pending is None:
            return dg.SkipReason("the last look at the source is not over yet")
        if not pending.work:
            return dg.SkipReason(pending.reason)
        keys = selection_for(translator, tables, pending.tables_to_copy, pending.changes, settings.planned_tables)
        tags = {
            PIPELINE_TAG: parts.name,
            UNTIL_TAG: str(pending.current),
            MAX_RUNTIME_TAG: str(settings.max_run_seconds),
        }
        # No run_key: a failed run would burn it, and the position that counts is in our store.
        return dg.RunRequest(asset_selection=keys or None, tags=tags)

    return changes


def reason_to_wait(instance: dg.DagsterInstance, pipeline: str, now: datetime) -> str | None:
    """Why no run should be asked for, whatever the source says: one is active, or the last ones came to nothing."""
    tags = {PIPELINE_TAG: pipeline}
    if instance.get_runs_count(dg.RunsFilter(tags=tags, statuses=ACTIVE)):
        return "a run of this pipeline is active"
    records = instance.get_run_records(dg.RunsFilter(tags=tags), limit=_REMEMBERED_FAILURES)
    failures = len(list(takewhile(_was_in_vain, (record.dagster_run for record in records))))
    if not failures or (ended := records[0].end_time) is None:
        return None
    pause = min(MAX_PAUSE_SECONDS, 5.0 * 2**failures)
    left = ended + pause - now.timestamp()
    return f"the last {failures} runs failed or found the pipeline busy; next in {left:.0f} s" if left > 0 else None


def _was_in_vain(run: dg.DagsterRun) -> bool:
    return run.status is dg.DagsterRunStatus.FAILURE or HELD_TAG in run.tags

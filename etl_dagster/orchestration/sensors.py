"""The sensor that asks for micro-batches: it looks, and never writes."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from time import monotonic

import dagster as dg

from etl_dagster.config import PipelineConfig
from etl_dagster.model import FrozenModel, TableId
from etl_dagster.orchestration.live_assets import selection_for
from etl_dagster.orchestration.names import MAX_RUNTIME_TAG, PIPELINE_TAG, UNTIL_TAG
from etl_dagster.orchestration.parts import PipelineParts
from etl_dagster.orchestration.succession import reason_to_wait
from etl_dagster.orchestration.translator import ReplicationTranslator
from etl_dagster.pipeline import Pipeline

# A look costs little, so a source that comes back is noticed soon.
MAX_BLIND_SECONDS = 60.0


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
    """Keeps a pipeline's connections open between ticks, so that an idle tick costs one query and not a login.

    After a look that failed it is blind for a while, longer each time: a failed tick is kept for weeks.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pipeline: Pipeline | None = None
        self._failures = 0
        self._blind_until = 0.0
        self._problem = ""

    @contextmanager
    def looking(self, config: PipelineConfig) -> Iterator[Pipeline | None]:
        """The open pipeline; None while another tick still looks (Dagster repeats a tick that takes too long)."""
        if not self._lock.acquire(blocking=False):
            yield None
            return
        try:
            if self._pipeline is None or self._pipeline.config != config:
                self._forget()
                self._pipeline = Pipeline(config)
            yield self._pipeline
            self._failures = 0
        except BaseException as error:
            self._forget()
            self._fail(str(error))
            raise
        finally:
            self._lock.release()

    def blindness(self) -> str | None:
        """Why nobody should look just now."""
        left = self._blind_until - monotonic()
        return f"{self._problem} (next look in {left:.0f} s)" if left > 0 else None

    def _fail(self, problem: str) -> None:
        self._problem = problem
        self._failures += 1
        self._blind_until = monotonic() + min(MAX_BLIND_SECONDS, 2.0**self._failures)

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
        if reason := watch.blindness():
            return dg.SkipReason(reason)
        with watch.looking(parts.config(context.resources)) as pipeline:
            if pipeline is None:
                return dg.SkipReason("the last look at the source is not over yet")
            if reason := reason_to_wait(context.instance, parts.name, datetime.now(UTC), pipeline.is_held):
                return dg.SkipReason(reason)
            pending = pipeline.pending()
        if not pending.work:
            return dg.SkipReason(pending.reason + _without_asset(pending.tables, tables))
        keys = selection_for(translator, tables, pending.tables_to_copy, pending.changes, settings.planned_tables)
        tags = {
            PIPELINE_TAG: parts.name,
            UNTIL_TAG: str(pending.current),
            MAX_RUNTIME_TAG: str(settings.max_run_seconds),
        }
        # No run_key: a failed run would burn it, and the position that counts is in our store.
        return dg.RunRequest(asset_selection=keys or None, tags=tags)

    return changes


def _without_asset(replicated: Iterable[TableId], known: Iterable[TableId]) -> str:
    if not (missing := sorted(set(replicated) - set(known))):
        return ""
    return f"; reload the code location to see the assets of {', '.join(map(str, missing))}"
